"""The ledger: the budget of a study, as one table next to Optuna's, a row for each slot.

A *slot* stands for one trial of the budget: `study.trials` slots make exactly as many trials,
whatever the number of workers, restarts and crashes. A slot is free, held by a worker, or done.

A worker *claims* a slot before it begins a trial, in one conditional statement. A claim is a
*lease* on the database's clock: it ends unless the worker renews it. A worker that claims a slot
that was released, or whose lease has ended, resumes the trial that was started there.

Each claim gives the slot a new *token*. From the token the previous holder, should it still be
alive, learns that it has lost the slot: whatever it writes, it writes together with a change of its
claim in one transaction, which fails if the slot has another token.

One further row of a study is the lease of the command that tests its winner.
"""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Self

import sqlalchemy as sa
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from studyloom.errors import ClaimLost, StorageError
from studyloom.processes import host_id, is_alive, running_in_thread, worker_id
from studyloom.space.tree import Point
from studyloom.storage import connections, slot_table, sql
from studyloom.storage.attributes import LARGEST, SEGMENTS, SLOT, UUID, Attributes
from studyloom.storage.call_state import call_state
from studyloom.storage.database import RetryingStorage
from studyloom.storage.slot_table import IS_HELD, SLOTS, clock
from studyloom.storage.standings import Order, Segment, Standing, StandingsReader
from studyloom.text import format_ranges

# A lease lasts for this many of the longest epoch so far, or the seconds that `study.lease` says.
LEASE_FACTOR = 4
TEST_SLOT = LARGEST - 1  # of the command that tests the winner; no budget is as large
LOOK = 0.5  # seconds between looks at another command's lease
WriteRows = Callable[[sa.Connection], None]
SlotRow = sa.Row[Any]  # columns of the table of slots
Store = Callable[[int, str, Any], None]  # the id of a study, a key, and its value
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Claim:
    """A worker's claim on a slot, and how the previous holders of the slot ended.

    Attributes:
        slot: The slot.
        token: The number of claims on the slot so far, this one included.
        trial_id: The id of its trial.
        deaths: The number of claims on the slot that ended with their worker.
        death: How the last of those ended.
        fatal: Whether the trial must not be tried again.
        ends_pruned: Whether its trial, which is paused, only ends: it goes no further.
        segments: The segments of its trial, the one to train now last, in a search in rounds.
    """

    slot: int
    token: int
    trial_id: int | None
    deaths: int = 0
    death: str | None = None
    fatal: bool = False
    ends_pruned: bool = False
    segments: Sequence[Segment] = ()


@dataclass(frozen=True)
class HeldSlot:
    """A slot that a worker holds, by the worker's id."""

    owner: str
    trial_id: int | None
    left: float  # seconds until the lease ends; negative if it has ended
    age: float  # seconds since the slot was claimed


@dataclass(frozen=True)
class HeldClaim:
    """A worker's claim on a slot of any study of the database, such as another stage of a run."""

    owner: str
    study_id: int
    slot: int
    token: int


@dataclass(frozen=True)
class SlotEntry:
    """Describes a slot as it should be: free or done, and its trial."""

    slot: int
    state: str
    trial_id: int | None


