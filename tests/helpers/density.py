"""Counts constructs that stop a reader, for the limits in `test_house.py`.

A construct is counted where it stands in the source. None is banned where it is the plainest way;
the limits only say that there may not be more of them, for each 1,000 lines of code.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
EXPRESSIONS = (ast.IfExp, ast.Lambda, *COMPREHENSIONS)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# Names that say how a value came to be, and not what it is.
UNNAMED = {
    *("each", "words", "known", "found", "own", "shown", "left", "named", "kept", "whole"),
    *("chosen", "given", "wanted", "said", "asked", "told", "many", "taken", "had", "got", "seen"),
    *("made", "put", "ways", "these", "those", "ones", "others", "rest", "theirs", "ours"),
    *("mine", "lone", "alone", "bare", "both", "such"),
}
INDIRECT = re.compile(r"(Of|By|What|That|Whether|As) ")
INDIRECT_COMMENT = re.compile(r"#\s+(Of|By|That|What) [a-z]")


def count_constructs(text: str, tree: ast.Module) -> Counter[str]:
    """Counts the constructs of one file by kind."""
    counts: Counter[str] = Counter()
    for node in ast.walk(tree):
        counts.update(kinds_of(node))
    counts["indirect"] += sum(1 for line in text.splitlines() if INDIRECT_COMMENT.search(line))
    return counts


def kinds_of(node: ast.AST) -> Iterator[str]:
    """Yields the kind of each construct that a node of the syntax tree is."""
    if isinstance(node, ast.Assign) and assigns_pairs(node):
        yield "paired"
    if isinstance(node, ast.IfExp):
        yield "ternary"
    if isinstance(node, COMPREHENSIONS):
        yield "comprehension"
    if isinstance(node, EXPRESSIONS) and contains_another(node):
        yield "nested"
    if isinstance(node, ast.NamedExpr):
        yield "walrus"
    if isinstance(node, ast.BinOp) and multiplies_by_truth(node):
        yield "boolarith"
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and is_unnamed(node.id):
        yield "unnamed"
    if isinstance(node, ast.arg) and is_unnamed(node.arg):
        yield "unnamed"
    if isinstance(node, ast.Call) and reads_attribute_by_name(node):
        yield "getattr"
    yield from ["any"] * count_any(node)
    if isinstance(node, DOCUMENTED) and INDIRECT.match(ast.get_docstring(node) or ""):
        yield "indirect"


def assigns_pairs(node: ast.Assign) -> bool:
    """Tells two assignments in one line, `a, b = x, y`, from a swap or the result of a call."""
    target = node.targets[0]
    if len(node.targets) > 1 or not isinstance(target, ast.Tuple):
        return False
    if not isinstance(node.value, ast.Tuple) or len(target.elts) != len(node.value.elts):
        return False
    names = sorted(ast.unparse(part) for part in target.elts)
    values = sorted(ast.unparse(part) for part in node.value.elts)
    return names != values


def contains_another(node: ast.AST) -> bool:
    """Finds a conditional expression, comprehension or lambda inside another one."""
    inner = (child for child in ast.walk(node) if child is not node)
    return any(isinstance(child, EXPRESSIONS) for child in inner)


def multiplies_by_truth(node: ast.BinOp) -> bool:
    """Finds arithmetic in place of an `if`, such as `[item] * bool(condition)`."""
    if not isinstance(node.op, ast.Mult):
        return False
    sides = (node.left, node.right)
    holders = (ast.List, ast.Tuple, ast.Constant, ast.JoinedStr)
    return any(map(is_truth, sides)) and any(isinstance(side, holders) for side in sides)


def is_truth(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "bool"
    is_not = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    return is_not or isinstance(node, ast.Compare)


def is_unnamed(name: str) -> bool:
    return name.strip("_") in UNNAMED


def reads_attribute_by_name(node: ast.Call) -> bool:
    """Finds `getattr(value, "name")`: an attribute that no class declares."""
    if not isinstance(node.func, ast.Name) or node.func.id != "getattr":
        return False
    return len(node.args) > 1 and isinstance(node.args[1], ast.Constant)


def count_any(node: ast.AST) -> int:
    """Counts `Any` in the annotation of an argument, a variable or a result."""
    annotation = None
    if isinstance(node, ast.AnnAssign | ast.arg):
        annotation = node.annotation
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        annotation = node.returns
    if annotation is None:
        return 0
    parts = ast.walk(annotation)
    return sum(1 for part in parts if isinstance(part, ast.Name) and part.id == "Any")
