"""Stops one trial: from a command, Python, the report in a browser, or an agent.

A trial that a worker trains ends as pruned at its next report. The request is stored with the
trial, so that the next worker ends the trial if this one dies. A trial without a worker, such as
one that waits for its promotion, ends in the transaction of the request. Its slot, a row of the
budget, is done then: no other trial takes its place.
"""

import copy
import math
from collections.abc import Sequence
from typing import Literal

from optuna.trial import FrozenTrial, TrialState

from studyloom.decisions.extrapolation import mark_worse_than_complete
from studyloom.errors import ConfigError
from studyloom.storage import sql
from studyloom.storage.attributes import PAUSED, STOP_REQUESTED
from studyloom.storage.call_state import call_state
from studyloom.storage.database import Connection
from studyloom.storage.ledger import SlotEntry
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import format_ranges

# How a request to stop a trial was met: the trial has ended, or ends at its next report.
StoppedTrial = Literal["ended", "requested"]


def stop_trial(stored: StoredStudy, number: int) -> StoppedTrial:
    """Stops a trial, which ends as pruned at its last report.

    Args:
        stored: The study; its search, if it has several stages.
        number: The number of the trial.

    Returns:
        "requested" if a worker trains the trial, and ends it at its next report; else "ended".

    Raises:
        ConfigError: There is no trial of this number, or it has ended.
    """
    if not stored.is_studylooms:
        raise ConfigError(f"{stored.name}: another program runs this study; stop its trial there")
    stored.ledger.record_gone()  # a worker on this host that has died trains nothing
    return _stop(stored, number)


def read_trial(stored: StoredStudy, number: int) -> FrozenTrial:
    """Reads a trial of the budget; raises ConfigError if there is none of this number."""
    return _find_trial(stored.trials(), number)


def end_released_trial(stored: StoredStudy, number: int) -> None:
    """Ends a trial that its worker has released, and whose end was requested just before.

    Another worker may have claimed or ended it meanwhile: then nothing is left to do here.
    """
    try:
        _stop(stored, number)
    except ConfigError:  # it has ended
        return


def _stop(stored: StoredStudy, number: int) -> StoppedTrial:
    """Ends a trial, or stores with it that its worker is to end it."""
    ledger = stored.ledger

    def stop(connection: Connection) -> StoppedTrial:
        """Ends the trial, or stores the request, in one transaction."""
        trial = _find_trial(stored.lock_trials(connection), number)
        slot = TrialRecord(trial).slot
        assert slot is not None  # `lock_trials` returns the trials that fill slots
        state = ledger.lock_slot(connection, slot)
        if state == "done" or trial.state.is_finished():
            # The reply to an earlier try of this call may be what was lost.
            if call_state.may_be_committed and TrialRecord(trial).is_stop_requested:
                return "ended"
            raise _has_ended(trial)
        request = sql.user_attr_write(trial._trial_id, STOP_REQUESTED, True)
        sql.write(connection, [request])
        if state == "held":
            return "requested"
        sql.write(connection, _make_end(trial, has_one_objective=len(stored.objectives) == 1))
        ledger.set_slots(connection, [SlotEntry(slot, "done", trial._trial_id)])
        return "ended"

    outcome = ledger.storage.execute(stop)
    stored.storage.forget(ledger.study_id)  # so that the trials are read again
    return outcome


def _find_trial(trials: Sequence[FrozenTrial], number: int) -> FrozenTrial:
    """Returns the trial of a number; raises ConfigError if there is none."""
    for trial in trials:
        if trial.number == number:
            return trial
    if not trials:
        raise ConfigError(f"there is no trial {number}: no trial has begun")
    numbers = format_ranges([trial.number for trial in trials])
    raise ConfigError(f"there is no trial {number}; the trials are {numbers}")


def _has_ended(trial: FrozenTrial) -> ConfigError:
    outcome = TrialRecord(trial).outcome
    return ConfigError(f"trial {trial.number} has ended: it is {outcome}; there is nothing to stop")


def _make_end(trial: FrozenTrial, *, has_one_objective: bool) -> list[sql.Write]:
    """Makes the rows that end a trial as pruned, as `HeldTrial.end` does for a worker's trial.

    As in Optuna, the value of a pruned trial is its last report, unless that is NaN. With several
    objectives it has no values, and a constraint that it breaks, so that samplers can rank it.
    """
    writes = []
    if trial.state == TrialState.WAITING:
        writes.append(sql.start_write(trial._trial_id))  # a trial that has ended has begun
    values = None
    if has_one_objective and trial.last_step is not None:
        last_value = trial.intermediate_values[trial.last_step]
        if not math.isnan(last_value):
            values = [last_value]
    if not has_one_objective:
        marked_trial = copy.copy(trial)
        marked_trial.system_attrs = dict(trial.system_attrs)
        mark_worse_than_complete(trial, marked_trial.set_constraint)
        for key, value in marked_trial.system_attrs.items():
            if key not in trial.system_attrs:
                writes.append(sql.system_attr_write(trial._trial_id, key, value))
    if TrialRecord(trial).paused is not None:
        writes.append(sql.user_attr_write(trial._trial_id, PAUSED, None))
    writes += sql.end_writes(trial._trial_id, TrialState.PRUNED, values)
    return writes
