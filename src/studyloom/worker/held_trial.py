"""A trial that a worker holds by its claim: what is stored with it, and how it ends.

The trial buffer collects the changes of the trial. Each commit writes them together with a change
of the claim, so that a worker that has lost its claim writes nothing.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from studyloom.decisions.extrapolation import mark_worse_than_complete
from studyloom.errors import ClaimLost, Infeasible
from studyloom.objectives.objective import NetworkObjective, Objective, StoredObjective
from studyloom.processes import Stopwatch
from studyloom.space.rule import Cost
from studyloom.storage import failures
from studyloom.storage.attributes import (
    BASELINE,
    EPOCHS,
    HALTED,
    NOT_KEPT,
    PROVENANCE,
    REPEATS,
    REUSED,
    STANDARD_ERROR,
    TIMES,
    WARNINGS,
)
from studyloom.storage.database import Connection
from studyloom.storage.ledger import LEASE_FACTOR, Claim, WriteRows
from studyloom.storage.redo import replace_trial
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.worker.callbacks import TrialCallback
from studyloom.worker.provenance import Provenance
from studyloom.worker_log import format_trial_end

log = logging.getLogger(__name__)


class ChangeClaim(Protocol):
    """Changes a claim and writes further rows in one transaction, such as `Ledger.release`."""

    def __call__(self, claim: Claim, write: WriteRows) -> bool:
        """Returns False, and writes nothing, if another worker has the slot by now."""
        ...


@dataclass
class HeldTrial:
    """A worker's trial and its claim on it.

    Its methods raise ClaimLost once another worker holds the slot; nothing was written then.

    Attributes:
        stored: The study.
        trial: The trial, whose changes the trial buffer collects.
        claim: The claim on its slot.
        limits: The limits of the trial and of the study.
        watch: Counts where the time of the worker goes.
        callbacks: Called with the trial once it has ended.
        is_search: Whether it is a trial of the search. A training of a later stage that has failed
            is tried again once: each candidate needs all its seeds.
        in_rounds: Whether failures in a row are counted by segment, see `decisions.rounds`.
        provenance: The record from which the trial can be trained again; None if that is
            impossible.
        progress: Whether a step was reported that no earlier worker had reached.
        longest: The seconds of its longest step so far.
        began: When this worker began with it, on the monotonic clock.
    """

    stored: StoredStudy
    trial: optuna.Trial
    claim: Claim
    limits: failures.Limits
    watch: Stopwatch
    callbacks: Sequence[TrialCallback]
    is_search: bool = True
    in_rounds: bool = False
    provenance: Provenance | None = field(default=None, init=False)
    progress: bool = field(default=False, init=False)
    longest: float = field(default=0.0, init=False)
    began: float = field(default_factory=time.monotonic, init=False)

    # Commits

    def commit(self) -> None:
        """Commits the trial's pending rows and the renewal of its lease together."""
        # An epoch that takes long does not mean that the worker has died.
        lease = max(self.limits.lease, LEASE_FACTOR * self.longest)

        def renew(claim: Claim, write: WriteRows) -> bool:
            return self.stored.ledger.renew(claim, lease, write)

        self._write(renew)
        self.stored.storage.mark_written()

    def pause(self) -> None:
        """Releases the slot with the trial, which waits at its rung."""
        self._end_claim(self.stored.ledger.release)

    def _end_claim(self, change: ChangeClaim) -> None:
        with self.watch("storage"):
            self._write(change)
            self.stored.storage.clear()

    def _write(self, change: ChangeClaim) -> None:
        """Commits the trial's pending rows and a change of its claim together."""
        if not change(self.claim, write=self.stored.storage.write):
            raise ClaimLost

    # Further rows of the next commit

    def constrain(self, costs: Sequence[Cost]) -> None:
        """Stores the costs of a network, and for the sampler their distance from the limits.

        A resumed trial keeps the costs that were measured when it began: it was ranked by these.

        Raises:
            Infeasible: A cost is beyond its limit.
        """
        attributes = self.trial.user_attrs
        costs = [replace(cost, value=attributes.get(cost.quantity, cost.value)) for cost in costs]
        self._store_costs(costs)
        broken_limits = [str(cost) for cost in costs if cost.excess > 0]
        if broken_limits:
            raise Infeasible("; ".join(broken_limits))

    def _store_costs(self, costs: Sequence[Cost]) -> None:
        """Stores the costs that are not stored yet, and how far they are from their limits."""
        if not costs:
            return
        attributes = self.trial.user_attrs
        for cost in costs:
            if attributes.get(cost.quantity) != cost.value:
                self.trial.set_user_attr(cost.quantity, cost.value)
                if cost.limit is not None:
                    self.trial.set_constraint(cost.quantity, cost.excess)

    def store(self, objective: Objective | None) -> None:
        """Adds the learning curve, the provenance, and where the time went, to the next commit."""
        if objective is not None:
            self._store_objective(objective)
        if self.provenance is not None:
            provenance = self.provenance
            if isinstance(objective, NetworkObjective):
                provenance = provenance.on_threads(objective.training.threads)
            self.trial.set_user_attr(PROVENANCE, provenance.as_json())
        times = Counter(self.trial.user_attrs.get(TIMES, {}))  # stored by workers that paused it
        times.update(self.watch.take())
        rounded = {kind: round(seconds, 4) for kind, seconds in times.items()}
        self.trial.set_user_attr(TIMES, rounded)

    def _store_objective(self, objective: Objective) -> None:
        """Adds what an objective knows of its training to the next commit."""
        if isinstance(objective, StoredObjective):
            self.trial.set_user_attr(REUSED, objective.source)
        self._store_costs(objective.costs())
        not_kept = objective.not_kept()
        if not_kept:
            self.trial.set_user_attr(NOT_KEPT, not_kept)
        warnings = objective.warnings()
        if warnings:
            self.trial.set_user_attr(WARNINGS, warnings)
        columns = objective.curves()
        if columns:
            error = objective.standard_error()
            if error is not None:
                self.trial.set_user_attr(STANDARD_ERROR, error)
            self.trial.set_user_attr(EPOCHS, columns)

    # The end

    def end(self, value: float | None, state: TrialState) -> None:
        """Ends the trial, with the value of the metric if it has one, and its claim."""
        ended = self._tell_optuna(value, state)
        self._end_claim(self.stored.ledger.finish)
        self._announce(ended)

    def fail(self, failure: failures.Failure) -> None:
        """Ends a trial that has failed, and halts the study if its trials all fail like this.

        A failure that teaches the sampler ends it as pruned, see `failures.TEACHES`. A training of
        a candidate that has failed for the first time is set aside, and queued again.
        """
        for name, value in failure.attributes().items():
            self.trial.set_user_attr(name, value)
        if failure.details:
            log.error("trial %d: %s", self.trial.number, failure.details)
        state = TrialState.FAIL
        if failure.kind in failures.TEACHES:
            self.trial.set_constraint(failure.kind, 1.0)
            state = TrialState.PRUNED
        if self._is_tried_again(failure):
            self._end_and_queue(state)
            return
        self.end(None, state)
        if self._is_hopeless(failure):
            self.stored.optuna.set_user_attr(HALTED, failure.reason)

    def _is_tried_again(self, failure: failures.Failure) -> bool:
        """Returns whether another trial repeats this one, which has failed."""
        if self.is_search or failure.kind in failures.USED_UP:
            return False
        is_repetition = REPEATS in self.trial.user_attrs
        return not is_repetition

    def _end_and_queue(self, state: TrialState) -> None:
        """Ends a failed trial, sets it aside, and queues another one of its configuration."""
        ledger = self.stored.ledger
        failed = self._tell_optuna(None, state)

        def finish_and_queue(claim: Claim, write: WriteRows) -> bool:
            def write_both(connection: Connection) -> None:
                write(connection)
                replace_trial(ledger, connection, failed, {REPEATS: failed.number})

            return ledger.finish_and_queue(claim, write_both)

        self._end_claim(finish_and_queue)
        self._announce(failed)

    def _tell_optuna(self, value: float | None, state: TrialState) -> FrozenTrial:
        """Adds the end of the trial, as Optuna's `tell` records it, to the next commit.

        With several objectives its costs are the values after the first.
        """
        storage = self.stored.storage
        trial_id = self.trial._trial_id
        if state == TrialState.PRUNED and len(self.stored.objectives) > 1:
            mark_worse_than_complete(storage.get_trial(trial_id), self.trial.set_constraint)
        values = None
        if value is not None:
            costs = [
                self.trial.user_attrs[objective.name] for objective in self.stored.objectives[1:]
            ]
            values = [value, *costs]
        self.stored.optuna.tell(self.trial, values, state)
        return storage.get_trial(trial_id)

    def _announce(self, ended: FrozenTrial) -> None:
        """Reports the end of the trial to the follower of the worker, and in the log."""
        for callback in self.callbacks:
            callback(self.stored, ended)
        value = None
        if ended.state == TrialState.COMPLETE and ended.values is not None:
            value = ended.values[0]
        log.info(format_trial_end(ended.number, ended.state.name, value))

    def _is_hopeless(self, failure: failures.Failure) -> bool:
        """Returns whether the first trial failed, or the last `max_failures` all for this reason.

        A first trial that crashed its workers does not count by itself: the host may be the cause.
        Nor does the first training of a later stage: the search has shown that the code works.
        """
        if failure.kind not in failures.HALTING:
            return False
        # Its slot, and not its number: another program may have added a trial before it.
        is_first = self.claim.slot == 0 or BASELINE in self.trial.user_attrs
        if self.is_search and is_first and failure.kind in failures.CODE_ERRORS:
            return True
        if self.in_rounds:
            return False
        max_failures = self.limits.max_failures
        ended = [trial for trial in self.stored.trials() if trial.datetime_complete is not None]
        ended.sort(key=lambda trial: trial.datetime_complete or datetime.min)
        latest = ended[-max_failures:]
        same_reason = [trial for trial in latest if TrialRecord(trial).reason == failure.reason]
        return len(same_reason) == max_failures
