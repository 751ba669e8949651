"""The table of the ledger, a row for each slot, and where each slot stands in plain numbers."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import sqlalchemy as sa

from studyloom.errors import StorageError, StorageLost
from studyloom.storage.attributes import BASELINE
from studyloom.storage.database import RetryingStorage, execute, read
from studyloom.storage.optuna_internals import TABLES, TrialIntermediateValueModel
from studyloom.storage.sql import among
from studyloom.storage.urls import without_password

METADATA = sa.MetaData()
SLOTS = sa.Table(
    "studyloom_slots",
    METADATA,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("slot", sa.Integer, primary_key=True),
    sa.Column("state", sa.String(4), nullable=False),  # free, held, done
    sa.Column("token", sa.Integer, nullable=False),  # claims so far: an old token has lost the slot
    sa.Column("deaths", sa.Integer, nullable=False),  # claims that ended with their worker
    sa.Column("death", sa.Text),  # how the last of them ended
    sa.Column("fatal", sa.Integer, nullable=False),  # 1: the trial must not be tried again
    sa.Column("trial_id", sa.Integer),
    sa.Column("owner", sa.String(300)),
    sa.Column("since", sa.Float(53)),  # start of the claim: seconds on the database's clock
    sa.Column("expires", sa.Float(53)),  # end of its lease, on the same clock
)
# As the indexes say it, without a parameter: of 100 000 slots nearly all are done, and without the
# indexes a claim goes through all of them.
IS_OPEN = SLOTS.c.state != sa.literal_column("'done'")
IS_HELD = SLOTS.c.state == sa.literal_column("'held'")
HAS_TRIAL, HAS_NONE = SLOTS.c.trial_id.is_not(None), SLOTS.c.trial_id.is_(None)
for _name, _rows in (
    ("studyloom_open_begun", sa.and_(IS_OPEN, HAS_TRIAL)),
    ("studyloom_open_fresh", sa.and_(IS_OPEN, HAS_NONE)),
    ("studyloom_held", IS_HELD),
):
    sa.Index(_name, SLOTS.c.study_id, SLOTS.c.slot, sqlite_where=_rows, postgresql_where=_rows)
# By it Optuna finds a trial by its number, which it does for each trial.
TRIAL_NUMBERS = "CREATE INDEX IF NOT EXISTS studyloom_trial_numbers ON trials (study_id, number)"

OF_STUDY = sa.and_(SLOTS.c.study_id == sa.bindparam("study"), SLOTS.c.slot < sa.bindparam("trials"))
HELD_BY_ME = sa.and_(IS_HELD, SLOTS.c.owner == sa.bindparam("me"))


def clock(dialect: str) -> sa.ColumnElement[float]:
    """Seconds since 1970 on the database's clock: those of the workers may differ by hours."""
    postgresql = "extract(epoch from clock_timestamp())"
    sqlite = "(julianday('now') - 2440587.5) * 86400.0"
    return sa.literal_column(postgresql if dialect == "postgresql" else sqlite, sa.Float(53))


def has_expired(dialect: str) -> sa.ColumnElement[bool]:
    """Selects the slots of other workers, not of `me`, whose leases have ended."""
    return sa.and_(IS_HELD, SLOTS.c.owner != sa.bindparam("me"), SLOTS.c.expires < clock(dialect))


def create_table(storage: RetryingStorage) -> None:
    """Creates the table with its indexes, and the index on Optuna's trials, if there is none."""
    if read(storage, _missing_columns) is None:
        execute(storage, METADATA.create_all)
        # Whoever does not own the trials may make no index of them, and claims more slowly.
        with suppress(StorageLost):
            execute(storage, lambda connection: connection.exec_driver_sql(TRIAL_NUMBERS))


def check_table(storage: RetryingStorage) -> bool:
    """Returns whether there is a table of the ledger's name.

    Raises:
        StorageError: It is another program's, or that of another version of studyloom.
    """
    missing = read(storage, _missing_columns)
    if missing:
        where = without_password(storage.retry.address)
        raise StorageError(
            f"storage.url: cannot use {where}: its table {SLOTS.name} has no {', '.join(missing)}; "
            "if another version of studyloom created it, install that version; if another program "
            "did, rename it, or use another database"
        )
    return missing is not None


def _missing_columns(connection: sa.Connection) -> list[str] | None:
    """Returns the columns that a table of the ledger's name lacks; None if there is no table."""
    inspector = sa.inspect(connection)
    if not inspector.has_table(SLOTS.name):
        return None
    known = {column["name"] for column in inspector.get_columns(SLOTS.name)}
    return sorted({column.name for column in SLOTS.columns} - known)


FRESH, OPEN, OWN, HELD, DONE = "fresh", "open", "own", "held", "done"


class Report(NamedTuple):
    """The report of a trial at a rung: its first at the rung's step or later."""

    step: int
    value: float


@dataclass(frozen=True)
class Standing:
    """How far the trial of a slot has come, and whether a worker holds it.

    Attributes:
        state: FRESH without a trial; OPEN with one that no living worker holds; OWN if the worker
            that asks holds it; HELD by another; DONE.
    """

    slot: int
    state: str
    last: int | None = None  # the last step that it has reported
    reports: Mapping[int, Report] = field(default_factory=dict)  # at each rung it has come to
    exempt: bool = False  # the baseline, which always goes on to its end
    costs: Mapping[str, float] = field(default_factory=dict)  # by the names that were asked for


class Next(NamedTuple):
    """The slot that is claimed next."""

    slot: int
    over: bool = False  # its trial is only told how it ended: it goes no further


