"""Registers studyloom with Hydra: its schema, its groups, and the resolver of the run directory."""

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import OmegaConf

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


class GuardedFiles(FileConfigSource):
    """Hydra's source of config files, which reads those of somebody else as data.

    Hydra asks it for each file that it composes, also when a trial chooses another option, so that
    no defaults list and no search path leads to a file that was not checked.
    """

    def load_config(self, config_path: str) -> ConfigResult:
        guard, folder = foreign.active(), Path(self.path)
        # The user's own config may add folders to the search path.
        if guard is None or self.provider == "hydra.searchpath in main" or guard.owns(folder):
            return super().load_config(config_path)
        config, package = guard.read(folder, config_path)
        return ConfigResult(
            config=config,
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header={"package": package},
        )


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
    ConfigStore.instance().store("studyloom", SCHEMA)
    Plugins.instance().register(OwnGroups)
    SourcesRegistry.instance().types[GuardedFiles.scheme()] = GuardedFiles


def _run_dir(name: str, run_dir: str) -> str:
    # The name is checked here, since Hydra makes the run directory before any code of ours runs.
    if mistake := check_name(str(name)):
        raise ConfigError([mistake])
    return run_dir
