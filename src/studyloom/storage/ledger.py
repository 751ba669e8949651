"""The ledger: the budget of a study, as one table of our own beside Optuna's, a row for each slot.

A worker claims a slot before it asks for a trial, in one conditional statement, so that any number
of workers, restarts and crashes make exactly `study.trials` trials. A claim is a lease on the
database's clock. Whoever claims a slot that was released, or whose lease has ended, goes on with
the trial that was started there; the slot's token tells the previous holder, should it still be
alive, that it has lost the slot.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa

from studyloom.errors import StorageError
from studyloom.processes import host_id, is_alive
from studyloom.storage import sql
from studyloom.storage.database import RetryingStorage, execute, read
from studyloom.storage.retry import call_state
from studyloom.storage.slots import (
    HAS_NONE,
    HAS_TRIAL,
    HELD_BY_ME,
    IS_HELD,
    IS_OPEN,
    OF_STUDY,
    SLOTS,
    Known,
    Order,
    Standing,
    check_table,
    clock,
    create_table,
    has_expired,
    read_standings,
)
from studyloom.text import format_ranges

# A lease lasts for this many of the longest epoch so far, or the seconds that `study.lease` says.
LEASE_FACTOR = 4
WriteRows = Callable[[sa.Connection], None]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Claim:
    """A slot that this worker holds, and what happened to its previous holders."""

    slot: int
    token: int  # the number of claims on the slot so far, this one included
    trial_id: int | None
    deaths: int = 0  # the number of claims on the slot that ended with their worker
    death: str | None = None  # how the last of those ended
    fatal: bool = False  # the trial must not be tried again
    over: bool = False  # the trial is paused for good: it is only told so


@dataclass(frozen=True)
class HeldSlot:
    """A slot that a worker holds, by the worker's id."""

    owner: str
    trial_id: int | None
    left: float  # seconds until the lease ends; negative if it has ended
    age: float  # seconds since the slot was claimed


class HeldClaim(NamedTuple):
    """A worker's claim on a slot of any study of the database, such as another stage of a run."""

    owner: str
    study_id: int
    slot: int
    token: int


