"""Connections: their options, the lock of the process that creates tables, and plain errors."""

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import sqlalchemy
from filelock import FileLock
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import SQLAlchemyError

from studyloom.errors import StorageError, StorageLost
from studyloom.storage.retry import Retry, driver_message
from studyloom.storage.urls import parse_url, without_password

LOCK_KEY = 0x5374756479  # PostgreSQL advisory lock of the process that creates tables and studies
# How long a single try waits for another's lock. SQLite waits without noticing a Ctrl-C.
BUSY_SECONDS = 5
POSTGRES = {
    "connect_timeout": 10,
    "keepalives_idle": 20,  # a server that vanished is noticed in 40 s, and not in two hours
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 40_000,
    # A worker that is stopped within a transaction (SIGSTOP, a laptop's lid) must not keep its
    # rows from the others for ever.
    "options": (
        f"-c timezone=UTC -c lock_timeout={BUSY_SECONDS}s "
        "-c idle_in_transaction_session_timeout=60s"
    ),
}
LIMITS_QUERY = """
    SELECT current_setting('max_connections')::int
           - (SELECT sum(numbackends) FROM pg_stat_database)
           - CASE WHEN rolsuper THEN 0 ELSE current_setting('superuser_reserved_connections')::int
           + coalesce(current_setting('reserved_connections', true), '0')::int END,
        CASE WHEN rolsuper OR rolconnlimit < 0 THEN NULL ELSE rolconnlimit
           - (SELECT count(*) FROM pg_stat_activity WHERE usename = current_user) END,
        CASE WHEN rolsuper OR datconnlimit < 0 THEN NULL ELSE datconnlimit
           - (SELECT numbackends FROM pg_stat_database s WHERE s.datname = d.datname) END
    FROM pg_roles, pg_database d WHERE rolname = current_user AND d.datname = current_database()"""
LIMITS = (  # of the three columns of LIMITS_QUERY
    "max_connections of the server",
    "CONNECTION LIMIT of the role",
    "CONNECTION LIMIT of the database",
)


# psycopg logs an error that it ignores because another one is on its way to its caller. We report
# that one; the line would stand in a worker's log among those of the outage.
logging.getLogger("psycopg").addFilter(
    lambda record: not str(record.msg).startswith("error ignored")
)


class Closable(Protocol):
    """What holds connections."""

    def close(self) -> None: ...


Opened = TypeVar("Opened", bound=Closable)


@contextmanager
def closed_on_error(opened: Opened) -> Iterator[Opened]:
    """Closes a storage or a study if the body raises an error, since nobody gets it then."""
    try:
        yield opened
    except BaseException:
        opened.close()
        raise


def import_lazy_modules() -> None:
    """Imports what SQLAlchemy imports when the first database is opened, once for all forks."""
    import sqlalchemy.dialects.sqlite  # noqa: F401


def is_sqlite(address: URL) -> bool:
    return address.get_backend_name() == "sqlite"


def sqlite_path(address: URL) -> Path:
    """Returns the absolute path of a SQLite database."""
    return Path(str(address.database)).absolute()


def existing_file(address: URL) -> URL:
    """Returns the URL of a SQLite file that opening does not create.

    Opening a file that was deleted is an error then, instead of an empty database in its place.
    """
    path = quote(str(sqlite_path(address)))
    return URL.create("sqlite", database=f"file:{path}", query={"mode": "rw", "uri": "true"})


