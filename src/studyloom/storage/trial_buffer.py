"""The trial buffer: Optuna's storage for a worker, which writes its trial in few transactions.

Optuna commits each hyperparameter, report and attribute separately, and reads all running trials
for each call of a sampler or pruner. With the buffer, samplers, pruners and `optuna.Trial` work as
ever, but changes of the worker's own trial stay in memory until the worker writes them together,
and the worker decides when the other trials of the study are read again.
"""

import copy
import json
import math
import threading
from bisect import insort
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection

from studyloom.storage import sql
from studyloom.storage.attributes import PAUSED, Attributes
from studyloom.storage.database import RetryingStorage
from studyloom.storage.optuna_internals import CachedStorage
from studyloom.storage.retry import Retry
from studyloom.storage.sql import Write

FINISHED = tuple(state for state in TrialState if state.is_finished())
# The states in which an unfinished trial may be returned; a paused one may be returned as pruned.
OF_UNFINISHED = (TrialState.RUNNING, TrialState.WAITING, TrialState.PRUNED)
BY_NUMBER = attrgetter("number")


class TrialBuffer(CachedStorage):
    """Optuna's storage with the finished trials cached, for one process with one trial at a time.

    While a trial is loaded, its changes stay here until they are written, and the other trials that
    fill slots are as they were when they were first read since the last refresh. Without a loaded
    trial it is Optuna's storage as shipped: each call reads the database.

    Attributes:
        reads_snapshots: Whether other trials are read as of one moment.
    """

    def __init__(self, backend: RetryingStorage) -> None:
        super().__init__(backend)
        self._backend: RetryingStorage = backend
        self.reads_snapshots = False
        # The worker's own trial, its study, and its changes that are not stored yet.
        self._own_trial: FrozenTrial | None = None
        self._study_id = -1
        self._pending: list[Write] = []
        self._written_count = 0  # how many pending changes the last `write` has written
        self._created: FrozenTrial | None = None  # a trial that `create` made for the next `load`
        self._others: OtherTrials | None = None

    def close(self) -> None:
        """Closes all connections to the database."""
        self._backend.close()

    @property
    def retry(self) -> Retry:
        """Returns the object that repeats failed calls, and knows whether one is waiting."""
        return self._backend.retry

    def create(self, connection: Connection, study_id: int, user_attrs: Attributes) -> int:
        """Creates a running trial, which `load` then need not read, and returns its id."""
        self._created = sql.insert_trial(connection, study_id, user_attrs)
        return self._created._trial_id

    def load(self, study_id: int, trial_id: int) -> FrozenTrial:
        """Makes a trial the worker's own, whose changes stay in memory until `write`.

        A trial that `create` has just made is not read again.

        Returns:
            A copy of the trial.

        Raises:
            TrialDeleted: It does not exist.
        """
        self.clear()
        created_trial = self._created
        self._created = None
        if created_trial is not None and created_trial._trial_id == trial_id:
            trial = created_trial
        else:
            try:
                trial = self._backend.get_trial(trial_id)
            except KeyError:
                raise sql.trial_deleted() from None
        # Optuna has no state for a paused trial, so samplers see it as pruned. They do not if there
        # are several objectives: TPE then raises an exception at a pruned trial.
        paused_as_pruned = len(self.get_study_directions(study_id)) == 1
        with self._lock:
            # `_others` caches the other trials of one study; None before the first trial is loaded,
            # and after `forget`.
            if self._others is None or self._study_id != study_id:
                self._others = OtherTrials(
                    self._backend,
                    study_id,
                    paused_as_pruned=paused_as_pruned,
                    snapshot=self.reads_snapshots,
                )
            self._own_trial = trial
            self._study_id = study_id
        self.refresh(study_id)
        return _copy_trial(trial)

    def refresh(self, study_id: int) -> None:
        """Makes the next read of the study's other trials go to the database."""
        if self._others is not None and study_id == self._study_id:
            self._others.forget_changes()

    def read_complete(self, study_id: int) -> list[FrozenTrial]:
        """Reads all trials with all attributes from the database, also while a trial is loaded."""
        return super().get_all_trials(study_id, deepcopy=False)

    def read_committed(self, trial_id: int) -> FrozenTrial:
        """Reads a trial from the database, without the changes that are not stored yet."""
        return self._backend.get_trial(trial_id)

    def write(self, connection: Connection) -> None:
        """Writes the pending changes of the worker's own trial in the caller's transaction.

        They stay pending until `mark_written`, which the caller calls after the commit.
        """
        with self._lock:
            writes = list(self._pending)
            self._written_count = len(writes)
        sql.write(connection, writes)

    def mark_written(self) -> None:
        """Drops the pending changes that the last `write` has stored; later ones stay."""
        with self._lock:
            self._pending = self._pending[self._written_count :]
            self._written_count = 0

    def clear(self) -> None:
        """Drops the worker's own trial, and those of its changes that were not written."""
        with self._lock:
            self._own_trial = None
            self._pending = []

    def forget(self, study_id: int) -> None:
        """Drops the cached trials of a study, after ended trials have lost their slots."""
        with self._lock:
            self._studies.pop(study_id, None)
            self._others = None

    def _change_own(
        self,
        trial_id: int,
        writes: Sequence[Write],
        new_items: Mapping[str, dict[Any, Any]],
        **new_values: Any,
    ) -> bool:
        """Changes a trial in memory if it is the worker's own; `write` stores the change later.

        Args:
            writes: The rows of the change.
            new_items: Items to add to dicts of the trial, such as `params`, by the dict's name.
            new_values: New values of other attributes of the trial, such as `state`.

        Returns:
            False if the trial is not the worker's own; then nothing has changed.
        """
        with self._lock:
            if self._own_trial is None or self._own_trial._trial_id != trial_id:
                return False
            # The change is made in a copy, since a thread may be reading the trial.
            changed_trial = copy.copy(self._own_trial)
            for name, items in new_items.items():
                setattr(changed_trial, name, getattr(changed_trial, name) | items)
            for name, value in new_values.items():
                setattr(changed_trial, name, value)
            self._own_trial = changed_trial
            self._pending += writes
            return True

    # Methods of Optuna's storage

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Returns the trials of a study: while one is loaded, as the buffer has them."""
        own_trial = self._own_trial
        other_trials = self._others
        if own_trial is None or other_trials is None or study_id != self._study_id:
            return super().get_all_trials(study_id, deepcopy, states)
        trials = other_trials.list_with_own(own_trial, states)
        if deepcopy:
            return copy.deepcopy(trials)
        return trials

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Returns a trial; the worker's own with the changes that are not stored yet."""
        with self._lock:
            if self._own_trial is not None and self._own_trial._trial_id == trial_id:
                return _copy_trial(self._own_trial)
        return super().get_trial(trial_id)

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """Sets a hyperparameter: in memory for the worker's own trial, else in the database."""
        value = distribution.to_external_repr(param_value_internal)
        new_items = {"params": {param_name: value}, "distributions": {param_name: distribution}}
        writes = [sql.param_write(trial_id, param_name, param_value_internal, distribution)]
        is_own = self._change_own(trial_id, writes, new_items)
        if not is_own:
            super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Adds a report: in memory for the worker's own trial, else in the database."""
        new_items = {"intermediate_values": {step: intermediate_value}}
        writes = [sql.report_write(trial_id, step, intermediate_value)]
        is_own = self._change_own(trial_id, writes, new_items)
        if not is_own:
            super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: object) -> None:
        """Sets an attribute: in memory for the worker's own trial, else in the database."""
        writes = [sql.user_attr_write(trial_id, key, value)]
        is_own = self._change_own(trial_id, writes, {"user_attrs": {key: value}})
        if not is_own:
            super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Sets an attribute: in memory for the worker's own trial, else in the database."""
        writes = [sql.system_attr_write(trial_id, key, value)]
        is_own = self._change_own(trial_id, writes, {"system_attrs": {key: value}})
        if not is_own:
            super().set_trial_system_attr(trial_id, key, value)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Starts or ends a trial: in memory for the worker's own, else in the database."""
        new_values: dict[str, Any] = {"state": state}
        if state == TrialState.RUNNING:
            writes = [sql.start_write(trial_id)]
            new_values["datetime_start"] = datetime.now()
        else:
            writes = sql.end_writes(trial_id, state, values)
            new_values["datetime_complete"] = datetime.now()
            new_values["values"] = None
            if values:
                new_values["values"] = list(values)
        is_own = self._change_own(trial_id, writes, new_items={}, **new_values)
        if is_own:
            return True
        return super().set_trial_state_values(trial_id, state, values)


