"""The queue of proposals: a configuration is checked, and put into the next free slot.

A slot is a row of the table that holds the budget: one for each trial. A slot is free while no
worker has claimed it and no configuration is queued in it.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.decisions.early_end import read_bounds, read_forecast
from studyloom.decisions.placement import place_configuration
from studyloom.decisions.warm_start import BASELINE_ATTRIBUTES
from studyloom.errors import ConfigError
from studyloom.extras.proposals.stored_space import read_space
from studyloom.space.drawing_configurations import identify
from studyloom.space.tree import Configuration
from studyloom.storage.attributes import PROPOSED
from studyloom.storage.database import Connection
from studyloom.storage.sql import FIXED_PARAMS
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import describe_kind, format_value, one_line, shorten_end
from studyloom.worker.stop_trial import read_trial

MAX_LENGTHS = {"by": 40, "why": 500, "configuration": 100_000}  # characters of each argument
MAX_ERRORS = 20  # of a proposal that are printed
MAX_ERROR_LENGTH = 300  # characters
MAX_REASON_LENGTH = 200
MAX_SHOWN_LENGTH = 80  # of an argument in an error


@dataclass(frozen=True)
class Proposal:
    """A configuration that has been checked, and what is stored with it.

    Args:
        configuration: its hyperparameters.
        mark: who proposes it and why, with an `id` that no other proposal has.
    """

    configuration: Configuration
    mark: Mapping[str, str]


def propose(
    stored: StoredStudy, configuration: str | Mapping[str, Any], by: str, why: str = ""
) -> int:
    """Checks a configuration as `study.enqueue` is checked, and puts it into the next free slot.

    Args:
        configuration: values by hyperparameter name, possibly nested; or such an object in JSON.
        by: who proposes it; a line of text.
        why: the reason for it; a line of text.

    Returns:
        The number of its trial.

    Raises:
        ConfigError: all that is wrong with it; or a trial has it already, or no slot is free.
    """
    errors = []
    if not by or not _is_valid_line("by", by):
        errors.append(_line_error("by", by))
    if not _is_valid_line("why", why):
        errors.append(_line_error("why", why))
    space = read_space(stored)
    try:
        placed = place_configuration(space, _parse_object(configuration))
        default_configuration = place_configuration(space, {}).configuration
    # _parse_object raises ValueError, and RecursionError for deep nesting. place_configuration
    # raises such errors too, for names that no config key can have.
    except (LookupError, RecursionError, ValueError) as error:
        problem = 'the configuration must be an object in JSON, such as {"lr": 0.01}'
        reason = shorten_end(one_line(str(error)), MAX_REASON_LENGTH)
        raise ConfigError([*errors, f"{problem}: {reason}"]) from None
    errors += placed.errors
    errors += placed.unknown.values()
    if errors:
        shown_errors = errors[:MAX_ERRORS]
        raise ConfigError([shorten_end(one_line(line), MAX_ERROR_LENGTH) for line in shown_errors])
    proposal = Proposal(placed.configuration, {"by": by, "why": why, "id": uuid.uuid4().hex})
    budget = read_bounds(stored).trials
    baseline = None
    if space.baseline:
        baseline = default_configuration
    return _fill_slot(stored, proposal, space.most_proposals(budget), baseline)


def propose_changed(stored: StoredStudy, number: int, changes: Mapping[str, Any], by: str) -> int:
    """Proposes the configuration of a trial with some values changed.

    If another option of a group is chosen, the values of the trial that belong to the former option
    are left out.

    Args:
        number: the number of the trial.
        changes: the new values, by the name of the hyperparameter.
        by: who proposes it; a line of text.

    Returns:
        The number of the new trial.

    Raises:
        ConfigError: as `propose`; or there is no trial of this number.
    """
    trial = read_trial(stored, number)
    trial_values = trial.params or trial.system_attrs.get(FIXED_PARAMS, {})
    values = {**trial_values, **changes}
    # `propose` places the values again, and says what is wrong with them.
    with suppress(LookupError, RecursionError, ValueError):
        for name in place_configuration(read_space(stored), values).unknown:
            if name not in changes:
                del values[name]
    return propose(stored, values, by, f"trial {number} with changes")


def _is_valid_line(name: str, text: str) -> bool:
    """Returns True if an argument is a single line of printable text, and not too long."""
    return len(text) <= MAX_LENGTHS[name] and one_line(text) == text


def _line_error(name: str, text: str) -> str:
    """Returns the error of an argument that must be a line of text."""
    return (
        f"{name} must be a line of at most {MAX_LENGTHS[name]} printable characters; "
        f"got {shorten_end(text, MAX_SHOWN_LENGTH)!r}"
    )


def _parse_object(configuration: str | Mapping[str, Any]) -> dict[str, Any]:
    """Parses an object in JSON; raises ValueError if it is too long or no object.

    A mapping is written as JSON first, so that both spellings of a proposal have the same limits.
    """
    text = configuration
    if not isinstance(text, str):
        text = json.dumps(text)
    if len(text) > MAX_LENGTHS["configuration"]:
        raise ValueError(f"it has more than {MAX_LENGTHS['configuration']} characters")
    parsed = json.loads(text)
    if not isinstance(parsed, dict):
        raise ValueError(f"it is {describe_kind(parsed)}")
    return parsed


def count_free_slots(stored: StoredStudy) -> int:
    """Counts the slots (rows of the budget) whose trials have not begun.

    Once the search has ended, none is free.
    """
    if read_forecast(stored).ending is not None:
        return 0
    ledger = stored.ledger
    budget = read_bounds(stored).trials
    free_slots = ledger.storage.read(lambda connection: ledger.never_claimed(connection, budget))
    return len(free_slots)


def why_closed(stored: StoredStudy) -> str | None:
    """Explains why a study takes no more proposals; None while it takes them.

    It takes none after its test, whose result a proposer may have seen, even if the budget is
    raised then.
    """
    if stored.test_uses():
        return (
            f"the test set of {stored.name} has been used, and its result could bias a proposal; "
            "only the sampler chooses further trials"
        )
    ending = read_forecast(stored).ending
    if ending is None:
        return None
    return f"the search of {stored.name} {ending.reason}; a proposal comes too late"


def _fill_slot(
    stored: StoredStudy, proposal: Proposal, limit: int, baseline: Configuration | None
) -> int:
    """Puts a proposal into the next free slot (a row of the budget); returns its trial's number.

    A worker that claims the slot trains the proposal. All is checked and written in one transaction
    that locks the trials of the study: otherwise two proposals at once could fill one slot, or
    exceed the limit together.

    Args:
        limit: how many trials of the study may be proposed.
        baseline: the default configuration, if trial 0 is to run it.

    Raises:
        ConfigError: a trial has the configuration already, no slot is free, or the study takes no
            more proposals.
    """
    budget = read_bounds(stored).trials
    reason = why_closed(stored)
    if reason is not None:
        raise ConfigError(reason)

    def queue(connection: Connection) -> int:
        """Checks and queues the proposal in the transaction of a connection."""
        trials = stored.lock_trials(connection)
        if baseline is not None and not trials:  # trial 0 comes first
            no_values = Configuration()  # its worker takes the defaults
            trials.append(stored.ledger.queue(connection, 0, no_values, BASELINE_ATTRIBUTES))
        for trial in trials:
            # The transaction is repeated if the connection breaks. An earlier attempt may have
            # committed although its reply was lost: then this very proposal is there already.
            if TrialRecord(trial).proposed == proposal.mark:
                return trial.number
            _check_different(trial, proposal.configuration, baseline)
        if count_proposed(trials) >= limit:
            raise ConfigError(
                f"study.proposal_share: {limit} of {budget} trials may be proposed, and have been"
            )
        free_slots = stored.ledger.never_claimed(connection, budget)
        if not free_slots:
            raise ConfigError(f"all {budget} trials have begun; raise study.trials to propose more")
        attributes = {PROPOSED: proposal.mark}
        queued = stored.ledger.queue(connection, free_slots[0], proposal.configuration, attributes)
        return queued.number

    return stored.ledger.storage.execute(queue)


def count_proposed(trials: Sequence[FrozenTrial]) -> int:
    """Counts the trials whose configurations were proposed."""
    return sum(TrialRecord(trial).proposed is not None for trial in trials)


def _check_different(
    trial: FrozenTrial, configuration: Configuration, baseline: Configuration | None
) -> None:
    """Raises ConfigError if a trial has the proposed configuration already.

    Args:
        configuration: the proposed one.
        baseline: the default configuration. Trial 0 has it, also before its worker stores it.
    """
    record = TrialRecord(trial)
    configuration_of_trial: Configuration | FrozenTrial = trial
    is_unstored_baseline = record.is_baseline and not trial.params
    if is_unstored_baseline and baseline is not None:
        configuration_of_trial = baseline
    if identify(configuration) != identify(configuration_of_trial):
        return
    value = ""
    if trial.values:
        value = f" with {format_value(trial.values[0])}"
    raise ConfigError(
        f"trial {trial.number} has this configuration already, and is "
        f"{record.outcome}{value}; propose another one"
    )
