"""Replaces failed trials by new ones in their slots, so that the budget stays N trials.

A trial that is replaced is set aside: it is kept, but no longer counted.
"""

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from studyloom.space.tree import Configuration
from studyloom.storage import sql
from studyloom.storage.attributes import BASELINE, ENQUEUED, PROPOSED, Attributes
from studyloom.storage.command_record import reopen_command
from studyloom.storage.database import Connection
from studyloom.storage.failures import TEACHING_KINDS, count_failures
from studyloom.storage.ledger import Ledger, SlotEntry
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord

# The attributes that a new trial takes over from the failed one.
KEYS_TAKEN_OVER = (BASELINE, ENQUEUED, PROPOSED)


def redo_failed(stored: StoredStudy) -> list[int]:
    """Opens the slots of all failed trials for new trials of the same configurations.

    A trial that failed before it had a configuration is replaced by one that the sampler chooses.

    Returns:
        The numbers of the failed trials.
    """
    ledger = stored.ledger

    def replace_failed(connection: Connection) -> list[int]:
        """Replaces the failed trials in one transaction; returns their numbers."""
        failed_trials = _select_failed(stored.lock_trials(connection))
        for trial in failed_trials:
            attributes_taken_over = {}
            for key in KEYS_TAKEN_OVER:
                if key in trial.user_attrs:
                    attributes_taken_over[key] = trial.user_attrs[key]
            replace_trial(ledger, connection, trial, attributes_taken_over)
        return [trial.number for trial in failed_trials]

    numbers = ledger.storage.execute(replace_failed)
    stored.storage.forget(ledger.study_id)  # so that the trials are read again
    if numbers:
        reopen_command(stored)
    return numbers


def replace_trial(
    ledger: Ledger, connection: Connection, trial: FrozenTrial, attributes: Attributes
) -> None:
    """Takes a trial out of its slot, and opens the slot for a new trial of its configuration.

    The former trial is kept, but no longer counted.

    Args:
        ledger: The ledger of its study.
        connection: In a transaction that has locked the study.
        trial: The trial to replace.
        attributes: The attributes of the new trial.
    """
    slot = TrialRecord(trial).slot
    assert slot is not None  # only trials with slots are counted
    sql.write(connection, [sql.Write(sql.SET_ASIDE, {"id": trial._trial_id})])
    params = trial.system_attrs.get(sql.FIXED_PARAMS, {}) | trial.params
    if params or attributes:
        configuration = Configuration(params=params, distributions=trial.distributions)
        ledger.queue(connection, slot, configuration, attributes)
    else:
        # Without a configuration a worker makes the new trial when it claims the slot.
        ledger.set_slots(connection, [SlotEntry(slot, "free", trial_id=None)])


def missing_baseline(stored: StoredStudy) -> str | None:
    """Returns how to repeat a baseline that failed by a bug; None if there is nothing to do.

    A training that diverged, or a network that was too large, would fail again.
    """
    failed_trials = _select_failed(stored.trials())
    baselines = [trial for trial in failed_trials if TrialRecord(trial).is_baseline]
    for failure in count_failures(baselines):
        would_fail_again = failure.kind in TEACHING_KINDS  # its configuration is the cause
        if not would_fail_again:
            return (
                f"the baseline, trial {failure.trials[0].number}, has failed "
                f"({failure.first_reason}), so that nothing is compared with it; once the cause is "
                "fixed, studyloom redo --failed opens its slot again"
            )
    return None


def _select_failed(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if TrialRecord(trial).outcome == "failed"]
