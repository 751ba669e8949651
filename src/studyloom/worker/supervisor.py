"""Supervises workers: renews their leases, replaces those that die, and stops them in time."""

import contextlib
import logging
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from studyloom.errors import LaunchError, StorageLost
from studyloom.worker.line import GRACE
from studyloom.worker.stopping import Stop
from studyloom.worker.task import Task, renewing_leases

STOP_SIGNALS = {signal.Signals(number).name for number in Stop.SIGNALS}
# A worker whose exit code is above 128 has ended by a signal, and has released its trial.
FIRST_SIGNAL_CODE = 129
INVALID_INPUT = "2"  # the exit code of a worker that refused its config
RESTARTS = 3  # of a worker that dies before it claims a slot; then it is not started again
# Restarts of a worker that a signal from outside kills while it starts: from an administrator, or
# from a daemon that frees memory.
RESTARTS_AFTER_SIGNAL = 30
POLL = 0.1  # seconds between looks at the workers
LOG_LINES = 12  # of a worker that died, in the error message
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerExit:
    """How a worker ended.

    Attributes:
        code: Its exit code, negative for a signal; None if unknown.
        description: How it ended, if its exit code is unknown.
    """

    code: int | None
    description: str = ""

    def __str__(self) -> str:
        if self.code is None:
            return self.description
        if self.signal is not None:
            return f"signal {self.signal}"
        return f"exit code {self.code}"

    @property
    def signal(self) -> str | None:
        """The name of the signal that ended it; None if none did."""
        if self.code is None or self.code >= 0:
            return None
        try:
            return signal.Signals(-self.code).name
        except ValueError:  # one without a name, such as SIGRTMIN+1
            return str(-self.code)


class WorkerHandle(Protocol):
    """Starts, watches and ends one worker at a time, on some device of some host.

    Attributes:
        log: The file to which the worker's output is appended.
        failures: How many workers in a row died before they claimed a slot.
        messages: The messages that the worker has sent on its line; see `worker.line`.
        active: Whether there is a worker, or one is being started.
        worker_id: Its id in the ledger; None while there is no worker yet.
    """

    log: Path
    failures: int
    messages: dict[str, str]

    @property
    def active(self) -> bool: ...
    @property
    def worker_id(self) -> str | None: ...

    def start(self) -> None:
        """Starts a worker; there must be none."""

    def poll(self) -> WorkerExit | None:
        """Returns how the worker ended; None if it has not."""

    def stop(self) -> None:
        """Requests that the worker releases its trial and ends."""

    def kill(self) -> str | None:
        """Ends the worker and everything it started, and returns its id in the ledger."""


