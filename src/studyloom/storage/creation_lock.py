"""The lock of the one process that creates tables and studies in a database.

Without it, up to 11 of 12 processes that started together crashed.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import sqlalchemy
from filelock import FileLock, Timeout
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from studyloom.processes import running_in_thread
from studyloom.storage import connections
from studyloom.storage.database_errors import LOCK_TIMEOUT, explain_errors, sqlstate
from studyloom.storage.retry import Retry
from studyloom.storage.urls import parse_url, without_password

LOCK_KEY = 0x5374756479  # the key of the lock among PostgreSQL's advisory locks
log = logging.getLogger(__name__)


def hold_creation_lock(url: str | URL, *, deadline: float = 0.0) -> AbstractContextManager[None]:
    """Holds the lock of the one process that creates tables and studies.

    The folder of a SQLite file is created. By default a database that is away is not waited for, so
    that a mistyped host fails at once. On a server the lock of a process that is stopped or cut off
    goes to another one after `connections.LEASE`; on a file it ends with the process.

    Args:
        deadline: Seconds to wait for a server that is away.
    """
    address = parse_url(url)
    if connections.is_sqlite(address):
        return _file_lock(address)
    return _server_lock(address, deadline)


def _describe_wait(address: URL) -> str:
    return f"waiting for another command, which opens a study in {without_password(address)}"


@contextmanager
def _file_lock(address: URL) -> Iterator[None]:
    """Holds the lock of a file NAME.lock next to the SQLite file NAME.db."""
    path = connections.sqlite_path(address)
    lock = FileLock(path.with_name(f"{path.stem}.lock"))
    with explain_errors(address):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(connections.BUSY_SECONDS)
        except Timeout:
            log.warning("%s; if that command is suspended, end it", _describe_wait(address))
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _server_lock(address: URL, deadline: float) -> Iterator[None]:
    """Holds a lock of the server for as long as a transaction that does nothing else is open.

    The lock is not one of a session. A pooler such as pgbouncer, with `pool_mode = transaction`,
    may execute the release in another session than the lock, and the lock would stay behind.

    PostgreSQL ends a transaction that is idle for longer than
    `idle_in_transaction_session_timeout`. So a thread executes a statement in it regularly.
    """
    with explain_errors(address):
        connection = Retry(address, deadline).run(lambda: _acquire(address, deadline))

    def renew_regularly(body_ended: threading.Event) -> None:
        with suppress(SQLAlchemyError):  # the lock is lost with its connection
            while not body_ended.wait(connections.LEASE / connections.RENEWALS):
                connection.exec_driver_sql("SELECT 1")

    try:
        with running_in_thread(renew_regularly):
            yield
    finally:
        # The lock ends with the transaction; both have ended if the connection was lost before.
        with suppress(SQLAlchemyError):
            connection.exec_driver_sql("COMMIT")
        with suppress(SQLAlchemyError):
            connection.close()


def _acquire(address: URL, deadline: float) -> sqlalchemy.Connection:
    """Waits for the server's lock, and returns the connection whose transaction holds it."""
    connection = connections.plain_engine(address, deadline).connect()
    with connections.closed_on_error(connection):
        is_announced = False
        while not _try_to_acquire(connection):  # which waits for some seconds
            if not is_announced:
                is_announced = True
                message = "%s; if that command is suspended, its lock ends after %g s"
                log.warning(message, _describe_wait(address), connections.LEASE)
    return connection


def _try_to_acquire(connection: sqlalchemy.Connection) -> bool:
    """Begins a transaction that holds the lock, one of PostgreSQL's advisory locks.

    Returns:
        False if another process holds the lock for longer than `connections.BUSY_SECONDS`.
    """
    # The limits are set here, because a pool of connections may ignore those of the options.
    connection.exec_driver_sql(
        "BEGIN; SET LOCAL statement_timeout = 0; "
        f"SET LOCAL lock_timeout = {1000 * connections.BUSY_SECONDS}; "
        f"SET LOCAL idle_in_transaction_session_timeout = {round(1000 * connections.LEASE)}"
    )
    try:
        connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(LOCK_KEY)))
    except OperationalError as error:
        if sqlstate(error) != LOCK_TIMEOUT:
            raise
        connection.exec_driver_sql("ROLLBACK")
        return False
    return True