@dataclass(frozen=True)
class Ledger:
    """The slots of one study.

    Its methods raise StorageLost if the database stays away, or the study was deleted.

    Attributes:
        uuid: The study's attribute UUID, which tells it from a later study with its id.
    """

    storage: RetryingStorage
    study_id: int
    uuid: str
    _known: dict[Order, Known] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def _dialect(self) -> str:
        return self.storage.engine.dialect.name

    @property
    def _mine(self) -> sa.ColumnElement[bool]:
        return SLOTS.c.study_id == self.study_id

    @property
    def _now(self) -> sa.ColumnElement[float]:
        return clock(self._dialect)

    def extend(self, trials: int) -> None:
        """Gives the study at least `trials` slots."""
        existing = sa.select(SLOTS.c.slot).where(self._mine)

        def insert(connection: sa.Connection) -> None:
            if missing := {*range(trials)}.difference(connection.execute(existing).scalars()):
                rows = [{"study": self.study_id, "slot": slot} for slot in sorted(missing)]
                connection.execute(NEW_SLOT, rows)

        execute(self.storage, insert)

    def claim(
        self,
        owner: str,
        trials: int,
        lease: float,
        make: Callable[[sa.Connection, int], int] | None = None,
        *,
        fresh: bool = False,
        begun: bool = False,
        order: Order | None = None,
    ) -> Claim | None:
        """Takes a slot, one with a trial first.

        A worker holds one slot at a time. If it holds one already, the answer to its claim was lost
        on the way from the database, and it takes that slot again.

        Args:
            trials: Only the first so many slots are taken.
            lease: Seconds until the claim ends unless it is renewed.
            make: Creates a trial for a slot that has none, or whose trial is gone, in the
                transaction of the claim, and returns its id.
            fresh: Whether to take only a slot without a trial that no other worker has held.
            begun: Whether to take only a slot with a trial, since the search has ended.
            order: Decides which slot is taken; None for the first, one with a trial before others.

        Returns:
            The claim; None if all slots are done, or held by others.
        """

        def take(connection: sa.Connection) -> Claim | None:
            # Before the slot is chosen, so that slots and trials are in the same order.
            sql.lock_study(connection, self.study_id, self.uuid)
            chosen = None
            if order is not None:
                standings = self._standings(connection, owner, trials, order)
                if (chosen := order.choose(standings, closed=begun)) is None:
                    return None
            # Of a fresh claim whose answer was lost, an earlier try may have made the trial.
            repeated = fresh and call_state.uncertain
            statement = _claiming(self._dialect, fresh, begun, chosen is not None, repeated)
            of = {"study": self.study_id, "trials": trials, "me": owner, "lease": lease}
            of["chosen"] = None if chosen is None else chosen.slot
            row = connection.execute(statement, of).one_or_none()
            if row is None:
                return None
            over = chosen is not None and chosen.over
            known = (row.slot, row.token, row.trial_id, row.deaths, row.death, bool(row.fatal))
            claim = Claim(*known, over)
            return claim if make is None else self._with_trial(connection, claim, make)

        return execute(self.storage, take)

    def _with_trial(
        self, connection: sa.Connection, claim: Claim, make: Callable[[sa.Connection, int], int]
    ) -> Claim:
        """Creates the trial of a claim if there is none, also where it was deleted."""
        if claim.trial_id is not None:
            if sql.fills(connection, self.study_id, claim.trial_id, claim.slot):
                return claim
            log.warning("slot %d: its trial is gone; a new one takes its place", claim.slot)
            # What happened to the other trial does not count.
            claim = Claim(claim.slot, claim.token, None)
        claim = replace(claim, trial_id=make(connection, claim.slot))
        values = {
            "trial_id": claim.trial_id,
            "deaths": claim.deaths,
            "death": claim.death,
            "fatal": int(claim.fatal),
        }
        connection.execute(
            sa.update(SLOTS).where(self._mine, SLOTS.c.slot == claim.slot).values(values)
        )
        return claim

    def renew(self, claim: Claim, lease: float, write: WriteRows | None = None) -> bool:
        """Extends a claim, in one transaction with whatever else there is to write.

        Args:
            lease: Seconds from now until it ends.
            write: Writes further rows; it must bear being called twice.

        Returns:
            False if another worker has the slot by now; then nothing was written.
        """
        return self._update(self._renewal, claim, "held", write, lease=lease)

    def finish(self, claim: Claim, write: WriteRows | None = None) -> bool:
        """Ends a claim whose slot is done; otherwise like `renew`."""
        return self._update(self._end, claim, "done", write, next_state="done")

    def release(self, claim: Claim, write: WriteRows | None = None) -> bool:
        """Gives a slot back with the trial that was started there; otherwise like `renew`."""
        return self._update(self._end, claim, "free", write, next_state="free")

    def standings(self, owner: str, trials: int, order: Order) -> list[Standing]:
        """Reads where the first slots stand, as for a claim."""
        return read(self.storage, lambda c: self._standings(c, owner, trials, order))

    def _standings(
        self, connection: sa.Connection, owner: str, trials: int, order: Order
    ) -> list[Standing]:
        known = self._known.setdefault(order, {})
        return read_standings(connection, self.study_id, trials, order, owner, known)

    # Statements that a worker runs after each epoch, built once: building one took longer than the
    # database takes to run it. ("slot" and "token" would be taken for columns to set.)

    @cached_property
    def _own(self) -> sa.ColumnElement[bool]:
        return sa.and_(
            SLOTS.c.study_id == self.study_id,
            SLOTS.c.slot == sa.bindparam("own_slot"),
            SLOTS.c.token == sa.bindparam("own_token"),
            sql.is_study(self.study_id, self.uuid),
        )

    @cached_property
    def _renewal(self) -> sa.Update:
        renewed = self._now + sa.bindparam("lease")
        return sa.update(SLOTS).where(self._own, IS_HELD).values(expires=renewed)

    @cached_property
    def _end(self) -> sa.Update:
        ended: dict[str, Any] = {
            "state": sa.bindparam("next_state"),
            "owner": None,
            "expires": None,
        }
        return sa.update(SLOTS).where(self._own, IS_HELD).values(ended)

    def _update(
        self,
        statement: sa.Update,
        claim: Claim,
        state: str,
        write: WriteRows | None,
        **values: object,
    ) -> bool:
        """Runs a statement that updates no row if the claim no longer holds, and writes more rows.

        Args:
            state: The state of the slot afterwards.
        """
        own = {"own_slot": claim.slot, "own_token": claim.token}
        stored = sa.select(SLOTS.c.state).where(self._own)

        def work(connection: sa.Connection) -> bool:
            if not connection.execute(statement, own | values).rowcount:
                # An earlier try may have done its COMMIT, and only the answer was lost.
                return call_state.uncertain and connection.execute(stored, own).scalar() == state
            if write is not None:
                write(connection)
            return True

        return execute(self.storage, work)

    def renew_for(self, workers: Sequence[str], lease: float) -> None:
        """Extends the claims of workers for their supervisor, which sees that they are alive.

        Args:
            lease: Seconds from now until their claims end; a later end stays.
        """
        ends = self._now + lease
        statement = (
            sa.update(SLOTS).where(_held_by(workers), SLOTS.c.expires < ends).values(expires=ends)
        )
        execute(self.storage, lambda connection: connection.execute(statement))

    def record_death(self, owner: str, death: str, *, overdue: HeldClaim | None = None) -> int:
        """Releases what a dead worker held, records how it ended, and returns how many that were.

        Args:
            overdue: The claim whose trial must not be tried again, if the worker still holds that:
                it may have ended the trial itself and have begun another one.
        """
        fatal: sa.ColumnElement[Any] = sa.literal(0)
        if overdue is not None:
            of = (SLOTS.c.study_id, SLOTS.c.slot, SLOTS.c.token)
            same = sa.and_(
                *(column == value for column, value in zip(of, overdue[1:], strict=True))
            )
            fatal = sa.case((same, 1), else_=0)
        statement = (
            sa.update(SLOTS)
            .where(_held_by([owner]))
            .values(
                state="free",
                owner=None,
                expires=None,
                deaths=SLOTS.c.deaths + 1,
                death=death,
                fatal=fatal,
            )
        )
        return int(execute(self.storage, lambda connection: connection.execute(statement).rowcount))

    def record_gone(self) -> None:
        """Records the deaths of this host's workers whose process is gone, before leases end."""
        for held in self.held():
            host, _, pid = held.owner.rpartition(":")
            if host == host_id() and not is_alive(int(pid)):
                self.record_death(held.owner, "its process is gone")

    def overdue(self, workers: Sequence[str], limit: float) -> list[HeldClaim]:
        """Selects the claims of workers that are older than `limit` seconds."""
        columns = (SLOTS.c.owner, SLOTS.c.study_id, SLOTS.c.slot, SLOTS.c.token)
        query = sa.select(*columns).where(_held_by(workers), self._now - SLOTS.c.since > limit)
        return read(
            self.storage, lambda connection: [HeldClaim(*row) for row in connection.execute(query)]
        )

    def todo(self, trials: int, *, begun: bool = False) -> int:
        """Counts which of the first `trials` slots are not done; or only those with a trial."""
        # Two counts, each by an index.
        begun_slots, fresh_slots = (
            sa.select(sa.func.count())
            .where(self._mine, SLOTS.c.slot < trials, IS_OPEN, condition)
            .scalar_subquery()
            for condition in (HAS_TRIAL, HAS_NONE)
        )
        exists = sql.is_study(self.study_id, self.uuid)
        query = sa.select(begun_slots if begun else begun_slots + fresh_slots, exists)
        number, found = read(self.storage, lambda connection: connection.execute(query).one())
        if not found:
            raise sql.study_deleted()
        return int(number)

    def counts(self) -> dict[str, int]:
        """Counts the slots that are free, held and done."""
        query = sa.select(SLOTS.c.state, sa.func.count()).where(self._mine).group_by(SLOTS.c.state)
        rows = read(self.storage, lambda connection: connection.execute(query).all())
        return {"free": 0, "held": 0, "done": 0} | {str(state): int(n) for state, n in rows}

    def held(self) -> list[HeldSlot]:
        """Lists the slots that workers hold, in the order of the workers' ids."""
        left, age = SLOTS.c.expires - self._now, self._now - SLOTS.c.since
        query = (
            sa.select(SLOTS.c.owner, SLOTS.c.trial_id, left, age)
            .where(self._mine, IS_HELD)
            .order_by(SLOTS.c.owner)
        )
        return read(
            self.storage, lambda connection: [HeldSlot(*row) for row in connection.execute(query)]
        )