class Supervisor:
    """Supervises the workers of a task from this process."""

    def __init__(self, task: Task, workers: Sequence[WorkerHandle]) -> None:
        self.task = task
        self.workers = list(workers)
        self._stopped_at: float | None = None  # when the workers were requested to stop
        self._last_query = time.monotonic()  # the last look at what takes a query
        task.logs.mkdir(parents=True, exist_ok=True)

    def run(self, stop: Stop) -> None:
        """Starts all workers, and replaces those that die, until nothing is left to do.

        When it returns or raises, no worker is left.

        Raises:
            LaunchError: Workers die before they claim a trial.
            StorageLost: The database stays away; the workers were requested to stop.
        """
        try:
            for worker in self.workers:
                worker.start()
            with renewing_leases(self.task, self._by_id):
                self._supervise(stop)
        except StorageLost:
            self._stop_all()
            self._await_ends()
            raise
        finally:
            self.kill_all()
        if self._stopped_at is None and self.task.todo():
            raise LaunchError(self._last_log_lines())

    def _await_ends(self) -> None:
        """Waits until all workers have ended, or have had their time to stop."""
        while self._active() and not self._grace_is_over():
            for worker in self._active():
                has_ended = worker.poll() is not None
                if has_ended:
                    worker.kill()  # what it started
            time.sleep(POLL)

    def kill_all(self) -> None:
        """Ends every worker that is still there, and releases the trials that they hold."""
        worker_ids = [worker.kill() for worker in self._active()]
        with contextlib.suppress(StorageLost):  # then their leases will end
            for worker_id in worker_ids:
                if worker_id is not None:
                    death = "it did not stop when it was requested to"
                    self.task.ledger.record_death(worker_id, death)

    def _active(self) -> list[WorkerHandle]:
        return [worker for worker in self.workers if worker.active]

    def _by_id(self) -> dict[str, WorkerHandle]:
        """Returns the running workers by their ids in the ledger."""
        by_id = {}
        for worker in self.workers:
            if worker.worker_id is not None:
                by_id[worker.worker_id] = worker
        return by_id

    def _supervise(self, stop: Stop) -> None:
        """Watches the workers until all have ended, or have had their time to stop."""
        while True:
            workers = self._active()
            if not workers:
                return
            for worker in workers:
                worker_exit = worker.poll()
                if worker_exit is not None:
                    self._handle_exit(worker, worker_exit)
            if time.monotonic() > self._last_query + 1.0:
                self._last_query = time.monotonic()
                self._kill_timed_out()
                if not self._by_id() and not self.task.todo():
                    return  # the workers that are being started are no longer needed
            if stop():
                self._stop_all()
            if self._grace_is_over():
                return
            time.sleep(POLL)

    def _grace_is_over(self) -> bool:
        return self._stopped_at is not None and time.monotonic() > self._stopped_at + GRACE

    def _kill_timed_out(self) -> None:
        """Kills the workers whose trials take longer than study.trial_timeout, and starts others.

        Allows a second more than the worker itself, which checks only after each epoch.
        """
        limit = self.task.limits.trial_timeout
        if limit is None:
            return
        death = f"the trial took longer than study.trial_timeout={limit:g} s"
        workers = self._by_id()
        while True:
            # Queried again after each kill, which may take seconds: the other workers may have
            # ended their trials meanwhile and have begun new ones.
            overdue_claims = self.task.ledger.overdue(list(workers), limit + 1.0)
            if not overdue_claims:
                return
            claim = overdue_claims[0]
            worker = workers.pop(claim.owner)
            worker.kill()
            self.task.ledger.record_death(claim.owner, death, overdue=claim)
            worker.start()

    def _stop_all(self) -> None:
        """Requests that the workers release their trials and end."""
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()
            for worker in self._active():
                worker.stop()

    def _handle_exit(self, worker: WorkerHandle, worker_exit: WorkerExit) -> None:
        """Kills what a worker left behind, and starts another if the database has work left."""
        messages = worker.messages
        has_released = int(messages.get("ended", 0)) >= FIRST_SIGNAL_CODE
        death = messages.get("died", f"the worker ended with {worker_exit}")
        # Logged before the kill, which takes seconds if its host is gone: others may end the study
        # then.
        if self._stopped_at is None and not self.task.halted() and self.task.todo():
            self._log_exit(worker, death, has_released=has_released)
        worker_id = worker.kill()
        held_slots = 0
        if worker_id is not None:
            held_slots = self.task.ledger.record_death(worker_id, death)
        if self._stopped_at is None and self.task.halted():
            self._stop_all()
        if self._stopped_at is not None or not self.task.todo():
            return
        if "claimed" in messages or held_slots > 0:
            worker.failures = 0
        else:
            worker.failures += 1
        has_refused_config = messages.get("ended") == INVALID_INPUT and "claimed" not in messages
        if has_refused_config:
            return  # the next worker would refuse it too
        restarts = RESTARTS
        if has_released or worker_exit.signal in STOP_SIGNALS:
            restarts = RESTARTS_AFTER_SIGNAL
        if worker.failures <= restarts:
            worker.start()

    def _log_exit(self, worker: WorkerHandle, death: str, *, has_released: bool) -> None:
        end = death.replace("the worker", "a worker")
        if has_released:
            end = "a worker ended with a signal, and released its trial"
        log.warning("%s; its log: %s", end, worker.log)

    def _last_log_lines(self) -> str:
        """Returns an error message with the last log lines of the worker that died most often."""
        worker = max(self.workers, key=lambda worker: worker.failures)
        lines = worker.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        head = f"workers die before they claim a trial; the end of {worker.log}:"
        return "\n".join([head, *lines])
