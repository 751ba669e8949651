"""From Hydra's config to objects. The only module that imports Hydra.

A primary config begins its defaults list with `studyloom` to take in the schema of studyloom's own sections. The other
groups (data, model, optimizer, …) hold a `_target_` and its arguments, and any class can stand there.
"""

import functools
import gc
import inspect
import os
import pickle
import re
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NoReturn

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigTypeError, InterpolationResolutionError, OmegaConfBaseException
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from studyloom import trust
from studyloom.mistakes import find_mistakes, given_by, paragraph
from studyloom.mistakes import group_options as group_options
from studyloom.schema import SCHEMA, check_name, strangers
from studyloom.schema import ConfigError as ConfigError
from studyloom.space import nearest

EMBEDDED = "embedded_postgres:///"  # how the URL of a server begins that a run has below its folder


def _run_dir(name: str, run_dir: str) -> str:
    """Hydra makes its run directory before any code of ours runs, so the name is checked where the path is resolved."""
    if mistake := check_name(str(name)):
        raise ConfigError([mistake])
    return run_dir


OmegaConf.register_new_resolver("studyloom.run_dir", _run_dir, replace=True)
HIDDEN = {"storage.url": "STUDYLOOM_STORAGE", "study.from": "STUDYLOOM_FROM"}  # where a URL with a password moves to
# Of this process: what may be named where the primary config is from elsewhere; empty where it is the page's own.
_trusted: list[Sequence[str]] = []
ConfigStore.instance().store("studyloom", SCHEMA)

PACKAGE = Path(__file__).resolve().parent
# studyloom's own config groups: in the wheel they lie in the package, in a checkout at its top, installed or not.
GROUPS = next(
    folder for folder in (PACKAGE / "conf", PACKAGE.parent.parent / "conf") if (folder / "optimizer").is_dir()
)


class OwnGroups(SearchPathPlugin):
    """Lets every config of this process take options from `GROUPS`; what a study's own folders have comes first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("studyloom", f"file://{GROUPS}")


Plugins.instance().register(OwnGroups)


def hydra_main(config_path: str, config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """`hydra.main`, with mistakes told all at once and exit code 2, and with `--dry-run`.

    `HYDRA_FULL_ERROR=1` shows the traceback instead.
    """

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        @hydra.main(version_base=None, config_path=config_path, config_name=config_name)
        @functools.wraps(task)
        def main(cfg: DictConfig) -> None:
            if not told:
                del os.environ["HYDRA_FULL_ERROR"]
            if mistakes := strangers(cfg):
                give_up(mistakes)
            task(cfg)

        told = full_errors()

        @functools.wraps(task)
        def run() -> None:
            gc.freeze()  # what is imported stays: no collection goes through it again, 0.8 s at the end alone
            sys.argv[1:] = arguments(sys.argv[1:])
            if sweeps := {"-m", "--multirun"}.intersection(sys.argv[1:]):
                give_up([f"{sweeps.pop()}: a study is a search already; what it searches stands in space"])
            if foreign := elsewhere(config_path, config_name, sys.argv[1:]):
                _trusted.append(trusted_by(sys.argv[1:]))
                try:
                    trust.load(foreign, _trusted[-1])
                except (ConfigError, OSError) as error:
                    give_up(getattr(error, "mistakes", [str(error)]))
            if not told:  # Hydra's own report exits with 1, so until it has composed it is asked to raise
                os.environ["HYDRA_FULL_ERROR"] = "1"
            try:
                main()
            except Exception as error:  # from composing; what the task raises, Hydra reports
                if told:
                    raise
                if isinstance(error, OSError) and not isinstance(error, HydraException):
                    give_up([f"run_dir: {error.strerror}: {error.filename}; name another with run_dir=…"])
                give_up(find_mistakes(config_path, config_name, sys.argv[1:]) or [paragraph(error)])
            finally:
                _trusted.clear()

        return run

    return decorate


def give_up(mistakes: Sequence[str]) -> NoReturn:
    """Says what is wrong in the configuration and ends the process."""
    sys.stderr.write("".join(f"error: {mistake}\n" for mistake in mistakes))
    sys.exit(2)


def full_errors() -> bool:
    """Whether tracebacks are wanted, Hydra's way."""
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def arguments(argv: Sequence[str]) -> list[str]:
    """The command line as Hydra shall see it.

    A storage URL with a password moves to the environment: Hydra writes its overrides to files, and workers are started
    with them, where `ps` would show them.
    """
    result = []
    for argument in argv:
        name, _, value = argument.partition("=")
        if argument == "--dry-run":
            result += ["study.dry_run=true"]
        elif (kept := HIDDEN.get(name.lstrip("+"))) and has_password(value):
            os.environ[kept] = value.strip("'\"")
            result += [f"{name}=${{oc.env:{kept}}}"]
        else:
            result.append(argument)
    if any(re.fullmatch(r"study\.dry_run=(true|True|1|yes|on)", argument) for argument in result):
        result += ["hydra.output_subdir=null", "hydra.run.dir=."]  # a dry run leaves nothing behind
    return result


