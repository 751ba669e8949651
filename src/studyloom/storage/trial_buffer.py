"""The trial buffer: a worker's own trial, whose changes are written to the database together.

Optuna commits each parameter, report and attribute alone, and reads all running trials again for
each question of a sampler or pruner. With the buffer, samplers, pruners and `optuna.Trial` work as
ever, and the worker decides when the others' trials are read and when its own is written.
"""

import copy
from collections.abc import Callable, Container, Mapping, Sequence
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection

from studyloom.storage import sql
from studyloom.storage.attributes import SLOT
from studyloom.storage.database import RetryingStorage
from studyloom.storage.optuna_internals import CachedStorage
from studyloom.storage.others import Others
from studyloom.storage.sql import Write


class TrialBuffer(CachedStorage):
    """Optuna's storage with the finished trials cached, for one process with one trial at a time.

    While a trial is loaded, its changes stay here until they are written, and the other trials are
    as they were when they were first asked for since the last refresh. Without one it is Optuna's
    storage as shipped: each call asks the database.

    Args:
        backend: The database.
    """

    def __init__(self, backend: RetryingStorage) -> None:
        super().__init__(backend)
        self._backend: RetryingStorage = backend
        self._own: FrozenTrial | None = None
        self._study_id = -1  # of that trial
        self._made: FrozenTrial | None = None
        self._writes: list[Write] = []
        self._others: dict[bool, Others] = {}  # by whether they fill slots

    def close(self) -> None:
        """Closes all connections to the database."""
        self._backend.close()

    def is_away(self) -> bool:
        """Reports whether calls wait for the database just now."""
        return self._backend.retry.away

    def wait_less(self, stopping: Callable[[], bool]) -> None:
        """Lets no call wait longer than STOP_DEADLINE seconds once `stopping` returns True."""
        self._backend.retry.stopping = stopping

    @property
    def stopping(self) -> Callable[[], bool]:
        """The function that was given to `wait_less`."""
        return self._backend.retry.stopping

    def make(self, connection: Connection, study_id: int, user_attrs: Mapping[str, Any]) -> int:
        """Creates a running trial, which `load` then need not read.

        Args:
            connection: In a transaction that has called `lock_study`.
            study_id: The study.
            user_attrs: User attributes of the trial.

        Returns:
            The trial's id.
        """
        made = sql.insert(connection, study_id, user_attrs)
        self._made = FrozenTrial(
            number=made.number,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=sql.local(made.start),
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={**user_attrs},
            system_attrs={},
            intermediate_values={},
            trial_id=made.trial_id,
        )
        return made.trial_id

    def load(self, study_id: int, trial_id: int) -> FrozenTrial:
        """Makes a trial of a study the worker's own, and reads it unless it was just made.

        Returns:
            A copy of that trial.

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
        slots_only = SLOT in own.user_attrs
        # TPE raises an exception at a pruned trial of several objectives.
        judging = slots_only and len(self.get_study_directions(study_id)) == 1
        with self._lock:
            if self._study_id != study_id:
                self._others = {}
            self._own, self._study_id = own, study_id
            if slots_only not in self._others:
                self._others[slots_only] = Others(
                    self._backend, study_id, slots_only=slots_only, judging=judging
                )
        self.refresh(study_id)
        return _copied(own)

    def refresh(self, study_id: int) -> None:
        """Has the next question about the other trials of a study see what has become of them."""
        if self._own is not None and study_id == self._study_id:
            self._others[SLOT in self._own.user_attrs].forget_changes()

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

    def only_report(self) -> dict[str, Any] | None:
        """Returns the row of a report if that is all there is to write, for a trial of a slot."""
        if self._own is None or len(self._writes) != 1 or SLOT not in self._own.user_attrs:
            return None
        ((statement, values),) = self._writes
        return values if statement is sql.REPORT else None

    def mark_written(self) -> None:
        """Forgets the changes, since they are in the database."""
        self._writes = []

    def clear(self) -> None:
        """Gives up the worker's own trial, and those of its changes that were not written."""
        with self._lock:
            self._own, self._writes = None, []

    def forget(self, study_id: int) -> None:
        """Forgets the cached trials of a study: ended ones have been set aside or renumbered."""
        with self._lock:
            self._studies.pop(study_id, None)
            self._others.clear()

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
            self._own = changed
            self._writes += writes
            return True

    # Methods of Optuna's storage. Reads answer from the buffer while a trial is loaded, and ask the
    # database otherwise; writes to the worker's own trial stay here.

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        own = self._own
        if own is None or study_id != self._study_id:
            return super().get_all_trials(study_id, deepcopy, states)
        trials = self._others[SLOT in own.user_attrs].trials(own, states)
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


def _copied(trial: FrozenTrial) -> FrozenTrial:
    """Copies a trial, so that parameters, reports and attributes may be added."""
    new = copy.copy(trial)
    for name in ("params", "distributions", "intermediate_values", "user_attrs", "system_attrs"):
        setattr(new, name, dict(getattr(trial, name)))
    return new