class NoLedger(Ledger):
    """The ledger of a study of another program: it has no slots, and there may be no table."""

    def todo(self, trials: int, *, begun: bool = False) -> int:
        return 0

    def counts(self) -> dict[str, int]:
        return {"free": 0, "held": 0, "done": 0}

    def held(self) -> list[HeldSlot]:
        return []


def _held_by(workers: Sequence[str]) -> sa.ColumnElement[bool]:
    """Selects in every study of the database: a worker goes from one stage of a run to the next."""
    return sa.and_(SLOTS.c.owner.in_(workers), IS_HELD)


@lru_cache
def _claiming(dialect: str, fresh: bool, begun: bool, chosen: bool, repeated: bool) -> sa.Update:
    """Builds the statement that takes a slot, which takes longer than the database to run it.

    Args:
        fresh: Whether only a slot is taken without a trial that no other worker has held.
        begun: Whether only a slot with a trial is taken.
        chosen: Whether only the slot of the parameter `chosen` is taken.
        repeated: Whether a fresh slot may have a trial if this worker holds it.
    """
    expired = has_expired(dialect)
    ready = sa.or_(SLOTS.c.state == "free", expired)
    takeable = sa.and_(OF_STUDY, IS_OPEN, sa.or_(HELD_BY_ME, ready))
    slot: sa.ColumnElement[int]
    if chosen:
        slot = sa.bindparam("chosen", type_=SLOTS.c.slot.type)
        takeable = sa.and_(takeable, HAS_TRIAL) if begun else takeable
    else:
        # In this order, each by an index of its own: the slot of a claim whose answer was lost, one
        # with a trial, a new one.
        found: list[sa.ScalarSelect[int]] = []
        if not fresh or repeated:
            found.append(_first(HAS_TRIAL, HELD_BY_ME))
        if not begun:
            found.append(_first(HAS_NONE, HELD_BY_ME))
        if not fresh:
            found.append(_first(IS_OPEN, HAS_TRIAL, ready))
        if not begun:
            untouched = [SLOTS.c.token == 0] if fresh else []
            found.append(_first(IS_OPEN, HAS_NONE, ready, *untouched))
        slot = sa.func.coalesce(*found, -1)
    columns = ("slot", "token", "trial_id", "deaths", "death", "fatal")
    return (
        sa.update(SLOTS)
        .where(takeable, SLOTS.c.slot == slot)
        .values(
            state="held",
            owner=sa.bindparam("me"),
            token=SLOTS.c.token + 1,
            deaths=SLOTS.c.deaths + sa.case((expired, 1), else_=0),
            death=sa.case((expired, "its lease ended"), else_=SLOTS.c.death),
            since=clock(dialect),
            expires=clock(dialect) + sa.bindparam("lease"),
        )
        .returning(*(SLOTS.c[name] for name in columns))
    )


