"""The user's source code: a digest for each module, as a part of a study definition.

The digest is that of the syntax tree without docstrings. Comments and formatting change no result,
so that a formatter or a better comment does not change a study definition.

A *target* is the dotted name of a function or class that a config names, such as `_target_`. Names
that begin with `__main__.` are those of the notebook or script that runs the study. A *member* is a
function or class of a module.
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
from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from datetime import date, time, timedelta
from enum import Enum
from importlib.machinery import ModuleSpec
from numbers import Number
from pathlib import Path, PurePath
from types import (
    BuiltinMethodType,
    CodeType,
    FunctionType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any, NamedTuple

from studyloom.errors import ConfigError, raise_if_any
from studyloom.user_code.importing import find_member, is_users_code, unwrap_callable
from studyloom.user_code.pickled import (
    MAIN,
    REGISTERED_PREFIX,
    received_digests,
    registered_object,
    texts_of_registered,
)

CODE = "code."  # the beginning of the key of a digest; the module follows
DIGITS = 16  # the length of a digest: long enough to distinguish sources, short enough to read
DATA = "data "  # the beginning of the digest of an array, a tensor or a Dataset
MOST_NUMBERS = 1_000_000  # a larger array is sampled evenly, so that its digest stays fast
MOST_ITEMS = 100_000  # a larger container that a given object holds is sampled evenly
MOST_DEPTH = 40  # values that are held more deeply count by their names, to bound the recursion
IN_PROGRESS = "..."  # the text of a value within itself
PLAIN_TYPES = (str, bytes, bytearray, Number, range, slice, PurePath, date, time, timedelta)
TRAINED_ATTRIBUTES = ("_parameters", "_buffers", "training")  # of a network of PyTorch
LAMBDA = "<lambda>"  # the name that Python gives to each lambda
NODES_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class ModuleDigest(NamedTuple):
    """The name of a module, and the digest of its file."""

    name: str
    digest: str


@dataclass(frozen=True)
class StableText:
    """A text for some code or plain data that is the same in each process.

    Attributes:
        text: "" for a value that has no such text.
        names_read: the globals that the code of the value reads.
    """

    text: str
    names_read: tuple[str, ...] = ()


# The modules as this process first saw them, by name: the spec that imported a module, and the
# digest of its file.
_first_specs: dict[str, ModuleSpec] = {}
_first_digests: dict[str, str] = {}


def compute_code_digests(sections: object) -> dict[str, str]:
    """Computes the digests of the user's code that a config names.

    Installed packages, Python's modules and studyloom are left out, so that an upgrade does not
    change a study definition. Modules that the named ones import are left out too.

    Args:
        sections: the sections of a config, as plain values.

    Returns:
        Digests by keys of three kinds:

        * `code.studies.mine`: the file of a module that the config names.
        * `code.studies.mine.images`: an array, tensor or Dataset at the top level of such a module,
          which the named code uses.
        * `code.__main__.Net`: a definition of the notebook or script that runs the study, or a
          global that such a definition uses.

    Raises:
        ConfigError: files have changed since this process imported them, as in a notebook that runs
            a second study: it would run other code than the digests say.
    """
    targets = dict.fromkeys(find_targets(sections))  # an ordered set
    members: list[Any] = []  # functions and classes
    for target in targets:
        members += _import_members(target)
    digests: dict[str, str] = {}
    for member in members:
        module = _digest_module(member)
        if module is not None:
            digests[module.name] = module.digest
    digests |= _digest_module_data(members, modules=digests)
    digests |= _digest_main(targets)
    _check_not_edited(digests)
    return {f"{CODE}{name}": digests[name] for name in sorted(digests)}


def _digest_main(targets: Iterable[str]) -> dict[str, str]:
    """Returns the digests of what a notebook or script defines, by names such as `__main__.Net`.

    A worker has received the digests from that program, since it cannot read the source of a
    notebook.

    Args:
        targets: the dotted names in a config. Definitions that none of them uses are left out.
    """
    if received_digests:
        return received_digests
    digests = {}
    for name, text in find_main_globals(targets).items():
        if text:
            digests[MAIN + name] = _digest_stable_text(text)
    for name, stable_text in _make_texts_of_registered(targets).items():
        digests[f"{MAIN}search({name})"] = _digest_stable_text(stable_text.text)
    return digests


def _make_texts_of_registered(targets: Iterable[str]) -> dict[str, StableText]:
    """Makes a text for each callable object that the program has registered, by its name.

    The text is made once for a registered object, since its calls may change what it holds.

    Raises:
        ConfigError: this process does not have an object that a config names.
    """
    texts = {}
    for target in targets:
        if target.startswith(REGISTERED_PREFIX):
            name = target.removeprefix(REGISTERED_PREFIX)
            try:
                value = find_member(target)
            except AttributeError as error:  # another program has given it
                raise ConfigError(str(error)) from error
            if value is registered_object:  # which stands for an object that is no target
                continue
            if name not in texts_of_registered:
                texts_of_registered[name] = GivenObjectReader().make_text(value)
            texts[name] = texts_of_registered[name]
    return texts


class GivenObjectReader:
    """Makes a text for a callable object that a call gives, with all that the object holds.

    A `functools.partial` holds its function and arguments, a bound method its object, a function
    its defaults and the variables of the function around it, and an object its attributes. Objects
    of installed packages and of Python count by the name of their class only, except for plain
    values, containers, arrays and dataclasses: they may be large, or have no stable state.
    """

    def __init__(self) -> None:
        # The values so far, by their id, with their texts. The values are kept, since Python gives
        # the id of a freed value to another one. A text in progress is that of a value that holds
        # itself.
        self._texts: dict[int, tuple[object, StableText]] = {}
        self._module_digests: dict[str, str] = {}

    def make_text(self, value: object, depth: int = 0) -> StableText:
        """Makes a text for a value; `depth` is the number of values around it."""
        plain_text = _make_plain_text(value)
        if plain_text is not None:
            return StableText(plain_text)
        if id(value) not in self._texts:
            self._texts[id(value)] = (value, StableText(repr(IN_PROGRESS)))
            self._texts[id(value)] = (value, self._make_text_of_parts(value, depth))
        return self._texts[id(value)][1]

    def _make_text_of_parts(self, value: object, depth: int) -> StableText:
        """Makes a text for a value that is not plain: its name, its code, and what it holds."""
        with suppress(Exception):  # such as a tensor without memory, on the device "meta"
            data_digest = digest_data(value)
            if data_digest is not None:
                return StableText(repr(data_digest))
        texts = [StableText(repr(_name_kind(value))), self._make_text_of_members(value)]
        if depth < MOST_DEPTH:
            with suppress(Exception):  # a container of a package may not let its items be read
                parts = _list_parts(value, is_given=depth == 0)
                part_texts = [self.make_text(part, depth + 1) for part in parts]
                if isinstance(value, set | frozenset):  # their order differs between processes
                    part_texts.sort(key=lambda text: text.text)
                texts += part_texts
        joined = _join_texts(texts)
        # A value may be held many times, so that its whole text would be too long.
        return StableText(repr(digest_source(joined.text.encode())), joined.names_read)

    def _make_text_of_members(self, value: object) -> StableText:
        """Makes a text for the user's functions and classes whose code a value runs."""
        if not _is_of_user(value):
            return StableText(repr(""))
        code_text = _make_text_of_code(value)
        texts = [repr(code_text.text)]
        for member in _find_members(value):
            name = str(member.__module__)
            if name not in self._module_digests:
                module = _digest_module(member)
                self._module_digests[name] = module.digest if module is not None else ""
            texts.append(repr(self._module_digests[name]))
        return StableText(f"[{', '.join(texts)}]", code_text.names_read)


