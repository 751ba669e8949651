"""Composes configs: studyloom's additions to Hydra, and the stored command of a run directory."""

import functools
import pickle
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra

# Hydra has no public way to replace its sources of configs: `Plugins.register` ignores a second
# source of a scheme, and sources of `hydra.searchpath` always have the scheme `file`.
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import (
    ImportlibResourcesConfigSource,
)
from hydra._internal.core_plugins.structured_config_source import (
    StructuredConfigSource as HydrasStructuredConfigSource,
)
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from studyloom.config import trust
from studyloom.config.overrides import (
    VERSION_BASE,
    Override,
    describe_compose_error,
    group_options,
)
from studyloom.config.runs import config_folders, read_written, untrusted_run
from studyloom.config.schema import SCHEMA, check_name
from studyloom.config.study_config import StudyConfig
from studyloom.config.values import as_yaml, has_key, value_at
from studyloom.errors import ConfigError
from studyloom.files import PACKAGE, is_trusted, mark_trusted, write_whole
from studyloom.text import one_line

# studyloom's own groups: a wheel has them in the package, a checkout at its top.
GROUPS = next(filter(Path.is_dir, (PACKAGE / "conf", PACKAGE.parent.parent / "conf")))


class OwnGroups(SearchPathPlugin):
    """Adds `GROUPS` to the search path of every config, after the study's own folders."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if not trust.in_own_code():
            search_path.append("studyloom", f"file://{GROUPS}")


# The options of the groups that a primary config does not name; those of networks last.
OF_ALL = {"sampler": "auto", "pruner": "auto", "storage": "sqlite", "launcher": "local"}
OF_NETWORKS = {"optimizer": "adamw", "scheduler": "cosine", "loss": "cross_entropy"}
OF_ALL_OPTIMIZERS = "optimizer.groups"  # our own key: no argument of an optimizer's class
QUIET = ("override hydra/job_logging", "override hydra/hydra_logging")


def with_defaults(config: Any) -> Any:
    """Returns a config file with an option of each group that its defaults list does not name.

    Applies only if the list has `studyloom`, which selects them, and not to Hydra's log files.
    """
    plain: Any = OmegaConf.to_container(config, resolve=False)
    listed = list(plain.get("defaults") or ()) if isinstance(plain, dict) else []
    if "studyloom" not in listed:
        return config
    keys = {str(key) for item in listed if isinstance(item, dict) for key in item}
    known = {re.split(r"[@ ]", key.removeprefix("override "))[0].strip("/") for key in keys}
    is_loop = OmegaConf.select(config, "objective._target_") is not None
    wanted = OF_ALL | ({} if is_loop else OF_NETWORKS)
    wanted |= {} if "space" in config else {"space": "none"}
    place = listed.index("studyloom") + 1
    listed[place:place] = [{key: each} for key, each in wanted.items() if key not in known]
    listed += ["_self_"] * ("_self_" not in listed)
    listed += [{key: "none"} for key in QUIET if key not in keys]
    with open_dict(config):
        config["defaults"] = listed
    return config


class ReadOnce:
    """A Hydra config source that parses each config once in a process, and then unpickles it.

    A command composes for its own config and for each branch of its space, from much the same
    files. Hydra parses them each time, and copies all its sources, with the configs that they
    hold, whenever it composes or lists options: 0.1 s for the same 20 files.
    """

    def __deepcopy__(self, _: Any) -> "ReadOnce":
        return self  # nothing in it changes

    def read_once(self, key: tuple[Any, ...], read: Callable[[], ConfigResult]) -> ConfigResult:
        """Returns a copy of the config of a key, which `read` is called for once."""
        if key not in KNOWN:
            KNOWN[key] = pickle.dumps(read())
        result: ConfigResult = pickle.loads(KNOWN[key])
        return result


KNOWN: dict[tuple[Any, ...], bytes] = {}


class GuardedFiles(ReadOnce, FileConfigSource):
    """Hydra's source of config files, which reads untrusted ones as data.

    It provides each file that Hydra composes, also when a trial chooses another option, so that
    no defaults list and no search path leads to a file that was not checked.
    """

    def load_config(self, config_path: str) -> ConfigResult:
        rules, folder = trust.active(), Path(self.path)
        # The user's own config may add folders to the search path.
        if self.provider == "hydra.searchpath in main" or (rules and rules.owns(folder)):
            rules = None
        load = FileConfigSource.load_config

        def read() -> ConfigResult:
            result: ConfigResult = load(self, config_path)
            if rules is not None:
                package = (result.header or {}).get("package")
                rules.check(folder, config_path, result.config, package)
            result.config = with_defaults(result.config)
            return result

        file = folder / self._normalize_file_name(config_path)
        if rules is not None or not file.is_file():  # Hydra says which file is missing
            return read()
        known = file.stat()
        key = (self.provider, self.path, config_path, known.st_mtime_ns, known.st_size)
        return self.read_once(key, read)


class PackagedFiles(ReadOnce, ImportlibResourcesConfigSource):
    """The configs in Hydra's own package, and in other packages."""

    def load_config(self, config_path: str) -> ConfigResult:
        load = ImportlibResourcesConfigSource.load_config
        return self.read_once((self.path, config_path), lambda: load(self, config_path))


