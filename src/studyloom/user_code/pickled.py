"""Objects that only the calling program has, pickled for the workers of its study, by name.

A worker is another interpreter. It cannot import a class of a notebook, and has no Dataset that the
notebook holds. The program pickles them into a file without a name, which its own children inherit.
No other process can open the file, and it disappears with the last of its processes. A secret word
at the beginning of the file shows a child that it has the right one.
"""

import contextlib
import io
import math
import os
import pickle
import secrets
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from studyloom.environment import PICKLED
from studyloom.errors import ConfigError
from studyloom.files import naming_file
from studyloom.text import error_text
from studyloom.user_code.importing import importing_module

MAIN = "__main__."  # the prefix of the names of the calling program's definitions
LIGHT = 2**28  # the most bytes of arrays that are passed although they are rarely needed
OWN = (MAIN, f"{__name__}.")  # the prefixes of all names that no other program knows

_objects: dict[str, Any] = {}  # the registered objects of the program, such as Datasets, by name
_files: dict[int, str] = {}  # the secret word of the file that children inherit, by its descriptor
_unpassable: list[str] = []  # the names of a config whose objects cannot be passed
digests: dict[str, str] = {}  # in a worker: the digests of the program's definitions, by name


def register_object(name: str, value: Any) -> dict[str, str]:
    """Registers an object of this program; returns the section that stands for it in a config."""
    _objects[name] = value
    return {"_target_": f"{__name__}.registered_object", "name": name}


def forget_objects() -> None:
    """Forgets the objects of an earlier search, which the workers of the next one do not need."""
    _objects.clear()


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
        names: the names in a config that only this program knows; if there are none, nothing is
            passed.
        source_digests: the digests of the sources of the program's definitions.
        used_globals: the names of the globals of `__main__` that these definitions are or use.
        needed: whether the body surely starts processes. If it may start one only because this
            process loses its GPU, large objects are not passed, nor those that cannot be pickled.

    Raises:
        ConfigError: an object that is needed cannot be pickled.
    """
    if not names:
        yield
        return
    main = vars(sys.modules["__main__"])
    definitions = {}
    for name in sorted(names):
        if name.startswith(MAIN):
            member = name.removeprefix(MAIN).partition(".")[0]
            definitions[member] = main[member]
    passed = PassedObjects(definitions, _objects, dict(source_digests))
    with contextlib.ExitStack() as stack:
        try:
            content = _pickle(tuple(passed), math.inf if needed else LIGHT)
            word = secrets.token_hex()
            descriptor = stack.enter_context(_file_with(word.encode() + content))
        except Exception:  # an object's own __reduce__ may raise anything
            if needed:
                _name_unpicklable(_objects | {name: main[name] for name in used_globals})
                raise
            _unpassable.extend(names)
        else:
            _files[descriptor] = word
        try:
            yield
        finally:
            _files.clear()
            _unpassable.clear()


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
    return not _unpassable


def _pickle(objects: object, most: float) -> bytes:
    """Pickles objects; raises OverflowError if their arrays have more than `most` bytes."""
    import cloudpickle  # type: ignore[import-untyped]  # pickles classes too, unlike `pickle`
    import numpy as np
    import torch

    size = 0

    def count(value: object) -> None:
        """Counts the bytes of a value before it is pickled; returns no id, as for all values."""
        nonlocal size
        if isinstance(value, np.ndarray | torch.Tensor):
            size += value.nbytes
        if size > most:
            raise OverflowError

    content = io.BytesIO()
    pickler = cloudpickle.Pickler(content)
    if most < math.inf:
        pickler.persistent_id = count
    pickler.dump(objects)
    return content.getvalue()


def _name_unpicklable(suspects: Mapping[str, Any]) -> None:
    """Raises ConfigError with the first of some objects, by name, that cannot be pickled, if any.

    A function or class may fail only because it uses such an object. They are tried last, so that
    the error names the object itself.
    """
    for name in sorted(suspects, key=lambda name: callable(suspects[name])):
        try:
            _pickle(suspects[name], math.inf)
        except Exception as error:
            reason = " ".join(error_text(error).split())
            raise ConfigError(
                f"{name}: cannot be given to worker processes: {reason}; make locks, and open "
                "files and connections, where they are used, or set workers=1"
            ) from error


@contextlib.contextmanager
def _file_with(content: bytes) -> Iterator[int]:
    """Yields the descriptor of a file without a name that has a content."""
    with tempfile.TemporaryFile(prefix="studyloom-") as file:
        with naming_file(Path(tempfile.gettempdir())):
            file.write(content)
            file.flush()
        yield file.fileno()


def child_arguments(variables: Mapping[str, str], *descriptors: int) -> dict[str, Any]:
    """Returns arguments of `subprocess.Popen` with which a worker inherits the passed objects.

    Args:
        variables: additional environment variables of the worker.
        descriptors: further files that it inherits.
    """
    environment = os.environ | variables
    for descriptor, word in _files.items():
        environment[PICKLED.name] = f"{descriptor} {word}"
    return {"env": environment, "pass_fds": [*descriptors, *_files]}


def receive_objects() -> None:
    """Defines the passed objects in this worker, in `__main__` as in its program.

    Only `child_arguments` makes a child inherit the file. If another file is open under its number,
    it does not begin with the secret word, and is not unpickled.
    """
    number, _, word = (PICKLED.take() or "-1 ").partition(" ")
    descriptor = int(number)
    content = b""
    with contextlib.suppress(OSError):  # no file is open under the number
        content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    if word and content.startswith(word.encode()):
        _files[descriptor] = word
        with importing_module("__main__"):
            passed = PassedObjects(*pickle.loads(memoryview(content)[len(word) :]))
        vars(sys.modules["__main__"]).update(passed.definitions)
        _objects.update(passed.objects)
        digests.update(passed.digests)