def has_password(url: str) -> bool:
    try:
        address = make_url(url.strip("'\""))
        return address.password is not None or "password" in address.query
    except ArgumentError:
        return False


def elsewhere(config_path: str, config_name: str, argv: Sequence[str]) -> Path | None:
    """The primary config, where it lies in a folder that the command line names: another person may have written it."""
    given = given_by(config_path, config_name, argv)
    name = Path(given.config_name).with_suffix(".yaml")
    folders = (given.config_dir, given.config_path)
    found = next((Path(folder) / name for folder in folders if (Path(folder) / name).is_file()), None)
    return None if found is None or found.resolve().is_relative_to(Path(config_path).resolve()) else found


def trusted_by(argv: Sequence[str]) -> list[str]:
    """The packages that `trust=[…]` names on a command line; a config from elsewhere cannot name its own."""
    value = next((a.partition("=")[2] for a in reversed(argv) if a.lstrip("+").startswith("trust=")), "")
    return [name for name in re.split(r"[\s,]+", value.strip("'\"[] ")) if name]


@dataclass(frozen=True)
class Composer:
    """Composes the user's own command again with other group choices.

    Overrides of the user's that name a key which the other choice does not have (`model.hidden` when the trial chose a
    CNN) spoke of the user's own choice and are left out.
    """

    config_name: str
    overrides: tuple[str, ...]
    choices: Mapping[str, str]
    _cache: dict[frozenset[tuple[str, str]], DictConfig] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_hydra(cls) -> "Composer":
        """The composer of the command that is running, inside `hydra_main`."""
        config = HydraConfig.get()
        choices = {str(group): str(option) for group, option in config.runtime.choices.items()}
        # As typed: ${oc.env:…} in an override is neither resolved here nor shown.
        overrides: Any = OmegaConf.to_container(config.overrides.task, resolve=False)
        return cls(str(config.job.config_name), tuple(overrides), choices)

    def keep(self, config: DictConfig) -> None:
        """Takes the user's own config as it was composed, which need not be composed again."""
        self._cache[frozenset()] = config

    def compose(self, choices: Mapping[str, str]) -> DictConfig:
        """The config under other choices; composed once (about 70 ms) and shared, so copy it before setting values.

        Raises:
            ConfigError: an option that does not compose.
        """
        other = {group: option for group, option in choices.items() if self.choices.get(group) != option}
        wanted = frozenset(other.items())
        if wanted not in self._cache:
            groups = [f"{group}={option}" for group, option in other.items()]
            own = [override for override in self.overrides if _key(override) not in other]
            inside = [override for override in own if _key(override).startswith(tuple(f"{group}/" for group in other))]
            try:
                config = hydra.compose(self.config_name, [o for o in own if o not in inside] + groups)
                lost = [o for o in inside if re.match(r"\+\w", o) or not has_key(config, _key(o).replace("/", "."))]
                if len(lost) < len(inside):
                    config = hydra.compose(self.config_name, [o for o in own if o not in lost] + groups)
            except Exception as error:
                raise ConfigError([f"{', '.join(groups)}: {paragraph(error)}"]) from error
            self._cache[wanted] = config
        return self._cache[wanted]


def _key(override: str) -> str:
    """What an override sets, as a path: `model/hidden` for `++model.hidden=[8]`."""
    return override.partition("=")[0].lstrip("+~").replace(".", "/")


def has_key(config: DictConfig, key: str) -> bool:
    """Whether a key is in a composed config, be its value null."""
    parent, _, name = key.rpartition(".")
    node = _node(config, parent)
    return isinstance(node, DictConfig) and name in node


def keys(config: DictConfig, key: str) -> list[str]:
    """The keys below a key; at the empty key, those of the config."""
    node = _node(config, key)
    return [str(name) for name in node] if isinstance(node, DictConfig) else []


