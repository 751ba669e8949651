"""Registers studyloom with Hydra: its schema, its groups, and the resolver of the run directory."""

import functools

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

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
        search_path.append("studyloom", f"file://{GROUPS}")


@functools.cache
def register() -> None:
    """Registers the schema, the groups and the resolver, once in a process."""
    OmegaConf.register_new_resolver("studyloom.run_dir", _run_dir, replace=True)
    ConfigStore.instance().store("studyloom", SCHEMA)
    Plugins.instance().register(OwnGroups)


def _run_dir(name: str, run_dir: str) -> str:
    # The name is checked here, since Hydra makes the run directory before any code of ours runs.
    if mistake := check_name(str(name)):
        raise ConfigError([mistake])
    return run_dir
