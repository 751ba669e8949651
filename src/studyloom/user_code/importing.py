"""Imports of the user's code: the modules that a config or a call names, and its script.

A module may do more than define something: parse the command line, end its process, run a study, or
draw random numbers. Each of these is handled while it is imported.

`__main__.Net` in a config is a class of the script that called `studyloom.search`. A command finds
the class as a process of multiprocessing does: it imports the script under another name, so that
the code below its guard `if __name__ == "__main__":` does not run. If the script has no guard, the
import ends where the script would run a study.
"""

import contextlib
import functools
import hashlib
import inspect
import logging
import random
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any, NamedTuple

from studyloom.errors import ConfigError
from studyloom.files import PACKAGE, is_trusted, write_whole

BELOW_GUARD = 'put that below `if __name__ == "__main__":`'

SCRIPT_RECORD = "script.sha256"  # a file in `.hydra` of a run directory, in the format of sha256sum
SCRIPT_MODULE = "__mp_main__"  # the name of the imported script, the one that multiprocessing uses
# The end of an error that begins with the name of a class or function of another program.
IS_DEFINED_ELSEWHERE = (
    "is defined in a script or notebook that is not this program; pass it in Python: "
    "studyloom.load_winner(RUN_DIR, network=Net); or move it into a module, and search again"
)
INSTALLED = {"site-packages", "dist-packages"}  # the names of folders of installed packages
log = logging.getLogger(__name__)

# A stack with an entry for each import in progress, the innermost last: True for the import of a
# script, which ends where the script would begin a study.
_imports_until_study: list[bool] = []

# The seed of each `seeding_imports` in progress, the innermost last, for scripts: `_import_script`
# executes them, so that no finder sees them.
_seeds: list[int] = []


