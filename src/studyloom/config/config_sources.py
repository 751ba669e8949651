"""Where Hydra finds configs: studyloom's own groups, the schema, and files, which may be untrusted.

Hydra reads every config through a source. `register` replaces Hydra's sources by those of this
module, which read each file once, check untrusted ones, and complete the defaults list of a primary
config.
"""

import functools
import pickle
import re
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import Container, OmegaConf, open_dict

from studyloom.config import trust
from studyloom.config.overrides import IS_HYDRA_1_3
from studyloom.config.schema import SCHEMA, check_name
from studyloom.config.values import written_values
from studyloom.errors import ConfigError
from studyloom.files import PACKAGE
from studyloom.text import one_line

# studyloom's own groups: a wheel has them in the package, a checkout at its top.
GROUPS = next(filter(Path.is_dir, (PACKAGE / "conf", PACKAGE.parent.parent / "conf")))

# The option of each group that a primary config does not name. Networks have further groups.
DEFAULT_OPTIONS = {"sampler": "auto", "pruner": "auto", "storage": "sqlite", "launcher": "local"}
NETWORK_OPTIONS = {"optimizer": "adamw", "scheduler": "cosine", "loss": "cross_entropy"}
LOGGING_OVERRIDES = ("override hydra/job_logging", "override hydra/hydra_logging")


class OwnGroups(SearchPathPlugin):
    """Adds `GROUPS` to the search path of every config, after the study's own folders.

    Hydra calls each such plugin whenever it sets up a search path. The user's own code may compose
    configs too, and gets no groups of studyloom.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if not trust.in_own_code():
            search_path.append("studyloom", f"file://{GROUPS}")


def complete_defaults_list(config: Container) -> Container:
    """Completes the defaults list of a primary config, which has the entry `studyloom`.

    Behind this entry comes an option of each group that the list does not name, and at the end come
    entries that switch Hydra's logging off. A config without `studyloom` is returned unchanged.

    The list [studyloom, {sampler: tpe}] becomes [studyloom, {pruner: auto}, …, {sampler: tpe},
    _self_, {override hydra/job_logging: none}, …]. `_self_` stands for the config itself.
    """
    sections = written_values(config)
    if not isinstance(sections, dict):
        return config
    entries = list(sections.get("defaults") or ())
    if "studyloom" not in entries:
        return config
    keys: list[str] = []  # such as `model`, or `override hydra/job_logging`
    for entry in entries:
        if isinstance(entry, dict):
            keys += [str(key) for key in entry]
    missing_options = _choose_options(config)
    for key in keys:
        missing_options.pop(_group_of(key), None)

    position = entries.index("studyloom") + 1
    completed = entries[:position]
    for group, option in missing_options.items():
        completed.append({group: option})
    completed += entries[position:]
    if "_self_" not in entries:
        completed.append("_self_")
    for key in LOGGING_OVERRIDES:
        if key not in keys:
            completed.append({key: "none"})
    with open_dict(config):
        config["defaults"] = completed
    return config


def _choose_options(config: Container) -> dict[str, str]:
    """Returns an option of each group that a primary config needs."""
    options = dict(DEFAULT_OPTIONS)
    if OmegaConf.select(config, "objective._target_") is None:
        options |= NETWORK_OPTIONS
    if "space" not in config:
        options["space"] = "none"
    return options


def _group_of(key: str) -> str:
    """Returns the group of an entry of a defaults list: `model` of `override /model@package`."""
    return re.split(r"[@ ]", key.removeprefix("override "))[0].strip("/")


PICKLED_CONFIGS: dict[Hashable, bytes] = {}  # the configs that this process has parsed, by source


class ReadOnce:
    """A Hydra config source that parses each config once in a process, and then unpickles it.

    A command composes for its own config and for each branch of its space, from much the same
    files. Hydra parses them each time, and copies all its sources, with the configs that they
    hold, whenever it composes or lists options: 0.1 s for the same 20 files.
    """

    def __deepcopy__(self, memo: object) -> "ReadOnce":
        return self  # nothing in it changes

    def read_once(self, key: Hashable, read: Callable[[], ConfigResult]) -> ConfigResult:
        """Returns a copy of the config with a key, which `read` parses when it is first needed."""
        if key not in PICKLED_CONFIGS:
            PICKLED_CONFIGS[key] = pickle.dumps(read())
        result: ConfigResult = pickle.loads(PICKLED_CONFIGS[key])
        return result


class GuardedFiles(ReadOnce, FileConfigSource):
    """Hydra's source of config files, which reads untrusted ones as data.

    It provides each file that Hydra composes, also when a trial chooses another option, so that
    no defaults list and no search path leads to a file that was not checked.
    """

    def load_config(self, config_path: str) -> ConfigResult:
        """Loads a config of this folder, such as `model/mlp`, for Hydra.

        A trusted file is parsed again only after a change; an untrusted one is checked each time.
        """
        rules = self._find_rules()
        if rules is not None:
            return self._load(config_path, rules)
        file = Path(self.path) / self._normalize_file_name(config_path)
        if not file.is_file():
            return self._load(config_path, rules=None)  # Hydra's error names the missing file
        status = file.stat()
        key = (self.provider, self.path, config_path, status.st_mtime_ns, status.st_size)
        return self.read_once(key, lambda: self._load(config_path, rules=None))

    def _find_rules(self) -> trust.TrustRules | None:
        """Returns the rules that the files of this folder must satisfy; None if it is trusted."""
        added_by_user = self.provider == "hydra.searchpath in main"  # in the primary config
        if added_by_user:
            return None
        rules = trust.active()
        if rules is not None and rules.trusts_folder(Path(self.path)):
            return None
        return rules

    def _load(self, config_path: str, rules: trust.TrustRules | None) -> ConfigResult:
        """Parses a config, checks it if there are rules, and completes its defaults list."""
        result = super().load_config(config_path)
        if rules is not None:
            header = result.header or {}
            rules.check(Path(self.path), config_path, result.config, header.get("package"))
        result.config = complete_defaults_list(result.config)
        return result


class PackagedFiles(ReadOnce, ImportlibResourcesConfigSource):
    """The configs in Hydra's own package, and in other packages."""

    def load_config(self, config_path: str) -> ConfigResult:
        load = super().load_config
        return self.read_once((self.path, config_path), lambda: load(config_path))


