"""The budget of a study, as one table of our own beside Optuna's: a row for each of its N slots.

A worker claims a slot before it asks for a trial, in one conditional statement, so that any number of workers,
re-joins and crashes make exactly `study.trials` trials. A claim is a lease on the database's clock. Whoever claims a
slot that was handed back, or whose lease has ended, goes on with the trial begun there; the slot's token tells the
holder before, should it still be alive, that it has lost the slot.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    Update,
    bindparam,
    case,
    func,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy import and_ as all_of
from sqlalchemy import or_ as any_of

from studyloom.processes import host_id, is_alive
from studyloom.storage.database import RetryingStorage, execute, read
from studyloom.storage.retry import call_state

Write = Callable[[Connection], None]
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
    Column("fatal", Integer, nullable=False),  # 1: the trial is not to be tried again
    Column("trial_id", Integer),
    Column("owner", String(300)),
    Column(
        "since", Float(53)
    ),  # of the claim, and the end of its lease: seconds on the database's clock
    Column("expires", Float(53)),
)
# What a worker asks after each epoch, built once: building it took longer than the database does.
OWN = all_of(
    SLOTS.c.study_id == bindparam("study"),
    SLOTS.c.slot == bindparam("place"),
    SLOTS.c.token == bindparam("claim"),
)
STATE = select(SLOTS.c.state).where(OWN)
LEAVE = (
    update(SLOTS)
    .where(OWN, SLOTS.c.state == "held")
    .values(state=bindparam("left"), owner=None, expires=None)
)


@dataclass(frozen=True)
class Claim:
    """A slot that this worker holds, with the trial begun there and what befell its holders before."""

    slot: int
    token: int
    trial_id: int | None
    deaths: int = 0
    death: str | None = None
    fatal: bool = False


@dataclass(frozen=True)
class HeldSlot:
    """A slot that somebody works on, since `age` seconds; its lease has `left` seconds."""

    owner: str
    trial_id: int | None
    left: float
    age: float


@dataclass(frozen=True)
class Ledger:
    storage: RetryingStorage
    study_id: int

    def create(self) -> None:
        """Makes the table, and forgets the slots of a deleted study: SQLite gives its id to the next one."""
        execute(self.storage, METADATA.create_all)
        execute(
            self.storage,
            lambda c: c.execute(SLOTS.delete().where(SLOTS.c.study_id == self.study_id)),
        )

    def extend(self, trials: int) -> None:
        """Gives the study at least `trials` slots."""
        statement = text(
            "INSERT INTO studyloom_slots (study_id, slot, state, token, deaths, fatal) "
            "VALUES (:study, :slot, 'free', 0, 0, 0) ON CONFLICT DO NOTHING"
        )
        count = select(func.count()).where(self._mine)

        def insert(connection: Connection) -> None:
            if missing := range(connection.execute(count).scalar_one(), trials):
                connection.execute(
                    statement, [{"study": self.study_id, "slot": slot} for slot in missing]
                )

        execute(self.storage, insert)

    @property
    def _mine(self) -> ColumnElement[bool]:
        return SLOTS.c.study_id == self.study_id

    @property
    def _now(self) -> ColumnElement[float]:
        """Seconds since 1970 on the clock of the database: those of the workers may differ by hours."""
        postgresql = self.storage.engine.dialect.name == "postgresql"
        now = (
            "extract(epoch from clock_timestamp())"
            if postgresql
            else "(julianday('now') - 2440587.5) * 86400.0"
        )
        return literal_column(now, Float(53))

    def claim(
        self,
        owner: str,
        trials: int,
        lease: float,
        make: Callable[[Connection, int], int] | None = None,
        *,
        fresh: bool = False,
    ) -> Claim | None:
        """Takes one of the first `trials` slots for `lease` seconds, one with a trial first.

        A worker holds one slot at a time. What is its own already is a claim whose answer was lost on the way from the
        database, and is taken again.

        Args:
            make: makes a trial for a slot that has none, in the transaction of the claim, and returns its id.
            fresh: only one without a trial, that nobody else has held.

        Returns:
            None where all are done, or held by others.
        """
        own = all_of(SLOTS.c.state == "held", SLOTS.c.owner == owner)
        expired = all_of(
            SLOTS.c.state == "held", SLOTS.c.owner != owner, SLOTS.c.expires < self._now
        )
        takeable = all_of(
            self._mine, SLOTS.c.slot < trials, any_of(SLOTS.c.state == "free", own, expired)
        )
        if fresh:
            takeable = all_of(takeable, SLOTS.c.trial_id.is_(None), any_of(SLOTS.c.token == 0, own))
        first = (
            select(SLOTS.c.slot)
            .where(takeable)
            .order_by(case((own, 0), else_=1), SLOTS.c.trial_id.is_(None), SLOTS.c.slot)
            .limit(1)
            .with_for_update(skip_locked=True)  # PostgreSQL; SQLite has one writer at a time
        )
        statement = (
            update(SLOTS)
            .where(takeable, SLOTS.c.slot == first.scalar_subquery())
            .values(
                state="held",
                owner=owner,
                token=SLOTS.c.token + 1,
                deaths=SLOTS.c.deaths + case((expired, 1), else_=0),
                death=case((expired, "its lease ended"), else_=SLOTS.c.death),
                since=self._now,
                expires=self._now + lease,
            )
            .returning(*(SLOTS.c[name] for name in Claim.__dataclass_fields__))
        )

        def take(connection: Connection) -> Claim | None:
            row = connection.execute(statement).one_or_none()
            if row is None:
                return None
            trial_id = row.trial_id
            if trial_id is None and make is not None:
                trial_id = make(connection, row.slot)
                mine = all_of(self._mine, SLOTS.c.slot == row.slot)
                connection.execute(update(SLOTS).where(mine).values(trial_id=trial_id))
            return Claim(row.slot, row.token, trial_id, row.deaths, row.death, bool(row.fatal))

        return execute(self.storage, take)

    def renew(self, claim: Claim, lease: float, write: Write | None = None) -> bool:
        """Lets a claim last `lease` seconds from now, in one transaction with what else there is to write.

        Returns:
            False if it is another's by now; then nothing was written.
        """
        return self._set(self._renewal, claim, "held", write, lease=lease)

    def finish(self, claim: Claim, write: Write | None = None) -> bool:
        """Ends a claim, its slot is done; as `renew`."""
        return self._set(LEAVE, claim, "done", write, left="done")

    def release(self, claim: Claim) -> None:
        """Hands a slot back, with the trial begun there."""
        self._set(LEAVE, claim, "free", left="free")

    @cached_property
    def _renewal(self) -> Update:
        return (
            update(SLOTS)
            .where(OWN, SLOTS.c.state == "held")
            .values(expires=self._now + bindparam("lease"))
        )

    def _set(
        self,
        statement: Update,
        claim: Claim,
        state: str,
        write: Write | None = None,
        **values: object,
    ) -> bool:
        own = {"study": self.study_id, "place": claim.slot, "claim": claim.token}

        def work(connection: Connection) -> bool:
            if not connection.execute(statement, own | values).rowcount:
                # Ended by a try whose COMMIT was done and whose answer was lost.
                return call_state.uncertain and connection.execute(STATE, own).scalar() == state
            if write is not None:
                write(connection)
            return True

        return execute(self.storage, work)

    def renew_for(self, owners: Sequence[str], lease: float) -> None:
        """Lets what these workers hold last `lease` seconds from now: whoever started them sees them alive."""
        longer = any_of(SLOTS.c.expires.is_(None), SLOTS.c.expires < self._now + lease)
        statement = (
            update(SLOTS).where(self._held_by(owners), longer).values(expires=self._now + lease)
        )
        execute(self.storage, lambda connection: connection.execute(statement))

    def record_death(self, owner: str, death: str, *, fatal: bool = False) -> int:
        """Hands back what a dead worker held, and writes down how it ended; how many slots that were."""
        statement = (
            update(SLOTS)
            .where(self._held_by([owner]))
            .values(
                state="free",
                owner=None,
                expires=None,
                deaths=SLOTS.c.deaths + 1,
                death=death,
                fatal=int(fatal),
            )
        )
        return int(execute(self.storage, lambda connection: connection.execute(statement).rowcount))

    def record_gone(self) -> None:
        """Buries the workers of this host whose process is gone, without waiting for their leases to end."""
        for held in self.held():
            name, _, pid = held.owner.rpartition(":")
            if name == host_id() and not is_alive(int(pid)):
                self.record_death(held.owner, "its process is gone")

    def overdue(self, owners: Sequence[str], limit: float) -> list[str]:
        """Those of the workers whose claim is older than `limit` seconds."""
        late = select(SLOTS.c.owner).where(self._held_by(owners), SLOTS.c.since < self._now - limit)
        return list(read(self.storage, lambda connection: connection.execute(late).scalars().all()))

    @staticmethod
    def _held_by(owners: Sequence[str]) -> ColumnElement[bool]:
        """In whatever study of the database: a worker goes from one stage of a run to the next."""
        return all_of(SLOTS.c.owner.in_(owners), SLOTS.c.state == "held")

    def todo(self, trials: int) -> int:
        """How many of the first `trials` slots are not done."""
        open_ = select(func.count()).where(
            self._mine, SLOTS.c.slot < trials, SLOTS.c.state != "done"
        )
        return int(read(self.storage, lambda connection: connection.execute(open_).scalar_one()))

    def counts(self) -> dict[str, int]:
        """How many slots are free, held and done."""
        states = select(SLOTS.c.state, func.count()).where(self._mine).group_by(SLOTS.c.state)
        rows = read(self.storage, lambda connection: connection.execute(states).all())
        return {"free": 0, "held": 0, "done": 0} | {str(state): int(n) for state, n in rows}

    def held(self) -> list[HeldSlot]:
        """Who works on what."""
        left, age = (
            (SLOTS.c.expires - self._now).label("left"),
            (self._now - SLOTS.c.since).label("age"),
        )
        rows = (
            select(SLOTS.c.owner, SLOTS.c.trial_id, left, age)
            .where(self._mine, SLOTS.c.state == "held")
            .order_by(SLOTS.c.owner)
        )
        return read(
            self.storage, lambda connection: [HeldSlot(*row) for row in connection.execute(rows)]
        )
