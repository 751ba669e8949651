"""From a command line, or from Python, to the config of a study.

`hydra_main` decorates a function of a study module, which is a command; an `Invocation` is the same
study, run by Python code. All errors of a command line are reported together.
"""

import functools
import gc
import hashlib
import importlib
import inspect
import json
import os
import re
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from studyloom import processes
from studyloom._version import __version__
from studyloom.config.compose import restored_hydra
from studyloom.config.overrides import (
    STUDY_GROUPS,
    VERSION_BASE,
    Override,
    describe_compose_error,
    find_override_errors,
    study_help,
)
from studyloom.config.runs import config_folders, read_written
from studyloom.config.schema import Config, unknown_keys
from studyloom.config.sources import GROUPS, check_run_dir, composing_once, register
from studyloom.config.study_config import StudyConfig
from studyloom.config.trust import TrustRules, in_force, read_yaml
from studyloom.config.values import flatten, written_values
from studyloom.environment import EVENTS, JSON, NOTIFY, TRACEBACKS, WORKER
from studyloom.error_display import print_errors, wants_tracebacks
from studyloom.errors import ConfigError, LaunchError
from studyloom.files import write_whole
from studyloom.text import mask_passwords
from studyloom.user_code.importing import end_import_at_study, importing_module, seeding_imports

T = TypeVar("T")
Task = Callable[[DictConfig], None]
Source = str | Path | DictConfig  # what names a study: a module, a primary config, or a config
SWEEP = re.compile(r"-m|--multirun|\+*hydra\.mode=(RunMode\.)?MULTIRUN", re.IGNORECASE)
QUIET = ("study.dry_run", "hydra")
GIVEN = "given"  # the name of a DictConfig that was written to files, and of its options
_running = threading.Lock()  # Hydra's state and the environment belong to the whole process


def hydra_main(config_path: str, config_name: str) -> Callable[[Task], Callable[[], None]]:
    """Decorates a task as `hydra.main` does, and adds studyloom's own options, such as `--dry-run`.

    All errors of a command line are printed together, and the command ends with exit code 2.
    `HYDRA_FULL_ERROR=1` shows the traceback instead.

    Args:
        config_path: the folder of the study's configs; if relative, from that of the module.
        config_name: the name of its primary config, without `.yaml`.
    """
    register()
    processes.collect_as_usual()
    processes.restore_interrupt_handler()

    def decorate(task: Task) -> Callable[[], None]:
        folder = folder_of_configs(task, config_path)
        tracebacks = wants_tracebacks()

        @hydra.main(config_path=folder, config_name=config_name, **VERSION_BASE)
        @functools.wraps(task)
        def main(cfg: DictConfig) -> None:
            if not tracebacks:
                TRACEBACKS.take()
            if errors := errors_in(cfg):
                exit_with_errors(*errors)
            with seeding_imports(cfg.study.seed):
                task(cfg)

        @functools.wraps(task)
        @processes.ending_at_interrupt()
        def run() -> None:
            end_import_at_study()
            processes.open_streams()
            gc.freeze()  # later collections skip the imported modules: 0.8 s at exit
            processes.collect_rarely()  # until trials begin
            try:
                argv = sys.argv[1:] = arguments(sys.argv[1:])
            except ConfigError as error:
                exit_with_errors(*error.errors)
            handle_early_options(task, folder, config_name, argv)
            with in_force(rules_of(argv, Path(folder))), composing_once():
                if not tracebacks:
                    # Hydra's own report exits with 1, so Hydra raises until the config is complete.
                    os.environ[TRACEBACKS.name] = "1"
                try:
                    main()
                    sys.stdout.flush()  # of what Hydra prints, such as --cfg
                except BrokenPipeError:  # the reader of the pipe has gone
                    processes.discard_output()
                except Exception as error:  # of composing; Hydra reports what the task raises
                    if tracebacks:
                        raise
                    exit_with_errors(*compose_errors(error, folder, config_name, argv))

        vars(run).update(config_path=folder, config_name=config_name)  # for `studyloom.run`
        return run

    return decorate


def errors_in(cfg: DictConfig) -> list[str]:
    """Returns unknown keys, and a setting that puts files of the study outside of run_dir."""
    errors = unknown_keys(cfg)
    if HydraConfig.get().job.chdir:
        words = "leave it out; run_dir=… says where the files of a study are"
        errors.append(f"hydra.job.chdir=true: {words}")
    return errors


