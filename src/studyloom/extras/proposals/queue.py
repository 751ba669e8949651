"""The queue of proposals: a configuration is checked, and put into the next free slot."""

import json
import uuid
from collections.abc import Mapping
from typing import Any

from studyloom.decisions.early_end import look_ahead, read_bounds
from studyloom.decisions.placement import place_point
from studyloom.decisions.warm_start import AS_COMPOSED
from studyloom.errors import ConfigError
from studyloom.extras.proposals.stored_space import read_space
from studyloom.space.drawing_points import identify
from studyloom.space.tree import Point
from studyloom.storage.attributes import PROPOSED
from studyloom.storage.database import Connection
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import format_value, kind_of, one_line, shorten_end

LONGEST = {"by": 40, "why": 500, "point": 100_000}  # characters
MOST_ERRORS = 20  # of a proposal that are printed


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
    errors = [
        f"{name} must be a line of at most {LONGEST[name]} printable characters; "
        f"got {shorten_end(text, 80)!r}"
        for name, text in (("by", by), ("why", why))
        if len(text) > LONGEST[name] or one_line(text) != text or not (text or name == "why")
    ]
    known = read_space(stored)
    try:
        text = point if isinstance(point, str) else json.dumps(point)
        if len(text) > LONGEST["point"]:
            raise ValueError(f"it has more than {LONGEST['point']} characters")
        if not isinstance(parameters := json.loads(text), dict):
            raise ValueError(f"it is {kind_of(parameters)}")
        placed, start = place_point(known, parameters), place_point(known, {}).point
    except (LookupError, RecursionError, ValueError) as error:  # also a name that no key can have
        words = 'the configuration must be an object in JSON, such as {"lr": 0.01}'
        raise ConfigError([*errors, f"{words}: {shorten_end(one_line(str(error)), 200)}"]) from None
    if errors := [*errors, *placed.wrong, *placed.unasked.values()]:
        raise ConfigError([shorten_end(one_line(line), 300) for line in errors[:MOST_ERRORS]])
    mark = {"by": by, "why": why, "id": uuid.uuid4().hex}
    most = known.most(read_bounds(stored).trials)
    baseline = start if known.baseline else None
    return _fill_slot(stored, placed.point, mark, most, baseline)


def count_free_slots(stored: StoredStudy) -> int:
    """Counts the slots whose trials have not begun; none is free once the search has ended."""
    if look_ahead(stored).ending is not None:
        return 0
    ledger, trials = stored.ledger, read_bounds(stored).trials
    return len(ledger.storage.read(lambda c: ledger.never_claimed(c, trials)))


def why_closed(stored: StoredStudy) -> str | None:
    """Says why a study takes no more proposals; None while it takes them.

    A proposer may have seen the result of the test, also before the budget was raised.
    """
    if stored.test_uses():
        return (
            f"the test set of {stored.name} has been used, and its result could bias a proposal; "
            "only the sampler chooses further trials"
        )
    if (ended := look_ahead(stored).ending) is None:
        return None
    return f"the search of {stored.name} {ended.words}; a proposal comes too late"


def _fill_slot(
    stored: StoredStudy, point: Point, mark: Mapping[str, str], most: int, baseline: Point | None
) -> int:
    """Puts a configuration into the next free slot: the next claim trains it.

    Args:
        mark: stored with it; another one for each proposal.
        most: how many trials of the study may be proposed.
        baseline: trial 0, if that is the default configuration.

    Returns:
        The number of its trial.

    Raises:
        ConfigError: a trial has the configuration already, no slot is free, or see `why_closed`.
    """
    trials = read_bounds(stored).trials
    if closed := why_closed(stored):
        raise ConfigError(closed)

    def queue(connection: Connection) -> int:
        tried = stored.lock_trials(connection)
        if baseline is not None and not tried:
            tried.append(stored.ledger.queue(connection, 0, Point(), AS_COMPOSED))
        for trial in tried:
            record = TrialRecord(trial)
            if record.proposed == mark:  # the reply to an earlier try was lost
                return trial.number
            waiting = baseline if record.is_baseline and not trial.params else None
            if identify(point) == identify(waiting or trial):
                value = f" with {format_value(trial.values[0])}" if trial.values else ""
                raise ConfigError(
                    f"trial {trial.number} has this configuration already, and is "
                    f"{record.outcome}{value}; propose another one"
                )
        if sum(TrialRecord(trial).proposed is not None for trial in tried) >= most:
            raise ConfigError(
                f"study.proposals: {most} of {trials} trials may be proposed, and have been"
            )
        if not (slots := stored.ledger.never_claimed(connection, trials)):
            raise ConfigError(f"all {trials} trials have begun; raise study.trials to propose more")
        return stored.ledger.queue(connection, slots[0], point, {PROPOSED: mark}).number

    return stored.ledger.storage.execute(queue)
