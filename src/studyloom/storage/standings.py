"""Standings: the state of each slot of the budget, and how far its trial has come.

They decide the slot that is claimed next. A *standing* has what a trial has reported: its last
step, its value at each *rung* (a step at which trials are compared) and its costs. An `Order`, such
as that of ASHA, is a pure function of all standings, so that all workers come to the same decision.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import sqlalchemy as sa

from studyloom.storage import slot_table, sql
from studyloom.storage.attributes import (
    BASELINE,
    FAILURE,
    REASON,
    RUNGS,
    SEGMENTS,
    Attributes,
)
from studyloom.storage.optuna_internals import TrialIntermediateValueModel
from studyloom.storage.slot_table import SLOTS
from studyloom.storage.sql import REPORTS, USER_ATTRIBUTES

# The states of a standing
UNCLAIMED = "unclaimed"  # it has no trial, and no living worker holds it
OPEN = "open"  # it has a trial, begun or queued, and no living worker holds it
OWN = "own"  # the worker that reads the standing holds it
HELD = "held"  # another worker holds it
DONE = "done"


class Segment(NamedTuple):
    """A part of the training of a trial: to its next rung, or to its end; see `decisions.rounds`.

    Attributes:
        number: Its place in the sequence of all segments of a study.
        start: The step after which it begins; None until the trial has its configuration.
    """

    number: int
    start: int | None


class Fault(NamedTuple):
    """The failure of a trial: its kind, such as error, and the reason."""

    kind: str
    reason: str


class RungReport(NamedTuple):
    """The report of a trial at a rung: its first at the rung's step or later."""

    step: int
    value: float


@dataclass(frozen=True)
class Standing:
    """How far the trial of a slot has come, and whether a worker holds it.

    Attributes:
        slot: The slot.
        state: UNCLAIMED, OPEN, OWN, HELD or DONE.
        last: The last step that the trial has reported.
        reports: Its report at each rung to which it has come, by the rung's step.
        exempt: Whether it is the baseline, which always runs to its end.
        costs: Its costs, by the names that the order requests.
        paused: The step at which it was paused last.
        segments: Its segments so far, in a search in rounds.
        failure: Its failure, if it has failed.
    """

    slot: int
    state: str
    last: int | None = None
    reports: Mapping[int, RungReport] = field(default_factory=dict)
    exempt: bool = False
    costs: Mapping[str, float] = field(default_factory=dict)
    paused: int | None = None
    segments: Sequence[Segment] = ()
    failure: Fault | None = None


class SlotChoice(NamedTuple):
    """The decision of an order which slot is claimed next.

    Attributes:
        slot: The slot.
        ends_pruned: Whether its trial, which is paused, only ends: it goes no further.
        segments: All segments of its trial, the next one last, in a search in rounds. They are
            stored with the claim.
    """

    slot: int
    ends_pruned: bool = False
    segments: Sequence[Segment] = ()


class Order(Protocol):
    """Decides which slot is claimed next: pure, so that all workers decide the same."""

    @property
    def costs(self) -> Sequence[str]:
        """The names of the costs that decide."""
        ...

    def rungs(self, longest: int) -> Sequence[int]:
        """Returns the steps at which trials are compared, up to the longest so far, ascending."""
        ...

    def choose(self, standings: Sequence[Standing], *, closed: bool = False) -> SlotChoice | None:
        """Returns the slot to claim; None if there is nothing to do until others get further.

        Args:
            standings: All slots of the budget, in their order.
            closed: Whether the search has ended: no slot without a trial is claimed, and no trial
                is promoted.
        """
        ...


STATES = (
    sa.select(
        SLOTS.c.slot,
        sa.case(
            (SLOTS.c.state == "done", DONE),
            (slot_table.HELD_BY_ME, OWN),
            (sa.and_(slot_table.IS_READY, slot_table.HAS_NO_TRIAL), UNCLAIMED),
            (slot_table.IS_READY, OPEN),
            else_=HELD,
        ).label("standing_state"),
        SLOTS.c.token,
        (SLOTS.c.state == "held").label("is_held"),
    )
    .where(slot_table.IN_BUDGET)
    .order_by(SLOTS.c.slot)
)
HAS_SLOT = sa.and_(
    slot_table.IN_BUDGET, sql.among(SLOTS.c.slot, sa.bindparam("slots", type_=sa.String))
)
REPORTS_OF_SLOTS = (
    sa.select(
        SLOTS.c.slot,
        REPORTS.c.step,
        REPORTS.c.intermediate_value,
        REPORTS.c.intermediate_value_type,
    )
    .join(REPORTS, REPORTS.c.trial_id == SLOTS.c.trial_id)
    .where(HAS_SLOT)
    .order_by(REPORTS.c.step)
)
ATTRIBUTES_OF_SLOTS = (
    sa.select(SLOTS.c.slot, USER_ATTRIBUTES.c.key, USER_ATTRIBUTES.c.value_json)
    .join(USER_ATTRIBUTES, USER_ATTRIBUTES.c.trial_id == SLOTS.c.trial_id)
    .where(HAS_SLOT, USER_ATTRIBUTES.c.key.in_(sa.bindparam("names", expanding=True)))
)