def _make_plain_text(value: object) -> str | None:
    """Makes a text for a plain value by its `repr`; None for any other value."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        return repr(value.item())
    if value is None or isinstance(value, PLAIN_TYPES):
        return repr(value)
    if numpy is not None and isinstance(value, numpy.dtype):
        return repr(str(value))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.dtype | torch.device):
        return repr(str(value))
    return None


def _name_kind(value: object) -> str:
    """Returns the name of a function, class or module; that of its class for another value."""
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    is_named = inspect.isroutine(value) or isinstance(value, type)
    if is_named and hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    class_name = type(value).__qualname__
    if class_name == "ufunc":  # a function of NumPy, such as numpy.sin
        return f"{class_name} {value}"
    return class_name


def _is_of_user(value: object) -> bool:
    """Returns whether the user has defined a function or class, or the class of an object."""
    member = unwrap_callable(value)
    if not hasattr(member, "__module__"):
        return False
    if member.__module__ == "__main__":
        return True
    file = _find_module_file(str(member.__module__))
    if file is None:
        return False
    return is_users_code(Path(file).resolve())


def _list_parts(value: object, *, is_given: bool) -> list[object]:
    """Lists what a value holds, in an order that is the same in each process.

    Args:
        is_given: whether a call gives the value itself, so that its attributes count for sure.
    """
    if isinstance(value, type | ModuleType):
        return []
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, FunctionType):
        return _list_parts_of_function(value)
    if isinstance(value, Enum):
        return [value.value]
    if hasattr(value, "__wrapped__") and not _is_of_user(type(value)):  # by functools.cache
        return [value.__wrapped__]
    if isinstance(value, BuiltinMethodType):  # such as the method of a list
        return [value.__self__]
    parts = _list_items(value)
    is_expanded = is_given or is_dataclass(value) or _is_of_user(value) or _is_network(value)
    if is_expanded or isinstance(value, SimpleNamespace) or _name_kind(value) == "Namespace":
        parts.append(_read_attributes(value))
    return parts


def _list_parts_of_function(function: FunctionType) -> list[object]:
    """Lists the defaults and attributes of a function, and the variables of the one around it."""
    parts: list[object] = [function.__defaults__, function.__kwdefaults__, vars(function)]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # the variable has no value yet
            parts.append(cell.cell_contents)
    return parts


def _list_items(value: object) -> list[object]:
    """Lists the number of items of a container, and the items; of many, every n-th.

    The keys of a dict are followed by its values. Of a large set only the number counts, since its
    order differs between processes. The list is empty for a value that is no container.
    """
    if isinstance(value, Mapping):
        items = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | deque | set | frozenset):
        items = list(value)
    else:
        return []
    is_large = len(items) > MOST_ITEMS
    if is_large and isinstance(value, set | frozenset):
        return [len(items)]
    stride = 1 + len(items) // MOST_ITEMS  # 1 keeps all items
    return [len(items), *items[::stride]]


def _is_network(value: object) -> bool:
    """Returns whether a value is a network of PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _read_attributes(value: object) -> dict[str, object]:
    """Returns the attributes of an object, also those in `__slots__`.

    Those of a network that training changes are left out.
    """
    attributes: dict[str, object] = {}
    if hasattr(value, "__dict__"):
        attributes |= vars(value)
    for class_ in type(value).__mro__:
        for name, member in vars(class_).items():
            if inspect.ismemberdescriptor(member):  # of `__slots__`
                with suppress(AttributeError):  # it has no value yet
                    attributes[name] = member.__get__(value)
    if _is_network(value):
        for name in TRAINED_ATTRIBUTES:
            attributes.pop(name, None)
    return attributes


