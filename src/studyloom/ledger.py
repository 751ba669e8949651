"""The budget of a study, as one table of our own beside Optuna's: a row for each of its N slots.

A worker claims a slot before it asks for a trial, in one conditional statement, so that any number of workers and
re-joins make exactly `study.trials` trials. A slot that is handed back keeps its trial, and whoever claims it next goes
on with it.
"""

from dataclasses import dataclass

import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy import Column, Integer, MetaData, String, Table, select, text, update

from studyloom.storage import transaction

METADATA = MetaData()
SLOTS = Table(
    "studyloom_slots",
    METADATA,
    Column("study_id", Integer, primary_key=True),
    Column("slot", Integer, primary_key=True),
    Column("state", String(4), nullable=False),  # free, held, done
    Column("token", Integer, nullable=False),  # claims so far: an old token has lost the slot
    Column("trial_id", Integer),
    Column("owner", String(300)),
)


@dataclass(frozen=True)
class Claim:
    """A slot that this worker holds, with the trial that an earlier holder has begun there."""

    slot: int
    token: int
    trial_id: int | None


@dataclass(frozen=True)
class Held:
    """A slot that somebody works on."""

    owner: str
    trial_id: int | None


@dataclass(frozen=True)
class Ledger:
    storage: RDBStorage
    study_id: int

    def create(self) -> None:
        """Makes the table, and forgets the slots of a deleted study: SQLite gives its id to the next one."""
        METADATA.create_all(self.storage.engine)
        with transaction(self.storage) as connection:
            connection.execute(SLOTS.delete().where(SLOTS.c.study_id == self.study_id))

    def extend(self, trials: int) -> None:
        """Gives the study at least `trials` slots."""
        statement = text(
            "INSERT INTO studyloom_slots (study_id, slot, state, token) VALUES (:study, :slot, 'free', 0) "
            "ON CONFLICT DO NOTHING"
        )
        with transaction(self.storage) as connection:
            if missing := range(self._count(connection), trials):
                connection.execute(statement, [{"study": self.study_id, "slot": slot} for slot in missing])

    def _count(self, connection: sqlalchemy.Connection) -> int:
        count = select(sqlalchemy.func.count()).where(SLOTS.c.study_id == self.study_id)
        return int(connection.execute(count).scalar_one())

    def claim(self, owner: str, trials: int) -> Claim | None:
        """Takes a free slot among the first `trials`, a handed-back one first; None where all are taken."""
        free = (
            select(SLOTS.c.slot)
            .where(SLOTS.c.study_id == self.study_id, SLOTS.c.slot < trials, SLOTS.c.state == "free")
            .order_by(SLOTS.c.trial_id.is_(None), SLOTS.c.slot)
            .limit(1)
            .with_for_update(skip_locked=True)  # PostgreSQL; SQLite has one writer at a time
        )
        statement = (
            update(SLOTS)
            .where(SLOTS.c.study_id == self.study_id, SLOTS.c.slot == free.scalar_subquery(), SLOTS.c.state == "free")
            .values(state="held", owner=owner, token=SLOTS.c.token + 1)
            .returning(SLOTS.c.slot, SLOTS.c.token, SLOTS.c.trial_id)
        )
        with transaction(self.storage) as connection:
            row = connection.execute(statement).one_or_none()
        return None if row is None else Claim(row.slot, row.token, row.trial_id)

    def attach(self, claim: Claim, trial_id: int) -> None:
        """Writes down which trial a slot has."""
        self._set(claim, trial_id=trial_id)

    def finish(self, claim: Claim) -> None:
        self._set(claim, state="done", owner=None)

    def release(self, claim: Claim) -> None:
        """Hands a slot back, with the trial begun there."""
        self._set(claim, state="free", owner=None)

    def _set(self, claim: Claim, **values: object) -> None:
        mine = (SLOTS.c.study_id == self.study_id, SLOTS.c.slot == claim.slot, SLOTS.c.token == claim.token)
        with transaction(self.storage) as connection:
            connection.execute(update(SLOTS).where(*mine).values(**values))

    def release_owner(self, owner: str) -> None:
        """Hands back what a worker held that is known to be dead."""
        its = (SLOTS.c.study_id == self.study_id, SLOTS.c.owner == owner, SLOTS.c.state == "held")
        with transaction(self.storage) as connection:
            connection.execute(update(SLOTS).where(*its).values(state="free", owner=None))

    def open(self, trials: int) -> int:
        """How many of the first `trials` slots are free."""
        free = (SLOTS.c.study_id == self.study_id, SLOTS.c.slot < trials, SLOTS.c.state == "free")
        with self.storage.engine.connect() as connection:
            return int(connection.execute(select(sqlalchemy.func.count()).where(*free)).scalar_one())

    def counts(self) -> dict[str, int]:
        """How many slots are free, held and done."""
        states = select(SLOTS.c.state, sqlalchemy.func.count()).where(SLOTS.c.study_id == self.study_id)
        with self.storage.engine.connect() as connection:
            found = {state: int(n) for state, n in connection.execute(states.group_by(SLOTS.c.state))}
        return {state: found.get(state, 0) for state in ("free", "held", "done")}

    def held(self) -> list[Held]:
        """Who works on what."""
        rows = (
            select(SLOTS.c.owner, SLOTS.c.trial_id)
            .where(SLOTS.c.study_id == self.study_id, SLOTS.c.state == "held")
            .order_by(SLOTS.c.owner)
        )
        with self.storage.engine.connect() as connection:
            return [Held(row.owner, row.trial_id) for row in connection.execute(rows)]
