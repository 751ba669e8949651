"""The slots of a study: which one a worker claims next, and which trials give theirs back."""

from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial

from studyloom.storage.attributes import BASELINE, SLOT, WORKER
from studyloom.storage.database import Connection
from studyloom.storage.ledger import Claim
from studyloom.study.early_end import ending
from studyloom.study.promotion import Promotion
from studyloom.study.stored_study import StoredStudy
from studyloom.study.trial_record import TrialRecord


class SlotQueue:
    """The first `trials` slots of a study, claimed in the order of its pruner.

    Once the search has ended by its bounds, only the trials that have begun are left to do.

    Args:
        owner: the id of the worker.
        baseline: whether the study has a baseline, the trial of slot 0.
    """

    def __init__(
        self, stored: StoredStudy, trials: int, owner: str, pruner: BasePruner, *, baseline: bool
    ) -> None:
        self.stored, self.trials, self.owner, self.baseline = stored, trials, owner, baseline
        self.order = pruner.order(stored.goals) if isinstance(pruner, Promotion) else None

    def has_ended(self) -> bool:
        """Whether the search has ended by its bounds, so that no further trial begins."""
        return ending(self.stored, self.trials) is not None

    def claim(self, lease: float, *, ended: bool) -> Claim | None:
        """Claims a slot, and makes a running trial for one that is fresh; None if none is free."""
        return self.stored.ledger.claim(
            self.owner, self.trials, lease, self._make, begun=ended, order=self.order
        )

    def _make(self, connection: Connection, slot: int) -> int:
        first = {BASELINE: True} if slot == 0 and self.baseline else {}
        attributes = {SLOT: slot, WORKER: self.owner, **first}
        return self.stored.storage.make(connection, self.stored.ledger.study_id, attributes)

    def may_stop(self, trial: FrozenTrial) -> bool:
        """Whether a trial may be pruned or paused; not the baseline, with which all compare."""
        return not self.baseline or not TrialRecord(trial).is_baseline

    def pauses_at(self, slot: int, before: int, step: int) -> bool:
        """Whether a trial has come to a rung with a step; see `PromotionOrder.pauses_at`."""
        return self.order is not None and self.order.pauses_at(slot, before, step)

    def promotes(self, slot: int) -> bool:
        """Whether the trial at a rung is the next to promote, so that it goes on at once."""
        assert self.order is not None
        standings = self.stored.ledger.standings(self.owner, self.trials, self.order)
        return self.order.is_next(standings, slot, closed=self.has_ended())
