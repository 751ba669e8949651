"""The user's code: imports all of it that a config or a call names.

A module may do more than define something: parse the command line, end its process, search, or draw
random numbers.

`__main__.Net` in a config is a class of the program that called `studyloom.search`. A command finds
it as a process of multiprocessing does: it imports the script under another name, so that what is
below its guard does not run. Without a guard the import ends where the script searches.
"""

import functools
import hashlib
import inspect
import logging
import random
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

from studyloom.errors import ConfigError
from studyloom.files import PACKAGE, is_own, write_whole

BELOW_GUARD = 'put that below `if __name__ == "__main__":`'

NOTE = "script.sha256"  # in `.hydra` of a run directory, as sha256sum writes it
NAME = "__mp_main__"  # of the imported script, as multiprocessing has it
ELSEWHERE = (
    "is defined in a script or notebook that is not this program; pass it in Python: "
    "studyloom.load_winner(RUN_DIR, network=Net); or move it into a module, and search again"
)
INSTALLED = ("site-packages", "dist-packages")
log = logging.getLogger(__name__)

# For each import in progress, the innermost last: whether it ends where a study would begin.
_importing: list[bool] = []


@functools.cache
def _library_folders() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib"))


def is_users_code(path: Path) -> bool:
    """Whether a file is the user's code, and not that of Python, a package, or studyloom."""
    if {*INSTALLED}.intersection(path.parts):
        return False
    return not any(path.is_relative_to(folder) for folder in (PACKAGE, *_library_folders()))


# Random numbers


@contextmanager
def seeding_imports(seed: int) -> Iterator[None]:
    """Seeds Python, NumPy and PyTorch before each module of the user that the body imports.

    Whatever a module draws while it is imported, such as a split, is the same in each process then,
    whichever modules were imported before. Afterwards the generators are as they were.

    Args:
        seed: of the study.
    """
    finder = _SeedingFinder(max(0, seed))
    places = [place for place, other in enumerate(sys.meta_path) if other is PathFinder]
    sys.meta_path.insert(places[0] if places else len(sys.meta_path), finder)
    _seeds.append(finder.seed)
    try:
        yield
    finally:
        _seeds.pop()
        sys.meta_path.remove(finder)


_seeds: list[int] = []  # of `seeding_imports`, the innermost last


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds Python, NumPy and, if it is imported, PyTorch on the CPU; restores their states."""
    import numpy as np  # here: a command that imports no code of the user needs none

    generator = getattr(sys.modules.get("torch"), "default_generator", None)
    state_of_torch = None if generator is None else generator.get_state()
    state_of_numpy = np.random.get_state()
    state_of_python = random.getstate()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if generator is not None:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(state_of_python)
        np.random.set_state(state_of_numpy)
        if generator is not None:
            generator.set_state(state_of_torch)


class _SeedingFinder(MetaPathFinder):
    """Finds modules as the finders after it do, and has those of the user seeded."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                break
        if spec is None or type(spec.loader) is not SourceFileLoader:
            return spec
        file = spec.loader.path
        if name == "torch":
            spec.loader = _TorchLoader(name, file, self.seed)
        elif not _is_installed(file) and is_users_code(Path(file).resolve()):
            spec.loader = _SeedingLoader(name, file, self.seed)
        return spec


def _is_installed(file: str) -> bool:
    # Of the 1,500 modules of a command nearly all are, and to resolve a path takes 20 µs.
    return any(folder in file for folder in INSTALLED)


class _SeedingLoader(SourceFileLoader):
    """Loads a module of the user under a seed."""

    def __init__(self, name: str, path: str, seed: int) -> None:
        super().__init__(name, path)
        self.seed = seed

    def exec_module(self, module: ModuleType) -> None:
        with _seeded(self.seed):
            super().exec_module(module)


class _TorchLoader(_SeedingLoader):
    """Loads PyTorch, which a module of the user may be the first to import, and seeds it."""

    def exec_module(self, module: ModuleType) -> None:
        SourceFileLoader.exec_module(self, module)
        module.default_generator.manual_seed(self.seed)


# Imports


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
    seeded = _seeded(_seeds[-1]) if _seeds else nullcontext()
    with importing_module(str(path), until_study=True), seeded:
        sys.argv[:] = [str(path)]
        exec(compile(path.read_bytes(), path, "exec"), vars(script))
    for member in vars(script).values():
        if getattr(member, "__module__", None) == NAME:  # as in the program that searched
            member.__module__ = "__main__"
    return script