# Hydra knows the source of its schema by the name of the class.
class StructuredConfigSource(ReadOnce, HydrasStructuredConfigSource):
    """The configs that are Python classes: the schemas of studyloom, Hydra and study modules."""


@functools.cache
def register() -> None:
    """Registers with Hydra what studyloom adds: a resolver, the schema, groups and sources.

    It is called before any config is composed, and has an effect only once in a process.
    """
    if IS_HYDRA_1_3:
        OmegaConf.register_new_resolver("studyloom.run_dir", _resolve_run_dir, replace=True)
    else:  # OmegaConf 2.4, which Hydra 1.4 needs, has renamed the function
        OmegaConf.register_resolver(  # type: ignore
            "studyloom.run_dir", _resolve_run_dir, replace=True
        )
    schema = SCHEMA.copy()
    with open_dict(schema):
        # With this entry `track=[mlflow]` on a command line needs no line in the primary config.
        schema["defaults"] = ["_self_", {"track": []}]
    ConfigStore.instance().store("studyloom", schema)
    Plugins.instance().register(OwnGroups)
    for source in (GuardedFiles, PackagedFiles, StructuredConfigSource):
        SourcesRegistry.instance().types[source.scheme()] = source


def _resolve_run_dir(name: str, run_dir: str, dry_run: bool) -> str:
    """Returns the folder that Hydra makes for a command; `${studyloom.run_dir:…}` in the schema.

    The name of the study is checked here, since Hydra makes the folder before the task runs. A dry
    run gets the working directory, so that it leaves nothing behind.
    """
    error = check_name(str(name))
    if error is not None:
        raise ConfigError(error)
    check_run_dir(str(run_dir))
    if dry_run:
        return "."
    return run_dir


def check_run_dir(run_dir: str) -> None:
    """Raises ConfigError if the path of a run directory has a character that cannot be used.

    In the URL of a SQLite file, ? begins the options, and % a character's code.
    """
    if any(character in run_dir for character in ("?", "%", "\0")):
        raise ConfigError(
            f"run_dir={one_line(run_dir)}: must not have ? or %, nor a zero byte; "
            "name another folder"
        )


@contextmanager
def composing_once() -> Iterator[None]:
    """Lets `hydra.main` compose the config once in the body, and not twice.

    `hydra.main` composes the whole config a first time only to read `hydra.mode`, which takes two
    thirds of the time of the second. A study always runs once: several runs (`--multirun`) are
    refused earlier. Since `hydra.main` has no argument for the mode, the method that reads the mode
    is replaced.
    """
    get_mode = Hydra.get_mode
    Hydra.get_mode = _get_single_run  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = get_mode  # type: ignore[method-assign]


def _get_single_run(*args: object, **kwargs: object) -> RunMode:
    return RunMode.RUN
