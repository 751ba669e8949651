"""The statement that takes a slot, and the conditions by which indexes find the open ones."""

from functools import lru_cache
from typing import NamedTuple

from sqlalchemy import (
    ColumnElement,
    Executable,
    Float,
    ScalarSelect,
    and_,
    bindparam,
    case,
    false,
    func,
    literal_column,
    or_,
    select,
    update,
)

from studyloom.storage.slots import CLAIMED, SLOTS

# As the indexes of the table say it, without a parameter: of 100 000 slots nearly all are done.
IS_OPEN = SLOTS.c.state != literal_column("'done'")
IS_HELD = SLOTS.c.state == literal_column("'held'")
HAS_TRIAL, HAS_NONE = SLOTS.c.trial_id.is_not(None), SLOTS.c.trial_id.is_(None)
MINE = and_(SLOTS.c.study_id == bindparam("study"), SLOTS.c.slot < bindparam("trials"), IS_OPEN)
OWN = and_(IS_HELD, SLOTS.c.owner == bindparam("me"))
NONE_ENDED = false()


class Wanted(NamedTuple):
    """Which slot a claim is about.

    Attributes:
        fresh: Only one without a trial that no other worker has held.
        begun: Only one with a trial.
        chosen: Only the one that was chosen, the parameter `chosen`.
        again: A fresh one may have a trial if this worker holds it: an earlier try of the same
            claim, whose answer was lost, may have made the trial.
    """

    fresh: bool
    begun: bool
    chosen: bool
    again: bool


def clock(dialect: str) -> ColumnElement[float]:
    """Seconds since 1970 on the database's clock: those of the workers may differ by hours."""
    postgresql = "extract(epoch from clock_timestamp())"
    sqlite = "(julianday('now') - 2440587.5) * 86400.0"
    return literal_column(postgresql if dialect == "postgresql" else sqlite, Float(53))


def claiming(wanted: Wanted, dialect: str, abandoned: ColumnElement[bool]) -> Executable:
    """Makes the statement that takes a slot and returns the fields of a Claim.

    Its parameters are the `study`, how many `trials` it has, `me`, the worker, its `lease` in
    seconds, and the slot that was `chosen`, if one was.

    Args:
        wanted: Which slot.
        dialect: Of the database.
        abandoned: Selects the slots whose lease has ended; NONE_ENDED if there are none.
    """
    if abandoned is NONE_ENDED:
        return _of_none_ended(wanted, dialect)
    return _claiming(wanted, dialect, abandoned)


@lru_cache
def _of_none_ended(wanted: Wanted, dialect: str) -> Executable:
    """Keeps the statement: building it takes longer than the database takes to run it."""
    return _claiming(wanted, dialect, NONE_ENDED)


def _claiming(wanted: Wanted, dialect: str, abandoned: ColumnElement[bool]) -> Executable:
    now = clock(dialect)
    expired = and_(SLOTS.c.state == "held", SLOTS.c.owner != bindparam("me"), abandoned)
    ready = or_(SLOTS.c.state == "free", expired)
    # In this order, each by an index of its own: the slot of a claim whose answer was lost, one
    # with a trial, a new one.
    found: list[ScalarSelect[int]] = []
    if not wanted.fresh or wanted.again:
        found.append(_first(HAS_TRIAL, OWN))
    if not wanted.begun:
        found.append(_first(HAS_NONE, OWN))
    if not wanted.fresh:
        found.append(_first(HAS_TRIAL, ready))
    if not wanted.begun:
        found.append(_first(HAS_NONE, ready, *([SLOTS.c.token == 0] if wanted.fresh else [])))
    slot: ColumnElement[int] = func.coalesce(*found, -1)
    takeable = and_(MINE, or_(OWN, ready))
    if wanted.chosen:
        slot = bindparam("chosen", type_=SLOTS.c.slot.type)
        takeable = and_(takeable, HAS_TRIAL) if wanted.begun else takeable
    return (
        update(SLOTS)
        .where(takeable, SLOTS.c.slot == slot)
        .values(
            state="held",
            owner=bindparam("me"),
            token=SLOTS.c.token + 1,
            deaths=SLOTS.c.deaths + case((expired, 1), else_=0),
            death=case((expired, "its lease ended"), else_=SLOTS.c.death),
            since=now,
            expires=now + bindparam("lease"),
        )
        .returning(*CLAIMED)
    )


def _first(*conditions: ColumnElement[bool]) -> ScalarSelect[int]:
    return (
        select(SLOTS.c.slot)
        .where(MINE, *conditions)
        .order_by(SLOTS.c.slot)
        .limit(1)
        .with_for_update(skip_locked=True)  # PostgreSQL; SQLite has one writer at a time
        .scalar_subquery()
    )
