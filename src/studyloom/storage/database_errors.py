"""Failures of a database as errors of ours: with the driver's words, a fix, and no password.

A failure is transient if a later try may succeed, such as a server that restarts, and permanent
otherwise, such as a wrong password. `retry.Retry` repeats a call only after a transient one.
"""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, StatementError

from studyloom.errors import StorageError, StorageLost
from studyloom.installation import pip_install
from studyloom.storage.urls import has_several_hosts, without_password

# SQLSTATEs of PostgreSQL
READ_ONLY = "25006"  # a write on a standby, such as one that is about to be promoted
LOCK_TIMEOUT = "55P03"  # a try that has waited for its lock too long
STATEMENT_TIMEOUT = "57014"
IDLE_TIMEOUT = "25P03"  # a transaction that was idle too long
TRANSACTION_TIMEOUT = "25P04"
# How the SQLSTATE of a transient failure begins.
TRANSIENT_STATES = (
    "08",  # connection
    "57P",  # shutdown or start of the server
    "53300",  # too many connections
    "40001",  # serialization
    "40P01",  # deadlock
    LOCK_TIMEOUT,
    STATEMENT_TIMEOUT,
    IDLE_TIMEOUT,
    TRANSACTION_TIMEOUT,
    READ_ONLY,
)
TRANSACTION_STATES = "25P"  # how the SQLSTATEs begin for which a server ends a transaction
TRANSIENT_SQLITE_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
# A connection that is refused while it is made has no SQLSTATE. Its failure is transient unless the
# message has one of these phrases.
PERMANENT_PHRASES = (
    "authentication failed",
    "no password supplied",
    "pg_hba.conf",
    "not permitted",
    "permission denied",
    "does not exist",
    "certificate",
    "not support ssl",
    "unsupported startup parameter",
)
# Fixes, by a phrase of the driver's message.
FIXES = {
    "unable to open database file": (
        "no permission, or no such folder; SQLite writes next to the file even to read it, so copy "
        "the folder to where you may write"
    ),
    "readonly database": "no permission to write there",
    "interrupted": "it takes longer to read than an untrusted file may",
    "file is not a database": "something else is stored under that name",
    "malformed": "the file is damaged; put a copy back, or start again under another run_dir",
    "disk is full": "free some space, or name another run_dir",
    "disk i/o error": "its disk is full or failing",
    "no space left": "free some space on the server's disk",
    "no such table": (
        "it holds no studies yet, or was emptied; the first run of a study creates its tables"
    ),
    'relation "alembic_version" does not exist': (
        "it holds no studies yet; the first run of a study creates its tables"
    ),
    "database is locked": "another program keeps it from being written; end that program",
    "lock timeout": "another program keeps its rows locked; end that program",
    "statement timeout": "raise statement_timeout of the role or database",
    "in a read-only transaction": (
        "the server does not take writes: a standby that was not promoted, or "
        "default_transaction_read_only; name all hosts and target_session_attrs=read-write"
    ),
    "session is read-only": "none of its hosts takes writes; promote one",
    "unsupported startup parameter": (
        "add options to ignore_startup_parameters in the settings of pgbouncer"
    ),
    "authentication failed": "check user and password in storage.url or STUDYLOOM_STORAGE",
}


def sqlstate(error: DBAPIError) -> str:
    """Returns PostgreSQL's code of a failure; an empty text if it has none, as on SQLite."""
    return getattr(error.orig, "sqlstate", None) or ""