def _first(*conditions: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    return (
        sa.select(SLOTS.c.slot)
        .where(OF_STUDY, *conditions)
        .order_by(SLOTS.c.slot)
        .limit(1)
        .with_for_update(skip_locked=True)  # PostgreSQL; SQLite has one writer at a time
        .scalar_subquery()
    )


class Entry(NamedTuple):
    """The state that a slot should have: free or done, and with which trial."""

    slot: int
    state: str
    trial_id: int | None


NEW_SLOT = sa.text(
    "INSERT INTO studyloom_slots (study_id, slot, state, token, deaths, fatal) "
    "VALUES (:study, :slot, 'free', 0, 0, 0) ON CONFLICT DO NOTHING"
)
# A new token takes the slot from whoever held it before.
ENTRY = sa.text(
    "INSERT INTO studyloom_slots (study_id, slot, state, token, deaths, fatal, trial_id) "
    "VALUES (:study, :slot, :state, 0, 0, 0, :trial_id) ON CONFLICT (study_id, slot) DO UPDATE "
    "SET state = excluded.state, trial_id = excluded.trial_id, token = studyloom_slots.token + 1, "
    "deaths = 0, death = NULL, fatal = 0, owner = NULL, expires = NULL"
)


def enter(connection: sa.Connection, study_id: int, entries: Sequence[Entry]) -> None:
    """Writes rows of the ledger; whoever holds one of the slots has lost it."""
    if entries:
        connection.execute(ENTRY, [{"study": study_id, **entry._asdict()} for entry in entries])


def clear(connection: sa.Connection, study_id: int) -> None:
    """Deletes the slots of a deleted study, whose id SQLite gives to the next one."""
    connection.execute(SLOTS.delete().where(SLOTS.c.study_id == study_id))


def reconcile(ledger: Ledger, name: str, trials: int) -> bool:
    """Mends a ledger that differs from the trials, logs where, and extends it to `trials` slots.

    Returns:
        Whether they differed.

    Raises:
        StorageError: Two trials have one slot or one number, so that a person must decide.
    """
    if not check_table(ledger.storage):
        create_table(ledger.storage)
    found = compare(ledger, mend=True)
    if found is not None:
        log.warning("%s: %s", name, found)
    ledger.extend(trials)
    return found is not None


def compare(ledger: Ledger, *, mend: bool = False) -> str | None:
    """Compares a ledger, whose table exists, with its trials: each slot is what its trial says.

    A slot that a worker holds is left as it is: what is wrong there meets the worker itself, with
    its next report.

    Args:
        mend: Whether the rows that differ are written.

    Returns:
        Which slots differed, and how that is mended; None if none did.

    Raises:
        StorageError: Two trials have one slot or one number.
        StorageLost: The study was deleted.
    """
    leased = sa.and_(IS_HELD, SLOTS.c.expires > ledger._now)
    query = sa.select(SLOTS.c.slot, SLOTS.c.state, SLOTS.c.trial_id, leased).where(ledger._mine)

    def work(connection: sa.Connection) -> list[Entry]:
        sql.lock_study(connection, ledger.study_id, ledger.uuid)
        rows = {row[0]: row for row in connection.execute(query.with_for_update())}
        trials = _by_slot(sql.heads(connection, ledger.study_id))
        found = []
        for slot in sorted({*rows, *trials}):
            trial = trials.get(slot)
            done = trial is not None and trial.state.is_finished()
            entry = Entry(slot, "done" if done else "free", trial and trial.trial_id)
            _, state, trial_id, is_leased = rows.get(slot, (slot, "missing", None, False))
            states = ["done"] if done else ["free", "held"]
            agrees = trial_id == entry.trial_id and state in states
            if not agrees and not is_leased:
                found.append(entry)
        if mend:
            enter(connection, ledger.study_id, found)
        return found

    if not (found := execute(ledger.storage, work)):
        return None
    slots = format_ranges([entry.slot for entry in found])
    return f"slots {slots}: differ from their trials; linked to these, or open where there is none"


def _by_slot(trials: Sequence[sql.TrialHead]) -> dict[int, sql.TrialHead]:
    """Returns the trials that fill slots; no two may have one slot, nor any two one number."""
    slots = Counter(trial.slot for trial in trials if trial.slot is not None)
    numbers = Counter(trial.number for trial in trials)
    for what, counts in (("slot", slots), ("number", numbers)):
        if twice := sorted(value for value, count in counts.items() if count > 1):
            raise StorageError(
                "study.name: ledger and trials contradict each other: several trials have the "
                f"{what} {format_ranges(twice)}; delete all but one of each, as in optuna-dashboard"
            )
    return {trial.slot: trial for trial in trials if trial.slot is not None}
