"""A worker's claim on a trial, from its first epoch to the commit that ends it.

An objective calls `Reporter.report` after each epoch. A thread posts the report: the value and the
renewal of the lease in one commit, and then the question whether to prune. So training goes on
while the database is away or slow, and learns later that the trial was to end.
"""

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from queue import Queue
from typing import Generic, TypeVar

import optuna
from optuna.pruners import NopPruner
from optuna.trial import FrozenTrial, TrialState

from studyloom.definition.objective import (
    NetworkObjective,
    Objective,
    Report,
    Step,
    Stopping,
    StoredObjective,
)
from studyloom.definition.rule import Cost
from studyloom.errors import ClaimLost, Infeasible, Paused, Stopped, TimedOut
from studyloom.processes import Stopwatch
from studyloom.storage.attributes import (
    BASELINE,
    EPOCHS,
    FORGOTTEN,
    HALTED,
    MADE,
    PAUSED,
    PLANNED_EPOCHS,
    REASON,
    RESUMED,
    REUSED,
    RUNGS,
    STANDARD_ERROR,
    TIMES,
)
from studyloom.storage.ledger import LEASE_FACTOR, Claim
from studyloom.study import failures
from studyloom.study.early_end import ending
from studyloom.study.promotion import PromotionOrder
from studyloom.study.provenance import Provenance
from studyloom.study.stored_study import StoredStudy
from studyloom.training.checkpoint import Checkpoint
from studyloom.worker_log import end_message

log = logging.getLogger(__name__)
PRUNED_CONSTRAINT = "pruned"  # the constraint that a pruned trial of several objectives breaks
SEND_TIMEOUT = 1.0  # seconds that training waits for a database which neither answers nor fails
POLL = 0.02  # seconds between looks whether the database is away
T = TypeVar("T")


@dataclass(frozen=True)
class PendingReport:
    """A step of an objective that is to be stored, or else only what is new of its trial.

    Args:
        at_rung: whether the trial has come to a rung with the step.
    """

    objective: Objective
    step: Step | None = None
    at_rung: bool = False


