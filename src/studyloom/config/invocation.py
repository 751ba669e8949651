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
DIGEST_LENGTH = 12  # characters
_running = threading.Lock()  # Hydra's state and the environment belong to the whole process
RUNS_ALREADY = (
    "this process runs a study already, and can run one at a time; "
    "start this one in another process"
)


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
            overrides: the overrides of the config, as on a command line.
            task: gets the config, and the arguments of a command that composes the same.

        Raises:
            ConfigError: all errors of the overrides, or the config does not compose.
            LaunchError: this process runs a study already.
        """
        end_import_at_study()  # a script that is only imported runs no study
        check_overrides(overrides)
        # Otherwise a file that is opened would get the number of a closed standard output.
        processes.open_closed_streams()
        with (
            _only_study_of_process(),
            restored_environment(EVENTS.name, NOTIFY.name, JSON.name, "PYTHONPATH"),
            restored_hydra(),
            module_path(self.root),
        ):
            # Workers are other interpreters, which must find the same modules.
            os.environ["PYTHONPATH"] = os.pathsep.join(list_module_folders())
            arguments = rewrite_arguments(overrides)
            hydra_task = _HydraTask(task, tuple(arguments))
            self._run_with_hydra(arguments, hydra_task)
        return hydra_task.take_result()

    def _run_with_hydra(self, arguments: list[str], task: Callable[[DictConfig], None]) -> None:
        """Makes Hydra compose the config, create the run directory and call a task.

        Args:
            arguments: the overrides of the command.
            task: gets the config. It must not raise an exception, which Hydra would print.

        Raises:
            ConfigError: explains the exception of Hydra.
        """
        register()
        try:
            hydra.initialize_config_dir(str(self.config_dir), **VERSION_BASE)
            app = GlobalHydra.instance().hydra
            assert app is not None
            app.run(self.config_name, task, arguments, with_log_configuration=False)
        except Exception as error:
            errors = explain_failure(error, str(self.config_dir), self.config_name, arguments)
            cause = None
            if wants_tracebacks():
                cause = error
            raise ConfigError(errors) from cause


class _HydraTask(Generic[T]):
    """Calls a task for Hydra, and keeps its result, or the error, which Hydra would print.

    Args:
        task: a function of the config and the arguments.
        arguments: the arguments of a command that composes the same config.
    """

    def __init__(
        self, task: Callable[[StudyConfig, tuple[str, ...]], T], arguments: tuple[str, ...]
    ) -> None:
        self.task = task
        self.arguments = arguments
        self.results: list[T] = []  # one result, once the task has returned
        self.error: BaseException | None = None

    def __call__(self, config: DictConfig) -> None:
        """Checks the config that Hydra composed, and calls the task with it; never raises."""
        try:
            errors = find_config_errors(config)
            if errors:
                raise ConfigError(errors)
            with seeding_imports(config.study.seed):
                self.results.append(self.task(StudyConfig.of(config), self.arguments))
        except BaseException as error:
            self.error = error

    def take_result(self) -> T:
        """Returns the result of the task, or raises its error."""
        if self.error is not None:
            raise self.error
        return self.results[0]


def check_no_study_runs() -> None:
    """Raises LaunchError if this process runs a study, whose objects another one would replace."""
    if _running.locked():
        raise LaunchError(RUNS_ALREADY)


@contextmanager
def _only_study_of_process() -> Iterator[None]:
    """Keeps a second study out of this process while the body runs.

    Hydra's state and the environment, which a study changes, belong to the whole process.

    Raises:
        LaunchError: the process runs another study.
    """
    if not _running.acquire(blocking=False):
        raise LaunchError(RUNS_ALREADY)
    try:
        yield
    finally:
        _running.release()


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises ConfigError for arguments that are not overrides, such as options of a command."""
    is_valid = not isinstance(overrides, str)
    for override in overrides:
        if not isinstance(override, str) or override.startswith("-"):
            is_valid = False
    if not is_valid:
        raise ConfigError(
            f"overrides must be a list of Hydra's, such as ['study.trials=50']; got {overrides!r}"
        )


def find_invocation(source: Source, overrides: Sequence[str] = ()) -> Invocation:
    """Finds the study that code names.

    Args:
        source: the file of a study module or of a primary config, the name of a study of studyloom
            such as `mnist`, or a composed config.
        overrides: the overrides of the study. For a composed config, which is written to files,
            they may name the run directory.

    Raises:
        ConfigError: there is no such file, it is neither a module nor a config, or the module
            decorates no function.
    """
    end_import_at_study()  # a script that is only imported runs no study
    if isinstance(source, DictConfig):
        return _write_config(source, overrides)
    included_configs = {file.stem: file for file in sorted(GROUPS.glob("*.yaml"))}
    path = included_configs.get(str(source), Path(source))
    if path.suffix not in (".py", ".yaml"):
        raise ConfigError(
            "a study must be a module such as studies/mine.py, a primary config such as "
            f"conf/mine.yaml, one of studyloom's ({', '.join(included_configs)}), or a DictConfig; "
            f"got {source}"
        )
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file in {Path.cwd()}")
    if path.suffix == ".py":
        return _invoke_module(path)
    return _invoke_file(path)


def _invoke_file(path: Path) -> Invocation:
    """Returns the invocation of the study that the file of a primary config describes."""
    absolute_path = path.absolute()
    argument = absolute_path
    if absolute_path.is_relative_to(Path.cwd()):
        # A relative path also holds in the copy of the folder that another host may have.
        argument = absolute_path.relative_to(Path.cwd())
    program = ("-m", "studyloom", "run", str(argument))
    return Invocation(absolute_path.parent, path.stem, program)


