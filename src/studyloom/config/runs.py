"""What Hydra wrote into a run directory: the storage URL, the study's name, and the command."""

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

EMBEDDED = "embedded_postgres:///"  # the URL of a server whose data lies in the run directory


def storage_url(config: DictConfig | ListConfig) -> str | None:
    """Reads the storage URL of a config from `storage.file` or, without one, `storage.url`.

    Returns:
        The URL; None if neither is set.

    Raises:
        ConfigError: the file cannot be read, is empty, or can be read by other users too.
        InterpolationResolutionError: an environment variable of the URL is not set.
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
            [f"storage.file: {path} cannot be read: {getattr(error, 'strerror', 'not UTF-8 text')}"]
        ) from None
    if mode & 0o077:
        raise ConfigError(
            [
                f"storage.file: {path} must be readable by its owner only, since it may hold a "
                f"password; got mode {mode:04o}; run chmod 600 {path}"
            ]
        )
    if not url:
        raise ConfigError(
            [f"storage.file: {path} is empty; put postgresql://user:password@host/database into it"]
        )
    return url


def read_run(run_dir: Path) -> tuple[str, str]:
    """Reads the storage URL and the name of the study of a run directory.

    Args:
        run_dir: where the study runs or ran, possibly moved since.

    Returns:
        The URL and the name.

    Raises:
        ConfigError: no study has run there, or the URL of its database is not set there.
    """
    config_file = run_dir / ".hydra" / "config.yaml"
    if not config_file.is_file():
        raise ConfigError(
            [f"{run_dir}: no study has run there; a run directory holds .hydra/config.yaml"]
        )
    config = OmegaConf.load(config_file)
    try:
        url = storage_url(config)
    except InterpolationResolutionError:  # the environment variable is not set
        url = None
    # A database inside the folder is found from any working directory, and after a move.
    if url is not None and url.startswith(EMBEDDED):
        url = f"{EMBEDDED}{run_dir}/postgres"
    elif (database := run_dir / "study.db").exists():
        url = f"sqlite:///{database}"
    if url is None:
        raise ConfigError(
            [f"{config_file}: storage.url has no value; put the URL into STUDYLOOM_STORAGE"]
        )
    return url, str(OmegaConf.select(config, "study.name"))


@contextmanager
def recompose(run_dir: Path, *overrides: str) -> Iterator[DictConfig]:
    """Composes the command of a run directory again, from today's config files.

    Hydra is set up for the config inside the `with` block.

    Args:
        run_dir: where the command ran.
        overrides: replace the command's own overrides of the same keys.

    Raises:
        ConfigError: no study has run there, or its command no longer composes.
    """
    hydra_file = run_dir / ".hydra" / "hydra.yaml"
    if not hydra_file.is_file():
        raise ConfigError(
            [f"{run_dir}: no study has run there; a run directory holds .hydra/hydra.yaml"]
        )
    former = OmegaConf.load(hydra_file).hydra
    folders = {
        str(source.provider): str(source.path)
        for source in former.runtime.config_sources
        if source.schema == "file"
    }
    task: Any = OmegaConf.to_container(former.overrides.task, resolve=False)
    changed = tuple(
        f"{override.partition('=')[0]}{end}" for override in overrides for end in ("=", ".")
    )
    unchanged = [
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
            cfg = hydra.compose(
                str(former.job.config_name),
                [*unchanged, f"run_dir={run_dir}", *overrides, *search],
                return_hydra_config=True,
            )
            HydraConfig.instance().set_config(cfg)
            with open_dict(cfg):
                del cfg["hydra"]
            yield cfg
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(
            [f"{run_dir}: its command no longer composes: {describe_compose_error(error)}"]
        ) from error
