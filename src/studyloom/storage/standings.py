"""Where each slot stands, in plain numbers: what decides which of them is claimed next."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    Integer,
    and_,
    bindparam,
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
from studyloom.storage.slots import SLOTS

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


# By slot, what was read of it, and the token that it had; -1 if a worker held it.
Known = dict[int, tuple[int, Standing]]
NONE = (-1, None)
MANY = 400  # slots that a statement names


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
    known: Known | None = None,
) -> list[Standing]:
    """Reads where the first slots of a study stand.

    Args:
        connection: In the transaction that decides.
        study_id: The study.
        trials: How many slots.
        order: Says what it must know.
        owner: The id of the worker that asks.
        abandoned: Selects the slots whose lease has ended.
        known: What was read before with this order; it is brought up to date. Of 1 000 slots it
            saves nine tenths of the time.

    Returns:
        The standings, by slot.
    """
    known = {} if known is None else known
    mine = and_(SLOTS.c.study_id == study_id, SLOTS.c.slot < trials)
    rows = connection.execute(_heads(mine, owner, abandoned)).all()
    # Nobody reports for a slot that is not held, and who takes it gives it another token.
    changed = [
        slot for slot, _, token, rests in rows if not rests or known.get(slot, NONE)[0] != token
    ]
    read = _read(connection, order, {"study": study_id, "trials": trials, "slots": changed})
    standings = []
    for slot, state, token, rests in rows:
        standing = read.get(slot) or known[slot][1]
        if standing.state != state:
            standing = replace(standing, state=state)
        known[slot] = (token if rests else -1, standing)
        standings.append(standing)
    return standings


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
    columns = (SLOTS.c.slot, state, SLOTS.c.token, SLOTS.c.state != "held")
    return select(*columns).where(mine).order_by(SLOTS.c.slot)


# Statements with parameters, each built once: building one takes longer than the database with it.
OF_STUDY = and_(SLOTS.c.study_id == bindparam("study"), SLOTS.c.slot < bindparam("trials"))
NAMED = SLOTS.c.slot.in_(bindparam("slots", expanding=True))
LAST = (
    select(func.max(REPORTS.c.step))
    .where(REPORTS.c.trial_id == SLOTS.c.trial_id)
    .correlate(SLOTS)
    .scalar_subquery()
)
IS_BASELINE = (
    select(ATTRIBUTES.c.trial_id)
    .where(ATTRIBUTES.c.trial_id == SLOTS.c.trial_id, ATTRIBUTES.c.key == BASELINE)
    .exists()
)
TRIALS = select(SLOTS.c.slot, LAST, IS_BASELINE).where(OF_STUDY)
COSTS = (
    select(SLOTS.c.slot, ATTRIBUTES.c.key, ATTRIBUTES.c.value_json)
    .select_from(SLOTS)
    .join(ATTRIBUTES, ATTRIBUTES.c.trial_id == SLOTS.c.trial_id)
    .where(OF_STUDY, ATTRIBUTES.c.key.in_(bindparam("names", expanding=True)))
)


def _read(connection: Connection, order: Order, parameters: dict[str, Any]) -> dict[int, Standing]:
    """Reads all of some slots but their state."""
    few = len(parameters["slots"]) <= MANY
    rows = connection.execute(TRIALS.where(NAMED) if few else TRIALS, parameters).all()
    longest = max((last for _, last, _ in rows if last is not None), default=0)
    reports = defaultdict[int, dict[int, Report]](dict)
    if rungs := tuple(order.rungs(longest)):
        value_of = TrialIntermediateValueModel.stored_repr_to_intermediate_value
        for slot, rung, step, *value in connection.execute(_reports(rungs, few), parameters):
            reports[slot][rung] = Report(step, value_of(*value))
    costs = defaultdict[int, dict[str, float]](dict)
    if order.costs:
        query = COSTS.where(NAMED) if few else COSTS
        for slot, name, stored in connection.execute(query, parameters | {"names": order.costs}):
            costs[slot][name] = float(json.loads(stored))
    return {
        slot: Standing(slot, FRESH, last, reports[slot], bool(exempt), costs[slot])
        for slot, last, exempt in rows
    }


@lru_cache(64)
def _reports(rungs: tuple[int, ...], few: bool) -> Executable:
    """Builds the statement that reads the first report of each trial at each rung or later."""
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
        query = (
            select(SLOTS.c.slot, literal_column(str(rung), Integer), REPORTS.c.step, *columns)
            .select_from(SLOTS)
            .join(REPORTS, and_(REPORTS.c.trial_id == SLOTS.c.trial_id, REPORTS.c.step == first))
            .where(OF_STUDY)
        )
        queries.append(query.where(NAMED) if few else query)
    return union_all(*queries)
