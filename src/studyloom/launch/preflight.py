"""Checks that the workers of a launcher can work on a study, before any of them is started."""

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig

from studyloom.config.runs import storage_url
from studyloom.definition.definition import KEEPS_STATE, Definition
from studyloom.definition.validation import check_ranks
from studyloom.errors import ConfigError, StorageError
from studyloom.files import filesystem_of, is_network_filesystem
from studyloom.launch.task import Launcher
from studyloom.storage.database import connections_left
from studyloom.storage.embedded_server import folder_of
from studyloom.storage.urls import parse_url
from studyloom.study.opening import study_names


def required_url(cfg: DictConfig) -> str:
    """Reads the storage URL of a config; raises ConfigError if there is none, or a wrong one."""
    url = storage_url(cfg)
    if url is None:
        raise ConfigError(
            "storage.url must be set; put postgresql://user:password@host/database into "
            "STUDYLOOM_STORAGE, or into a file of mode 0600 that storage.file names"
        )
    if folder_of(url) is None:
        parse_url(url)
    return url


def check_parts(definition: Definition, launcher: Launcher) -> Iterator[str]:
    """Yields why ranks cannot share a trial, or workers the sampler and pruner, of a definition."""
    yield from check_ranks(definition, getattr(launcher, "ranks", 1))
    yield from check_one_process(definition, launcher)


def check_one_process(definition: Definition, launcher: Launcher) -> Iterator[str]:
    """Yields the mistake that several workers are started for a part that keeps its state."""
    workers = launcher.count(definition.trials())
    if definition.keeps_state and workers > 1:
        parts = " and ".join(definition.keeps_state)
        yield (
            f"{parts}: keeps its state in one process ({KEEPS_STATE}), and the launcher starts "
            f"{workers} workers; set launcher.workers=1, or derive the state from the trials"
        )


def check_database_reach(url: str, launcher: Launcher) -> Iterator[str]:
    """Yields the mistake that workers cannot reach a database of files on this host."""
    embedded = folder_of(url)
    address = parse_url(url) if embedded is None else None
    if address is not None and address.get_backend_name() != "sqlite":
        return
    files = embedded or Path(str(address and address.database)).absolute()
    filesystem = filesystem_of(files.parent)
    if launcher.leaves_host:
        place = "a server on 127.0.0.1" if embedded else f"a file on this host ({files})"
        yield (
            f"storage.url: {place} is out of reach for workers on other hosts; set storage=postgres"
            ", and STUDYLOOM_STORAGE to the URL of a PostgreSQL server"
        )
    elif is_network_filesystem(filesystem) and (embedded or launcher.count(2) > 1):
        users = "two hosts" if embedded else "several workers"
        yield (
            f"storage.url: {files} lies on a network disk ({filesystem}), where {users} would "
            "damage the database; name a local disk with run_dir=…, or use a PostgreSQL server"
        )


def check_connections(url: str, workers: int) -> None:
    """Checks that the database server has two connections left for each worker.

    A single worker runs in this process, which is connected already.
    """
    left = connections_left(url) if workers > 1 else math.inf
    if left < 2 * workers:
        raise ConfigError(
            f"storage.url: {workers} workers take {2 * workers} connections, and the server has "
            f"{left:.0f} left (max_connections); set launcher.workers={max(1, left // 2):.0f}"
        )


def start_cluster(launcher: Launcher, url: str, name: str, trials: int, run_dir: Path) -> None:
    """Starts what a launcher works on, if it has a `start`, before it may fail a new study.

    Raises:
        LaunchError: the cluster does not start.
    """
    if start := getattr(launcher, "start", None):
        with suppress(StorageError):
            if name in study_names(url, deadline=0.0):  # there may be nothing left to do
                return
        start(trials, run_dir)
