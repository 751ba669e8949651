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
from functools import partial
from typing import Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from studyloom.decisions.extrapolation import mark_worse_than_complete
from studyloom.errors import ClaimLost, Infeasible
from studyloom.objectives.objective import NetworkObjective, Objective, StoredObjective
from studyloom.processes import Stopwatch
from studyloom.space.rule import Cost
from studyloom.storage import failures, redo, sql
from studyloom.storage.attributes import (
    BASELINE,
    EPOCHS,
    HALTED,
    NOT_KEPT,
    PROCESSOR_TIME,
    PROVENANCE,
    REPEATS,
    REUSED,
    STANDARD_ERROR,
    STOP_REQUESTED,
    TIMES,
    WARNINGS,
)
from studyloom.storage.database import Connection
from studyloom.storage.ledger import LEASE_FACTOR, Claim, WriteRows
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.worker.callbacks import TrialCallback
from studyloom.worker.provenance import Provenance
from studyloom.worker.stop_trial import end_released_trial
from studyloom.worker_log import format_trial_end

log = logging.getLogger(__name__)


class ChangeClaim(Protocol):
    """A function that changes a claim and writes rows in one transaction: `Ledger.release`."""

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
        claim: The claim on its slot, the row of the budget that is the trial's.
        limits: The limits of the trial and of the study.
        stopwatch: Counts where the time of the worker goes.
        callbacks: Called with the trial once it has ended.
        is_search: Whether it is a trial of the search. A training of a later stage that has failed
            is tried again once: each candidate needs all its seeds.
        in_rounds: Whether failures in a row are counted by segment, see `decisions.rounds`.
        provenance: The record from which the trial can be trained again; None if that is
            impossible.
        has_progressed: Whether a step was reported that no earlier worker had reached.
        longest_step: The seconds of its longest step so far.
        is_stop_requested: Whether its end was requested before the last commit.
        start: When this worker began with it, on the monotonic clock.
    """

    stored: StoredStudy
    trial: optuna.Trial
    claim: Claim
    limits: failures.Limits
    stopwatch: Stopwatch
    callbacks: Sequence[TrialCallback]
    is_search: bool = True
    in_rounds: bool = False
    provenance: Provenance | None = field(default=None, init=False)
    has_progressed: bool = field(default=False, init=False)
    longest_step: float = field(default=0.0, init=False)
    is_stop_requested: bool = field(default=False, init=False)
    start: float = field(default_factory=time.monotonic, init=False)

    # Commits

    def commit(self) -> None:
        """Commits the trial's pending rows and the renewal of its lease together."""
        # The lease lasts for several of the longest steps: a worker whose epoch takes long has not
        # died.
        lease = max(self.limits.lease, LEASE_FACTOR * self.longest_step)
        self._write(partial(self.stored.ledger.renew, lease=lease))
        self.stored.storage.mark_written()
        for callback in self.callbacks:
            callback.report(self.stored, self.trial._trial_id)

    def pause(self) -> None:
        """Releases the slot of a trial that waits at its rung, where trials are compared.

        If the end of the trial was requested since its last report, it ends now.
        """
        self._end_claim(self.stored.ledger.release)
        if self.is_stop_requested:
            end_released_trial(self.stored, self.trial.number)

    def _end_claim(self, change: ChangeClaim) -> None:
        """Commits the trial's pending rows with the end of the claim, and empties the buffer."""
        with self.stopwatch("storage"):
            self._write(change)
            self.stored.storage.clear()

    def _write(self, change: ChangeClaim) -> None:
        """Commits the trial's pending rows and a change of its claim together.

        The same transaction reads whether the end of the trial was requested.

        Raises:
            ClaimLost: Another worker holds the slot by now; nothing was written.
        """
        trial_id = self.trial._trial_id

        def write(connection: Connection) -> None:
            self.stored.storage.write(connection)
            self.is_stop_requested = sql.has_user_attr(connection, trial_id, STOP_REQUESTED)

        still_holds = change(self.claim, write=write)
        if not still_holds:
            raise ClaimLost

    # Further rows of the next commit

    def check_limits(self, costs: Sequence[Cost]) -> None:
        """Stores the costs of a trial's network, such as its parameters, and checks their limits.

        A resumed trial keeps the costs that were measured when it began: it was ranked by these.

        Raises:
            Infeasible: A cost is beyond its limit.
        """
        attributes = self.trial.user_attrs
        first_costs = []
        for cost in costs:
            first_value = attributes.get(cost.quantity, cost.value)
            first_costs.append(replace(cost, value=first_value))
        self._store_costs(first_costs)
        exceeding_costs = [str(cost) for cost in first_costs if cost.excess > 0]
        if exceeding_costs:
            raise Infeasible("; ".join(exceeding_costs))

    def _store_costs(self, costs: Sequence[Cost]) -> None:
        """Adds costs to the next commit, and for the sampler how far they exceed their limits."""
        if not costs:
            return
        attributes = self.trial.user_attrs
        for cost in costs:
            is_stored = attributes.get(cost.quantity) == cost.value
            if is_stored:
                continue
            self.trial.set_user_attr(cost.quantity, cost.value)
            if cost.limit is not None:
                self.trial.set_constraint(cost.quantity, cost.excess)

    def store(self, objective: Objective | None) -> None:
        """Adds the learning curve, the provenance, and where the time went, to the next commit.

        Args:
            objective: The objective that has trained; None if the trial was not trained here.
        """
        if objective is not None:
            self._store_objective(objective)
        if self.provenance is not None:
            provenance = self.provenance
            if isinstance(objective, NetworkObjective):
                provenance = provenance.on_threads(objective.training.threads)
            self.trial.set_user_attr(PROVENANCE, provenance.as_json())
        # Seconds by kind; workers that paused the trial have stored theirs.
        seconds_by_kind = Counter(self.trial.user_attrs.get(TIMES, {}))
        seconds_by_kind.update(self.stopwatch.take())
        rounded = {kind: round(seconds, 4) for kind, seconds in seconds_by_kind.items()}
        self.trial.set_user_attr(TIMES, rounded)
        former_processor_time = self.trial.user_attrs.get(PROCESSOR_TIME, 0.0)
        processor_time = former_processor_time + self.stopwatch.take_processor_time()
        self.trial.set_user_attr(PROCESSOR_TIME, round(processor_time, 4))

    def _store_objective(self, objective: Objective) -> None:
        """Adds to the next commit what an objective has recorded, such as its learning curve."""
        if isinstance(objective, StoredObjective):
            self.trial.set_user_attr(REUSED, objective.source)
        self._store_costs(objective.costs())
        not_kept = objective.not_kept()
        if not_kept:
            self.trial.set_user_attr(NOT_KEPT, not_kept)
        warnings = objective.warnings()
        if warnings:
            self.trial.set_user_attr(WARNINGS, warnings)
        curves = objective.curves()
        if curves:
            error = objective.standard_error()
            if error is not None:
                self.trial.set_user_attr(STANDARD_ERROR, error)
            self.trial.set_user_attr(EPOCHS, curves)

    # The end

    def end(self, value: float | None, state: TrialState) -> None:
        """Ends the trial, with the value of the metric if it has one, and its claim."""
        ended_trial = self._tell_optuna(value, state)
        self._end_claim(self.stored.ledger.finish)
        self._announce_end(ended_trial)

    def fail(self, failure: failures.Failure) -> None:
        """Ends a trial that has failed, and halts the study if its trials all fail like this.

        A failure from which the sampler should learn to avoid the configuration, such as divergence
        or a lack of memory, ends the trial as pruned, with a constraint that it violates: samplers
        ignore trials that have failed. A training of a later stage is repeated once.
        """
        for name, value in failure.attributes().items():
            self.trial.set_user_attr(name, value)
        if failure.details:
            # Only the logs of workers have each traceback; a command shows one at its end.
            log.error("trial %d: %s", self.trial.number, failure.reason)
            log.info("%s", failure.details)
        if failure.kind in failures.TEACHING_KINDS:
            self.trial.set_constraint(failure.kind, 1.0)  # above 0: violated
            state = TrialState.PRUNED
        else:
            state = TrialState.FAIL
        if self._must_repeat(failure):
            self._end_and_repeat(state)
            return
        self.end(value=None, state=state)
        if self._must_halt_study(failure):
            self.stored.optuna.set_user_attr(HALTED, failure.reason)

    def _must_repeat(self, failure: failures.Failure) -> bool:
        """Returns whether another trial is to repeat this one, which has failed."""
        if self.is_search or failure.kind in failures.FINAL_KINDS:
            return False
        is_repetition = REPEATS in self.trial.user_attrs
        return not is_repetition

    def _end_and_repeat(self, state: TrialState) -> None:
        """Ends a failed trial, and queues another one of its configuration in its slot.

        Both are one transaction: no crash can lose the training that the candidate needs.
        """
        failed_trial = self._tell_optuna(value=None, state=state)
        self._end_claim(partial(self._finish_and_queue, failed_trial))
        self._announce_end(failed_trial)

    def _finish_and_queue(self, failed_trial: FrozenTrial, claim: Claim, write: WriteRows) -> bool:
        """Ends a claim, and queues another trial like the failed one, in one transaction.

        Args:
            failed_trial: The trial, with its end.
            claim: The claim on its slot.
            write: Stores the pending rows of the failed trial.

        Returns:
            False, and writes nothing, if another worker has the slot by now.
        """
        ledger = self.stored.ledger

        def write_both_trials(connection: Connection) -> None:
            """Stores the end of the failed trial, and the trial that repeats it."""
            write(connection)
            redo.replace_trial(ledger, connection, failed_trial, {REPEATS: failed_trial.number})

        return ledger.finish_and_queue(claim, write_both_trials)

    def _tell_optuna(self, value: float | None, state: TrialState) -> FrozenTrial:
        """Adds the end of the trial, as Optuna's `tell` records it, to the next commit.

        Args:
            value: The metric; with several objectives, the stored costs of the trial follow it.

        Returns:
            The trial with its end.
        """
        storage = self.stored.storage
        trial_id = self.trial._trial_id
        cost_objectives = self.stored.objectives[1:]
        # With several objectives, Optuna's TPE sampler raises an exception at a pruned trial. It
        # can rank the trial if a constraint, which the trial breaks, is set here.
        if state == TrialState.PRUNED and cost_objectives:
            mark_worse_than_complete(storage.get_trial(trial_id), self.trial.set_constraint)
        values = None
        if value is not None:
            values = [value]
            for objective in cost_objectives:
                values.append(self.trial.user_attrs[objective.name])
        self.stored.optuna.tell(self.trial, values, state)
        return storage.get_trial(trial_id)

    def _announce_end(self, ended_trial: FrozenTrial) -> None:
        """Gives the ended trial to the callbacks, and writes its value to the log."""
        for callback in self.callbacks:
            callback(self.stored, ended_trial)
        value = None
        if ended_trial.state == TrialState.COMPLETE and ended_trial.values is not None:
            value = ended_trial.values[0]
        log.info(format_trial_end(ended_trial.number, ended_trial.state.name, value))

    def _must_halt_study(self, failure: failures.Failure) -> bool:
        """Returns whether the study halts, because further trials would fail for the same reason.

        It halts if the code fails in the first trial of the search, or if the latest
        `limits.max_failures` trials all failed for this reason. A first trial that crashed its
        workers does not halt it: the host may be the cause. In a search in rounds, which does not
        depend on when its trials end, the failures in a row are counted elsewhere.
        """
        if failure.kind not in failures.HALTING_KINDS:
            return False
        # Another program may have added a trial, so that the number of the first is not 0.
        is_first = self.claim.slot == 0 or BASELINE in self.trial.user_attrs
        if self.is_search and is_first and failure.kind in failures.CODE_ERROR_KINDS:
            return True
        if self.in_rounds:  # `SlotQueue.halt_failed_rounds` counts the failures
            return False
        max_failures = self.limits.max_failures
        ended_trials = []
        for trial in self.stored.trials():
            if trial.datetime_complete is not None:
                ended_trials.append(trial)
        ended_trials.sort(key=lambda trial: trial.datetime_complete or datetime.min)
        failures_in_a_row = 0
        for trial in ended_trials[-max_failures:]:
            if TrialRecord(trial).reason == failure.reason:
                failures_in_a_row += 1
        return failures_in_a_row == max_failures
