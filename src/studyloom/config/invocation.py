"""Studies that Python code runs: from a module, a config or a call of `search` to a `StudyConfig`.

An `Invocation` composes the config as the study's own command does. A config that exists only in
Python is written below its run directory first, since workers and later commands read it there.
"""

import hashlib
import importlib
import json
import os
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from studyloom import processes
from studyloom.config.arguments import (
    explain_failure,
    find_config_errors,
    refuse_passwords,
    rewrite_arguments,
)
from studyloom.config.compose import restored_hydra
from studyloom.config.config_sources import GROUPS, check_run_dir, register
from studyloom.config.overrides import STUDY_GROUPS, VERSION_BASE, Override
from studyloom.config.runs import config_folders, read_written
from studyloom.config.schema import Config, find_unknown_keys
from studyloom.config.study_config import StudyConfig
from studyloom.config.trust import read_yaml
from studyloom.config.values import as_yaml, flatten, written_values
from studyloom.environment import EVENTS, JSON, NOTIFY
from studyloom.error_display import wants_tracebacks
from studyloom.errors import ConfigError, LaunchError
from studyloom.files import write_whole
from studyloom.user_code.importing import (
    above_packages,
    end_import_at_study,
    importing_module,
    seeding_imports,
)

T = TypeVar("T")
Source = str | Path | DictConfig  # what names a study: a module, a primary config, or a config
WRITTEN = "given"  # the name of a config that was written to files, and of its options
_running = threading.Lock()  # Hydra's state and the environment belong to the whole process


@dataclass(frozen=True)
class Invocation:
    """A study to be run by this process.

    Args:
        program: the arguments of a Python interpreter that runs the same study as a command.
        root: the folder from which the modules of the study are imported, if it has any.
    """

    config_dir: Path
    config_name: str
    program: tuple[str, ...]
    root: Path | None = None

    def call(
        self, overrides: Sequence[str], task: Callable[[StudyConfig, tuple[str, ...]], T]
    ) -> T:
        """Composes the config and calls a function with it, as the decorator `hydra_main` does.

        Hydra's state, the environment and the module path are afterwards as they were.

        Args:
            task: gets the config, and the arguments of a command that composes the same.

        Raises:
            ConfigError: all errors of the overrides, or the config does not compose.
            LaunchError: this process runs a study already.
        """
        end_import_at_study()
        check_overrides(overrides)
        processes.open_streams()
        with (
            _only_study_of_process(),
            restored_environment(EVENTS.name, NOTIFY.name, JSON.name, "PYTHONPATH"),
            restored_hydra(),
            module_path(self.root),
        ):
            os.environ["PYTHONPATH"] = os.pathsep.join(own_module_path())  # for the workers
            arguments = rewrite_arguments(overrides)
            call = _Call(task, tuple(arguments))
            self._compose(arguments, call)
        return call.result()

    def _compose(self, arguments: list[str], task: Callable[[DictConfig], None]) -> None:
        """Makes Hydra compose the config, create the run directory and call a task."""
        register()
        try:
            hydra.initialize_config_dir(str(self.config_dir), **VERSION_BASE)
            app = GlobalHydra.instance().hydra
            assert app is not None
            app.run(self.config_name, task, arguments, with_log_configuration=False)
        except Exception as error:  # of composing
            errors = explain_failure(error, str(self.config_dir), self.config_name, arguments)
            cause = None
            if wants_tracebacks():
                cause = error
            raise ConfigError(errors) from cause


class _Call(Generic[T]):
    """A task for Hydra, which keeps its result, or its error, which Hydra would print.

    Args:
        task: gets the config and the arguments.
    """

    def __init__(
        self, task: Callable[[StudyConfig, tuple[str, ...]], T], arguments: tuple[str, ...]
    ) -> None:
        self.task = task
        self.arguments = arguments
        self.results: list[T] = []
        self.error: BaseException | None = None

    def __call__(self, config: DictConfig) -> None:
        try:
            errors = find_config_errors(config)
            if errors:
                raise ConfigError(errors)
            with seeding_imports(config.study.seed):
                self.results.append(self.task(StudyConfig.of(config), self.arguments))
        except BaseException as error:
            self.error = error

    def result(self) -> T:
        """Returns what the task returned; raises what it raised."""
        if self.error is not None:
            raise self.error
        return self.results[0]


