"""Connections to SQLite files and PostgreSQL servers: their arguments, time limits and number.

A SQLite file that another person wrote is *untrusted*: it is read as data, within a time limit. A
view is code, which may run forever or fill the memory, and so is a table that computes its columns
or rows; a trigger is code that waits for a write.
"""

import math
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from studyloom.errors import StorageError
from studyloom.storage.call_state import call_state
from studyloom.storage.urls import parse_url
from studyloom.text import one_line, shorten

SILENCE = 40.0  # seconds after which a connection of a server that is silent is lost, at most
LEAST_TRY = 2  # seconds that libpq waits for a host, at least
# Seconds that a single try waits for a lock that another process holds. While SQLite waits, a
# Ctrl-C has no effect.
BUSY_SECONDS = 5
LEASE = 60.0  # seconds after which a lock is lost that its process does not renew
RENEWALS = 3  # how often a process renews a lease in that time
POSTGRES = {
    "connect_timeout": 10,
    # A worker that is stopped within a transaction (SIGSTOP, a laptop's lid) must not keep its
    # rows from the others forever.
    "options": (
        f"-c timezone=UTC -c lock_timeout={BUSY_SECONDS}s "
        f"-c idle_in_transaction_session_timeout={LEASE:.0f}s"
    ),
}
# A wait for the lock of the process that creates tables has no time limit.
WITHOUT_TIME_LIMITS = (
    "-c timezone=UTC -c statement_timeout=0 -c lock_timeout=0 "
    f"-c idle_in_transaction_session_timeout={LEASE:.0f}s"
)


def longest_silence(deadline: float) -> float:
    """Returns after how many silent seconds a connection is lost, at most half the deadline."""
    if deadline <= 0:
        return SILENCE
    return min(SILENCE, deadline / 2)


# SQLite files


def is_sqlite(address: URL) -> bool:
    return address.get_backend_name() == "sqlite"


def sqlite_path(address: URL) -> Path:
    """Returns the absolute path of a SQLite database."""
    return Path(str(address.database)).absolute()


def file_identity(address: URL) -> tuple[int, int] | None:
    """Returns device and inode of a SQLite database; None if there is no file, or an empty one."""
    try:
        status = os.stat(str(address.database))
    except OSError:
        return None
    if status.st_size == 0:
        return None
    return status.st_dev, status.st_ino


def existing_file(address: URL) -> URL:
    """Returns the URL of a SQLite file that opening does not create.

    Opening a file that was deleted is an error then, instead of an empty database. On a read-only
    disk SQLite reads the file without the lock and the log that it otherwise makes next to it.
    """
    path = sqlite_path(address)
    query = {"mode": "rw", "uri": "true"}
    if on_read_only_disk(address):
        query["mode"] = "ro"
        log_file = path.with_name(f"{path.name}-wal")
        log_has_commits = log_file.exists() and log_file.stat().st_size > 0
        if not log_has_commits:
            query["immutable"] = "1"
    return URL.create("sqlite", database=f"file:{quote(str(path))}", query=query)


def on_read_only_disk(address: URL) -> bool:
    """Returns whether a SQLite file lies on a disk that is mounted read-only."""
    try:
        return bool(os.statvfs(sqlite_path(address)).f_flag & os.ST_RDONLY)
    except OSError:  # there is no file
        return False


# Untrusted SQLite files

LONGEST_CELL = 10**6  # bytes
# Queries for the names of views, triggers and virtual tables, and of tables that compute columns.
CODE = (
    "SELECT name FROM sqlite_master WHERE type NOT IN ('table', 'index') OR rootpage = 0",
    "SELECT m.name FROM sqlite_master m, pragma_table_xinfo(m.name) c WHERE c.hidden",
)


@contextmanager
def untrusted(seconds: float | None) -> Iterator[None]:
    """Reads the SQLite files that this thread opens in the body as data, within a time limit.

    Args:
        seconds: The limit; None if the files are trusted.
    """
    if seconds is not None:
        call_state.untrusted_until = time.monotonic() + seconds
    try:
        yield
    finally:
        call_state.untrusted_until = None


def limit_untrusted(connection: object, _: object) -> None:
    """Limits a new connection to an untrusted file: its time and its cells; refuses code."""
    time_limit = call_state.untrusted_until
    if time_limit is None or not isinstance(connection, sqlite3.Connection):
        return

    def is_over() -> bool:
        return time.monotonic() > time_limit

    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_CELL)
    connection.set_progress_handler(is_over, 10_000)
    for query in CODE:
        row = connection.execute(query).fetchone()
        if row is not None:
            raise StorageError(f"{shorten(one_line(row[0]), 80)} is not a plain table")


# PostgreSQL servers


def libpq_arguments(address: URL, defaults: Mapping[str, Any], deadline: float) -> dict[str, Any]:
    """Selects libpq's default arguments that a URL (with TLS, a schema, …) leaves open.

    The URL takes precedence; its "options" are appended to ours. A server that vanished is noticed
    within the deadline, and not in two hours.
    """
    silence = longest_silence(deadline)
    all_defaults = {
        **defaults,
        "tcp_user_timeout": round(1000 * silence),  # milliseconds
        "keepalives_idle": max(1, round(silence / 2)),  # seconds before the first probe
        "keepalives_interval": max(1, round(silence / 8)),
        "keepalives_count": 4,
    }
    arguments = {name: value for name, value in all_defaults.items() if name not in address.query}
    options = [defaults["options"], *address.normalized_query.get("options", ())]
    arguments["options"] = " ".join(options)
    return arguments


def limit_connect_time(_: object, __: object, ___: object, arguments: dict[str, Any]) -> None:
    """Limits a try to connect to a server to the time that is left of the deadline."""
    try_ends = call_state.try_ends
    if "connect_timeout" not in arguments or try_ends is None:  # SQLite has no such argument
        return
    hosts = str(arguments.get("host", "")).count(",") + 1
    seconds = math.ceil((try_ends - time.monotonic()) / hosts)
    seconds = max(LEAST_TRY, seconds)
    own_limit = int(arguments["connect_timeout"])  # 0 stands for none
    if own_limit > 0:
        seconds = min(own_limit, seconds)
    arguments["connect_timeout"] = seconds


def plain_engine(address: URL, deadline: float = 0.0, *, create: bool = False) -> sqlalchemy.Engine:
    """Makes an engine without hooks, pool or transactions, to look at a database or lock it."""
    arguments: dict[str, Any]
    if is_sqlite(address):
        if create:
            target = URL.create("sqlite", database=str(sqlite_path(address)))
        else:
            target = existing_file(address)
        arguments = {"timeout": 2 * BUSY_SECONDS}
    else:
        target = address
        defaults = POSTGRES | {"options": WITHOUT_TIME_LIMITS}
        arguments = libpq_arguments(address, defaults, deadline)
    engine = sqlalchemy.create_engine(
        target,
        poolclass=sqlalchemy.pool.NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args=arguments,
    )
    event.listen(engine, "do_connect", limit_connect_time)
    event.listen(engine, "connect", limit_untrusted)
    return engine


def has_no_tables(url: str) -> bool:
    """Returns whether a server has a database that has no tables yet."""
    try:
        with plain_engine(parse_url(url)).connect() as connection:
            return not sqlalchemy.inspect(connection).get_table_names()
    except SQLAlchemyError:
        return False


class Closable(Protocol):
    """An object that holds connections, such as a storage or a study."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Closable)


@contextmanager
def closed_on_error(closable: C) -> Iterator[C]:
    """Closes an object if the body raises an error, since no caller gets it then."""
    try:
        yield closable
    except BaseException:
        closable.close()
        raise
