"""Registers studyloom with Hydra: its schema, its groups, and the resolver of the run directory."""

import functools
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import (
    ImportlibResourcesConfigSource,
)
from hydra._internal.core_plugins.structured_config_source import (
    StructuredConfigSource as HydrasStructuredConfigSource,
)
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from studyloom.config import foreign
from studyloom.config.schema import SCHEMA, check_name
from studyloom.errors import ConfigError
from studyloom.files import PACKAGE

# studyloom's own groups: a wheel has them in the package, a checkout at its top.
GROUPS = next(
    folder
    for folder in (PACKAGE / "conf", PACKAGE.parent.parent / "conf")
    if (folder / "optimizer").is_dir()
)


class OwnGroups(SearchPathPlugin):
    """Adds `GROUPS` to the search path of every config, after the study's own folders."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if not foreign.in_own_code():
            search_path.append("studyloom", f"file://{GROUPS}")


class ReadOnce:
    """A source of Hydra's whose configs are read once in a process, and then unpickled.

    A command composes for its own config and for each branch of its space, from much the same
    files. Hydra parses them each time, and copies all its sources, with the configs that they
    hold, whenever it composes or lists options: 0.1 s for the same 20 files.
    """

    def __deepcopy__(self, _: Any) -> "ReadOnce":
        return self  # nothing in it changes

    def read_once(self, key: tuple[Any, ...], read: Callable[[], ConfigResult]) -> ConfigResult:
        """Returns a config of its own to each caller.

        Args:
            key: changes when the config does.
            read: reads it.
        """
        if key not in KNOWN:
            KNOWN[key] = pickle.dumps(read())
        result: ConfigResult = pickle.loads(KNOWN[key])
        return result


KNOWN: dict[tuple[Any, ...], bytes] = {}


class GuardedFiles(ReadOnce, FileConfigSource):
    """Hydra's source of config files, which reads those of somebody else as data.

    Hydra asks it for each file that it composes, also when a trial chooses another option, so that
    no defaults list and no search path leads to a file that was not checked.
    """

    def load_config(self, config_path: str) -> ConfigResult:
        guard, folder = foreign.active(), Path(self.path)
        # The user's own config may add folders to the search path.
        if guard is None or self.provider == "hydra.searchpath in main" or guard.owns(folder):
            try:
                read = os.stat(folder / self._normalize_file_name(config_path))
            except OSError:  # Hydra says which file is missing
                return super().load_config(config_path)
            key = (self.provider, self.path, config_path, read.st_mtime_ns, read.st_size)
            return self.read_once(key, lambda: FileConfigSource.load_config(self, config_path))
        config, package = guard.read(folder, config_path)
        return ConfigResult(
            config=config,
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header={"package": package},
        )


class HydrasFiles(ReadOnce, ImportlibResourcesConfigSource):
    """The configs in Hydra's own package, and in other packages."""

    def load_config(self, config_path: str) -> ConfigResult:
        load = ImportlibResourcesConfigSource.load_config
        return self.read_once((self.path, config_path), lambda: load(self, config_path))


# Hydra knows the source of its schema by the name of the class.
class StructuredConfigSource(ReadOnce, HydrasStructuredConfigSource):
    """The configs that are Python classes: studyloom's schema, Hydra's, and those of pages."""


def interpolation_map(overrides: Any, defaults: list[Any], self_added: bool) -> Any:
    """Makes what interpolations of a defaults list refer to, if it has any.

    Hydra makes it for each file of a config, whether it is needed or not: 40 % of composing.
    """
    if any(default.is_interpolation() for default in defaults):
        return MAKE_MAP(overrides, defaults, self_added)
    return None


MAKE_MAP = defaults_list._create_interpolation_map


@contextmanager
def composing_once() -> Iterator[None]:
    """Has Hydra run what it composes in the body, without composing it before, for `hydra.mode`.

    A study runs once. A command line that asks for several runs is refused before.
    """
    ask, Hydra.get_mode = Hydra.get_mode, lambda *args, **kwargs: RunMode.RUN  # type: ignore
    try:
        yield
    finally:
        Hydra.get_mode = ask  # type: ignore[method-assign]


def find_foreign_mistakes(
    guard: foreign.Guard,
    main: str,
    config_dir: str | None,
    config_name: str,
    overrides: Sequence[str],
) -> list[str]:
    """Reads every file that a defaults list reaches, before anything is composed.

    Args:
        guard: knows the folders that are the user's own.
        main: Hydra's `--config-path`.
        config_dir: Hydra's `--config-dir`.
        config_name: the primary config.
        overrides: of the command line.

    Returns:
        Every mistake in files of somebody else.
    """
    search_path = create_config_search_path(main)
    if config_dir is not None:
        source = f"file://{Path(config_dir).absolute()}"
        search_path.prepend("command-line", source, SearchPathQuery(provider="schema"))
    mistakes: list[str] = []
    guard.mistakes = mistakes
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loader = ConfigLoaderImpl(search_path)
            loader.compute_defaults_list(config_name, list(overrides), RunMode.RUN)
    except Exception:  # of Hydra, which raises it again when it composes
        pass
    finally:
        guard.mistakes = None
    return list(dict.fromkeys(mistakes))


@functools.cache
def register() -> None:
    """Registers the schema, the groups and the resolver, once in a process."""
    OmegaConf.register_new_resolver("studyloom.run_dir", _run_dir, replace=True)
    # So that `track=[mlflow]` on a command line needs no line in the primary config.
    schema = SCHEMA.copy()
    with open_dict(schema):
        schema["defaults"] = ["_self_", {"track": []}]
    ConfigStore.instance().store("studyloom", schema)
    Plugins.instance().register(OwnGroups)
    for source in (GuardedFiles, HydrasFiles, StructuredConfigSource):
        SourcesRegistry.instance().types[source.scheme()] = source
    defaults_list._create_interpolation_map = interpolation_map  # type: ignore[assignment]


def _run_dir(name: str, run_dir: str) -> str:
    # The name is checked here, since Hydra makes the run directory before any code of ours runs.
    if mistake := check_name(str(name)):
        raise ConfigError([mistake])
    return run_dir
