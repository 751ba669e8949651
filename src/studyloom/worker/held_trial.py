"""A trial that a worker holds by its claim: what is stored with it, and how it ends."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

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
from studyloom.worker.provenance import Provenance
from studyloom.worker_log import format_trial_end

log = logging.getLogger(__name__)


@dataclass
class HeldTrial:
    """A worker's trial and its claim on it.

    Its methods raise ClaimLost once another worker holds the slot; nothing was written then.

    Attributes:
        is_search: whether it is a trial of the search. A training of a later stage that has failed
            is tried again once: each candidate needs all its seeds.
        in_rounds: whether failures in a row are counted by segment, see `rounds`.
        provenance: what is needed to train the trial again; None if that is impossible.
        progress: whether a step was reported that no earlier worker had reached.
        longest: the seconds of its longest step so far.
        began: when this worker began with it, on the monotonic clock.
    """

    stored: StoredStudy
    trial: optuna.Trial
    claim: Claim
    limits: failures.Limits
    watch: Stopwatch
    on_end: Callable[[FrozenTrial], None] = lambda trial: None
    is_search: bool = True
    in_rounds: bool = False
    provenance: Provenance | None = field(default=None, init=False)
    progress: bool = field(default=False, init=False)
    longest: float = field(default=0.0, init=False)
    began: float = field(default_factory=time.monotonic, init=False)

    def commit(self) -> None:
        """Commits the trial's pending rows and the renewal of its lease together."""
        # An epoch that takes long does not mean that the worker has died.
        lease = max(self.limits.lease, LEASE_FACTOR * self.longest)
        self._write(partial(self.stored.ledger.renew, lease=lease))
        self.stored.storage.mark_written()

    def pause(self) -> None:
        """Releases the slot with the trial, which waits at its rung."""
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

        A resumed trial keeps the costs that were measured when it began: it was ranked by these.

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
            if not_kept := objective.not_kept():
                self.trial.set_user_attr(NOT_KEPT, not_kept)
            if warnings := objective.warnings():
                self.trial.set_user_attr(WARNINGS, warnings)
            if columns := objective.curves():
                if (error := objective.standard_error()) is not None:
                    self.trial.set_user_attr(STANDARD_ERROR, error)
                self.trial.set_user_attr(EPOCHS, columns)
        if (provenance := self.provenance) is not None:
            if isinstance(objective, NetworkObjective):
                provenance = provenance.on_threads(objective.training.threads)
            self.trial.set_user_attr(PROVENANCE, provenance.as_json())
        times = Counter(self.trial.user_attrs.get(TIMES, {}))  # until it was paused
        times.update(self.watch.take())
        rounded = {kind: round(seconds, 4) for kind, seconds in times.items()}
        self.trial.set_user_attr(TIMES, rounded)

    def fail(self, failure: failures.Failure) -> None:
        """Ends a trial that has failed, and halts the study if its trials all fail like this.

        A training of a candidate that has failed for the first time is queued again instead.
        """
        for name, value in failure.attributes().items():
            self.trial.set_user_attr(name, value)
        if failure.details:
            log.error("trial %d: %s", self.trial.number, failure.details)
        teaches = failure.kind in failures.TEACHES
        if teaches:
            self.trial.set_constraint(failure.kind, 1.0)
        tries_again = self._tries_again(failure)
        self.tell(None, TrialState.PRUNED if teaches else TrialState.FAIL, again=tries_again)
        if not tries_again and self._is_hopeless(failure):
            self.stored.optuna.set_user_attr(HALTED, failure.reason)

    def _tries_again(self, failure: failures.Failure) -> bool:
        """Whether another trial repeats this one, which has failed."""
        is_first = REPEATS not in self.trial.user_attrs
        return not self.is_search and is_first and failure.kind not in failures.USED_UP

    def _is_hopeless(self, failure: failures.Failure) -> bool:
        """Whether the first trial failed, or the last `max_failures` all failed for this reason.

        A first trial that crashed its workers does not count by itself: the host may be the cause.
        Nor does the first training of a later stage: the search has shown that the code works.
        """
        if failure.kind not in failures.HALTING:
            return False
        # Its slot, and not its number: another program may have added a trial before it.
        first = self.claim.slot == 0 or BASELINE in self.trial.user_attrs
        mistaken = self.is_search and first and failure.kind in failures.CODE_ERRORS
        if mistaken or self.in_rounds:
            return mistaken
        ended = [trial for trial in self.stored.trials() if trial.datetime_complete is not None]
        ended.sort(key=lambda trial: trial.datetime_complete or datetime.min)
        last = ended[-self.limits.max_failures :]
        same = [trial for trial in last if TrialRecord(trial).reason == failure.reason]
        return len(same) == self.limits.max_failures

    def tell(self, value: float | None, state: TrialState, *, again: bool = False) -> None:
        """Ends the trial, with the value of the metric if it has one, and its claim.

        Args:
            again: whether to set it aside and to queue another one of its configuration.
        """
        if state == TrialState.PRUNED and len(self.stored.objectives) > 1:
            trial = self.stored.storage.get_trial(self.trial._trial_id)
            mark_worse_than_complete(trial, self.trial.set_constraint)
        objectives = self.stored.objectives[1:] if value is not None else ()
        costs = [self.trial.user_attrs[objective.name] for objective in objectives]
        self.stored.optuna.tell(self.trial, None if value is None else [value, *costs], state)
        ended = self.stored.storage.get_trial(self.trial._trial_id)
        end = partial(self._finish_and_queue, ended) if again else self.stored.ledger.finish
        self._end_claim(end)
        self.on_end(ended)
        log.info(format_trial_end(self.trial.number, state.name, value))

    def _finish_and_queue(self, failed: FrozenTrial, claim: Claim, write: WriteRows) -> bool:
        """Ends the claim of a failed trial, sets it aside, and queues another one in its slot."""
        ledger = self.stored.ledger

        def write_both(connection: Connection) -> None:
            write(connection)
            replace_trial(ledger, connection, failed, {REPEATS: failed.number})

        return ledger.finish_and_queue(claim, write_both)
