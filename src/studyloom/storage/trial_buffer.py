"""The trial buffer: a worker's own trial, whose changes are written to the database together.

Optuna commits each hyperparameter, report and attribute separately, and reads all running trials
for each call of a sampler or pruner. With the buffer, samplers, pruners and `optuna.Trial` work as
ever, and the worker decides when the others' trials are read and when its own is written.
"""

import copy
import json
import math
import threading
from bisect import insort
from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection

from studyloom.storage import sql
from studyloom.storage.attributes import PAUSED
from studyloom.storage.database import Retry, RetryingStorage
from studyloom.storage.optuna_internals import CachedStorage
from studyloom.storage.sql import Write

ENDED = tuple(state for state in TrialState if state.is_finished())
# A query for only these is about trials that have ended; a paused trial may count as pruned.
SETTLED = (TrialState.COMPLETE, TrialState.FAIL)
NUMBER = attrgetter("number")


class TrialBuffer(CachedStorage):
    """Optuna's storage with the finished trials cached, for one process with one trial at a time.

    While a trial is loaded, its changes stay here until they are written, and the other trials that
    fill slots are as they were when they were first read since the last refresh. Without one
    it is Optuna's storage as shipped: each call reads the database.
    """

    def __init__(self, backend: RetryingStorage) -> None:
        super().__init__(backend)
        self._backend: RetryingStorage = backend
        self._own: FrozenTrial | None = None
        self._study_id = -1  # of that trial
        self._made: FrozenTrial | None = None
        self._writes: list[Write] = []
        self._sent = 0  # how many of them the last `write` has written
        self._others: OtherTrials | None = None
        self.whole = False  # whether other trials are read as of one moment

    def close(self) -> None:
        """Closes all connections to the database."""
        self._backend.close()

    @property
    def retry(self) -> Retry:
        """Returns the object that repeats failed calls, and knows whether one is waiting."""
        return self._backend.retry

    def make(self, connection: Connection, study_id: int, user_attrs: Mapping[str, Any]) -> int:
        """Creates a running trial, which `load` then need not read, and returns its id."""
        self._made = sql.insert(connection, study_id, user_attrs)
        return self._made._trial_id

    def load(self, study_id: int, trial_id: int) -> FrozenTrial:
        """Loads a trial as the worker's own, and returns a copy of it.

        Raises:
            TrialDeleted: It does not exist.
        """
        self.clear()
        own, self._made = self._made, None
        if own is None or own._trial_id != trial_id:
            try:
                own = self._backend.get_trial(trial_id)
            except KeyError:
                raise sql.trial_deleted() from None
        # TPE raises an exception at a pruned trial of several objectives.
        as_pruned = len(self.get_study_directions(study_id)) == 1
        with self._lock:
            if self._others is None or self._study_id != study_id:
                self._others = OtherTrials(
                    self._backend, study_id, as_pruned=as_pruned, whole=self.whole
                )
            self._own, self._study_id = own, study_id
        self.refresh(study_id)
        return _copied(own)

    def refresh(self, study_id: int) -> None:
        """Makes the next read of the study's other trials go to the database."""
        if self._others is not None and study_id == self._study_id:
            self._others.forget_changes()

    def read_whole(self, study_id: int) -> list[FrozenTrial]:
        """Reads all trials with all attributes from the database, also while a trial is loaded."""
        return super().get_all_trials(study_id, deepcopy=False)

    def write(self, connection: Connection) -> None:
        """Writes the changes of the worker's own trial; `mark_written` follows the commit."""
        with self._lock:
            self._sent = len(self._writes)
            writes = self._writes[: self._sent]
        sql.write(connection, writes)

    def mark_written(self) -> None:
        """Drops the pending changes that the last `write` has stored."""
        with self._lock:
            self._writes, self._sent = self._writes[self._sent :], 0

    def clear(self) -> None:
        """Drops the worker's own trial, and those of its changes that were not written."""
        with self._lock:
            self._own, self._writes = None, []

    def forget(self, study_id: int) -> None:
        """Drops the cached trials of a study, after ended trials have lost their slots."""
        with self._lock:
            self._studies.pop(study_id, None)
            self._others = None

    def _change(self, trial_id: int, writes: Sequence[Write], **fields: Any) -> bool:
        """Changes the worker's own trial, in a copy: a thread may be reading the previous one.

        A dict among the new values is merged into the present one. Returns False if the trial is
        not the worker's own; then nothing has changed.
        """
        with self._lock:
            if self._own is None or self._own._trial_id != trial_id:
                return False
            changed = copy.copy(self._own)
            for name, value in fields.items():
                merged = getattr(changed, name) | value if isinstance(value, dict) else value
                setattr(changed, name, merged)
            self._own = changed
            self._writes += writes
            return True

    # Methods of Optuna's storage. Reads come from the buffer while a trial is loaded, and from the
    # database otherwise; writes to the worker's own trial stay here.

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        own, others = self._own, self._others
        if own is None or others is None or study_id != self._study_id:
            return super().get_all_trials(study_id, deepcopy, states)
        trials = others.trials(own, states)
        return copy.deepcopy(trials) if deepcopy else trials

    def get_trial(self, trial_id: int) -> FrozenTrial:
        with self._lock:
            if self._own is not None and self._own._trial_id == trial_id:
                return _copied(self._own)
        return super().get_trial(trial_id)

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        value = distribution.to_external_repr(param_value_internal)
        fields = {"params": {param_name: value}, "distributions": {param_name: distribution}}
        writes = [sql.param(trial_id, param_name, param_value_internal, distribution)]
        if not self._change(trial_id, writes, **fields):
            super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        writes = [sql.report(trial_id, step, intermediate_value)]
        if not self._change(trial_id, writes, intermediate_values={step: intermediate_value}):
            super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        writes = [sql.user_attr(trial_id, key, value)]
        if not self._change(trial_id, writes, user_attrs={key: value}):
            super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        writes = [sql.system_attr(trial_id, key, value)]
        if not self._change(trial_id, writes, system_attrs={key: value}):
            super().set_trial_system_attr(trial_id, key, value)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        now = datetime.now()
        if state == TrialState.RUNNING:
            writes: list[Write] = [(sql.START, {"id": trial_id, "at": sql.utc()})]
            fields: dict[str, Any] = {"datetime_start": now}
        else:
            writes = sql.end(trial_id, state, values)
            fields = {"values": values and [*values], "datetime_complete": now}
        if self._change(trial_id, writes, state=state, **fields):
            return True
        return super().set_trial_state_values(trial_id, state, values)


