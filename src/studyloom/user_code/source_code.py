"""The source code of the user's functions, classes and modules: how it is found, read and digested.

A *member* is a function or class of a module. The digest of a source is that of its syntax tree
without docstrings. Comments and formatting change no result, so that a formatter or a better
comment does not change a study definition.
"""

import ast
import functools
import hashlib
import inspect
import linecache
import sys
import textwrap
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from studyloom.errors import ConfigError
from studyloom.user_code.importing import is_users_code

DIGITS = 16  # the length of a digest: long enough to distinguish sources, short enough to read
LAMBDA = "<lambda>"  # the name that Python gives to each lambda
NODES_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class ModuleDigest(NamedTuple):
    """The name of a module, and the digest of its file."""

    name: str
    digest: str


def find_module_file(name: str) -> str | None:
    """Returns the file of an imported module; None without one."""
    module = sys.modules.get(name)
    if module is None or not hasattr(module, "__file__"):
        return None
    return module.__file__


def find_members(value: object) -> Iterable[Any]:
    """Returns the functions and classes whose code a value runs.

    They are a class and its bases, a function without its decorators, or the class of an object and
    its bases. A partial runs what its function runs.
    """
    while isinstance(value, functools.partial):
        value = value.func
    if inspect.isclass(value):
        return inspect.getmro(value)
    if inspect.isroutine(value):
        return (inspect.unwrap(value),)
    return inspect.getmro(type(value))


def digest_module(member: Any) -> ModuleDigest | None:
    """Returns the name of the module of a function or class, and the digest of the module's file.

    Returns None for `__main__`, a module of an installed package, and a module without a source.
    """
    name = str(member.__module__)
    if name == "__main__":
        return None
    file = find_module_file(name)
    if file is None:
        return None
    try:
        path = Path(file).resolve()
        if is_users_code(path):
            return ModuleDigest(name, digest_source(path.read_bytes()))
    except (OSError, TypeError):  # a module may set its `__file__` to anything
        pass
    return None


def digest_source(source: bytes) -> str:
    """Returns the digest of a Python source without comments, docstrings and formatting.

    For anything else, such as a compiled module, it is the digest of the bytes.
    """
    try:
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, NODES_WITH_DOCSTRING):
                docstring = ast.get_docstring(node, clean=False)
                if docstring is not None:
                    del node.body[0]
        digested_source = ast.unparse(tree).encode()
    except (SyntaxError, ValueError, RecursionError):
        digested_source = source
    return hashlib.sha256(digested_source).hexdigest()[:DIGITS]


def read_source(member: Any) -> str:
    """Returns the source of a function or class, also of a class that a notebook defines.

    Raises:
        OSError: the source cannot be read.
        TypeError: the value is not Python code.
        SyntaxError: the file of a lambda is not Python, such as a cell with a magic command.
    """
    if inspect.isfunction(member) and member.__name__ == LAMBDA:
        return _read_lambda(member)
    try:
        return textwrap.dedent(inspect.getsource(member))
    except (OSError, TypeError):
        # Before Python 3.13 inspect looks for a class in its module's file, which a notebook lacks.
        source = _find_class_in_cells(member)
        if source is None:
            raise
        return source


def _read_lambda(function: FunctionType) -> str:
    """Returns the source of a lambda, without the rest of the line that it stands in.

    Python knows only the line. If several lambdas with the same parameters begin there, all of them
    are returned.
    """
    code = function.__code__
    parameters = code.co_varnames[: code.co_argcount]
    file_lines, _ = inspect.findsource(function)
    sources = []
    for node in ast.walk(ast.parse("".join(file_lines))):
        if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno:
            names = [*node.args.posonlyargs, *node.args.args]
            if tuple(name.arg for name in names) == parameters:
                sources.append(ast.unparse(node))
    if not sources:
        raise OSError("the lambda is not in its file")
    return f"({', '.join(sources)})"


def _find_class_in_cells(class_: type) -> str | None:
    """Finds the source of a class among the cells of a notebook; None if no cell has it.

    Python's `linecache` holds the source of each cell under a name that no file has. The class is
    looked for in the cells of its methods, and then in all other cells, the latest first.
    """
    cell_names = [code.co_filename for code in select_code(vars(class_).values())]
    for name in reversed(list(linecache.cache)):
        if not Path(name).exists():
            cell_names.append(name)
    for cell_name in cell_names:
        cell_source = "".join(linecache.getlines(cell_name))
        for node in ast.walk(ast.parse(cell_source)):
            if isinstance(node, ast.ClassDef) and node.name == class_.__name__:
                return ast.get_source_segment(cell_source, node) or ""
    return None


def select_code(values: Iterable[object]) -> list[CodeType]:
    """Returns the compiled code of the functions among some values."""
    return [value.__code__ for value in values if hasattr(value, "__code__")]


def check_readable(member: Any) -> None:
    """Raises ConfigError for a function or class without a source, as one typed into a terminal.

    Its digest would not change with an edit of it.
    """
    is_in_main = member.__module__ == "__main__"
    main_has_file = hasattr(sys.modules["__main__"], "__file__")  # not in a notebook or terminal
    is_typed_in = is_in_main and not main_has_file
    if not is_typed_in:
        return
    try:
        read_source(member)
    except (OSError, TypeError, SyntaxError):
        raise ConfigError(
            f"{member.__qualname__}: its source cannot be read, so that an edit of it would "
            "go unnoticed; define it in a cell of a notebook, a script or a module"
        ) from None


def describe_place(error: BaseException) -> str:
    """Returns the last line of the user's code in a traceback, such as " (/mine.py:7)", or ""."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith("/") and is_users_code(Path(frame.filename)):
            return f" ({frame.filename}:{frame.lineno})"
    return ""
