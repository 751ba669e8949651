"""A study that Python code runs: which config it has, and Hydra set up for it as for a command."""

import importlib
import os
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from studyloom.config.compose import restored_hydra
from studyloom.config.main import arguments, compose_mistakes
from studyloom.config.passwords import EVENTS, JSON, NOTIFY, VARIABLES
from studyloom.config.registration import register
from studyloom.config.schema import Config, unknown_keys
from studyloom.errors import ConfigError, LaunchError, wants_tracebacks
from studyloom.files import write_whole
from studyloom.text import has_password

Result = TypeVar("Result")
# The groups of a study. A composed config has lost which option it was composed of.
GROUPS = (
    *("data", "model", "optimizer", "scheduler", "loss", "space"),
    *("sampler", "pruner", "storage", "launcher"),
)
GIVEN = "given"  # the name of a DictConfig that was written to files, and of its options
_running = threading.Lock()  # Hydra's state and the environment belong to the whole process


@dataclass(frozen=True)
class Invocation:
    """A study to be run by this process.

    Args:
        config_dir: the folder of the primary config.
        config_name: its name there, without `.yaml`.
        program: what a Python interpreter is given to run the same study as a command.
        root: the folder from which the modules of the study are imported, if it has any.
        environment: variables that the config reads.
    """

    config_dir: Path
    config_name: str
    program: tuple[str, ...]
    root: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def call(
        self, overrides: Sequence[str], task: Callable[[DictConfig, tuple[str, ...]], Result]
    ) -> Result:
        """Composes the config and calls a function with it, as the decorator `hydra_main` does.

        Hydra's state, the environment and the module path are afterwards as they were.

        Args:
            overrides: Hydra's, such as study.trials=50.
            task: gets the config, and the arguments of a command that composes the same.

        Raises:
            ConfigError: all mistakes of the overrides, or the config does not compose.
            LaunchError: this process runs a study already.
        """
        check_overrides(overrides)
        if not _running.acquire(blocking=False):
            raise LaunchError(
                "this process runs a study already, and can run one at a time; "
                "start this one in a process of its own"
            )
        try:
            with (
                restored_environment(*VARIABLES.values(), EVENTS, NOTIFY, JSON, "PYTHONPATH"),
                restored_hydra(),
                module_path(self.root),
            ):
                os.environ.update(self.environment)
                os.environ["PYTHONPATH"] = os.pathsep.join(own_module_path())  # for the workers
                return self._compose_and_call(arguments(overrides), task)
        finally:
            _running.release()

    def _compose_and_call(
        self, argv: list[str], task: Callable[[DictConfig, tuple[str, ...]], Result]
    ) -> Result:
        results: list[Result] = []
        errors: list[Exception] = []

        def job(cfg: DictConfig) -> None:
            try:
                if mistakes := unknown_keys(cfg):
                    raise ConfigError(mistakes)
                results.append(task(cfg, tuple(argv)))
            except Exception as error:  # past Hydra, which would print it
                errors.append(error)

        register()
        try:
            hydra.initialize_config_dir(str(self.config_dir), version_base=None)
            app = GlobalHydra.instance().hydra
            assert app is not None
            app.run(self.config_name, job, argv, with_log_configuration=False)
        except Exception as error:  # of composing
            folder, name = str(self.config_dir), self.config_name
            mistakes = compose_mistakes(error, folder, name, argv)
            raise ConfigError(mistakes) from (error if wants_tracebacks() else None)
        if errors:
            raise errors[0]
        return results[0]


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises ConfigError if something is not an override, such as an option of a command."""
    if isinstance(overrides, str):
        raise ConfigError(
            [f"overrides must be a list, such as ['study.trials=50']; got {overrides!r}"]
        )
    wrong = [item for item in overrides if not isinstance(item, str) or item.startswith("-")]
    if wrong:
        raise ConfigError(
            [
                f"overrides must be Hydra's, such as 'study.trials=50'; got {item!r}"
                for item in wrong
            ]
        )


def invocation_of(source: str | Path | DictConfig, overrides: Sequence[str] = ()) -> Invocation:
    """Finds the study that Python code names.

    Args:
        source: a page, such as studies/mine.py; a primary config, such as conf/mine.yaml; or a
            composed config.
        overrides: of the study; they may name the run directory.

    Raises:
        ConfigError: there is no such file, it is neither, or the page decorates no function.
    """
    if isinstance(source, DictConfig):
        return _of_config(source, overrides)
    path = Path(source)
    if path.suffix not in (".py", ".yaml"):
        raise ConfigError(
            [
                "a study must be a page such as studies/mine.py, a primary config such as "
                f"conf/mine.yaml, or a DictConfig; got {source}"
            ]
        )
    if not path.is_file():
        raise ConfigError([f"{path}: there is no such file in {Path.cwd()}"])
    return _of_page(path) if path.suffix == ".py" else _of_file(path)


def _of_file(path: Path, environment: Mapping[str, str] | None = None) -> Invocation:
    absolute = path.absolute()
    # A relative path also holds in the copy of the folder that another host may have.
    near = absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute
    program = ("-m", "studyloom", "run", str(near))
    return Invocation(absolute.parent, path.stem, program, None, environment or {})


def _of_page(path: Path) -> Invocation:
    root, name = _module_of(path.resolve())
    with module_path(root):
        module = _import_page(path, name)
    config_path, config_name = _decorated(module, path)
    return Invocation(path.resolve().parent / config_path, config_name, ("-m", name), root)


def _import_page(path: Path, name: str) -> ModuleType:
    """Imports a page; raises ConfigError if this process has another module or package there."""
    try:
        module = importlib.import_module(name)
        origin = module.__file__
    except ModuleNotFoundError as error:
        if error.name != name:  # something that the page imports
            raise
        origin = sys.modules[name.partition(".")[0]].__file__
    if origin is None or Path(origin).resolve() != path.resolve():
        raise ConfigError(
            [
                f"{path}: cannot be imported as {name}, since this process has {origin} under that "
                "name; run it in a process of its own"
            ]
        )
    return module


def _decorated(module: ModuleType, path: Path) -> tuple[str, str]:
    """Returns the config_path and config_name of the function that `hydra_main` decorates."""
    functions: dict[str, Any] = {
        name: value
        for name, value in vars(module).items()
        if hasattr(value, "config_path") and value.__module__ == module.__name__
    }
    function = functions.get("main") if len(functions) > 1 else next(iter(functions.values()), None)
    if function is None:
        many = "several functions are" if functions else "no function is"
        raise ConfigError(
            [f"{path}: {many} decorated with studyloom.config.hydra_main; a page has one, `main`"]
        )
    return str(function.config_path), str(function.config_name)


def _module_of(path: Path) -> tuple[Path, str]:
    """Returns the folder from which a page is imported, and its name, as in `python -m NAME`."""
    folder = path.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    here = Path.cwd().resolve()
    if folder == path.parent and path.is_relative_to(here):  # a folder without __init__.py
        folder = here
    return folder, ".".join(path.relative_to(folder).with_suffix("").parts)


def _of_config(config: DictConfig, overrides: Sequence[str]) -> Invocation:
    """Writes a composed config below its run directory, from where the workers compose it.

    Each group becomes a file of its own, so that overrides and spaces can choose other options.
    """
    if OmegaConf.get_type(config) is not Config:
        raise ConfigError(unknown_keys(config))
    environment: dict[str, str] = {}
    sections: Any = OmegaConf.to_container(config, resolve=False)
    sections.pop("hydra", None)
    for key, variable in VARIABLES.items():
        *above, name = key.split(".")
        section = sections
        for part in above:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict) and has_password(str(section.get(name))):
            environment[variable] = str(section[name])
            section[name] = f"${{oc.env:{variable}}}"
    groups = {name: sections.pop(name) for name in GROUPS if isinstance(sections[name], dict)}
    folder = _run_dir(config, overrides) / ".hydra" / GIVEN
    for name, section in groups.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_whole(folder / name / f"{GIVEN}.yaml", OmegaConf.to_yaml(OmegaConf.create(section)))
    quiet = [{f"override hydra/{name}": "none"} for name in ("job_logging", "hydra_logging")]
    options = [{name: GIVEN} for name in groups]
    primary = {"defaults": ["studyloom", *options, "_self_", *quiet]} | sections
    write_whole(folder / f"{GIVEN}.yaml", OmegaConf.to_yaml(OmegaConf.create(primary)))
    return _of_file(folder / f"{GIVEN}.yaml", environment)


def _run_dir(config: DictConfig, overrides: Sequence[str]) -> Path:
    """Returns the run directory of a composed config, with the overrides that change it."""
    changes = [item for item in overrides if item.startswith(("run_dir=", "study.name="))]
    try:
        return Path(str(OmegaConf.merge(config, OmegaConf.from_dotlist(changes)).run_dir))
    except OmegaConfBaseException as error:
        raise ConfigError([f"run_dir: {' '.join(str(error).split())}"]) from None


@contextmanager
def restored_environment(*names: str) -> Iterator[None]:
    """Gives variables of the environment their values back after the body."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def module_path(root: Path | None) -> Iterator[None]:
    """Has modules of a folder imported while the body runs."""
    added = root is not None and str(root) not in sys.path
    if added:
        sys.path.insert(0, str(root))
    try:
        yield
    finally:
        if added:
            sys.path.remove(str(root))


def own_module_path() -> list[str]:
    """Returns the folders of modules that another interpreter does not know by itself."""
    known = [
        Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")
    ]
    paths = [Path(entry).absolute() for entry in sys.path]
    return [
        str(path)
        for path in paths
        if path.exists() and not any(path.is_relative_to(folder) for folder in known)
    ]
