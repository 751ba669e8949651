"""The table of the ledger: created, and told from a table of another program."""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from sqlalchemy import (
    Column,
    Connection,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    inspect,
)

from studyloom.errors import StorageError, StorageLost
from studyloom.storage.database import RetryingStorage, execute, read
from studyloom.storage.urls import without_password

METADATA = MetaData()
SLOTS = Table(
    "studyloom_slots",
    METADATA,
    Column("study_id", Integer, primary_key=True),
    Column("slot", Integer, primary_key=True),
    Column("state", String(4), nullable=False),  # free, held, done
    Column("token", Integer, nullable=False),  # claims so far: an old token has lost the slot
    Column("deaths", Integer, nullable=False),  # claims that ended with their worker
    Column("death", Text),  # how the last of them ended
    Column("fatal", Integer, nullable=False),  # 1: the trial must not be tried again
    Column("trial_id", Integer),
    Column("owner", String(300)),
    Column("since", Float(53)),  # start of the claim: seconds on the database's clock
    Column("expires", Float(53)),  # end of its lease, on the same clock
)


@dataclass(frozen=True)
class Claim:
    """A slot that this worker holds, and what happened to its previous holders.

    Attributes:
        slot: The slot's number, from 0.
        token: The number of claims on the slot so far, this one included.
        trial_id: The trial that was started there, if any.
        deaths: The number of claims on the slot that ended with their worker.
        death: How the last of those ended.
        fatal: Whether the trial must not be tried again.
        over: Whether the trial is paused for good: it is only told so.
    """

    slot: int
    token: int
    trial_id: int | None
    deaths: int = 0
    death: str | None = None
    fatal: bool = False
    over: bool = False


# The columns that a claim returns, as the fields of a Claim.
CLAIMED = [SLOTS.c[name] for name in Claim.__dataclass_fields__ if name in SLOTS.c]


@dataclass(frozen=True)
class HeldSlot:
    """A slot that a worker holds.

    Attributes:
        owner: The worker's id.
        trial_id: The trial that was started there, if any.
        left: Seconds until the lease ends; negative if it has ended.
        age: Seconds since the slot was claimed.
    """

    owner: str
    trial_id: int | None
    left: float
    age: float


class HeldClaim(NamedTuple):
    """What tells a claim that a worker holds from all others of the database.

    Attributes:
        owner: The worker's id.
        study_id: The id of the study, which may be another stage of the run.
        slot: The slot's number.
        token: The number of claims on the slot so far, this one included.
    """

    owner: str
    study_id: int
    slot: int
    token: int


# Without them a claim in a study of 100 000 trials goes through all slots and trials.
INDEXES = {
    "studyloom_open_begun": (
        "studyloom_slots (study_id, slot) WHERE state <> 'done' AND trial_id IS NOT NULL"
    ),
    "studyloom_open_fresh": (
        "studyloom_slots (study_id, slot) WHERE state <> 'done' AND trial_id IS NULL"
    ),
    "studyloom_held": "studyloom_slots (study_id, slot) WHERE state = 'held'",
    "studyloom_trial_numbers": "trials (study_id, number)",
}


def create_table(storage: RetryingStorage) -> None:
    """Creates the table and the indexes that are missing, also beside a table that exists."""
    execute(storage, METADATA.create_all)
    for name in read(storage, _missing_indexes):
        # Whoever does not own a table may have none made of it, and claims as before.
        with suppress(StorageLost):
            execute(storage, partial(_add_index, name))


def _add_index(name: str, connection: Connection) -> None:
    connection.exec_driver_sql(f"CREATE INDEX IF NOT EXISTS {name} ON {INDEXES[name]}")


def _missing_indexes(connection: Connection) -> list[str]:
    inspector = inspect(connection)
    tables = {of.partition(" ")[0] for of in INDEXES.values()}
    known = {index["name"] for table in tables for index in inspector.get_indexes(table)}
    return [name for name in INDEXES if name not in known]


def lacking(connection: Connection) -> list[str] | None:
    """Returns the columns that a table of the ledger's name lacks; None if there is no table."""
    inspector = inspect(connection)
    if not inspector.has_table(SLOTS.name):
        return None
    known = {column["name"] for column in inspector.get_columns(SLOTS.name)}
    return sorted({column.name for column in SLOTS.columns} - known)


def check_table(storage: RetryingStorage) -> bool:
    """Checks that a table of the ledger's name is the ledger.

    Returns:
        Whether there is a table.

    Raises:
        StorageError: Another program, or another version of studyloom, has created it.
    """
    missing = read(storage, lacking)
    if missing:
        where = without_password(storage.retry.address)
        raise StorageError(f"storage.url: cannot use {where}: {foreign_table(missing)}")
    return missing is not None


def foreign_table(missing: list[str]) -> str:
    """Words what is to be done about a table that lacks columns of the ledger."""
    return (
        f"its table {SLOTS.name} has no {', '.join(missing)}; if another version of studyloom "
        "created it, install that version; if another program did, rename it, or use another "
        "database"
    )


def clear(connection: Connection, study_id: int) -> None:
    """Deletes the slots of a deleted study, whose id SQLite gives to the next one."""
    connection.execute(SLOTS.delete().where(SLOTS.c.study_id == study_id))
