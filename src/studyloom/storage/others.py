"""The other trials of a study, as a worker's sampler and pruner see them, read as they are asked.

Of a trial that has ended everything is read once, but for attributes that only people ask about.
Trials that have not ended are read anew for each question that concerns them, and for no other:
with 1 000 workers the median would else read 1 000 running trials after each epoch, of which it
asks nothing.
"""

import copy
import json
import math
import threading
from collections import defaultdict
from collections.abc import Container, Sequence
from operator import attrgetter

from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection

from studyloom.storage import sql
from studyloom.storage.attributes import PAUSED, SLOT
from studyloom.storage.database import RetryingStorage, read
from studyloom.storage.sql import is_slot

BY_NUMBER = attrgetter("number")
ENDED = tuple(state for state in TrialState if state.is_finished())
# With these alone a question is about trials that have ended; a paused trial may be a pruned one.
SETTLED = (TrialState.COMPLETE, TrialState.FAIL)


class Others:
    """Reads the trials of a study but for the worker's own.

    Args:
        storage: The database.
        study_id: The study.
        slots_only: Whether trials count that fill a slot, and no others: what other programs have
            added may have any parameters and values.
        judging: Whether paused trials are seen as pruned; see `as_judged`.
    """

    def __init__(
        self, storage: RetryingStorage, study_id: int, *, slots_only: bool, judging: bool
    ) -> None:
        self._storage, self._study_id = storage, study_id
        self._slots_only, self._judging = slots_only, judging
        self._lock = threading.RLock()
        self._latest = -1  # id of the latest trial that was seen
        self._open: set[int] = set()  # ids of those that had not ended
        self._ended = defaultdict[TrialState, dict[int, FrozenTrial]](dict)  # by number
        self._sorted: dict[TrialState, list[FrozenTrial]] = {}  # the same, by number
        self._running: list[FrozenTrial] | None = None  # those that have not ended, by number
        self._fresh = False

    def forget_changes(self) -> None:
        """Has the next question ask the database, and later ones not, until the next call."""
        self._fresh, self._running = False, None

    def trials(self, own: FrozenTrial, states: Container[TrialState] | None) -> list[FrozenTrial]:
        """Returns trials by number, the worker's own among them.

        Args:
            own: The worker's own trial.
            states: Those in which they are; None for all.
        """
        settled = states is not None and not any(
            state in states for state in TrialState if state not in SETTLED
        )
        with self._lock:
            self._look(own._trial_id, running=not settled)
            parts = [self._by_number(state) for state in ENDED if states is None or state in states]
            moving = [own] if settled else [*(self._running or ()), own]
            parts.append([t for t in moving if states is None or t.state in states])
        if not parts[-1] and len(parts) == 2:
            return [*parts[0]]
        # Sorting takes 0.1 ms for 5 000: they are some ascending runs.
        return sorted((trial for part in parts for trial in part), key=BY_NUMBER)

    def _by_number(self, state: TrialState) -> list[FrozenTrial]:
        if state not in self._sorted:
            self._sorted[state] = sorted(self._ended[state].values(), key=BY_NUMBER)
        return self._sorted[state]

    def _look(self, own: int, *, running: bool) -> None:
        """Reads what has become of the others since `forget_changes`."""
        if self._fresh and (self._running is not None or not running):
            return

        def look(connection: Connection) -> tuple[Sequence[FrozenTrial], Sequence[FrozenTrial]]:
            ended = [] if self._fresh else self._read_ended(connection, own)
            if not running:
                return ended, []
            ids = json.dumps([*self._open - {own}])
            heads = connection.execute(sql.NAMED, {"ids": ids}).all()
            return ended, sql.read_light(connection, heads)

        ended, moving = read(self._storage, look)
        for trial in filter(self._counts, ended):
            self._ended[trial.state][trial.number] = trial
            self._sorted.pop(trial.state, None)
        self._fresh = True
        if running:
            # One may have ended between the two statements; it counts so the next time.
            counted = [t for t in moving if self._counts(t) and t.state in sql.UNFINISHED]
            self._running = [as_judged(t) for t in counted] if self._judging else counted

    def _read_ended(self, connection: Connection, own: int) -> list[FrozenTrial]:
        """Reads the trials that have ended since; notes those that have begun."""
        asked = {
            "study": self._study_id,
            "after": self._latest,
            "ids": json.dumps([*self._open - {own}]),
        }
        heads = connection.execute(sql.CHANGED, asked).all()
        ended = [head for head in heads if head.state.is_finished() and head.trial_id != own]
        trials = sql.read_light(connection, ended)
        # Only now: a failure above has this asked again.
        self._open |= {own, *(head.trial_id for head in heads)}
        self._open -= {head.trial_id for head in ended}
        self._latest = max([self._latest, *(head.trial_id for head in heads)])
        return trials

    def _counts(self, trial: FrozenTrial) -> bool:
        return not self._slots_only or is_slot(trial.user_attrs.get(SLOT))


def as_judged(trial: FrozenTrial) -> FrozenTrial:
    """Returns a running trial as samplers and pruners see it: a paused one as pruned at its rung.

    Optuna knows no paused trials. As a running one it would teach TPE nothing, which counts those
    that have ended, and takes running ones for bad ones where workers keep away from each other.
    """
    if trial.state != TrialState.RUNNING or trial.user_attrs.get(PAUSED) is None:
        return trial
    judged = copy.copy(trial)
    judged.state = TrialState.PRUNED
    last = None if trial.last_step is None else trial.intermediate_values[trial.last_step]
    # As Optuna ends a pruned trial: with its last report, unless that is not a number.
    judged.values = None if last is None or math.isnan(last) else [last]
    return judged
