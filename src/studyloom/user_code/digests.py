"""The user's source code: a digest for each module, as a part of a study definition.

The digest is of the syntax tree without docstrings. Comments and formatting change no result, so
that a formatter or a better comment does not change a study definition.
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
from pathlib import Path
from types import CodeType
from typing import Any

from studyloom.errors import ConfigError, refuse
from studyloom.user_code.importing import find_member, is_users_code
from studyloom.user_code.pickled import MAIN, digests

CODE = "code."  # what the keys of digests begin with; the module follows
DIGITS = 16  # of a digest: enough to tell sources apart, and few enough to read
DATA = "data "  # what the digest of an array, a tensor or a Dataset begins with
MOST = 1_000_000  # numbers of an array that its digest reads, evenly spaced
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

# By module: its spec and the digest of its file when this process first looked.
_first_digests: dict[str, tuple[Any, str]] = {}


def code_digests(sections: Any) -> dict[str, str]:
    """Returns the digests of the user's modules that a config names, by `code.MODULE`.

    Installed packages, Python's modules and studyloom are left out, so that an upgrade does not
    change a definition. So are modules that the named ones import. What a notebook or script
    defines is `code.__main__.NAME`, together with the globals that it uses; see `main_globals`.
    Arrays, tensors and Datasets that the named code uses at the top level of its module are
    `code.MODULE.NAME`.

    Args:
        sections: of a config, as plain values.

    Raises:
        ConfigError: files have changed since this process imported them, so that it would call
            other code than it says; as in a notebook that runs a second study.
    """
    named = dict.fromkeys(targets(sections))
    parts = [part for target in named for part in _parts(target)]
    found = dict(filter(None, map(_digest, parts)))
    found |= _module_data(parts, found)
    own = {MAIN + name: _digest_of_form(form) for name, form in main_globals(named).items() if form}
    found |= digests or own  # those of the program whose worker this is
    refuse(
        [
            f"{os.path.relpath(str(sys.modules[name].__file__))} has changed since this process "
            "imported it; restart it (in a notebook: the kernel), or use importlib.reload"
            for name in sorted(found)
            if _is_edited(name, found[name])
        ]
    )
    return {f"{CODE}{name}": found[name] for name in sorted(found)}


def _is_edited(name: str, digest: str) -> bool:
    """Whether a module's source has changed since this process first looked.

    A module that was imported again, or reloaded, has another spec.
    """
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if spec is None:  # typed into a notebook
        return False
    known, first = _first_digests.setdefault(name, (spec, digest))
    if known is spec:
        return first != digest
    _first_digests[name] = spec, digest
    return False


def code_of(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Selects the digests of code in a definition."""
    return {key: value for key, value in definition.items() if key.startswith(CODE)}


def name_of_source(key: str) -> str:
    """Returns what the user has edited if a digest changed, such as studies/mine.py.

    Args:
        key: that of the digest: code.studies.mine, or code.__main__.Net of a notebook or script,
            which is "the code of Net".
    """
    name = key.removeprefix(CODE)
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return f"the code of {name.removeprefix(MAIN)}" if name.startswith(MAIN) else name
    path, here = Path(file), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def targets(value: Any) -> Iterator[str]:
    """Yields every `_target_` of nested plain values, and what Hydra's `get_method` gets."""
    if isinstance(value, Mapping):
        target = value.get("_target_")
        if isinstance(target, str):
            yield target
            if target.startswith("hydra.utils.get_") and isinstance(value.get("path"), str):
                yield value["path"]
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from targets(inner)


def _parts(target: str) -> Iterable[Any]:
    """Returns the functions and classes of a target: itself, and the bases of a class."""
    try:
        return _parts_of(find_member(target))
    except Exception:  # `validate` reports what cannot be imported
        return ()


def _parts_of(member: Any) -> Iterable[Any]:
    while isinstance(member, functools.partial):
        member = member.func
    if inspect.isclass(member):
        return inspect.getmro(member)
    if not inspect.isroutine(member):
        return inspect.getmro(type(member))
    return (inspect.unwrap(member),)


def _digest(part: Any) -> tuple[str, str] | None:
    """Returns the name of the module of a function or class, and the digest of its source.

    None for packages, for code without a source, and for what a notebook or script defines.
    """
    name = str(part.__module__)
    if name == "__main__":
        return None
    file = getattr(sys.modules.get(name), "__file__", None)
    try:
        path = Path(file or "").resolve()
        if file is not None and is_users_code(path):
            return name, digest_of_source(path.read_bytes())
    except (OSError, TypeError):
        pass
    return None


def main_globals(named: Iterable[str]) -> dict[str, str]:
    """Returns the globals of `__main__` among targets, and all that their code uses.

    These are what cloudpickle gives to workers with them.

    Returns:
        The form of each by its name; see `_form_of`.
    """
    main, found = vars(sys.modules["__main__"]), dict[str, str]()
    names = [each.removeprefix(MAIN).partition(".")[0] for each in named if each.startswith(MAIN)]
    while names:
        name = names.pop(0)
        if name in main and name not in found and not name.startswith("__"):
            found[name] = _form_of(main[name], names)
    return found


def _digest_of_form(form: str) -> str:
    return form if form.startswith(DATA) else digest_of_source(f"_ = {form}".encode())


