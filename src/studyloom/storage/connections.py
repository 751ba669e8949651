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
PROBES = 4  # that a silent server does not answer until its connection is lost
# Seconds that a single try waits for a lock that another process holds. While SQLite waits, a
# Ctrl-C has no effect.
BUSY_SECONDS = 5
LEASE = 60.0  # seconds after which a lock is lost that its process does not renew
RENEWALS = 3  # how often a process renews a lease in that time
CONNECTIONS_OF_WORKER = 2  # to a server, at most
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
    """Returns after how many seconds without an answer a connection counts as lost.

    It is at most half the deadline, so that there is time for another try.

    Args:
        deadline: Seconds that a call on the database waits for it; 0 for a call that is not
            repeated.
    """
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
    """Returns device and inode of a SQLite file, which a file that replaces it does not have.

    None if there is no file, or an empty one.
    """
    try:
        status = os.stat(str(address.database))
    except OSError:
        return None
    if status.st_size == 0:
        return None
    return status.st_dev, status.st_ino


def without_creation(address: URL) -> URL:
    """Returns the URL with which SQLite opens a file only if it exists.

    SQLite creates a file that is missing, so a file that was deleted would look like an empty
    database. The returned URL names the same file in SQLite's own URI syntax, which has a mode:
    `sqlite:///file:/folder/study.db?mode=rw&uri=true`.
    """
    path = sqlite_path(address)
    query = {"mode": "rw", "uri": "true"}
    if on_read_only_disk(address):
        query["mode"] = "ro"
        if not _has_pending_commits(path):
            # To lock the file, SQLite would create files next to it, which it cannot. With this it
            # takes no lock: nothing can change the file.
            query["immutable"] = "1"
    return URL.create("sqlite", database=f"file:{quote(str(path))}", query=query)


def _has_pending_commits(path: Path) -> bool:
    """Returns whether SQLite's write-ahead log next to a file has commits that the file lacks."""
    log_file = path.with_name(f"{path.name}-wal")
    return log_file.exists() and log_file.stat().st_size > 0


def on_read_only_disk(address: URL) -> bool:
    """Returns whether a SQLite file lies on a disk that is mounted read-only."""
    try:
        return bool(os.statvfs(sqlite_path(address)).f_flag & os.ST_RDONLY)
    except OSError:  # there is no file
        return False


# Untrusted SQLite files

LONGEST_CELL = 10**6  # bytes
INSTRUCTIONS_PER_LOOK = 10_000  # that SQLite executes between looks at the time
# Queries for the names of views, triggers and virtual tables, and of tables that compute columns.
QUERIES_FOR_CODE = (
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


def limit_untrusted(connection: object, _record: object) -> None:
    """Limits a new connection to an untrusted file, by time and size, and refuses code in it.

    It listens to SQLAlchemy's event `connect`. A connection that this thread opens outside of
    `untrusted`, or to a server, stays unchanged.

    Raises:
        StorageError: The file has a view or trigger, or a table that computes columns or rows.
    """
    end = call_state.untrusted_until
    if end is None or not isinstance(connection, sqlite3.Connection):
        return

    def is_over() -> bool:
        return time.monotonic() > end

    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_CELL)
    # SQLite ends a query once the handler returns True.
    connection.set_progress_handler(is_over, INSTRUCTIONS_PER_LOOK)
    for query in QUERIES_FOR_CODE:
        row = connection.execute(query).fetchone()
        if row is not None:
            raise StorageError(f"{shorten(one_line(row[0]), 80)} is not a plain table")


# PostgreSQL servers


def libpq_arguments(address: URL, defaults: Mapping[str, Any], deadline: float) -> dict[str, Any]:
    """Returns the arguments for libpq, PostgreSQL's client, that a URL does not set itself.

    A server that vanished is noticed within the deadline, and not in two hours: after half of the
    longest silence the client sends four probes during the other half.

    Args:
        defaults: Further arguments, such as POSTGRES. The URL takes precedence over them; only its
            "options" are appended to theirs.
        deadline: Seconds that a call on the database waits for it.
    """
    silence = longest_silence(deadline)
    all_defaults = {
        **defaults,
        "tcp_user_timeout": round(1000 * silence),  # milliseconds
        "keepalives_idle": max(1, round(silence / 2)),  # seconds before the first probe
        "keepalives_interval": max(1, round(silence / 2 / PROBES)),  # seconds between probes
        "keepalives_count": PROBES,
    }
    arguments = {name: value for name, value in all_defaults.items() if name not in address.query}
    options = [defaults["options"], *address.normalized_query.get("options", ())]
    arguments["options"] = " ".join(options)
    return arguments


def limit_connect_time(
    _dialect: object, _record: object, _positional: object, arguments: dict[str, Any]
) -> None:
    """Shortens `connect_timeout` in the arguments of a connection to what is left of the try.

    A try to call the database must end in time, see `CallState.try_ends`. The function listens to
    SQLAlchemy's event `do_connect`, which lets it change the arguments in place.
    """
    try_ends = call_state.try_ends
    if try_ends is None:  # the call has no deadline
        return
    if "connect_timeout" not in arguments:  # the database is SQLite
        return
    # libpq tries one host after the other, each for as long as `connect_timeout` says.
    host_count = str(arguments.get("host", "")).count(",") + 1
    seconds_for_host = (try_ends - time.monotonic()) / host_count
    # libpq waits for a host no shorter than LEAST_TRY, and takes 0 or less for no limit.
    longest_timeout = max(LEAST_TRY, math.ceil(seconds_for_host))
    configured_timeout = int(arguments["connect_timeout"])
    is_unlimited = configured_timeout <= 0  # as libpq reads it
    if is_unlimited:
        arguments["connect_timeout"] = longest_timeout
    else:
        arguments["connect_timeout"] = min(configured_timeout, longest_timeout)


def plain_engine(address: URL, deadline: float = 0.0, *, create: bool = False) -> sqlalchemy.Engine:
    """Makes an engine to look at a database once, or to lock it.

    Each use makes a new connection, and each statement is committed by itself, unless the caller
    sends BEGIN. The storage that workers use is a `database.RetryingStorage` instead.

    Args:
        deadline: Seconds that the caller waits for a server that is away.
        create: Whether to create a SQLite file that is missing; else opening it is an error.
    """
    if is_sqlite(address):
        # Seconds to wait for the lock of a writer: longer than a worker's single try, since a
        # caller whose deadline is 0 does not try again.
        arguments: dict[str, Any] = {"timeout": 2 * BUSY_SECONDS}
        if create:
            url = URL.create("sqlite", database=str(sqlite_path(address)))
        else:
            url = without_creation(address)
    else:
        # `creation_lock` waits on this engine for the process that creates tables, however long
        # that takes, so a time limit of the user's role or database must not end its statements.
        defaults = POSTGRES | {"options": WITHOUT_TIME_LIMITS}
        arguments = libpq_arguments(address, defaults, deadline)
        url = address
    engine = sqlalchemy.create_engine(
        url,
        poolclass=sqlalchemy.pool.NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args=arguments,
    )
    event.listen(engine, "do_connect", limit_connect_time)
    # It limits only SQLite files that are opened within `untrusted`.
    event.listen(engine, "connect", limit_untrusted)
    return engine


def has_no_tables(url: str) -> bool:
    """Returns whether a server has a database that has no tables yet; False if it is away."""
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
