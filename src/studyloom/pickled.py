"""What only the calling program has, for the workers of its study: pickled, and by name.

A worker is another interpreter. It cannot import a class of a notebook, and has no Dataset that the
notebook holds. The program pickles them into a file without a name, which its own children inherit;
nobody else can open it, and it is gone with the last of them.
"""

import contextlib
import os
import pickle
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from studyloom.errors import ConfigError
from studyloom.files import naming
from studyloom.text import error_text

VARIABLE = "STUDYLOOM_PICKLED"  # in the environment of a child: the descriptor of the file
MAIN = "__main__."  # before the name of what the calling program defines
OWN = (MAIN, f"{__name__}.")  # before each name that no other program knows

_objects: dict[str, Any] = {}  # the Datasets and others that the program has given, by name
digests: dict[str, str] = {}  # in a worker: of the sources of what the program defines


def give(name: str, value: Any) -> dict[str, str]:
    """Keeps an object of this program, and returns the section that stands for it in a config."""
    _objects[name] = value
    return {"_target_": f"{__name__}.take", "name": name}


def take(name: str) -> Any:
    """Returns an object that the program has given.

    Raises:
        ConfigError: this process has none of the name.
    """
    if name not in _objects:
        raise ConfigError(
            f"{name}: was given to studyloom.search as an object, which this process does not "
            "have; repeat the call, or name its class as _target_ in a config"
        )
    return _objects[name]


@contextlib.contextmanager
def passed_on(names: list[str], known: Mapping[str, str], used: Iterable[str]) -> Iterator[None]:
    """Has processes that are started in the body know what this program defines and has given.

    Args:
        names: what a config names of it; if it names nothing, nothing is passed on.
        known: the digests of their sources.
        used: the names of the globals of `__main__` that they are or use.

    Raises:
        ConfigError: something cannot be pickled.
    """
    import cloudpickle  # type: ignore[import-untyped]  # what `pickle` cannot: classes by value

    if not names:
        yield
        return
    main = sys.modules["__main__"]
    firsts = {name.removeprefix(MAIN).partition(".")[0] for name in names if name.startswith(MAIN)}
    defined = {name: getattr(main, name) for name in sorted(firsts)}
    try:
        content = cloudpickle.dumps((defined, _objects, dict(known)))
    except Exception:  # whatever an object's own __reduce__ raises
        suspects = {**_objects, **{name: getattr(main, name) for name in used}}
        # Functions and classes, which may only use what cannot be pickled, come last.
        for name in sorted(suspects, key=lambda name: callable(suspects[name])):
            try:
                cloudpickle.dumps(suspects[name])
            except Exception as error:
                words = " ".join(error_text(error).split())
                raise ConfigError(
                    f"{name}: cannot be given to worker processes: {words}; make locks, and open "
                    "files and connections, where they are used, or set workers=1"
                ) from error
        raise
    with tempfile.TemporaryFile(prefix="studyloom-") as file:
        with naming(Path(tempfile.gettempdir())):
            file.write(content)
            file.flush()
        os.environ[VARIABLE] = str(file.fileno())
        try:
            yield
        finally:
            del os.environ[VARIABLE]


def descriptors() -> tuple[int, ...]:
    """Returns the descriptor that a child must inherit, if there is one."""
    return tuple(int(os.environ[name]) for name in (VARIABLE,) if name in os.environ)


def receive() -> None:
    """Defines in this worker what its program has passed on, in `__main__` as there."""
    for descriptor in descriptors():
        size = os.fstat(descriptor).st_size
        content = os.pread(descriptor, size, 0)
        defined, given, known = pickle.loads(content)
        vars(sys.modules["__main__"]).update(defined)
        _objects.update(given)
        digests.update(known)
