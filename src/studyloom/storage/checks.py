"""TODO storage.checks."""

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
from optuna.storages._rdb import models
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import SQLAlchemyError

from studyloom.errors import StorageError
from studyloom.storage import ledger
from studyloom.storage.connections import plain_engine
from studyloom.storage.database import connect
from studyloom.storage.retry import driver_message
from studyloom.storage.urls import without_password

SLOW = 0.05  # seconds for a commit; a trial makes some dozens
SKEW = 2.0  # seconds
COMMITS = 20
LOCK = 0x5374756480  # PostgreSQL advisory lock of nobody but two connections of a doctor
# Only another process shows whether a file system keeps locks: SQLite keeps those within one process itself.
SECOND = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], uri=True, isolation_level=None, timeout=float(sys.argv[2]))
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
    """What was found, and where it is not ok, what to do."""

    state: State
    words: str


def ok(words: str) -> Finding:
    return Finding(State.OK, words)


def warning(words: str) -> Finding:
    return Finding(State.WARNING, words)


def todo(words: str) -> Finding:
    return Finding(State.TODO, words)


def check_database(address: URL) -> Iterator[tuple[str, Finding]]:
    """What is said of a database that is there, or why it cannot be used."""
    sqlite = address.get_backend_name() == "sqlite"
    reached = run_check(lambda: reach(address), address)
    yield "database", reached
    if reached.state is State.TODO:
        return
    empty = run_check(lambda: tables(address), address)
    yield "tables", empty
    if empty.state is State.OK:
        yield "schema", run_check(lambda: schema(address), address)
    yield "permission", run_check(lambda: permission(address), address)
    yield (
        "locking",
        run_check(lambda: lock_file(address) if sqlite else lock_server(address), address),
    )
    yield "commit", run_check(lambda: commit(address), address)
    yield "clock", run_check(lambda: ok("the same as here") if sqlite else clock(address), address)


def run_check(check: Callable[[], Finding], address: URL) -> Finding:
    """A finding also where the check fails: in words, without the password."""
    try:
        return check()
    except StorageError as error:
        return todo(str(error))
    except SQLAlchemyError as error:
        return todo(f"{without_password(address)}: {driver_message(error, address)}")
    except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
        return todo(driver_message(error, address))


def ask(connection: Connection, statement: str) -> Any:
    return connection.exec_driver_sql(statement).scalar()


def reach(address: URL) -> Finding:
    with plain_engine(address).connect() as connection:
        if address.get_backend_name() != "sqlite":
            return ok(
                f"{without_password(address)}, PostgreSQL {ask(connection, 'SHOW server_version')}"
            )
        damage = ask(connection, "PRAGMA quick_check(1)")
        if damage != "ok":
            return todo(
                f"{without_password(address)} is damaged ({' '.join(str(damage).split())}); put a copy back"
            )
        return ok(
            f"{without_password(address)}, SQLite {ask(connection, 'SELECT sqlite_version()')}"
        )


def tables(address: URL) -> Finding:
    """Whether Optuna's tables are there, and ours with all that this version writes."""
    with plain_engine(address).connect() as connection:
        inspector = sqlalchemy.inspect(connection)
        there = set(inspector.get_table_names())
        missing = sorted({*models.BaseModel.metadata.tables} - there)
        if len(missing) == len(models.BaseModel.metadata.tables):
            return warning("none yet; the first run of a study makes them")
        if missing:
            return todo(
                f"{', '.join(missing)} not there; run the study again, or put a copy of the database back"
            )
        for name, table in ledger.METADATA.tables.items():
            if name not in there:
                return warning(f"Optuna's, without {name}; the first run of a study makes it")
            columns = {column["name"] for column in inspector.get_columns(name)}
            if missing := sorted({column.name for column in table.columns} - columns):
                return todo(
                    f"{name} has no {', '.join(missing)}: made by another version of studyloom; install that one"
                )
        return ok(f"Optuna's and {', '.join(ledger.METADATA.tables)}")


def schema(address: URL) -> Finding:
    storage = connect(address.render_as_string(hide_password=False), deadline=0)
    try:
        return ok(f"{storage.get_current_version()}, the one of Optuna {optuna.__version__}")
    finally:
        storage.remove_session()
        storage.engine.dispose()