@contextmanager
def _only_study_of_process() -> Iterator[None]:
    """Holds the process for one study; raises LaunchError if it runs another one."""
    if not _running.acquire(blocking=False):
        raise LaunchError(
            "this process runs a study already, and can run one at a time; "
            "start this one in another process"
        )
    try:
        yield
    finally:
        _running.release()


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises ConfigError for arguments that are not overrides, such as options of a command."""
    are_overrides = not isinstance(overrides, str)
    for override in overrides:
        if not isinstance(override, str) or override.startswith("-"):
            are_overrides = False
    if not are_overrides:
        raise ConfigError(
            f"overrides must be a list of Hydra's, such as ['study.trials=50']; got {overrides!r}"
        )


def find_invocation(source: Source, overrides: Sequence[str] = ()) -> Invocation:
    """Finds the study that code names: a module, a primary config, one of ours, or a DictConfig.

    Args:
        overrides: may name the run directory.

    Raises:
        ConfigError: there is no such file, it is neither a module nor a config, or the module
            decorates no function.
    """
    end_import_at_study()
    if isinstance(source, DictConfig):
        return _write_config(source, overrides)
    own_configs = {file.stem: file for file in sorted(GROUPS.glob("*.yaml"))}
    path = own_configs.get(str(source), Path(source))
    if path.suffix not in (".py", ".yaml"):
        raise ConfigError(
            "a study must be a module such as studies/mine.py, a primary config such as "
            f"conf/mine.yaml, one of studyloom's ({', '.join(own_configs)}), or a DictConfig; "
            f"got {source}"
        )
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file in {Path.cwd()}")
    if path.suffix == ".py":
        return _invoke_module(path)
    return _invoke_file(path)


def _invoke_file(path: Path) -> Invocation:
    absolute = path.absolute()
    argument = absolute
    if absolute.is_relative_to(Path.cwd()):
        # A relative path also holds in the copy of the folder that another host may have.
        argument = absolute.relative_to(Path.cwd())
    program = ("-m", "studyloom", "run", str(argument))
    return Invocation(absolute.parent, path.stem, program)


def _invoke_module(path: Path) -> Invocation:
    root, name = _module_of(path.resolve())
    was_imported = name in sys.modules
    with module_path(root), importing_module(name):
        module = _import_study_module(path, name)
    if not was_imported:
        # The config may name it too: then it is imported again, as in a command, once the seed of
        # the study is known.
        sys.modules.pop(name, None)
    functions = []
    for value in vars(module).values():
        if hasattr(value, "config_path") and value.__module__ == module.__name__:
            functions.append(value)
    if len(functions) != 1:
        raise ConfigError(
            f"{path}: must have one function decorated with studyloom.config.hydra_main, such as "
            f"`main`; it has {len(functions)}"
        )
    main = functions[0]
    return Invocation(Path(main.config_path), main.config_name, ("-m", name), root)


def _import_study_module(path: Path, name: str) -> ModuleType:
    """Imports a study module; raises ConfigError if this process has another of that name."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # something that the module imports
            raise
        module = sys.modules[name.partition(".")[0]]
    if Path(str(module.__file__)).resolve() != path.resolve():
        raise ConfigError(
            f"{path}: cannot be imported as {name}, since this process has {module.__file__} under "
            "that name; run it in a new process"
        )
    return module


def _module_of(path: Path) -> tuple[Path, str]:
    """Returns the folder from which a module is imported, and its name, as in `python -m NAME`."""
    folder = above_packages(path)
    working_folder = Path.cwd().resolve()
    if folder == path.parent and path.is_relative_to(working_folder):  # without __init__.py
        folder = working_folder
    return folder, ".".join(path.relative_to(folder).with_suffix("").parts)


