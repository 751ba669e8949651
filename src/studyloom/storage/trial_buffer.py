"""The trial buffer: a worker's own trial, whose changes are written to the database together.

Optuna commits each parameter, report and attribute alone, and reads all running trials again for
each question of a sampler or pruner. With the buffer, samplers, pruners and `optuna.Trial` work as
ever, and the worker decides when the others' trials are read and when its own is written.
"""

import copy
import math
from collections.abc import Callable, Container, Sequence
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection

from studyloom.storage import sql
from studyloom.storage.attributes import PAUSED, SLOT
from studyloom.storage.database import RetryingStorage
from studyloom.storage.optuna_internals import CachedStorage
from studyloom.storage.records.heads import is_slot
from studyloom.storage.sql import Write


class TrialBuffer(CachedStorage):
    """Optuna's storage with the finished trials cached, for one process with one trial at a time.

    While a trial is loaded, its changes stay here until they are written, and the other trials are
    as they were at the last refresh. Without one it is Optuna's storage as shipped: each call asks
    the database.

    Args:
        backend: The database.
    """

    def __init__(self, backend: RetryingStorage) -> None:
        super().__init__(backend)
        self._backend: RetryingStorage = backend
        self._own: FrozenTrial | None = None
        self._writes: list[Write] = []

    def close(self) -> None:
        """Closes all connections to the database."""
        self._backend.engine.dispose()

    def is_away(self) -> bool:
        """Reports whether calls wait for the database just now."""
        return self._backend.is_away()

    def wait_less(self, stopping: Callable[[], bool]) -> None:
        """Lets no call wait longer than STOP_DEADLINE seconds once `stopping` returns True."""
        self._backend.wait_less(stopping)

    @property
    def stopping(self) -> Callable[[], bool]:
        """The function that was given to `wait_less`."""
        return self._backend.retry.stopping

    def load(self, study_id: int, trial_id: int) -> FrozenTrial:
        """Reads all trials of a study and makes one of them the worker's own.

        Returns:
            A copy of that trial.

        Raises:
            TrialDeleted: It does not exist.
        """
        self.clear()
        self.refresh(study_id)
        with self._lock:
            _, number = self._trial_id_to_study_id_and_number.get(trial_id, (study_id, -1))
            own = self._studies[study_id].trials.get(number)
        if own is None or own._trial_id != trial_id or own.state.is_finished():
            # SQLite gives the id of a deleted trial to the next one, and Optuna its number.
            try:
                own = self._backend.get_trial(trial_id)
            except KeyError:
                raise sql.trial_deleted() from None
        with self._lock:
            self._trial_id_to_study_id_and_number[trial_id] = study_id, own.number
            self._replace_own(own)
            return _copied(own)

    def refresh(self, study_id: int) -> None:
        """Reads what has become of the other trials: in one statement if nothing has changed."""
        if self._own is not None:
            self._backend.skipped_trial_id = self._own._trial_id
        self._read_trials_from_remote_storage(study_id)
        with self._lock:
            if self._own is not None:
                self._replace_own(self._own)

    def write(self, connection: Connection) -> None:
        """Writes the changes of the worker's own trial. It may run twice.

        Args:
            connection: In a writing transaction of the caller, who calls `mark_written` after the
                commit.

        Raises:
            UpdateFinishedTrialError: Another worker has ended the trial.
            TrialDeleted: It no longer exists.
        """
        assert self._own is not None
        sql.check_running(connection, self._own._trial_id, self._own.user_attrs.get(SLOT))
        sql.write(connection, self._writes)

    def mark_written(self) -> None:
        """Forgets the changes, since they are in the database."""
        self._writes = []

    def clear(self) -> None:
        """Gives up the worker's own trial, and those of its changes that were not written."""
        with self._lock:
            self._own, self._writes, self._backend.skipped_trial_id = None, [], -1

    def forget(self, study_id: int) -> None:
        """Forgets the cached trials of a study: ended ones have been set aside or renumbered."""
        with self._lock:
            self._studies.pop(study_id, None)

    def _replace_own(self, trial: FrozenTrial) -> None:
        study_id, number = self._trial_id_to_study_id_and_number[trial._trial_id]
        self._own = self._studies[study_id].trials[number] = trial

    def _change(self, trial_id: int, writes: Sequence[Write], **fields: Any) -> bool:
        """Changes the worker's own trial, in a copy: a thread may be reading the previous one.

        Args:
            trial_id: The trial to change.
            writes: What the change is in the database.
            fields: New values by attribute; a dict is merged into the present one.

        Returns:
            False if that is not the worker's own trial; then nothing has changed.
        """
        with self._lock:
            if self._own is None or self._own._trial_id != trial_id:
                return False
            changed = copy.copy(self._own)
            for name, value in fields.items():
                merged = getattr(changed, name) | value if isinstance(value, dict) else value
                setattr(changed, name, merged)
            self._replace_own(changed)
            self._writes += writes
            return True

    # Methods of Optuna's storage. Reads answer from the buffer while a trial is loaded, and ask the
    # database otherwise; writes to the worker's own trial stay here.

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if self._own is None:
            self._read_trials_from_remote_storage(study_id)
        with self._lock:
            # Almost in order already: 0.1 ms for 5 000.
            by_number = sorted(self._studies[study_id].trials.items())
            # Samplers and pruners compare a trial of a slot with its like only: what other programs
            # have added may have any parameters and values.
            every = self._own is None or SLOT not in self._own.user_attrs
        # TPE raises an exception at a pruned trial of several objectives.
        judging = not every and len(self.get_study_directions(study_id)) == 1
        seen = (
            _as_judged(trial) if judging and trial.state == TrialState.RUNNING else trial
            for _, trial in by_number
        )
        trials = [
            trial
            for trial in seen
            if (states is None or trial.state in states)
            and (every or is_slot(trial.user_attrs.get(SLOT)))
        ]
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
            writes = [sql.start(trial_id)]
            changed = self._change(trial_id, writes, state=state, datetime_start=now)
        else:
            writes = sql.end(trial_id, state, values)
            stored = None if values is None else [*values]
            changed = self._change(
                trial_id, writes, state=state, values=stored, datetime_complete=now
            )
        return changed or super().set_trial_state_values(trial_id, state, values)


def _as_judged(trial: FrozenTrial) -> FrozenTrial:
    """Returns a running trial as samplers and pruners see it: a paused one as pruned at its rung.

    Optuna knows no paused trials. As a running one it would teach TPE nothing, which counts those
    that have ended, and takes running ones for bad ones where workers keep away from each other.
    """
    if trial.user_attrs.get(PAUSED) is None:
        return trial
    judged = copy.copy(trial)
    judged.state = TrialState.PRUNED
    last = None if trial.last_step is None else trial.intermediate_values[trial.last_step]
    # As Optuna ends a pruned trial: with its last report, unless that is not a number.
    judged.values = None if last is None or math.isnan(last) else [last]
    return judged


def _copied(trial: FrozenTrial) -> FrozenTrial:
    """Copies a trial, so that parameters, reports and attributes may be added."""
    new = copy.copy(trial)
    for name in ("params", "distributions", "intermediate_values", "user_attrs", "system_attrs"):
        setattr(new, name, dict(getattr(trial, name)))
    return new
