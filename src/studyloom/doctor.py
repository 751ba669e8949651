"""Looks at what a study needs from its database, disks and machine: a line for each, ok or what to do."""

import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
import torch
from optuna.storages._rdb import models
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import SQLAlchemyError

from studyloom import __version__, ledger
from studyloom.disks import filesystem, is_network
from studyloom.launch.local import Local, cores, gpus
from studyloom.storage import StorageError, connect, hidden, parse, plain, reason

SLOW = 0.05  # seconds for a commit; a trial makes some dozens
SKEW = 2.0  # seconds
SMALL = 10**9  # bytes free
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


def examine(url: str, run_dir: Path | None = None) -> Iterator[tuple[str, Finding]]:
    """Names and findings, one after the other as they are found. Nothing stays behind, in the database or on a disk.

    Raises:
        StorageError: this is no URL of a database.
    """
    address = parse(url)
    sqlite = address.get_backend_name() == "sqlite"
    path = Path(str(address.database)).absolute() if sqlite else None
    if path is not None and not path.exists():
        words = f"there is no database {path}; the first run of a study makes it"
        yield "database", todo(f"{words}; put it back if there was one") if run_dir else warning(words)
        yield "permission", look(lambda: writable(existing(path.parent)), address)
    else:
        yield from of_database(address)
    if path is not None:
        yield "file system", look(lambda: disk(path.parent, wal=True), address)
    if run_dir is not None:
        yield "run_dir", look(lambda: writable(run_dir), address)
        if path is None or not path.is_relative_to(run_dir.absolute()):
            yield "disk", look(lambda: disk(run_dir, wal=False), address)
    yield "gpus", look(devices, address)
    yield "workers", look(workers, address)
    yield "versions", look(versions, address)


def of_database(address: URL) -> Iterator[tuple[str, Finding]]:
    """What is said of a database that is there, or why it cannot be used."""
    sqlite = address.get_backend_name() == "sqlite"
    reached = look(lambda: reach(address), address)
    yield "database", reached
    if reached.state is State.TODO:
        return
    empty = look(lambda: tables(address), address)
    yield "tables", empty
    if empty.state is State.OK:
        yield "schema", look(lambda: schema(address), address)
    yield "permission", look(lambda: permission(address), address)
    yield "locking", look(lambda: lock_file(address) if sqlite else lock_server(address), address)
    yield "commit", look(lambda: commit(address), address)
    yield "clock", look(lambda: ok("the same as here") if sqlite else clock(address), address)


def look(check: Callable[[], Finding], address: URL) -> Finding:
    """A finding also where the check fails: in words, without the password."""
    try:
        return check()
    except StorageError as error:
        return todo(str(error))
    except SQLAlchemyError as error:
        return todo(f"{hidden(address)}: {reason(error, address)}")
    except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
        return todo(reason(error, address))


def ask(connection: Connection, statement: str) -> Any:
    return connection.exec_driver_sql(statement).scalar()


def reach(address: URL) -> Finding:
    with plain(address).connect() as connection:
        if address.get_backend_name() != "sqlite":
            return ok(f"{hidden(address)}, PostgreSQL {ask(connection, 'SHOW server_version')}")
        damage = ask(connection, "PRAGMA quick_check(1)")
        if damage != "ok":
            return todo(f"{hidden(address)} is damaged ({' '.join(str(damage).split())}); put a copy back")
        return ok(f"{hidden(address)}, SQLite {ask(connection, 'SELECT sqlite_version()')}")


def tables(address: URL) -> Finding:
    """Whether Optuna's tables are there, and ours with all that this version writes."""
    with plain(address).connect() as connection:
        inspector = sqlalchemy.inspect(connection)
        there = set(inspector.get_table_names())
        missing = sorted({*models.BaseModel.metadata.tables} - there)
        if len(missing) == len(models.BaseModel.metadata.tables):
            return warning("none yet; the first run of a study makes them")
        if missing:
            return todo(f"{', '.join(missing)} not there; run the study again, or put a copy of the database back")
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
    with plain(address).connect() as connection:
        there = sqlalchemy.inspect(connection).get_table_names()
        connection.exec_driver_sql("BEGIN IMMEDIATE" if sqlite else "BEGIN")
        try:
            if not there:
                connection.exec_driver_sql("CREATE TABLE studyloom_doctor (x INTEGER)")
                return ok("tables may be made")
            for name, table in {**models.BaseModel.metadata.tables, **ledger.METADATA.tables}.items():
                if name in there and (sequence := write_nothing(connection, name, next(iter(table.columns)).name)):
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
        if sequence and not ask(connection, f"SELECT has_sequence_privilege('{sequence}', 'USAGE')"):
            return str(sequence)
    return None