def _join_texts(texts: Iterable[StableText]) -> StableText:
    """Joins the texts of a value's parts to one."""
    parts = []
    names_read: list[str] = []
    for text in texts:
        parts.append(text.text)
        names_read += text.names_read
    return StableText(f"[{', '.join(parts)}]", tuple(dict.fromkeys(names_read)))


def _check_not_edited(digests: Mapping[str, str]) -> None:
    """Raises ConfigError if the file of a module has changed since this process imported it.

    Args:
        digests: the digests of the present files, by the name of the module.
    """
    errors = []
    for name in sorted(digests):
        if _is_edited(name, digests[name]):
            path = os.path.relpath(str(sys.modules[name].__file__))
            errors.append(
                f"{path} has changed since this process imported it; restart it (in a notebook: "
                "the kernel), or use importlib.reload"
            )
    raise_if_any(errors)


def _is_edited(name: str, digest: str) -> bool:
    """Returns whether a module's source has changed since this process first looked at it.

    The first look at a module records its digest, and so does the first one after it was reloaded
    or imported again: then this process runs the new source.

    Args:
        name: the name of a module; for another name, such as `__main__.Net`, False is returned.
        digest: the digest of the module's present file.
    """
    module = sys.modules.get(name)
    if module is None or not hasattr(module, "__spec__") or module.__spec__ is None:
        return False
    spec = module.__spec__  # a new object after each import, and after a reload
    is_first_look = _first_specs.get(name) is not spec
    if is_first_look:
        _first_specs[name] = spec
        _first_digests[name] = digest
    return _first_digests[name] != digest


