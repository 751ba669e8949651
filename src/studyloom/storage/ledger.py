"""The ledger: the budget of a study, as one table next to Optuna's, a row for each slot.

A worker claims a slot before it begins a trial, in one conditional statement, so that any number
of workers, restarts and crashes make exactly `study.trials` trials. A claim is a lease on the
database's clock. A worker that claims a slot that was released, or whose lease has ended, resumes
the trial that was started there; from the slot's token the previous holder, should it still be
alive, learns that it has lost the slot.

One further row of a study is the lease of the command that tests its winner.

Statements are built once: building one takes longer than the database takes to run it.
"""

import json
import logging
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol, Self

import sqlalchemy as sa
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from studyloom.errors import ClaimLost, StorageError, StorageLost
from studyloom.processes import host_id, is_alive, running_in_thread, worker_id
from studyloom.space.tree import Point
from studyloom.storage import sql
from studyloom.storage.attributes import (
    BASELINE,
    FAILURE,
    LARGEST,
    REASON,
    RUNGS,
    SEGMENTS,
    SLOT,
    UUID,
)
from studyloom.storage.database import LEASE, RENEWALS, RetryingStorage, call_state
from studyloom.storage.optuna_internals import TrialIntermediateValueModel
from studyloom.storage.sql import REPORTS, TRIALS, USER_ATTRIBUTES
from studyloom.storage.urls import without_password
from studyloom.text import format_ranges

# A lease lasts for this many of the longest epoch so far, or the seconds that `study.lease` says.
LEASE_FACTOR = 4
TEST_SLOT = LARGEST - 1  # of the command that tests the winner; no budget is as large
LOOK = 0.5  # seconds between looks at another command's lease
WriteRows = Callable[[sa.Connection], None]
Store = Callable[[int, str, Any], None]  # the id of a study, a key, and its value
log = logging.getLogger(__name__)

# The table

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
# As the indexes say it, without a parameter: of 100,000 slots nearly all are done, and without the
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


class clock(FunctionElement[float]):
    """Seconds since 1970 on the database's clock: those of the workers may differ by hours."""

    type = sa.Float(53)
    inherit_cache = True


@compiles(clock, "sqlite")
def _clock_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(clock, "postgresql")
def _clock_postgresql(*_: Any, **__: Any) -> str:
    return "extract(epoch from clock_timestamp())"


def check_table(storage: RetryingStorage) -> bool:
    """Returns whether there is a table of the ledger's name.

    Raises:
        StorageError: It is another program's, or that of another version of studyloom.
    """

    def missing_columns(connection: sa.Connection) -> list[str] | None:
        inspector = sa.inspect(connection)
        if not inspector.has_table(SLOTS.name):
            return None
        known = {column["name"] for column in inspector.get_columns(SLOTS.name)}
        return sorted({column.name for column in SLOTS.columns} - known)

    missing = storage.read(missing_columns)
    if missing:
        where = without_password(storage.retry.address)
        raise StorageError(
            f"storage.url: cannot use {where}: its table {SLOTS.name} has no {', '.join(missing)}; "
            "if another version of studyloom created it, install that version; if another program "
            "did, rename it, or use another database"
        )
    return missing is not None


def create_table(storage: RetryingStorage) -> None:
    """Creates the table with its indexes, and the index on Optuna's trials, if they are missing."""
    if not check_table(storage):
        storage.execute(METADATA.create_all)
        # Only the owner of the trials may make an index of them; without it claims are slower.
        with suppress(StorageLost):
            storage.execute(lambda connection: connection.exec_driver_sql(TRIAL_NUMBERS))


# Statements of workers

