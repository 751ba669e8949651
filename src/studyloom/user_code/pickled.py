"""Objects that only the calling program has, pickled for the workers of its study, by name.

A worker is another interpreter. It cannot import a class of a notebook, and has no Dataset that the
notebook holds. The program pickles them into a file without a name, which its own children inherit;
no other process can open it, and it disappears with the last of them.
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
from typing import IO, Any

from studyloom.environment import PICKLED
from studyloom.errors import ConfigError
from studyloom.files import naming
from studyloom.text import error_text
from studyloom.user_code.importing import importing_module

MAIN = "__main__."  # before the name of what the calling program defines
LIGHT = 2**28  # bytes of arrays that are passed on although they are rarely needed
OWN = (MAIN, f"{__name__}.")  # before each name that no other program knows

_objects: dict[str, Any] = {}  # the Datasets and others of the program, by name
_files: dict[int, str] = {}  # the word of the file that is passed on, by its descriptor
_withheld: list[str] = []  # the names of what cannot be passed on
digests: dict[str, str] = {}  # in a worker: of the sources of what the program defines


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
        ConfigError: this process has no object of that name.
    """
    if name not in _objects:
        raise ConfigError(
            f"{name}: was given to studyloom.search as an object, which this process does not "
            "have; repeat the call, or name its class as _target_ in a config"
        )
    return _objects[name]


@contextlib.contextmanager
def passed_on(
    names: list[str], known: Mapping[str, str], used: Iterable[str], *, needed: bool = True
) -> Iterator[None]:
    """Passes this program's definitions and registered objects to processes started in the body.

    Args:
        names: what a config names of it; if it names nothing, nothing is passed on.
        known: the digests of their sources.
        used: the names of the globals of `__main__` that they are or use.
        needed: whether there will be such processes. If there may be one only because this process
            loses its GPU, nothing large is passed on, and nothing that cannot be pickled.

    Raises:
        ConfigError: something that is needed cannot be pickled.
    """
    if not names:
        yield
        return
    main = sys.modules["__main__"]
    firsts = {name.removeprefix(MAIN).partition(".")[0] for name in names if name.startswith(MAIN)}
    defined = {name: getattr(main, name) for name in sorted(firsts)}
    with contextlib.ExitStack() as files:
        try:
            content = _pickle((defined, _objects, dict(known)), math.inf if needed else LIGHT)
            file, word = files.enter_context(_file_of(content))
        except Exception:  # whatever an object's own __reduce__ raises
            if needed:
                _name_unpicklable({**_objects, **{name: getattr(main, name) for name in used}})
                raise
            _withheld.extend(names)
        else:
            _files[file.fileno()] = word
        try:
            yield
        finally:
            _files.clear()
            _withheld.clear()


def can_pass_on() -> bool:
    """Whether a process that is started now gets all objects that only this program has."""
    return not _withheld


def _pickle(objects: object, most: float) -> bytes:
    """Pickles objects; raises OverflowError if their arrays have more than `most` bytes."""
    import cloudpickle  # type: ignore[import-untyped]  # what `pickle` cannot: classes by value
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
    """Raises ConfigError with the first of some objects by name that cannot be pickled, if any."""
    # Functions and classes, which may only use what cannot be pickled, come last.
    for name in sorted(suspects, key=lambda name: callable(suspects[name])):
        try:
            _pickle(suspects[name], math.inf)
        except Exception as error:
            words = " ".join(error_text(error).split())
            raise ConfigError(
                f"{name}: cannot be given to worker processes: {words}; make locks, and open "
                "files and connections, where they are used, or set workers=1"
            ) from error


@contextlib.contextmanager
def _file_of(content: bytes) -> Iterator[tuple[IO[bytes], str]]:
    """Yields a file without a name that has a secret word and a content, and the word."""
    with tempfile.TemporaryFile(prefix="studyloom-") as file:
        word = secrets.token_hex()
        with naming(Path(tempfile.gettempdir())):
            file.write(word.encode() + content)
            file.flush()
        yield file, word


def passed_to_child(variables: Mapping[str, str], *descriptors: int) -> dict[str, Any]:
    """Returns arguments of `subprocess.Popen` with which a worker inherits the passed objects.

    Args:
        variables: more of the child's environment.
        descriptors: further files that it inherits.
    """
    environment = os.environ | variables
    for number, word in _files.items():
        environment[PICKLED.name] = f"{number} {word}"
    return {"env": environment, "pass_fds": [*descriptors, *_files]}


def receive() -> None:
    """Defines the passed objects in this worker, in `__main__` as in its program.

    Only `passed_to_child` passes the file to a child. Another file that is open under its number
    lacks the word, and is not unpickled.
    """
    number, _, word = (PICKLED.take() or "-1 ").partition(" ")
    descriptor, content = int(number), b""
    with contextlib.suppress(OSError):  # the number is of no file
        content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    if word and content.startswith(word.encode()):
        _files[descriptor] = word
        with importing_module("__main__"):
            defined, given, known = pickle.loads(memoryview(content)[len(word) :])
        vars(sys.modules["__main__"]).update(defined)
        _objects.update(given)
        digests.update(known)
