"""Objects that only the calling program has, pickled for the workers of its study, by name.

A worker is another interpreter. It cannot import a class of a notebook, and has no Dataset that the
notebook holds. The program pickles them into a file without a name, which its own children inherit.
No other process can open the file, and it disappears with the last of its processes.

A child learns from an environment variable under which number it has inherited the file, its
*descriptor*. A program between the two processes may have closed the file, and opened another one
under the number. So the file begins with a secret word, which the variable names too, and a child
reads only a file with that word.
"""

import contextlib
import copy
import inspect
import io
import math
import os
import pickle
import secrets
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from studyloom.environment import PICKLED
from studyloom.errors import ConfigError
from studyloom.files import naming_file
from studyloom.text import error_text
from studyloom.user_code.importing import importing_module

MAIN = "__main__."  # the prefix of the names of the calling program's definitions
MOST_BYTES_IF_NOT_NEEDED = 2**28  # of arrays that are passed where they are hardly ever needed
REGISTERED_PREFIX = (
    f"{__name__}."  # the prefix of the name by which a config refers to registered objects
)
NAMES_OF_THIS_PROGRAM = (
    MAIN,
    REGISTERED_PREFIX,
)  # the prefixes of names that no other program knows


@dataclass(frozen=True)
class InheritedFile:
    """The file of pickled objects that children inherit.

    Attributes:
        descriptor: its number in this process and in its children.
        word: the secret word at its beginning.
    """

    descriptor: int
    word: str


@dataclass
class Inheritance:
    """The objects that a process which is started now gets from this one.

    Attributes:
        file: the file with the objects; None if it gets none.
        has_all_objects: False if an object that the process may need could not be passed.
    """

    file: InheritedFile | None = None
    has_all_objects: bool = True


_objects: dict[str, Any] = {}  # the registered objects of the program, such as Datasets, by name
_inheritance = Inheritance()

# In a worker: the digests of the program's definitions, by name. Empty in the program itself.
received_digests: dict[str, str] = {}

# The texts that `digests` has made for the registered callables, by name, before they were called.
texts_of_registered: dict[str, Any] = {}


def register_object(name: str, value: Any) -> dict[str, str]:
    """Registers an object of this program; returns the section that stands for it in a config."""
    _objects[name] = value
    return {"_target_": f"{REGISTERED_PREFIX}registered_object", "name": name}


def forget_objects() -> None:
    """Forgets the objects of an earlier search, which the workers of the next one do not need."""
    _objects.clear()
    texts_of_registered.clear()


def register_callable(name: str, value: Any) -> str:
    """Registers an object that is called, such as a closure or a `functools.partial`.

    A copy of it is registered, as each worker has one. So calls that change its attributes, such as
    a count of them, leave the given object as it was, and the same call resumes the study.

    Returns:
        The dotted name by which a config names the object, as it would name a function.
    """
    _objects[name] = _copy_if_possible(value)
    texts_of_registered.pop(name, None)
    return f"{REGISTERED_PREFIX}{name}"


def _copy_if_possible(value: Any) -> Any:
    """Returns a deep copy of an object, or the object if it cannot be copied or is too large.

    Functions, and thus closures, are never copied: they share the variables of their program.
    """
    if inspect.isfunction(value):
        return value
    try:
        _pickle(value, MOST_BYTES_IF_NOT_NEEDED)  # an error if its arrays are too large
        return copy.deepcopy(value)
    except Exception:  # an object's own __deepcopy__ or __reduce__ may raise anything
        return value


def __getattr__(name: str) -> Any:
    """Returns a registered callable as a member of this module, which its dotted name says."""
    if name in _objects:
        return _objects[name]
    raise AttributeError(
        f"{name} was given to studyloom.search as an object, which this process does not have; "
        "repeat the call",
        name=name,
        obj=sys.modules[__name__],
    )


def registered_object(name: str) -> Any:
    """Returns an object that the program has registered.

    Raises:
        ConfigError: this process has no object of the name.
    """
    if name not in _objects:
        raise ConfigError(
            f"{name}: was given to studyloom.search as an object, which this process does not "
            "have; repeat the call, or name its class as _target_ in a config"
        )
    return _objects[name]


@contextlib.contextmanager
def passing_objects(
    names: list[str],
    source_digests: Mapping[str, str],
    used_globals: Iterable[str],
    *,
    needed: bool = True,
) -> Iterator[None]:
    """Passes this program's definitions and registered objects to processes started in the body.

    Args:
        names: the names in a config that only this program knows, such as `__main__.Net`; if there
            are none, nothing is passed.
        source_digests: the digests of the sources of the program's definitions.
        used_globals: the names of the globals of `__main__` that these definitions are or use.
        needed: True if the body starts worker processes, which need every object. False if it
            starts one only in case this process loses its GPU. Then an object that cannot be
            pickled, or arrays that are too large, are no error: nothing is passed, and
            `can_pass_objects` returns False.

    Raises:
        ConfigError: an object that is needed cannot be pickled.
    """
    if not names:
        yield
        return
    passed = PassedObjects(_select_definitions(names), _objects, dict(source_digests))
    if needed:
        most_bytes = math.inf
    else:
        most_bytes = MOST_BYTES_IF_NOT_NEEDED
    # `child_arguments`, with which each process is started, reads `_inheritance`.
    with contextlib.ExitStack() as stack:
        try:
            content = _pickle(tuple(passed), most_bytes)
            _inheritance.file = stack.enter_context(_inheritable_file(content))
        except Exception:  # an object's own __reduce__ may raise anything
            if needed:
                _raise_for_unpicklable(_select_suspects(used_globals))
                raise  # every object can be pickled, so the file could not be written
            _inheritance.has_all_objects = False
        try:
            yield
        finally:
            _inheritance.file = None
            _inheritance.has_all_objects = True