def folder_of_configs(task: Task, config_path: str) -> str:
    """Returns the folder of a module's configs, and makes modules that they name importable.

    `python studies/mine.py` lets Python look for modules only in studies/; those that configs name,
    such as studies.mine, lie in the folder above.
    """
    module = Path(task.__code__.co_filename).resolve()
    main = sys.modules["__main__"]
    if task.__module__ == "__main__" and getattr(main, "__spec__", None) is None:
        root = _above_packages(module)
        if root != module.parent and str(root) not in sys.path:
            sys.path.insert(0, str(root))
    return str((module.parent / config_path).resolve())


def _above_packages(module: Path) -> Path:
    """Returns the folder above the outermost package of a module."""
    return next(each for each in module.parents if not (each / "__init__.py").is_file())


def handle_early_options(
    task: Task, config_path: str, config_name: str, argv: Sequence[str]
) -> None:
    """Handles `--version` and the like before torch is imported, or prints that a study begins."""
    if "--version" in argv:
        processes.print_at_once(f"studyloom {__version__}")
        sys.exit()
    if {"--help", "-h"} & {*argv}:
        about = task.__doc__ or inspect.getdoc(inspect.getmodule(task)) or ""
        shown = [argument for argument in argv if argument not in ("--help", "-h")]
        processes.print_at_once(study_help(about, config_path, config_name, shown))
        sys.exit()
    if sweeps := [argument for argument in argv if SWEEP.fullmatch(argument)]:
        exit_with_errors(
            f"{sweeps[0]}: a study is a search already; write what it searches into a space, such "
            "as conf/space/mine.yaml, and choose that with space=mine"
        )
    # Output of Hydra's own options has no line before it.
    quiet = (each for each in argv if each[0:1] == "-" or Override.parse(each).is_within(*QUIET))
    is_read = not JSON.get() and WORKER.get() is None
    if is_read and not any(quiet):
        processes.print_at_once(f"{config_name}: starting")


def compose_errors(
    error: Exception, config_path: str, config_name: str, argv: Sequence[str]
) -> list[str]:
    """Explains, in lines, why Hydra could not compose the config or create run_dir."""
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return [f"run_dir: {error.strerror}: {error.filename}; name another with run_dir=…"]
    if isinstance(error, ConfigError):  # of an untrusted file
        return list(error.errors)
    errors = find_override_errors(config_path, config_name, argv)
    return errors or [describe_compose_error(error)]


def exit_with_errors(*errors: str) -> NoReturn:
    """Prints the errors of a configuration without a traceback, and exits with code 2."""
    print_errors(ConfigError(errors))
    if JSON.get():
        reason = mask_passwords("\n".join(errors))
        print(json.dumps({"exit_code": 2, "reason": reason}), flush=True)
    sys.exit(2)


def arguments(argv: Sequence[str]) -> list[str]:
    """Rewrites a command line for Hydra, and moves output options to environment variables.

    Raises:
        ConfigError: an argument has a password, or an invalid address.
    """
    taken = take_outputs(argv)
    refuse_passwords(taken)
    return ["study.dry_run=true" if item == "--dry-run" else item for item in taken]


def refuse_passwords(argv: Sequence[str]) -> None:
    """Refuses a URL with a password, which Hydra would write to files and `ps` shows to everybody.

    Raises:
        ConfigError: an argument has one; the message does not show it.
    """
    for argument in argv:
        shown = re.sub(r"\$\{[\w.:]*\}", "", argument)  # a variable that holds one shows nothing
        if "://" in shown and mask_passwords(shown).replace("***", "") != shown:
            raise ConfigError(
                f"{Override.parse(argument).key}: must not have a password on a command line, "
                "which is stored in files; set storage=postgres and the environment variable "
                "STUDYLOOM_STORAGE to the URL, or put the password into ~/.pgpass"
            )


def take_outputs(argv: Sequence[str]) -> list[str]:
    """Moves `--events`, `--json` and `notify=` to the environment; returns the other arguments.

    Raises:
        ConfigError: an option lacks its value.
    """
    if "--json" in argv:  # first, since what is wrong with the others is a document too
        os.environ[JSON.name] = "1"
    rest: list[str] = []
    left = iter(argv)
    for argument in left:
        override = Override.parse(argument)
        if override.key == "--events":
            value = next(left, "-") if override.value is None else override.value
            if value.startswith("-"):
                raise ConfigError("--events needs a FILE, which gets a line of JSON an event")
            os.environ[EVENTS.name] = value
        elif override.key == "notify" and not override.deletes:
            os.environ[NOTIFY.name] = "\n".join(targets_of(override.value or ""))
        elif argument != "--json":
            rest.append(argument)
    return rest


