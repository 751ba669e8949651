"""Optuna's storage on a shared SQLite or PostgreSQL database, whose calls wait through outages.

A call is repeated after a transient failure; a permanent one is explained in plain words.

Optuna's own SQLite engine gives one queued trial to two workers and takes twice the time for a
report; the hooks below fix both (328 reports/s with 8 writers, against 196 with BEGIN IMMEDIATE
everywhere).
"""

import contextlib
import functools
import logging
import math
import os
import random
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.orm import scoped_session, sessionmaker

from studyloom.errors import StorageError, StorageLost, StudyloomError
from studyloom.installation import pip_install
from studyloom.processes import running_in_thread
from studyloom.storage import sql
from studyloom.storage.optuna_internals import (
    ALEMBIC,
    MIGRATIONS,
    SCHEMA_VERSION,
    TABLES,
    BaseModel,
    FrozenStudy,
    VersionInfoModel,
)
from studyloom.storage.urls import has_several_hosts, parse_url, without_password
from studyloom.text import one_line, shorten

DEADLINE = 300.0  # seconds that a call waits for a database that is away
SILENCE = 40.0  # seconds after which a connection of a server that is silent is lost, at most
LEAST_TRY = 2  # seconds that libpq waits for a host, at least
STOP_DEADLINE = 2.0  # seconds that a call waits for a database once its process is to stop
DELAYS = (0.05, 2.0)  # seconds between tries: the first, doubling up to the longest
READ_ONLY = "25006"  # SQLSTATE of a write on a standby, such as one that is about to be promoted
# How the SQLSTATE of a failure begins that passes. 57014 is a statement_timeout, 25P04 a
# transaction_timeout.
PASSING_STATES = (
    *("08", "57P", "57014", "53300", "40001", "40P01", "55P03", "25P03", "25P04"),
    READ_ONLY,
)
# A connection that is refused while it is made has no SQLSTATE; what passes there is all but this.
FINAL_WORDS = (
    *("authentication failed", "no password supplied", "pg_hba.conf", "not permitted"),
    *("permission denied", "does not exist", "certificate", "not support ssl"),
    "unsupported startup parameter",
)
PASSING_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
WAYS_OUT = {
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
LOCK_KEY = 0x5374756479  # PostgreSQL advisory lock of the process that creates tables and studies
# How long a single try waits for another's lock. SQLite waits without noticing a Ctrl-C.
BUSY_SECONDS = 5
LEASE, RENEWALS = 60.0, 3  # seconds that a lock stays unless renewed, and how often it is
LOCK_TIMEOUT = "55P03"  # SQLSTATE of a try that has waited for its lock too long
POSTGRES = {
    "connect_timeout": 10,
    # A worker that is stopped within a transaction (SIGSTOP, a laptop's lid) must not keep its
    # rows from the others for ever.
    "options": (
        f"-c timezone=UTC -c lock_timeout={BUSY_SECONDS}s "
        f"-c idle_in_transaction_session_timeout={LEASE:.0f}s"
    ),
}
# A wait for the lock of the creator has no time limit.
PATIENT = (
    "-c timezone=UTC -c statement_timeout=0 -c lock_timeout=0 "
    f"-c idle_in_transaction_session_timeout={LEASE:.0f}s"
)
T = TypeVar("T")
log = logging.getLogger(__name__)
Connection = sqlalchemy.engine.Connection  # the other layers import it only from here

# psycopg logs an error that it ignores because another one is on its way to its caller. We report
# that one; the line would stand in a worker's log among those of the outage.
logging.getLogger("psycopg").addFilter(
    lambda record: not str(record.msg).startswith("error ignored")
)


# Calls that wait

_jitter = random.Random()  # a separate one: a retry must not change a user's random numbers


class CallState(threading.local):
    """The state of the call that this thread makes on a storage."""

    writes = False
    committing = False  # this try has come to a COMMIT
    uncertain = False  # an earlier try did, and failed: the database may have written it all
    untrusted_until: float | None = None  # when reading an untrusted file ends; None for others
    until: float | None = None  # when a try of this call must end, as time.monotonic


call_state = CallState()


def longest_silence(deadline: float) -> float:
    """Returns after how many silent seconds a connection is lost, at most half the deadline."""
    return min(SILENCE, deadline / 2) if deadline > 0 else SILENCE


class Retry:
    """Repeats calls after transient failures, with growing pauses.

    A call that begins while another thread's waits is given up with it. Once a call was given up,
    later ones are tried once, until one succeeds. So a command that ends waits only once. A server,
    which takes seconds to fail, is not called for 2 s. The log says when the database goes away and
    when it is back.
    """

    def __init__(self, address: URL, deadline: float) -> None:
        self.address = address
        self.deadline = deadline  # seconds in which a call tries again
        # Once it returns True, STOP_DEADLINE takes the place of a longer deadline.
        self.stopping: Callable[[], bool] = lambda: False
        self.away = False  # a call waits for the database
        self._away_since: float | None = None  # when the first of those began to, as time.monotonic
        # The error of a call that has waited in vain, if none has succeeded since.
        self._given_up: StorageLost | None = None
        self._next_try = 0.0  # when such a call may be tried, as time.monotonic

    def run(self, attempt: Callable[[], T], *, pooled: bool = False) -> T:
        """Calls a function until it succeeds.

        Args:
            attempt: Must bear being called again after a failure.
            pooled: Whether it uses pooled connections, which may have been lost since the last
                call; then a new one is tried first, without a log line.

        Raises:
            StorageLost: The failure is permanent, or has lasted too long.
        """
        outer = call_state.committing, call_state.uncertain, call_state.until
        call_state.uncertain = False
        called = time.monotonic()
        failed_at: float | None = None
        delay, longest = DELAYS
        if self._given_up and called < self._next_try:
            raise StorageLost(str(self._given_up), waited=self._given_up.waited)
        silent = longest_silence(self.deadline)
        left = (self._away_since or called) + self.deadline - called
        first = 0.0 if self._given_up else min(silent, left)
        call_state.until = called + first if self.deadline > 0 else None
        try:
            while True:
                call_state.committing = False
                try:
                    result = attempt()
                except (StorageLost, SQLAlchemyError, StorageInternalError) as error:
                    lost = (
                        error if isinstance(error, StorageLost) else diagnose(error, self.address)
                    )
                    # A cut network is silent before the first failure. It does not count from the
                    # call, since a process may be stopped for long.
                    if failed_at is None:
                        failed_at = self._away_since or max(called, time.monotonic() - silent)
                        self._away_since = failed_at
                    if pooled and lost.broken and lost.passing and not call_state.committing:
                        pooled = False
                        continue
                    left = self._time_left(lost, failed_at)
                except Exception:  # also an error from the database: a trial is gone, say
                    self._report_return(failed_at, called)
                    raise
                else:
                    self._report_return(failed_at, called)
                    return result
                time.sleep(min(delay * _jitter.uniform(0.5, 1.0), left))
                delay = min(2 * delay, longest)
        finally:
            if failed_at is not None:  # also if a signal has ended the wait
                self.away, self._away_since = False, None
            call_state.committing, call_state.uncertain, call_state.until = outer

    def _time_left(self, lost: StorageLost, failed_at: float) -> float:
        """Returns the seconds that are left for further tries after a failure.

        Raises:
            StorageLost: None are left, or the failure is permanent.
        """
        deadline = min(self.deadline, STOP_DEADLINE) if self.stopping() else self.deadline
        call_state.until = failed_at + (0.0 if self._given_up else deadline)
        left = call_state.until - time.monotonic()
        if not lost.passing or left <= 0:
            raise self._final(lost, deadline) from None
        call_state.uncertain |= call_state.committing
        if not self.away:
            self.away = True
            log.warning("%s; trying again for up to %g s", lost, deadline)
        return left

    def _report_return(self, failed_at: float | None, called: float) -> None:
        """Logs that the database is back, if the call had to wait for it."""
        self._given_up = self._away_since = None
        if failed_at is not None and self.away:
            shown, seconds = without_password(self.address), time.monotonic() - called
            log.warning("storage: %s is back after %.1f s", shown, seconds)

    def _final(self, lost: StorageLost, deadline: float) -> StorageLost:
        """Returns the error of a call that is given up after a deadline in seconds."""
        self.away = False
        if not lost.passing or self.deadline <= 0:
            return StorageLost(str(lost), waited=lost.waited)
        waited = max(deadline, self._given_up.waited if self._given_up else 0.0)
        reason = "this process is stopping" if self.stopping() else "storage.deadline"
        if self.address.get_backend_name() != "sqlite":
            self._next_try = time.monotonic() + DELAYS[1]
        self._given_up = StorageLost(
            f"{lost}; it did not recover in {waited:g} s ({reason}); once it is back, the same "
            "command resumes the study",
            waited=waited,
        )
        return self._given_up


def diagnose(error: BaseException, address: URL) -> StorageLost:
    """Turns a failure of SQLAlchemy or Optuna into an error with the driver's words and a fix."""
    # SQLAlchemy and Optuna wrap the driver's error, and may stumble again after a failure.
    driver_error: BaseException | None = error
    while driver_error is not None and not isinstance(driver_error, DBAPIError):
        driver_error = driver_error.__cause__ or driver_error.__context__
    if driver_error is not None:
        error, passing = driver_error, _passes(driver_error, address)
        # Not one that a server ended for its transaction, which was not at rest then.
        state = getattr(driver_error.orig, "sqlstate", None) or ""
        broken = driver_error.connection_invalidated and not state.startswith("25P")
    else:  # a pool whose connections are all in use for 30 s, by threads that wait
        cause = error.__cause__ or error
        passing, broken = isinstance(cause, sqlalchemy.exc.TimeoutError), False
    words = f"storage.url: cannot use {without_password(address)}: {driver_message(error, address)}"
    return StorageLost(words, passing=passing, broken=broken)


def file_gone(address: URL) -> StorageLost:
    """Returns the error of a SQLite database whose file was deleted or replaced."""
    return StorageLost(
        f"storage.url: cannot use {without_password(address)}: the file was deleted, moved, "
        "replaced or emptied, or its disk is away; put it back, or start again under another "
        "run_dir"
    )


def file_identity(address: URL) -> tuple[int, int] | None:
    """Returns device and inode of a SQLite database; None if there is no file, or an empty one."""
    try:
        status = os.stat(str(address.database))
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status.st_size else None


def _passes(error: DBAPIError, address: URL) -> bool:
    driver_error: Any = error.orig
    if isinstance(driver_error, sqlite3.Error):
        return getattr(driver_error, "sqlite_errorcode", 0) & 0xFF in PASSING_CODES
    if state := getattr(driver_error, "sqlstate", None):
        return bool(state.startswith(PASSING_STATES))
    # Names may contain anything, so they are taken out.
    words = re.sub('"[^"]*"', "", str(driver_error)).lower()
    # Of several hosts one may be about to be set up again while another is promoted.
    tries = words.split("\n- host: ")[1:] if has_several_hosts(address) else []
    return isinstance(error, OperationalError | InterfaceError) and not all(
        any(final in words for final in FINAL_WORDS) for words in tries or [words]
    )


def driver_message(error: BaseException, address: URL | None = None) -> str:
    """Formats the driver's words for a failure on one line, with a fix if one is known."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(getattr(error, "orig", error)).split()) or type(error).__name__
    # For several hosts psycopg repeats all failures after the last one.
    text = text.partition("Multiple connection attempts failed. All failures were: ")[2] or text
    if address is not None and address.password:
        text = text.replace(str(address.password), "***")
    return next((f"{text} ({way})" for sign, way in WAYS_OUT.items() if sign in text.lower()), text)


# Storages


class CheckedStorage(RDBStorage):
    """Optuna's storage that checks the cells of studies, whose types SQLite leaves open.

    Those of trials are checked by `sql.read`.
    """

    def get_all_studies(self) -> list[FrozenStudy]:
        try:
            studies = super().get_all_studies()
            for study in studies:
                sql.text(study.study_name, "study_name")
        except StudyloomError:
            raise
        except (TypeError, ValueError) as error:
            raise sql.unknown_cell(error, "studies") from None
        for study in studies:
            study.system_attrs = sql.fitting_system_attrs(study.system_attrs)
        return studies

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        try:
            attributes = super().get_study_system_attrs(study_id)
        except StudyloomError:
            raise
        except (TypeError, ValueError) as error:
            raise sql.unknown_cell(error, "study_system_attributes") from None
        return sql.fitting_system_attrs(attributes)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        directions = super().get_study_directions(study_id)
        sql.check_directions(directions)
        return directions


class RetryingStorage(CheckedStorage):
    """Optuna's storage whose calls are repeated after transient failures.

    It raises StorageLost, also from connections that it hands out. On a server each statement of
    the engine `single` is a transaction.
    """

    def __init__(
        self, url: str, address: URL, deadline: float, engine_kwargs: dict[str, Any]
    ) -> None:
        # Optuna's own constructor makes a version manager, which takes 0.2 s (see `_make_tables`).
        self.url, self.engine_kwargs, self.skip_compatibility_check = url, engine_kwargs, True
        self.heartbeat_interval = self.grace_period = None
        self.heartbeat_stale_trial_callback = self.failed_trial_callback = None
        self.engine = sqlalchemy.create_engine(url, **engine_kwargs)
        self.scoped_session = scoped_session(sessionmaker(bind=self.engine))
        self.retry = Retry(address, deadline)
        # Without a BEGIN and a ROLLBACK, two round trips less. In a transaction each statement on a
        # server sees what was committed before it, too; on SQLite the transaction keeps what
        # several read consistent.
        sqlite = self.engine.dialect.name == "sqlite"
        alone = {} if sqlite else {"isolation_level": "AUTOCOMMIT"}
        self.single = self.engine.execution_options(**alone)
        whole = {} if sqlite else {"isolation_level": "REPEATABLE READ"}
        self.whole = self.engine.execution_options(**whole)
        event.listen(self.engine, "do_connect", _keep_to_deadline)
        event.listen(self.engine, "handle_error", self._explain)
        event.listen(self.engine, "commit", self._note_commit)

    def __getstate__(self) -> dict[Any, Any]:
        raise TypeError("a storage cannot be pickled; each process opens its own")

    def close(self) -> None:
        """Closes the connections; a later call opens them again."""
        self.engine.dispose()

    def _explain(self, context: sqlalchemy.engine.ExceptionContext) -> None:
        """Replaces SQLAlchemy's error, on which Optuna would try five times to create a trial."""
        error = context.sqlalchemy_exception
        if isinstance(error, DataError):  # an error of the caller, not of the database
            address = self.retry.address
            words = (
                f"{without_password(address)} cannot hold this: {driver_message(error, address)}"
            )
            raise StorageError(f"storage.url: {words}")
        if (
            isinstance(error, DBAPIError)
            and not isinstance(error, IntegrityError)
            and not context.is_pre_ping
        ):
            # The next try gets a new connection, and with it the host that takes writes by then.
            context.is_disconnect |= getattr(error.orig, "sqlstate", None) == READ_ONLY
            raise diagnose(error, self.retry.address)

    @staticmethod
    def _note_commit(_: Connection) -> None:
        call_state.committing = True

    def call(self, work: Callable[[], T], *, writes: bool) -> T:
        """Calls a function that uses this storage, again after each transient failure.

        SQLite's transactions take the write lock at their beginning if they write.
        """

        def attempt() -> T:
            outer, call_state.writes = call_state.writes, writes
            try:
                return work()
            except (StorageError, SQLAlchemyError, StorageInternalError):
                with contextlib.suppress(StorageLost, SQLAlchemyError):
                    self.scoped_session.remove()
                self.scoped_session.registry.clear()
                raise
            except (LookupError, RecursionError, JSONDecodeError) as error:
                # Optuna has a KeyError for what is not there; what is written may be too deep.
                if isinstance(error, KeyError | IndexError) or "encoding" in str(error):
                    raise
                raise sql.unknown_cell(error) from None
            finally:
                call_state.writes = outer

        return self.retry.run(attempt, pooled=True)

    def execute(self, work: Callable[[Connection], T]) -> T:
        """Runs a writing transaction, independent of Optuna's; returns the result of `work`.

        It runs again after a transient failure, also after a commit whose reply was lost, so `work`
        must be idempotent.
        """

        def transact() -> T:
            with self.engine.begin() as connection:
                return work(connection)

        return self.call(transact, writes=True)

    def read(self, work: Callable[[Connection], T], *, whole: bool = False) -> T:
        """Runs a reading transaction, as `execute` runs a writing one.

        Args:
            work: Reads.
            whole: Whether all that it reads is of one moment, which takes PostgreSQL longer.
        """

        def transact() -> T:
            try:
                with (self.whole if whole else self.single).connect() as connection:
                    return work(connection)
            except StudyloomError:
                raise
            except (ArithmeticError, AssertionError, IndexError, TypeError, ValueError) as error:
                raise sql.unknown_cell(error) from None

        return self.call(transact, writes=False)

    # The reads that take Optuna the longest.

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        attributes = self.read(lambda connection: sql.all_study_attrs(connection, study_id))
        if not attributes:
            self.get_study_name_from_id(study_id)  # raises KeyError if there is no such study
        return attributes

    def get_trial(self, trial_id: int) -> FrozenTrial:
        ids = f"[{trial_id:d}]"
        trials = self.read(lambda connection: sql.read(connection, sql.NAMED, ids=ids))
        if not trials:
            raise KeyError(f"there is no trial {trial_id}")
        return trials[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        selection, parameters = sql.ALL_TRIALS, dict[str, Any](study=study_id)
        if trial_id_greater_than >= 0:
            selection = sql.SOME_TRIALS
            parameters["ids"] = str(sorted(included_trial_ids))
            parameters["after"] = trial_id_greater_than
        trials = self.read(lambda connection: sql.read(connection, selection, **parameters))
        if not trials and trial_id_greater_than < 0:
            self.get_study_name_from_id(study_id)  # raises KeyError if there is no such study
        return [trial for trial in trials if states is None or trial.state in states]


def _retrying(name: str, writes: bool, once: bool) -> Callable[..., Any]:
    method = getattr(CheckedStorage, name)

    @functools.wraps(method)
    def retrying(self: RetryingStorage, *args: Any, **kwargs: Any) -> Any:
        def work() -> Any:
            if once and call_state.uncertain:
                raise StorageLost(
                    f"storage.url: the connection to {without_password(self.retry.address)} was "
                    "lost during a commit, and it is unknown whether it was done; the same command "
                    "resumes the study"
                )
            return method(self, *args, **kwargs)

        return self.call(work, writes=writes)

    return retrying


READING = (
    *("get_study_id_from_name", "get_study_name_from_id", "get_study_directions"),
    *("get_study_system_attrs", "get_trial_user_attrs", "get_trial_system_attrs"),
    *("get_all_studies", "get_trial_param"),
    *("get_trial_id_from_study_id_trial_number", "_get_best_trial_id"),
)
WRITING = (
    *("delete_study", "set_study_user_attr", "set_study_system_attr", "_set_trial_param"),
    *("set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr"),
)
# A retry would do these twice, or fail, after a commit whose reply was lost. In workers
# one transaction writes a trial and its claim, and one the ends of both.
ONCE = ("create_new_study", "_create_new_trial", "set_trial_state_values")
for _name in (*READING, *WRITING, *ONCE):
    setattr(RetryingStorage, _name, _retrying(_name, _name not in READING, _name in ONCE))


class SQLiteStorage(RetryingStorage):
    """Optuna's storage on a SQLite file in WAL mode.

    Transactions that write take the write lock when they begin: one that reads first and takes
    the lock later acts on what it read before others wrote.
    """

    def __init__(self, url: str, address: URL, deadline: float) -> None:
        engine_kwargs = {"connect_args": {"timeout": min(BUSY_SECONDS, deadline)}}
        address = address.set(database=str(sqlite_path(address)))
        super().__init__(url, address, deadline, engine_kwargs)

        event.listen(self.engine, "connect", _limit)

        @event.listens_for(self.engine, "connect")
        def connect(connection: Any, connection_record: Any) -> None:
            connection.isolation_level = None  # or sqlite3 begins transactions itself
            if not on_read_only_disk(address):
                connection.execute("PRAGMA journal_mode=WAL")
            # A power cut may lose the last commits, but never the file.
            connection.execute("PRAGMA synchronous=NORMAL")
            connection_record.info["file"] = file_identity(address)

        @event.listens_for(self.engine, "begin")
        def begin(connection: Connection) -> None:
            # Else everything would be written to a file that no longer has a name.
            if connection.info["file"] != file_identity(address):
                raise file_gone(address)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if call_state.writes else "BEGIN")

    def _explain(self, context: sqlalchemy.engine.ExceptionContext) -> None:
        if context.sqlalchemy_exception is not None and file_identity(self.retry.address) is None:
            raise file_gone(self.retry.address)
        super()._explain(context)


# An untrusted SQLite file. A view is code, which may run for ever or fill the memory, and so is a
# table that computes its columns or rows; a trigger is code that waits for a write.
LONGEST_CELL = 10**6  # bytes
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
    call_state.untrusted_until = seconds and time.monotonic() + seconds
    try:
        yield
    finally:
        call_state.untrusted_until = None


def _limit(connection: Any, _: Any) -> None:
    """Limits a new connection to an untrusted file: its time, its cells, and no code."""
    end = call_state.untrusted_until
    if end is None or not isinstance(connection, sqlite3.Connection):
        return
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_CELL)
    connection.set_progress_handler(lambda: time.monotonic() > end, 10_000)
    for query in CODE:
        if found := connection.execute(query).fetchone():
            raise StorageError(f"{shorten(one_line(found[0]), 80)} is not a plain table")


