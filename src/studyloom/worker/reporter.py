"""Reports of a running trial: each is stored, and may end or pause the trial.

An objective calls `Reporter.report` after each epoch. A thread posts the report: it commits the
value and the renewal of the lease together, and then consults the pruner. So training continues
while the database is away or slow, and learns later that the trial should have ended.
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
from studyloom.storage.failures import resumed_words
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

    Args:
        cause: the exception that the report raised last.
    """

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(frozen=True)
class PendingReport:
    """A step that is to be stored, or else only what is new of the trial.

    Args:
        at_rung: whether the trial has reached a rung with the step.
    """

    step: Step | None = None
    at_rung: bool = False


@dataclass
class Reporter:
    """Runs the objective of a trial, and stores what it reports.

    Args:
        checkpoint: where the objective's state is saved; None to save none.
        reported: the last step that is stored already; None for none.
        releasing: returns whether the worker should release the trial.
        comparable: whether the study's pruner may end the trial.
        slots: decide at which rungs the trial is paused; None if it never is.
        interval: the least seconds between two checkpoints, unless the trial pauses or stops.
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
        self._rejected: BaseException | None = None  # the exception that a report raised last
        self._saved = time.monotonic()  # when the last checkpoint was
        self._evaluated = 0.0  # seconds of evaluation at the last step
        self._finds_files = self.objective.finds_files  # before it makes its folder
        # The last step that is stored, and the last that has come.
        self._stored = self._latest = -1 if self.reported is None else self.reported
        self._outbox = Outbox[PendingReport](self.post, lambda: self.held.stored.retry.away)

    def run(self, stopping: Stopping) -> float:
        """Runs the objective from its last checkpoint on, and returns its value.

        Raises:
            ReportRejected: a report has ended the trial, whatever the objective did then.
        """
        try:
            return self._run(stopping)
        except BaseException:
            if self._rejected is None:
                raise
            raise ReportRejected(self._rejected) from None

    def _run(self, stopping: Stopping) -> float:
        objective, trial, watch = self.objective, self.held.trial, self.held.watch
        self._restore()
        self._evaluated = objective.evaluating
        if objective.compared_jobs is not None:  # written with the first report
            trial.set_user_attr(PLANNED_JOBS, objective.compared_jobs)
        elif objective.epochs is not None:
            trial.set_user_attr(PLANNED_EPOCHS, objective.epochs)
        stored = self._stored
        with self._outbox:
            try:
                with self._recording_rejection(), watch("storage"):
                    self._note_death()
                    # Steps of the checkpoint that were saved while the database was away.
                    for step in objective.steps():
                        if objective.is_new(step, stored):
                            at_rung = self._comes_to_rung(step)
                            self._outbox.send(PendingReport(step, at_rung))
                            self._pause_at_rung(at_rung)
                value = objective.run(self.report, stopping)
            except Exception:
                # What was sent before came first: a trial that pruning ends at step 3 is pruned,
                # even if it has diverged at step 5 meanwhile.
                with self._recording_rejection():
                    self._outbox.flush()
                raise
            with self._recording_rejection(), watch("storage"):
                self._outbox.flush()
            return value

    def _restore(self) -> None:
        """Restores the objective from its checkpoint, if there is one that it can use."""
        path = self.checkpoint and self.checkpoint.path
        with self.held.watch("checkpoints"):
            state = None if self.checkpoint is None else self.checkpoint.load()
        if state is not None:
            try:
                self.objective.restore(state)
            except ValueError as error:
                log.warning("%s: %s; the trial starts again from the beginning", path, error)
        elif self._finds_files:
            pass  # it resumes by itself, or prints again what is known
        elif self.reported is not None:
            folder, number = path and path.parent, self.held.trial.number
            lacks = f"its reports up to step {self.reported} have no checkpoint in {folder}"
            log.warning("trial %d: %s; it starts again from the beginning", number, lacks)

    def _note_death(self) -> None:
        """Stores that a worker of the trial has died, and the epoch that its checkpoint has."""
        claim, trial = self.held.claim, self.held.trial
        if claim.deaths > trial.user_attrs.get(RESUMED, {}).get("deaths", 0):
            last = next(reversed(self.objective.steps()), None)
            epoch = last.step if isinstance(last, Report) else last and last.number
            resumed = {"epoch": epoch, "deaths": claim.deaths, "death": claim.death}
            if self._finds_files:
                resumed["files"] = True
            trial.set_user_attr(RESUMED, resumed)
            streams = trial.user_attrs.get(STREAMS, ())
            log.info("%s", resumed_words(trial.number, resumed, streams))
            self._outbox.send(PendingReport())

    def report(self, step: Step | None) -> None:
        """Reports a step that has ended, and saves the state of the objective.

        Without a step it only stores what is new of the trial.

        Raises:
            Stopped: the worker is to stop; the trial is released.
            TimedOut: the trial has taken longer than study.trial_timeout.
            Paused: the trial has reached a rung, and waits there.
            ClaimLost, TrialPruned, StorageLost: when this report or an earlier one was posted.
        """
        watch = self.held.watch
        with self._recording_rejection():
            if step is None:
                with watch("storage"):
                    self._outbox.send(PendingReport())
                return
            evaluating = self.objective.evaluating
            evaluation, self._evaluated = evaluating - self._evaluated, evaluating
            watch.seconds["training"] += step.seconds - evaluation
            watch.seconds["evaluation"] += evaluation
            last, at_rung = step.number == self.objective.epochs, self._comes_to_rung(step)
            # Before the report at a rung, after which the trial may have to end.
            if at_rung:
                self._save()
            with watch("storage"):
                self._outbox.send(PendingReport(step, at_rung))
            stops = self.releasing() and not last
            if not last and not at_rung and (stops or self._is_due()):
                self._save()
            if stops:
                raise Stopped
            with watch("storage"):
                self._pause_at_rung(at_rung)
            limit = self.held.limits.trial_timeout
            if limit is not None and time.monotonic() - self.held.began > limit:
                raise TimedOut(f"the trial took longer than study.trial_timeout={limit:g} seconds")

    @contextlib.contextmanager
    def _recording_rejection(self) -> Iterator[None]:
        """Records the exception with which the body rejects a report."""
        try:
            yield
        except BaseException as error:
            self._rejected = error
            raise

    def _comes_to_rung(self, step: Step) -> bool:
        """Whether a step is the first of all attempts at or beyond a rung.

        Without a checkpoint a promoted trial repeats steps that are stored already; these reach no
        rung.
        """
        before, self._latest = self._latest, max(self._latest, step.number)
        if self.slots is None or step.number <= before or step.number == self.objective.epochs:
            return False
        return self.slots.pauses_at(self.held.claim.slot, before, step.number)

    def _is_due(self) -> bool:
        """Whether the state is saved now; each one that names files, which are soon removed."""
        return self.objective.keeps_files or time.monotonic() - self._saved >= self.interval

    def _save(self) -> None:
        """Saves the state; an error of the disk does not end the trial."""
        if self.checkpoint is None:
            return
        with self.held.watch("checkpoints"):
            if (state := self.objective.state()) is None:
                return
            try:
                self.checkpoint.save(state)
            except OSError as error:
                log.warning("%s; a crash would now cost this trial's epochs so far", error)
        self._saved = time.monotonic()

    def post(self, report: PendingReport) -> None:
        """Stores a step and renews the lease, in one commit; then consults the pruner.

        The value of a trial is that of its last step; the best of all would owe most to chance.
        """
        held, step = self.held, report.step
        if step is None:
            held.commit()
            return
        trial, buffer, trial_id = held.trial, held.stored.storage, held.trial._trial_id
        held.longest = max(held.longest, step.seconds)
        if report.at_rung:
            trial.set_user_attr(RUNGS, [*trial.user_attrs.get(RUNGS, []), step.number])
            trial.set_user_attr(PAUSED, step.number)
            held.store(self.objective)  # another worker may end it here, which has no weights
        streams = self.objective.streams()
        if streams and STREAMS not in trial.user_attrs:
            trial.set_user_attr(STREAMS, streams)
        # `Trial.report` refuses several objectives, whose curves are kept all the same.
        number = self.objective.compared_number(step)
        if number is not None and number > self._stored:
            buffer.set_trial_intermediate_value(trial_id, number, float(step.value))
        held.commit()
        pruner = held.stored.optuna.pruner
        # The last step is the value. At the report that is stored already the worker before may
        # have died before it consulted the pruner.
        prunable = self.comparable and step.number != self.objective.epochs
        compared = number is not None and number >= self._stored
        if compared and prunable and not isinstance(pruner, NopPruner):
            # One read of the other trials, however often the pruner needs them.
            buffer.refresh(held.stored.ledger.study_id)
            if pruner.prune(trial.study, buffer.get_trial(trial_id)):
                raise optuna.TrialPruned(step)
        held.progress |= self.objective.is_new(step, self._stored)

    def _pause_at_rung(self, at_rung: bool) -> None:
        """Raises Paused at a rung once all is stored, unless the trial is the next to promote."""
        if self.slots is None or not at_rung:
            return
        self._outbox.flush()
        if not self.slots.promotes(self.held.claim.slot):
            raise Paused
        self.held.trial.set_user_attr(PAUSED, None)
        self.held.commit()


class Outbox(Generic[T]):
    """Posts items one after the other, from a thread that lives as long as the body of a `with`.

    A sender waits until everything is posted, unless the database is away: then it continues, and a
    later call raises the failure, if there is one. Items after a failure are dropped, as are those
    that are not posted at the end of the body.
    """

    def __init__(self, post: Callable[[T], None], is_away: Callable[[], bool]) -> None:
        self._post, self._is_away = post, is_away
        self._queue: Queue[T | None] = Queue()  # None at its end
        self._error: BaseException | None = None
        self._closed = False
        # A daemon: a call that hangs with its server does not keep the process from ending.
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "Outbox[T]":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        hangs = self._queue.unfinished_tasks and self._error is None
        self._closed = True
        self._queue.put(None)
        # A daemon that still runs when the interpreter ends may abort the process.
        if not hangs:
            self._thread.join()

    def send(self, item: T) -> None:
        """Adds an item, and waits until it is posted or the database turns out to be away."""
        self._queue.put(item)
        end = time.monotonic() + SEND_TIMEOUT
        self._wait(lambda: self._is_away() or time.monotonic() > end)

    def flush(self) -> None:
        """Waits until everything is posted, also while the database is away."""
        self._wait(lambda: False)

    def _wait(self, goes_on: Callable[[], bool]) -> None:
        with self._queue.all_tasks_done:
            while self._queue.unfinished_tasks and self._error is None and not goes_on():
                self._queue.all_tasks_done.wait(POLL)
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None and not self._closed:
                try:
                    self._post(item)
                except BaseException as error:
                    self._error = error
            self._queue.task_done()