def permission(address: URL) -> Finding:
    """Writes nothing to each table, or makes one where there are none, and takes it back."""
    sqlite = address.get_backend_name() == "sqlite"
    with plain_engine(address).connect() as connection:
        there = sqlalchemy.inspect(connection).get_table_names()
        connection.exec_driver_sql("BEGIN IMMEDIATE" if sqlite else "BEGIN")
        try:
            if not there:
                connection.exec_driver_sql("CREATE TABLE studyloom_doctor (x INTEGER)")
                return ok("tables may be made")
            for name, table in {
                **models.BaseModel.metadata.tables,
                **ledger.METADATA.tables,
            }.items():
                if name in there and (
                    sequence := write_nothing(connection, name, next(iter(table.columns)).name)
                ):
                    return todo(f"permission denied for sequence {sequence}: GRANT USAGE on it")
            return ok("every table may be written")
        finally:
            connection.exec_driver_sql("ROLLBACK")


def write_nothing(connection: Connection, name: str, column: str) -> str | None:
    """Fails where this user may not insert into a table or update it; gives the sequence that it may not use."""
    connection.exec_driver_sql(f"INSERT INTO {name} SELECT * FROM {name} WHERE 1 = 0")
    connection.exec_driver_sql(f"UPDATE {name} SET {column} = {column} WHERE 1 = 0")
    if connection.dialect.name == "postgresql":
        sequence = ask(connection, f"SELECT pg_get_serial_sequence('{name}', '{column}')")
        if sequence and not ask(
            connection, f"SELECT has_sequence_privilege('{sequence}', 'USAGE')"
        ):
            return str(sequence)
    return None


def lock_file(address: URL) -> Finding:
    """Whether another process waits for the write lock while this one has it, and gets it afterwards."""
    engine = plain_engine(address)
    name = str(engine.url.database) + "?mode=rw"

    def second(seconds: int) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-I", "-c", SECOND, name, str(seconds)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            during = second(0)
        finally:
            connection.exec_driver_sql("ROLLBACK")
        if during.returncode == 0:
            return todo("two processes get the write lock at once; use a local disk, or PostgreSQL")
        if "locked" not in during.stderr:
            return todo(f"another process cannot open the database: {during.stderr.strip()}")
    after = second(10)
    return (
        todo(f"another process gets no lock: {after.stderr.strip()}")
        if after.returncode
        else ok("one writer at a time")
    )


def lock_server(address: URL) -> Finding:
    engine = plain_engine(address)
    with engine.connect() as first, engine.connect() as second:
        for connection in (first, second):
            connection.exec_driver_sql("BEGIN")
        ask(first, f"SELECT pg_advisory_xact_lock({LOCK})")
        during = ask(second, f"SELECT pg_try_advisory_xact_lock({LOCK})")
        first.exec_driver_sql("ROLLBACK")
        ask(second, f"SELECT pg_advisory_xact_lock({LOCK})")
        second.exec_driver_sql("ROLLBACK")
    return (
        todo("two connections get one lock; is there a pooler between?")
        if during
        else ok("one holder at a time")
    )


def commit(address: URL) -> Finding:
    """How long commits take that leave nothing: SQLite's header as it was, a message that nobody reads."""
    sqlite = address.get_backend_name() == "sqlite"
    seconds = []
    with plain_engine(address).connect() as connection:
        if sqlite:
            connection.exec_driver_sql("PRAGMA synchronous=NORMAL")
        for _ in range(COMMITS):
            began = time.perf_counter()
            connection.exec_driver_sql("BEGIN IMMEDIATE" if sqlite else "BEGIN")
            if sqlite:
                connection.exec_driver_sql(
                    f"PRAGMA user_version = {ask(connection, 'PRAGMA user_version')}"
                )
            else:
                ask(connection, "SELECT pg_logical_emit_message(true, 'studyloom doctor', '')")
            connection.exec_driver_sql("COMMIT")
            seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    words = f"{1000 * median:.1f} ms, the median of {COMMITS}"
    if median <= SLOW:
        return ok(words)
    return warning(
        f"{words}; report less often (longer epochs), or use a faster disk or a nearer server"
    )


def clock(address: URL) -> Finding:
    with plain_engine(address).connect() as connection:
        ask(connection, "SELECT 1")
        before = time.time()
        there = float(ask(connection, "SELECT extract(epoch FROM clock_timestamp())"))
        ahead = there - (before + time.time()) / 2
    if abs(ahead) <= SKEW:
        return ok(f"within {abs(ahead):.1f} s of the database's")
    return warning(
        f"{abs(ahead):.0f} s {'behind' if ahead > 0 else 'ahead of'} the database's; leases go by the database's, but "
        "the dates of trials by this one: set it, for example by NTP"
    )
