"""The user's code: imports all of it that a config or a call names.

A module may do more than define something: parse the command line, end its process, or search.

`__main__.Net` in a config is a class of the program that called `studyloom.search`. A command finds
it as a process of multiprocessing does: it imports the script under another name, so that what is
below its guard does not run. Without a guard the import ends where the script searches.
"""

import hashlib
import inspect
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

from studyloom.errors import ConfigError
from studyloom.files import is_own, write_whole

BELOW_GUARD = 'put that below `if __name__ == "__main__":`'

NOTE = "script.sha256"  # in `.hydra` of a run directory, as sha256sum writes it
NAME = "__mp_main__"  # of the imported script, as multiprocessing has it
ELSEWHERE = (
    "is defined in a script or notebook that is not this program; pass it in Python: "
    "studyloom.load_winner(RUN_DIR, network=Net); or move it into a module, and search again"
)
log = logging.getLogger(__name__)

# For each import in progress, the innermost last: whether it ends where a study would begin.
_importing: list[bool] = []


class _StudyBegins(BaseException):
    """Ends the import of a script where it would run a study."""


@contextmanager
def importing_module(name: str, *, until_study: bool = False) -> Iterator[None]:
    """Imports a module of the user's in the body, which sees a command line without arguments.

    Args:
        until_study: whether the body ends where it would begin a study.

    Raises:
        ConfigError: the module ends its process.
    """
    arguments, sys.argv = sys.argv, sys.argv[:1]
    _importing.append(until_study)
    try:
        yield
    except _StudyBegins:
        if not until_study:
            raise
    except SystemExit as end:
        raise ConfigError(
            f"{name}: ends its process when it is imported (SystemExit: {end}), as a module does "
            f"that parses the command line; {BELOW_GUARD}"
        ) from end
    finally:
        sys.argv = arguments
        _importing.pop()


def find_member(name: str) -> Any:
    """Imports the object of a dotted name; `resolve_name` would hide why an import fails.

    Raises:
        ConfigError: the module ends its process, or searches.
    """
    with importing_module(name.rpartition(".")[0]):
        try:
            return resolve_name(name)
        except AttributeError as error:
            module = f"{getattr(error.obj, '__name__', '')}.{error.name}"
            if hasattr(error.obj, "__path__") and find_spec(module):
                import_module(module)
            raise


def end_import() -> None:
    """Ends the import of the user's code, if there is one, where it would begin a study.

    Each worker imports a module, which would start workers in turn. A command needs only what a
    script has defined so far.

    Raises:
        ConfigError: a module is being imported, and no script.
    """
    if any(_importing):
        raise _StudyBegins
    if _importing:
        stack = (each.frame for each in inspect.stack(0) if each.function == "<module>")
        name = next(stack).f_globals["__name__"]  # of the module that begins it
        words = "runs a study when it is imported, and each worker imports it"
        raise ConfigError(f"{name}: {words}; {BELOW_GUARD}")


def note_script(run_dir: Path) -> None:
    """Notes in a run directory which script this program runs, with its digest; not a notebook."""
    if (file := getattr(sys.modules["__main__"], "__file__", None)) is not None:
        path = Path(file).absolute()
        write_whole(run_dir / ".hydra" / NOTE, f"{_digest(path)}  {path}")


def noted_script(run_dir: Path) -> tuple[str, Path] | None:
    """Returns the digest and the path of the script that searched; None if a notebook did."""
    note = run_dir / ".hydra" / NOTE
    digest, _, path = note.read_text().partition("  ") if note.is_file() else ("", "", "")
    return (digest, Path(path)) if path else None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def script_as_main(run_dir: Path, folder: Path | None) -> Iterator[None]:
    """Makes the script of a study `__main__` for the body, if the run directory is the user's own.

    Args:
        folder: where the user says that the script is, if it is not where it was.

    Raises:
        ConfigError: the script is in neither place.
    """
    main, paths = sys.modules["__main__"], [*sys.path]
    try:
        if is_own(run_dir) and (noted := noted_script(run_dir)) is not None:
            sys.modules["__main__"] = _import_script(*noted, folder)
        yield
    finally:
        sys.modules["__main__"], sys.path[:] = main, paths


def _import_script(digest: str, noted: Path, folder: Path | None) -> ModuleType:
    places = [noted] if folder is None else [folder / noted.name, noted]
    if (path := next(filter(Path.is_file, places), None)) is None:
        raise ConfigError(f"{noted}: the script of the study is not there; add --code FOLDER")
    if _digest(path) != digest:
        log.warning("%s has changed since the study ran: what it defines now is used", path)
    script = sys.modules[NAME] = ModuleType(NAME)
    script.__file__ = str(path)
    sys.path.append(str(path.parent))
    with importing_module(str(path), until_study=True):
        sys.argv[:] = [str(path)]
        exec(compile(path.read_bytes(), path, "exec"), vars(script))
    for member in vars(script).values():
        if getattr(member, "__module__", None) == NAME:  # as in the program that searched
            member.__module__ = "__main__"
    return script