# Hydra knows the source of its schema by the name of the class.
class StructuredConfigSource(ReadOnce, HydrasStructuredConfigSource):
    """The configs that are Python classes: the schemas of studyloom, Hydra and study modules."""


@contextmanager
def composing_once() -> Iterator[None]:
    """Makes Hydra run what it composes in the body, without composing it before for `hydra.mode`.

    A study runs once: a command line for several runs (`--multirun`) has been refused before.
    """
    # `hydra.main` has no argument for the mode. It composes the whole config to read `hydra.mode`,
    # also with `--run`, which takes two thirds of the time of the first composition.
    ask, Hydra.get_mode = Hydra.get_mode, lambda *args, **kwargs: RunMode.RUN  # type: ignore
    try:
        yield
    finally:
        Hydra.get_mode = ask  # type: ignore[method-assign]


@functools.cache
def register() -> None:
    """Registers the schema, the groups and the resolver, once in a process."""
    renamed = "register_new_resolver" if VERSION_BASE else "register_resolver"  # by Hydra 1.4
    getattr(OmegaConf, renamed)("studyloom.run_dir", _run_dir, replace=True)
    # So that `track=[mlflow]` on a command line needs no line in the primary config.
    schema = SCHEMA.copy()
    with open_dict(schema):
        schema["defaults"] = ["_self_", {"track": []}]
    ConfigStore.instance().store("studyloom", schema)
    Plugins.instance().register(OwnGroups)
    for source in (GuardedFiles, PackagedFiles, StructuredConfigSource):
        SourcesRegistry.instance().types[source.scheme()] = source


def _run_dir(name: str, run_dir: str, dry_run: bool) -> str:
    # The name is checked here, since Hydra makes the run directory before any code of ours runs.
    if error := check_name(str(name)):
        raise ConfigError(error)
    check_run_dir(str(run_dir))
    return "." if dry_run else run_dir  # a dry run leaves nothing behind


def check_run_dir(run_dir: str) -> None:
    """Checks the name of a run directory; raises ConfigError if no file can lie in it."""
    # The URL of a SQLite file means something else by the first two.
    if {"?", "%", "\0"} & {*run_dir}:
        shown = one_line(run_dir)
        raise ConfigError(
            f"run_dir={shown}: must not have ? or %, nor a zero byte; name another folder"
        )


