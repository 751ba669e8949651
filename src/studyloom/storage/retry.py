"""Repeats calls on a database after transient failures, until it is back or a deadline is over."""

import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass
class Call:
    """A call that is tried until it succeeds or is given up.

    Attributes:
        began: When it began, as time.monotonic.
        pooled: Whether it uses pooled connections, of which none has been found broken yet.
        has_failed: Whether a try has failed.
        away_since: Since when the database has been away if a try has failed, as time.monotonic.
    """

    began: float
    pooled: bool
    has_failed: bool = False
    away_since: float = math.inf


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
        self._waiting_since: float | None = None
        # The error of the last call that was given up, until a call succeeds.
        self._last_failure: StorageLost | None = None
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
        call = Call(began=time.monotonic(), pooled=pooled)
        if self._last_failure is not None and call.began < self._next_try:
            # A server that was away a moment ago is not even called.
            raise StorageLost(str(self._last_failure), waited=self._last_failure.waited)
        with call_state.begin_call():
            call_state.try_ends = self._end_of_first_try(call)
            try:
                return self._repeat(attempt, call)
            finally:
                if call.has_failed:  # also if a signal has ended the wait
                    self.away = False
                    self._waiting_since = None

    def _repeat(self, attempt: Callable[[], T], call: Call) -> T:
        """Calls a function until it succeeds, with growing pauses.

        Raises:
            StorageLost: The call was given up: the failure is permanent, or no time is left.
        """
        pause = FIRST_PAUSE
        while True:
            call_state.committing = False  # it becomes True once the try comes to its COMMIT
            try:
                result = attempt()
            except (StorageLost, SQLAlchemyError, StorageInternalError) as error:
                lost = self._diagnose(error)
                away_since = self._begin_outage(call)
                connection_broke = lost.broken and lost.passing  # and the failure is transient
                if call.pooled and connection_broke and not call_state.committing:
                    # A pooled connection may have been lost since the previous call, although the
                    # database is there: a new one is tried at once.
                    call.pooled = False
                    continue
                time_left = self._plan_next_try(lost, away_since)
                self._announce_wait(lost)
            except Exception:
                # The database has answered: a trial is gone, for example.
                self._end_outage(call)
                raise
            else:
                self._end_outage(call)
                return result
            time.sleep(min(pause * _jitter.uniform(0.5, 1.0), time_left))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _diagnose(self, error: Exception) -> StorageLost:
        if isinstance(error, StorageLost):
            return error
        return diagnose(error, self.address)

    def _end_of_first_try(self, call: Call) -> float | None:
        """Returns when the first try of a call must end, as time.monotonic; None for no limit.

        A silent server is waited for no longer than half the deadline, so that there is time for
        another try.
        """
        if self.deadline <= 0:
            return None
        if self._last_failure is not None:
            return call.began  # the database is known to be away
        outage_began = self._waiting_since or call.began
        deadline = outage_began + self.deadline
        return min(call.began + longest_silence(self.deadline), deadline)

    def _begin_outage(self, call: Call) -> float:
        """Records that a call has failed.

        The database counts as away since the first failure of any call that waits now, so that all
        of them have the same deadline. The silence of a cut network before that failure counts too,
        but not all of the time since the call began: the process may have been stopped for long.

        Returns:
            Since when the database has been away, as time.monotonic.
        """
        if not call.has_failed:
            call.has_failed = True
            if self._waiting_since is None:
                silence_began = time.monotonic() - longest_silence(self.deadline)
                self._waiting_since = max(call.began, silence_began)
            call.away_since = self._waiting_since
        return call.away_since

    @property
    def _seconds_to_wait(self) -> float:
        """The seconds of an outage after which a call is given up."""
        if self.stopping():
            return min(self.deadline, STOP_DEADLINE)
        return self.deadline

    def _plan_next_try(self, lost: StorageLost, away_since: float) -> float:
        """Sets when the next try must end after a failure; returns the seconds until then.

        Args:
            lost: The failure.
            away_since: Since when the database has been away, as time.monotonic.

        Raises:
            StorageLost: No time is left, or the failure is permanent.
        """
        seconds_to_wait = self._seconds_to_wait
        if self._last_failure is None:
            call_state.try_ends = away_since + seconds_to_wait
        else:
            call_state.try_ends = away_since  # another call has waited in vain already
        time_left = call_state.try_ends - time.monotonic()
        is_permanent = not lost.passing
        if is_permanent or time_left <= 0:
            raise self._give_up(lost, seconds_to_wait) from None
        if call_state.committing:
            call_state.uncertain = True  # the COMMIT may have been done, and only its reply lost
        return time_left

    def _announce_wait(self, lost: StorageLost) -> None:
        """Logs that calls wait for the database, unless an earlier failure was logged."""
        if not self.away:
            self.away = True
            log.warning("%s; trying again for up to %g s", lost, self._seconds_to_wait)

    def _end_outage(self, call: Call) -> None:
        """Forgets earlier failures; logs that the database is back if this call has waited."""
        self._last_failure = None
        self._waiting_since = None
        if call.has_failed and self.away:
            seconds = time.monotonic() - call.began
            log.warning("storage: %s is back after %.1f s", without_password(self.address), seconds)

    def _give_up(self, lost: StorageLost, seconds_to_wait: float) -> StorageLost:
        """Returns the error of a call that is given up, and remembers it for later calls.

        They are tried once, and a server is not even called for a moment, until a call succeeds.

        Args:
            lost: The last failure of the call.
            seconds_to_wait: The seconds of the outage after which the call is given up.
        """
        self.away = False
        is_permanent = not lost.passing
        if is_permanent or self.deadline <= 0:
            return StorageLost(str(lost), waited=lost.waited)
        waited = seconds_to_wait
        if self._last_failure is not None:
            waited = max(seconds_to_wait, self._last_failure.waited)
        reason = "storage.deadline"
        if self.stopping():
            reason = "this process is stopping"
        if not is_sqlite(self.address):
            self._next_try = time.monotonic() + LONGEST_PAUSE
        self._last_failure = StorageLost(
            f"{lost}; it did not recover in {waited:g} s ({reason}); once it is back, the same "
            "command resumes the study",
            waited=waited,
        )
        return self._last_failure