def _copied(trial: FrozenTrial) -> FrozenTrial:
    """Copies a trial, so that hyperparameters, reports and attributes may be added."""
    new = copy.copy(trial)
    for name in ("params", "distributions", "intermediate_values", "user_attrs", "system_attrs"):
        setattr(new, name, dict(getattr(trial, name)))
    return new


class OtherTrials:
    """Caches the trials of a study that fill slots, other than the worker's own.

    A trial that has ended is read once, without the attributes that only people look at. Trials
    that have not ended are read again only for each call that needs them: with
    1,000 workers the median pruner would otherwise read 1,000 running trials after each epoch, and
    use none of them.

    With `as_pruned`, paused trials are returned as pruned ones; see `paused_as_pruned`. Unless they
    are read as of one moment (`whole`), one that ends meanwhile may be missing.
    """

    def __init__(
        self, storage: RetryingStorage, study_id: int, *, as_pruned: bool, whole: bool = False
    ) -> None:
        self._storage, self._study_id, self._as_pruned = storage, study_id, as_pruned
        self._whole = whole
        self._lock = threading.RLock()
        self._latest = -1  # id of the latest trial that was seen
        self._open: set[int] = set()  # ids of those that had not ended
        # Those that have ended, in some states, by number: without a sort for each call.
        self._ended: dict[tuple[TrialState, ...], list[FrozenTrial]] = {ENDED: []}
        self._running: list[FrozenTrial] | None = None  # those that have not ended
        self._fresh = False

    def forget_changes(self) -> None:
        """Makes the next read go to the database; later ones use its result until the next call."""
        self._fresh, self._running = False, None

    def trials(self, own: FrozenTrial, states: Container[TrialState] | None) -> list[FrozenTrial]:
        """Lists the trials in some states, or in all, by number, the worker's own included."""
        settled = states is not None and not any(
            state in states for state in TrialState if state not in SETTLED
        )
        with self._lock:
            self._look(own._trial_id, running=not settled)
            wanted = tuple(state for state in ENDED if states is None or state in states)
            if wanted not in self._ended:
                self._ended[wanted] = [t for t in self._ended[ENDED] if t.state in wanted]
            trials = [*self._ended[wanted]]
            for trial in [own] if settled else [*(self._running or ()), own]:
                if states is None or trial.state in states:
                    insort(trials, trial, key=NUMBER)
        return trials

    def _look(self, own: int, *, running: bool) -> None:
        """Reads how the other trials have changed since `forget_changes`."""
        if self._fresh and (self._running is not None or not running):
            return

        opened = json.dumps([*self._open - {own}])
        asked = {"study": self._study_id, "after": self._latest, "ids": opened}

        def look(connection: Connection) -> tuple[set[int], list[FrozenTrial], list[FrozenTrial]]:
            heads = [] if self._fresh else connection.execute(sql.CHANGED, asked).all()
            ended = [head for head in heads if head.state.is_finished() and head.trial_id != own]
            begun = {own, *self._open, *(head.trial_id for head in heads)}
            left = begun - {head.trial_id for head in ended}
            ids = json.dumps([*left - {own}] if running else [])
            moving = connection.execute(sql.NAMED, {"ids": ids}).all() if running else []
            return left, sql.read_light(connection, ended), sql.read_light(connection, moving)

        self._open, ended, moving = self._storage.read(look, whole=self._whole)
        self._latest = max(self._latest, *self._open, *(trial._trial_id for trial in ended))
        for trial in filter(sql.fills_slot, ended):
            for states, trials in self._ended.items():
                if trial.state in states:
                    insort(trials, trial, key=NUMBER)
        self._fresh = True
        if running:
            # One may have ended between the two statements; it counts so the next time.
            counted = [t for t in moving if sql.fills_slot(t) and t.state in sql.UNFINISHED]
            self._running = [paused_as_pruned(t) for t in counted] if self._as_pruned else counted


def paused_as_pruned(trial: FrozenTrial) -> FrozenTrial:
    """Returns a trial as samplers and pruners see it: a paused one as pruned at its rung.

    Optuna knows no paused trials. TPE would learn nothing from a running one: it models ended
    trials, and takes running ones for bad ones to keep parallel workers apart (constant liar).
    """
    if trial.state != TrialState.RUNNING or trial.user_attrs.get(PAUSED) is None:
        return trial
    shown = copy.copy(trial)
    shown.state = TrialState.PRUNED
    last = None if trial.last_step is None else trial.intermediate_values[trial.last_step]
    # As Optuna ends a pruned trial: with its last report, unless that is not a number.
    shown.values = None if last is None or math.isnan(last) else [last]
    return shown
