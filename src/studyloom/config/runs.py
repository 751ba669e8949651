"""What Hydra wrote into a run directory: the storage URL, the study's name, and the command.

A run directory may be somebody else's. Only in one that this user's own command has run in, or that
the user says is theirs, do these files decide what is opened outside of it, or run again.
"""

import hashlib
import itertools
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from studyloom.errors import ConfigError, FileError
from studyloom.files import is_own, mark_own, open_below, read_below
from studyloom.text import nearest

SIBLINGS = 500  # folders that are looked at for what a misspelt one may mean
LARGEST = 2**20  # bytes of a file that Hydra wrote
# In a run directory from elsewhere: the one variable that may be read, and what else calls code.
RESOLVER = re.compile(r"\$\{\s*[\w.]+\s*:(?<!\$\{oc\.env:)|\$\{oc\.env:(?!STUDYLOOM_STORAGE[,}])")
# What of config.yaml, and of hydra.yaml below `hydra`, leads out of the run directory.
OUTSIDE = ("storage", "study.name", "data.root")
COMMAND = ("runtime.config_sources", "job.config_name")
SQLITE_FILES = ("study.db", "study.db-wal", "study.db-shm", "study.db-journal", "study.lock")
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
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK)) as file:  # a pipe has nothing
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            url = file.read(LARGEST).strip()
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


def read_run(run_dir: Path, *, trusted: bool = False) -> tuple[str, str]:
    """Reads the storage URL and the name of the study of a run directory.

    Args:
        run_dir: where the study runs or ran, possibly moved since.
        trusted: whether the user says that it is theirs, which is noted.

    Returns:
        The URL and the name.

    Raises:
        ConfigError: no study has run there, or the URL of its database is not set there, or is
            outside of a run directory that is not known to be this user's own.
        FileError: a file there is a link, or too large.
    """
    config, environment = read_written(run_dir, "config.yaml"), os.environ.get("STUDYLOOM_STORAGE")
    digest = _digest(run_dir, config)
    if trusted:
        mark_own(run_dir, digest)
    own = trusted or is_own(run_dir, digest)
    if not own:
        config = _without_outside(run_dir, config)
    try:
        url = storage_url(config)
    except (InterpolationResolutionError, AttributeError):  # the variable is not set; no section
        url = None
    # A database inside the folder is found from any working directory, and after a move.
    if url is not None and url.startswith(EMBEDDED):
        url = f"{EMBEDDED}{run_dir}/postgres"
    elif os.path.lexists(run_dir / "study.db"):
        if not own:
            _check_files(run_dir, SQLITE_FILES)
        url = f"sqlite:///{run_dir / 'study.db'}"
    elif not own and url not in (None, f"sqlite:///{run_dir}/study.db", environment):
        raise _not_own(
            run_dir, f"names a database outside of it ({str(url).partition(':')[0][:20]})"
        )
    if url is None:
        path = run_dir / ".hydra" / "config.yaml"
        raise ConfigError([f"{path}: storage.url has no value; put the URL into STUDYLOOM_STORAGE"])
    return url, str(OmegaConf.select(config, "study.name"))


def is_own_run(run_dir: Path) -> bool:
    """Whether the user's own command is known to have run in a folder, as it is written there."""
    try:
        return is_own(run_dir, _digest(run_dir))
    except (ConfigError, FileError):
        return False


def note_run(run_dir: Path) -> None:
    """Notes that the user's own command runs in a folder, as Hydra has written it down there."""
    try:
        mark_own(run_dir, _digest(run_dir))
    except (ConfigError, FileError):  # nothing is written there, as without hydra.output_subdir
        return


def read_written(run_dir: Path, name: str) -> DictConfig:
    """Reads a file that Hydra wrote into a run directory, as data.

    Args:
        run_dir: possibly somebody else's.
        name: of the file, such as config.yaml.

    Raises:
        ConfigError: there is none, or it is not what Hydra writes.
        FileError: it is a link, or too large.
    """
    path = run_dir / ".hydra" / name
    try:
        text = read_below(run_dir, f".hydra/{name}", LARGEST).decode()
        if "*" in text and any(isinstance(t, yaml.AliasToken) for t in yaml.scan(text)):
            raise ConfigError([f"{path}: has a YAML alias, which Hydra does not write"])
        config = OmegaConf.create(text)
    except FileNotFoundError:
        near = nearest(run_dir, sibling_runs(run_dir))
        raise ConfigError(
            [f"{run_dir}: no study has run there; a run directory holds .hydra/{name}{near}"]
        ) from None
    except NotADirectoryError:
        raise ConfigError([f"{run_dir}: must be a folder, in which a study has run"]) from None
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError([f"{path}: cannot be read: {' '.join(str(error).split())}"]) from None
    if not isinstance(config, DictConfig):
        raise ConfigError([f"{path}: must be a mapping, as Hydra writes it"])
    return config