def _module_data(parts: Iterable[Any], modules: Container[str]) -> dict[str, str]:
    """Returns the digests of the data that functions and classes of some modules use.

    Such data may be drawn when the module is imported.
    """
    digests: dict[str, str] = {}
    left = [part for part in parts if getattr(part, "__module__", None) in modules]
    seen: set[int] = set()
    while left:
        part = left.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        members = vars(sys.modules[part.__module__])
        codes = [getattr(each, "__code__", None) for each in (part, *vars(part).values())]
        names = [name for code in codes if code is not None for name in _names_read(code)]
        for name in names:
            value = members.get(name)
            data = data_digest(value)
            if data is not None:
                digests[f"{part.__module__}.{name}"] = data
            is_code = inspect.isroutine(value) or inspect.isclass(value)
            if is_code and value.__module__ == part.__module__:
                left.append(value)
    return digests


def data_digest(value: Any) -> str | None:
    """Returns a digest of an array, a tensor, or a Dataset of PyTorch that holds such.

    None for anything else, also for the parameters of a network.
    """
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None:
        data = torch.utils.data
        if isinstance(value, data.DataLoader):
            return data_digest(value.dataset)
        if isinstance(value, data.TensorDataset):
            return _together([data_digest(tensor) for tensor in value.tensors])
        if isinstance(value, data.Subset):
            indices = numpy.asarray(value.indices)  # type: ignore[union-attr]
            return _together([data_digest(indices), data_digest(value.dataset) or ""])
        if isinstance(value, torch.Tensor):
            if value.requires_grad or value.layout != torch.strided or value.is_quantized:
                return None
            value = value.detach().cpu()
            value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if numpy is None or not isinstance(value, numpy.ndarray) or value.dtype.hasobject:
        return None
    sample = value.reshape(-1)[:: max(1, value.size // MOST)]
    digest = hashlib.sha256(f"{value.dtype} {value.shape}".encode())
    digest.update(numpy.ascontiguousarray(sample).view(numpy.uint8).data)
    return DATA + digest.hexdigest()[:DIGITS]


def _together(digests: Sequence[str | None]) -> str | None:
    if None in digests:
        return None
    text = " ".join(filter(None, digests))
    return DATA + hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _form_of(value: Any, names: list[str]) -> str:
    """Returns a text that each process makes of the same code or plain data.

    "" without one. An object counts by its class, but for a dataclass; see also `data_digest`.

    Args:
        names: to which those of the globals are added that its code reads.
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
        forms = [_form_of(inner, names) for inner in value]
        return f"[{', '.join(sorted(forms) if isinstance(value, set | frozenset) else forms)}]"
    form = ""
    for part in _parts_of(value):
        if part.__module__ == "__main__":
            with suppress(OSError, TypeError, SyntaxError):  # its source cannot be read
                source = source_of(part)
                names += _names_read(compile(source, "", "exec"))
                form += digest_of_source(source.encode())
    return form or getattr(value, "__qualname__", "")


def _names_read(code: CodeType) -> Iterator[str]:
    """Yields the names that a code object and those within it read, but for local variables."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_NAME", "LOAD_GLOBAL"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_read(constant)


def source_of(part: Any) -> str:
    """Returns the source of a function or class, also of a class that a notebook defines.

    Raises:
        OSError: it cannot be read.
        TypeError: it is no Python code.
    """
    try:
        return textwrap.dedent(inspect.getsource(part))
    except (OSError, TypeError):
        # Before Python 3.13 inspect looks for a class in its module's file, which `__main__` lacks.
        codes = [getattr(each, "__code__", None) for each in vars(part).values()]
        cells = [name for name in reversed([*linecache.cache]) if not Path(name).exists()]
        for name in [code.co_filename for code in codes if code is not None] + cells:
            text = "".join(linecache.getlines(name))
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef) and node.name == part.__name__:
                    return ast.get_source_segment(text, node) or ""
        raise


def sources_of_main(sections: Any) -> dict[str, str]:
    """Returns the sources of what a notebook or script defines for a config, by its name there."""
    sources = {}
    for target in targets(sections):
        if target.startswith(MAIN):
            with suppress(Exception):  # `validate` reports what is not there
                sources[target] = source_of(find_member(target))
    return sources


def check_readable(part: Any) -> None:
    """Raises ConfigError if an edit of a function or class in a notebook would go unnoticed."""
    main = sys.modules["__main__"]
    if part.__module__ == "__main__" and not hasattr(main, "__file__"):
        try:
            source_of(part)
        except (OSError, TypeError, SyntaxError):
            raise ConfigError(
                f"{part.__qualname__}: its source cannot be read, so that an edit of it would "
                "go unnoticed; define it in a cell of a notebook, a script or a module"
            ) from None


def place_of(error: BaseException) -> str:
    """Returns the last file and line of the user's code in an exception's traceback, or ""."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename[:1] == "/" and is_users_code(Path(f.filename))]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def digest_of_source(source: bytes) -> str:
    """Returns the digest of a Python source without comments, docstrings and formatting.

    Of anything else, such as a compiled module, it is the digest of the bytes.
    """
    try:
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
                node.body[:1] = []
        source = ast.unparse(tree).encode()
    except (SyntaxError, ValueError, RecursionError):
        pass
    return hashlib.sha256(source).hexdigest()[:DIGITS]