class Order(Protocol):
    """Decides which slot is claimed next: a pure function, so that all workers decide the same."""

    @property
    def costs(self) -> Sequence[str]:
        """The names of the costs that decide."""
        ...

    def rungs(self, longest: int) -> Sequence[int]:
        """Returns the steps at which trials are compared, up to the longest so far, ascending."""
        ...

    def choose(self, standings: Sequence[Standing], *, closed: bool = False) -> Next | None:
        """Returns the slot to claim; None if there is nothing to do until others get further.

        Args:
            standings: All slots of the budget, in their order.
            closed: Whether the search has ended: no trial begins, and none is promoted.
        """
        ...


# By slot, what was read of it, and the token that it had; -1 if a worker held it.
Known = dict[int, tuple[int, Standing]]
UNKNOWN = (-1, None)


def read_standings(
    connection: sa.Connection, study_id: int, trials: int, order: Order, owner: str, known: Known
) -> list[Standing]:
    """Reads where the first `trials` slots of a study stand, in their order.

    Args:
        connection: In the transaction that decides.
        order: Says what it must know.
        owner: The id of the worker that asks.
        known: What was read before with this order, and is brought up to date. Of 1 000 slots it
            saves nine tenths of the time.
    """
    of_study = {"study": study_id, "trials": trials}
    rows = connection.execute(_states(connection.dialect.name), of_study | {"me": owner}).all()
    # Nobody reports for a slot that is not held, and who takes it gives it another token.
    changed = [
        slot for slot, _, token, rests in rows if not rests or known.get(slot, UNKNOWN)[0] != token
    ]
    read = _read_standings(connection, order, of_study | {"slots": json.dumps(changed)})
    standings = []
    for slot, state, token, rests in rows:
        standing = replace(read.get(slot) or known[slot][1], state=state)
        known[slot] = (token if rests else -1, standing)
        standings.append(standing)
    return standings


@lru_cache
def _states(dialect: str) -> sa.Executable:
    ready = sa.or_(SLOTS.c.state == "free", has_expired(dialect))
    state = sa.case(
        (SLOTS.c.state == "done", DONE),
        (HELD_BY_ME, OWN),
        (sa.and_(ready, HAS_NONE), FRESH),
        (ready, OPEN),
        else_=HELD,
    )
    columns = (SLOTS.c.slot, state, SLOTS.c.token, SLOTS.c.state != "held")
    return sa.select(*columns).where(OF_STUDY).order_by(SLOTS.c.slot)


REPORTS, ATTRIBUTES = TABLES["trial_intermediate_values"], TABLES["trial_user_attributes"]
CHANGED = sa.and_(OF_STUDY, among(SLOTS.c.slot, sa.bindparam("slots", type_=sa.String)))
LAST_STEP = (
    sa.select(sa.func.max(REPORTS.c.step))
    .where(REPORTS.c.trial_id == SLOTS.c.trial_id)
    .correlate(SLOTS)
    .scalar_subquery()
)
IS_BASELINE = (
    sa.select(ATTRIBUTES.c.trial_id)
    .where(ATTRIBUTES.c.trial_id == SLOTS.c.trial_id, ATTRIBUTES.c.key == BASELINE)
    .exists()
)
PROGRESS = sa.select(SLOTS.c.slot, LAST_STEP, IS_BASELINE).where(CHANGED)
COSTS = (
    sa.select(SLOTS.c.slot, ATTRIBUTES.c.key, ATTRIBUTES.c.value_json)
    .select_from(SLOTS)
    .join(ATTRIBUTES, ATTRIBUTES.c.trial_id == SLOTS.c.trial_id)
    .where(CHANGED, ATTRIBUTES.c.key.in_(sa.bindparam("names", expanding=True)))
)


def _read_standings(
    connection: sa.Connection, order: Order, of: dict[str, Any]
) -> dict[int, Standing]:
    """Reads all of some slots but their state."""
    rows = connection.execute(PROGRESS, of).all()
    longest = max((last for _, last, _ in rows if last is not None), default=0)
    reports = defaultdict[int, dict[int, Report]](dict)
    if rungs := tuple(order.rungs(longest)):
        value_of = TrialIntermediateValueModel.stored_repr_to_intermediate_value
        for slot, rung, step, *value in connection.execute(_reports(rungs), of):
            reports[slot][rung] = Report(step, value_of(*value))
    costs = defaultdict[int, dict[str, float]](dict)
    if order.costs:
        for slot, name, stored in connection.execute(COSTS, of | {"names": order.costs}):
            costs[slot][name] = float(json.loads(stored))
    return {
        slot: Standing(slot, FRESH, last, reports[slot], bool(exempt), costs[slot])
        for slot, last, exempt in rows
    }


@lru_cache(64)
def _reports(rungs: tuple[int, ...]) -> sa.Executable:
    """Builds the statement that reads the first report of each trial at each rung or later.

    Building it takes longer than the database takes to run it.
    """
    queries = []
    for rung in rungs:
        later = REPORTS.alias()
        first = (
            sa.select(sa.func.min(later.c.step))
            .where(later.c.trial_id == SLOTS.c.trial_id, later.c.step >= rung)
            .correlate(SLOTS)
            .scalar_subquery()
        )
        value = (REPORTS.c.intermediate_value, REPORTS.c.intermediate_value_type)
        query = (
            sa.select(
                SLOTS.c.slot, sa.literal_column(str(rung), sa.Integer), REPORTS.c.step, *value
            )
            .select_from(SLOTS)
            .join(REPORTS, sa.and_(REPORTS.c.trial_id == SLOTS.c.trial_id, REPORTS.c.step == first))
            .where(CHANGED)
        )
        queries.append(query)
    return sa.union_all(*queries)