@dataclass(frozen=True)
class CachedStanding:
    """A standing that stays true as long as the slot has this token and no worker holds it."""

    token: int
    standing: Standing


class StandingsReader:
    """Reads the standings of a study, and caches those that cannot have changed.

    No worker reports for a slot that is not held, and its next holder gives it a new token. For
    1,000 slots this saves nine tenths of the time.
    """

    def __init__(self) -> None:
        self._cached: dict[int, CachedStanding] = {}  # by slot

    def read(
        self, connection: sa.Connection, order: Order, study_id: int, trials: int, owner: str
    ) -> list[Standing]:
        """Reads the standings of the first `trials` slots, as the worker `owner` sees them.

        A trial is read again only if it may have changed: if a worker holds its slot, or has
        claimed it meanwhile. Each claim adds 1 to the slot's token.
        """
        parameters = {"study": study_id, "trials": trials, "me": owner}
        rows = connection.execute(STATES, parameters).all()
        slots_to_read = []
        for row in rows:
            cached = self._cached.get(row.slot)
            if row.is_held or cached is None or cached.token != row.token:
                slots_to_read.append(row.slot)
        new_standings = _read_trials(connection, order, parameters, slots_to_read)
        standings = []
        for row in rows:
            if row.slot in new_standings:
                standing_without_state = new_standings[row.slot]
            else:
                standing_without_state = self._cached[row.slot].standing
            standing = replace(standing_without_state, state=row.standing_state)
            standings.append(standing)
            if row.is_held:  # its trial goes on, so that this standing is soon outdated
                self._cached.pop(row.slot, None)
            else:
                self._cached[row.slot] = CachedStanding(row.token, standing)
        return standings


def _read_trials(
    connection: sa.Connection, order: Order, parameters: Mapping[str, Any], slots: Sequence[int]
) -> dict[int, Standing]:
    """Reads the reports and attributes of the trials of some slots, and returns standings by slot.

    The states of the slots are not among them; see `_make_standing`.

    Args:
        parameters: The study, its budget and the worker, as parameters of SQL statements.
    """
    all_parameters = {
        **parameters,
        "slots": json.dumps(slots),
        "names": [BASELINE, RUNGS, SEGMENTS, FAILURE, REASON, *order.costs],
    }
    # NaN and infinity are stored as a type next to the value.
    parse_value = TrialIntermediateValueModel.stored_repr_to_intermediate_value
    reports = defaultdict[int, list[RungReport]](list)  # all reports of a trial, by slot
    report_rows = connection.execute(REPORTS_OF_SLOTS, all_parameters)
    for slot, step, stored_value, value_type in report_rows:
        reports[slot].append(RungReport(step, parse_value(stored_value, value_type)))
    attributes = defaultdict[int, dict[str, Any]](dict)
    attribute_rows = connection.execute(ATTRIBUTES_OF_SLOTS, all_parameters)
    for slot, name, stored_json in attribute_rows:
        attributes[slot][name] = json.loads(stored_json)
    standings = {}
    for slot in slots:
        standings[slot] = _make_standing(slot, order, reports[slot], attributes[slot])
    return standings


def _make_standing(
    slot: int, order: Order, reports: Sequence[RungReport], attributes: Attributes
) -> Standing:
    """Makes the standing of a slot from the reports and attributes of its trial.

    Its state stays UNCLAIMED until `StandingsReader.read` sets it.

    Args:
        reports: All reports, by step; none without a trial.
    """
    last_step = None
    if reports:
        last_step = reports[-1].step
    failure = None
    if FAILURE in attributes:
        failure = Fault(kind=str(attributes[FAILURE]), reason=str(attributes.get(REASON)))
    return Standing(
        slot=slot,
        state=UNCLAIMED,
        last=last_step,
        reports=_reports_at_rungs(order, reports),
        exempt=BASELINE in attributes,  # the baseline always runs to its end
        costs={name: float(attributes[name]) for name in order.costs if name in attributes},
        # RUNGS lists all rungs at which the trial was paused. The last one is the highest.
        paused=max(attributes.get(RUNGS, ()), default=None),
        segments=tuple(Segment(*stored) for stored in attributes.get(SEGMENTS, ())),
        failure=failure,
    )


def _reports_at_rungs(order: Order, reports: Sequence[RungReport]) -> dict[int, RungReport]:
    """Returns a trial's report at each rung to which it has come, by the rung's step.

    At a rung, trials are compared. A trial that does not report at each step counts there with its
    first report at the rung's step or later.
    """
    if not reports:
        return {}
    at_rungs = {}
    for rung in order.rungs(reports[-1].step):
        at_rungs[rung] = next(report for report in reports if report.step >= rung)
    return at_rungs
