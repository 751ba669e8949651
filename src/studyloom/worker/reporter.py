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
    """A report has ended a trial, or this worker's part in it.

    `Reporter.run` raises it, whatever exception comes out of the objective: the user's code may
    catch the exception that its report raised, or raise one of the same type itself.

    Attributes:
        cause: The exception that the report raised last.
    """

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(frozen=True)
class PendingReport:
    """A report in the outbox. When it is posted, all pending rows of the trial are stored.

    Attributes:
        step: The step to store; None to store only the other pending rows.
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
        last_stored_step: The last step that earlier workers have stored; None for none.
        must_release: Whether the worker should release the trial.
        may_be_pruned: Whether the study's pruner may end the trial.
        slots: Decides at which rungs the trial is paused; None if it never is.
        checkpoint_interval: The least seconds between two checkpoints, unless the trial pauses or
            stops.
    """

    held: HeldTrial
    objective: Objective
    checkpoint: Checkpoint | None
    last_stored_step: int | None
    must_release: Callable[[], bool]
    may_be_pruned: bool = True
    slots: SlotQueue | None = None
    checkpoint_interval: float = 0.0

    def __post_init__(self) -> None:
        self._rejection: BaseException | None = None  # the exception that a report raised last
        self._last_save = time.monotonic()
        self._evaluation_seconds = 0.0  # spent on evaluation until the last step
        # Whether there are files of an earlier attempt. It is read now, before the objective makes
        # its folder.
        self._has_earlier_files = self.objective.finds_files
        self._stored_until = -1  # the last step that earlier workers have stored; -1 for none
        if self.last_stored_step is not None:
            self._stored_until = self.last_stored_step
        self._last_step = self._stored_until  # the last step that any worker has reached
        self._outbox = Outbox[PendingReport](self.post, self._is_database_away)

    def _is_database_away(self) -> bool:
        return self.held.stored.retry.away

    def run(self, stopping: Stopping) -> float:
        """Runs the objective from its last checkpoint on, and returns its value.

        Args:
            stopping: Whether the worker must stop, which the objective checks too.

        Raises:
            ReportRejected: A report has ended the trial, whatever the objective did then.
        """
        # A report, and each of the calls within `_recording_rejection`, may end the trial by an
        # exception, which is recorded. Whatever the objective then raises, the recorded one counts.
        with self._raising_rejection():
            self._restore()
            self._evaluation_seconds = self.objective.evaluation_seconds
            self._add_plan()
            with self._outbox, self._flushing_outbox():
                with self._recording_rejection(), self.held.stopwatch("storage"):
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
    def _flushing_outbox(self) -> Iterator[None]:
        """Waits after the body until all reports are posted, also if it raises an exception.

        The outbox posts reports in a thread, so that some may wait while the body continues. A
        report that is rejected then counts, and not the exception, which came later: a trial that
        is pruned at step 3 ends as pruned, even if it has diverged at step 5 meanwhile.
        """
        try:
            yield
        except Exception:
            with self._recording_rejection():
                self._outbox.flush()
            raise
        with self._recording_rejection(), self.held.stopwatch("storage"):
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
        """Restores the objective from its checkpoint, if there is one that it can use.

        Otherwise it starts from the beginning, with a warning if earlier steps are lost.
        """
        if self.checkpoint is not None:
            with self.held.stopwatch("checkpoints"):
                state = self.checkpoint.load()
            if state is not None:
                try:
                    self.objective.restore(state)
                except ValueError as error:
                    message = "%s: %s; the trial starts again from the beginning"
                    log.warning(message, self.checkpoint.path, error)
                return
        # With files of an earlier attempt the objective resumes by itself.
        if self.last_stored_step is not None and not self._has_earlier_files:
            self._warn_of_missing_checkpoint()

    def _warn_of_missing_checkpoint(self) -> None:
        """Warns that steps of earlier workers are trained again, since their state is missing."""
        folder = None
        if self.checkpoint is not None:
            folder = self.checkpoint.path.parent
        log.warning(
            "trial %d: its reports up to step %s have no checkpoint in %s; it starts again "
            "from the beginning",
            self.held.trial.number,
            self.last_stored_step,
            folder,
        )

    def _add_plan(self) -> None:
        """Adds to the next commit how many steps are planned, from which views show progress."""
        objective = self.objective
        if objective.compared_jobs is not None:
            self.held.trial.set_user_attr(PLANNED_JOBS, objective.compared_jobs)
        elif objective.epochs is not None:
            self.held.trial.set_user_attr(PLANNED_EPOCHS, objective.epochs)

    def _store_death(self) -> None:
        """Stores how the last worker of the trial died, and at which epoch the trial resumes.

        It does nothing if the death is stored already: a later worker may have released the trial.
        """
        claim = self.held.claim
        trial = self.held.trial
        stored_deaths = trial.user_attrs.get(RESUMED, {}).get("deaths", 0)
        if claim.deaths <= stored_deaths:
            return
        resumed = {
            "epoch": self._find_restored_epoch(),
            "deaths": claim.deaths,
            "death": claim.last_death,
        }
        if self._has_earlier_files:
            resumed["has_files"] = True
        trial.set_user_attr(RESUMED, resumed)
        streams = trial.user_attrs.get(STREAMS, ())
        log.info("%s", describe_resumption(trial.number, resumed, streams))
        self._outbox.send(PendingReport())  # commits the attribute now, before the first step ends

    def _find_restored_epoch(self) -> int | None:
        """Returns the last epoch of the restored state, as the user counts; None without one."""
        steps = self.objective.steps()
        if not steps:
            return None
        last_step = steps[-1]
        if isinstance(last_step, Report):  # it is from a custom loop, which may count from 0
            return last_step.step
        return last_step.number

    def _send_steps_of_checkpoint(self) -> None:
        """Sends the steps of the restored state that were trained while the database was away."""
        for step in self.objective.steps():
            if self.objective.is_new(step, self._stored_until):
                at_rung = self._advance_to(step)
                self._outbox.send(PendingReport(step, at_rung))
                if at_rung:
                    self._pause_unless_promoted()

    # While the objective trains

    def report(self, step: Step | None) -> None:
        """Reports a step that has ended, and saves the state of the objective.

        1. At a rung, where trials are compared, it saves the state.
        2. It sends the report, which commits the step.
        3. At any other step but the last, it saves the state if that is due, or if the worker must
           stop.
        4. It raises an exception if the worker must stop, the trial must wait at the rung, or the
           trial has taken too long.

        Args:
            step: The step; None to store only the pending rows of the trial.

        Raises:
            Stopped: The worker must stop; the trial is released.
            TimedOut: The trial has taken longer than study.trial_timeout.
            Paused: The trial has reached a rung, and waits there.
            ClaimLost, TrialPruned, StorageLost: The thread of the outbox has met this error while
                it posted this report or an earlier one.
        """
        stopwatch = self.held.stopwatch
        with self._recording_rejection():
            if step is None:
                with stopwatch("storage"):
                    self._outbox.send(PendingReport())
                return
            self._count_seconds(step)
            is_last = step.number == self.objective.epochs
            at_rung = self._advance_to(step)
            if at_rung:
                # Before the report, because another worker may resume the trial right after it.
                self._save()
            with stopwatch("storage"):
                self._outbox.send(PendingReport(step, at_rung))
            must_stop = self.must_release() and not is_last
            needs_save = not is_last and not at_rung  # at a rung it was saved before the report
            if needs_save and (must_stop or self._is_save_due()):
                self._save()
            if must_stop:
                raise Stopped
            if at_rung:
                with stopwatch("storage"):
                    self._pause_unless_promoted()
            self._check_timeout()

    def _count_seconds(self, step: Step) -> None:
        """Counts the seconds of a step as training and evaluation.

        The objective gives the seconds of evaluation as a total over all steps.
        """
        evaluation_so_far = self.objective.evaluation_seconds
        evaluation_of_step = evaluation_so_far - self._evaluation_seconds
        self._evaluation_seconds = evaluation_so_far
        self.held.stopwatch.seconds["training"] += step.seconds - evaluation_of_step
        self.held.stopwatch.seconds["evaluation"] += evaluation_of_step

    def _check_timeout(self) -> None:
        limit = self.held.limits.trial_timeout
        if limit is not None and time.monotonic() - self.held.start > limit:
            raise TimedOut(f"the trial took longer than study.trial_timeout={limit:g} seconds")

    def _advance_to(self, step: Step) -> bool:
        """Advances to a step, and returns whether the trial reaches a rung with the step.

        At a rung, trials are compared; a trial reaches none with its last step. A trial that
        resumes without a checkpoint repeats steps that an earlier worker has stored; it reaches no
        rung with these either.
        """
        previous_step = self._last_step
        self._last_step = max(previous_step, step.number)
        is_repeated = step.number <= previous_step
        is_last = step.number == self.objective.epochs
        if self.slots is None or is_repeated or is_last:
            return False
        return self.slots.pauses_at(self.held.claim.slot, previous_step, step.number)

    def _pause_unless_promoted(self) -> None:
        """Raises Paused if a trial that has reached a rung must wait there for its promotion.

        If the trial is the next to promote, it continues at once. The report at the rung has stored
        it as paused, and this mark is removed then.
        """
        assert self.slots is not None  # it has found that the trial is at a rung
        self._outbox.flush()
        if not self.slots.is_next_to_promote(self.held.claim.slot):
            raise Paused
        self.held.trial.set_user_attr(PAUSED, None)
        self.held.commit()

    def _is_save_due(self) -> bool:
        """Returns whether the state is to be saved after this step.

        A state that names files of the user's trainer is saved after each step, since the trainer
        deletes these files a few steps later.
        """
        if self.objective.keeps_files:
            return True
        return time.monotonic() - self._last_save >= self.checkpoint_interval

    def _save(self) -> None:
        """Saves the state of the objective; an error of the disk does not end the trial."""
        if self.checkpoint is None:
            return
        with self.held.stopwatch("checkpoints"):
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
        """Stores a report and renews the lease, in one commit; then consults the pruner.

        A report without a step commits the other changes of the trial, and renews the lease.

        Raises:
            ClaimLost: Another worker has the trial.
            TrialPruned: The pruner ends the trial at this step, or its end was requested.
            StorageLost: The database stays away.
        """
        held = self.held
        step = report.step
        if step is None:
            held.commit()
            return
        held.longest_step = max(held.longest_step, step.seconds)
        if report.at_rung:
            self._add_pause(step)
        streams = self.objective.streams()
        if streams and STREAMS not in held.trial.user_attrs:
            held.trial.set_user_attr(STREAMS, streams)
        # The number by which the pruner compares the step; None if it does not.
        compared_number = self.objective.compared_number(step)
        # An earlier worker may have stored the value of a step that is trained a second time.
        if compared_number is not None and compared_number > self._stored_until:
            # Optuna's `Trial.report` refuses this in a study with several objectives.
            held.stored.storage.set_trial_intermediate_value(
                held.trial._trial_id, compared_number, float(step.value)
            )
        held.commit()
        if held.is_stop_requested:
            raise optuna.TrialPruned(step)
        self._consult_pruner(step, compared_number)
        if self.objective.is_new(step, self._stored_until):
            held.has_progressed = True

    def _add_pause(self, step: Step) -> None:
        """Adds to the next commit that the trial is paused at a rung, with its learning curve.

        The curve is stored now, because the trial may end here by another worker, without it.
        """
        trial = self.held.trial
        rungs = trial.user_attrs.get(RUNGS, [])
        trial.set_user_attr(RUNGS, [*rungs, step.number])
        trial.set_user_attr(PAUSED, step.number)
        self.held.store(self.objective)

    def _consult_pruner(self, step: Step, compared_number: int | None) -> None:
        """Raises TrialPruned if the study's pruner ends the trial at a step.

        Args:
            compared_number: The number by which the pruner compares the step; None if it does not.
        """
        held = self.held
        pruner = held.stored.optuna.pruner
        if not self.may_be_pruned or isinstance(pruner, NopPruner):
            return
        # Earlier workers have consulted the pruner for their steps, but maybe not for the last one,
        # `_stored_until`: a worker may die after its commit and before it consults the pruner. So
        # the pruner is consulted for that step again.
        if compared_number is None or compared_number < self._stored_until:
            return
        is_last = step.number == self.objective.epochs
        if is_last:  # its value completes the trial
            return
        # The other trials are read once, however often the pruner needs them.
        buffer = held.stored.storage
        buffer.refresh(held.stored.ledger.study_id)
        if pruner.prune(held.trial.study, buffer.get_trial(held.trial._trial_id)):
            raise optuna.TrialPruned(step)


