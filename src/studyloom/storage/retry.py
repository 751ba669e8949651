"""Retries of calls on a database that is away, and plain words for failures that do not pass."""

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
from studyloom.storage.urls import has_several_hosts, without_password

SILENCE = 40.0  # seconds after which a connection of a server that is silent is lost, at most
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
    "unable to open database file": "no permission, or no such folder",
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
T = TypeVar("T")
log = logging.getLogger(__name__)
_jitter = random.Random()  # one of our own: a retry must not move a user's random numbers


class CallState(threading.local):
    """The state of the call that this thread makes on a storage."""

    writes = False
    committing = False  # this try has come to a COMMIT
    uncertain = False  # an earlier try did, and failed: the database may have written it all
    untrusted_until: float | None = None  # when reading an untrusted file ends; None for others
    until: float | None = None  # when a try of this call must end, as time.monotonic


call_state = CallState()


def longest_silence(deadline: float) -> float:
    """Returns the seconds after which a connection is lost, so that half the deadline is left."""
    return min(SILENCE, deadline / 2) if deadline > 0 else SILENCE


class Retry:
    """Repeats calls that fail for a cause that passes, ever more slowly.

    Once a call was given up, later ones are tried once, until one succeeds: a command that ends
    waits once, whatever it asks. A server, which takes seconds to fail, is left alone for 2 s. The
    log says when the database goes away and when it is back.
    """

    def __init__(self, address: URL, deadline: float) -> None:
        self.address = address
        self.deadline = deadline  # seconds in which a call tries again
        # Once it returns True, STOP_DEADLINE takes the place of a longer deadline.
        self.stopping: Callable[[], bool] = lambda: False
        self.away = False  # a call waits for the database
        # The error of a call that has waited in vain, if none has succeeded since.
        self._given_up: StorageLost | None = None
        self._next_try = 0.0  # when such a call may be tried, as time.monotonic

    def run(self, attempt: Callable[[], T], *, pooled: bool = False) -> T:
        """Calls a function until it succeeds.

        Args:
            attempt: Must bear being called again after a failure.
            pooled: Whether it uses connections that may have been lost since the call before; then
                another one is tried first, without a word.

        Raises:
            StorageLost: The cause does not pass, or has not passed in time.
        """
        outer = call_state.committing, call_state.uncertain, call_state.until
        call_state.uncertain = False
        called = time.monotonic()
        failed_at: float | None = None
        delay, longest = DELAYS
        if self._given_up and called < self._next_try:
            raise StorageLost(str(self._given_up), waited=self._given_up.waited)
        silent = longest_silence(self.deadline)
        first = 0.0 if self._given_up else silent
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
                    failed_at = failed_at or max(called, time.monotonic() - silent)
                    if pooled and lost.broken and lost.passing and not call_state.committing:
                        pooled = False
                        continue
                    left = self._time_left(lost, failed_at)
                except Exception:  # an answer of the database too: a trial is gone, say
                    self._report_return(failed_at, called)
                    raise
                else:
                    self._report_return(failed_at, called)
                    return result
                time.sleep(min(delay * _jitter.uniform(0.5, 1.0), left))
                delay = min(2 * delay, longest)
        finally:
            if failed_at is not None:  # also if a signal has ended the wait
                self.away = False
            call_state.committing, call_state.uncertain, call_state.until = outer

    def _time_left(self, lost: StorageLost, failed_at: float) -> float:
        """Returns the seconds that are left for further tries after a failure.

        Raises:
            StorageLost: None are left, or the failure does not pass.
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
        """Reports that the database has answered a call, if the call had to wait for it."""
        self._given_up = None
        if failed_at is not None and self.away:
            shown, seconds = without_password(self.address), time.monotonic() - called
            log.warning("storage: %s is back after %.1f s", shown, seconds)

    def _final(self, lost: StorageLost, deadline: float) -> StorageLost:
        """Makes the error of a call that is given up after a deadline in seconds."""
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
    """Turns a failure of SQLAlchemy or Optuna into one with the driver's words and the way out."""
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
    """Makes the error of a SQLite database whose name no longer leads to it."""
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
    # Of several hosts one may be about to be set up anew while another is promoted.
    tries = words.split("\n- host: ")[1:] if has_several_hosts(address) else []
    return isinstance(error, OperationalError | InterfaceError) and not all(
        any(final in words for final in FINAL_WORDS) for words in tries or [words]
    )


def is_read_only(error: DBAPIError) -> bool:
    """Whether a server refused to write because it is a standby, or set to read only."""
    return getattr(error.orig, "sqlstate", None) == READ_ONLY


def driver_message(error: BaseException, address: URL | None = None) -> str:
    """Formats the driver's words for a failure on one line, with the way out if it is known."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(getattr(error, "orig", error)).split()) or type(error).__name__
    # Of several hosts psycopg tells the last failure, and then all once more.
    text = text.partition("Multiple connection attempts failed. All failures were: ")[2] or text
    if address is not None and address.password:
        text = text.replace(str(address.password), "***")
    return next((f"{text} ({way})" for sign, way in WAYS_OUT.items() if sign in text.lower()), text)