def _select_definitions(names: Iterable[str]) -> dict[str, Any]:
    """Returns the members of `__main__` that the names in a config refer to, by their name there.

    For `__main__.Net.small` it is `Net`.
    """
    main_globals = vars(sys.modules["__main__"])
    definitions = {}
    for name in sorted(names):
        if name.startswith(MAIN):
            member_name = name.removeprefix(MAIN).partition(".")[0]
            definitions[member_name] = main_globals[member_name]
    return definitions


def _select_suspects(used_globals: Iterable[str]) -> dict[str, Any]:
    """Returns the objects, one of which cannot be pickled: registered objects and used globals."""
    main_globals = vars(sys.modules["__main__"])
    suspects = dict(_objects)
    for name in used_globals:
        suspects[name] = main_globals[name]
    return suspects


class PassedObjects(NamedTuple):
    """The objects that are pickled for a worker.

    Args:
        definitions: members of `__main__`, by name.
        objects: the registered objects, by name.
        digests: the digests of the program's definitions.
    """

    definitions: dict[str, Any]
    objects: dict[str, Any]
    digests: dict[str, str]


def can_pass_objects() -> bool:
    """Returns whether a process that is started now gets all objects that only this program has."""
    return _inheritance.has_all_objects


def _pickle(objects: object, most_bytes: float = math.inf) -> bytes:
    """Pickles objects; raises OverflowError if their arrays have more than `most_bytes`."""
    import cloudpickle  # type: ignore[import-untyped]  # pickles classes too, unlike `pickle`
    import numpy as np
    import torch

    size = 0

    def count_bytes(value: object) -> None:
        nonlocal size
        if isinstance(value, np.ndarray | torch.Tensor):
            size += value.nbytes
        if size > most_bytes:
            raise OverflowError

    content = io.BytesIO()
    pickler = cloudpickle.Pickler(content)
    if most_bytes < math.inf:
        # A pickler calls `persistent_id` with each value before it pickles it, and pickles it in
        # the usual way if the result is None, as here.
        pickler.persistent_id = count_bytes
    pickler.dump(objects)
    return content.getvalue()


def _raise_for_unpicklable(suspects: Mapping[str, Any]) -> None:
    """Raises ConfigError for the first of some objects that cannot be pickled, if there is one.

    Functions and classes are tried last: they may fail only because they use another of these
    objects, and the error must name that one.

    Args:
        suspects: the objects by name.
    """
    functions_and_classes = []
    other_objects = []
    for name, value in suspects.items():
        if callable(value):
            functions_and_classes.append(name)
        else:
            other_objects.append(name)
    for name in [*other_objects, *functions_and_classes]:
        try:
            _pickle(suspects[name])
        except Exception as error:
            reason = " ".join(error_text(error).split())
            raise ConfigError(
                f"{name}: cannot be given to worker processes: {reason}; make locks, and open "
                "files and connections, where they are used, or set workers=1"
            ) from error


@contextlib.contextmanager
def _inheritable_file(content: bytes) -> Iterator[InheritedFile]:
    """Writes a secret word and a content to a file without a name, which exists in the body.

    Children inherit the open file. They recognize it by the word, since another file may be open
    under its number.
    """
    word = secrets.token_hex()
    with tempfile.TemporaryFile(prefix="studyloom-") as file:
        with naming_file(Path(tempfile.gettempdir())):
            file.write(word.encode() + content)
            file.flush()
        yield InheritedFile(file.fileno(), word)


def child_arguments(variables: Mapping[str, str], *descriptors: int) -> dict[str, Any]:
    """Returns arguments of `subprocess.Popen` with which a worker inherits the passed objects.

    Args:
        variables: additional environment variables of the worker.
        descriptors: further files that it inherits.
    """
    environment = os.environ | variables
    inherited_descriptors = list(descriptors)
    file = _inheritance.file
    if file is not None:
        # The worker recognizes the file by the secret word with which it begins.
        environment[PICKLED.name] = f"{file.descriptor} {file.word}"
        inherited_descriptors.append(file.descriptor)
    return {"env": environment, "pass_fds": inherited_descriptors}


def receive_objects() -> None:
    """Defines the objects that this worker's program has passed, in `__main__` as there.

    It does nothing if the program has passed none. The objects are in an open file that this
    process has inherited. By now another file may be open under the same number, so the right one
    begins with a secret word. The worker passes the file on to the processes that it starts itself.
    """
    variable = PICKLED.take()  # the number of the open file and its secret word: "7 0f3a…"
    if not variable:
        return
    number, _, word = variable.partition(" ")
    file = InheritedFile(int(number), word)
    content = b""
    with contextlib.suppress(OSError):  # no file is open under the number
        size = os.fstat(file.descriptor).st_size
        content = os.pread(file.descriptor, size, 0)  # from its beginning
    # Another file that is open under the number does not begin with the word.
    if not word or not content.startswith(word.encode()):
        return
    _inheritance.file = file
    pickled_objects = memoryview(content)[len(word) :]
    with importing_module("__main__"):
        passed = PassedObjects(*pickle.loads(pickled_objects))
    vars(sys.modules["__main__"]).update(passed.definitions)
    _objects.update(passed.objects)
    received_digests.update(passed.digests)