def diagnose(error: BaseException, address: URL) -> StorageLost:
    """Turns a failure of SQLAlchemy or Optuna into an error with the driver's words and a fix.

    The error says whether a later try may succeed (`is_transient`), and whether the connection had
    been lost since the previous call (`connection_broke`).
    """
    subject = f"storage.url: cannot use {without_password(address)}"
    driver_error = _find_driver_error(error)
    if driver_error is None:
        cause = error.__cause__ or error
        # All connections of the pool are in use, by threads that wait.
        pool_is_used_up = isinstance(cause, sqlalchemy.exc.TimeoutError)
        message = f"{subject}: {driver_message(error, address)}"
        return StorageLost(message, is_transient=pool_is_used_up)
    # If the server has ended the connection because of its transaction, it was in use, and was not
    # lost before this call.
    ended_with_transaction = sqlstate(driver_error).startswith(TRANSACTION_STATES)
    connection_broke = driver_error.connection_invalidated and not ended_with_transaction
    message = f"{subject}: {driver_message(driver_error, address)}"
    return StorageLost(
        message,
        is_transient=_is_transient(driver_error, address),
        connection_broke=connection_broke,
    )


def _find_driver_error(error: BaseException) -> DBAPIError | None:
    """Finds the driver's error: SQLAlchemy and Optuna wrap it, and may fail again because of it."""
    candidate: BaseException | None = error
    while candidate is not None:
        if isinstance(candidate, DBAPIError):
            return candidate
        candidate = candidate.__cause__ or candidate.__context__
    return None


def _is_transient(error: DBAPIError, address: URL) -> bool:
    """Returns whether a later try may succeed: by the failure's code, or else by its message."""
    if isinstance(error.orig, sqlite3.Error):
        code = getattr(error.orig, "sqlite_errorcode", 0)
        primary_code = code & 0xFF  # the upper bits give details
        return primary_code in TRANSIENT_SQLITE_CODES
    state = sqlstate(error)
    if state:
        return state.startswith(TRANSIENT_STATES)
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    # The quoted names of users and databases may contain any phrase, so they are taken out.
    message = re.sub('"[^"]*"', "", str(error.orig)).lower()
    if not has_several_hosts(address):
        return not _is_permanent(message)
    # A failure of several hosts is permanent only if it is permanent at all of them: one host may
    # be about to be set up again while another one is promoted. The message of each host begins
    # with "- host: " in a separate line.
    messages_of_hosts = message.split("\n- host: ")[1:] or [message]
    return not all(_is_permanent(host_message) for host_message in messages_of_hosts)


def _is_permanent(message: str) -> bool:
    return any(phrase in message for phrase in PERMANENT_PHRASES)


def driver_message(error: BaseException, address: URL | None = None) -> str:
    """Formats the driver's message for a failure on one line, with a fix if one is known.

    Args:
        error: The failure, or an exception that it has caused.
        address: The database, whose password is left out.
    """
    root_cause = error
    while root_cause.__cause__ is not None:
        root_cause = root_cause.__cause__
    if isinstance(root_cause, StatementError) and root_cause.orig is not None:
        root_cause = root_cause.orig
    message = " ".join(str(root_cause).split()) or type(root_cause).__name__
    # For several hosts psycopg repeats all failures after the last one.
    all_failures = message.partition("Multiple connection attempts failed. All failures were: ")[2]
    if all_failures:
        message = all_failures
    if address is not None and address.password:
        message = message.replace(str(address.password), "***")
    for phrase, fix in FIXES.items():
        if phrase in message.lower():
            return f"{message} ({fix})"
    return message


def file_gone(address: URL) -> StorageLost:
    """Returns the error of a SQLite database whose file was deleted or replaced."""
    return StorageLost(
        f"storage.url: cannot use {without_password(address)}: the file was deleted, moved, "
        "replaced or emptied, or its disk is away; put it back, or start again under another "
        "run_dir"
    )


@contextmanager
def explain_errors(address: URL) -> Iterator[None]:
    """Turns the failure to open a database in the body into a StorageError without its password.

    It is StorageLost only if the body has waited for the database until the deadline. Optuna raises
    RuntimeError for tables of another version.
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
            f"{pip_install('postgres')} ({error})"
        ) from None
    except (OSError, RuntimeError) as error:
        raise StorageError(
            f"storage.url: cannot use {without_password(address)}: {driver_message(error, address)}"
        ) from None