@dataclass(frozen=True)
class Ledger:
    """The slots of one study: its budget.

    Its methods raise StorageLost if the database stays away, or the study was deleted.

    Attributes:
        storage: The database.
        study_id: The id of the study.
        uuid: The study's attribute UUID, which differs from that of a later study with the same id.
    """

    storage: RetryingStorage
    study_id: int
    uuid: str
    _standings: StandingsReader = field(
        default_factory=StandingsReader, init=False, repr=False, compare=False
    )

    @classmethod
    def of(cls, storage: RetryingStorage, study_id: int, attributes: Attributes) -> Self:
        """Returns the ledger of a study with these attributes."""
        return cls(storage, study_id, attributes.get(UUID, ""))

    @property
    def _in_study(self) -> sa.ColumnElement[bool]:
        """The condition on slots that they belong to the study, whatever its budget."""
        return sa.and_(SLOTS.c.study_id == self.study_id, SLOTS.c.slot < TEST_SLOT)

    @property
    def _study_parameters(self) -> dict[str, Any]:
        return sql.study_parameters(self.study_id, self.uuid)

    def _lock_study(self, connection: sa.Connection) -> None:
        sql.lock_study(connection, self.study_id, self.uuid)

    def _rows(self, query: sa.Executable) -> Sequence[Any]:
        return self.storage.read(
            lambda connection: connection.execute(query, self._study_parameters).all()
        )

    # The life of a claim

    def extend(self, trials: int) -> bool:
        """Adds the missing ones of the first `trials` slots; returns whether there were any."""
        existing = sa.select(SLOTS.c.slot).where(self._in_study)

        def insert(connection: sa.Connection) -> bool:
            missing = set(range(trials)).difference(connection.execute(existing).scalars())
            rows = [{"study": self.study_id, "slot": slot} for slot in sorted(missing)]
            if rows:
                connection.execute(slot_table.NEW_SLOT, rows)
            return bool(rows)

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
            owner: The id of the worker.
            trials: Only the first so many slots are taken.
            lease: Seconds until the claim ends unless it is renewed.
            make: Creates a trial for a slot without one, or whose trial is gone, in the
                transaction of the claim, and returns its id.
            begun: Whether to take only a slot with a trial, since the search has ended.
            order: Decides which slot is taken; None for the first, one with a trial before others.

        Returns:
            The claim; None if all slots are done, or held by others.
        """
        parameters = {"study": self.study_id, "trials": trials, "me": owner, "lease": lease}

        def take(connection: sa.Connection) -> Claim | None:
            # The study is locked before the slot is chosen, so that the trials are numbered in the
            # order of their slots.
            self._lock_study(connection)
            if order is None:
                row = _take_first(connection, parameters, only_with_trial=begun)
                choice = None
            else:
                standings = self._standings.read(connection, order, self.study_id, trials, owner)
                choice = order.choose(standings, closed=begun)
                if choice is None:
                    return None
                row = _take_chosen(connection, parameters, choice.slot, only_with_trial=begun)
            if row is None:
                return None
            claim = _read_claim(row)
            if choice is not None:
                claim = replace(claim, ends_pruned=choice.ends_pruned, segments=choice.segments)
            has_trial = claim.trial_id is not None and _fills_slot(row.slot_of_trial, claim)
            if make is not None and not has_trial:
                claim = self._make_trial(connection, claim, make)
            if claim.trial_id is not None and claim.segments:
                sql.write(connection, [sql.user_attr(claim.trial_id, SEGMENTS, claim.segments)])
            return claim

        return self.storage.execute(take)

    def _make_trial(
        self, connection: sa.Connection, claim: Claim, make: Callable[[sa.Connection, int], int]
    ) -> Claim:
        """Makes a trial for the slot of a claim, and returns the claim with it."""
        if claim.trial_id is not None:
            log.warning("slot %d: its trial is gone; a new one takes its place", claim.slot)
            # Nothing that happened to the other trial counts.
            claim = Claim(claim.slot, claim.token, None, segments=claim.segments)
        claim = replace(claim, trial_id=make(connection, claim.slot))
        row = {
            "trial_id": claim.trial_id,
            "deaths": claim.deaths,
            "death": claim.death,
            "fatal": int(claim.fatal),
        }
        has_slot = sa.and_(self._in_study, SLOTS.c.slot == claim.slot)
        connection.execute(sa.update(SLOTS).where(has_slot).values(row))
        return claim

    def renew(self, claim: Claim, lease: float, write: WriteRows | None = None) -> bool:
        """Extends a claim, and writes further rows of its trial in the same transaction.

        Args:
            lease: Seconds until the claim ends unless it is renewed again.
            write: Writes further rows of the claim's trial; it may be called twice.

        Returns:
            False if another worker has the slot by now; then nothing was written.

        Raises:
            ClaimLost: Another program has ended or deleted the trial; nothing was written.
        """
        change = ClaimChange(slot_table.RENEW, {"lease": lease}, state="held")
        return self._change(claim, change, write)

    def finish(self, claim: Claim, write: WriteRows | None = None) -> bool:
        """Ends a claim whose slot is done; otherwise like `renew`."""
        return self._change(claim, FINISH, write)

    def finish_and_queue(self, claim: Claim, write: WriteRows) -> bool:
        """Ends a claim whose slot gets another trial, which `write` queues; otherwise like `renew`.

        The study is locked first, as by all who make trials: locks in another order deadlock.
        """
        return self._change(claim, FINISH, write, lock_study=True)

    def release(self, claim: Claim, write: WriteRows | None = None) -> bool:
        """Releases a slot, so that another worker resumes its trial; otherwise like `renew`."""
        return self._change(claim, RELEASE, write)

    def _change(
        self,
        claim: Claim,
        change: "ClaimChange",
        write: WriteRows | None,
        *,
        lock_study: bool = False,
    ) -> bool:
        """Changes the row of a claim, and writes further rows if the claim still holds."""
        own_claim = {**self._study_parameters, "own_slot": claim.slot, "own_token": claim.token}
        parameters = {**own_claim, **change.parameters}

        def work(connection: sa.Connection) -> bool:
            if lock_study:
                self._lock_study(connection)
            row = connection.execute(change.statement, parameters).one_or_none()
            if row is None:
                # Another worker has the slot, or an earlier try has done its COMMIT, and only the
                # reply was lost: then the slot has the new state and still the same token.
                if not call_state.uncertain:
                    return False
                state = connection.execute(slot_table.STATE_OF_CLAIM, own_claim).scalar()
                return bool(state == change.state)
            if write is not None:
                if claim.slot != TEST_SLOT:  # the command that tests the winner has no trial
                    _check_trial(row, claim)
                write(connection)
            return True

        return self.storage.execute(work)

    # Looks at the slots

    def standings(self, owner: str, trials: int, order: Order) -> list[Standing]:
        """Reads how far the trials of the first slots have come, as `claim` does."""
        return self.storage.read(
            lambda connection: self._standings.read(connection, order, self.study_id, trials, owner)
        )

    def todo(self, trials: int, *, begun: bool = False) -> int:
        """Counts how many of the first `trials` slots are not done; or only those with a trial."""
        # Two counts in one statement, so that each uses its own index.
        count = self._count_open(trials, slot_table.HAS_TRIAL)
        if not begun:
            count += self._count_open(trials, slot_table.HAS_NO_TRIAL)
        (row,) = self._rows(sa.select(count.label("open"), sql.IS_STUDY.label("study_exists")))
        if not row.study_exists:
            raise sql.study_deleted()
        return int(row.open)

    def _count_open(self, trials: int, condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        """Builds the query that counts the slots which are not done and meet a condition."""
        return (
            sa.select(sa.func.count())
            .where(self._in_study, SLOTS.c.slot < trials, slot_table.IS_OPEN, condition)
            .scalar_subquery()
        )

    def counts(self) -> dict[str, int]:
        """Counts the slots that are free, held and done."""
        query = sa.select(SLOTS.c.state, sa.func.count()).where(self._in_study)
        counts = {"free": 0, "held": 0, "done": 0}
        for state, number in self._rows(query.group_by(SLOTS.c.state)):
            counts[str(state)] = int(number)
        return counts

    def held(self, *, testing: bool = False) -> list[HeldSlot]:
        """Lists the slots that workers hold, by worker; or the process that tests the winner."""
        if testing:
            is_listed = SLOTS.c.slot == TEST_SLOT
        else:
            is_listed = self._in_study
        time_left = SLOTS.c.expires - clock()
        age = clock() - SLOTS.c.since
        query = (
            sa.select(SLOTS.c.owner, SLOTS.c.trial_id, time_left, age)
            .where(SLOTS.c.study_id == self.study_id, is_listed, IS_HELD)
            .order_by(SLOTS.c.owner)
        )
        return [HeldSlot(*row) for row in self._rows(query)]

    def overdue(self, workers: Sequence[str], limit: float) -> list[HeldClaim]:
        """Selects the claims of workers that are older than `limit` seconds."""
        is_overdue = clock() - SLOTS.c.since > limit
        query = sa.select(SLOTS.c.owner, SLOTS.c.study_id, SLOTS.c.slot, SLOTS.c.token)
        return [HeldClaim(*row) for row in self._rows(query.where(_held_by(workers), is_overdue))]

    def never_claimed(self, connection: sa.Connection, trials: int) -> list[int]:
        """Lists which of the first `trials` slots no worker has claimed, and no trial fills."""
        query = (
            sa.select(SLOTS.c.slot)
            .where(
                slot_table.IN_BUDGET,
                slot_table.IS_OPEN,
                slot_table.HAS_NO_TRIAL,
                SLOTS.c.token == 0,
            )
            .order_by(SLOTS.c.slot)
        )
        parameters = {"study": self.study_id, "trials": trials}
        return list(connection.execute(query, parameters).scalars())

    # Claims of other workers

    def renew_for(self, workers: Sequence[str], lease: float) -> None:
        """Extends the claims of workers for their supervisor; a lease that ends later stays."""
        end = clock() + lease
        ends_earlier = SLOTS.c.expires < end
        statement = sa.update(SLOTS).where(_held_by(workers), ends_earlier).values(expires=end)
        self.storage.execute(lambda connection: connection.execute(statement))

    def record_death(self, owner: str, death: str, *, overdue: HeldClaim | None = None) -> int:
        """Releases the slots of a dead worker, records how it ended, and returns their number.

        Args:
            overdue: The claim whose trial must not be tried again, if the worker still holds it: it
                may have ended that trial itself and have begun another one.
        """
        fatal: sa.ColumnElement[int] = sa.literal(0)
        if overdue is not None:
            is_overdue = sa.and_(
                SLOTS.c.owner == overdue.owner,
                SLOTS.c.study_id == overdue.study_id,
                SLOTS.c.slot == overdue.slot,
                SLOTS.c.token == overdue.token,
            )
            fatal = sa.case((is_overdue, 1), else_=0)
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

    # The lease to test the winner

    @contextmanager
    def testing(self) -> Iterator[Store]:
        """Holds the lease to test the winner, for which another command waits.

        A lock of the server would be lost as the server restarts. An outage that is shorter than
        `storage.deadline` leaves the lease valid; a process that has ended loses it at once.

        Yields:
            A function that stores an attribute of a study of the database, by its id; it raises
            StorageError, and stores nothing, if another command has taken over the lease.
        """
        lease = self.storage.retry.deadline + connections.LEASE
        claim = self._wait_to_test(lease)

        def renew(end: threading.Event) -> None:
            with suppress(StorageError):
                while not end.wait(connections.LEASE / connections.RENEWALS):
                    self.renew(claim, lease)

        def store(study_id: int, key: str, value: object) -> None:
            def write(connection: sa.Connection) -> None:
                sql.set_study_attr(connection, study_id, key, value)

            if not self.renew(claim, lease, write):
                raise StorageError(
                    f"this command was silent for longer than {lease:g} s while it tested the "
                    "winner, and another one has taken over; run this one again to see its result"
                )

        try:
            with running_in_thread(renew):
                yield store
        finally:
            with suppress(StorageError):  # an error of the body counts more than one of this
                self.release(claim)

    def _wait_to_test(self, lease: float) -> Claim:
        """Waits until no other command tests the winner, and claims the slot for it."""
        is_announced = False
        while True:
            claim = self.storage.execute(lambda connection: self._try_to_test(connection, lease))
            if claim is not None:
                return claim
            self.record_gone()
            holders = self.held(testing=True)  # one, or none if it has just released the slot
            if holders and not is_announced:
                is_announced = True
                message = "waiting for %s, which tests the winner, for %g s at most"
                log.warning(message, holders[0].owner, lease)
            time.sleep(LOOK)

    def _try_to_test(self, connection: sa.Connection, lease: float) -> Claim | None:
        """Claims the slot of the command that tests the winner; None while another one holds it."""
        self._lock_study(connection)
        connection.execute(slot_table.NEW_SLOT, {"study": self.study_id, "slot": TEST_SLOT})
        parameters = {
            "study": self.study_id,
            "trials": LARGEST,
            "me": worker_id(os.getpid()),
            "lease": lease,
        }
        row = _take_chosen(connection, parameters, TEST_SLOT)
        if row is None:
            return None
        return Claim(TEST_SLOT, row.token, None)

    # Changes by commands, and repairs

    def enter(self, connection: sa.Connection, entries: Sequence[SlotEntry]) -> None:
        """Writes the rows of some slots; a worker that holds one of them loses it."""
        rows = [
            {
                "study": self.study_id,
                "slot": entry.slot,
                "state": entry.state,
                "trial_id": entry.trial_id,
            }
            for entry in entries
        ]
        if rows:
            connection.execute(slot_table.SET_SLOT, rows)

    def queue(
        self, connection: sa.Connection, slot: int, point: Point, attributes: Attributes
    ) -> FrozenTrial:
        """Creates a waiting trial of a configuration, and opens a slot for it."""
        trial = sql.insert(connection, self.study_id, {SLOT: slot, **attributes}, point)
        self.enter(connection, [SlotEntry(slot, "free", trial._trial_id)])
        return trial

    def reconcile(self, name: str, trials: int) -> bool:
        """Repairs the ledger if it differs from the trials, and extends it to `trials` slots.

        Returns:
            Whether they differed, see `compare`, or slots were missing.
        """
        slot_table.create_table(self.storage)
        difference = self.compare(repair=True)
        if difference is not None:
            log.warning("%s: %s", name, difference)
        extended = self.extend(trials)
        return extended or difference is not None

    def compare(self, *, repair: bool = False) -> str | None:
        """Compares the slots of the ledger, whose table exists, with the trials.

        A slot that a worker holds is skipped: its next report will fail.

        Returns:
            Which slots differed, and how they are repaired; None if none did.

        Raises:
            StorageError: Two trials have one slot or one number, so that a person must decide.
        """

        def work(connection: sa.Connection) -> list[SlotEntry]:
            self._lock_study(connection)
            entries = self._differing_slots(connection)
            if repair:
                self.enter(connection, entries)
            return entries

        entries = self.storage.execute(work)
        if not entries:
            return None
        slots = format_ranges([entry.slot for entry in entries])
        return (
            f"slots {slots}: differ from their trials; linked to these, or open where there is no "
            "trial"
        )

    def _differing_slots(self, connection: sa.Connection) -> list[SlotEntry]:
        """Lists how slots should be that differ from their trials and that no worker holds."""
        is_leased = sa.and_(IS_HELD, SLOTS.c.expires > clock()).label("is_leased")
        query = sa.select(SLOTS.c.slot, SLOTS.c.state, SLOTS.c.trial_id, is_leased)
        rows = connection.execute(query.where(self._in_study).with_for_update())
        row_by_slot = {row.slot: row for row in rows}
        trial_by_slot = _trials_by_slot(sql.read_summaries(connection, self.study_id))
        differing = []
        for slot in sorted({*row_by_slot, *trial_by_slot}):
            entry = _expected_entry(slot, trial_by_slot.get(slot))
            row = row_by_slot.get(slot)
            if row is not None and row.is_leased:
                continue
            if row is None or _read_entry(row) != entry:
                differing.append(entry)
        return differing


@dataclass(frozen=True)
class ClaimChange:
    """A change of a claim.

    Attributes:
        statement: Updates the row of the slot; no row if the claim no longer holds.
        parameters: Its parameters, besides those that name the claim.
        state: The state of the slot afterwards.
    """

    statement: sa.UpdateBase
    parameters: Mapping[str, object]
    state: str


FINISH = ClaimChange(slot_table.END, {"next_state": "done"}, state="done")
RELEASE = ClaimChange(slot_table.END, {"next_state": "free"}, state="free")


class NoLedger(Ledger):
    """The ledger of a study of another program: it has no slots, and there may be no table."""

    def todo(self, trials: int, *, begun: bool = False) -> int:
        return 0

    def counts(self) -> dict[str, int]:
        return {"free": 0, "held": 0, "done": 0}

    def held(self, *, testing: bool = False) -> list[HeldSlot]:
        return []


def add_study(
    storage: RetryingStorage,
    name: str,
    directions: Sequence[StudyDirection],
    attributes: Attributes,
) -> None:
    """Creates the table if it is missing, and a study with its attributes in one transaction."""
    slot_table.create_table(storage)

    def add(connection: sa.Connection) -> None:
        study_id = sql.add_study(connection, name, directions, attributes)
        # SQLite gives the id of a deleted study, whose slots are still there, to the next one.
        connection.execute(SLOTS.delete().where(SLOTS.c.study_id == study_id))

    storage.execute(add)


def _held_by(workers: Sequence[str]) -> sa.ColumnElement[bool]:
    """Selects the slots of workers, in every study: a worker goes from one stage to the next."""
    return sa.and_(SLOTS.c.owner.in_(workers), IS_HELD)


def _take_first(
    connection: sa.Connection, parameters: sql.Row, *, only_with_trial: bool
) -> SlotRow | None:
    """Claims the first slot, one with a trial before others; returns its row, None without one."""
    statement = slot_table.claim_first(only_with_trial=only_with_trial)
    return connection.execute(statement, parameters).one_or_none()


def _take_chosen(
    connection: sa.Connection,
    parameters: sql.Row,
    slot: int,
    *,
    only_with_trial: bool = False,
) -> SlotRow | None:
    """Claims a slot, and returns its row; None if another worker holds it, or it is done."""
    statement = slot_table.claim_chosen(only_with_trial=only_with_trial)
    return connection.execute(statement, {**parameters, "chosen": slot}).one_or_none()


def _read_claim(row: SlotRow) -> Claim:
    """Makes the claim of the row that a claiming statement has returned."""
    return Claim(
        slot=row.slot,
        token=row.token,
        trial_id=row.trial_id,
        deaths=row.deaths,
        death=row.death,
        fatal=bool(row.fatal),
    )


def _check_trial(row: SlotRow, claim: Claim) -> None:
    """Raises ClaimLost if another program has deleted or ended the trial of a claim."""
    if not _fills_slot(row.slot_of_trial, claim):
        raise sql.trial_deleted()
    if row.trial_state.is_finished():
        raise ClaimLost


def _fills_slot(slot_of_trial: str | None, claim: Claim) -> bool:
    """Returns whether a trial fills the slot of a claim.

    Args:
        slot_of_trial: The trial's attribute SLOT, in JSON; None if the trial was deleted.
    """
    return sql.parse_slot(slot_of_trial) == claim.slot


def _expected_entry(slot: int, trial: sql.TrialSummary | None) -> SlotEntry:
    """Returns how a slot should be while no worker holds it.

    Args:
        trial: The trial that fills the slot; None if none does.
    """
    if trial is None:
        return SlotEntry(slot, "free", None)
    if trial.state.is_finished():
        return SlotEntry(slot, "done", trial.trial_id)
    return SlotEntry(slot, "free", trial.trial_id)


def _read_entry(row: SlotRow) -> SlotEntry:
    """Returns how a slot is; one whose lease has ended is as good as a free one."""
    state = row.state
    if state == "held":
        state = "free"
    return SlotEntry(row.slot, state, row.trial_id)


def _trials_by_slot(trials: Sequence[sql.TrialSummary]) -> dict[int, sql.TrialSummary]:
    """Returns the trials that fill slots; raises StorageError if two have one slot or number."""
    by_slot = {trial.slot: trial for trial in trials if trial.slot is not None}
    _check_unique("slot", [trial.slot for trial in trials if trial.slot is not None])
    _check_unique("number", [trial.number for trial in trials])
    return by_slot


def _check_unique(kind: str, values: Sequence[int]) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise StorageError(
            f"study.name: the database is inconsistent: several trials have the {kind} "
            f"{format_ranges(sorted(repeated))}; delete all but one of each, as in optuna-dashboard"
        )
