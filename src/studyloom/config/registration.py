"""What Hydra is told of studyloom: its schema, its groups, and the resolver of the run directory."""

import functools

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from studyloom.config.schema import SCHEMA, check_name
from studyloom.errors import ConfigError
from studyloom.files import PACKAGE

# studyloom's own groups: in the wheel they lie in the package, in a checkout at its top.
GROUPS = next(
    folder
    for folder in (PACKAGE / "conf", PACKAGE.parent.parent / "conf")
    if (folder / "optimizer").is_dir()
)


class OwnGroups(SearchPathPlugin):
    """Lets every config take options from `GROUPS`, after the study's own folders."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("studyloom", f"file://{GROUPS}")


@functools.cache
def register() -> None:
    """Registers schema, groups and resolver with Hydra, once in a process."""
    OmegaConf.register_new_resolver("studyloom.run_dir", _run_dir, replace=True)
    ConfigStore.instance().store("studyloom", SCHEMA)
    Plugins.instance().register(OwnGroups)


def _run_dir(name: str, run_dir: str) -> str:
    """Checks the name of the study here: Hydra makes the run directory before any code of ours runs."""
    if mistake := check_name(str(name)):
        raise ConfigError([mistake])
    return run_dir