def sibling_runs(run_dir: Path) -> list[str]:
    """Returns the run directories beside one that does not exist, some hundreds at most."""
    with suppress(OSError):
        beside = itertools.islice(run_dir.parent.iterdir(), SIBLINGS)
        return sorted(str(path) for path in beside if (path / ".hydra").is_dir())
    return []


def _digest(run_dir: Path, written: DictConfig | None = None) -> str:
    """Returns the digest of what a run directory says about what lies outside of it.

    The command and its workers, which write these files too, say the same: they differ in the
    launcher alone.

    Args:
        run_dir: possibly somebody else's.
        written: its config.yaml, if that was read already, which takes a hundredth of a second.
    """
    written = read_written(run_dir, "config.yaml") if written is None else written
    config: Any = OmegaConf.to_container(written, resolve=False)
    recorded = [_at(config, *key.split(".")) for key in OUTSIDE]
    with suppress(ConfigError):
        former: Any = OmegaConf.to_container(read_written(run_dir, "hydra.yaml"), resolve=False)
        recorded += [_at(former, "hydra", *key.split(".")) for key in COMMAND]
        task = _at(former, "hydra", "overrides", "task") or []
        recorded += [item for item in task if not str(item).startswith("launcher")]
    # The configuration of a study that was begun from Python, see `Invocation`.
    given = sorted((run_dir / ".hydra" / "given").rglob("*.yaml"))
    recorded += [read_below(run_dir, path.relative_to(run_dir), LARGEST) for path in given]
    return hashlib.sha256(json.dumps(recorded, sort_keys=True, default=str).encode()).hexdigest()


def _quoted(text: str) -> str:
    """Quotes a text for Hydra's command line, whatever characters it has."""
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return "'" + re.sub(r"(\\*)('|\Z)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), literal) + "'"


def _at(tree: Any, *keys: str) -> Any:
    """Returns what nested mappings hold under these keys; None where one is missing."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _without_outside(run_dir: Path, config: DictConfig) -> DictConfig:
    """Returns where a run directory from elsewhere has its database, cut off from all else.

    Raises:
        ConfigError: that depends on a file, or on a variable that is not STUDYLOOM_STORAGE.
    """
    whole: Any = OmegaConf.to_container(config, resolve=False)
    kept = OmegaConf.create({"run_dir": str(run_dir)})
    for key in ("storage.url", "storage.file", "study.name"):
        OmegaConf.update(kept, key, _at(whole, *key.split(".")))
    if kept.storage.file is not None or RESOLVER.search(OmegaConf.to_yaml(kept)):
        raise _not_own(run_dir, "has its database's address read from a file or the environment")
    return kept


def _check_files(run_dir: Path, names: Sequence[str]) -> None:
    """Raises FileError if one of these files is there, and is a link or no file."""
    for name in names:
        with suppress(FileNotFoundError):
            os.close(open_below(run_dir, name))


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
        run_dir: where the command ran.
        overrides: replace the command's own overrides of the same keys.
        trusted: whether the user says that it is theirs, which is noted.

    Raises:
        ConfigError: no study has run there, the user's own command has not, or its command no
            longer composes.
    """
    import hydra  # here: who only looks at a run does not wait for it
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException

    from studyloom.config.overrides import describe_compose_error
    from studyloom.config.registration import register

    former = read_written(run_dir, "hydra.yaml").get("hydra")
    if trusted:
        note_run(run_dir)
    elif not is_own(run_dir, _digest(run_dir)):
        raise _not_own(run_dir, "says which command is run again, from which configuration")
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
    more = folders.get("command-line")
    search = [] if more is None else [f"hydra.searchpath=[file://{more}]"]
    register()
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(folders["main"], version_base=None):
            cfg = hydra.compose(
                str(former.job.config_name),
                [*unchanged, f"run_dir={_quoted(str(run_dir))}", *overrides, *search],
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
