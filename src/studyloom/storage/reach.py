"""Checks that the database that a config names is within reach of all workers of a study."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from studyloom.config.runs import read_storage_url
from studyloom.errors import ConfigError
from studyloom.files import filesystem_of, is_network_filesystem
from studyloom.storage import connections
from studyloom.storage.database_errors import explain_errors
from studyloom.storage.retry import Retry
from studyloom.storage.urls import embedded_server_folder, parse_url


def required_url(cfg: Mapping[str, Any]) -> str:
    """Reads the storage URL of a config; raises ConfigError if it is missing or invalid."""
    url = read_storage_url(cfg)
    if url is None:
        raise ConfigError(
            "storage.url must be set; put postgresql://user:password@host/database into "
            "STUDYLOOM_STORAGE, or into a file of mode 0600 that storage.file names"
        )
    # The URL of an embedded server is a folder, and nothing that could be parsed.
    if embedded_server_folder(url) is None:
        parse_url(url)  # only to raise an error if it is invalid
    return url


def check_database_reach(url: str, *, several: bool, leaves_host: bool) -> Iterator[str]:
    """Yields an error if workers cannot reach a database of files on this host.

    Args:
        several: Whether there is more than one worker.
        leaves_host: Whether workers may run on other hosts.
    """
    files = _files_of_database(url)
    if files is None:
        return
    is_embedded = embedded_server_folder(url) is not None
    if leaves_host:
        if is_embedded:
            place = "a server on 127.0.0.1"
        else:
            place = f"a file on this host ({files})"
        yield (
            f"storage.url: {place} is out of reach for workers on other hosts; set storage=postgres"
            ", and STUDYLOOM_STORAGE to the URL of a PostgreSQL server"
        )
        return
    # A single worker may use a SQLite file on a network disk. With an embedded server it may not:
    # the same command on another host would start a second server on the same files.
    filesystem = filesystem_of(files.parent)
    if is_network_filesystem(filesystem) and (is_embedded or several):
        if is_embedded:
            users = "two hosts"
        else:
            users = "several workers"
        yield (
            f"storage.url: {files} lies on a network disk ({filesystem}), where {users} would "
            "damage the database; name a local disk with run_dir=…, or use a PostgreSQL server"
        )


def _files_of_database(url: str) -> Path | None:
    """Returns a SQLite file or the folder of an embedded server; None for any other server."""
    folder = embedded_server_folder(url)
    if folder is not None:
        return folder
    address = parse_url(url)
    if connections.is_sqlite(address):
        return connections.sqlite_path(address)
    return None


def check_connections(url: str, workers: int) -> None:
    """Raises ConfigError unless the database server has two connections left for each worker.

    A single worker runs in this process, which is connected already.
    """
    if workers <= 1:
        return
    free_connections = count_free_connections(url)
    needed_connections = connections.CONNECTIONS_OF_WORKER * workers
    if free_connections < needed_connections:
        possible_workers = max(1, int(free_connections) // connections.CONNECTIONS_OF_WORKER)
        raise ConfigError(
            f"storage.url: {workers} workers take {needed_connections} connections, and the server "
            f"has {int(free_connections)} left (max_connections); set "
            f"launcher.workers={possible_workers}"
        )


FREE_CONNECTIONS = """
    SELECT current_setting('max_connections')::int
           - (SELECT sum(numbackends) FROM pg_stat_database)
           - CASE WHEN rolsuper THEN 0 ELSE current_setting('superuser_reserved_connections')::int
           + coalesce(current_setting('reserved_connections', true), '0')::int END
    FROM pg_roles WHERE rolname = current_user"""


def count_free_connections(url: str) -> float:
    """Counts the further connections that a server would accept from this user now.

    Infinity for SQLite, and for a connection pooler, which lets more clients wait than a server
    takes.
    """
    address = parse_url(url)
    if connections.is_sqlite(address):
        return math.inf

    def count() -> float:
        """Counts the connections in one try."""
        with connections.plain_engine(address).connect() as connection:
            # To a client that connects, a server sends the id of the process that will execute its
            # statements. A pooler such as pgbouncer sends another id.
            server_pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            psycopg_connection: Any = connection.connection.driver_connection
            is_pooled = psycopg_connection.info.backend_pid != server_pid
            if is_pooled:
                return math.inf
            free_now = connection.exec_driver_sql(FREE_CONNECTIONS).scalar_one()
            own_connection = 1.0  # it counts as used now, and is closed next
            return float(free_now) + own_connection

    with explain_errors(address):
        return Retry(address, deadline=0.0).run(count)
