"""Reads Hydra's files in a run directory: the storage URL, and the study's name.

A run directory may be untrusted. Its files decide what is opened outside of it, or run again, only
if a command of this user has run in it, or the user says that it is theirs.
"""

import itertools
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from omegaconf.errors import InterpolationResolutionError

from studyloom.config.trust import read_yaml
from studyloom.config.values import value_at, written_values
from studyloom.environment import STORAGE
from studyloom.errors import ConfigError
from studyloom.files import is_trusted, mark_trusted
from studyloom.text import nearest

SIBLINGS = 500  # folders that are looked at for what a misspelt one may mean
EMBEDDED = "embedded_postgres:///"  # the URL of a server whose data lies in the run directory


def read_storage_url(config: Mapping[str, object]) -> str | None:
    """Reads the storage URL of a config from `storage.file` or, without one, `storage.url`.

    Raises:
        ConfigError: the file cannot be read, is empty, or can be read by other users too; or an
            environment variable of the URL is not set.
    """
    name = value_at(config, "storage.file")
    if name is None:
        url = value_at(config, "storage.url")
        if url is None:
            return None
        return str(url)
    path = Path(name).expanduser()
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        url = path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"storage.file: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"storage.file: {path} cannot be read: not UTF-8 text") from None
    is_open_to_others = mode & 0o077 != 0
    if is_open_to_others:
        raise ConfigError(
            f"storage.file: {path} must be readable by its owner only, since it may hold a "
            f"password; got mode {mode:04o}; run chmod 600 {path}"
        )
    if not url:
        raise ConfigError(
            f"storage.file: {path} is empty; put postgresql://user:password@host/database into it"
        )
    return url


@dataclass(frozen=True)
class StudyAddress:
    """The storage URL of a study and its name, as a run directory has them; None if it does not."""

    url: str | None
    name: str | None


def read_run(run_dir: Path, *, trusted: bool = False) -> tuple[str, str]:
    """Reads the storage URL and the name of the study of a run directory.

    Args:
        trusted: whether the user says that the directory is theirs. That is noted in the directory
            for later commands.

    Raises:
        ConfigError: no study has run there; or the URL of its database has no value; or the
            directory is not trusted, and the database lies outside of it.
    """
    config = read_written(run_dir, "config.yaml")
    if trusted:
        mark_trusted(run_dir)
    if trusted or is_trusted(run_dir):
        address = _read_trusted(config)
    else:
        address = _read_untrusted(run_dir, config)
    url = _relocate(address.url, run_dir)
    if url is None:
        path = run_dir / ".hydra" / "config.yaml"
        raise ConfigError(f"{path}: storage.url has no value; put the URL into STUDYLOOM_STORAGE")
    return url, str(address.name)


def _relocate(url: str | None, run_dir: Path) -> str | None:
    """Returns the storage URL of a run directory, as it is reached from here.

    A database in the run directory gets a new URL, since the directory may have been moved, or the
    working directory may be another one. The URL of any other database is returned as it is.
    """
    if url is not None and url.startswith(EMBEDDED):
        return f"{EMBEDDED}{run_dir}/postgres"
    sqlite_file = run_dir / "study.db"
    if sqlite_file.exists():
        return f"sqlite:///{sqlite_file}"
    return url


def _read_trusted(config: DictConfig) -> StudyAddress:
    """Reads the address in the config of a trusted run directory, with resolved interpolations."""
    name = str(value_at(config, "study.name"))
    try:
        return StudyAddress(read_storage_url(config), name)
    except InterpolationResolutionError:  # a variable is not set
        return StudyAddress(None, name)


def _read_untrusted(run_dir: Path, config: DictConfig) -> StudyAddress:
    """Reads the address in the config of an untrusted run directory.

    Its interpolations are not resolved, except one of the environment variable STUDYLOOM_STORAGE.

    Raises:
        ConfigError: the database is neither in the directory, nor that of STUDYLOOM_STORAGE.
    """
    sections = written_values(config)
    try:
        url = str(sections["storage"]["url"])
        name = str(sections["study"]["name"])
    except (LookupError, TypeError):  # the file has no such keys
        return StudyAddress(None, None)
    if url.startswith(f"${{oc.env:{STORAGE.name}"):
        return StudyAddress(STORAGE.get(), name)
    # A study.db in the directory replaces the URL, whatever that names; see `_relocate`.
    is_in_run_dir = url.startswith(EMBEDDED) or (run_dir / "study.db").exists()
    if not is_in_run_dir:
        raise untrusted_run(run_dir, "names a database outside of it")
    return StudyAddress(url, name)


def read_written(run_dir: Path, name: str) -> DictConfig:
    """Reads a file that Hydra wrote into a run directory, such as config.yaml, as data.

    Raises:
        ConfigError: it does not exist, or Hydra did not write it.
    """
    try:
        return read_yaml(run_dir / ".hydra" / name, trusted=is_trusted(run_dir))
    except FileNotFoundError:
        suggestion = nearest(run_dir, sibling_runs(run_dir))
        raise ConfigError(
            f"{run_dir}: no study has run there; a run directory holds .hydra/{name}{suggestion}"
        ) from None
    except NotADirectoryError:
        raise ConfigError(f"{run_dir}: must be a folder, in which a study has run") from None


def sibling_runs(run_dir: Path) -> list[str]:
    """Returns the run directories next to a misspelled one, for a suggestion.

    At most SIBLINGS entries of the folder are looked at, since it may be large.
    """
    siblings = []
    with suppress(OSError):
        entries = itertools.islice(run_dir.parent.iterdir(), SIBLINGS)
        for path in entries:
            if (path / ".hydra").is_dir():
                siblings.append(str(path))
    return sorted(siblings)


def untrusted_run(run_dir: Path, why: str) -> ConfigError:
    """Returns the error for an untrusted run directory whose `.hydra/` needs consent.

    Args:
        why: the end of the sentence "its .hydra/ …", such as "names a database outside of it".
    """
    return ConfigError(
        f"{run_dir}: there is no record here that you ran a command in it, and its .hydra/ "
        f"{why}; if you trust it with your machine, add --trust-config"
    )


def config_folders(hydra_config: DictConfig) -> dict[str, str]:
    """Returns the config folders of a command, by where each was named.

    Args:
        hydra_config: the section `hydra` of the command's config.
    """
    folders = {}
    for source in hydra_config.runtime.config_sources:
        if source.schema == "file":
            folders[str(source.provider)] = str(source.path)
    return folders