def get(config: DictConfig, key: str) -> Any:
    """The value at a key as plain Python, None where there is none."""
    node = _node(config, key)
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _node(config: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(config, key) if key else config
    except ConfigTypeError:  # the key goes on below a list
        return None


def with_values(config: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """A copy with values set by key (about 2 ms, against 70 ms to compose)."""
    copy: DictConfig = pickle.loads(pickle.dumps(config))  # config.copy() takes 7 ms for the same
    for key, value in values.items():
        OmegaConf.update(copy, key, value, merge=False)
    return copy


def plain(config: DictConfig, *sections: str) -> dict[str, Any]:
    """Sections of a config as plain values, interpolations resolved; without those that are not there."""
    found = {section: get(config, section) for section in sections}
    if isinstance(objective := found.get("objective"), dict):
        for name in ("_target_", "constraints"):  # what is to be read again names no target, rather than none
            if objective.get(name) is None:
                objective.pop(name, None)
    return {section: value for section, value in found.items() if value is not None}


def without(section: DictConfig, key: str) -> DictConfig:
    """A copy of a section that lacks a key."""
    copy = section.copy()
    with open_dict(copy):
        copy.pop(key, None)
    return copy


def build(section: DictConfig, **given: Any) -> Any:
    """What a section's `_target_` makes of its arguments, and of those `given` that it has a parameter for.

    Raises:
        ConfigError: the section has no `_target_`, or one that cannot be imported, or, where the primary config is from
            elsewhere, one that is not trusted.
    """
    key = section._get_full_key(None)
    if _trusted:
        trust.check({key: OmegaConf.to_container(section, resolve=True)}, _trusted[-1])
    if "_target_" not in section:
        raise ConfigError([f"{key}: no _target_ says which class or function this is for"])
    name = section["_target_"]
    try:
        target = resolve_name(name)
    except Exception as error:  # whatever a user's module raises when it is imported
        hint = nearest(error.name, dir(error.obj)) if isinstance(error, AttributeError) else ""
        raise ConfigError([f"{key}._target_={name}: {words(error)}{hint}"]) from error
    accepted = inspect.signature(target).parameters
    bound = {name: value for name, value in given.items() if name in accepted and name not in section}
    # Bound by us and not by Hydra, which turns what it is given into config nodes.
    make = instantiate(section, _convert_="all", _partial_=True)
    if section.get("_partial_"):  # as it is: Hydra's wrapper looks at each call anew, 0.08 ms of every step of training
        return functools.partial(make.func, *make.args, **make.keywords, **bound)
    return make(**bound)


def storage_url(config: DictConfig | ListConfig) -> str | None:
    """The storage URL of a config, from its environment or its file; None where it names neither.

    Raises:
        ConfigError: the file cannot be read, or others may read it too.
    """
    name = OmegaConf.select(config, "storage.file")
    if name is None:
        url = OmegaConf.select(config, "storage.url")
        return None if url is None else str(url)
    path = Path(name).expanduser()
    try:
        with path.open() as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            url = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"storage.file: {path} cannot be read: {getattr(error, 'strerror', 'no text')}"]) from None
    if mode & 0o077:
        raise ConfigError(
            [f"storage.file: others may read {path} (mode {mode:04o}), and so its password; chmod 600 it"]
        )
    if not url:
        raise ConfigError([f"storage.file: {path} is empty; put postgresql://user:password@host/database into it"])
    return url


def read_run(run_dir: Path) -> tuple[str, str]:
    """The storage URL and the name of the study that runs in a folder, from what Hydra wrote there.

    Raises:
        ConfigError: no study ran there, or its database is not said any longer.
    """
    written = run_dir / ".hydra" / "config.yaml"
    if not written.is_file():
        raise ConfigError([f"{run_dir}: no study has run there; a run directory holds .hydra/config.yaml"])
    config = OmegaConf.load(written)
    try:
        url = storage_url(config)
    except InterpolationResolutionError:  # the environment does not have it
        url = None
    # What lies in the folder is found from any working directory, and when the folder was moved.
    if url is not None and url.startswith(EMBEDDED):
        url = f"{EMBEDDED}{run_dir}/postgres"
    elif (database := run_dir / "study.db").exists():
        url = f"sqlite:///{database}"
    if url is None:
        raise ConfigError([f"{written}: names no storage.url; put the URL into STUDYLOOM_STORAGE"])
    return url, str(OmegaConf.select(config, "study.name"))


@contextmanager
def again(run_dir: Path, *overrides: str) -> Iterator[DictConfig]:
    """The config of the command that ran in a folder, composed once more from today's files, and Hydra set up for it.

    Raises:
        ConfigError: no study ran there, or its command does not compose any longer.
    """
    written = run_dir / ".hydra" / "hydra.yaml"
    if not written.is_file():
        raise ConfigError([f"{run_dir}: no study has run there; a run directory holds .hydra/hydra.yaml"])
    was = OmegaConf.load(written).hydra
    folders = {
        str(source.provider): str(source.path) for source in was.runtime.config_sources if source.schema == "file"
    }
    task: Any = OmegaConf.to_container(was.overrides.task, resolve=False)
    changed = tuple(f"{override.partition('=')[0]}{end}" for override in overrides for end in ("=", "."))
    kept = [str(override) for override in task if not str(override).lstrip("+~").startswith(changed)]
    search = [f"hydra.searchpath=[file://{folders['command-line']}]"] if "command-line" in folders else []
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(folders["main"], version_base=None):
            given = [*kept, f"run_dir={run_dir}", *overrides, *search]
            cfg = hydra.compose(str(was.job.config_name), given, return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            with open_dict(cfg):
                del cfg["hydra"]
            yield cfg
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([f"{run_dir}: its command does not compose any longer: {paragraph(error)}"]) from error


def words(error: BaseException) -> str:
    """An exception as one line; Hydra's wrapping of a constructor's error is taken off."""
    while isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")


def write_yaml(path: Path, config: Mapping[str, Any], header: str) -> None:
    """Writes a config beside and renames, so that a reader never sees half a file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(header + OmegaConf.to_yaml(OmegaConf.create(dict(config))))
    beside.replace(path)
