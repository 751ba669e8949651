"""The user's source code: a digest for each module, as a part of a study definition.

The digest is that of the syntax tree without docstrings. Comments and formatting change no result,
so that a formatter or a better comment does not change a study definition.

A *target* is the dotted name of a function or class that a config names, such as `_target_`. Names
that begin with `__main__.` are those of the notebook or script that runs the study.
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
from dataclasses import is_dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from studyloom.errors import ConfigError, refuse
from studyloom.user_code.importing import find_member, is_users_code
from studyloom.user_code.pickled import MAIN, digests

CODE = "code."  # the beginning of the key of a digest; the module follows
DIGITS = 16  # the length of a digest: long enough to distinguish sources, short enough to read
DATA = "data "  # the beginning of the digest of an array, a tensor or a Dataset
MOST = 1_000_000  # the most numbers of an array that its digest reads, evenly spaced
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class ModuleDigest(NamedTuple):
    """The name of a module, and the digest of its file."""

    module: str
    digest: str


class FirstLook(NamedTuple):
    """A module when this process first looked at it: its spec, and the digest of its file."""

    spec: ModuleSpec
    digest: str


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
        parts += _find_parts(target)
    by_name: dict[str, str] = {}
    for part in parts:
        module = _digest_module(part)
        if module is not None:
            by_name[module.module] = module.digest
    by_name |= _digest_module_data(parts, by_name)
    if digests:  # this process is a worker of the program that has computed them
        by_name |= digests
    else:
        for name, form in find_main_globals(targets).items():
            if form:
                by_name[MAIN + name] = _digest_form(form)
    errors = []
    for name in sorted(by_name):
        if _is_edited(name, by_name[name]):
            path = os.path.relpath(str(sys.modules[name].__file__))
            errors.append(
                f"{path} has changed since this process imported it; restart it (in a notebook: "
                "the kernel), or use importlib.reload"
            )
    refuse(errors)
    return {f"{CODE}{name}": by_name[name] for name in sorted(by_name)}


def _is_edited(name: str, digest: str) -> bool:
    """Returns whether a module's source has changed since this process first looked at it.

    A module that was imported again, or reloaded, has another spec: it is looked at for the first
    time. A definition of a notebook has no spec.
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


def _find_parts(target: str) -> Iterable[Any]:
    """Returns the functions and classes of a target: itself, and the bases of a class."""
    try:
        return _code_objects(find_member(target))
    except Exception:  # `validate` reports targets that cannot be imported
        return ()


def _code_objects(member: Any) -> Iterable[Any]:
    """Returns the function of a member, or its class and the bases of that."""
    while isinstance(member, functools.partial):
        member = member.func
    if inspect.isclass(member):
        return inspect.getmro(member)
    if not inspect.isroutine(member):
        return inspect.getmro(type(member))
    return (inspect.unwrap(member),)


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
        The form of each by its name; see `_describe_form`.
    """
    members = vars(sys.modules["__main__"])
    names = []
    for target in targets:
        if target.startswith(MAIN):
            names.append(target.removeprefix(MAIN).partition(".")[0])
    forms: dict[str, str] = {}
    while names:
        name = names.pop(0)
        if name in members and name not in forms and not name.startswith("__"):
            forms[name] = _describe_form(members[name], names)
    return forms


def _digest_form(form: str) -> str:
    """Returns the digest of a form; that of data is a digest already."""
    if form.startswith(DATA):
        return form
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
    searched: set[int] = set()
    while unsearched:
        part = unsearched.pop()
        if id(part) in searched:
            continue
        searched.add(id(part))
        members = vars(sys.modules[part.__module__])
        for code in _find_code([part, *vars(part).values()]):
            for name in _names_read(code):
                value = members.get(name)
                data = data_digest(value)
                if data is not None:
                    by_name[f"{part.__module__}.{name}"] = data
                is_code = inspect.isroutine(value) or inspect.isclass(value)
                if is_code and value.__module__ == part.__module__:
                    unsearched.append(value)
    return by_name


def _find_code(members: Iterable[Any]) -> list[CodeType]:
    """Returns the code objects of the functions among some values."""
    return [member.__code__ for member in members if hasattr(member, "__code__")]


def data_digest(value: Any) -> str | None:
    """Returns a digest of an array, a tensor, or a Dataset of PyTorch that holds such.

    It is None for anything else, and for the parameters of a network.
    """
    torch = sys.modules.get("torch")
    numpy = sys.modules.get("numpy")
    if torch is not None:
        data = torch.utils.data
        if isinstance(value, data.DataLoader):
            return data_digest(value.dataset)
        if isinstance(value, data.TensorDataset):
            return _join_digests([data_digest(tensor) for tensor in value.tensors])
        if isinstance(value, data.Subset):
            indices = numpy.asarray(value.indices)  # type: ignore[union-attr]
            return _join_digests([data_digest(indices), data_digest(value.dataset) or ""])
        if isinstance(value, torch.Tensor):
            if value.requires_grad or value.layout != torch.strided or value.is_quantized:
                return None
            value = value.detach().cpu()
            if value.dtype == torch.bfloat16:  # NumPy has no such type
                value = value.float()
            value = value.numpy()
    if numpy is None or not isinstance(value, numpy.ndarray) or value.dtype.hasobject:
        return None
    sample = value.reshape(-1)[:: max(1, value.size // MOST)]
    digest = hashlib.sha256(f"{value.dtype} {value.shape}".encode())
    digest.update(numpy.ascontiguousarray(sample).view(numpy.uint8).data)
    return DATA + digest.hexdigest()[:DIGITS]


def _join_digests(parts: Sequence[str | None]) -> str | None:
    """Returns the digest of data in several parts; None if one part is no data."""
    if None in parts:
        return None
    text = " ".join(filter(None, parts))
    return DATA + hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _describe_form(value: Any, names: list[str]) -> str:
    """Returns the form of a value: a text that each process makes of the same code or plain data.

    An object has the form of its class, except for a dataclass, whose values count too. Data has
    its digest; see `data_digest`. A value without a form has "".

    Args:
        names: a list, to which the globals that the code of the value reads are added.
    """
    if value is None or isinstance(value, str | bytes | int | float | complex):
        return repr(value)
    data = data_digest(value)
    if data is not None:
        return data
    if is_dataclass(value) and not isinstance(value, type):
        value = [type(value), vars(value)]
    if isinstance(value, dict):
        value = [*value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        forms = [_describe_form(inner, names) for inner in value]
        if isinstance(value, set | frozenset):  # the order differs between processes
            forms.sort()
        return f"[{', '.join(forms)}]"
    form = ""
    for part in _code_objects(value):
        if part.__module__ == "__main__":
            with suppress(OSError, TypeError, SyntaxError):  # its source cannot be read
                source = read_source(part)
                names += _names_read(compile(source, "", "exec"))
                form += digest_source(source.encode())
    if not form and hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    return form


def _names_read(code: CodeType) -> Iterator[str]:
    """Yields the names, except for local variables, that a code object and those within it read."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_NAME", "LOAD_GLOBAL"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_read(constant)


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
        # The source of a cell is in `linecache`, under a name that is not that of a file. A class
        # is looked for in the cells of its methods, and then in all others, the latest first.
        names = [code.co_filename for code in _find_code(vars(part).values())]
        for name in reversed(list(linecache.cache)):
            if not Path(name).exists():
                names.append(name)
        for name in names:
            text = "".join(linecache.getlines(name))
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef) and node.name == part.__name__:
                    return ast.get_source_segment(text, node) or ""
        raise


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