# Opening a database


def connect(url: str | URL, *, create: bool = False, deadline: float = DEADLINE) -> RetryingStorage:
    """Opens a storage.

    Args:
        create: Whether to create its tables, which one process at a time may do (see `exclusive`).
        deadline: Seconds that this and every later call on the storage waits for a database that
            is away.
    """
    address = parse_url(url)

    def attempt() -> RetryingStorage:
        if create and is_sqlite(address):
            sqlite_path(address).parent.mkdir(parents=True, exist_ok=True)
        elif is_sqlite(address) and file_identity(address) is None:
            raise StorageError(
                f"storage.url: there is no database {sqlite_path(address)}; the first run of a "
                "study creates it"
            )
        engine = plain_engine(address, deadline, create=create)
        with contextlib.closing(engine.connect()) as connection:
            known = _make_tables(connection) if create else version_of(connection)
        if known is None and not create:
            # Optuna would write its version, and the creator, which writes it last, would fail.
            raise StorageError(
                f"storage.url: another process is creating {without_password(address)}; try again "
                "in a second"
            )
        storage = _open(address, deadline)
        if known is None or known != newest_version():
            # Optuna's own constructor makes what is missing, or refuses tables of another version.
            RDBStorage(
                storage.url, storage.engine_kwargs, skip_table_creation=not create
            ).engine.dispose()
        return storage

    with explained(address):
        return Retry(address, deadline).run(attempt)


