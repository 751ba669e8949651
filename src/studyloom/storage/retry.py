"""Calls on a database that are repeated after a transient failure, with growing pauses."""

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from studyloom.errors import StorageLost
from studyloom.storage.call_state import call_state
from studyloom.storage.connections import is_sqlite, longest_silence
from studyloom.storage.database_errors import diagnose
from studyloom.storage.urls import without_password

STOP_DEADLINE = 2.0  # seconds that a call waits for a database once its process is to stop
# Seconds between tries; the pause doubles up to the longest.
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0
T = TypeVar("T")
log = logging.getLogger(__name__)
_jitter = random.Random()  # a separate one: a retry must not change a user's random numbers


def never() -> bool:
    return False


class Retry:
    """Repeats calls after transient failures, with growing pauses.

    A command waits for a database only once, although its threads make several calls: a call that
    begins while another one waits is given up together with it, and once a call was given up, later
    ones are tried once, until one succeeds. A server, which takes seconds to fail, is not even
    called for 2 s. The log says when the database goes away and when it is back.

    Attributes:
        address: The database.
        deadline: Seconds in which a call tries again.
        stopping: Whether the process is to stop; then STOP_DEADLINE replaces a longer deadline.
        away: Whether a call waits for the database.
    """

    def __init__(self, address: URL, deadline: float) -> None:
        self.address = address
        self.deadline = deadline
        self.stopping: Callable[[], bool] = never
        self.away = False
        # When the first of the calls that wait now began to, as time.monotonic.
        self._away_since: float | None = None
        # The error of a call that has waited in vain, if none has succeeded since.
        self._given_up: StorageLost | None = None
        self._next_try = 0.0  # when a call may be tried after that, as time.monotonic

    def run(self, attempt: Callable[[], T], *, pooled: bool = False) -> T:
        """Calls a function until it succeeds.

        Args:
            attempt: A function that may be called again after a failure.
            pooled: Whether it uses pooled connections, which may have been lost since the previous
                call; then a new connection is tried first, without a log line.

        Raises:
            StorageLost: The failure is permanent, or has lasted too long.
        """
        called_at = time.monotonic()
        if self._given_up is not None and called_at < self._next_try:
            raise StorageLost(str(self._given_up), waited=self._given_up.waited)
        failed_at: float | None = None
        pause = FIRST_PAUSE
        with call_state.begin_call():
            call_state.try_ends = self._end_of_first_try(called_at)
            try:
                while True:
                    call_state.committing = False
                    try:
                        result = attempt()
                    except (StorageLost, SQLAlchemyError, StorageInternalError) as error:
                        if isinstance(error, StorageLost):
                            lost = error
                        else:
                            lost = diagnose(error, self.address)
                        if failed_at is None:
                            failed_at = self._record_first_failure(called_at)
                        if pooled and lost.broken and lost.passing and not call_state.committing:
                            pooled = False
                            continue
                        time_left = self._time_left(lost, failed_at)
                    except Exception:
                        # The database has answered: a trial is gone, for example.
                        self._record_success(failed_at, called_at)
                        raise
                    else:
                        self._record_success(failed_at, called_at)
                        return result
                    time.sleep(min(pause * _jitter.uniform(0.5, 1.0), time_left))
                    pause = min(2 * pause, LONGEST_PAUSE)
            finally:
                if failed_at is not None:  # also if a signal has ended the wait
                    self.away = False
                    self._away_since = None

    def _end_of_first_try(self, called_at: float) -> float | None:
        """Returns when the first try of a call must end, as time.monotonic."""
        if self.deadline <= 0:
            return None
        if self._given_up is not None:
            return called_at
        outage_began = self._away_since or called_at
        deadline = outage_began + self.deadline
        return min(called_at + longest_silence(self.deadline), deadline)

    def _record_first_failure(self, called_at: float) -> float:
        """Returns since when the database has been away, from which the deadline counts.

        A cut network is silent before the first failure, so that this silence counts. All of the
        time since the call does not, because a process may have been stopped for long.
        """
        if self._away_since is None:
            silence_began = time.monotonic() - longest_silence(self.deadline)
            self._away_since = max(called_at, silence_began)
        return self._away_since

    def _time_left(self, lost: StorageLost, failed_at: float) -> float:
        """Returns the seconds that are left for further tries after a failure.

        Raises:
            StorageLost: None are left, or the failure is permanent.
        """
        deadline = self.deadline
        if self.stopping():
            deadline = min(self.deadline, STOP_DEADLINE)
        try_ends = failed_at
        if self._given_up is None:
            try_ends += deadline
        call_state.try_ends = try_ends
        time_left = try_ends - time.monotonic()
        if not lost.passing or time_left <= 0:
            raise self._give_up(lost, deadline) from None
        if call_state.committing:
            call_state.uncertain = True
        if not self.away:
            self.away = True
            log.warning("%s; trying again for up to %g s", lost, deadline)
        return time_left

    def _record_success(self, failed_at: float | None, called_at: float) -> None:
        """Ends the outage, and logs that the database is back if the call had to wait for it."""
        self._given_up = None
        self._away_since = None
        if failed_at is not None and self.away:
            seconds = time.monotonic() - called_at
            log.warning("storage: %s is back after %.1f s", without_password(self.address), seconds)

    def _give_up(self, lost: StorageLost, deadline: float) -> StorageLost:
        """Returns the error of a call that is given up after a deadline in seconds."""
        self.away = False
        if not lost.passing or self.deadline <= 0:
            return StorageLost(str(lost), waited=lost.waited)
        waited = deadline
        if self._given_up is not None:
            waited = max(deadline, self._given_up.waited)
        reason = "storage.deadline"
        if self.stopping():
            reason = "this process is stopping"
        if not is_sqlite(self.address):
            self._next_try = time.monotonic() + LONGEST_PAUSE
        self._given_up = StorageLost(
            f"{lost}; it did not recover in {waited:g} s ({reason}); once it is back, the same "
            "command resumes the study",
            waited=waited,
        )
        return self._given_up
