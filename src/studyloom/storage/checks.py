"""Checks of a database, for `studyloom doctor`: connection, tables, permission, locks, clock."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import optuna
import sqlalchemy
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import SQLAlchemyError

from studyloom.errors import StorageError
from studyloom.storage.connections import is_sqlite, plain_engine
from studyloom.storage.database import connect
from studyloom.storage.optuna_internals import TABLES
from studyloom.storage.retry import driver_message
from studyloom.storage.slots import SLOTS, foreign_table, lacking
from studyloom.storage.urls import without_password

SLOW = 0.05  # seconds for a commit; a trial makes some dozens
SKEW = 2.0  # seconds
COMMITS = 20
LOCK = 0x5374756480  # PostgreSQL advisory lock that only the two connections of a check ask for
# Only another process shows whether a file system keeps locks: within one process SQLite keeps them
# itself.
TAKE_LOCK = """
import sqlite3, sys
name, seconds = sys.argv[1], float(sys.argv[2])
connection = sqlite3.connect(name, uri=True, isolation_level=None, timeout=seconds)
try:
    connection.execute("BEGIN IMMEDIATE")
except sqlite3.OperationalError as error:
    sys.exit(str(error))
connection.execute("ROLLBACK")
"""


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"
    TODO = "to do"


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Args:
        state: TODO if a study cannot run before something is done.
        words: One line without a password: what was found and, unless it is ok, what to do.
    """

    state: State
    words: str


def ok(words: str) -> Finding:
    return Finding(State.OK, words)


def warning(words: str) -> Finding:
    return Finding(State.WARNING, words)


def todo(words: str) -> Finding:
    return Finding(State.TODO, words)


def check_database(address: URL) -> Iterator[tuple[str, Finding]]:
    """Checks a database that exists, and leaves nothing behind in it.

    Args:
        address: The database, as `parse_url` returns it.

    Yields:
        The name of each check and its finding; only the first if the database cannot be reached.
    """
    sqlite = is_sqlite(address)
    reached = run_check(lambda: _check_connection(address), address)
    yield "database", reached
    if reached.state is State.TODO:
        return
    tables = run_check(lambda: _check_tables(address), address)
    yield "tables", tables
    if tables.state is State.OK:
        yield "schema", run_check(lambda: _check_schema(address), address)
    yield "permission", run_check(lambda: _check_permission(address), address)
    check_lock = _check_file_lock if sqlite else _check_server_lock
    yield "locking", run_check(lambda: check_lock(address), address)
    yield "commit", run_check(lambda: _check_commit(address), address)
    check_clock = _check_same_clock if sqlite else _check_server_clock
    yield "clock", run_check(lambda: check_clock(address), address)


def run_check(check: Callable[[], Finding], address: URL) -> Finding:
    """Runs one check, and turns a failure of it into a finding without the password.

    Args:
        check: Returns a finding, or raises.
        address: The database, to be named.
    """
    try:
        return check()
    except StorageError as error:
        return todo(str(error))
    except SQLAlchemyError as error:
        return todo(f"{without_password(address)}: {driver_message(error, address)}")
    except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
        return todo(driver_message(error, address))


def _ask(connection: Connection, statement: str) -> Any:
    return connection.exec_driver_sql(statement).scalar()


def _check_connection(address: URL) -> Finding:
    name = without_password(address)
    with plain_engine(address).connect() as connection:
        if not is_sqlite(address):
            return ok(f"{name}, PostgreSQL {_ask(connection, 'SHOW server_version')}")
        damage = _ask(connection, "PRAGMA quick_check(1)")
        if damage != "ok":
            return todo(f"{name} is damaged ({' '.join(str(damage).split())}); put a copy back")
        return ok(f"{name}, SQLite {_ask(connection, 'SELECT sqlite_version()')}")


def _check_tables(address: URL) -> Finding:
    """Checks that Optuna's tables exist, and ours with all the columns that this version writes."""
    with plain_engine(address).connect() as connection:
        inspector = sqlalchemy.inspect(connection)
        existing = set(inspector.get_table_names())
        missing = sorted({*TABLES} - existing)
        if len(missing) == len(TABLES):
            return warning("none yet; the first run of a study creates them")
        if missing:
            return todo(
                f"missing: {', '.join(missing)}; run the study again, or put a copy of the "
                "database back"
            )
        lacks = lacking(connection)
        if lacks is None:
            return warning(f"Optuna's, without {SLOTS.name}; the first run of a study creates it")
        if lacks:
            return todo(foreign_table(lacks))
        return ok(f"Optuna's and {SLOTS.name}")


