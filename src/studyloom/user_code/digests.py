"""The user's source code: a digest for each module, as a part of a study definition.

The digest is that of the syntax tree without docstrings. Comments and formatting change no result,
so that a formatter or a better comment does not change a study definition.

A *target* is the dotted name of a function or class that a config names, such as `_target_`. Names
that begin with `__main__.` are those of the notebook or script that runs the study. A *part* of the
code is one function or class.
"""

import ast
import dis
import functools
import hashlib
import inspect
import linecache
import os
import sys
import textwrap
import traceback
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from studyloom.errors import ConfigError, refuse
from studyloom.user_code.importing import find_member, is_users_code
from studyloom.user_code.pickled import MAIN, received_digests

CODE = "code."  # the beginning of the key of a digest; the module follows
DIGITS = 16  # the length of a digest: long enough to distinguish sources, short enough to read
DATA = "data "  # the beginning of the digest of an array, a tensor or a Dataset
MOST = 1_000_000  # an array of more numbers is sampled evenly, so that its digest stays fast
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class ModuleDigest(NamedTuple):
    """The name of a module, and the digest of its file."""

    module: str
    digest: str


class FirstLook(NamedTuple):
    """A module when this process first looked at it: its spec, and the digest of its file."""

    spec: ModuleSpec
    digest: str


@dataclass(frozen=True)
class Form:
    """A text that each process makes of the same code or plain data.

    Attributes:
        text: "" for a value without a form.
        names_read: the globals that the code of the value reads.
    """

    text: str
    names_read: tuple[str, ...] = ()


_first_looks: dict[str, FirstLook] = {}  # by the name of the module


def compute_code_digests(sections: object) -> dict[str, str]:
    """Returns the digests of the user's modules that a config names, by `code.MODULE`.

    Installed packages, Python's modules and studyloom are left out, so that an upgrade does not
    change a definition. Modules that the named ones import are left out too. The definitions of a
    notebook or script are `code.__main__.NAME`, together with the globals that they use; see
    `find_main_globals`. Arrays, tensors and Datasets that the named code uses at the top level of
    its module are `code.MODULE.NAME`.

    Args:
        sections: the sections of a config, as plain values.

    Raises:
        ConfigError: files have changed since this process imported them, as in a notebook that runs
            a second study: it would run other code than the digests say.
    """
    targets = dict.fromkeys(find_targets(sections))
    parts: list[Any] = []
    for target in targets:
        parts += _import_parts(target)
    by_name: dict[str, str] = {}
    for part in parts:
        module = _digest_module(part)
        if module is not None:
            by_name[module.module] = module.digest
    by_name |= _digest_module_data(parts, modules=by_name)
    by_name |= _digest_main(targets)
    _refuse_edited_modules(by_name)
    return {f"{CODE}{name}": by_name[name] for name in sorted(by_name)}


def _digest_main(targets: Iterable[str]) -> dict[str, str]:
    """Returns the digests of what a notebook or script defines and targets use, by its name.

    A worker has received them from that program, since it cannot read the source of a notebook.
    """
    if received_digests:
        return received_digests
    by_name = {}
    for name, form in find_main_globals(targets).items():
        if form:
            by_name[MAIN + name] = _digest_form(form)
    return by_name


def _refuse_edited_modules(by_name: Mapping[str, str]) -> None:
    """Raises ConfigError if the file of a module has changed since this process imported it."""
    errors = []
    for name in sorted(by_name):
        if _is_edited(name, by_name[name]):
            path = os.path.relpath(str(sys.modules[name].__file__))
            errors.append(
                f"{path} has changed since this process imported it; restart it (in a notebook: "
                "the kernel), or use importlib.reload"
            )
    refuse(errors)


def _is_edited(name: str, digest: str) -> bool:
    """Returns whether a module's source has changed since this process first looked at it.

    A module that was imported again, or reloaded, has another spec: it is looked at for the first
    time.

    Args:
        name: of a module. A name of another kind, such as `__main__.Net`, is never edited.
        digest: that of its present file.
    """
    module = sys.modules.get(name)
    if module is None or not hasattr(module, "__spec__") or module.__spec__ is None:
        return False
    spec = module.__spec__
    first = _first_looks.setdefault(name, FirstLook(spec, digest))
    if first.spec is spec:
        return first.digest != digest
    _first_looks[name] = FirstLook(spec, digest)
    return False


