"""Reports of a running trial: each is stored, and may end or pause the trial.

An objective calls `Reporter.report` after each step. The report goes through the *outbox*, a thread
that posts one report after the other: it commits the value and the renewal of the lease together,
and then consults the pruner. So training continues while the database is away or slow, and learns
later that the trial should have ended.

A *rung* is a step at which trials are compared. A trial that comes to one saves its state, reports,
and waits there as *paused* until it is promoted, unless it is the next to promote at once.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Queue
from typing import Generic, TypeVar

import optuna
from optuna.pruners import NopPruner

from studyloom.errors import Paused, Stopped, TimedOut
from studyloom.objectives.objective import Objective, Report, Step, Stopping
from studyloom.storage.attributes import (
    PAUSED,
    PLANNED_EPOCHS,
    PLANNED_JOBS,
    RESUMED,
    RUNGS,
    STREAMS,
)
from studyloom.storage.failures import describe_resumption
from studyloom.training.checkpoint import Checkpoint
from studyloom.worker.held_trial import HeldTrial
from studyloom.worker.slots import SlotQueue

log = logging.getLogger(__name__)
SEND_TIMEOUT = 1.0  # seconds that training waits for a database that neither responds nor fails
POLL = 0.02  # seconds between looks whether the database is away
T = TypeVar("T")


class ReportRejected(Exception):
    """A report has ended a trial, or the work on it.

    The objective may catch the exception that its report raised, or raise another one. So what a
    report raised is known by this class, and not by the type of the exception that comes out of the
    objective, which the user's code may raise too.

    Attributes:
        cause: The exception that the report raised last.
    """

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(frozen=True)
class PendingReport:
    """A report in the outbox. Each stores all that is new of the trial.

    Attributes:
        step: The step to store; None to store only what is new otherwise.
        at_rung: Whether the trial has reached a rung with the step.
    """

    step: Step | None = None
    at_rung: bool = False


@dataclass
class Reporter:
    """Runs the objective of a trial, and stores what it reports.

    The value of a trial is that of its last step; the best of all would owe most to chance.

    Attributes:
        held: The trial and its claim.
        objective: The training.
        checkpoint: The file of the objective's state; None to save none.
        reported: The last step that earlier workers have stored; None if they have stored none.
        releasing: Whether the worker should release the trial.
        comparable: Whether the study's pruner may end the trial.
        slots: Decides at which rungs the trial is paused; None if it never is.
        interval: The least seconds between two checkpoints, unless the trial pauses or stops.
    """

    held: HeldTrial
    objective: Objective
    checkpoint: Checkpoint | None
    reported: int | None
    releasing: Callable[[], bool]
    comparable: bool = True
    slots: SlotQueue | None = None
    interval: float = 0.0

    def __post_init__(self) -> None:
        self._rejection: BaseException | None = None  # the exception that a report raised last
        self._last_save = time.monotonic()
        self._evaluation_seconds = 0.0  # spent on evaluation until the last step
        # Whether there are files of an earlier attempt. It is read now, before the objective makes
        # its folder.
        self._finds_files = self.objective.finds_files
        self._last_stored = -1  # the last step that earlier workers have stored
        if self.reported is not None:
            self._last_stored = self.reported
        self._last_step = self._last_stored  # the last step that any worker has come to
        self._outbox = Outbox[PendingReport](self.post, self._is_away)

    def _is_away(self) -> bool:
        """Returns whether the database is away."""
        return self.held.stored.retry.away

    def run(self, stopping: Stopping) -> float:
        """Runs the objective from its last checkpoint on, and returns its value.

        Raises:
            ReportRejected: A report has ended the trial, whatever the objective did then.
        """
        with self._raising_rejection():
            self._restore()
            self._evaluation_seconds = self.objective.evaluation_seconds
            self._store_plan()
            with self._outbox, self._flushing():
                with self._recording_rejection(), self.held.watch("storage"):
                    self._store_death()
                    self._send_steps_of_checkpoint()
                return self.objective.run(self.report, stopping)

    @contextlib.contextmanager
    def _raising_rejection(self) -> Iterator[None]:
        """Raises ReportRejected if the body raises an exception and a report was rejected."""
        try:
            yield
        except BaseException:
            if self._rejection is None:
                raise
            raise ReportRejected(self._rejection) from None

    @contextlib.contextmanager
    def _flushing(self) -> Iterator[None]:
        """Waits after the body until all reports are stored, also if it raises an exception.

        Reports that were sent before the exception came first: a trial that pruning ends at step 3
        is pruned, even if it has diverged at step 5 meanwhile.
        """
        try:
            yield
        except Exception:
            with self._recording_rejection():
                self._outbox.flush()
            raise
        with self._recording_rejection(), self.held.watch("storage"):
            self._outbox.flush()

    @contextlib.contextmanager
    def _recording_rejection(self) -> Iterator[None]:
        """Records the exception with which the body rejects a report."""
        try:
            yield
        except BaseException as error:
            self._rejection = error
            raise

    # Before training

    def _restore(self) -> None:
        """Restores the objective from its checkpoint, if there is one that it can use."""
        if self.checkpoint is not None:
            with self.held.watch("checkpoints"):
                state = self.checkpoint.load()
            if state is not None:
                try:
                    self.objective.restore(state)
                except ValueError as error:
                    message = "%s: %s; the trial starts again from the beginning"
                    log.warning(message, self.checkpoint.path, error)
                return
        # With files of an earlier attempt the objective resumes by itself.
        if self.reported is not None and not self._finds_files:
            self._warn_of_missing_checkpoint()

    def _warn_of_missing_checkpoint(self) -> None:
        folder = None
        if self.checkpoint is not None:
            folder = self.checkpoint.path.parent
        log.warning(
            "trial %d: its reports up to step %s have no checkpoint in %s; it starts again "
            "from the beginning",
            self.held.trial.number,
            self.reported,
            folder,
        )

    def _store_plan(self) -> None:
        """Adds the planned number of steps to the first commit."""
        objective = self.objective
        if objective.compared_jobs is not None:
            self.held.trial.set_user_attr(PLANNED_JOBS, objective.compared_jobs)
        elif objective.epochs is not None:
            self.held.trial.set_user_attr(PLANNED_EPOCHS, objective.epochs)

    def _store_death(self) -> None:
        """Stores that a worker of the trial has died, and the epoch that its checkpoint has.

        It does nothing if the deaths of all earlier workers are stored.
        """
        claim = self.held.claim
        trial = self.held.trial
        stored_deaths = trial.user_attrs.get(RESUMED, {}).get("deaths", 0)
        if claim.deaths <= stored_deaths:
            return
        resumed = {
            "epoch": self._epoch_of_checkpoint(),
            "deaths": claim.deaths,
            "death": claim.death,
        }
        if self._finds_files:
            resumed["has_files"] = True
        trial.set_user_attr(RESUMED, resumed)
        streams = trial.user_attrs.get(STREAMS, ())
        log.info("%s", describe_resumption(trial.number, resumed, streams))
        self._outbox.send(PendingReport())

    def _epoch_of_checkpoint(self) -> int | None:
        """Returns the last epoch of the restored state, as the user counts; None without one."""
        steps = self.objective.steps()
        if not steps:
            return None
        last = steps[-1]
        if isinstance(last, Report):  # it is from a custom loop, which may count from 0
            return last.step
        return last.number

    def _send_steps_of_checkpoint(self) -> None:
        """Sends the steps of the restored state that were trained while the database was away."""
        for step in self.objective.steps():
            if self.objective.is_new(step, self._last_stored):
                at_rung = self._comes_to_rung(step)
                self._outbox.send(PendingReport(step, at_rung))
                self._pause_at_rung(at_rung)

    # While the objective trains

    def report(self, step: Step | None) -> None:
        """Reports a step that has ended, and saves the state of the objective.

        Without a step it only stores what is new of the trial.

        Raises:
            Stopped: The worker is to stop; the trial is released.
            TimedOut: The trial has taken longer than study.trial_timeout.
            Paused: The trial has reached a rung, and waits there.
            ClaimLost, TrialPruned, StorageLost: The thread of the outbox has met this error while
                it posted this report or an earlier one.
        """
        watch = self.held.watch
        with self._recording_rejection():
            if step is None:
                with watch("storage"):
                    self._outbox.send(PendingReport())
                return
            self._count_seconds(step)
            is_last = step.number == self.objective.epochs
            at_rung = self._comes_to_rung(step)
            if at_rung:
                # The state is saved before the report, after which the trial may have to end.
                self._save()
            with watch("storage"):
                self._outbox.send(PendingReport(step, at_rung))
            must_stop = self.releasing() and not is_last
            may_need_state = not is_last and not at_rung  # at a rung it is saved already
            if may_need_state and (must_stop or self._is_save_due()):
                self._save()
            if must_stop:
                raise Stopped
            with watch("storage"):
                self._pause_at_rung(at_rung)
            self._check_timeout()

    def _count_seconds(self, step: Step) -> None:
        """Counts the seconds of a step as training and evaluation."""
        evaluation_so_far = self.objective.evaluation_seconds
        evaluation_of_step = evaluation_so_far - self._evaluation_seconds
        self._evaluation_seconds = evaluation_so_far
        self.held.watch.seconds["training"] += step.seconds - evaluation_of_step
        self.held.watch.seconds["evaluation"] += evaluation_of_step

    def _check_timeout(self) -> None:
        limit = self.held.limits.trial_timeout
        if limit is not None and time.monotonic() - self.held.began > limit:
            raise TimedOut(f"the trial took longer than study.trial_timeout={limit:g} seconds")

    def _comes_to_rung(self, step: Step) -> bool:
        """Returns whether a step is the first of all attempts at or beyond a rung.

        Without a checkpoint a promoted trial repeats steps that are stored already; these reach no
        rung.
        """
        previous_step = self._last_step
        self._last_step = max(previous_step, step.number)
        is_repeated = step.number <= previous_step
        is_last = step.number == self.objective.epochs
        if self.slots is None or is_repeated or is_last:
            return False
        return self.slots.pauses_at(self.held.claim.slot, previous_step, step.number)

    def _pause_at_rung(self, at_rung: bool) -> None:
        """Raises Paused at a rung once all is stored, unless the trial is the next to promote.

        The report at the rung has stored the trial as paused; that is withdrawn if it continues.
        """
        if self.slots is None or not at_rung:
            return
        self._outbox.flush()
        if not self.slots.promotes(self.held.claim.slot):
            raise Paused
        self.held.trial.set_user_attr(PAUSED, None)
        self.held.commit()

    def _is_save_due(self) -> bool:
        """Returns whether the state is to be saved now.

        It always is if it names files that the objective deletes a few steps later.
        """
        if self.objective.keeps_files:
            return True
        return time.monotonic() - self._last_save >= self.interval

    def _save(self) -> None:
        """Saves the state; an error of the disk does not end the trial."""
        if self.checkpoint is None:
            return
        with self.held.watch("checkpoints"):
            state = self.objective.state()
            if state is None:
                return
            try:
                self.checkpoint.save(state)
            except OSError as error:
                log.warning("%s; a crash would now cost this trial's epochs so far", error)
        self._last_save = time.monotonic()

    # In the thread of the outbox

    def post(self, report: PendingReport) -> None:
        """Stores a report and renews the lease, in one commit; then consults the pruner."""
        held = self.held
        step = report.step
        if step is None:
            held.commit()
            return
        held.longest = max(held.longest, step.seconds)
        if report.at_rung:
            self._store_pause(step)
        streams = self.objective.streams()
        if streams and STREAMS not in held.trial.user_attrs:
            held.trial.set_user_attr(STREAMS, streams)
        compared_number = self.objective.compared_number(step)
        if compared_number is not None and compared_number > self._last_stored:
            # `Trial.report` refuses several objectives, whose curves are kept all the same.
            held.stored.storage.set_trial_intermediate_value(
                held.trial._trial_id, compared_number, float(step.value)
            )
        held.commit()
        self._consult_pruner(step, compared_number)
        if self.objective.is_new(step, self._last_stored):
            held.progress = True

    def _store_pause(self, step: Step) -> None:
        """Adds to the next commit that the trial is paused at a rung, and what is known of it.

        Another worker, which has no weights, may end the trial here.
        """
        trial = self.held.trial
        rungs = trial.user_attrs.get(RUNGS, [])
        trial.set_user_attr(RUNGS, [*rungs, step.number])
        trial.set_user_attr(PAUSED, step.number)
        self.held.store(self.objective)

    def _consult_pruner(self, step: Step, compared_number: int | None) -> None:
        """Raises TrialPruned if the study's pruner ends the trial at a step.

        It is not consulted at the last step, whose value completes the trial, nor for steps that an
        earlier worker has compared. Of these it is consulted again for the last one: that worker
        may have died after its commit and before it consulted the pruner.

        Args:
            compared_number: The number by which the pruner compares the step; None if it does not.
        """
        held = self.held
        pruner = held.stored.optuna.pruner
        if not self.comparable or isinstance(pruner, NopPruner):
            return
        if compared_number is None or compared_number < self._last_stored:
            return
        is_last = step.number == self.objective.epochs
        if is_last:
            return
        # One read of the other trials, however often the pruner needs them.
        buffer = held.stored.storage
        buffer.refresh(held.stored.ledger.study_id)
        if pruner.prune(held.trial.study, buffer.get_trial(held.trial._trial_id)):
            raise optuna.TrialPruned(step)


class Outbox(Generic[T]):
    """Posts items one after the other, from a thread that lives as long as the body of a `with`.

    A sender waits until everything is posted, unless the database is away: then it continues, and a
    later call raises the failure, if there is one. Items after a failure are dropped, as are those
    that are not posted at the end of the body.
    """

    def __init__(self, post: Callable[[T], None], is_away: Callable[[], bool]) -> None:
        self._post = post
        self._is_away = is_away
        self._queue: Queue[T | None] = Queue()  # None at its end
        self._error: BaseException | None = None
        self._closed = False
        # A daemon: a call that hangs with its server does not keep the process from ending.
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "Outbox[T]":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        may_hang = self._queue.unfinished_tasks > 0 and self._error is None  # in a post
        self._closed = True
        self._queue.put(None)
        # A daemon that still runs when the interpreter ends may abort the process.
        if not may_hang:
            self._thread.join()

    def send(self, item: T) -> None:
        """Adds an item, and waits until it is posted or the database turns out to be away."""
        self._queue.put(item)
        end = time.monotonic() + SEND_TIMEOUT

        def gives_up() -> bool:
            return self._is_away() or time.monotonic() > end

        self._wait(gives_up)

    def flush(self) -> None:
        """Waits until everything is posted, also while the database is away."""

        def gives_up() -> bool:
            return False

        self._wait(gives_up)

    def _wait(self, gives_up: Callable[[], bool]) -> None:
        """Waits until everything is posted, or the condition holds; raises a failure of a post."""
        with self._queue.all_tasks_done:
            while self._queue.unfinished_tasks and self._error is None and not gives_up():
                self._queue.all_tasks_done.wait(POLL)
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        """Posts the items of the queue until its end."""
        while True:
            item = self._queue.get()
            if item is None:
                return
            if self._error is None and not self._closed:
                try:
                    self._post(item)
                except BaseException as error:
                    self._error = error
            self._queue.task_done()
