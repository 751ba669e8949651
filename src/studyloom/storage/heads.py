"""The heads of trials: what the ledger needs to know of Optuna's tables."""

import json
from copy import copy
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Executable, bindparam, select

from studyloom.storage.attributes import FORMER_SLOT, OF_TRIALS, SLOT
from studyloom.storage.optuna_internals import TABLES

TRIALS, ATTRIBUTES = TABLES["trials"], TABLES["trial_user_attributes"]
LARGEST = 2**31 - 1  # of an Integer in PostgreSQL
SET_ASIDE = (
    ATTRIBUTES.update()
    .where(ATTRIBUTES.c.trial_id == bindparam("id"), ATTRIBUTES.c.key == SLOT)
    .values(key=FORMER_SLOT)
)
RENUMBER = (
    TRIALS.update().where(TRIALS.c.trial_id == bindparam("id")).values(number=bindparam("to"))
)


class TrialHead(NamedTuple):
    """What a trial is to the ledger.

    Attributes:
        slot: The slot that it says it fills; None for a trial of another program.
    """

    trial_id: int
    number: int
    state: TrialState
    slot: int | None


def heads(connection: Connection, study_id: int) -> list[TrialHead]:
    """Reads the heads of all trials of a study, in the order of their ids."""
    mark = (ATTRIBUTES.c.trial_id == TRIALS.c.trial_id) & (ATTRIBUTES.c.key == SLOT)
    query = (
        select(TRIALS.c.trial_id, TRIALS.c.number, TRIALS.c.state, ATTRIBUTES.c.value_json)
        .select_from(TRIALS.outerjoin(ATTRIBUTES, mark))
        .where(TRIALS.c.study_id == study_id)
        .order_by(TRIALS.c.trial_id)
    )
    return [
        TrialHead(trial_id, number, state, parse_slot(stored))
        for trial_id, number, state, stored in connection.execute(query)
    ]


def parse_slot(stored: str | None) -> int | None:
    """Returns the slot of a stored attribute SLOT; None if there is none that a worker stored."""
    slot = None if stored is None else json.loads(stored)
    return slot if is_slot(slot) else None


def is_slot(value: Any) -> bool:
    """Whether a value of the attribute SLOT is one that a worker may have stored."""
    return type(value) is int and 0 <= value <= LARGEST


def fills(connection: Connection, study_id: int, trial_id: int, slot: int) -> bool:
    """Whether a trial exists, in a study, and says that it fills a slot."""
    query = (
        select(ATTRIBUTES.c.value_json)
        .join(TRIALS, TRIALS.c.trial_id == ATTRIBUTES.c.trial_id)
        .where(TRIALS.c.trial_id == trial_id, TRIALS.c.study_id == study_id)
        .where(ATTRIBUTES.c.key == SLOT)
    )
    return parse_slot(connection.execute(query).scalar()) == slot


def set_aside(trial_id: int) -> tuple[Executable, dict[str, Any]]:
    """Makes the write that takes a trial out of its slot, but keeps all else of it."""
    return SET_ASIDE, {"id": trial_id}


def renumber(trial_id: int, number: int) -> tuple[Executable, dict[str, Any]]:
    """Makes the write that gives a trial another number."""
    return RENUMBER, {"id": trial_id, "to": number}


def without_ours(trial: FrozenTrial) -> FrozenTrial:
    """Returns a trial of another program without what is called like an attribute of ours.

    That is something else there: `epochs` may be a number.
    """
    if trial.user_attrs.keys().isdisjoint(OF_TRIALS):
        return trial
    other = copy(trial)
    other.user_attrs = {k: value for k, value in trial.user_attrs.items() if k not in OF_TRIALS}
    return other