def select_code_digests(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Selects the digests of code in a definition."""
    return {key: value for key, value in definition.items() if key.startswith(CODE)}


def describe_source(key: str) -> str:
    """Describes the source whose digest has changed, such as studies/mine.py.

    Args:
        key: the key of the digest: code.studies.mine, or code.__main__.Net of a notebook or script,
            which is "the code of Net".
    """
    name = key.removeprefix(CODE)
    file = _module_file(name)
    if file is not None:
        path = Path(file)
        if path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        return str(path)
    if name.startswith(MAIN):
        return f"the code of {name.removeprefix(MAIN)}"
    return name


def _module_file(name: str) -> str | None:
    """Returns the file of an imported module; None without one."""
    module = sys.modules.get(name)
    if module is None or not hasattr(module, "__file__"):
        return None
    return module.__file__


def find_targets(value: Any) -> Iterator[str]:
    """Yields every `_target_` of nested plain values, and every `path` of Hydra's `get_method`."""
    if isinstance(value, Mapping):
        target = value.get("_target_")
        if isinstance(target, str):
            yield target
            if target.startswith("hydra.utils.get_") and isinstance(value.get("path"), str):
                yield value["path"]
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from find_targets(inner)


def _import_parts(target: str) -> Iterable[Any]:
    """Imports a target, and returns its parts; none if it cannot be imported."""
    try:
        return _find_parts(find_member(target))
    except Exception:  # `validate` reports the target
        return ()


def _find_parts(value: object) -> Iterable[Any]:
    """Returns the parts of the code that a value runs.

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


def _digest_module(part: Any) -> ModuleDigest | None:
    """Returns the digest of the module of a function or class.

    It is None for packages, for code without a source, and for definitions of a notebook or script.
    """
    name = str(part.__module__)
    if name == "__main__":
        return None
    file = _module_file(name)
    if file is None:
        return None
    try:
        path = Path(file).resolve()
        if is_users_code(path):
            return ModuleDigest(name, digest_source(path.read_bytes()))
    except (OSError, TypeError):
        pass
    return None


def find_main_globals(targets: Iterable[str]) -> dict[str, str]:
    """Returns the globals of `__main__` among targets, and all globals that their code uses.

    cloudpickle sends these to workers together with the targets.

    Returns:
        The text of each one's form by its name; see `Form`.
    """
    members = vars(sys.modules["__main__"])
    unvisited = []
    for target in targets:
        if target.startswith(MAIN):
            unvisited.append(target.removeprefix(MAIN).partition(".")[0])
    texts: dict[str, str] = {}
    while unvisited:
        name = unvisited.pop(0)
        if name in members and name not in texts and not name.startswith("__"):
            form = _describe_form(members[name])
            texts[name] = form.text
            unvisited += form.names_read
    return texts


def _digest_form(form: str) -> str:
    """Returns the digest of a form's text; that of data is a digest already."""
    if form.startswith(DATA):
        return form
    # As a value that is assigned: a string on its own would be a docstring, which does not count.
    return digest_source(f"_ = {form}".encode())


def _digest_module_data(parts: Iterable[Any], modules: Container[str]) -> dict[str, str]:
    """Returns the digests of the data that functions and classes of some modules use.

    Such data may be drawn when the module is imported. Functions and classes of the same module
    that the code uses are searched too.

    Args:
        parts: functions and classes.
        modules: the names of the user's modules.
    """
    by_name: dict[str, str] = {}
    unsearched = []
    for part in parts:
        if hasattr(part, "__module__") and part.__module__ in modules:
            unsearched.append(part)
    searched_ids: set[int] = set()
    while unsearched:
        part = unsearched.pop()
        if id(part) in searched_ids:
            continue
        searched_ids.add(id(part))
        globals_of_module = vars(sys.modules[part.__module__])
        methods = vars(part).values()
        for code in _select_code([part, *methods]):
            for name in _find_names_read(code):
                value = globals_of_module.get(name)
                data = data_digest(value)
                if data is not None:
                    by_name[f"{part.__module__}.{name}"] = data
                is_code = inspect.isroutine(value) or inspect.isclass(value)
                if is_code and value.__module__ == part.__module__:
                    unsearched.append(value)
    return by_name


def _select_code(values: Iterable[object]) -> list[CodeType]:
    """Returns the compiled code of the functions among some values."""
    return [value.__code__ for value in values if hasattr(value, "__code__")]


def data_digest(value: Any) -> str | None:
    """Returns a digest of an array, a tensor, or a Dataset of PyTorch that holds such.

    It is None for anything else, and for the parameters of a network. It imports neither NumPy nor
    PyTorch: before the user's code has imported them, there are no such values.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        data = torch.utils.data
        if isinstance(value, data.DataLoader):
            return data_digest(value.dataset)
        if isinstance(value, data.TensorDataset):
            return _join_digests([data_digest(tensor) for tensor in value.tensors])
        if isinstance(value, data.Subset):
            numpy = sys.modules["numpy"]  # Datasets with indices are not used without it
            digest_of_indices = data_digest(numpy.asarray(value.indices))
            # Of a Dataset that has no digest, at least the choice of its examples counts.
            return _join_digests([digest_of_indices, data_digest(value.dataset) or ""])
        if isinstance(value, torch.Tensor):
            if value.requires_grad or value.layout != torch.strided or value.is_quantized:
                return None
            numbers = value.detach().cpu()
            if numbers.dtype == torch.bfloat16:  # NumPy has no such type
                numbers = numbers.float()
            return _digest_array(numbers.numpy())
    return _digest_array(value)


def _digest_array(value: Any) -> str | None:
    """Returns the digest of an array of numbers; None for anything else."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray) or value.dtype.hasobject:
        return None
    stride = max(1, value.size // MOST)
    sample = value.reshape(-1)[::stride]
    digest = hashlib.sha256(f"{value.dtype} {value.shape}".encode())
    digest.update(numpy.ascontiguousarray(sample).view(numpy.uint8).data)
    return DATA + digest.hexdigest()[:DIGITS]


def _join_digests(digests: Sequence[str | None]) -> str | None:
    """Returns the digest of data that have several; None if one of them is None.

    One that is "" is left out.
    """
    if None in digests:
        return None
    text = " ".join(filter(None, digests))
    return DATA + hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _describe_form(value: object) -> Form:
    """Returns the form of a value: its `repr`, a digest, or the forms of what it holds."""
    if value is None or isinstance(value, str | bytes | int | float | complex):
        return Form(repr(value))
    data = data_digest(value)
    if data is not None:
        return Form(data)
    if is_dataclass(value) and not isinstance(value, type):
        return _describe_items([type(value), vars(value)])
    if isinstance(value, dict):
        return _describe_items(value.items())
    if isinstance(value, list | tuple):
        return _describe_items(value)
    if isinstance(value, set | frozenset):
        return _describe_items(value, is_set=True)
    return _describe_code(value)


def _describe_items(items: Iterable[object], *, is_set: bool = False) -> Form:
    """Returns the form of a value that holds others.

    Args:
        is_set: whether the order of the items differs between processes, as that of a set does.
    """
    texts = []
    names: list[str] = []
    for item in items:
        form = _describe_form(item)
        texts.append(form.text)
        names += form.names_read
    if is_set:
        texts.sort()
    return Form(f"[{', '.join(texts)}]", tuple(names))


def _describe_code(value: object) -> Form:
    """Returns the form of a function, a class, or an object: the digests of its parts' sources.

    Only parts that `__main__` defines count, since each module has its own digest. A function or
    class of a module, or one whose source cannot be read, has its name. An object of such a class
    has "".
    """
    text = ""
    names: list[str] = []
    for part in _find_parts(value):
        if part.__module__ == "__main__":
            with suppress(OSError, TypeError, SyntaxError):  # its source cannot be read
                source = read_source(part)
                names += _find_names_read(compile(source, "", "exec"))
                text += digest_source(source.encode())
    if not text and hasattr(value, "__qualname__"):
        text = str(value.__qualname__)
    return Form(text, tuple(names))


def _find_names_read(code: CodeType) -> Iterator[str]:
    """Yields the names, except for local variables, that a code object and those within it read."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_NAME", "LOAD_GLOBAL"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _find_names_read(constant)


def read_source(part: Any) -> str:
    """Returns the source of a function or class, also of a class that a notebook defines.

    Raises:
        OSError: the source cannot be read.
        TypeError: the value is not Python code.
    """
    try:
        return textwrap.dedent(inspect.getsource(part))
    except (OSError, TypeError):
        # Before Python 3.13 inspect looks for a class in its module's file, which a notebook lacks.
        source = _find_class_in_cells(part)
        if source is None:
            raise
        return source


def _find_class_in_cells(part: type) -> str | None:
    """Finds the source of a class among the cells of a notebook; None if no cell has it.

    `linecache` holds the source of a cell under a name that is not that of a file. The class is
    looked for in the cells of its methods, and then in all others, the latest first.
    """
    cells = [code.co_filename for code in _select_code(vars(part).values())]
    for name in reversed(list(linecache.cache)):
        if not Path(name).exists():
            cells.append(name)
    for cell in cells:
        text = "".join(linecache.getlines(cell))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and node.name == part.__name__:
                return ast.get_source_segment(text, node) or ""
    return None


def read_main_sources(sections: object) -> dict[str, str]:
    """Returns the sources of the targets that a notebook or script defines, by the target."""
    sources = {}
    for target in find_targets(sections):
        if target.startswith(MAIN):
            with suppress(Exception):  # `validate` reports a target that is missing
                sources[target] = read_source(find_member(target))
    return sources


def check_readable(part: Any) -> None:
    """Raises ConfigError if an edit of a function or class in a notebook would go unnoticed."""
    main = sys.modules["__main__"]
    if part.__module__ == "__main__" and not hasattr(main, "__file__"):
        try:
            read_source(part)
        except (OSError, TypeError, SyntaxError):
            raise ConfigError(
                f"{part.__qualname__}: its source cannot be read, so that an edit of it would "
                "go unnoticed; define it in a cell of a notebook, a script or a module"
            ) from None


def describe_place(error: BaseException) -> str:
    """Returns the last file and line of the user's code in an exception's traceback, or ""."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith("/") and is_users_code(Path(frame.filename)):
            return f" ({frame.filename}:{frame.lineno})"
    return ""


def digest_source(source: bytes) -> str:
    """Returns the digest of a Python source without comments, docstrings and formatting.

    For anything else, such as a compiled module, it is the digest of the bytes.
    """
    try:
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
        source = ast.unparse(tree).encode()
    except (SyntaxError, ValueError, RecursionError):
        pass
    return hashlib.sha256(source).hexdigest()[:DIGITS]