@dataclass(frozen=True)
class Composer:
    """Composes the user's own command again with other group choices.

    The user's overrides are kept, except those of a key that the other option does not have, or
    that they add: `model.hidden=[8]` is left out when a trial chooses a CNN. `optimizer.groups`,
    which every optimizer takes, is kept.

    Args:
        choices: the user's own option of each group.
        base: the user's own config, as Hydra returned it.
        complete: completes a config that Hydra returned under some choices.
    """

    config_name: str
    overrides: tuple[Override, ...]
    choices: Mapping[str, str]
    base: StudyConfig | None = None
    complete: Callable[[StudyConfig, Mapping[str, str]], StudyConfig] = lambda config, _: config
    _cache: dict[frozenset[tuple[str, str]], StudyConfig] = field(
        default_factory=dict, repr=False, compare=False
    )
    _composed: dict[frozenset[tuple[str, str]], StudyConfig] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def from_hydra(cls) -> "Composer":
        """Returns the composer of the running command; call it inside `hydra_main`."""
        config = HydraConfig.get()
        choices = {str(group): str(option) for group, option in config.runtime.choices.items()}
        # As typed: ${oc.env:…} in an override is neither resolved here nor shown.
        overrides: Any = OmegaConf.to_container(config.overrides.task, resolve=False)
        return cls(str(config.job.config_name), tuple(map(Override.parse, overrides)), choices)

    def options(self, group: str) -> list[str]:
        """Returns the options of a config group; none of what is no group."""
        return group_options(group)

    def keep(self, config: StudyConfig) -> None:
        """Caches the user's own config, so that Hydra need not build it again."""
        self._cache[frozenset()] = config

    def compose(self, choices: Mapping[str, str]) -> StudyConfig:
        """Composes the config under other choices, by group; ConfigError if that is not possible.

        Hydra composes each option once (about 70 ms); several options are merged.
        """
        changed = {
            group: option for group, option in choices.items() if self.choices.get(group) != option
        }
        cache_key = frozenset(changed.items())
        if cache_key not in self._cache:
            try:
                composed = self._merge_options(changed)
                self._cache[cache_key] = self.complete(composed, {**self.choices, **changed})
            except Exception as error:
                named = ", ".join(f"{group}={option}" for group, option in changed.items())
                raise ConfigError(f"{named}: {describe_compose_error(error)}") from error
        return self._cache[cache_key]

    def _merge_options(self, changed: Mapping[str, str]) -> StudyConfig:
        """Merges the sections of groups, each composed with its own options.

        Hydra composes them together if an option changes more than the section of its group.
        """
        by_section: dict[str, dict[str, str]] = {}
        for group, option in changed.items():
            by_section.setdefault(group.partition("/")[0], {})[group] = option
        if self.base is None or len(by_section) < 2:
            return self._compose_once(changed)
        sections: dict[str, StudyConfig] = {}
        for section, options in by_section.items():
            config = self._compose_once(options)
            if not config.differs_only_in(section, self.base):
                return self._compose_once(changed)
            sections[section] = config
        return self.base.with_sections(sections)

    def _compose_once(self, changed: Mapping[str, str]) -> StudyConfig:
        cache_key = frozenset(changed.items())
        if cache_key not in self._composed:
            self._composed[cache_key] = StudyConfig.of(self._compose(changed))
        return self._composed[cache_key]

    def file_of(self, section: str, choices: Mapping[str, str]) -> Path | None:
        """Returns the file of the study's config folder that defines a section."""
        option = choices.get(section, self.choices.get(section))
        name = self.config_name if option is None else f"{section}/{option}"
        file = main_folder() / f"{name}.yaml"
        return file if file.is_file() else None

    def _compose(self, changed: Mapping[str, str]) -> DictConfig:
        """Composes without the overrides inside the changed groups, then with those that fit."""
        groups = [f"{group}={option}" for group, option in changed.items()]
        keys = [group.replace("/", ".") for group in changed]
        kept = [override for override in self.overrides if override.key not in keys]
        inside = [
            override
            for override in kept
            if override.is_within(*keys)
            and not ("+" in override.prefix and override.is_within(OF_ALL_OPTIMIZERS))
        ]
        outside = [override.text for override in kept if override not in inside]
        config = hydra.compose(self.config_name, [*outside, *groups])
        dropped = [
            override
            for override in inside
            if override.prefix == "+" or not has_key(config, override.key)
        ]
        if len(dropped) < len(inside):
            fitting = [override.text for override in kept if override not in dropped]
            config = hydra.compose(self.config_name, [*fitting, *groups])
        return config


@contextmanager
def isolated_hydra() -> Iterator[None]:
    """Gives the body an uninitialized Hydra and an empty command line, and restores ours.

    That Hydra does not know our groups. So code in the body may use `hydra.main`,
    `hydra.initialize` and argparse itself.
    """
    arguments, hydra_config = sys.argv, HydraConfig.instance()
    config, given = hydra_config.cfg, list(arguments)
    try:
        with restored_hydra(), trust.in_force(None):
            sys.argv = given[:1]
            yield
    finally:
        sys.argv, arguments[:], hydra_config.cfg = arguments, given, config


@contextmanager
def restored_hydra() -> Iterator[None]:
    """Clears Hydra's state for the body, and restores it afterwards."""
    app, runtime, version = GlobalHydra.instance(), JobRuntime.instance(), VersionBase.instance()
    before = app.hydra, runtime.conf.copy(), version.version_base
    app.clear()
    try:
        yield
    finally:
        GlobalHydra.set_instance(app)  # `hydra.initialize` leaves a copy instead
        app.hydra, runtime.conf, version.version_base = before


def main_folder() -> Path:
    """Returns the folder of the study's own configs."""
    sources = GlobalHydra.instance().config_loader().get_search_path().get_path()
    main = next(source.path for source in sources if source.provider == "main")
    return Path(str(main).removeprefix("file://"))