def read_only(url: str | URL) -> RetryingStorage:
    """Opens a database of any program that uses Optuna to read it; a SQLite file stays unchanged.

    Raises:
        StorageError: There is no such file.
    """
    address = parse_url(url)
    if not is_sqlite(address):
        return _open(address, 0.0)
    if not sqlite_path(address).is_file():
        raise StorageError(f"there is no database {sqlite_path(address)}")
    read = existing_file(address).update_query_dict({"mode": "ro"})
    storage = RetryingStorage(read.render_as_string(), address, 0.0, {})
    event.listen(storage.engine, "connect", _limit)
    return storage


def _open(address: URL, deadline: float) -> RetryingStorage:
    if is_sqlite(address):
        return SQLiteStorage(existing_file(address).render_as_string(), address, deadline)
    engine_kwargs = {
        "pool_size": 2,
        "pool_use_lifo": True,  # so that the second one is not made while one is enough
        "max_overflow": 0,
        "pool_recycle": 1800,
        "pool_timeout": longest_silence(deadline),
        "connect_args": libpq_arguments(address, POSTGRES, deadline),
    }
    url = address.render_as_string(hide_password=False)
    return RetryingStorage(url, address, deadline, engine_kwargs)


# Optuna gets the version of its tables from Alembic, whose import loads all its dialects and
# runs every migration's file: 0.2 s for each database that is opened, and more for one that is
# made. So the chain of migrations is read as text, and new tables need no Alembic.