def _check_schema(address: URL) -> Finding:
    storage = connect(address, deadline=0)
    try:
        return ok(f"{storage.get_current_version()}, the one of Optuna {optuna.__version__}")
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _check_permission(address: URL) -> Finding:
    """Writes no rows to each table, or creates a table if there are none, and rolls back."""
    with plain_engine(address).connect() as connection:
        existing = sqlalchemy.inspect(connection).get_table_names()
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_sqlite(address) else "BEGIN")
        try:
            if not existing:
                connection.exec_driver_sql("CREATE TABLE studyloom_doctor (x INTEGER)")
                return ok("tables may be created")
            for name, table in {**TABLES, SLOTS.name: SLOTS}.items():
                if name not in existing:
                    continue
                if sequence := _write_nothing(connection, name, next(iter(table.columns)).name):
                    return todo(f"permission denied for sequence {sequence}: GRANT USAGE on it")
            return ok("every table may be written")
        finally:
            connection.exec_driver_sql("ROLLBACK")


def _write_nothing(connection: Connection, table: str, column: str) -> str | None:
    """Fails if this user may not insert into a table or update it.

    Returns:
        The sequence of the column, if this user may not use it.
    """
    connection.exec_driver_sql(f"INSERT INTO {table} SELECT * FROM {table} WHERE 1 = 0")
    connection.exec_driver_sql(f"UPDATE {table} SET {column} = {column} WHERE 1 = 0")
    if connection.dialect.name == "postgresql":
        sequence = _ask(connection, f"SELECT pg_get_serial_sequence('{table}', '{column}')")
        usable = f"SELECT has_sequence_privilege('{sequence}', 'USAGE')"
        if sequence and not _ask(connection, usable):
            return str(sequence)
    return None


def _check_file_lock(address: URL) -> Finding:
    """Checks that another process gets the write lock after this one has let it go, not before."""
    engine = plain_engine(address)
    name = str(engine.url.database) + "?mode=rw"

    def take_lock(seconds: int) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-I", "-c", TAKE_LOCK, name, str(seconds)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            during = take_lock(0)
        finally:
            connection.exec_driver_sql("ROLLBACK")
        if during.returncode == 0:
            return todo("two processes get the write lock at once; use a local disk, or PostgreSQL")
        if "locked" not in during.stderr:
            return todo(f"another process cannot open the database: {during.stderr.strip()}")
    after = take_lock(10)
    if after.returncode:
        return todo(f"another process cannot get the write lock: {after.stderr.strip()}")
    return ok("one writer at a time")


def _check_server_lock(address: URL) -> Finding:
    engine = plain_engine(address)
    with engine.connect() as first, engine.connect() as second:
        for connection in (first, second):
            connection.exec_driver_sql("BEGIN")
        _ask(first, f"SELECT pg_advisory_xact_lock({LOCK})")
        both = _ask(second, f"SELECT pg_try_advisory_xact_lock({LOCK})")
        first.exec_driver_sql("ROLLBACK")
        _ask(second, f"SELECT pg_advisory_xact_lock({LOCK})")
        second.exec_driver_sql("ROLLBACK")
    if both:
        return todo(
            "two connections hold one lock at once; if there is a connection pooler, connect to "
            "the server itself"
        )
    return ok("one holder at a time")


def _check_commit(address: URL) -> Finding:
    """Times commits that change nothing: SQLite's header as it was, a message that nobody reads."""
    sqlite = is_sqlite(address)
    seconds = []
    with plain_engine(address).connect() as connection:
        if sqlite:
            connection.exec_driver_sql("PRAGMA synchronous=NORMAL")
        for _ in range(COMMITS):
            began = time.perf_counter()
            connection.exec_driver_sql("BEGIN IMMEDIATE" if sqlite else "BEGIN")
            if sqlite:
                version = _ask(connection, "PRAGMA user_version")
                connection.exec_driver_sql(f"PRAGMA user_version = {version}")
            else:
                _ask(connection, "SELECT pg_logical_emit_message(true, 'studyloom doctor', '')")
            connection.exec_driver_sql("COMMIT")
            seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    words = f"{1000 * median:.1f} ms, the median of {COMMITS}"
    if median <= SLOW:
        return ok(words)
    return warning(
        f"{words}; report less often (longer epochs), or use a faster disk or a nearer server"
    )


def _check_same_clock(_: URL) -> Finding:
    return ok("the same as here")


def _check_server_clock(address: URL) -> Finding:
    with plain_engine(address).connect() as connection:
        _ask(connection, "SELECT 1")
        before = time.time()
        server = float(_ask(connection, "SELECT extract(epoch FROM clock_timestamp())"))
        ahead = server - (before + time.time()) / 2
    if abs(ahead) <= SKEW:
        return ok(f"within {abs(ahead):.1f} s of the database's")
    return warning(
        f"{abs(ahead):.0f} s {'behind' if ahead > 0 else 'ahead of'} the database's; leases go by "
        "the database's, but the dates of trials by this one: set it, for example by NTP"
    )