@functools.cache
def _library_folders() -> tuple[Path, ...]:
    """Returns the folders of Python's own modules."""
    return tuple(Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib"))


def above_packages(path: Path) -> Path:
    """Returns the folder above the outermost package of a module."""
    folder = path.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def is_users_code(path: Path) -> bool:
    """Returns whether a file is the user's code, and not that of Python, a package or studyloom."""
    if not INSTALLED.isdisjoint(path.parts):
        return False
    other_folders = (PACKAGE, *_library_folders())
    return not any(path.is_relative_to(folder) for folder in other_folders)


# Random numbers


@contextmanager
def seeding_imports(seed: int) -> Iterator[None]:
    """Seeds Python, NumPy and PyTorch before each module of the user that the body imports.

    Random numbers that a module draws while it is imported, such as those of a split, are then the
    same in each process, whichever modules were imported before. After the import of a module the
    generators continue in their former states.

    Args:
        seed: the seed of the study. A negative seed, which is refused later, is taken as 0.
    """
    seed = max(0, seed)
    finder = _SeedingFinder(seed)
    # Python tries the finders in their order. This one comes before that of files on `sys.path`.
    if PathFinder in sys.meta_path:
        position = sys.meta_path.index(PathFinder)
    else:
        position = len(sys.meta_path)
    sys.meta_path.insert(position, finder)
    _seeds.append(seed)  # for a script, which is executed and not imported by a finder
    try:
        yield
    finally:
        _seeds.pop()
        sys.meta_path.remove(finder)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds Python, NumPy and, if it is imported, PyTorch on the CPU; restores their states."""
    import numpy as np  # only here: a command that imports no code of the user needs no NumPy

    state_of_numpy = np.random.get_state()
    state_of_python = random.getstate()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with _seeded_torch(seed):
            yield
    finally:
        random.setstate(state_of_python)
        np.random.set_state(state_of_numpy)


@contextmanager
def _seeded_torch(seed: int) -> Iterator[None]:
    """Seeds PyTorch on the CPU for the body, if PyTorch is imported, and restores its state."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "default_generator"):
        yield
        return
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


class _SeedingFinder(MetaPathFinder):
    """Finds modules by the finders after it, and gives those of the user a loader that seeds."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns the spec of a module that is imported; Python calls this."""
        spec = self._find_spec_after_this(name, path, target)
        # A loader of another type, such as that of a compiled module, loads no source of the user.
        if spec is None or type(spec.loader) is not SourceFileLoader:
            return spec
        file = spec.loader.path
        if name == "torch":
            # A module of the user is the first to import PyTorch. It is loaded under a seed, but
            # PyTorch was not there yet to be seeded, so it is seeded now.
            spec.loader = _TorchLoader(name, file, self.seed)
        elif not _is_installed(file) and is_users_code(Path(file).resolve()):
            spec.loader = _SeedingLoader(name, file, self.seed)
        return spec

    def _find_spec_after_this(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        """Returns the spec by the first of the finders after this one that finds the module."""
        own_position = sys.meta_path.index(self)
        for finder in sys.meta_path[own_position + 1 :]:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        return None


def _is_installed(file: str) -> bool:
    """Returns whether a file belongs to an installed package.

    It is a quick check for nearly all of the 1,500 modules of a command: `is_users_code` takes
    20 µs for each, since it needs a resolved path.
    """
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
    """Loads PyTorch and seeds it.

    A module of the user may be the first to import PyTorch. When `_seeded` was called for that
    module, there was no generator of PyTorch yet that it could have seeded.
    """

    def exec_module(self, module: ModuleType) -> None:
        SourceFileLoader.exec_module(self, module)
        module.default_generator.manual_seed(self.seed)


# Imports


class _StudyBegins(BaseException):
    """Ends the import of a script where it would run a study."""


@contextmanager
def importing_module(name: str, *, until_study: bool = False) -> Iterator[None]:
    """Surrounds the import of a module of the user, which may do more than define something.

    If the module reads the command line, it sees one without arguments. If it begins a study,
    `studyloom.search` calls `end_import_at_study`, which finds this import on the stack of imports
    in progress, `_imports_until_study`.

    Args:
        name: the name of the module, for the error.
        until_study: True for a script, whose import ends without an error where it begins a study:
            `end_import_at_study` then raises _StudyBegins, which ends the body.

    Raises:
        ConfigError: the module ends its process.
    """
    arguments = sys.argv
    sys.argv = sys.argv[:1]  # only the name of the program
    _imports_until_study.append(until_study)
    try:
        yield
    except _StudyBegins:
        if not until_study:  # an outer import, that of a script, is to end
            raise
    except SystemExit as end:
        raise ConfigError(
            f"{name}: ends its process when it is imported (SystemExit: {end}), as a module does "
            f"that parses the command line; {BELOW_GUARD}"
        ) from end
    finally:
        sys.argv = arguments
        _imports_until_study.pop()


def find_member(name: str) -> Any:
    """Imports the object of a dotted name.

    Raises:
        ConfigError: the module ends its process, or runs a study.
    """
    module_name = name.rpartition(".")[0]
    with importing_module(module_name):
        try:
            return resolve_name(name)
        except AttributeError as error:
            # If a submodule raises an error when it is imported, `resolve_name` says only that its
            # package lacks it. The submodule is imported again, which raises its own error.
            package = error.obj
            if isinstance(package, ModuleType) and hasattr(package, "__path__"):
                submodule = f"{package.__name__}.{error.name}"
                if find_spec(submodule):
                    import_module(submodule)
            raise


def unwrap_callable(value: Any) -> Any:
    """Returns the function or class whose code runs when a value is called.

    It is the function of a `functools.partial`, and the class of an object with `__call__`.
    """
    while isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, type) or inspect.isroutine(value):
        return value
    return type(value)


def end_import_at_study() -> None:
    """Ends the import of the user's code, if one is in progress; called where a study begins.

    The import of a script ends without an error: a command needs only the definitions that come
    before the study. The import of a module is an error: each worker imports the module, and would
    start workers in turn.

    Raises:
        ConfigError: a module is imported, and not a script.
    """
    # `_imports_until_study` has an entry for each import in progress, True for a script.
    if not _imports_until_study:  # none is in progress
        return
    if any(_imports_until_study):  # one of them is that of a script
        raise _StudyBegins
    for frame_info in inspect.stack(0):  # from the innermost call outwards
        if frame_info.function == "<module>":  # the module that begins the study
            name = frame_info.frame.f_globals["__name__"]
            raise ConfigError(
                f"{name}: runs a study when it is imported, and each worker imports it; "
                f"{BELOW_GUARD}"
            )


class RecordedScript(NamedTuple):
    """The script that has run a study: the digest of its content, and its path."""

    digest: str
    path: Path


def record_script(run_dir: Path) -> None:
    """Records in a run directory which script this program runs; a notebook has none."""
    main = sys.modules["__main__"]
    if hasattr(main, "__file__") and main.__file__ is not None:
        path = Path(main.__file__).absolute()
        write_whole(run_dir / ".hydra" / SCRIPT_RECORD, f"{_digest_file(path)}  {path}")


def read_recorded_script(run_dir: Path) -> RecordedScript | None:
    """Reads which script has run a study; returns None if a notebook has."""
    file = run_dir / ".hydra" / SCRIPT_RECORD
    if not file.is_file():
        return None
    digest, _, path = file.read_text().partition("  ")  # as `record_script` has written it
    if not path:
        return None
    return RecordedScript(digest, Path(path))


def _digest_file(path: Path) -> str:
    """Returns the sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def script_as_main(run_dir: Path, folder: Path | None) -> Iterator[None]:
    """Makes the script of a study `__main__` for the body, if the run directory is trusted.

    A config names a class of that script as `__main__.Net`. The body may import it by that name.

    If this program runs that script itself, or imports it now, it is not imported again.

    Args:
        run_dir: the run directory of the study.
        folder: the folder of the script, if it has moved since the study ran.

    Raises:
        ConfigError: the script is not where it was when the study ran, and not in the folder.
    """
    main = sys.modules["__main__"]
    former_import = sys.modules.get(SCRIPT_MODULE)
    import_paths = list(sys.path)  # `_import_script` adds the folder of the script to sys.path
    recorded = None
    if is_trusted(run_dir):
        recorded = read_recorded_script(run_dir)
    try:
        if recorded is not None:
            script = _find_loaded_script(recorded.path)
            if script is None:
                script = _import_script(recorded, folder)
            sys.modules["__main__"] = script
        yield
    finally:
        sys.modules["__main__"] = main
        sys.path[:] = import_paths
        if former_import is None:
            sys.modules.pop(SCRIPT_MODULE, None)
        else:  # such as the module that multiprocessing has imported in this process
            sys.modules[SCRIPT_MODULE] = former_import


def _find_loaded_script(path: Path) -> ModuleType | None:
    """Returns the script of a path if this program runs or imports it; None if it does neither."""
    for name in ("__main__", SCRIPT_MODULE):
        module = sys.modules.get(name)
        if module is None:
            continue
        file = vars(module).get("__file__")  # a notebook has none
        if file is not None and Path(file).absolute() == path:
            return module
    return None


def _import_script(recorded: RecordedScript, folder: Path | None) -> ModuleType:
    """Imports the script of a study up to the line where it begins the study.

    The script is imported as SCRIPT_MODULE, and not as `__main__`, so that the code below its guard
    `if __name__ == "__main__":` does not run. A script without a guard ends where it begins the
    study: an exception is raised there, which `importing_module` catches.

    Args:
        folder: the folder of the script, if it has moved since the study ran.
    """
    path = _find_script(recorded, folder)
    if _digest_file(path) != recorded.digest:
        log.warning("%s has changed since the study ran: what it defines now is used", path)
    script = ModuleType(SCRIPT_MODULE)
    script.__file__ = str(path)
    sys.modules[SCRIPT_MODULE] = script
    sys.path.append(str(path.parent))  # the script may import modules of its folder
    with contextlib.ExitStack() as stack:
        # This context ends the import where the study begins, and restores `sys.argv`.
        stack.enter_context(importing_module(str(path), until_study=True))
        if _seeds:  # the user's modules are imported under a seed now, and so is the script
            stack.enter_context(_seeded(_seeds[-1]))
        sys.argv[:] = [str(path)]
        exec(compile(path.read_bytes(), path, "exec"), vars(script))
    # The config of the study, and objects that it has saved, name these functions and classes as
    # members of `__main__`, so they are renamed to what they were.
    for member in vars(script).values():
        if hasattr(member, "__module__") and member.__module__ == SCRIPT_MODULE:
            member.__module__ = "__main__"
    return script


def _find_script(recorded: RecordedScript, folder: Path | None) -> Path:
    """Returns the path of a script: in the folder to which it has moved, or else as recorded."""
    paths = [recorded.path]
    if folder is not None:
        paths.insert(0, folder / recorded.path.name)
    for path in paths:
        if path.is_file():
            return path
    raise ConfigError(
        f"{recorded.path}: the script of the study is not there; add --code FOLDER, or in Python: "
        "studyloom.load_winner(RUN_DIR, network=Net)"
    )