OF_STUDY = sa.and_(SLOTS.c.study_id == sa.bindparam("study"), SLOTS.c.slot < sa.bindparam("trials"))
HELD_BY_ME = sa.and_(IS_HELD, SLOTS.c.owner == sa.bindparam("me"))
EXPIRED = sa.and_(IS_HELD, SLOTS.c.owner != sa.bindparam("me"), SLOTS.c.expires < clock())
READY = sa.or_(SLOTS.c.state == "free", EXPIRED)
# What the trial of a slot says of itself. As text, since SQLAlchemy names no tables in a RETURNING.
TRIAL_STATE = sa.literal_column(
    "(SELECT state FROM trials WHERE trials.trial_id = studyloom_slots.trial_id)",
    TRIALS.c.state.type,
).label("trial_state")
FILLED = sa.literal_column(
    "(SELECT value_json FROM trials JOIN trial_user_attributes USING (trial_id) "
    "WHERE trials.trial_id = studyloom_slots.trial_id "
    f"AND trials.study_id = studyloom_slots.study_id AND key = '{SLOT}')",
    sa.Text(),
).label("filled")
# ("slot" and "token" would be taken for columns to set.)
OWN_CLAIM = sa.and_(
    SLOTS.c.study_id == sa.bindparam("study"),
    SLOTS.c.slot == sa.bindparam("own_slot"),
    SLOTS.c.token == sa.bindparam("own_token"),
    sql.IS_STUDY,
)
RENEW = (
    sa.update(SLOTS)
    .where(OWN_CLAIM, IS_HELD)
    .values(expires=clock() + sa.bindparam("lease"))
    .returning(TRIAL_STATE, FILLED)
)
END = (
    sa.update(SLOTS)
    .where(OWN_CLAIM, IS_HELD)
    .values(state=sa.bindparam("next_state"), owner=None, expires=None)
    .returning(TRIAL_STATE, FILLED)
)
STATE = sa.select(SLOTS.c.state).where(OWN_CLAIM)
NEW_SLOT = sa.text(
    "INSERT INTO studyloom_slots (study_id, slot, state, token, deaths, fatal) "
    "VALUES (:study, :slot, 'free', 0, 0, 0) ON CONFLICT DO NOTHING"
)
# A new token takes the slot from its previous holder.
ENTRY = sa.text(
    "INSERT INTO studyloom_slots (study_id, slot, state, token, deaths, fatal, trial_id) "
    "VALUES (:study, :slot, :state, 0, 0, 0, :trial_id) ON CONFLICT (study_id, slot) DO UPDATE "
    "SET state = excluded.state, trial_id = excluded.trial_id, token = studyloom_slots.token + 1, "
    "deaths = 0, death = NULL, fatal = 0, owner = NULL, expires = NULL"
)