def select_code_digests(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Selects the digests of code in a definition."""
    return {key: value for key, value in definition.items() if key.startswith(CODE)}


def describe_source(key: str) -> str:
    """Describes the source whose digest has changed.

    Args:
        key: the key of the digest in a study definition.

    Returns:
        For a module, as for `code.studies.mine`, its file: "studies/mine.py". For a definition of
        a notebook or script, as for `code.__main__.Net`: "the code of Net". For others, their name.
    """
    name = key.removeprefix(CODE)
    file = _find_module_file(name)
    if file is not None:
        path = Path(file)
        if path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        return str(path)
    if name.startswith(MAIN):
        return f"the code of {name.removeprefix(MAIN)}"
    return name


def _find_module_file(name: str) -> str | None:
    """Returns the file of an imported module; None without one."""
    module = sys.modules.get(name)
    if module is None or not hasattr(module, "__file__"):
        return None
    return module.__file__


def find_targets(value: Any) -> Iterator[str]:
    """Yields the dotted names of functions and classes in a section of a config, at any depth.

    The names are the values of `_target_`, and of `path` in sections of Hydra's `get_method` and
    `get_class`.
    """
    if isinstance(value, list | tuple):
        for item in value:
            yield from find_targets(item)
    elif isinstance(value, Mapping):
        target = value.get("_target_")
        if isinstance(target, str):
            yield target
            if target.startswith("hydra.utils.get_") and isinstance(value.get("path"), str):
                yield value["path"]
        for item in list(value.values()):
            yield from find_targets(item)


def _import_members(target: str) -> Iterable[Any]:
    """Imports a target of a config, and returns the functions and classes whose code it runs."""
    try:
        return _find_members(find_member(target))
    except Exception:  # it cannot be imported, which the validation of the config reports
        return ()


def _find_members(value: object) -> Iterable[Any]:
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


def _digest_module(member: Any) -> ModuleDigest | None:
    """Returns the name of the module of a function or class, and the digest of the module's file.

    Returns None for `__main__`, a module of an installed package, and a module without a source.
    """
    name = str(member.__module__)
    if name == "__main__":
        return None
    file = _find_module_file(name)
    if file is None:
        return None
    try:
        path = Path(file).resolve()
        if is_users_code(path):
            return ModuleDigest(name, digest_source(path.read_bytes()))
    except (OSError, TypeError):  # a module may set its `__file__` to anything
        pass
    return None


def find_main_globals(targets: Iterable[str]) -> dict[str, str]:
    """Returns the globals of `__main__` among targets, and all globals that their code uses.

    cloudpickle sends these to workers together with the targets.

    Returns:
        A text of each global, by its name, that is the same in each process: its source, or a
        digest of its data; "" if it has none.
    """
    main_globals = vars(sys.modules["__main__"])
    names_to_visit = []
    for target in targets:
        if target.startswith(MAIN):
            global_name = target.removeprefix(MAIN).partition(".")[0]  # Net of __main__.Net.small
            names_to_visit.append(global_name)
    for stable_text in _make_texts_of_registered(targets).values():
        names_to_visit += stable_text.names_read
    texts: dict[str, str] = {}
    while names_to_visit:
        name = names_to_visit.pop(0)
        if name in main_globals and name not in texts and not name.startswith("__"):
            stable_text = _make_stable_text(main_globals[name])
            texts[name] = stable_text.text
            names_to_visit += stable_text.names_read
    return texts


def _digest_stable_text(text: str) -> str:
    """Returns the digest of a text of `find_main_globals`; that of data is a digest already."""
    if text.startswith(DATA):
        return text
    # The text is assigned, since a string on its own would be left out as a docstring.
    return digest_source(f"_ = {text}".encode())


def _digest_module_data(members: Iterable[Any], modules: Container[str]) -> dict[str, str]:
    """Returns the digests of the arrays, tensors and Datasets that the user's code uses.

    A module may draw such data when it is imported, so that they can differ while the digest of its
    file stays equal. Only data at the top level of a module are found. Functions and classes of the
    same module that the code uses are searched too.

    Args:
        members: functions and classes.
        modules: the names of the user's modules; members of others are left out.

    Returns:
        Digests by names such as `studies.mine.images`.
    """
    digests: dict[str, str] = {}
    members_to_search = []
    for member in members:
        if hasattr(member, "__module__") and member.__module__ in modules:
            members_to_search.append(member)
    searched_ids: set[int] = set()
    while members_to_search:
        member = members_to_search.pop()
        if id(member) in searched_ids:
            continue
        searched_ids.add(id(member))
        module_globals = vars(sys.modules[member.__module__])
        for name in _find_names_read_by(member):
            value = module_globals.get(name)
            data_digest = digest_data(value)
            if data_digest is not None:
                digests[f"{member.__module__}.{name}"] = data_digest
            is_member = inspect.isroutine(value) or inspect.isclass(value)
            if is_member and value.__module__ == member.__module__:
                members_to_search.append(value)
    return digests


def _find_names_read_by(member: object) -> Iterator[str]:
    """Yields the global names that a function reads, or the methods of a class."""
    methods = vars(member).values()
    for code in _select_code([member, *methods]):
        yield from _find_names_read(code)


def _select_code(values: Iterable[object]) -> list[CodeType]:
    """Returns the compiled code of the functions among some values."""
    return [value.__code__ for value in values if hasattr(value, "__code__")]


def digest_data(value: Any) -> str | None:
    """Returns a digest of an array, a tensor, or a Dataset of PyTorch that holds such.

    It is None for anything else, and for the parameters of a network. It imports neither NumPy nor
    PyTorch: before the user's code has imported them, there are no such values.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return _digest_array(value)
    if isinstance(value, torch.utils.data.DataLoader):
        return digest_data(value.dataset)
    if isinstance(value, torch.utils.data.TensorDataset):
        return _join_digests([digest_data(tensor) for tensor in value.tensors])
    if isinstance(value, torch.utils.data.Subset):
        numpy = sys.modules["numpy"]  # Datasets with indices are not used without it
        digest_of_indices = digest_data(numpy.asarray(value.indices))
        # If the Dataset has no digest, at least the choice of its examples counts.
        digest_of_dataset = digest_data(value.dataset) or ""
        return _join_digests([digest_of_indices, digest_of_dataset])
    if isinstance(value, torch.Tensor):
        return _digest_tensor(value)
    return _digest_array(value)


def _digest_tensor(tensor: Any) -> str | None:
    """Returns the digest of a tensor; None for a parameter and a sparse or quantized tensor.

    A parameter requires a gradient: it is trained, so that its values define nothing.
    """
    torch = sys.modules["torch"]
    if tensor.requires_grad or tensor.layout != torch.strided or tensor.is_quantized:
        return None
    numbers = tensor.detach().cpu()
    if numbers.dtype == torch.bfloat16:  # NumPy has no such type
        numbers = numbers.float()
    return _digest_array(numbers.numpy())


def _digest_array(value: Any) -> str | None:
    """Returns the digest of an array of numbers; None for any other value.

    In an array of more than MOST_NUMBERS numbers, only every n-th is digested, so that it is fast.
    """
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray) or value.dtype.hasobject:
        return None
    stride = max(1, value.size // MOST_NUMBERS)  # 1 digests all numbers
    sample = value.reshape(-1)[::stride]
    digest = hashlib.sha256(f"{value.dtype} {value.shape}".encode())
    digest.update(numpy.ascontiguousarray(sample).view(numpy.uint8).data)
    return DATA + digest.hexdigest()[:DIGITS]


def _join_digests(digests: Sequence[str | None]) -> str | None:
    """Returns one digest for the several digests of a Dataset; None if one of them is None.

    An empty digest is left out.
    """
    if None in digests:
        return None
    text = " ".join(filter(None, digests))
    return DATA + hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _make_stable_text(value: object, holder_ids: frozenset[int] = frozenset()) -> StableText:
    """Makes a text for a value that is the same in each process.

    It is the `repr` of a plain value; the digest of data (an array, a tensor or a Dataset) or of
    code; or the list of the texts of the items that the value holds, in their order. The order of a
    dict counts, since the user's code may depend on it.

    Args:
        value: a value of any type.
        holder_ids: the ids of the values that hold this one, which may hold itself.
    """
    if value is None or isinstance(value, str | bytes | int | float | complex):
        return StableText(repr(value))
    data_digest = digest_data(value)
    if data_digest is not None:
        return StableText(data_digest)
    if id(value) in holder_ids:
        return StableText(repr(IN_PROGRESS))
    items: Iterable[object]
    if is_dataclass(value) and not isinstance(value, type):
        items = [type(value), _read_attributes(value)]
    elif isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple | set | frozenset):
        items = value
    else:
        return _make_text_of_code(value)
    texts = [_make_stable_text(item, holder_ids | {id(value)}) for item in items]
    if isinstance(value, set | frozenset):  # its order differs between processes
        texts.sort(key=lambda text: text.text)
    return _join_texts(texts)