def find_config(key: str, name: str) -> Path:
    """Finds a config below the study's config folder, or else below the working directory.

    Raises:
        ConfigError: there is no such file.
    """
    folders = main_folder(), Path.cwd()
    for folder in folders:
        for path in (folder / name, folder / f"{name}.yaml"):
            if path.is_file():
                return path.resolve()
    raise ConfigError(
        f"{key}={name}: there is no such file, as seen from {folders[0]} or from {folders[1]}"
    )


@contextmanager
def application(
    config: Path, values: Mapping[str, Any], output: Path | None = None
) -> Iterator[DictConfig]:
    """Composes the primary config of a Hydra application as its own command does.

    In the body, in an `isolated_hydra`, interpolations such as `${hydra:job.name}` have the
    values that they would have there.

    Args:
        values: nested mappings that are set in it.
        output: the folder of `hydra.runtime.output_dir`.
    """
    with isolated_hydra(), hydra.initialize_config_dir(str(config.parent), **VERSION_BASE):
        try:
            composed = hydra.compose(config.stem, return_hydra_config=True)
            with open_dict(composed):
                if output is not None:
                    composed.hydra.runtime.output_dir = str(output)
                HydraConfig.instance().set_config(composed)
                del composed["hydra"]
            composed.merge_with(values)
        except Exception as error:
            raise ConfigError(f"{config}: {describe_compose_error(error)}") from error
        # The application may initialize Hydra itself.
        GlobalHydra.instance().clear()
        yield composed


def values_of_application(
    config: Any, values: Mapping[str, Any], keys: Iterable[str]
) -> dict[str, Any]:
    """Returns what the config of an application has at some keys, once values are set in it.

    Args:
        config: as `application` yields it.
        values: nested mappings.
    """
    merged = OmegaConf.merge(config, values)
    assert isinstance(merged, DictConfig)
    return {key: value_at(merged, key) for key in keys}


def note_run(run_dir: Path, config: StudyConfig) -> None:
    """Writes this command into its run directory, as Hydra does, and notes that it is the user's.

    Called once the study definition is accepted, since later commands use what they find there.
    """
    folder = run_dir / ".hydra"
    known: Any = HydraConfig.instance().cfg
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "config": as_yaml(config.written),
        "hydra": OmegaConf.to_yaml(known),
        "overrides": OmegaConf.to_yaml(known.hydra.overrides.task),
    }
    for name, text in files.items():
        write_whole(folder / f"{name}.yaml", text)
    mark_trusted(run_dir)


@contextmanager
def beside_configs(run_dir: Path) -> Iterator[None]:
    """Sets Hydra up as in the command of a run directory, if that is the user's.

    An adapter may name a config relative to the study's.
    """
    if not is_trusted(run_dir):
        yield
        return
    with initialized_as(read_written(run_dir, "hydra.yaml").get("hydra")):
        yield


@contextmanager
def initialized_as(former: Any) -> Iterator[dict[str, str]]:
    """Initializes Hydra as a former command did, and yields that command's config folders."""
    folders = config_folders(former)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(folders["main"], **VERSION_BASE):
        yield folders


@contextmanager
def recompose(run_dir: Path, *overrides: str, trusted: bool = False) -> Iterator[StudyConfig]:
    """Composes the command of a run directory again, from today's config files.

    Hydra is set up for the config inside the `with` block.

    Args:
        overrides: replace the command's own overrides of the same keys.

    Raises:
        ConfigError: the user has run no command there, or its config no longer composes.
    """
    former = read_written(run_dir, "hydra.yaml").get("hydra")
    if trusted:
        mark_trusted(run_dir)
    elif not is_trusted(run_dir):
        raise untrusted_run(run_dir, "says which command is run again, from which configuration")
    changed = [Override.parse(item).key for item in overrides]
    task: Any = OmegaConf.to_container(former.overrides.task, resolve=False)
    unchanged = [item for item in task if not Override.parse(item).is_within(*changed)]
    place = str(run_dir).replace("'", r"\'")
    register()
    try:
        with initialized_as(former) as folders:
            more = folders.get("command-line")
            search = [] if more is None else [f"hydra.searchpath=[file://{more}]"]
            cfg = hydra.compose(
                str(former.job.config_name),
                [*unchanged, f"run_dir='{place}'", *overrides, *search],
                return_hydra_config=True,
            )
            HydraConfig.instance().set_config(cfg)
            yield StudyConfig.of(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(
            f"{run_dir}: its command no longer composes: {describe_compose_error(error)}"
        ) from error
