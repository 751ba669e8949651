"""Outages of the database: which failures pass, how long to wait for that, and what to say of the others."""

import logging
import os
import random
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from studyloom.errors import StorageLost
from studyloom.storage.urls import without_password

STOP_DEADLINE = 2.0  # seconds that a call waits for a database once its process is to stop
ANSWERED_DEADLINE = (
    2.0  # seconds that any call waits for a server which has answered: that is no mistyped host
)
DELAYS = (0.05, 2.0)  # seconds between tries: the first, doubling to the longest
PASSING_STATES = (
    "08",
    "57P",
    "53300",
    "40001",
    "40P01",
    "55P03",
    "25P03",
)  # how a passing SQLSTATE begins
# A connection that is refused while it is made has no SQLSTATE; what passes there is all but this.
FINAL_WORDS = (
    *(
        "authentication failed",
        "no password supplied",
        "pg_hba.conf",
        "not permitted",
        "permission denied",
    ),
    *("does not exist", "certificate", "not support ssl", "unsupported startup parameter"),
)
PASSING_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
WAYS_OUT = {
    "unable to open database file": "no permission, or no such folder",
    "readonly database": "no permission to write there",
    "file is not a database": "something else is stored under that name",
    "malformed": "the file is damaged; put a copy back, or begin again under another run_dir",
    "disk is full": "free some space, or name another run_dir",
    "disk i/o error": "its disk is full or failing",
    "no space left": "free some space on the server's disk",
    "no such table": "it holds no studies yet, or was emptied; the first run of a study makes its tables",
    'relation "alembic_version" does not exist': "it holds no studies yet; the first run of a study makes its tables",
    "database is locked": "another program keeps it from being written; end that program",
    "lock timeout": "another program keeps its rows locked; end that program",
    "unsupported startup parameter": "put options into ignore_startup_parameters of pgbouncer",
    "authentication failed": "check user and password in storage.url or STUDYLOOM_STORAGE",
}
T = TypeVar("T")
log = logging.getLogger(__name__)
_jitter = random.Random()  # one of our own: a retry must not move a user's random numbers


class CallState(threading.local):
    """What this thread's call on a storage is about."""

    writes = False
    committing = False  # this try has come to a COMMIT
    uncertain = False  # an earlier try has, and failed: it is unknown whether all was written


call_state = CallState()


class Retry:
    """Tries again, ever more slowly, what fails for a cause that passes; tells the log when an outage begins and ends.

    Args:
        deadline: seconds from a call's first failure to its last try; AGAIN if that is longer and a server answers.

    Attributes:
        stopping: once it says so, FAREWELL takes the place of a longer deadline; looked at before each try.
        away: whether a call waits.
    """

    def __init__(self, address: URL, deadline: float) -> None:
        self.address = address
        self.deadline = deadline
        self.stopping: Callable[[], bool] = lambda: False
        self.away = False

    def run(self, attempt: Callable[[], T]) -> T:
        """What `attempt` returns, sooner or later.

        Raises:
            StorageLost: the cause does not pass, or has not passed in time.
        """
        outer = call_state.committing, call_state.uncertain
        call_state.uncertain = False
        called = time.monotonic()
        began: float | None = (
            None  # with the first failure, and not the call: a process may be stopped for a while
        )
        delay, longest = DELAYS
        try:
            while True:
                call_state.committing = False
                try:
                    result = attempt()
                except (StorageLost, SQLAlchemyError, StorageInternalError) as error:
                    lost = (
                        error if isinstance(error, StorageLost) else diagnose(error, self.address)
                    )
                    began = began or time.monotonic()
                    deadline = (
                        max(self.deadline, ANSWERED_DEADLINE) if lost.answered else self.deadline
                    )
                    deadline = min(deadline, STOP_DEADLINE) if self.stopping() else deadline
                    left = began + deadline - time.monotonic()
                    if not lost.passing or left <= 0:
                        raise self.give_up(lost, time.monotonic() - began) from None
                    call_state.uncertain |= call_state.committing
                    if not self.away:
                        self.away = True
                        log.warning("%s; trying again for up to %g s", lost, deadline)
                else:
                    if began is not None and self.away:
                        log.warning(
                            "storage: %s is back after %.1f s",
                            without_password(self.address),
                            time.monotonic() - called,
                        )
                        self.away = False
                    return result
                time.sleep(min(delay * _jitter.uniform(0.5, 1.0), left))
                delay = min(2 * delay, longest)
        finally:
            call_state.committing, call_state.uncertain = outer

    def give_up(self, lost: StorageLost, waited: float) -> StorageLost:
        self.away = False
        if not lost.passing or self.deadline <= 0:
            return StorageLost(str(lost), waited=lost.waited)
        why = "was told to stop" if self.stopping() else "storage.deadline"
        words = f"; it stayed so for {waited:.{0 if waited >= 10 else 1}f} s ({why})"
        return StorageLost(
            f"{lost}{words}; once it is back, the same command goes on from here", waited=waited
        )


def diagnose(error: BaseException, address: URL) -> StorageLost:
    """What a failure of a driver means: in words, and whether it passes."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, DBAPIError):
        found = (
            found.__cause__ or found.__context__
        )  # SQLAlchemy and Optuna wrap, and stumble on after a failure
    if found is not None:
        error, passing = found, _passes(found)
        answered = found.connection_invalidated or "FATAL:" in str(
            found.orig
        )  # later, or while it was connecting
    else:  # a pool whose connections are all in use for 30 s, by threads that wait
        cause = error.__cause__ or error
        passing, answered = isinstance(cause, sqlalchemy.exc.TimeoutError), False
    words = f"storage.url: cannot use {without_password(address)}: {driver_message(error, address)}"
    return StorageLost(words, passing=passing, answered=answered)


def file_gone(address: URL) -> StorageLost:
    """The failure of a SQLite database whose name no longer leads to it."""
    return StorageLost(
        f"storage.url: cannot use {without_password(address)}: the file was deleted, moved, replaced or emptied, or its disk is "
        "away; put it back, or begin again under another run_dir"
    )


def file_identity(address: URL) -> tuple[int, int] | None:
    """Which file a SQLite database is now; None where there is none, or an empty one."""
    try:
        status = os.stat(str(address.database))
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status.st_size else None


def _passes(error: DBAPIError) -> bool:
    provenance: Any = error.orig
    if isinstance(provenance, sqlite3.Error):
        return getattr(provenance, "sqlite_errorcode", 0) & 0xFF in PASSING_CODES
    if state := getattr(provenance, "sqlstate", None):
        return bool(state.startswith(PASSING_STATES))
    words = re.sub('"[^"]*"', "", str(provenance)).lower()  # without names, which may be anything
    return isinstance(error, OperationalError | InterfaceError) and not any(
        word in words for word in FINAL_WORDS
    )


def driver_message(error: BaseException, address: URL | None = None) -> str:
    """The driver's own words for a failure, on one line, with the way out."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(getattr(error, "orig", error)).split()) or type(error).__name__
    if address is not None and address.password:
        text = text.replace(str(address.password), "***")
    return next((f"{text} ({way})" for sign, way in WAYS_OUT.items() if sign in text.lower()), text)