@functools.cache
def newest_version() -> str | None:
    """Returns the version of the installed Optuna's tables, which no other follows, if known."""
    versions: set[str] = set()
    followed: set[str] = set()
    for path in MIGRATIONS.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        versions.update(re.findall(r'^revision = "(.+)"$', text, re.MULTILINE))
        followed.update(re.findall(r'^down_revision = "(.+)"$', text, re.MULTILINE))
    newest = versions - followed
    return newest.pop() if len(newest) == 1 else None


def version_of(connection: Connection) -> str | None:
    """Returns the version of the tables of a database; None before they exist."""
    return connection.execute(sqlalchemy.select(ALEMBIC.c.version_num)).scalar()


def _make_tables(connection: Connection) -> str | None:
    """Makes Optuna's tables in an empty database, in one transaction; returns their version."""
    existing = {*sqlalchemy.inspect(connection).get_table_names()}
    if ALEMBIC.name in existing:
        return version_of(connection)
    if existing & {*TABLES} or newest_version() is None:
        return None
    sqlite = connection.dialect.name == "sqlite"
    connection.exec_driver_sql("BEGIN IMMEDIATE" if sqlite else "BEGIN")
    try:
        BaseModel.metadata.create_all(connection, checkfirst=False)
        ALEMBIC.create(connection, checkfirst=False)
        info = {"schema_version": SCHEMA_VERSION, "library_version": optuna.__version__}
        connection.execute(sqlalchemy.insert(VersionInfoModel), info)
        connection.execute(sqlalchemy.insert(ALEMBIC), {"version_num": newest_version()})
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")
    return newest_version()


