"""Where each slot stands, in plain numbers: what decides which of them is claimed next."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    and_,
    case,
    false,
    func,
    literal_column,
    or_,
    select,
    union_all,
)

from studyloom.storage.attributes import BASELINE
from studyloom.storage.optuna_internals import TABLES, TrialIntermediateValueModel
from studyloom.storage.records.slots import SLOTS

REPORTS, ATTRIBUTES = TABLES["trial_intermediate_values"], TABLES["trial_user_attributes"]
FRESH, OPEN, OWN, HELD, DONE = "fresh", "open", "own", "held", "done"


class Report(NamedTuple):
    """The report of a trial at a rung: its first at the rung's step or later."""

    step: int
    value: float


@dataclass(frozen=True)
class Standing:
    """How far the trial of a slot has come, and whether a worker holds it.

    Attributes:
        slot: The slot's number.
        state: FRESH without a trial; OPEN with one that no living worker holds; OWN if the worker
            that asks holds it; HELD by another; DONE.
        last: The last step that the trial has reported; None if it has reported nothing.
        reports: Its report at each rung that it has come to.
        exempt: Whether it is the baseline, which always goes on to its end.
        costs: What its network costs, by the names that were asked for.
    """

    slot: int
    state: str
    last: int | None = None
    reports: Mapping[int, Report] = field(default_factory=dict)
    exempt: bool = False
    costs: Mapping[str, float] = field(default_factory=dict)


class Next(NamedTuple):
    """The slot that is claimed next.

    Attributes:
        over: Whether its trial is only told how it ended: it goes no further.
    """

    slot: int
    over: bool = False


class Order(Protocol):
    """Decides which slot is claimed next: a pure function, so that all workers decide the same."""

    @property
    def costs(self) -> Sequence[str]:
        """The costs that decide, by name."""
        ...

    def rungs(self, longest: int) -> Sequence[int]:
        """Returns the steps at which trials are compared, up to the longest so far, ascending."""
        ...

    def choose(self, standings: Sequence[Standing], *, closed: bool = False) -> Next | None:
        """Returns the slot to claim.

        Args:
            standings: Of all slots of the budget, by slot.
            closed: Whether the search has ended: no trial begins, and none is promoted.

        Returns:
            The slot; None if there is nothing to do until others have got further.
        """
        ...


def read_standings(
    connection: Connection,
    study_id: int,
    trials: int,
    order: Order,
    owner: str | None = None,
    abandoned: ColumnElement[bool] | None = None,
) -> list[Standing]:
    """Reads where the first slots of a study stand.

    Args:
        connection: In the transaction that decides.
        study_id: The study.
        trials: How many slots.
        order: Says what it must know.
        owner: The id of the worker that asks.
        abandoned: Selects the slots whose lease has ended.

    Returns:
        The standings, by slot.
    """
    mine = and_(SLOTS.c.study_id == study_id, SLOTS.c.slot < trials)
    rows = connection.execute(_heads(mine, owner, abandoned)).all()
    longest = max((row.last for row in rows if row.last is not None), default=0)
    reports = _reports(connection, mine, order.rungs(longest))
    costs = _costs(connection, mine, order.costs)
    return [
        Standing(
            row.slot, row.state, row.last, reports[row.slot], bool(row.exempt), costs[row.slot]
        )
        for row in rows
    ]


def _heads(mine: ColumnElement[bool], owner: str | None, abandoned: Any) -> Any:
    held = SLOTS.c.state == "held"
    lost = false() if abandoned is None else abandoned
    free = or_(SLOTS.c.state == "free", and_(held, SLOTS.c.owner != owner, lost))
    state = case(
        (SLOTS.c.state == "done", DONE),
        (and_(held, SLOTS.c.owner == owner), OWN),
        (and_(free, SLOTS.c.trial_id.is_(None)), FRESH),
        (free, OPEN),
        else_=HELD,
    )
    last = (
        select(func.max(REPORTS.c.step))
        .where(REPORTS.c.trial_id == SLOTS.c.trial_id)
        .correlate(SLOTS)
        .scalar_subquery()
    )
    baseline = (
        select(ATTRIBUTES.c.trial_id)
        .where(ATTRIBUTES.c.trial_id == SLOTS.c.trial_id, ATTRIBUTES.c.key == BASELINE)
        .exists()
    )
    # Whether an ended trial is the baseline does not matter any more.
    exempt = and_(SLOTS.c.state != "done", baseline)
    columns = (state.label("state"), last.label("last"), exempt.label("exempt"))
    return select(SLOTS.c.slot, *columns).where(mine).order_by(SLOTS.c.slot)


def _reports(
    connection: Connection, mine: ColumnElement[bool], rungs: Sequence[int]
) -> dict[int, dict[int, Report]]:
    """Reads the first report of each trial at each rung or later, by slot and rung."""
    found = defaultdict[int, dict[int, Report]](dict)
    queries = []
    for rung in rungs:
        later = REPORTS.alias()
        first = (
            select(func.min(later.c.step))
            .where(later.c.trial_id == SLOTS.c.trial_id, later.c.step >= rung)
            .correlate(SLOTS)
            .scalar_subquery()
        )
        columns = (REPORTS.c[name] for name in ("intermediate_value", "intermediate_value_type"))
        queries.append(
            select(SLOTS.c.slot, literal_column(str(rung), Integer), REPORTS.c.step, *columns)
            .select_from(SLOTS)
            .join(REPORTS, and_(REPORTS.c.trial_id == SLOTS.c.trial_id, REPORTS.c.step == first))
            .where(mine)
        )
    if queries:
        value_of = TrialIntermediateValueModel.stored_repr_to_intermediate_value
        for slot, rung, step, *value in connection.execute(union_all(*queries)):
            found[slot][rung] = Report(step, value_of(*value))
    return found


def _costs(
    connection: Connection, mine: ColumnElement[bool], names: Sequence[str]
) -> dict[int, dict[str, float]]:
    found = defaultdict[int, dict[str, float]](dict)
    if names:
        query = (
            select(SLOTS.c.slot, ATTRIBUTES.c.key, ATTRIBUTES.c.value_json)
            .select_from(SLOTS)
            .join(ATTRIBUTES, ATTRIBUTES.c.trial_id == SLOTS.c.trial_id)
            .where(mine, ATTRIBUTES.c.key.in_(names))
        )
        for slot, name, stored in connection.execute(query):
            found[slot][name] = float(json.loads(stored))
    return found