def targets_of(raw: str) -> list[str]:
    """Returns the URLs and commands of `notify=…`: a single one, or a list in Hydra's syntax.

    Raises:
        ConfigError: it is a list that cannot be read. The message does not show it.
    """
    try:
        value = OverridesParser.create().parse_override(f"notify={raw}").value()
    except HydraException:  # an address may have any character
        value = raw.strip("'\"")
        if raw.startswith("["):
            raise ConfigError(
                "notify=[…]: cannot be read; quote each address: notify='[\"ntfy://topic\"]'"
            ) from None
    items: list[Any] = value if isinstance(value, list) else [value]
    if any(not isinstance(item, str) or "\n" in item for item in items if item is not None):
        raise ConfigError("notify: must be a URL of apprise, a command, or a list of these")
    return [str(item) for item in items if item]


def rules_of(argv: Sequence[str], folder: Path) -> TrustRules:
    """Returns the trust rules of a command line and of the folder of the study's own configs.

    Only the `trust=[…]` of the command line counts: an untrusted config must not trust itself.
    """
    values = [each.value or "" for each in map(Override.parse, argv) if each.key == "trust"]
    packages = re.findall(r"""[^\s,'"\[\]]+""", values[-1]) if values else ()
    return TrustRules((folder, GROUPS), tuple(packages))


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
        if not _running.acquire(blocking=False):
            raise LaunchError(
                "this process runs a study already, and can run one at a time; "
                "start this one in another process"
            )
        results: list[T] = []
        raised: list[BaseException] = []

        def job(cfg: DictConfig) -> None:
            try:
                if errors := errors_in(cfg):
                    raise ConfigError(errors)
                with seeding_imports(cfg.study.seed):
                    results.append(task(StudyConfig.of(cfg), tuple(argv)))
            except BaseException as error:  # past Hydra, which would print it
                raised.append(error)

        variables = restored_environment(EVENTS.name, NOTIFY.name, JSON.name, "PYTHONPATH")
        try:
            with variables, restored_hydra(), module_path(self.root):
                os.environ["PYTHONPATH"] = os.pathsep.join(own_module_path())  # for the workers
                argv = arguments(overrides)
                register()
                try:
                    hydra.initialize_config_dir(str(self.config_dir), **VERSION_BASE)
                    app = GlobalHydra.instance().hydra
                    assert app is not None
                    app.run(self.config_name, job, argv, with_log_configuration=False)
                except Exception as error:  # of composing
                    folder, name = str(self.config_dir), self.config_name
                    errors = compose_errors(error, folder, name, argv)
                    raise ConfigError(errors) from (error if wants_tracebacks() else None)
        finally:
            _running.release()
        if raised:
            raise raised[0]
        return results[0]


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises ConfigError for arguments that are not overrides, such as options of a command."""
    items = [None] if isinstance(overrides, str) else overrides
    if any(not isinstance(item, str) or item.startswith("-") for item in items):
        raise ConfigError(
            f"overrides must be a list of Hydra's, such as ['study.trials=50']; got {overrides!r}"
        )


def invocation_of(source: Source, overrides: Sequence[str] = ()) -> Invocation:
    """Finds the study that code names: a module, a primary config, one of ours, or a DictConfig.

    Args:
        overrides: may name the run directory.

    Raises:
        ConfigError: there is no such file, it is neither a module nor a config, or the module
            decorates no function.
    """
    end_import_at_study()
    if isinstance(source, DictConfig):
        return _of_config(source, overrides)
    ours = {file.stem: file for file in sorted(GROUPS.glob("*.yaml"))}
    path = ours.get(str(source), Path(source))
    if path.suffix not in (".py", ".yaml"):
        raise ConfigError(
            "a study must be a module such as studies/mine.py, a primary config such as "
            f"conf/mine.yaml, one of studyloom's ({', '.join(ours)}), or a DictConfig; got {source}"
        )
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file in {Path.cwd()}")
    return _of_study_module(path) if path.suffix == ".py" else _of_file(path)


def _of_file(path: Path) -> Invocation:
    absolute = path.absolute()
    # A relative path also holds in the copy of the folder that another host may have.
    near = absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute
    program = ("-m", "studyloom", "run", str(near))
    return Invocation(absolute.parent, path.stem, program)


def _of_study_module(path: Path) -> Invocation:
    root, name = _module_of(path.resolve())
    was_imported = name in sys.modules
    with module_path(root), importing_module(name):
        module = _import_study_module(path, name)
    if not was_imported:
        # The config may name it too: then it is imported again, as in a command, once the seed of
        # the study is known.
        sys.modules.pop(name, None)
    functions = [
        value
        for value in vars(module).values()
        if hasattr(value, "config_path") and value.__module__ == module.__name__
    ]
    if len(functions) != 1:
        raise ConfigError(
            f"{path}: must have one function decorated with studyloom.config.hydra_main, such as "
            f"`main`; it has {len(functions)}"
        )
    return Invocation(Path(functions[0].config_path), functions[0].config_name, ("-m", name), root)


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
    folder = _above_packages(path)
    here = Path.cwd().resolve()
    if folder == path.parent and path.is_relative_to(here):  # a folder without __init__.py
        folder = here
    return folder, ".".join(path.relative_to(folder).with_suffix("").parts)


def _of_config(config: DictConfig, overrides: Sequence[str]) -> Invocation:
    """Writes a DictConfig below its run directory, where the workers read it.

    Each group becomes a separate file, so that overrides and spaces can choose other options.
    """
    if OmegaConf.get_type(config) is not Config:
        raise ConfigError(unknown_keys(config))
    sections: Any = OmegaConf.to_container(config, resolve=False)
    sections.pop("hydra", None)
    groups = {name: sections.pop(name) for name in STUDY_GROUPS if isinstance(sections[name], dict)}
    options = [{name: GIVEN} for name in groups]
    primary = {"defaults": ["studyloom", *options, "_self_"]} | sections
    return of_sections(primary, _run_dir(config, overrides), groups)


def of_sections(
    primary: Mapping[str, Any], run_dir: Path, groups: Mapping[str, Any] | None = None
) -> Invocation:
    """Writes a primary config below its run directory, where the workers read it.

    Args:
        groups: the option `given` of each group.

    Raises:
        ConfigError: a value has a password, or the directory cannot be written to.
    """
    check_run_dir(str(run_dir))
    refuse_passwords([f"{key}={value}" for key, value in flatten({**primary, **(groups or {})})])
    texts = {GIVEN: primary} | {f"{name}/{GIVEN}": each for name, each in (groups or {}).items()}
    texts = {name: OmegaConf.to_yaml(OmegaConf.create(each)) for name, each in texts.items()}
    # By its content: a study that is there already keeps its own until this is accepted.
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]
    folder = run_dir / ".hydra" / GIVEN / digest
    for name, text in texts.items():
        path = folder / f"{name}.yaml"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text)
        except OSError as error:
            raise ConfigError(compose_errors(error, "", GIVEN, ())) from None
    return _of_file(folder / f"{GIVEN}.yaml")


def _run_dir(config: DictConfig, overrides: Sequence[str]) -> Path:
    """Returns the run directory of a config, with the overrides that change it."""
    parsed = [each for each in map(Override.parse, overrides) if not each.deletes]
    names = ("run_dir", "study.name")
    changes = [f"{each.key}={each.value}" for each in parsed if each.key in names]
    try:
        return Path(str(OmegaConf.merge(config, OmegaConf.from_dotlist(changes)).run_dir))
    except OmegaConfBaseException as error:
        raise ConfigError(f"run_dir: {' '.join(str(error).split())}") from None


def read_given(run_dir: Path) -> dict[str, Any]:
    """Reads the primary config that `of_sections` wrote for a run directory.

    Raises:
        ConfigError: the study of the run directory has another config.
    """
    former = read_written(run_dir, "hydra.yaml").get("hydra")
    if former is None or former.job.config_name != GIVEN:
        raise ConfigError(f"{run_dir}: its study is not one of studyloom.search; it has a config")
    path = Path(config_folders(former)["main"]) / f"{GIVEN}.yaml"
    sections: dict[str, Any] = written_values(read_yaml(path, trusted=True))
    return sections


@contextmanager
def restored_environment(*names: str) -> Iterator[None]:
    """Restores variables of the environment after the body."""
    before = {name: os.environ[name] for name in names if name in os.environ}
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextmanager
def module_path(root: Path | None) -> Iterator[None]:
    """Adds a folder to the module path while the body runs."""
    added = [] if root is None or str(root) in sys.path else [str(root)]
    sys.path[:0] = added
    try:
        yield
    finally:
        for folder in added:
            sys.path.remove(folder)


def own_module_path() -> list[str]:
    """Returns the module folders of this process that another interpreter lacks."""
    known = [
        Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")
    ]
    paths = [Path(entry).absolute() for entry in sys.path]
    return [
        str(path)
        for path in paths
        if path.exists() and not any(path.is_relative_to(folder) for folder in known)
    ]