def _make_text_of_code(value: object) -> StableText:
    """Makes a text for a function, a class or an object: the digests of the sources that it runs.

    Only sources in `__main__` count, since each module has its own digest. Without such a source,
    or if it cannot be read, the text of a function or class is its name, and that of an object is
    "".
    """
    text = ""
    names_read: list[str] = []
    for member in _find_members(value):
        if member.__module__ == "__main__":  # a module has its own digest
            with suppress(OSError, TypeError, SyntaxError):  # its source cannot be read
                source = read_source(member)
                names_read += _find_names_read(compile(source, "", "exec"))
                text += digest_source(source.encode())
    if not text and hasattr(value, "__qualname__"):  # a function or class, and not an object
        text = str(value.__qualname__)
    return StableText(text, tuple(names_read))


def _find_names_read(code: CodeType) -> Iterator[str]:
    """Yields the names, except for local variables, that a code object and those within it read."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_NAME", "LOAD_GLOBAL"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # an inner function, a class body or a comprehension
            yield from _find_names_read(constant)


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
    cell_names = [code.co_filename for code in _select_code(vars(class_).values())]
    for name in reversed(list(linecache.cache)):
        if not Path(name).exists():
            cell_names.append(name)
    for cell_name in cell_names:
        cell_source = "".join(linecache.getlines(cell_name))
        for node in ast.walk(ast.parse(cell_source)):
            if isinstance(node, ast.ClassDef) and node.name == class_.__name__:
                return ast.get_source_segment(cell_source, node) or ""
    return None


def read_main_sources(sections: object) -> dict[str, str]:
    """Returns the sources of the targets that a notebook or script defines, by the target."""
    sources = {}
    for target in find_targets(sections):
        if target.startswith(MAIN):
            with suppress(Exception):  # the validation of the config reports a missing target
                sources[target] = read_source(find_member(target))
    return sources


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
