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
        may_have_stale_connection: Whether it uses pooled connections, which may have been lost
            since the previous call, and none has been found broken yet.
        has_failed: Whether a try has failed.
        outage_began: When the database went away, as time.monotonic; infinity until a try fails.
    """

    began: float
    may_have_stale_connection: bool
    has_failed: bool = False
    outage_began: float = math.inf


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
        # When the outage began that some call waits for now, as time.monotonic.
        self._outage_began: float | None = None
        # The error of the last call that was given up, until a call succeeds.
        self._last_failure: StorageLost | None = None
        # Before this moment, as time.monotonic, no call is tried on a server that was just away.
        self._next_try = 0.0

    def run(self, attempt: Callable[[], T], *, pooled: bool = False) -> T:
        """Calls a function until it succeeds.

        Args:
            attempt: A function that may be called again after a failure.
            pooled: Whether it uses pooled connections, which may have been lost since the previous
                call; then a new connection is tried first, without a log line.

        Raises:
            StorageLost: The failure is permanent, or has lasted too long.
        """
        call = Call(began=time.monotonic(), may_have_stale_connection=pooled)
        if self._last_failure is not None and call.began < self._next_try:
            # A server that was away a moment ago is not even called.
            raise StorageLost(str(self._last_failure), waited=self._last_failure.waited)
        with call_state.begin_call(self._end_of_first_try(call)):
            try:
                return self._repeat(attempt, call)
            finally:
                # However the call ends, also by a signal, it no longer waits for the database.
                if call.has_failed:
                    self.away = False
                    self._outage_began = None

    def _repeat(self, attempt: Callable[[], T], call: Call) -> T:
        """Calls a function until it succeeds, with growing pauses.

        Raises:
            StorageLost: The call was given up: the failure is permanent, or no time is left.
        """
        pause = FIRST_PAUSE
        while True:
            call_state.reached_commit = False  # SQLAlchemy's hook sets it before each COMMIT
            try:
                result = attempt()
            except (StorageLost, SQLAlchemyError, StorageInternalError) as error:
                failure = self._diagnose(error)
                outage_began = self._begin_outage(call)
                if self._had_stale_connection(call, failure):
                    # The connection was lost while it was idle, so the database may well be there.
                    # The next try follows at once, with a new connection.
                    call.may_have_stale_connection = False
                    continue
                seconds_to_wait = self._seconds_to_wait
                deadline = outage_began + seconds_to_wait
                time_left = deadline - time.monotonic()
                if time_left <= 0 or not self._may_try_again(failure):
                    raise self._give_up(failure, seconds_to_wait) from None
                self._prepare_next_try(deadline)
                self._announce_wait(failure)
            except Exception:
                # The database has answered: a trial is gone, for example.
                self._end_outage(call)
                raise
            else:
                self._end_outage(call)
                return result
            time.sleep(min(pause * _jitter.uniform(0.5, 1.0), time_left))
            pause = min(2 * pause, LONGEST_PAUSE)

    @staticmethod
    def _had_stale_connection(call: Call, failure: StorageLost) -> bool:
        """Returns whether a try may have failed only because its pooled connection was stale.

        A pooled connection may have been lost since the previous call, although the database is
        there. It is another failure if the try came to its COMMIT: the connection worked until
        then.
        """
        if call_state.reached_commit or not call.may_have_stale_connection:
            return False
        return failure.connection_broke and failure.is_transient

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
            # The call before was given up. This one is tried once, to see whether the database is
            # back. An end that is past gives the try the shortest time, `connections.LEAST_TRY`.
            return call.began
        if self._outage_began is not None:  # another call waits already
            deadline = self._outage_began + self.deadline
        else:
            deadline = call.began + self.deadline
        end_of_silence = call.began + longest_silence(self.deadline)
        return min(end_of_silence, deadline)

    def _begin_outage(self, call: Call) -> float:
        """Notes that a call has failed, and when the outage began, the same for all waiting calls.

        Returns:
            When the database went away, as time.monotonic.
        """
        if not call.has_failed:
            call.has_failed = True
            if self._outage_began is None:
                # On a cut network the call has failed after a silence, which belongs to the outage.
                # So the outage began with the call, but no earlier than the longest silence ago:
                # this process may have been suspended since the call began.
                earliest_begin = time.monotonic() - longest_silence(self.deadline)
                self._outage_began = max(call.began, earliest_begin)
            # The call keeps the time: if another call succeeds, `_outage_began` is reset.
            call.outage_began = self._outage_began
        return call.outage_began

    @property
    def _seconds_to_wait(self) -> float:
        """The seconds of an outage after which a call is given up."""
        if self.stopping():
            return min(self.deadline, STOP_DEADLINE)
        return self.deadline

    def _may_try_again(self, failure: StorageLost) -> bool:
        """Returns whether a call that has failed may be tried again, if there is time left.

        A permanent failure, such as a wrong password, would come again. And once some call was
        tried for its whole time in vain, later calls are tried once, until one succeeds.
        """
        has_waited_in_vain = self._last_failure is not None
        return failure.is_transient and not has_waited_in_vain

    @staticmethod
    def _prepare_next_try(deadline: float) -> None:
        """Tells the next try of this thread's call, by `call_state`, what it must know.

        Args:
            deadline: When the try must end, as time.monotonic.
        """
        call_state.try_ends = deadline
        if call_state.reached_commit:
            # The database may have done the COMMIT, and only its reply was lost.
            call_state.may_be_committed = True

    def _announce_wait(self, failure: StorageLost) -> None:
        """Logs that calls wait for the database, unless an earlier failure was logged."""
        if not self.away:
            self.away = True
            log.warning("%s; trying again for up to %g s", failure, self._seconds_to_wait)

    def _end_outage(self, call: Call) -> None:
        """Forgets earlier failures; logs that the database is back if this call has waited."""
        self._last_failure = None
        self._outage_began = None
        if call.has_failed and self.away:
            seconds = time.monotonic() - call.began
            log.warning("storage: %s is back after %.1f s", without_password(self.address), seconds)

    def _give_up(self, failure: StorageLost, seconds_to_wait: float) -> StorageLost:
        """Returns the error of a call that is given up.

        The error of an outage is remembered until a call succeeds: later calls are tried only once,
        and a server is not called at all for LONGEST_PAUSE seconds.

        Args:
            failure: The last failure of the call.
            seconds_to_wait: The seconds of the outage after which the call is given up.
        """
        self.away = False
        if not failure.is_transient or self.deadline <= 0:
            return StorageLost(str(failure), waited=failure.waited)
        waited = seconds_to_wait
        if self._last_failure is not None:
            # This call was tried only once. An earlier one has waited in vain, for longer if the
            # process was not stopping yet: the message names that wait.
            waited = max(seconds_to_wait, self._last_failure.waited)
        if self.stopping():
            reason = "this process is stopping"
        else:
            reason = "storage.deadline"
        if not is_sqlite(self.address):
            self._next_try = time.monotonic() + LONGEST_PAUSE
        self._last_failure = StorageLost(
            f"{failure}; it did not recover in {waited:g} s ({reason}); once it is back, the same "
            "command resumes the study",
            waited=waited,
        )
        return self._last_failure
