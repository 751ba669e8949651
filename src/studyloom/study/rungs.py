"""Where the trials of a worker are paused, and whether one of them just goes on."""

import os
from dataclasses import dataclass

from studyloom.processes import worker_id
from studyloom.study.bounds import ending
from studyloom.study.promotion import PromotionOrder
from studyloom.study.stored_study import StoredStudy


@dataclass(frozen=True)
class Rungs:
    """Where trials are paused.

    Args:
        order: decides which are promoted.
        trials: the budget of the study.
    """

    order: PromotionOrder
    trials: int

    def goes_on(self, stored: StoredStudy, slot: int) -> bool:
        """Whether the trial of this worker's slot is the next to promote."""
        ended = ending(stored, self.trials) is not None
        standings = stored.ledger.standings(worker_id(os.getpid()), self.trials, self.order)
        return self.order.goes_on(standings, slot, closed=ended)
