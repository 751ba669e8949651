"""TODO config.runs."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from studyloom.config.overrides import describe_compose_error
from studyloom.config.registration import register
from studyloom.errors import ConfigError

EMBEDDED = "embedded_postgres:///"  # how the URL of a server begins that a run has below its folder


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
        raise ConfigError(
            [f"storage.file: {path} cannot be read: {getattr(error, 'strerror', 'no text')}"]
        ) from None
    if mode & 0o077:
        raise ConfigError(
            [
                f"storage.file: others may read {path} (mode {mode:04o}), and so its password; chmod 600 it"
            ]
        )
    if not url:
        raise ConfigError(
            [f"storage.file: {path} is empty; put postgresql://user:password@host/database into it"]
        )
    return url


def read_run(run_dir: Path) -> tuple[str, str]:
    """The storage URL and the name of the study that runs in a folder, from what Hydra wrote there.

    Raises:
        ConfigError: no study ran there, or its database is not said any longer.
    """
    written = run_dir / ".hydra" / "config.yaml"
    if not written.is_file():
        raise ConfigError(
            [f"{run_dir}: no study has run there; a run directory holds .hydra/config.yaml"]
        )
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
def recompose(run_dir: Path, *overrides: str) -> Iterator[DictConfig]:
    """The config of the command that ran in a folder, composed once more from today's files, and Hydra set up for it.

    Raises:
        ConfigError: no study ran there, or its command does not compose any longer.
    """
    written = run_dir / ".hydra" / "hydra.yaml"
    if not written.is_file():
        raise ConfigError(
            [f"{run_dir}: no study has run there; a run directory holds .hydra/hydra.yaml"]
        )
    was = OmegaConf.load(written).hydra
    folders = {
        str(source.provider): str(source.path)
        for source in was.runtime.config_sources
        if source.schema == "file"
    }
    task: Any = OmegaConf.to_container(was.overrides.task, resolve=False)
    changed = tuple(
        f"{override.partition('=')[0]}{end}" for override in overrides for end in ("=", ".")
    )
    kept = [
        str(override) for override in task if not str(override).lstrip("+~").startswith(changed)
    ]
    search = (
        [f"hydra.searchpath=[file://{folders['command-line']}]"]
        if "command-line" in folders
        else []
    )
    register()
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
        raise ConfigError(
            [f"{run_dir}: its command does not compose any longer: {describe_compose_error(error)}"]
        ) from error