def lock_file(address: URL) -> Finding:
    """Whether another process waits for the write lock while this one has it, and gets it afterwards."""
    engine = plain(address)
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
    engine = plain(address)
    with engine.connect() as first, engine.connect() as second:
        for connection in (first, second):
            connection.exec_driver_sql("BEGIN")
        ask(first, f"SELECT pg_advisory_xact_lock({LOCK})")
        during = ask(second, f"SELECT pg_try_advisory_xact_lock({LOCK})")
        first.exec_driver_sql("ROLLBACK")
        ask(second, f"SELECT pg_advisory_xact_lock({LOCK})")
        second.exec_driver_sql("ROLLBACK")
    return todo("two connections get one lock; is there a pooler between?") if during else ok("one holder at a time")


def commit(address: URL) -> Finding:
    """How long commits take that leave nothing: SQLite's header as it was, a message that nobody reads."""
    sqlite = address.get_backend_name() == "sqlite"
    seconds = []
    with plain(address).connect() as connection:
        if sqlite:
            connection.exec_driver_sql("PRAGMA synchronous=NORMAL")
        for _ in range(COMMITS):
            began = time.perf_counter()
            connection.exec_driver_sql("BEGIN IMMEDIATE" if sqlite else "BEGIN")
            if sqlite:
                connection.exec_driver_sql(f"PRAGMA user_version = {ask(connection, 'PRAGMA user_version')}")
            else:
                ask(connection, "SELECT pg_logical_emit_message(true, 'studyloom doctor', '')")
            connection.exec_driver_sql("COMMIT")
            seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    words = f"{1000 * median:.1f} ms, the median of {COMMITS}"
    if median <= SLOW:
        return ok(words)
    return warning(f"{words}; report less often (longer epochs), or use a faster disk or a nearer server")


def clock(address: URL) -> Finding:
    with plain(address).connect() as connection:
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


def disk(folder: Path, *, wal: bool) -> Finding:
    """Space and kind of the file system that a folder is on."""
    folder = existing(folder)
    kind, free = filesystem(folder), shutil.disk_usage(folder).free
    words = f"{kind}, {free / 1e9:.1f} GB free"
    if wal and is_network(kind):
        return todo(f"{words}; SQLite is not safe there: name a run_dir on a local disk, or use PostgreSQL")
    return (
        ok(words) if free >= SMALL else warning(f"{words}; checkpoints may not fit: free some, or name another run_dir")
    )


def existing(folder: Path) -> Path:
    """A folder, or the one in which it would be made."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())


def writable(folder: Path) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        return todo(f"{folder} cannot be written: {error.strerror}")
    return ok(f"{folder} can be written")


def devices() -> Finding:
    if not gpus():
        return ok("none: workers train on the CPU")
    names = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        names.append(f"{torch.cuda.get_device_name(index)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    return ok("; ".join(names))


def workers() -> Finding:
    count = Local().count(sys.maxsize)
    return ok(f"launcher.workers=auto starts {count}, for {len(gpus()) or 'no'} GPUs and {cores()} cores")


def versions() -> Finding:
    found = {"Python": platform.python_version(), "torch": torch.__version__, "Optuna": optuna.__version__}
    return ok(", ".join(f"{name} {version}" for name, version in (found | {"studyloom": __version__}).items()))


def show(url: str, run_dir: Path | None = None) -> int:
    """Prints what is found; 0, or 2 if something is to be done before a study can run."""
    states = set()
    for name, finding in examine(url, run_dir):
        print(f"{finding.state:<8} {name:<11} {finding.words}", flush=True)
        states.add(finding.state)
    return 2 if State.TODO in states else 0