# Configs that exist only in Python


def _write_config(config: DictConfig, overrides: Sequence[str]) -> Invocation:
    """Writes a DictConfig below its run directory, where the workers read it.

    Each group becomes a separate file, so that overrides and spaces can choose other options.
    """
    if OmegaConf.get_type(config) is not Config:
        raise ConfigError(find_unknown_keys(config))
    sections = written_values(config)
    sections.pop("hydra", None)
    groups = {}
    defaults: list[object] = ["studyloom"]
    for group in STUDY_GROUPS:
        if isinstance(sections[group], dict):
            groups[group] = sections.pop(group)
            defaults.append({group: WRITTEN})
    defaults.append("_self_")
    primary = {"defaults": defaults, **sections}
    return write_sections(primary, _run_dir(config, overrides), groups)


def write_sections(
    primary: Mapping[str, object],
    run_dir: Path,
    groups: Mapping[str, Mapping[str, object]] | None = None,
) -> Invocation:
    """Writes a primary config below its run directory, where the workers read it.

    Args:
        groups: the option `given` of each group.

    Raises:
        ConfigError: a value has a password, or the directory cannot be written to.
    """
    check_run_dir(str(run_dir))
    configs = {WRITTEN: primary}
    values = dict(primary)
    for group, option in (groups or {}).items():
        configs[f"{group}/{WRITTEN}"] = option
        values[group] = option
    refuse_passwords([f"{key}={value}" for key, value in flatten(values)])
    texts = {name: as_yaml(config) for name, config in configs.items()}
    # Named by its content: a study that is there already keeps its own until this is accepted.
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]
    folder = run_dir / ".hydra" / WRITTEN / digest
    for name, text in texts.items():
        path = folder / f"{name}.yaml"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text)
        except OSError as error:
            raise ConfigError(explain_failure(error, "", WRITTEN, ())) from None
    return _invoke_file(folder / f"{WRITTEN}.yaml")


def _run_dir(config: DictConfig, overrides: Sequence[str]) -> Path:
    """Returns the run directory of a config, with the overrides that change it."""
    changes = []
    for argument in overrides:
        override = Override.parse(argument)
        if override.key in ("run_dir", "study.name") and not override.deletes:
            changes.append(f"{override.key}={override.value}")
    try:
        return Path(str(OmegaConf.merge(config, OmegaConf.from_dotlist(changes)).run_dir))
    except OmegaConfBaseException as error:
        raise ConfigError(f"run_dir: {' '.join(str(error).split())}") from None


def read_sections(run_dir: Path) -> dict[str, Any]:
    """Reads the primary config that `write_sections` wrote for a run directory.

    Raises:
        ConfigError: the study of the run directory has another config.
    """
    hydra_config = read_written(run_dir, "hydra.yaml").get("hydra")
    if hydra_config is None or hydra_config.job.config_name != WRITTEN:
        raise ConfigError(f"{run_dir}: its study is not one of studyloom.search; it has a config")
    path = Path(config_folders(hydra_config)["main"]) / f"{WRITTEN}.yaml"
    return dict(written_values(read_yaml(path, trusted=True)))


# The state of the process


@contextmanager
def restored_environment(*names: str) -> Iterator[None]:
    """Restores variables of the environment after the body."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def module_path(root: Path | None) -> Iterator[None]:
    """Adds a folder to the module path while the body runs."""
    if root is None or str(root) in sys.path:
        yield
        return
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))


def own_module_path() -> list[str]:
    """Returns the module folders of this process that another interpreter lacks."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    python_folders = [Path(sysconfig.get_path(kind)) for kind in kinds]
    folders = []
    for entry in sys.path:
        folder = Path(entry).absolute()
        is_pythons = any(folder.is_relative_to(parent) for parent in python_folders)
        if folder.exists() and not is_pythons:
            folders.append(str(folder))
    return folders
