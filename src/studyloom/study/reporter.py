"""Reports how a claimed trial goes, each time in one commit with the renewal of its lease."""

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import TracebackType

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import NopPruner
from optuna.trial import TrialState

from studyloom.errors import ClaimLost, Infeasible, Paused, Stopped, TimedOut
from studyloom.processes import end_if_forked
from studyloom.question.costs import Cost
from studyloom.question.objective import (
    NetworkObjective,
    Objective,
    Step,
    StoredObjective,
    report_step,
)
from studyloom.storage.attributes import (
    BASELINE,
    EPOCHS,
    FAILURE,
    HALTED,
    MADE,
    PAUSED,
    PLANNED_EPOCHS,
    REASON,
    REUSED,
    RUNGS,
    STANDARD_ERROR,
    TIMES,
    TRACEBACK,
)
from studyloom.storage.ledger import LEASE_FACTOR, Claim
from studyloom.storage.outbox import Outbox
from studyloom.study import failures
from studyloom.study.failures import Failure
from studyloom.study.limits import Limits
from studyloom.study.provenance import Provenance
from studyloom.study.rungs import Rungs
from studyloom.study.stopwatch import Stopwatch
from studyloom.study.stored_study import StoredStudy
from studyloom.study.tracking import Tracking
from studyloom.text import format_value
from studyloom.training.checkpoint import Checkpoint

log = logging.getLogger(__name__)
BEHIND = "pruned"  # the constraint that a pruned trial of several objectives breaks


