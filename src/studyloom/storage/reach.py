"""Whether the database that a config names is within reach of all workers of a study."""

import math
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from studyloom.config.runs import storage_url
from studyloom.errors import ConfigError
from studyloom.files import filesystem_of, is_network_filesystem
from studyloom.storage.database import connections_left
from studyloom.storage.urls import folder_of, parse_url


def required_url(cfg: DictConfig) -> str:
    """Reads the storage URL of a config; raises ConfigError if it is missing or invalid."""
    url = storage_url(cfg)
    if url is None:
        raise ConfigError(
            "storage.url must be set; put postgresql://user:password@host/database into "
            "STUDYLOOM_STORAGE, or into a file of mode 0600 that storage.file names"
        )
    if folder_of(url) is None:
        parse_url(url)
    return url


def check_database_reach(url: str, *, several: bool, leaves_host: bool) -> Iterator[str]:
    """Yields an error if workers cannot reach a database of files on this host.

    Args:
        several: whether there is more than one worker.
        leaves_host: whether workers may run on other hosts.
    """
    embedded = folder_of(url)
    address = parse_url(url) if embedded is None else None
    if address is not None and address.get_backend_name() != "sqlite":
        return
    files = embedded or Path(str(address and address.database)).absolute()
    filesystem = filesystem_of(files.parent)
    if leaves_host:
        place = "a server on 127.0.0.1" if embedded else f"a file on this host ({files})"
        yield (
            f"storage.url: {place} is out of reach for workers on other hosts; set storage=postgres"
            ", and STUDYLOOM_STORAGE to the URL of a PostgreSQL server"
        )
    elif is_network_filesystem(filesystem) and (embedded or several):
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
