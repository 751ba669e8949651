"""The table of slots, the rows of a budget, and the SQL with which workers claim and end them.

`ledger` says what slots, claims, leases and tokens are. Statements are built once: building one
takes longer than the database takes to run it.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from studyloom.errors import StorageError, StorageLost
from studyloom.storage import sql
from studyloom.storage.attributes import SLOT
from studyloom.storage.database import RetryingStorage
from studyloom.storage.sql import TRIALS
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


class clock(FunctionElement[float]):
    """Seconds since 1970 on the database's clock; those of the workers may differ by hours."""

    type = sa.Float(53)
    inherit_cache = True


@compiles(clock, "sqlite")
def _clock_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(clock, "postgresql")
def _clock_postgresql(*_: Any, **__: Any) -> str:
    return "extract(epoch from clock_timestamp())"


# Conditions on a slot

# The states stand in the statements and in the indexes as literals, without a parameter: a database
# uses a partial index only for a condition that repeats its own. Of 100,000 slots nearly all are
# done, and without the indexes a claim goes through all of them.
IS_OPEN = SLOTS.c.state != sa.literal_column("'done'")
IS_HELD = SLOTS.c.state == sa.literal_column("'held'")
HAS_TRIAL = SLOTS.c.trial_id.is_not(None)
HAS_NO_TRIAL = SLOTS.c.trial_id.is_(None)


def _index(name: str, condition: sa.ColumnElement[bool]) -> None:
    """Adds an index of the slots for which a condition holds."""
    sa.Index(
        name, SLOTS.c.study_id, SLOTS.c.slot, sqlite_where=condition, postgresql_where=condition
    )


_index("studyloom_open_begun", sa.and_(IS_OPEN, HAS_TRIAL))
_index("studyloom_open_fresh", sa.and_(IS_OPEN, HAS_NO_TRIAL))
_index("studyloom_held", IS_HELD)
# Optuna looks trials up by number; without this index each lookup is a scan.
TRIAL_NUMBERS = "CREATE INDEX IF NOT EXISTS studyloom_trial_numbers ON trials (study_id, number)"

# The first `trials` slots of a study.
IN_BUDGET = sa.and_(
    SLOTS.c.study_id == sa.bindparam("study"), SLOTS.c.slot < sa.bindparam("trials")
)
HELD_BY_ME = sa.and_(IS_HELD, SLOTS.c.owner == sa.bindparam("me"))
HELD_BY_OTHERS = sa.and_(IS_HELD, SLOTS.c.owner != sa.bindparam("me"))
HAS_EXPIRED = sa.and_(HELD_BY_OTHERS, SLOTS.c.expires < clock())
IS_READY = sa.or_(SLOTS.c.state == "free", HAS_EXPIRED)  # to be claimed


# The table


def check_table(storage: RetryingStorage) -> bool:
    """Returns whether the table of slots exists.

    Raises:
        StorageError: There is a table of this name without some columns: another program has made
            it, or another version of studyloom.
    """

    def read_columns(connection: sa.Connection) -> set[str]:
        inspector = sa.inspect(connection)
        if not inspector.has_table(SLOTS.name):
            return set()
        return {column["name"] for column in inspector.get_columns(SLOTS.name)}

    stored_columns = storage.read(read_columns)
    if not stored_columns:
        return False
    missing_columns = sorted({column.name for column in SLOTS.columns} - stored_columns)
    if missing_columns:
        database = without_password(storage.retry.address)
        raise StorageError(
            f"storage.url: cannot use {database}: its table {SLOTS.name} has no "
            f"{', '.join(missing_columns)}; if another version of studyloom created it, install "
            "that version; if another program did, rename it, or use another database"
        )
    return True


def create_table(storage: RetryingStorage) -> None:
    """Creates the table of slots and its indexes, unless it exists.

    An index of Optuna's trials by number is created too.
    """
    if check_table(storage):
        return
    storage.execute(METADATA.create_all)
    # Only the owner of the trials may make an index of them; without it claims are slower.
    with suppress(StorageLost):
        storage.execute(lambda connection: connection.exec_driver_sql(TRIAL_NUMBERS))


# Rows

INSERT_SLOT = sa.text(
    "INSERT INTO studyloom_slots (study_id, slot, state, token, deaths, fatal) "
    "VALUES (:study, :slot, 'free', 0, 0, 0) ON CONFLICT DO NOTHING"
)
# Writes a slot as it should be. The new token takes it from a worker that holds it.
SET_SLOT = sa.text(
    "INSERT INTO studyloom_slots (study_id, slot, state, token, deaths, fatal, trial_id) "
    "VALUES (:study, :slot, :state, 0, 0, 0, :trial_id) ON CONFLICT (study_id, slot) DO UPDATE "
    "SET state = excluded.state, trial_id = excluded.trial_id, token = studyloom_slots.token + 1, "
    "deaths = 0, death = NULL, fatal = 0, owner = NULL, expires = NULL"
)

# Statements on a worker's own claim