# Connections


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

    Opening a file that was deleted is an error then, instead of an empty database. On a read-only
    disk SQLite reads the file without the lock and the log that it otherwise makes next to it.
    """
    path = sqlite_path(address)
    query = {"mode": "rw", "uri": "true"}
    if on_read_only_disk(address):
        query["mode"] = "ro"
        log_file = path.with_name(f"{path.name}-wal")
        if not log_file.exists() or not log_file.stat().st_size:  # else it holds the last commits
            query["immutable"] = "1"
    return URL.create("sqlite", database=f"file:{quote(str(path))}", query=query)


def on_read_only_disk(address: URL) -> bool:
    """Whether a SQLite file lies on a disk that is mounted read-only."""
    try:
        return bool(os.statvfs(sqlite_path(address)).f_flag & os.ST_RDONLY)
    except OSError:  # there is no file
        return False


def libpq_arguments(address: URL, defaults: Mapping[str, Any], deadline: float) -> dict[str, Any]:
    """Selects libpq's default arguments that a URL (with TLS, a schema, …) leaves open.

    What the URL names takes precedence; its "options" are appended to ours. A server that vanished
    is noticed within the deadline, and not in two hours.
    """
    silence = longest_silence(deadline)
    keepalives = {"idle": silence / 2, "interval": silence / 8, "count": 4}
    defaults = {**defaults, "tcp_user_timeout": round(1000 * silence)}
    defaults |= {f"keepalives_{name}": max(1, round(value)) for name, value in keepalives.items()}
    arguments = {name: value for name, value in defaults.items() if name not in address.query}
    options = [defaults["options"], *address.normalized_query.get("options", ())]
    return arguments | {"options": " ".join(options)}


def is_empty(url: str) -> bool:
    """Whether a server has a database that has no tables yet."""
    try:
        with plain_engine(parse_url(url)).connect() as connection:
            return not sqlalchemy.inspect(connection).get_table_names()
    except SQLAlchemyError:
        return False


def plain_engine(address: URL, deadline: float = 0.0, *, create: bool = False) -> sqlalchemy.Engine:
    """Makes an engine without hooks, pool or transactions, to look at a database or lock it."""
    arguments: dict[str, Any]
    if is_sqlite(address):
        new = URL.create("sqlite", database=str(sqlite_path(address)))
        target, arguments = new if create else existing_file(address), {"timeout": 2 * BUSY_SECONDS}
    else:
        target = address
        arguments = libpq_arguments(address, POSTGRES | {"options": PATIENT}, deadline)
    engine = sqlalchemy.create_engine(
        target,
        poolclass=sqlalchemy.pool.NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args=arguments,
    )
    event.listen(engine, "do_connect", _keep_to_deadline)
    event.listen(engine, "connect", _limit)
    return engine


def _keep_to_deadline(_: Any, __: Any, words: list[Any], arguments: dict[str, Any]) -> None:
    """Limits a try to connect to a server to the time that is left of the deadline."""
    if "connect_timeout" in arguments and call_state.until is not None:  # not SQLite
        hosts = str(arguments.get("host", "")).count(",") + 1
        left = max(LEAST_TRY, math.ceil((call_state.until - time.monotonic()) / hosts))
        arguments["connect_timeout"] = min(int(arguments["connect_timeout"]) or left, left)


CONNECTIONS_LEFT = """
    SELECT current_setting('max_connections')::int
           - (SELECT sum(numbackends) FROM pg_stat_database)
           - CASE WHEN rolsuper THEN 0 ELSE current_setting('superuser_reserved_connections')::int
           + coalesce(current_setting('reserved_connections', true), '0')::int END
    FROM pg_roles WHERE rolname = current_user"""


def connections_left(url: str | URL) -> float:
    """Counts the further connections that a server would accept from this user now.

    Infinity for SQLite, and for a connection pooler, which lets more clients wait than a server
    takes.
    """
    address = parse_url(url)
    if is_sqlite(address):
        return math.inf

    def ask() -> float:
        with plain_engine(address).connect() as connection:
            server = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            client: Any = connection.connection.driver_connection
            if client.info.backend_pid != server:
                return math.inf
            # This connection is closed by then, hence the 1.
            return 1.0 + float(connection.exec_driver_sql(CONNECTIONS_LEFT).scalar_one())

    with explained(address):
        return Retry(address, 0.0).run(ask)


def exclusive(url: str | URL, *, deadline: float = 0.0) -> AbstractContextManager[None]:
    """Holds the lock of the one process that creates tables and studies.

    Without it, up to 11 of 12 processes that started together crashed.

    The folder of a SQLite file is created. By default a database that is away is not waited for, so
    that a mistyped host fails at once. On a server the lock of a process that is
    stopped or cut off goes to another one after LEASE; on a file it ends with the process.
    """
    address = parse_url(url)
    waiting = f"waiting for another command, which opens a study in {without_password(address)}"
    return (_file_lock if is_sqlite(address) else _server_lock)(address, waiting, deadline)


@contextmanager
def _file_lock(address: URL, waiting: str, _: float) -> Iterator[None]:
    path = sqlite_path(address)
    lock = FileLock(path.with_name(f"{path.stem}.lock"))
    with explained(address):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(BUSY_SECONDS)
        except Timeout:
            log.warning("%s; if that sleeps, end it", waiting)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _server_lock(address: URL, waiting: str, deadline: float) -> Iterator[None]:
    """Holds a lock of the server for as long as a transaction that does nothing else is open.

    A lock of a session would stay behind in a pool of connections (pgbouncer with
    `pool_mode = transaction`): its release may reach another session than the lock. The server
    ends the transaction if its process does not renew it.
    """
    lock = sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(LOCK_KEY))
    # Here and not in the options, which a pool of connections may ignore.
    begin = (
        f"BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = {1000 * BUSY_SECONDS}; "
        f"SET LOCAL idle_in_transaction_session_timeout = {round(1000 * LEASE)}"
    )

    @functools.cache
    def announce() -> None:
        log.warning("%s; if that sleeps, for %g s at most", waiting, LEASE)

    def try_once(connection: Connection) -> bool:
        connection.exec_driver_sql(begin)
        try:
            connection.execute(lock)
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != LOCK_TIMEOUT:
                raise
            connection.exec_driver_sql("ROLLBACK")
            return False
        return True

    def acquire() -> Connection:
        connection = plain_engine(address, deadline).connect()
        with closed_on_error(connection):
            while not try_once(connection):
                announce()
        return connection

    def renew(end: threading.Event) -> None:
        with contextlib.suppress(SQLAlchemyError):  # the lock is lost with its connection
            while not end.wait(LEASE / RENEWALS):
                connection.exec_driver_sql("SELECT 1")

    with explained(address):
        connection = Retry(address, deadline).run(acquire)
    try:
        with running_in_thread(renew):
            yield
    finally:
        # The lock goes with the connection, also if that was lost before.
        with contextlib.suppress(SQLAlchemyError):
            connection.exec_driver_sql("COMMIT")
        with contextlib.suppress(SQLAlchemyError):
            connection.close()


class Closable(Protocol):
    """An object that holds connections."""

    def close(self) -> None: ...


Opened = TypeVar("Opened", bound=Closable)


@contextmanager
def closed_on_error(opened: Opened) -> Iterator[Opened]:
    """Closes a storage or a study if the body raises an error, since no caller gets it then."""
    try:
        yield opened
    except BaseException:
        opened.close()
        raise


@contextmanager
def explained(address: URL) -> Iterator[None]:
    """Turns any exception while a database is opened into a StorageError without its password.

    It is StorageLost only if the body has waited for the database until the deadline.
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