def _copy_trial(trial: FrozenTrial) -> FrozenTrial:
    """Copies a trial, so that hyperparameters, reports and attributes may be added."""
    copied = copy.copy(trial)
    for name in ("params", "distributions", "intermediate_values", "user_attrs", "system_attrs"):
        setattr(copied, name, dict(getattr(trial, name)))
    return copied


@dataclass(frozen=True)
class Changes:
    """The result of one read of the other trials of a study.

    Attributes:
        finished: The trials that have ended since the previous read.
        unfinished: The trials that have not ended, if they were requested.
        unfinished_ids: The ids of all trials that have not ended, the worker's own included.
    """

    finished: list[FrozenTrial]
    unfinished: list[FrozenTrial]
    unfinished_ids: set[int]


class OtherTrials:
    """Caches the trials of a study that fill slots, other than the worker's own.

    A trial that has ended is read once, without the attributes that only people look at. Trials
    that have not ended are read again only for each call that needs them: with 1,000 workers the
    median pruner would otherwise read 1,000 running trials after each epoch, and use none of them.

    With `paused_as_pruned`, paused trials are returned as pruned ones; see `as_pruned`. Unless the
    trials are read as of one moment (`snapshot`), one that ends meanwhile may be missing.
    """

    def __init__(
        self,
        storage: RetryingStorage,
        study_id: int,
        *,
        paused_as_pruned: bool,
        snapshot: bool = False,
    ) -> None:
        self._storage = storage
        self._study_id = study_id
        self._paused_as_pruned = paused_as_pruned
        self._snapshot = snapshot
        self._lock = threading.RLock()
        self._largest_id = -1  # of the trials that were read
        # The ids of the trials that had not ended when they were last read.
        self._unfinished_ids: set[int] = set()
        # The ended trials in some states, by number: a list for each requested combination of
        # states, so that a call need not filter and sort.
        self._finished: dict[tuple[TrialState, ...], list[FrozenTrial]] = {FINISHED: []}
        # Since `forget_changes`: whether ended trials were read, and the unfinished ones if read.
        self._has_read_finished = False
        self._unfinished: list[FrozenTrial] | None = None

    def forget_changes(self) -> None:
        """Makes the next read go to the database; later ones use its result until the next call."""
        self._has_read_finished = False
        self._unfinished = None

    def list_with_own(
        self, own_trial: FrozenTrial, states: Container[TrialState] | None
    ) -> list[FrozenTrial]:
        """Lists the trials in some states, or in all, by number, the worker's own included."""
        with_unfinished = states is None or any(state in states for state in OF_UNFINISHED)
        with self._lock:
            self._update(own_trial._trial_id, with_unfinished=with_unfinished)
            # The ended trials are sorted already; the other ones are inserted at their places.
            trials = list(self._list_finished(states))
            trials_to_insert = [own_trial]
            if with_unfinished and self._unfinished is not None:
                trials_to_insert += self._unfinished
            for trial in trials_to_insert:
                if states is None or trial.state in states:
                    insort(trials, trial, key=BY_NUMBER)
        return trials

    def _list_finished(self, states: Container[TrialState] | None) -> list[FrozenTrial]:
        """Returns the cached list of the ended trials in some states, or in all."""
        key = tuple(state for state in FINISHED if states is None or state in states)
        if key not in self._finished:
            all_finished = self._finished[FINISHED]
            self._finished[key] = [trial for trial in all_finished if trial.state in key]
        return self._finished[key]

    def _update(self, own_id: int, *, with_unfinished: bool) -> None:
        """Reads the trials that have changed, unless they were read since `forget_changes`.

        That method is called when the worker loads a trial, and before a pruner decides on it. In
        between, the ended trials are read once, and the unfinished ones once if they are needed.

        Args:
            own_id: The id of the worker's own trial.
            with_unfinished: Whether the unfinished trials are needed too.
        """
        needs_unfinished = with_unfinished and self._unfinished is None
        if self._has_read_finished and not needs_unfinished:
            return
        changes = self._storage.read(
            lambda connection: self._read_changes(connection, own_id, with_unfinished),
            snapshot=self._snapshot,
        )
        self._unfinished_ids = changes.unfinished_ids
        finished_ids = {trial._trial_id for trial in changes.finished}
        self._largest_id = max(self._largest_id, *self._unfinished_ids, *finished_ids)
        for trial in changes.finished:
            if sql.fills_slot(trial):  # the trials of other programs are not counted
                self._add_finished(trial)
        self._has_read_finished = True
        if with_unfinished:
            self._unfinished = self._select_unfinished(changes.unfinished)

    def _read_changes(self, connection: Connection, own_id: int, with_unfinished: bool) -> Changes:
        """Reads the trials that have ended since the previous read, and which have not ended.

        The ids of trials ascend. So the trials that may have ended since are those above the
        largest id that was read, and those that had not ended then.

        Args:
            connection: In a transaction.
            own_id: The id of the worker's own trial, which counts as not ended and is not read.
            with_unfinished: Whether to read the trials that have not ended too.
        """
        unfinished_ids = {own_id, *self._unfinished_ids}
        finished_rows = []
        if not self._has_read_finished:  # set once they were read, until `forget_changes`
            # CHANGED_ROWS selects all trials after `after`, and of `ids` those that have ended.
            parameters = {
                "study": self._study_id,
                "after": self._largest_id,
                "ids": json.dumps(list(self._unfinished_ids - {own_id})),
            }
            for row in connection.execute(sql.CHANGED_ROWS, parameters):
                is_own = row.trial_id == own_id
                if row.state.is_finished() and not is_own:
                    finished_rows.append(row)
                    unfinished_ids.discard(row.trial_id)
                else:
                    unfinished_ids.add(row.trial_id)
        unfinished_rows: sql.TrialRows = []
        if with_unfinished:
            ids = json.dumps(list(unfinished_ids - {own_id}))
            unfinished_rows = connection.execute(sql.ROWS_BY_ID, {"ids": ids}).all()
        return Changes(
            finished=sql.read_light(connection, finished_rows),
            unfinished=sql.read_light(connection, unfinished_rows),
            unfinished_ids=unfinished_ids,
        )

    def _add_finished(self, trial: FrozenTrial) -> None:
        """Adds a trial to the cached lists in which its state belongs."""
        for states, trials in self._finished.items():
            if trial.state in states:
                insort(trials, trial, key=BY_NUMBER)

    def _select_unfinished(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Selects the unfinished trials of the budget, and returns them as samplers see them.

        `_read_changes` reads first the trials that have ended, and then those that have not. A
        trial that ended between these two statements is left out; the next read finds it among the
        ended ones.
        """
        unfinished = []
        for trial in trials:
            if sql.fills_slot(trial) and trial.state in sql.UNFINISHED:
                if self._paused_as_pruned:
                    trial = as_pruned(trial)
                unfinished.append(trial)
        return unfinished


def as_pruned(trial: FrozenTrial) -> FrozenTrial:
    """Returns a trial as samplers and pruners see it: a paused one as pruned where it waits.

    Optuna's `TrialState` has no state for a paused trial, which is stored as running. TPE would
    learn nothing from a running trial: it models ended ones, and takes running ones for bad ones to
    keep parallel workers apart (constant liar).
    """
    is_paused = trial.state == TrialState.RUNNING and trial.user_attrs.get(PAUSED) is not None
    if not is_paused:
        return trial
    pruned = copy.copy(trial)
    pruned.state = TrialState.PRUNED
    # As in Optuna, the value of a pruned trial is its last report, unless that is NaN.
    pruned.values = None
    if trial.last_step is not None:
        last_value = trial.intermediate_values[trial.last_step]
        if not math.isnan(last_value):
            pruned.values = [last_value]
    return pruned