class Outbox(Generic[T]):
    """Posts items one after the other, from a thread that lives as long as the body of a `with`.

    A sender waits until everything is posted, unless the database is away: then it continues, and a
    later call raises the error of the post, if there is one. Items after an error are dropped, as
    are those that are not posted at the end of the body.
    """

    def __init__(self, post: Callable[[T], None], is_away: Callable[[], bool]) -> None:
        self._post = post
        self._is_away = is_away
        self._queue: Queue[T | None] = Queue()  # None ends the thread
        self._error: BaseException | None = None  # with which a post has failed
        self._closed = False
        # A daemon: a call that hangs with its server does not keep the process from ending.
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "Outbox[T]":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        may_hang_in_post = self._queue.unfinished_tasks > 0 and self._error is None
        self._closed = True
        self._queue.put(None)
        # A daemon that still runs when the interpreter ends may abort the process.
        if not may_hang_in_post:
            self._thread.join()

    def send(self, item: T) -> None:
        """Adds an item, and waits until it is posted, or until the database turns out to be away.

        It waits SEND_TIMEOUT seconds at most, for a database that neither responds nor fails.
        """
        self._queue.put(item)
        deadline = time.monotonic() + SEND_TIMEOUT

        def gives_up() -> bool:
            return self._is_away() or time.monotonic() > deadline

        self._wait_until_posted(gives_up)

    def flush(self) -> None:
        """Waits until everything is posted, also while the database is away."""
        self._wait_until_posted(lambda: False)

    def _wait_until_posted(self, gives_up: Callable[[], bool]) -> None:
        """Waits until all items are posted, or `gives_up()`; raises the error of a failed post."""
        with self._queue.all_tasks_done:
            while self._queue.unfinished_tasks and self._error is None and not gives_up():
                self._queue.all_tasks_done.wait(POLL)
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        """Posts the items of the queue, until it gets None."""
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
