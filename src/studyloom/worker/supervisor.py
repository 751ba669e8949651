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
QUERY_INTERVAL = 1.0  # seconds between queries of the database
TIMEOUT_TOLERANCE = 1.0  # seconds that a worker may be late to end a trial by its time limit
LOG_LINES = 12  # of a worker that died, in the error message
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerExit:
    """How a worker ended.

    Attributes:
        code: Its exit code, negative for a signal; None if unknown, as for a worker on a lost host.
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
        except ValueError:  # a signal without a name, such as SIGRTMIN+1
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
        self._stop_time: float | None = None  # when the workers were requested to stop
        self._last_query = time.monotonic()  # when the database was queried last
        task.logs.mkdir(parents=True, exist_ok=True)

    def run(self, stop: Stop) -> None:
        """Starts all workers, and replaces those that die, until no trial is open.

        When it returns or raises, no worker runs.

        Raises:
            LaunchError: Workers die before they claim a trial.
            StorageLost: The database stays away; the workers were requested to stop.
        """
        try:
            for worker in self.workers:
                worker.start()
            with renewing_leases(self.task, self._find_workers_by_id):
                self._supervise(stop)
        except StorageLost:
            self._stop_all()
            self._wait_for_ends()
            raise
        finally:
            self.kill_all()
        if not self._is_stopping and self.task.count_open_trials():
            raise LaunchError(self._describe_deaths())

    def _wait_for_ends(self) -> None:
        """Waits until all workers have ended, or have had their time to stop."""
        while self._find_active() and not self._is_grace_over():
            for worker in self._find_active():
                has_ended = worker.poll() is not None
                if has_ended:
                    worker.kill()  # with all that it has started
            time.sleep(POLL)

    def kill_all(self) -> None:
        """Kills the workers that have not ended, and releases the trials that they hold."""
        worker_ids = [worker.kill() for worker in self._find_active()]
        # While the database is away, the trials are released later, as their leases end.
        with contextlib.suppress(StorageLost):
            for worker_id in worker_ids:
                if worker_id is not None:
                    death = "it did not stop when it was requested to"
                    self.task.ledger.record_death(worker_id, death)

    def _find_active(self) -> list[WorkerHandle]:
        return [worker for worker in self.workers if worker.active]

    def _find_workers_by_id(self) -> dict[str, WorkerHandle]:
        """Returns the running workers by the ids with which they claim trials."""
        workers_by_id = {}
        for worker in self.workers:
            if worker.worker_id is not None:
                workers_by_id[worker.worker_id] = worker
        return workers_by_id

    def _supervise(self, stop: Stop) -> None:
        """Watches the workers until all have ended, or have had their time to stop."""
        while True:
            workers = self._find_active()
            if not workers:
                return
            for worker in workers:
                worker_exit = worker.poll()
                if worker_exit is not None:
                    self._handle_exit(worker, worker_exit)
            if time.monotonic() > self._last_query + QUERY_INTERVAL:
                self._last_query = time.monotonic()
                self._replace_timed_out_workers()
                has_running_worker = bool(self._find_workers_by_id())
                if not has_running_worker and not self.task.count_open_trials():
                    return  # the workers that are being started are no longer needed
            if stop():
                self._stop_all()
            if self._is_grace_over():
                return
            time.sleep(POLL)

    @property
    def _is_stopping(self) -> bool:
        """Returns whether the workers were requested to stop."""
        return self._stop_time is not None

    def _is_grace_over(self) -> bool:
        """Returns whether the workers have had their time to stop."""
        return self._stop_time is not None and time.monotonic() > self._stop_time + GRACE

    def _replace_timed_out_workers(self) -> None:
        """Kills the workers whose trials take longer than study.trial_timeout, and starts others.

        A worker itself checks the limit after each epoch; only one that is late is killed.
        """
        limit = self.task.limits.trial_timeout
        if limit is None:
            return
        death = f"the trial took longer than study.trial_timeout={limit:g} s"
        workers = self._find_workers_by_id()
        while True:
            # The database is queried again after each kill, which may take seconds: other workers
            # may have ended their trials meanwhile, and have begun new ones.
            overdue_claims = self.task.ledger.overdue(list(workers), limit + TIMEOUT_TOLERANCE)
            if not overdue_claims:
                return
            claim = overdue_claims[0]
            worker = workers.pop(claim.owner)
            worker.kill()
            self.task.ledger.record_death(claim.owner, death, overdue=claim)
            worker.start()

    def _stop_all(self) -> None:
        """Requests that the workers release their trials and end; the first call counts."""
        if self._is_stopping:
            return
        self._stop_time = time.monotonic()
        for worker in self._find_active():
            worker.stop()

    def _handle_exit(self, worker: WorkerHandle, worker_exit: WorkerExit) -> None:
        """Releases the trial of a worker that has ended, and starts another if trials are open."""
        messages = worker.messages  # such as "ended" with an exit code, or "died" with a reason
        # A worker that a signal has stopped first releases its trial, and sends an exit code of 128
        # plus the signal's number.
        sent_exit_code = int(messages.get("ended", 0))
        released_trial = sent_exit_code >= FIRST_SIGNAL_CODE
        death = messages.get("died", f"the worker ended with {worker_exit}")
        # The exit is logged before the kill, which takes seconds if the host is gone, and in which
        # other workers may end the study.
        was_recycled = "recycled" in messages  # it has run as many trials as it should
        if self._needs_workers() and not was_recycled:
            self._log_exit(worker, death, released_trial=released_trial)
        held_trial = self._kill(worker, death)
        if not self._is_stopping and self.task.is_halted():
            self._stop_all()
        if not self._needs_workers():
            return

        has_begun_trial = "claimed" in messages or held_trial
        if has_begun_trial:
            worker.failures = 0
        else:
            worker.failures += 1
        was_signaled = released_trial or worker_exit.signal in STOP_SIGNALS
        if self._may_restart(worker, was_signaled=was_signaled):
            worker.start()

    def _needs_workers(self) -> bool:
        """Returns whether trials are open, and neither a stop nor their failures end the work."""
        if self._is_stopping or self.task.is_halted():
            return False
        return self.task.count_open_trials() > 0

    def _kill(self, worker: WorkerHandle, death: str) -> bool:
        """Kills what a worker that has ended has started, and releases its trial.

        Returns:
            Whether it held a trial.
        """
        worker_id = worker.kill()
        if worker_id is None:
            return False
        return self.task.ledger.record_death(worker_id, death) > 0

    def _may_restart(self, worker: WorkerHandle, *, was_signaled: bool) -> bool:
        """Returns whether to replace a worker that has ended, unless too many died in a row.

        Args:
            was_signaled: whether a signal from outside has ended it.
        """
        messages = worker.messages
        # It ended with this exit code before it claimed a trial. The next worker would do the same.
        refused_config = messages.get("ended") == INVALID_INPUT and "claimed" not in messages
        if refused_config:
            return False
        if was_signaled:
            return worker.failures <= RESTARTS_AFTER_SIGNAL
        return worker.failures <= RESTARTS

    def _log_exit(self, worker: WorkerHandle, death: str, *, released_trial: bool) -> None:
        if released_trial:
            message = "a worker ended with a signal, and released its trial"
        else:
            message = death.replace("the worker", "a worker")
        log.warning("%s; its log: %s", message, worker.log)

    def _describe_deaths(self) -> str:
        """Returns an error message with the end of the log of the worker that died most often."""
        worker = max(self.workers, key=lambda worker: worker.failures)
        last_lines = worker.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        head = f"workers die before they claim a trial; the end of {worker.log}:"
        return "\n".join([head, *last_lines])
