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
from studyloom.config.overrides import VERSION_BASE
from studyloom.config.schema import SCHEMA, check_name
from studyloom.config.values import written_values
from studyloom.errors import ConfigError
from studyloom.files import PACKAGE
from studyloom.text import one_line

# studyloom's own groups: a wheel has them in the package, a checkout at its top.
GROUPS = next(filter(Path.is_dir, (PACKAGE / "conf", PACKAGE.parent.parent / "conf")))

# The options of the groups that a primary config does not name; those of networks last.
OF_ALL = {"sampler": "auto", "pruner": "auto", "storage": "sqlite", "launcher": "local"}
OF_NETWORKS = {"optimizer": "adamw", "scheduler": "cosine", "loss": "cross_entropy"}
QUIET = ("override hydra/job_logging", "override hydra/hydra_logging")


class OwnGroups(SearchPathPlugin):
    """Adds `GROUPS` to the search path of every config, after the study's own folders.

    Hydra calls each such plugin whenever it sets up a search path. The user's own code may compose
    configs too, and gets no groups of studyloom.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if not trust.in_own_code():
            search_path.append("studyloom", f"file://{GROUPS}")


def with_defaults(config: Container) -> Container:
    """Returns a config file with an option of each group that its defaults list does not name.

    Applies only if the list has `studyloom`, which selects them, and not to Hydra's log files.
    """
    sections = written_values(config)
    if not isinstance(sections, dict):
        return config
    entries = list(sections.get("defaults") or ())
    if "studyloom" not in entries:
        return config
    keys: list[str] = []
    for entry in entries:
        if isinstance(entry, dict):
            keys += [str(key) for key in entry]
    options = _default_options(config)
    for key in keys:
        options.pop(_group_of(key), None)
    place = entries.index("studyloom") + 1
    entries[place:place] = [{group: option} for group, option in options.items()]
    if "_self_" not in entries:
        entries.append("_self_")
    for key in QUIET:
        if key not in keys:
            entries.append({key: "none"})
    with open_dict(config):
        config["defaults"] = entries
    return config


def _default_options(config: Container) -> dict[str, str]:
    """Returns the option of each group that a primary config needs."""
    options = dict(OF_ALL)
    if OmegaConf.select(config, "objective._target_") is None:
        options |= OF_NETWORKS
    if "space" not in config:
        options["space"] = "none"
    return options


def _group_of(key: str) -> str:
    """Returns the group of an entry of a defaults list, such as `override /model@package`."""
    return re.split(r"[@ ]", key.removeprefix("override "))[0].strip("/")


PARSED: dict[Hashable, bytes] = {}  # the pickled configs that this process has parsed


class ReadOnce:
    """A Hydra config source that parses each config once in a process, and then unpickles it.

    A command composes for its own config and for each branch of its space, from much the same
    files. Hydra parses them each time, and copies all its sources, with the configs that they
    hold, whenever it composes or lists options: 0.1 s for the same 20 files.
    """

    def __deepcopy__(self, memo: object) -> "ReadOnce":
        return self  # nothing in it changes

    def read_once(self, key: Hashable, read: Callable[[], ConfigResult]) -> ConfigResult:
        """Returns a copy of the config of a key, which `read` is called for once."""
        if key not in PARSED:
            PARSED[key] = pickle.dumps(read())
        result: ConfigResult = pickle.loads(PARSED[key])
        return result


class GuardedFiles(ReadOnce, FileConfigSource):
    """Hydra's source of config files, which reads untrusted ones as data.

    It provides each file that Hydra composes, also when a trial chooses another option, so that
    no defaults list and no search path leads to a file that was not checked.
    """

    def load_config(self, config_path: str) -> ConfigResult:
        file = Path(self.path) / self._normalize_file_name(config_path)
        rules = self._rules()
        if rules is not None or not file.is_file():  # Hydra says which file is missing
            return self._load(config_path, rules)
        status = file.stat()
        key = (self.provider, self.path, config_path, status.st_mtime_ns, status.st_size)
        return self.read_once(key, lambda: self._load(config_path, None))

    def _rules(self) -> trust.TrustRules | None:
        """Returns the rules for the files of this source; None if they are trusted."""
        if self.provider == "hydra.searchpath in main":  # which the user's own config has added
            return None
        rules = trust.active()
        if rules is not None and rules.owns(Path(self.path)):
            return None
        return rules

    def _load(self, config_path: str, rules: trust.TrustRules | None) -> ConfigResult:
        result = super().load_config(config_path)
        if rules is not None:
            package = (result.header or {}).get("package")
            rules.check(Path(self.path), config_path, result.config, package)
        result.config = with_defaults(result.config)
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
    """Registers the schema, the groups and the resolver, once in a process."""
    if VERSION_BASE:
        OmegaConf.register_new_resolver("studyloom.run_dir", _run_dir, replace=True)
    else:  # the name since OmegaConf 2.4, which Hydra 1.4 needs
        OmegaConf.register_resolver("studyloom.run_dir", _run_dir, replace=True)  # type: ignore
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
    error = check_name(str(name))
    if error is not None:
        raise ConfigError(error)
    check_run_dir(str(run_dir))
    if dry_run:
        return "."  # a dry run leaves nothing behind
    return run_dir


def check_run_dir(run_dir: str) -> None:
    """Checks the name of a run directory; raises ConfigError if no file can lie in it."""
    # The URL of a SQLite file means something else by the first two.
    if {"?", "%", "\0"} & {*run_dir}:
        raise ConfigError(
            f"run_dir={one_line(run_dir)}: must not have ? or %, nor a zero byte; "
            "name another folder"
        )


@contextmanager
def composing_once() -> Iterator[None]:
    """Makes Hydra run what it composes in the body, without composing it before for `hydra.mode`.

    A study runs once: a command line for several runs (`--multirun`) has been refused before.
    """
    # `hydra.main` has no argument for the mode. It composes the whole config to read `hydra.mode`,
    # also with `--run`, which takes two thirds of the time of the first composition.
    get_mode = Hydra.get_mode
    Hydra.get_mode = _single_run  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = get_mode  # type: ignore[method-assign]


def _single_run(*args: object, **kwargs: object) -> RunMode:
    return RunMode.RUN