@dataclass
class Reporter:
    """A worker's trial and its claim on it: stores how the trial goes, and how it ends.

    Its methods raise ClaimLost once another worker holds the slot; nothing was written then.

    Args:
        releasing: returns whether the worker is to give the trial back.
        comparable: whether the study's pruner may end the trial.
        order: decides at which rungs the trial is paused.
        trials: the budget of the study.

    Attributes:
        provenance: what is needed to train the trial again; None if that is impossible.
        progress: whether a step was reported that no worker before had come to.
        raised: the exception that `report` raised last. The objective may catch it or raise another
            one; so an exception of ours differs from one of the same type that user code raises.
    """

    stored: StoredStudy
    trial: optuna.Trial
    claim: Claim
    owner: str
    limits: failures.Limits
    releasing: Callable[[], bool]
    watch: Stopwatch
    on_end: Callable[[FrozenTrial], None] = lambda trial: None
    comparable: bool = True
    order: PromotionOrder | None = None
    trials: int = 0
    provenance: Provenance | None = field(default=None, init=False)
    progress: bool = field(default=False, init=False)
    raised: BaseException | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._longest = 0.0  # seconds of the longest step so far
        self._evaluated = 0.0  # seconds of evaluation at the last step
        self._reported = self._latest = -1  # the last step that is stored, or has come
        self._checkpoint: Checkpoint | None = None
        self._outbox = Outbox[PendingReport](self.post, self.stored.is_away)

    def run(
        self,
        objective: Objective,
        checkpoint: Checkpoint | None,
        reported: int,
        stopping: Stopping,
    ) -> float:
        """Runs an objective to its value, and posts what it reports after step `reported`."""
        self._checkpoint, self._evaluated = checkpoint, objective.evaluating
        self._reported = self._latest = reported
        if objective.epochs is not None:  # written with the first report
            self.trial.set_user_attr(PLANNED_EPOCHS, objective.epochs // objective.stride)
        with self._outbox:
            try:
                with self._recording_raised(), self.watch("storage"):
                    self._note_death(objective)
                    # Steps of the checkpoint that were saved while the database was away.
                    for step in objective.steps():
                        if step.number > reported * objective.stride:
                            at_rung = self._comes_to_rung(objective, step)
                            self._outbox.send(PendingReport(objective, step, at_rung))
                            self._pause_at_rung(at_rung)
                value = objective.run(partial(self.report, objective), stopping)
            except Exception:
                # What was sent before came first: a trial that pruning ends at step 3 is pruned,
                # even if it has diverged at step 5 meanwhile.
                with self._recording_raised():
                    self._outbox.flush()
                raise
            with self._recording_raised(), self.watch("storage"):
                self._outbox.flush()
            return value

    def _note_death(self, objective: Objective) -> None:
        """Stores that a worker of the trial has died, and the epoch that its checkpoint has."""
        claim = self.claim
        if claim.deaths > self.trial.user_attrs.get(RESUMED, {}).get("deaths", 0):
            last = next(reversed(objective.steps()), None)
            epoch = last.step if isinstance(last, Report) else last and last.number
            resumed = {"epoch": epoch, "deaths": claim.deaths, "death": claim.death}
            self.trial.set_user_attr(RESUMED, resumed)
            log.info("%s", failures.resumed_words(self.trial.number, resumed))
            self._outbox.send(PendingReport(objective))

    def report(self, objective: Objective, step: Step | None) -> None:
        """Reports a step that has ended, and saves the state of the objective.

        Without a step it only stores what is new of the trial.

        Raises:
            Stopped: the worker is to stop; the trial is released.
            TimedOut: the trial has taken longer than study.trial_timeout.
            Paused: the trial has come to a rung, and waits there.
            ClaimLost, TrialPruned, StorageLost: when this report or an earlier one was posted.
        """
        with self._recording_raised():
            if step is None:
                with self.watch("storage"):
                    self._outbox.send(PendingReport(objective))
                return
            evaluating = objective.evaluating
            evaluation, self._evaluated = evaluating - self._evaluated, evaluating
            self.watch.seconds["training"] += step.seconds - evaluation
            self.watch.seconds["evaluation"] += evaluation
            last, at_rung = step.number == objective.epochs, self._comes_to_rung(objective, step)
            # Before the report at a rung, after which the trial may be told to go no further.
            if at_rung:
                self._save(objective)
            with self.watch("storage"):
                self._outbox.send(PendingReport(objective, step, at_rung))
            if not last and not at_rung:
                self._save(objective)
            if self.releasing() and not last:
                raise Stopped
            with self.watch("storage"):
                self._pause_at_rung(at_rung)
            limit = self.limits.trial_timeout
            if limit is not None and time.monotonic() - self._began > limit:
                raise TimedOut(f"the trial took longer than study.trial_timeout={limit:g} seconds")

    @contextlib.contextmanager
    def _recording_raised(self) -> Iterator[None]:
        """Records the body's exception in `raised`."""
        try:
            yield
        except BaseException as error:
            self.raised = error
            raise

    def _comes_to_rung(self, objective: Objective, step: Step) -> bool:
        """Whether a step is the first at a rung or later that this worker or one before has made.

        Steps that were stored before the trial was promoted, and are made again for want of a
        checkpoint, come to no rung.
        """
        before, self._latest = self._latest, max(self._latest, step.number)
        if self.order is None or step.number <= before or step.number == objective.epochs:
            return False
        return self.order.pauses_at(self.claim.slot, before, step.number)

    def _save(self, objective: Objective) -> None:
        """Saves the state; a disk that refuses it does not end the trial."""
        if self._checkpoint is None:
            return
        with self.watch("checkpoints"):
            if (state := objective.state()) is None:
                return
            try:
                self._checkpoint.save(state)
            except OSError as error:
                log.warning("%s; a crash would now cost this trial's epochs so far", error)

    def post(self, report: PendingReport) -> None:
        """Stores a step and renews the lease, in one commit; then asks the pruner.

        The value of a trial is that of its last step, and not the best of all, which would be the
        luckiest.
        """
        objective, step = report.objective, report.step
        if step is None:
            self.commit()
            return
        buffer, trial_id = self.stored.storage, self.trial._trial_id
        self._longest = max(self._longest, step.seconds)
        if report.at_rung:
            known = self.trial.user_attrs.get(RUNGS, [])
            self.trial.set_user_attr(RUNGS, [*known, step.number])
            self.trial.set_user_attr(PAUSED, step.number)
            self.store(objective)  # whoever tells it that it goes no further has not trained it
        # Of jobs that are trained in turn the end of each is reported. (`Trial.report` refuses
        # several objectives, whose curves are kept all the same.)
        number, rest = divmod(step.number, objective.stride)
        if not rest and number > self._reported:
            buffer.set_trial_intermediate_value(trial_id, number, float(step.value))
        self.commit()
        pruner = self.stored.optuna.pruner
        # The last step is the value. At the report that is stored already the worker before may
        # have died before it had asked.
        prunable = self.comparable and step.number != objective.epochs
        if not rest and prunable and number >= self._reported and not isinstance(pruner, NopPruner):
            # One read of the other trials, however much the pruner asks about them.
            buffer.refresh(self.stored.ledger.study_id)
            if pruner.prune(self.trial.study, buffer.get_trial(trial_id)):
                raise optuna.TrialPruned(step)
        self.progress |= step.number > self._reported * objective.stride

    def _pause_at_rung(self, at_rung: bool) -> None:
        """Raises Paused at a rung once all is stored, unless the trial is the next to promote."""
        if self.order is None or not at_rung:
            return
        self._outbox.flush()
        ended = ending(self.stored, self.trials) is not None
        standings = self.stored.ledger.standings(self.owner, self.trials, self.order)
        if not self.order.goes_on(standings, self.claim.slot, closed=ended):
            raise Paused
        self.trial.set_user_attr(PAUSED, None)
        self.commit()

    def commit(self) -> None:
        """Commits the trial's pending rows and the renewal of its lease together."""
        # An epoch that takes long does not mean that the worker has died.
        lease = max(self.limits.lease, LEASE_FACTOR * self._longest)
        self._write(partial(self.stored.ledger.renew, lease=lease))
        self.stored.storage.mark_written()

    def pause(self) -> None:
        """Gives the slot back with the trial, which waits at its rung."""
        self._end_claim(self.stored.ledger.release)

    def _end_claim(self, end: Callable[..., bool]) -> None:
        with self.watch("storage"):
            self._write(end)
            self.stored.storage.clear()

    def _write(self, change: Callable[..., bool]) -> None:
        """Commits the trial's pending rows and a change of its claim together."""
        if not change(self.claim, write=self.stored.storage.write):
            raise ClaimLost

    def constrain(self, costs: Sequence[Cost]) -> None:
        """Stores the costs of a network, and for the sampler their distance from the limits.

        What was measured when the trial began is kept when it goes on: it was ranked by that, and a
        latency is never the same twice.

        Raises:
            Infeasible: a cost is beyond its limit.
        """
        known = self.trial.user_attrs
        costs = [replace(cost, value=known.get(cost.quantity, cost.value)) for cost in costs]
        self._store_costs(costs)
        if beyond := [str(cost) for cost in costs if cost.excess > 0]:
            raise Infeasible("; ".join(beyond))

    def _store_costs(self, costs: Sequence[Cost]) -> None:
        known = self.trial.user_attrs if costs else {}
        for cost in costs:
            if known.get(cost.quantity) != cost.value:
                self.trial.set_user_attr(cost.quantity, cost.value)
                if cost.limit is not None:
                    self.trial.set_constraint(cost.quantity, cost.excess)

    def store(self, objective: Objective | None) -> None:
        """Adds the learning curve, the provenance, and where the time went, to the next commit."""
        if isinstance(objective, StoredObjective):
            self.trial.set_user_attr(REUSED, objective.source)
        if objective is not None:
            self._store_costs(objective.costs())
            if forgotten := objective.forgotten():
                self.trial.set_user_attr(FORGOTTEN, forgotten)
            if columns := objective.curves():
                if (error := objective.standard_error()) is not None:
                    self.trial.set_user_attr(STANDARD_ERROR, error)
                self.trial.set_user_attr(EPOCHS, columns)
        if (provenance := self.provenance) is not None:
            if isinstance(objective, NetworkObjective):
                provenance = provenance.on_threads(objective.training.threads)
            self.trial.set_user_attr(MADE, provenance.as_json())
        times = Counter(self.trial.user_attrs.get(TIMES, {}))  # until it was paused
        times.update(self.watch.take())
        rounded = {kind: round(seconds, 4) for kind, seconds in times.items()}
        self.trial.set_user_attr(TIMES, rounded)

    def fail(self, failure: failures.Failure) -> None:
        """Ends a trial that has failed, and halts the study if its trials all fail like this."""
        for name, value in failure.attributes().items():
            self.trial.set_user_attr(name, value)
        if failure.details:
            log.error("trial %d: %s", self.trial.number, failure.details)
        teaches = failure.kind in failures.TEACHES
        if teaches:
            self.trial.set_constraint(failure.kind, 1.0)
        self.tell(None, TrialState.PRUNED if teaches else TrialState.FAIL)
        if self._is_hopeless(failure):
            self.stored.optuna.set_user_attr(HALTED, failure.reason)

    def _is_hopeless(self, failure: failures.Failure) -> bool:
        """Whether the first trial failed, or the last `max_failures` all failed for this reason.

        A trial of which workers died counts only in a row: the first may have died of its host.
        """
        if failure.kind not in (*failures.MISTAKES, failures.CRASHED):
            return False
        # Its slot, and not its number: another program may have added a trial before it.
        first = self.claim.slot == 0 or BASELINE in self.trial.user_attrs
        ended = [trial for trial in self.stored.trials() if trial.datetime_complete is not None]
        ended.sort(key=lambda trial: trial.datetime_complete or datetime.min)
        last = ended[-self.limits.max_failures :]
        same = [trial for trial in last if trial.user_attrs.get(REASON) == failure.reason]
        mistaken = first and failure.kind in failures.MISTAKES
        return mistaken or len(same) == self.limits.max_failures

    def tell(self, value: float | None, state: TrialState) -> None:
        """Ends the trial, with the value of the metric if it has one, and its claim."""
        if state == TrialState.PRUNED and len(self.stored.goals) > 1:
            self._mark_worse_than_complete()
        goals = self.stored.goals[1:] if value is not None else ()
        costs = [self.trial.user_attrs[goal.name] for goal in goals]
        self.stored.optuna.tell(self.trial, None if value is None else [value, *costs], state)
        told = self.stored.storage.get_trial(self.trial._trial_id)
        self._end_claim(self.stored.ledger.finish)
        self.on_end(told)
        log.info(end_message(self.trial.number, state.name, value))

    def _mark_worse_than_complete(self) -> None:
        """Puts a pruned trial behind all complete ones for the sampler; who got further is first.

        Optuna's TPE sorts pruned trials by the study's only direction, and raises with several
        (`_get_pruned_trial_score` of 5.0). Those that break a constraint it sorts by how far.
        """
        trial = self.stored.storage.get_trial(self.trial._trial_id)
        if not any(excess > 0 for excess in (trial.constraints or {}).values()):
            self.trial.set_constraint(PRUNED_CONSTRAINT, 1 / max(trial.last_step or 1, 1))


class Outbox(Generic[T]):
    """Posts items one after the other, from a thread that lives as long as the body of a `with`.

    A sender waits until everything is posted, unless the database is away: then it goes on, and a
    later call raises the failure, if there is one. Items after a failure are dropped, and those
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