def _invoke_module(path: Path) -> Invocation:
    """Returns the invocation of a study module, which is imported to find its decorated function.

    Raises:
        ConfigError: it has not one function decorated with `hydra_main`, but none or several.
    """
    module_name = _name_module(path.resolve())
    name = module_name.name
    was_imported = name in sys.modules
    with module_path(module_name.folder), importing_module(name):
        module = _import_study_module(path, name)
    if not was_imported:
        # If the config names the module too, it is imported again, as in a command, once the seed
        # of the study is known.
        sys.modules.pop(name, None)
    decorated = []
    for value in vars(module).values():
        if hasattr(value, "config_path") and value.__module__ == module.__name__:
            decorated.append(value)
    if len(decorated) != 1:
        raise ConfigError(
            f"{path}: must have one function decorated with studyloom.config.hydra_main, such as "
            f"`main`; it has {len(decorated)}"
        )
    main = decorated[0]
    return Invocation(
        config_dir=Path(main.config_path),
        config_name=main.config_name,
        program=("-m", name),
        root=module_name.folder,
    )


def _import_study_module(path: Path, name: str) -> ModuleType:
    """Imports a study module; raises ConfigError if this process has another of that name."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # the module imports something that is missing
            raise
        # For studies.mine, this process has imported another package `studies`, without `mine`.
        module = sys.modules[name.partition(".")[0]]
    if Path(str(module.__file__)).resolve() != path.resolve():
        raise ConfigError(
            f"{path}: cannot be imported as {name}, since this process has {module.__file__} under "
            "that name; run it in a new process"
        )
    return module


@dataclass(frozen=True)
class _ModuleName:
    """The name of a module, as in `python -m NAME`, and the folder from which it is imported."""

    name: str
    folder: Path


def _name_module(path: Path) -> _ModuleName:
    """Returns the name by which the file of a module is imported: studies.mine for studies/mine.py.

    The name begins below the working directory, or above the packages that contain the file.
    """
    folder = above_packages(path)
    working_folder = Path.cwd().resolve()
    is_in_package = folder != path.parent  # its folder has an __init__.py
    if not is_in_package and path.is_relative_to(working_folder):
        folder = working_folder
    parts = path.relative_to(folder).with_suffix("").parts
    return _ModuleName(".".join(parts), folder)


# Configs that exist only in Python


def _write_config(config: DictConfig, overrides: Sequence[str]) -> Invocation:
    """Writes a composed config below its run directory, where the workers read it.

    Each group becomes a separate file, so that overrides and spaces can choose other options.
    Their names are entries of the defaults list: the configs that Hydra merges into the primary
    one.
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
    defaults.append("_self_")  # stands for the primary config: merged last, its values win
    primary = {"defaults": defaults, **sections}
    return write_sections(primary, _find_run_dir(config, overrides), groups)


def write_sections(
    primary: Mapping[str, object],
    run_dir: Path,
    groups: Mapping[str, Mapping[str, object]] | None = None,
) -> Invocation:
    """Writes a primary config below its run directory, where the workers read it.

    The files get a folder that is named after a digest of them, so that they replace no other
    config. A study that has already run in the directory needs its own: the new config may still be
    refused, since it is of another definition.

    Args:
        groups: for each group, the section that becomes its option `given`.

    Raises:
        ConfigError: a value has a password, or the directory cannot be written to.
    """
    check_run_dir(str(run_dir))
    configs = {WRITTEN: primary}  # by the name of their file
    sections = dict(primary)
    for group, option in (groups or {}).items():
        configs[f"{group}/{WRITTEN}"] = option
        sections[group] = option
    refuse_passwords([f"{key}={value}" for key, value in flatten(sections)])
    texts = {name: as_yaml(config) for name, config in configs.items()}
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:DIGEST_LENGTH]
    folder = run_dir / ".hydra" / WRITTEN / digest
    for name, text in texts.items():
        path = folder / f"{name}.yaml"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text)
        except OSError as error:
            raise ConfigError(
                explain_failure(error, config_path=str(folder), config_name=WRITTEN, argv=())
            ) from None
    return _invoke_file(folder / f"{WRITTEN}.yaml")


def _find_run_dir(config: DictConfig, overrides: Sequence[str]) -> Path:
    """Returns the run directory of a config, with the overrides that change it.

    The run directory may contain the study's name, as in `runs/${study.name}`.
    """
    assignments = []
    for argument in overrides:
        override = Override.parse(argument)
        changes_run_dir = override.key in ("run_dir", "study.name")
        if changes_run_dir and not override.deletes:
            assignments.append(f"{override.key}={override.value}")
    try:
        merged = OmegaConf.merge(config, OmegaConf.from_dotlist(assignments))
        return Path(str(merged.run_dir))
    except OmegaConfBaseException as error:
        message = " ".join(str(error).split())
        raise ConfigError(f"run_dir: {message}") from None


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


def list_module_folders() -> list[str]:
    """Returns the folders of this process's module path that another interpreter would lack.

    They are all but those of Python itself and of its installed packages.
    """
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    python_folders = [Path(sysconfig.get_path(kind)) for kind in kinds]
    folders = []
    for entry in sys.path:
        folder = Path(entry).absolute()
        belongs_to_python = any(folder.is_relative_to(parent) for parent in python_folders)
        if folder.exists() and not belongs_to_python:
            folders.append(str(folder))
    return folders
