"""The queue of proposals: a configuration is checked, and put into the next free slot.

A slot is a row of the table that holds the budget: one for each trial. A slot is free while no
worker has claimed it and no configuration is queued in it.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.decisions.early_end import read_bounds, read_forecast
from studyloom.decisions.placement import place_point
from studyloom.decisions.warm_start import BASELINE_ATTRIBUTES
from studyloom.errors import ConfigError
from studyloom.extras.proposals.stored_space import read_space
from studyloom.space.drawing_points import identify
from studyloom.space.tree import Point
from studyloom.storage.attributes import PROPOSED
from studyloom.storage.database import Connection
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import describe_kind, format_value, one_line, shorten_end

LONGEST = {"by": 40, "why": 500, "point": 100_000}  # characters
MOST_ERRORS = 20  # of a proposal that are printed


@dataclass(frozen=True)
class Proposal:
    """A configuration that has been checked, and what is stored with it.

    Args:
        point: the configuration.
        mark: who proposes it and why, with an `id` that no other proposal has.
    """

    point: Point
    mark: Mapping[str, str]


def propose(stored: StoredStudy, point: str | Mapping[str, Any], by: str, why: str = "") -> int:
    """Checks a configuration as `study.enqueue` is checked, and puts it into the next free slot.

    Args:
        point: values by hyperparameter name, possibly nested; or such an object in JSON.
        by: who proposes it, and `why`: a line of text each.

    Returns:
        The number of its trial.

    Raises:
        ConfigError: all that is wrong with it; or a trial has it already, or no slot is free.
    """
    errors = []
    if not by:
        errors.append(_error_in_line("by", by))
    for name, text in (("by", by), ("why", why)):
        if len(text) > LONGEST[name] or one_line(text) != text:
            errors.append(_error_in_line(name, text))
    space = read_space(stored)
    try:
        placed = place_point(space, _parse_object(point))
        default = place_point(space, {}).point
    except (LookupError, RecursionError, ValueError) as error:  # also a name that no key can have
        problem = 'the configuration must be an object in JSON, such as {"lr": 0.01}'
        reason = shorten_end(one_line(str(error)), 200)
        raise ConfigError([*errors, f"{problem}: {reason}"]) from None
    errors += placed.errors
    errors += placed.unknown.values()
    if errors:
        raise ConfigError([shorten_end(one_line(line), 300) for line in errors[:MOST_ERRORS]])
    proposal = Proposal(placed.point, {"by": by, "why": why, "id": uuid.uuid4().hex})
    budget = read_bounds(stored).trials
    baseline = None
    if space.baseline:
        baseline = default
    return _fill_slot(stored, proposal, space.most_proposals(budget), baseline)


def _error_in_line(name: str, text: str) -> str:
    """Returns the error of an argument that must be a line of text."""
    return (
        f"{name} must be a line of at most {LONGEST[name]} printable characters; "
        f"got {shorten_end(text, 80)!r}"
    )


def _parse_object(point: str | Mapping[str, Any]) -> dict[str, Any]:
    """Parses an object in JSON; raises ValueError if it is too long or no object.

    A mapping is written as JSON first, so that both spellings of a proposal have the same limits.
    """
    text = point
    if not isinstance(text, str):
        text = json.dumps(text)
    if len(text) > LONGEST["point"]:
        raise ValueError(f"it has more than {LONGEST['point']} characters")
    parsed = json.loads(text)
    if not isinstance(parsed, dict):
        raise ValueError(f"it is {describe_kind(parsed)}")
    return parsed


def count_free_slots(stored: StoredStudy) -> int:
    """Counts the slots whose trials have not begun; none is free once the search has ended."""
    if read_forecast(stored).ending is not None:
        return 0
    ledger = stored.ledger
    budget = read_bounds(stored).trials
    free_slots = ledger.storage.read(lambda connection: ledger.never_claimed(connection, budget))
    return len(free_slots)


def why_closed(stored: StoredStudy) -> str | None:
    """Explains why a study takes no more proposals; None while it takes them.

    A proposer may have seen the result of the test, also before the budget was raised.
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


def _fill_slot(stored: StoredStudy, proposal: Proposal, most: int, baseline: Point | None) -> int:
    """Puts a proposal into the next free slot, whose trial the next worker to claim it trains.

    All is checked and written in one transaction that locks the trials of the study. Without the
    lock, two proposals at once could fill one slot or exceed the limit together.

    Args:
        most: how many trials of the study may be proposed.
        baseline: the default configuration, if trial 0 is to run it.

    Returns:
        The number of its trial.

    Raises:
        ConfigError: a trial has the configuration already, no slot is free, or see `why_closed`.
    """
    budget = read_bounds(stored).trials
    closed = why_closed(stored)
    if closed:
        raise ConfigError(closed)

    def queue(connection: Connection) -> int:
        trials = stored.lock_trials(connection)
        if baseline is not None and not trials:
            trials.append(stored.ledger.queue(connection, 0, Point(), BASELINE_ATTRIBUTES))
        for trial in trials:
            # The transaction is repeated if the connection breaks. An earlier attempt may have
            # committed although its reply was lost: then this very proposal is there already.
            if TrialRecord(trial).proposed == proposal.mark:
                return trial.number
            _check_different(trial, proposal.point, baseline)
        if count_proposed(trials) >= most:
            raise ConfigError(
                f"study.proposal_share: {most} of {budget} trials may be proposed, and have been"
            )
        free_slots = stored.ledger.never_claimed(connection, budget)
        if not free_slots:
            raise ConfigError(f"all {budget} trials have begun; raise study.trials to propose more")
        attributes = {PROPOSED: proposal.mark}
        queued = stored.ledger.queue(connection, free_slots[0], proposal.point, attributes)
        return queued.number

    return stored.ledger.storage.execute(queue)


def count_proposed(trials: Sequence[FrozenTrial]) -> int:
    """Counts the trials whose configurations were proposed."""
    return sum(TrialRecord(trial).proposed is not None for trial in trials)


def _check_different(trial: FrozenTrial, point: Point, baseline: Point | None) -> None:
    """Checks that a trial does not have a configuration; raises ConfigError if it has.

    Args:
        baseline: the default configuration, which trial 0 has before its worker stores it.
    """
    record = TrialRecord(trial)
    configuration: Point | FrozenTrial = trial
    if record.is_baseline and not trial.params and baseline is not None:
        configuration = baseline
    if identify(point) != identify(configuration):
        return
    value = ""
    if trial.values:
        value = f" with {format_value(trial.values[0])}"
    raise ConfigError(
        f"trial {trial.number} has this configuration already, and is "
        f"{record.outcome}{value}; propose another one"
    )
