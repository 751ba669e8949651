"""The files of Hydra in a run directory: the storage URL, the study's name, and the command.

A run directory may be somebody else's. Only in one that this user's own command has run in, or that
the user says is theirs, do these files decide what is opened outside of it, or run again.
"""

import itertools
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from studyloom.config.trust import read_yaml
from studyloom.errors import ConfigError
from studyloom.files import is_own, mark_own
from studyloom.text import nearest

SIBLINGS = 500  # folders that are looked at for what a misspelt one may mean
EMBEDDED = "embedded_postgres:///"  # the URL of a server whose data lies in the run directory
# What a run directory from elsewhere must not resolve: all but one variable.
RESOLVER = re.compile(r"\$\{\s*[\w.]+\s*:(?<!\$\{oc\.env:)|\$\{oc\.env:(?!STUDYLOOM_STORAGE[,}])")


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
        mode, url = stat.S_IMODE(path.stat().st_mode), path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", "not UTF-8 text")
        raise ConfigError([f"storage.file: {path} cannot be read: {why}"]) from None
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


def read_run(run_dir: Path, *, trusted: bool = False) -> tuple[str, str]:
    """Reads the storage URL and the name of the study of a run directory.

    Args:
        trusted: whether the user says that it is theirs, which is noted.

    Raises:
        ConfigError: no study has run there, or the URL of its database is not set there, or is
            outside of a run directory that is not known to be this user's own.
    """
    config = read_written(run_dir, "config.yaml")
    if trusted:
        mark_own(run_dir)
    own = trusted or is_own(run_dir)
    try:
        config = config if own else _without_outside(run_dir, config)
        url = storage_url(config)
    except (InterpolationResolutionError, AttributeError):  # the variable is not set; no section
        url = None
    # A database inside the folder is found from any working directory, and after a move.
    inside = f"sqlite:///{run_dir / 'study.db'}"
    if url is not None and url.startswith(EMBEDDED):
        url = f"{EMBEDDED}{run_dir}/postgres"
    elif (run_dir / "study.db").exists():
        url = inside
    elif not own and url not in (None, inside, os.environ.get("STUDYLOOM_STORAGE")):
        scheme = str(url).partition(":")[0][:20]
        raise _not_own(run_dir, f"names a database outside of it ({scheme})")
    if url is None:
        path = run_dir / ".hydra" / "config.yaml"
        raise ConfigError([f"{path}: storage.url has no value; put the URL into STUDYLOOM_STORAGE"])
    return url, str(OmegaConf.select(config, "study.name"))


def note_run(run_dir: Path) -> None:
    """Notes that the user's own command runs in a folder, where Hydra has written it down."""
    if (run_dir / ".hydra").is_dir():
        mark_own(run_dir)


def read_written(run_dir: Path, name: str) -> DictConfig:
    """Reads a file that Hydra wrote into a run directory, such as config.yaml, as data.

    Raises:
        ConfigError: there is none, or it is not what Hydra writes.
    """
    try:
        return read_yaml(run_dir / ".hydra" / name)
    except FileNotFoundError:
        near = nearest(run_dir, sibling_runs(run_dir))
        raise ConfigError(
            [f"{run_dir}: no study has run there; a run directory holds .hydra/{name}{near}"]
        ) from None
    except NotADirectoryError:
        raise ConfigError([f"{run_dir}: must be a folder, in which a study has run"]) from None


def sibling_runs(run_dir: Path) -> list[str]:
    """Returns the run directories beside one that does not exist, some hundreds at most."""
    with suppress(OSError):
        beside = itertools.islice(run_dir.parent.iterdir(), SIBLINGS)
        return sorted(str(path) for path in beside if (path / ".hydra").is_dir())
    return []


def _without_outside(run_dir: Path, config: DictConfig) -> DictConfig:
    """Returns where a run directory from elsewhere has its database, cut off from all else.

    Raises:
        ConfigError: that depends on a file, or on a variable that is not STUDYLOOM_STORAGE.
    """
    whole: Any = OmegaConf.to_container(config, resolve=False)
    storage, name = whole.get("storage", {}), whole.get("study", {}).get("name")
    kept = {
        "run_dir": str(run_dir),
        "storage": {"url": storage.get("url")},
        "study": {"name": name},
    }
    if storage.get("file") is not None or RESOLVER.search(str(kept)):
        raise _not_own(run_dir, "has its database's address read from a file or the environment")
    return OmegaConf.create(kept)


def _not_own(run_dir: Path, why: str) -> ConfigError:
    return ConfigError(
        [
            f"{run_dir}: no command of yours is known here to have run there, and its .hydra/ "
            f"{why}; if you trust it with your machine, add --trust-config"
        ]
    )


@contextmanager
def recompose(run_dir: Path, *overrides: str, trusted: bool = False) -> Iterator[DictConfig]:
    """Composes the command of a run directory again, from today's config files.

    Hydra is set up for the config inside the `with` block.

    Args:
        overrides: replace the command's own overrides of the same keys.
        trusted: whether the user says that it is theirs, which is noted.

    Raises:
        ConfigError: no study has run there, or not by a command of the user's own, or its command
            no longer composes.
    """
    import hydra  # here: who only looks at a run does not wait for it
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException

    from studyloom.config.compose import register
    from studyloom.config.overrides import VERSION_BASE, describe_compose_error

    former = read_written(run_dir, "hydra.yaml").get("hydra")
    if trusted:
        mark_own(run_dir)
    elif not is_own(run_dir):
        raise _not_own(run_dir, "says which command is run again, from which configuration")
    folders = {
        str(source.provider): str(source.path)
        for source in former.runtime.config_sources
        if source.schema == "file"
    }
    changed = tuple(f"{item.partition('=')[0]}{end}" for item in overrides for end in ("=", "."))
    task: Any = OmegaConf.to_container(former.overrides.task, resolve=False)
    unchanged = [item for item in task if not item.lstrip("+~").startswith(changed)]
    more = folders.get("command-line")
    search = [] if more is None else [f"hydra.searchpath=[file://{more}]"]
    place = str(run_dir).replace("'", r"\'")
    register()
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(folders["main"], **VERSION_BASE):
            cfg = hydra.compose(
                str(former.job.config_name),
                [*unchanged, f"run_dir='{place}'", *overrides, *search],
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
