"""Texts for the objects that a call of `search` is given, with all that they hold.

Such an object is a closure, a bound method, a `functools.partial`, or one with a method `__call__`.
No config can name it, so that its text stands for it in the study definition. The *parts* of a
value are the values that it holds, such as the items of a list or the arguments of a partial.
"""

import functools
import inspect
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from datetime import date, time, timedelta
from enum import Enum
from numbers import Number
from pathlib import Path, PurePath
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType, SimpleNamespace

from studyloom.user_code.importing import is_users_code, unwrap_callable
from studyloom.user_code.source_code import (
    digest_module,
    digest_source,
    find_members,
    find_module_file,
)
from studyloom.user_code.stable_texts import (
    IN_PROGRESS,
    StableText,
    digest_data,
    find_names_assigned,
    is_network,
    join_texts,
    make_text_of_code,
    read_attributes,
)

MOST_ITEMS = 100_000  # a larger container that a given object holds is sampled evenly
MOST_DEPTH = 40  # values that are held more deeply count by their names, to bound the recursion
PLAIN_TYPES = (str, bytes, bytearray, Number, range, slice, PurePath, date, time, timedelta)


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

    def make_texts(self, value: object) -> dict[str, StableText]:
        """Makes a text for a given object, by "", and one for each variable that it captures.

        Captured variables, of the function around it, are by their names: an error names the one
        that has changed.
        """
        texts = {"": self.make_text(value)}
        if isinstance(value, FunctionType):
            for name, captured_value in _read_captured_variables(value).items():
                texts[name] = self.make_text(captured_value, depth=1)
        return texts

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
        joined = join_texts(texts)
        # A value may be held many times, so that its whole text would be too long.
        return StableText(repr(digest_source(joined.text.encode())), joined.names_read)

    def _make_text_of_members(self, value: object) -> StableText:
        """Makes a text for the user's functions and classes whose code a value runs."""
        if not _is_of_user(value):
            return StableText(repr(""))
        code_text = make_text_of_code(value)
        texts = [repr(code_text.text)]
        for member in find_members(value):
            name = str(member.__module__)
            if name not in self._module_digests:
                module = digest_module(member)
                if module is not None:
                    self._module_digests[name] = module.digest
                else:
                    self._module_digests[name] = ""
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
    file = find_module_file(str(member.__module__))
    if file is None:
        return False
    return is_users_code(Path(file).resolve())


def _list_parts(value: object, *, is_given: bool) -> list[object]:
    """Lists what a value holds, in an order that is the same in each process.

    Args:
        is_given: whether a call gives the value itself, so that its attributes count for sure.
    """
    parts: list[object]
    if isinstance(value, type | ModuleType):
        return []
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, FunctionType):
        parts = [value.__defaults__, value.__kwdefaults__, vars(value)]
        if not is_given:  # those of a given function have texts of their own
            parts += _read_captured_variables(value).values()
        return parts
    if isinstance(value, Enum):
        return [value.value]
    if hasattr(value, "__wrapped__") and not _is_of_user(type(value)):  # by functools.cache
        return [value.__wrapped__]
    if isinstance(value, BuiltinMethodType):  # such as the method of a list
        return [value.__self__]
    parts = _list_items(value)
    is_expanded = is_given or is_dataclass(value) or _is_of_user(value) or is_network(value)
    if is_expanded or isinstance(value, SimpleNamespace) or _name_kind(value) == "Namespace":
        parts.append(read_attributes(value))
    return parts


def _read_captured_variables(function: FunctionType) -> dict[str, object]:
    """Returns the variables of the function around a function, which it uses, by their names.

    A variable that the function assigns itself, such as a counter of its calls, is left out.
    """
    assigned_names = find_names_assigned(function.__code__)
    variables: dict[str, object] = {}
    cells = function.__closure__ or ()
    for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
        if name not in assigned_names:
            with suppress(ValueError):  # the variable has no value yet
                variables[name] = cell.cell_contents
    return variables


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