@lru_cache
def _claiming(begun: bool, chosen: bool) -> sa.Update:
    """Builds the statement that takes a slot.

    With `begun` only a slot with a trial, with `chosen` only that of the parameter of this name.
    """
    kinds = (HAS_TRIAL,) if begun else (HAS_TRIAL, HAS_NONE)
    slot: sa.ColumnElement[int]
    if chosen:
        slot = sa.bindparam("chosen", type_=SLOTS.c.slot.type)
    else:
        # In this order, each by its own index: the slot of a claim whose reply was lost, one
        # with a trial, a new one.
        mine = [_first(HELD_BY_ME, kind) for kind in kinds]
        found = [*mine, *(_first(IS_OPEN, READY, kind) for kind in kinds)]
        slot = sa.func.coalesce(*found, -1)
    columns = ("slot", "token", "trial_id", "deaths", "death", "fatal")
    return (
        sa.update(SLOTS)
        .where(OF_STUDY, IS_OPEN, sa.or_(HELD_BY_ME, READY), sa.or_(*kinds), SLOTS.c.slot == slot)
        .values(
            state="held",
            owner=sa.bindparam("me"),
            token=SLOTS.c.token + 1,
            deaths=SLOTS.c.deaths + sa.case((EXPIRED, 1), else_=0),
            death=sa.case((EXPIRED, "it was silent too long"), else_=SLOTS.c.death),
            since=clock(),
            expires=clock() + sa.bindparam("lease"),
        )
        .returning(*(SLOTS.c[name] for name in columns), FILLED)
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


class Segment(NamedTuple):
    """A part of the training of a trial: to its next rung, or to its end; see `study.rounds`.

    Attributes:
        number: its place in the sequence of all segments of a study.
        start: the step after which it begins; None until the trial has its configuration.
    """

    number: int
    start: int | None


@dataclass(frozen=True)
class Claim:
    """A worker's claim on a slot, and how the previous holders of the slot ended."""

    slot: int
    token: int  # the number of claims on the slot so far, this one included
    trial_id: int | None
    deaths: int = 0  # the number of claims on the slot that ended with their worker
    death: str | None = None  # how the last of those ended
    fatal: bool = False  # the trial must not be tried again
    ends_pruned: bool = False  # its trial, which is paused, only ends: it goes no further
    segments: Sequence[Segment] = ()  # of its trial, the one to train now last; see `Next`


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


UNCLAIMED, OPEN, OWN, HELD, DONE = "unclaimed", "open", "own", "held", "done"


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
        state: UNCLAIMED without a trial; OPEN with one that no living worker holds; OWN if the
            worker that reads it holds it; HELD by another; DONE.
    """

    slot: int
    state: str
    last: int | None = None  # the last step that it has reported
    reports: Mapping[int, RungReport] = field(default_factory=dict)  # at each rung it has come to
    exempt: bool = False  # the baseline, which always runs to its end
    costs: Mapping[str, float] = field(default_factory=dict)  # by the names in the request
    paused: int | None = None  # the step at which it was paused last
    segments: Sequence[Segment] = ()  # so far, in a search in rounds
    failure: Fault | None = None  # of a trial that has failed


class Next(NamedTuple):
    """The slot that is claimed next."""

    slot: int
    ends_pruned: bool = False  # its trial, which is paused, only ends: it goes no further
    segments: Sequence[Segment] = ()  # what is stored of its trial then, in a search in rounds


class Order(Protocol):
    """Decides which slot is claimed next: pure, so that all workers decide the same."""

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


ASKED = sa.and_(OF_STUDY, sql.among(SLOTS.c.slot, sa.bindparam("slots", type_=sa.String)))
STATES = (
    sa.select(
        SLOTS.c.slot,
        sa.case(
            (SLOTS.c.state == "done", DONE),
            (HELD_BY_ME, OWN),
            (sa.and_(READY, HAS_NONE), UNCLAIMED),
            (READY, OPEN),
            else_=HELD,
        ),
        SLOTS.c.token,
        SLOTS.c.state != "held",
    )
    .where(OF_STUDY)
    .order_by(SLOTS.c.slot)
)
REPORTED = (
    sa.select(
        *(SLOTS.c.slot, REPORTS.c.step),
        *(REPORTS.c.intermediate_value, REPORTS.c.intermediate_value_type),
    )
    .join(REPORTS, REPORTS.c.trial_id == SLOTS.c.trial_id)
    .where(ASKED)
    .order_by(REPORTS.c.step)
)
MARKED = (
    sa.select(SLOTS.c.slot, USER_ATTRIBUTES.c.key, USER_ATTRIBUTES.c.value_json)
    .join(USER_ATTRIBUTES, USER_ATTRIBUTES.c.trial_id == SLOTS.c.trial_id)
    .where(ASKED, USER_ATTRIBUTES.c.key.in_(sa.bindparam("names", expanding=True)))
)


def _read_standings(
    connection: sa.Connection, order: Order, of: Mapping[str, Any], slots: Sequence[int]
) -> dict[int, Standing]:
    """Reads how far the trials of some slots have come, but not the states of the slots."""
    names = [BASELINE, RUNGS, SEGMENTS, FAILURE, REASON, *order.costs]
    asked = {**of, "slots": json.dumps(slots), "names": names}
    value_of = TrialIntermediateValueModel.stored_repr_to_intermediate_value
    reported = defaultdict[int, list[RungReport]](list)
    for slot, step, *value in connection.execute(REPORTED, asked):
        reported[slot].append(RungReport(step, value_of(*value)))
    marks = defaultdict[int, dict[str, Any]](dict)
    for slot, name, stored in connection.execute(MARKED, asked):
        marks[slot][name] = json.loads(stored)
    found = {}
    for slot in slots:
        reports, of_trial = reported[slot], marks[slot]
        last = reports[-1].step if reports else None
        at_rungs = {
            rung: next(report for report in reports if report.step >= rung)
            for rung in (order.rungs(last) if last is not None else ())
        }
        failure = None
        if FAILURE in of_trial:
            failure = Fault(str(of_trial[FAILURE]), str(of_trial.get(REASON)))
        costs = {name: float(of_trial[name]) for name in order.costs if name in of_trial}
        found[slot] = Standing(
            slot=slot,
            state=UNCLAIMED,
            last=last,
            reports=at_rungs,
            exempt=BASELINE in of_trial,
            costs=costs,
            paused=max(of_trial.get(RUNGS, ()), default=None),
            segments=tuple(Segment(*each) for each in of_trial.get(SEGMENTS, ())),
            failure=failure,
        )
    return found


class SlotEntry(NamedTuple):
    """Describes a slot as it should be: free or done, and its trial."""

    slot: int
    state: str
    trial_id: int | None


@dataclass(frozen=True)
class Ledger:
    """The slots of one study: its budget.

    Its methods raise StorageLost if the database stays away, or the study was deleted.

    Attributes:
        uuid: The study's attribute UUID, which differs from that of a later study with the same id.
    """

    storage: RetryingStorage
    study_id: int
    uuid: str
    # What was last read of each slot, and the token that it had; -1 if a worker held it. Of 1,000
    # slots this saves nine tenths of the time.
    _cached_standings: dict[int, tuple[int, Standing]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of(cls, storage: RetryingStorage, study_id: int, attributes: Mapping[str, Any]) -> Self:
        """Returns the ledger of a study with these attributes."""
        return cls(storage, study_id, attributes.get(UUID, ""))

    @property
    def _mine(self) -> sa.ColumnElement[bool]:
        return sa.and_(SLOTS.c.study_id == self.study_id, SLOTS.c.slot < TEST_SLOT)

    @property
    def _study(self) -> dict[str, Any]:
        return sql.study(self.study_id, self.uuid)

    def _rows(self, query: sa.Select[Any]) -> Sequence[Any]:
        return self.storage.read(lambda connection: connection.execute(query, self._study).all())

    def extend(self, trials: int) -> bool:
        """Adds the missing ones of the first `trials` slots; returns whether there were any."""
        existing = sa.select(SLOTS.c.slot).where(self._mine)

        def insert(connection: sa.Connection) -> bool:
            if missing := {*range(trials)}.difference(connection.execute(existing).scalars()):
                rows = [{"study": self.study_id, "slot": slot} for slot in sorted(missing)]
                connection.execute(NEW_SLOT, rows)
            return bool(missing)

        return self.storage.execute(insert)

    def claim(
        self,
        owner: str,
        trials: int,
        lease: float,
        make: Callable[[sa.Connection, int], int] | None = None,
        *,
        begun: bool = False,
        order: Order | None = None,
    ) -> Claim | None:
        """Claims a slot, one with a trial first.

        A worker holds one slot at a time. If it holds one already, the reply to its claim was lost
        on the way from the database, and it takes that slot again.

        Args:
            trials: Only the first so many slots are taken.
            lease: Seconds until the claim ends unless it is renewed.
            make: Creates a trial for a slot without one, or whose trial is gone, in the
                transaction of the claim, and returns its id.
            begun: Whether to take only a slot with a trial, since the search has ended.
            order: Decides which slot is taken; None for the first, one with a trial before others.

        Returns:
            The claim; None if all slots are done, or held by others.
        """

        def take(connection: sa.Connection) -> Claim | None:
            # Before the slot is chosen, so that slots and trials are in the same order.
            sql.lock_study(connection, self.study_id, self.uuid)
            of = {"study": self.study_id, "trials": trials, "me": owner, "lease": lease}
            further: Sequence[Any] = ()
            if order is not None:
                standings = self._standings(connection, owner, trials, order)
                if (chosen := order.choose(standings, closed=begun)) is None:
                    return None
                of["chosen"], *further = chosen
            row = connection.execute(_claiming(begun, order is not None), of).one_or_none()
            if row is None:
                return None
            slot, token, trial_id, deaths, death, fatal, filled = row
            claim = Claim(slot, token, trial_id, deaths, death, bool(fatal), *further)
            if make is not None and not (trial_id and sql.parse_slot(filled) == slot):
                if trial_id is not None:
                    log.warning("slot %d: its trial is gone; a new one takes its place", slot)
                    # What happened to the other trial does not count.
                    claim = Claim(slot, token, None, segments=claim.segments)
                claim = replace(claim, trial_id=make(connection, slot))
                known = {"deaths": claim.deaths, "death": claim.death, "fatal": int(claim.fatal)}
                linked = sa.update(SLOTS).where(self._mine, SLOTS.c.slot == slot)
                connection.execute(linked.values(trial_id=claim.trial_id, **known))
            if claim.trial_id is not None and claim.segments:
                sql.write(connection, [sql.user_attr(claim.trial_id, SEGMENTS, claim.segments)])
            return claim

        return self.storage.execute(take)

    def renew(self, claim: Claim, lease: float, write: WriteRows | None = None) -> bool:
        """Extends a claim, and writes further rows of its trial in the same transaction.

        Args:
            write: Writes further rows of the claim's trial; it must bear being called twice.

        Returns:
            False if another worker has the slot by now; then nothing was written.

        Raises:
            ClaimLost: Another program has ended or deleted the trial; nothing was written.
        """
        return self._update(RENEW, claim, "held", write, lease=lease)

    def finish(self, claim: Claim, write: WriteRows | None = None) -> bool:
        """Ends a claim whose slot is done; otherwise like `renew`."""
        return self._update(END, claim, "done", write, next_state="done")

    def finish_and_queue(self, claim: Claim, write: WriteRows) -> bool:
        """Ends a claim whose slot gets another trial, which `write` queues; otherwise like `renew`.

        The study is locked first, as by everyone who makes trials: locks in another order deadlock.
        """

        def lock(connection: sa.Connection) -> None:
            sql.lock_study(connection, self.study_id, self.uuid)

        return self._update(END, claim, "done", write, before=lock, next_state="done")

    def release(self, claim: Claim, write: WriteRows | None = None) -> bool:
        """Releases a slot, so that another worker resumes its trial; otherwise like `renew`."""
        return self._update(END, claim, "free", write, next_state="free")

    def _update(
        self,
        statement: sa.UpdateBase,
        claim: Claim,
        state: str,
        write: WriteRows | None,
        before: WriteRows | None = None,
        **values: object,
    ) -> bool:
        """Updates the row of a claim, and writes further rows if the claim still holds.

        Args:
            statement: Updates no row if the claim no longer holds.
            state: Of the slot afterwards.
            before: Called first, in the same transaction.
        """
        own = self._study | {"own_slot": claim.slot, "own_token": claim.token}

        def work(connection: sa.Connection) -> bool:
            if before is not None:
                before(connection)
            row = connection.execute(statement, own | values).one_or_none()
            if row is None:
                # An earlier try may have done its COMMIT, and only the reply was lost.
                return call_state.uncertain and connection.execute(STATE, own).scalar() == state
            if write is not None:
                trial_state, filled = row
                if claim.slot != TEST_SLOT:  # which has no trial
                    if sql.parse_slot(filled) != claim.slot:
                        raise sql.trial_deleted()
                    if trial_state.is_finished():
                        raise ClaimLost
                write(connection)
            return True

        return self.storage.execute(work)

    def standings(self, owner: str, trials: int, order: Order) -> list[Standing]:
        """Reads how far the trials of the first slots have come, as `claim` does."""
        return self.storage.read(lambda c: self._standings(c, owner, trials, order))

    def _standings(
        self, connection: sa.Connection, owner: str, trials: int, order: Order
    ) -> list[Standing]:
        of = {"study": self.study_id, "trials": trials, "me": owner}
        rows = connection.execute(STATES, of).all()
        # No worker reports for a slot that is not held, and its next holder gives it a new token.
        cached = self._cached_standings
        changed = [
            slot
            for slot, _, token, rests in rows
            if not rests or slot not in cached or cached[slot][0] != token
        ]
        read = _read_standings(connection, order, of, changed)
        standings = []
        for slot, state, token, rests in rows:
            standing = replace(read.get(slot) or cached[slot][1], state=state)
            cached[slot] = (token if rests else -1, standing)
            standings.append(standing)
        return standings

    def renew_for(self, workers: Sequence[str], lease: float) -> None:
        """Extends the claims of workers for their supervisor; a lease that ends later stays."""
        ends = clock() + lease
        statement = (
            sa.update(SLOTS).where(_held_by(workers), SLOTS.c.expires < ends).values(expires=ends)
        )
        self.storage.execute(lambda connection: connection.execute(statement))

    def record_death(self, owner: str, death: str, *, overdue: HeldClaim | None = None) -> int:
        """Releases the slots of a dead worker, records how it ended, and returns their number.

        Args:
            overdue: The claim whose trial must not be tried again, if the worker still holds it: it
                may have ended that trial itself and have begun another one.
        """
        fatal: sa.ColumnElement[Any] = sa.literal(0)
        if overdue is not None:
            same = sa.and_(*(SLOTS.c[name] == value for name, value in overdue._asdict().items()))
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
        return int(self.storage.execute(lambda connection: connection.execute(statement).rowcount))

    def record_gone(self) -> None:
        """Records the deaths of this host's workers whose process is gone, before leases end."""
        for held in (*self.held(), *self.held(testing=True)):
            host, _, pid = held.owner.rpartition(":")
            if host == host_id() and not is_alive(int(pid)):
                self.record_death(held.owner, "its process is gone")

    def overdue(self, workers: Sequence[str], limit: float) -> list[HeldClaim]:
        """Selects the claims of workers that are older than `limit` seconds."""
        columns = [SLOTS.c[name] for name in HeldClaim._fields]
        query = sa.select(*columns).where(_held_by(workers), clock() - SLOTS.c.since > limit)
        return [HeldClaim(*row) for row in self._rows(query)]

    def todo(self, trials: int, *, begun: bool = False) -> int:
        """Counts how many of the first `trials` slots are not done; or only those with a trial."""
        # Two counts, each by an index.
        begun_slots, unclaimed_slots = (
            sa.select(sa.func.count())
            .where(self._mine, SLOTS.c.slot < trials, IS_OPEN, condition)
            .scalar_subquery()
            for condition in (HAS_TRIAL, HAS_NONE)
        )
        query = sa.select(begun_slots if begun else begun_slots + unclaimed_slots, sql.IS_STUDY)
        ((number, found),) = self._rows(query)
        if not found:
            raise sql.study_deleted()
        return int(number)

    def counts(self) -> dict[str, int]:
        """Counts the slots that are free, held and done."""
        query = sa.select(SLOTS.c.state, sa.func.count()).where(self._mine).group_by(SLOTS.c.state)
        counts = {str(state): int(number) for state, number in self._rows(query)}
        return {"free": 0, "held": 0, "done": 0} | counts

    def held(self, *, testing: bool = False) -> list[HeldSlot]:
        """Lists the slots that workers hold, by worker; or the process that tests the winner."""
        left, age = SLOTS.c.expires - clock(), clock() - SLOTS.c.since
        which = SLOTS.c.slot == TEST_SLOT if testing else self._mine
        query = (
            sa.select(SLOTS.c.owner, SLOTS.c.trial_id, left, age)
            .where(SLOTS.c.study_id == self.study_id, which, IS_HELD)
            .order_by(SLOTS.c.owner)
        )
        return [HeldSlot(*row) for row in self._rows(query)]

    @contextmanager
    def testing(self) -> Iterator[Store]:
        """Holds the lease to test the winner, for which another command waits.

        A lock of the server would be lost as the server restarts. An outage that is shorter than
        `storage.deadline` leaves the lease valid; a process that has ended loses it at once.

        Yields:
            A function that stores an attribute of a study of the database, by its id; it raises
            StorageError, and stores nothing, if another command has taken over the lease.
        """
        me, lease, announced = worker_id(os.getpid()), self.storage.retry.deadline + LEASE, False
        of = {"study": self.study_id, "trials": LARGEST, "chosen": TEST_SLOT, "slot": TEST_SLOT}

        def take(connection: sa.Connection) -> Claim | None:
            sql.lock_study(connection, self.study_id, self.uuid)
            connection.execute(NEW_SLOT, of)
            taken = connection.execute(_claiming(False, True), of | {"me": me, "lease": lease})
            return next((Claim(TEST_SLOT, row.token, None) for row in taken), None)

        while (claim := self.storage.execute(take)) is None:
            self.record_gone()
            for held in () if announced else self.held(testing=True):
                announced, words = True, "waiting for %s, which tests the winner, for %g s at most"
                log.warning(words, held.owner, lease)
            time.sleep(LOOK)

        def renew(end: threading.Event) -> None:
            with suppress(StorageError):
                while not end.wait(LEASE / RENEWALS):
                    self.renew(claim, lease)

        def store(study_id: int, key: str, value: Any) -> None:
            write = partial(sql.set_study_attr, study_id=study_id, key=key, value=value)
            if not self.renew(claim, lease, write):
                raise StorageError(
                    f"this command was silent for longer than {lease:g} s while it tested the "
                    "winner, and another one has taken over; run this one again to see its result"
                )

        try:
            with running_in_thread(renew):
                yield store
        finally:
            with suppress(StorageError):  # what has ended the body counts
                self.release(claim)

    # What others have changed

    def enter(self, connection: sa.Connection, entries: Sequence[SlotEntry]) -> None:
        """Writes the rows of some slots; a worker that holds one of them loses it."""
        if entries:
            rows = [{"study": self.study_id, **entry._asdict()} for entry in entries]
            connection.execute(ENTRY, rows)

    def queue(
        self, connection: sa.Connection, slot: int, point: Point, attributes: Mapping[str, Any]
    ) -> FrozenTrial:
        """Creates a waiting trial of a configuration, and opens a slot for it."""
        trial = sql.insert(connection, self.study_id, {SLOT: slot, **attributes}, point)
        self.enter(connection, [SlotEntry(slot, "free", trial._trial_id)])
        return trial

    def never_claimed(self, connection: sa.Connection, trials: int) -> list[int]:
        """Lists which of the first `trials` slots no worker has claimed, and no trial fills."""
        query = sa.select(SLOTS.c.slot).where(OF_STUDY, IS_OPEN, HAS_NONE, SLOTS.c.token == 0)
        of = {"study": self.study_id, "trials": trials}
        return [*connection.execute(query.order_by(SLOTS.c.slot), of).scalars()]

    def reconcile(self, name: str, trials: int) -> bool:
        """Repairs the ledger if it differs from the trials, and extends it to `trials` slots.

        Returns:
            Whether they differed, see `compare`, or slots were missing.
        """
        create_table(self.storage)
        found = self.compare(mend=True)
        if found is not None:
            log.warning("%s: %s", name, found)
        return self.extend(trials) or found is not None

    def compare(self, *, mend: bool = False) -> str | None:
        """Compares the slots of the ledger, whose table exists, with the trials.

        A slot that a worker holds is skipped: its next report will fail.

        Returns:
            Which slots differed, and how they are repaired; None if none did.

        Raises:
            StorageError: Two trials have one slot or one number, so that a person must decide.
        """
        leased = sa.and_(IS_HELD, SLOTS.c.expires > clock())
        query = sa.select(SLOTS.c.slot, SLOTS.c.state, SLOTS.c.trial_id, leased).where(self._mine)

        def work(connection: sa.Connection) -> list[SlotEntry]:
            sql.lock_study(connection, self.study_id, self.uuid)
            rows = {row[0]: row for row in connection.execute(query.with_for_update())}
            trials = _by_slot(sql.heads(connection, self.study_id))
            found = []
            for slot in sorted({*rows, *trials}):
                trial = trials.get(slot)
                done = trial is not None and trial.state.is_finished()
                entry = SlotEntry(slot, "done" if done else "free", trial and trial.trial_id)
                _, state, trial_id, is_leased = rows.get(slot, (slot, "missing", None, False))
                states = ["done"] if done else ["free", "held"]
                agrees = trial_id == entry.trial_id and state in states
                if not agrees and not is_leased:
                    found.append(entry)
            if mend:
                self.enter(connection, found)
            return found

        if not (found := self.storage.execute(work)):
            return None
        differ = f"slots {format_ranges([entry.slot for entry in found])}: differ from their trials"
        return f"{differ}; linked to these, or open where there is no trial"


class NoLedger(Ledger):
    """The ledger of a study of another program: it has no slots, and there may be no table."""

    def todo(self, trials: int, *, begun: bool = False) -> int:
        return 0

    def counts(self) -> dict[str, int]:
        return {"free": 0, "held": 0, "done": 0}

    def held(self, *, testing: bool = False) -> list[HeldSlot]:
        return []


def _held_by(workers: Sequence[str]) -> sa.ColumnElement[bool]:
    """Selects the slots of workers, in every study: a worker goes from one stage to the next."""
    return sa.and_(SLOTS.c.owner.in_(workers), IS_HELD)


def add_study(
    storage: RetryingStorage,
    name: str,
    directions: Sequence[StudyDirection],
    attributes: Mapping[str, Any],
) -> None:
    """Creates the table and a study in one transaction; ours always have attributes."""
    create_table(storage)

    def add(connection: sa.Connection) -> None:
        study_id = sql.add_study(connection, name, directions, attributes)
        # Those of a deleted study, whose id SQLite gives to the next one.
        connection.execute(SLOTS.delete().where(SLOTS.c.study_id == study_id))

    storage.execute(add)


def _by_slot(trials: Sequence[sql.TrialHead]) -> dict[int, sql.TrialHead]:
    """Returns the trials that fill slots; no two may have one slot, nor any two one number."""
    slots = Counter(trial.slot for trial in trials if trial.slot is not None)
    numbers = Counter(trial.number for trial in trials)
    for what, counts in (("slot", slots), ("number", numbers)):
        if twice := sorted(value for value, count in counts.items() if count > 1):
            raise StorageError(
                f"study.name: the database is inconsistent: several trials have the {what} "
                f"{format_ranges(twice)}; delete all but one of each, as in optuna-dashboard"
            )
    return {trial.slot: trial for trial in trials if trial.slot is not None}