def libpq_arguments(address: URL, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Selects the arguments for libpq that go with what a URL asks of it (TLS, a schema, …).

    Args:
        address: A URL of PostgreSQL; what it names in its query takes precedence.
        defaults: Arguments of libpq, with "options" among them; the URL's own are appended there.
    """
    arguments = {name: value for name, value in defaults.items() if name not in address.query}
    options = [defaults["options"], *address.normalized_query.get("options", ())]
    return arguments | {"options": " ".join(options)}


def connections_left(url: str | URL) -> tuple[float, str]:
    """Counts the further connections that a server would accept from this user now.

    Args:
        url: The database, with user and password.

    Returns:
        The count, and the name of the limit that is the narrowest; infinity for SQLite, and for a
        connection pooler, which lets more clients wait than a server takes.

    Raises:
        StorageError: The server cannot be reached.
    """
    address = parse_url(url)
    if is_sqlite(address):
        return math.inf, "none"

    def ask() -> sqlalchemy.Row[Any] | None:
        with plain_engine(address).connect() as connection:
            server = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            client: Any = connection.connection.driver_connection
            if client.info.backend_pid != server:
                return None  # a pool of connections, which has limits of its own
            return connection.exec_driver_sql(LIMITS_QUERY).one()

    with explained(address):
        left = Retry(address, 0.0).run(ask)
    if left is None:
        return math.inf, "none of a connection pooler is known"
    # The connection that asked is closed by now, hence the 1.
    return min(
        (1.0 + float(number), limit)
        for number, limit in zip(left, LIMITS, strict=True)
        if number is not None
    )


def plain_engine(address: URL, *, create: bool = False) -> sqlalchemy.Engine:
    """Makes an engine without hooks, pool or transactions, to look at a database or lock it.

    Args:
        address: The database.
        create: Whether a SQLite file is made that is missing.
    """
    arguments: dict[str, Any]
    if is_sqlite(address):
        new = URL.create("sqlite", database=str(sqlite_path(address)))
        target, arguments = new if create else existing_file(address), {"timeout": 2 * BUSY_SECONDS}
    else:
        target = address
        arguments = libpq_arguments(address, POSTGRES | {"options": "-c timezone=UTC"})
    return sqlalchemy.create_engine(
        target,
        poolclass=sqlalchemy.pool.NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args=arguments,
    )


@contextmanager
def exclusive(url: str | URL, *, deadline: float = 0.0) -> Iterator[None]:
    """Holds the lock of the one process that creates tables and study.

    12 processes that tried together crashed up to 11 of them.

    Args:
        url: The database. The folder of a SQLite file is created.
        deadline: Seconds to wait for a database that is away; by default none, so that a person
            learns of a mistyped host at once.

    Raises:
        StorageError: The database cannot be reached, or the folder not be written.
        StorageLost: It stayed away until the deadline.
    """
    address = parse_url(url)
    with _file_lock(address) if is_sqlite(address) else _server_lock(address, deadline):
        yield


@contextmanager
def _file_lock(address: URL) -> Iterator[None]:
    path = sqlite_path(address)
    with explained(address):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# Of this transaction alone: behind a pool of connections the next one may be another client's.
WAIT_FOR_EVER = """
    SELECT set_config(name, '0', true) FROM pg_settings WHERE name IN (
        'statement_timeout', 'lock_timeout', 'transaction_timeout',
        'idle_in_transaction_session_timeout'
    )"""


@contextmanager
def _server_lock(address: URL, deadline: float) -> Iterator[None]:
    """Holds a lock of the server for as long as a transaction that does nothing else is open.

    A lock of a session would stay behind in a pool of connections (pgbouncer with
    `pool_mode = transaction`): its release may reach another session than the lock.
    """

    def acquire() -> Connection:
        connection = plain_engine(address).connect()
        try:
            connection.exec_driver_sql("BEGIN")
            connection.exec_driver_sql(WAIT_FOR_EVER)
            connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(LOCK_KEY)))
        except BaseException:
            connection.close()
            raise
        return connection

    with explained(address):
        connection = Retry(address, deadline).run(acquire)
    try:
        yield
    finally:
        # The lock goes with the connection, also if that was lost before.
        with contextlib.suppress(SQLAlchemyError):
            connection.exec_driver_sql("COMMIT")
        with contextlib.suppress(SQLAlchemyError):
            connection.close()


@contextmanager
def explained(address: URL) -> Iterator[None]:
    """Turns whatever opening a database raises into a StorageError that shows no password.

    Raises:
        StorageError: The database cannot be used, for the reason that the body ended with.
        StorageLost: The body waited for the database in vain.
    """
    try:
        yield
    except StorageLost as lost:
        if lost.waited:
            raise
        raise StorageError(str(lost)) from None
    except StorageError:
        raise
    except ImportError as error:
        raise StorageError(
            f"storage.url: {without_password(address)} needs a driver; "
            f"pip install 'studyloom[postgres]' ({error})"
        ) from None
    except (OSError, RuntimeError) as error:
        raise StorageError(
            f"storage.url: cannot use {without_password(address)}: {driver_message(error, address)}"
        ) from None