@dataclass
class Reporter:
    """Owns a trial, its claim and its lease: reports epochs, and records how the trial ends.

    Args:
        stored: the study, in whose buffer the trial lies.
        trial: the trial.
        claim: this worker's claim on the slot of the trial.
        comparable: whether the study's pruner may end the trial.
        limits: of the trial and the study.
        stopping: whether the worker is to release the trial.
        watch: measures where the worker's time goes.
        rungs: where the trial is paused; None if it never is.
        tracking: tells trackers what is stored.

    Attributes:
        progress: whether an epoch was reported that no worker before had come to.
        raised: what a report has raised into the objective, which may catch it or raise another;
            None if nothing. By it an exception of ours is told from one that the user's code
            raised, which may be of the same type.
    """

    stored: StoredStudy
    trial: optuna.Trial
    claim: Claim
    comparable: bool
    limits: Limits
    stopping: Callable[[], bool]
    watch: Stopwatch
    rungs: Rungs | None = None
    tracking: Tracking = field(default_factory=Tracking)
    began: float = field(default_factory=time.monotonic, init=False)
    progress: bool = field(default=False, init=False)
    raised: BaseException | None = field(default=None, init=False)
    _step: int = field(default=-1, init=False)  # of the last report
    _longest: float = field(default=0.0, init=False)  # seconds of the longest epoch so far

    def commit(self, lease: float) -> None:
        """Writes what is new in the trial and renews its lease, in one transaction.

        Args:
            lease: seconds from now.

        Raises:
            ClaimLost: another worker holds the slot by now; nothing was written.
        """
        with ended_elsewhere():
            buffer = self.stored.storage
            if not self.stored.ledger.renew(self.claim, lease, buffer.write, buffer.only_report()):
                raise ClaimLost
        buffer.mark_written()

    def report(self, epoch: Step, objective: Objective, reported: int) -> None:
        """Reports an epoch, renews the lease, and lets the pruner decide.

        Args:
            epoch: the epoch that has ended.
            objective: whose epoch it is.
            reported: the last step that was stored before this worker took the trial, or -1.

        Raises:
            ClaimLost: another worker holds the slot by now.
            TrialPruned: the pruner ends the trial; its argument is the epoch.
        """
        self._longest = max(self._longest, epoch.seconds)
        before, self._step = max(reported, self._step), epoch.number
        self._store_costs(objective.costs())  # at the rungs trials are ranked by them
        if epoch.number != objective.epochs and self.comes_to_rung(before, epoch.number):
            known = self.trial.user_attrs.get(RUNGS, [])
            self.trial.set_user_attr(RUNGS, [*known, epoch.number])
            self.trial.set_user_attr(PAUSED, epoch.number)
        prunable = self.comparable and epoch.number != objective.epochs  # the last is the value
        # A long epoch does not mean that the worker has died.
        lease = max(self.limits.lease, LEASE_FACTOR * self._longest)

        def commit() -> None:
            self.commit(lease)
            if prunable and not isinstance(self.stored.optuna.pruner, NopPruner):
                # One read of the other trials, however much the pruner asks about them.
                self.stored.storage.refresh(self.stored.ledger.study_id)

        report_step(
            self.trial,
            epoch,
            stride=objective.stride,
            prunable=prunable,
            reported=reported,
            write=commit,
        )
        self.progress |= epoch.number > reported * objective.stride

    def pauses_at(self, before: int, step: int) -> bool:
        """Whether the trial comes to a rung with a report; `before` is the step of the one before.

        It is false if the trial is the next to promote, so that it just goes on.
        """
        if not self.comes_to_rung(before, step):
            return False
        assert self.rungs is not None
        if self.rungs.goes_on(self.stored, self.claim.slot):
            self.trial.set_user_attr(PAUSED, None)
            self.commit(max(self.limits.lease, LEASE_FACTOR * self._longest))
            return False
        return True

    def comes_to_rung(self, before: int, step: int) -> bool:
        """Whether a report is the first at a rung or later; `before` is the step before it."""
        rungs, slot = self.rungs, self.claim.slot
        return rungs is not None and step > before and rungs.order.pauses_at(slot, before, step)

    def pause(self) -> None:
        """Gives the slot back with the trial, which waits at its rung; in one transaction.

        Raises:
            ClaimLost: another worker holds the slot by now.
        """
        with self.watch("storage"), ended_elsewhere():
            if not self.stored.ledger.release(self.claim, self.stored.storage.write):
                raise ClaimLost
            self.stored.storage.clear()

    def constrain(self, costs: Sequence[Cost]) -> None:
        """Stores the costs of a network, and for the sampler their distance from the limits.

        What was measured when the trial began is kept when it goes on: it was ranked by that, and a
        latency is never the same twice.

        Args:
            costs: as they were measured.

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
            if known.get(cost.quantity) == cost.value:
                continue
            self.trial.set_user_attr(cost.quantity, cost.value)
            if cost.limit is not None:
                self.trial.set_constraint(cost.quantity, cost.excess)

    def store(self, objective: Objective | None, provenance: Provenance | None) -> None:
        """Stores the learning curve, the provenance, and where the time went.

        Args:
            objective: has the learning curve; None if there is none.
            provenance: None if the trial cannot be trained again.
        """
        if isinstance(objective, StoredObjective):
            self.trial.set_user_attr(REUSED, objective.source)
        if objective is not None:
            self._store_costs(objective.costs())
        if objective is not None and (columns := objective.curves()):
            if (error := objective.standard_error()) is not None:
                self.trial.set_user_attr(STANDARD_ERROR, error)
            self.trial.set_user_attr(EPOCHS, columns)
        if provenance is not None:
            if isinstance(objective, NetworkObjective):
                provenance = provenance.on_threads(objective.training.threads)
            self.trial.set_user_attr(MADE, provenance.as_json())
        times = Counter(self.trial.user_attrs.get(TIMES, {}))  # until it was paused
        times.update(self.watch.take())
        rounded = {kind: round(seconds, 4) for kind, seconds in times.items()}
        self.trial.set_user_attr(TIMES, rounded)

    def fail(self, failure: Failure) -> None:
        """Ends a trial that has failed, and halts the study if its trials all fail like this.

        Args:
            failure: why it failed.

        Raises:
            ClaimLost: another worker holds the slot by now.
        """
        self.trial.set_user_attr(FAILURE, failure.kind)
        self.trial.set_user_attr(REASON, failure.reason)
        if failure.details:
            self.trial.set_user_attr(TRACEBACK, failure.details)
            log.error("trial %d: %s", self.trial.number, failure.details)
        if failure.kind in failures.TEACHES:
            self.trial.set_constraint(failure.kind, 1.0)
            self.tell(None, TrialState.PRUNED)
        else:
            self.tell(None, TrialState.FAIL)
        if self._is_hopeless(failure):
            self.stored.optuna.set_user_attr(HALTED, failure.reason)

    def _is_hopeless(self, failure: Failure) -> bool:
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

    def _rank_behind(self) -> None:
        """Puts a pruned trial behind all complete ones for the sampler; who got further is first.

        Optuna's TPE sorts pruned trials by the study's only direction, and raises with several
        (`_get_pruned_trial_score` of 5.0). Those that break a constraint it sorts by how far.
        """
        trial = self.stored.storage.get_trial(self.trial._trial_id)
        if not any(excess > 0 for excess in (trial.constraints or {}).values()):
            self.trial.set_constraint(BEHIND, 1 / max(trial.last_step or 1, 1))

    def tell(self, value: float | None, state: TrialState) -> None:
        """Ends the trial and its claim in one transaction.

        Args:
            value: of the metric; None if there is none.
            state: in which the trial ends.

        Raises:
            ClaimLost: another worker holds the slot by now.
        """
        if state == TrialState.PRUNED and len(self.stored.goals) > 1:
            self._rank_behind()
        goals = self.stored.goals[1:] if value is not None else ()
        costs = [self.trial.user_attrs[goal.name] for goal in goals]
        self.stored.optuna.tell(self.trial, None if value is None else [value, *costs], state)
        told = self.stored.storage.get_trial(self.trial._trial_id)
        with self.watch("storage"), ended_elsewhere():
            if not self.stored.ledger.finish(self.claim, self.stored.storage.write):
                raise ClaimLost
            self.stored.storage.clear()
        self.tracking.end(told)
        shown = "" if value is None else f" {format_value(value)}"
        log.info("trial %d: %s%s", self.trial.number, state.name.lower(), shown)


@contextlib.contextmanager
def ended_elsewhere() -> Iterator[None]:
    """Raises ClaimLost if another program has ended the trial that the body writes."""
    try:
        yield
    except UpdateFinishedTrialError:
        raise ClaimLost from None


class EpochReports:
    """Called by an objective after each epoch: sends the report, saves a checkpoint, stops in time.

    A context. A thread posts the reports, so that training goes on while the database is away.

    Args:
        reporter: posts the reports.
        objective: whose epochs they are.
        checkpoint: where its state is saved; None if it is not saved.
        reported: the last step that was stored before this worker took the trial, or -1.
    """

    def __init__(
        self, reporter: Reporter, objective: Objective, checkpoint: Checkpoint | None, reported: int
    ) -> None:
        self.reporter, self.objective, self.checkpoint = reporter, objective, checkpoint
        self._reported = self._last = reported
        self._evaluated = objective.evaluating  # seconds of evaluation at the last epoch
        self._outbox = Outbox(self._post, reporter.stored.is_away)
        self._pid = os.getpid()
        if objective.epochs is not None:  # written with the first report
            reporter.trial.set_user_attr(PLANNED_EPOCHS, objective.epochs // objective.stride)

    def __enter__(self) -> "EpochReports":
        self._outbox.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        end_if_forked(self._pid)
        with (
            self._raising(),
            self.reporter.watch("storage") if kind is None else contextlib.nullcontext(),
        ):
            self._outbox.__exit__(kind, error, at)

    @contextlib.contextmanager
    def _raising(self) -> Iterator[None]:
        """Notes what the body raises: it is ours."""
        try:
            yield
        except BaseException as error:
            self.reporter.raised = error
            raise

    def send_restored(self) -> None:
        """Reports the epochs of a checkpoint that were saved while the database was away."""
        with self._raising(), self.reporter.watch("storage"):
            for epoch in self.objective.steps():
                if epoch.number > self._reported * self.objective.stride:
                    self._outbox.send(epoch)
                    self._pause_at_rung(epoch)

    def __call__(self, epoch: Step) -> None:
        """Reports an epoch that has ended, and saves a checkpoint.

        Args:
            epoch: the epoch.

        Raises:
            Stopped: the worker is to stop; the trial is released.
            TimedOut: the trial has taken longer than study.trial_timeout.
            Paused: the trial has come to a rung, and waits there.
            ClaimLost, TrialPruned, StorageLost: when an earlier report was posted.
        """
        end_if_forked(self._pid)
        with self._raising():
            self._report(epoch)

    def _report(self, epoch: Step) -> None:
        watch, limits = self.reporter.watch, self.reporter.limits
        evaluating = self.objective.evaluating
        evaluation, self._evaluated = evaluating - self._evaluated, evaluating
        watch.add("training", epoch.seconds - evaluation)
        watch.add("evaluation", evaluation)
        last = epoch.number == self.objective.epochs
        # Whoever may be told to go no further by its report at a rung has its state saved before.
        first = not last and self.reporter.comes_to_rung(self._last, epoch.number)
        if first:
            self._save()
        with watch("storage"):
            self._outbox.send(epoch)
        if not last and not first:
            self._save()
        if self.reporter.stopping() and not last:
            raise Stopped
        if not last:
            with watch("storage"):
                self._pause_at_rung(epoch)
        limit = limits.trial_timeout
        if limit is not None and time.monotonic() - self.reporter.began > limit:
            raise TimedOut(f"the trial took longer than study.trial_timeout={limit:g} seconds")

    def _pause_at_rung(self, epoch: Step) -> None:
        """Pauses the trial if it has come to a rung; all that it has reported is stored then.

        Epochs that were stored before it was promoted, and are trained again for want of a
        checkpoint, pause it nowhere.
        """
        before, self._last = self._last, max(self._last, epoch.number)
        if self.reporter.rungs is not None and epoch.number > before:
            self._outbox.flush()
            if self.reporter.pauses_at(before, epoch.number):
                raise Paused

    def _post(self, epoch: Step) -> None:
        self.reporter.report(epoch, self.objective, self._reported)

    def _save(self) -> None:
        """Saves the state; a disk that refuses it does not end the trial."""
        if self.checkpoint is None:
            return
        with self.reporter.watch("checkpoints"):
            if (state := self.objective.state()) is None:
                return
            try:
                self.checkpoint.save(state)
            except OSError as error:
                log.warning("%s; a crash would now cost this trial's epochs so far", error)
