"""TODO storage.connections."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy
from filelock import FileLock
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import SQLAlchemyError

from studyloom.errors import StorageError, StorageLost
from studyloom.storage.retry import Retry, driver_message
from studyloom.storage.urls import parse_url, without_password

LOCK_KEY = 0x5374756479  # PostgreSQL advisory lock of whoever makes tables and studies
BUSY_SECONDS = 5  # a single try waits so long for another's lock; SQLite does so deaf to Ctrl-C
POSTGRES = {
    "connect_timeout": 10,
    "keepalives_idle": 20,  # a server that vanished is noticed in 40 s, and not in two hours
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 40_000,
    # A worker that is stopped within a transaction (SIGSTOP, a laptop's lid) keeps no other from its rows for ever.
    "options": f"-c timezone=UTC -c lock_timeout={BUSY_SECONDS}s -c idle_in_transaction_session_timeout=60s",
}


def existing_file(address: URL) -> URL:
    """A SQLite file that is not made by opening it: one that is deleted is an error, and no empty one its heir."""
    path = quote(str(Path(str(address.database)).absolute()))
    return URL.create("sqlite", database=f"file:{path}", query={"mode": "rw", "uri": "true"})


def libpq_arguments(address: URL, ours: Mapping[str, Any]) -> dict[str, Any]:
    """What we ask of libpq beside what a URL asks of it (TLS, a schema, …), which goes before ours."""
    arguments = {name: value for name, value in ours.items() if name not in address.query}
    return arguments | {
        "options": " ".join([ours["options"], *address.normalized_query.get("options", ())])
    }


def connections_left(url: str) -> tuple[float, str]:
    """How many connections a server would give this user now, beside those that are open, and by which limit.

    Raises:
        StorageError: it cannot be reached.
    """
    address = parse_url(url)
    if address.get_backend_name() == "sqlite":
        return math.inf, "none"
    statement = """
        SELECT current_setting('max_connections')::int - (SELECT sum(numbackends) FROM pg_stat_database)
               - CASE WHEN rolsuper THEN 0 ELSE current_setting('superuser_reserved_connections')::int
               + coalesce(current_setting('reserved_connections', true), '0')::int END,
            CASE WHEN rolsuper OR rolconnlimit < 0 THEN NULL ELSE rolconnlimit
               - (SELECT count(*) FROM pg_stat_activity WHERE usename = current_user) END,
            CASE WHEN rolsuper OR datconnlimit < 0 THEN NULL ELSE datconnlimit
               - (SELECT numbackends FROM pg_stat_database s WHERE s.datname = d.datname) END
        FROM pg_roles, pg_database d WHERE rolname = current_user AND d.datname = current_database()"""

    def ask() -> sqlalchemy.Row[Any]:
        with plain_engine(address).connect() as connection:
            return connection.exec_driver_sql(statement).one()

    with explained(address):
        left = Retry(address, 0.0).run(ask)
    limits = (
        "max_connections of the server",
        "CONNECTION LIMIT of the role",
        "CONNECTION LIMIT of the database",
    )
    # The one that asks is closed by now.
    return min(
        (1.0 + float(number), limit)
        for number, limit in zip(left, limits, strict=True)
        if number is not None
    )


def plain_engine(address: URL) -> sqlalchemy.Engine:
    """An engine without hooks, pool or transactions, for whoever only looks at a database or takes a lock there."""
    sqlite = address.get_backend_name() == "sqlite"
    return sqlalchemy.create_engine(
        existing_file(address) if sqlite else address,
        poolclass=sqlalchemy.pool.NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args={"timeout": 2 * BUSY_SECONDS}
        if sqlite
        else libpq_arguments(address, POSTGRES | {"options": "-c timezone=UTC"}),
    )


@contextmanager
def exclusive(url: str, *, deadline: float = 0.0) -> Iterator[None]:
    """Held by the one process that makes tables and study: 12 that tried together crashed up to 11.

    Args:
        deadline: seconds to wait for a database that is away; by default a person hears of a mistyped host at once.
    """
    address = parse_url(url)
    if address.get_backend_name() == "sqlite":
        path = Path(str(address.database)).absolute()
        with explained(address):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_suffix(".lock"))
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
        return

    def acquire() -> Connection:
        connection = plain_engine(address).connect()
        connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_lock(LOCK_KEY)))
        return connection

    with explained(address):
        connection = Retry(address, deadline).run(acquire)
    try:
        yield
    finally:
        with contextlib.suppress(
            SQLAlchemyError
        ):  # the lock goes with the connection, also where that went first
            connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_unlock(LOCK_KEY)))
        with contextlib.suppress(SQLAlchemyError):
            connection.close()


@contextmanager
def explained(address: URL) -> Iterator[None]:
    """Turns what opening a database raises into a StorageError without the password."""
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
            f"storage.url: {without_password(address)} needs a driver: pip install 'studyloom[postgres]' ({error})"
        ) from None
    except (OSError, RuntimeError) as error:
        raise StorageError(
            f"storage.url: cannot use {without_password(address)}: {driver_message(error, address)}"
        ) from None