# The state of a slot's trial, and the slot that the trial says it fills: from both a worker learns
# that another program has ended or deleted the trial. They are text because SQLAlchemy names no
# tables in a RETURNING.
TRIAL_STATE = sa.literal_column(
    "(SELECT state FROM trials WHERE trials.trial_id = studyloom_slots.trial_id)",
    TRIALS.c.state.type,
).label("trial_state")
SLOT_OF_TRIAL = sa.literal_column(
    "(SELECT value_json FROM trials JOIN trial_user_attributes USING (trial_id) "
    "WHERE trials.trial_id = studyloom_slots.trial_id "
    f"AND trials.study_id = studyloom_slots.study_id AND key = '{SLOT}')",
    sa.Text(),
).label("slot_of_trial")
# A parameter may not be called as a column: "slot" and "token" would be taken for values to set.
IS_SLOT_OF_CLAIM = sa.and_(
    SLOTS.c.study_id == sa.bindparam("study"),
    SLOTS.c.slot == sa.bindparam("own_slot"),
    sql.IS_STUDY,
)
IS_CLAIM = sa.and_(IS_SLOT_OF_CLAIM, SLOTS.c.token == sa.bindparam("own_token"))
RENEW = (
    sa.update(SLOTS)
    .where(IS_CLAIM, IS_HELD)
    .values(expires=clock() + sa.bindparam("lease"))
    .returning(TRIAL_STATE, SLOT_OF_TRIAL)
)
END = (
    sa.update(SLOTS)
    .where(IS_CLAIM, IS_HELD)
    .values(state=sa.bindparam("next_state"), owner=None, expires=None)
    .returning(TRIAL_STATE, SLOT_OF_TRIAL)
)
READ_SLOT_OF_CLAIM = sa.select(
    SLOTS.c.state, SLOTS.c.token, SLOTS.c.trial_id, SLOTS.c.deaths
).where(IS_SLOT_OF_CLAIM)


# Claims


@lru_cache
def claim_chosen(*, only_with_trial: bool = False) -> sa.Update:
    """Builds the statement that claims the slot of the parameter `chosen`."""
    chosen_slot = sa.bindparam("chosen", type_=SLOTS.c.slot.type)
    return _claim(chosen_slot, _claimable(only_with_trial))


@lru_cache
def claim_first(*, only_with_trial: bool = False) -> sa.Update:
    """Builds the statement that claims the first slot, one with a trial before others.

    A worker that holds a slot already has lost the reply to its claim; it gets that slot again.
    """
    conditions = _claimable(only_with_trial)  # slots with a trial, then those without one
    # A query for each kind of slot, in the order of preference: each query uses its own index.
    candidates = [_first_slot(HELD_BY_ME, condition) for condition in conditions]
    candidates += [_first_slot(IS_OPEN, IS_READY, condition) for condition in conditions]
    no_slot = -1
    first_candidate = sa.func.coalesce(*candidates, no_slot)  # the first that is not NULL
    return _claim(first_candidate, conditions)


def _claimable(only_with_trial: bool) -> list[sa.ColumnElement[bool]]:
    """Returns the conditions of which a slot must meet one to be claimed, the preferred first."""
    if only_with_trial:
        return [HAS_TRIAL]
    return [HAS_TRIAL, HAS_NO_TRIAL]


def _first_slot(*conditions: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    """Builds the query for the first slot of the budget that meets all conditions."""
    return (
        sa.select(SLOTS.c.slot)
        .where(IN_BUDGET, *conditions)
        .order_by(SLOTS.c.slot)
        .limit(1)
        # PostgreSQL passes over a slot that another worker is claiming; SQLite has one writer.
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )


def _claim(slot: sa.ColumnElement[int], conditions: Sequence[sa.ColumnElement[bool]]) -> sa.Update:
    """Builds the statement that claims a slot, unless it is done or another worker holds it.

    The statement returns no row if the slot cannot be claimed. If the lease of the previous holder
    has ended, that worker counts as dead. SLOT_OF_TRIAL, the slot that the slot's trial names as
    its own, shows whether another program has deleted the trial.

    Args:
        slot: The slot, as a query or a parameter.
        conditions: Which slots the caller wants, such as those with a trial: one of these
            conditions must hold too.
    """
    return (
        sa.update(SLOTS)
        .where(
            IN_BUDGET,
            IS_OPEN,
            sa.or_(HELD_BY_ME, IS_READY),
            sa.or_(*conditions),
            SLOTS.c.slot == slot,
        )
        .values(
            state="held",
            owner=sa.bindparam("me"),
            token=SLOTS.c.token + 1,
            deaths=SLOTS.c.deaths + sa.case((HAS_EXPIRED, 1), else_=0),
            death=sa.case((HAS_EXPIRED, "it was silent too long"), else_=SLOTS.c.death),
            since=clock(),
            expires=clock() + sa.bindparam("lease"),
        )
        .returning(
            SLOTS.c.slot,
            SLOTS.c.token,
            SLOTS.c.trial_id,
            SLOTS.c.deaths,
            SLOTS.c.death,
            SLOTS.c.fatal,
            SLOT_OF_TRIAL,
        )
    )
