"""The ledger: the budget of a study as a table with a row, its *slot*, for each of the N trials.

`study.trials` slots make exactly as many trials that count, whatever the number of workers,
restarts and crashes. A slot is free, held by a worker, or done. A trial that is repeated is set
aside, and no longer counts: another one takes its slot.

A worker *claims* a slot before it begins a trial, in one conditional statement. A claim is a
*lease* on the database's clock: it ends unless the worker renews it. A worker that claims a slot
that was released, or whose lease has ended, resumes the trial that was started there.

Each claim gives the slot a new *token*. From the token the previous holder, should it still be
alive, learns that it has lost the slot: whatever it writes, it writes together with a change of its
claim in one transaction, which fails unless the slot is held with this token.

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
from studyloom.processes import is_gone, running_in_thread, worker_id
from studyloom.space.tree import Configuration
from studyloom.storage import connections, slot_table, sql
from studyloom.storage.attributes import FORMER_SLOT, LARGEST, SEGMENTS, SLOT, UUID, Attributes
from studyloom.storage.call_state import call_state
from studyloom.storage.database import RetryingStorage
from studyloom.storage.slot_table import IS_HELD, SLOTS, clock
from studyloom.storage.standings import Order, Segment, SlotChoice, Standing, StandingsReader
from studyloom.text import format_ranges

# A renewed lease lasts for the seconds of `study.lease`, or for this many of the longest epoch that
# the worker has trained of its trial, if that is longer.
LEASE_FACTOR = 4
# The slot of the command that tests the winner; no budget is as large.
TEST_SLOT = LARGEST - 1
POLL_SECONDS = 0.5  # between looks at another command's lease
MakeTrial = Callable[[sa.Connection, int], int]  # makes a trial for a slot, and returns its id
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
        trial_id: The id of its trial; None until it has one.
        deaths: The number of claims on the slot that ended with their worker.
        last_death: How the last of those ended.
        fatal: Whether the trial must not be tried again.
        ends_pruned: Whether its trial, which is paused, only ends: it goes no further.
        segments: The segments of its trial, the one to train now last, in a search in rounds.
    """

    slot: int
    token: int
    trial_id: int | None
    deaths: int = 0
    last_death: str | None = None
    fatal: bool = False
    ends_pruned: bool = False
    segments: Sequence[Segment] = ()


@dataclass(frozen=True)
class HeldSlot:
    """A slot that a worker holds, by the worker's id."""

    owner: str
    trial_id: int | None
    seconds_left: float  # until the lease ends; negative if it has ended
    age: float  # seconds since the slot was claimed

    @property
    def is_live(self) -> bool:
        """Whether the lease has not ended, and the worker is not known to have died."""
        return self.seconds_left > 0 and not is_gone(self.owner)


@dataclass(frozen=True)
class HeldClaim:
    """A worker's claim on a slot of any study of the database, such as another stage of a run."""

    owner: str
    study_id: int
    slot: int
    token: int


@dataclass(frozen=True)
class TakenSlot:
    """A slot that was just claimed.

    Attributes:
        claim: The claim.
        has_trial: Whether its trial exists; another program may have deleted it.
    """

    claim: Claim
    has_trial: bool


@dataclass(frozen=True)
class SlotEntry:
    """Describes a slot as it should be: free or done, and its trial."""

    slot: int
    state: str
    trial_id: int | None


@dataclass(frozen=True)
class Ledger:
    """The slots of one study: its budget.

    Its methods raise StorageLost if the database stays away. Once the study was deleted, those that
    lock it, such as `claim` and `compare`, raise StorageLost too, and so does `count_open`. Then
    `renew`, `finish` and `release` return False, as for a lost claim. The others do not notice.

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
        """The condition that a slot is one of the study's budget, however large that is.

        TEST_SLOT, the row of the command that tests the winner, is not one of them.
        """
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
        """Extends the budget to `trials` slots; returns whether any were missing."""
        existing_slots = sa.select(SLOTS.c.slot).where(self._in_study)

        def insert_missing(connection: sa.Connection) -> bool:
            missing_slots = set(range(trials)) - set(connection.execute(existing_slots).scalars())
            rows = [{"study": self.study_id, "slot": slot} for slot in sorted(missing_slots)]
            if rows:
                connection.execute(slot_table.INSERT_SLOT, rows)
            return bool(rows)

        return self.storage.execute(insert_missing)

    def claim(
        self,
        owner: str,
        trials: int,
        lease: float,
        make_trial: MakeTrial | None = None,
        *,
        search_ended: bool = False,
        order: Order | None = None,
    ) -> Claim | None:
        """Claims a slot: reserves it for a worker, which then runs the slot's trial.

        A worker holds one slot at a time. If it holds one already, the reply to its claim was lost
        on the way from the database, and it gets that slot again.

        Args:
            owner: The id of the worker.
            trials: The budget: only the first so many slots are claimed.
            lease: Seconds until the claim ends unless it is renewed.
            make_trial: Makes a trial for a slot that has none, or whose trial was deleted, in the
                transaction of the claim.
            search_ended: Whether the search has ended. Only a slot that has a trial, begun or
                queued, is then claimed, and an order promotes no trial: it ends those that wait at
                rungs.
            order: Decides which slot is claimed; None for the first that is free or whose lease has
                ended, one with a trial before others.

        Returns:
            The claim; None if no slot can be claimed now, as when all are done or held by others.
        """
        parameters = {"study": self.study_id, "trials": trials, "me": owner, "lease": lease}

        def claim_in_transaction(connection: sa.Connection) -> Claim | None:
            """Claims a slot, and makes its trial; returns None if there is no slot to claim."""
            # The study is locked first, so that trials are numbered in the order of their slots.
            self._lock_study(connection)
            # Once the search has ended, no slot without a trial is claimed.
            if order is None:
                taken = _take_first(connection, parameters, only_with_trial=search_ended)
            else:
                standings = self._standings.read(connection, order, self.study_id, trials, owner)
                choice = order.choose(standings, closed=search_ended)
                if choice is None:
                    return None
                taken = _take(connection, parameters, choice, only_with_trial=search_ended)
            if taken is None:
                return None
            claim = taken.claim
            if make_trial is not None and not taken.has_trial:
                claim = self._make_trial(connection, claim, make_trial)
            # A search in rounds trains a trial in segments. The claim lists those of its trial, and
            # the last of them was claimed just now. The list is stored with the trial, so that
            # other workers see it.
            if claim.trial_id is not None and claim.segments:
                sql.write(
                    connection, [sql.user_attr_write(claim.trial_id, SEGMENTS, claim.segments)]
                )
            return claim

        return self.storage.execute(claim_in_transaction)

    def _make_trial(self, connection: sa.Connection, claim: Claim, make_trial: MakeTrial) -> Claim:
        """Makes a trial for a claimed slot that has none, or whose trial was deleted.

        Returns:
            The claim with the id of the trial.
        """
        if claim.trial_id is not None:
            log.warning("slot %d: its trial is gone; a new one takes its place", claim.slot)
            # The workers that died in the deleted trial do not count against the new one.
            claim = replace(claim, deaths=0, last_death=None, fatal=False, ends_pruned=False)
        new_claim = replace(claim, trial_id=make_trial(connection, claim.slot))
        columns = {
            "trial_id": new_claim.trial_id,
            "deaths": new_claim.deaths,
            "death": new_claim.last_death,
            "fatal": int(new_claim.fatal),
        }
        is_claimed_slot = sa.and_(self._in_study, SLOTS.c.slot == claim.slot)
        connection.execute(sa.update(SLOTS).where(is_claimed_slot).values(columns))
        return new_claim

    def renew(self, claim: Claim, lease: float, write: WriteRows | None = None) -> bool:
        """Extends a claim, and writes further rows of its trial in the same transaction.

        Args:
            lease: Seconds until the claim ends unless it is renewed again.
            write: Writes further rows of the claim's trial; it may be called twice.

        Returns:
            False if the claim is lost: another worker has the slot, this worker was recorded as
            dead, or the study was deleted. Then nothing was written.

        Raises:
            ClaimLost: Another program has ended or deleted the trial; nothing was written. This is
                checked only if there is something to `write`.
        """
        change = ClaimChange(slot_table.RENEW, {"lease": lease}, next_state="held")
        return self._change(claim, change, write)

    def finish(self, claim: Claim, write: WriteRows | None = None) -> bool:
        """Ends a claim whose slot is done; otherwise like `renew`."""
        return self._change(claim, FINISH, write)

    def finish_and_queue(self, claim: Claim, write: WriteRows) -> bool:
        """Ends a claim whose slot gets another trial; otherwise like `renew`.

        The study is locked first, as by all who make trials: locks in another order deadlock.

        Args:
            write: Takes the claim's trial out of the slot, and queues the other one there.
        """
        return self._change(claim, FINISH_AND_QUEUE, write)

    def release(self, claim: Claim, write: WriteRows | None = None) -> bool:
        """Releases a slot, so that another worker resumes its trial; otherwise like `renew`."""
        return self._change(claim, RELEASE, write)

    def _change(
        self,
        claim: Claim,
        change: "ClaimChange",
        write: WriteRows | None,
    ) -> bool:
        """Changes the row of a claimed slot, and writes further rows in the same transaction.

        The change takes effect only while the slot is held with the token of the claim. Each claim
        gives the slot a new token, so a worker whose slot was claimed by another one writes
        nothing.

        Args:
            write: Writes further rows, such as reports of the trial.

        Returns:
            False if the claim is lost, see `renew`. Then nothing was written.
        """
        claim_parameters = {
            **self._study_parameters,
            "own_slot": claim.slot,
            "own_token": claim.token,
        }

        def change_row(connection: sa.Connection) -> bool:
            """Updates the slot's row, and calls `write`; returns False if the claim is lost."""
            if change.replaces_trial:  # all who make trials lock the study first
                self._lock_study(connection)
            parameters = {**claim_parameters, **change.parameters}
            row = connection.execute(change.statement, parameters).one_or_none()
            # There is no row if the claim is lost, or if an earlier try has ended it already. (A
            # renewal finds its row again, and is simply repeated.)
            if row is None:
                return _was_changed_by_earlier_try(connection, claim, change, claim_parameters)
            if write is not None:
                # TEST_SLOT is held by the command that tests the winner, which has no trial.
                if claim.slot != TEST_SLOT:
                    _check_trial(row, claim)
                write(connection)
            return True

        return self.storage.execute(change_row)

    # Looks at the slots

    def standings(self, owner: str, trials: int, order: Order) -> list[Standing]:
        """Reads the state of each of the first `trials` slots, and how far its trial has come.

        Args:
            owner: The worker that reads; the slot that it holds is marked as its own.
            order: The order of claims, which says what is read: costs, and reports at rungs.
        """
        return self.storage.read(
            lambda connection: self._standings.read(connection, order, self.study_id, trials, owner)
        )

    def count_open(self, trials: int, *, only_with_trial: bool = False) -> int:
        """Counts how many of the first `trials` slots are open: free, or held by a worker.

        Args:
            only_with_trial: Whether to count only slots that have a trial, begun or queued.

        Raises:
            StorageLost: The study was deleted.
        """
        # The slots with and without a trial are counted separately, since each has its index.
        count = self._count_query(trials, slot_table.HAS_TRIAL)
        if not only_with_trial:
            count += self._count_query(trials, slot_table.HAS_NO_TRIAL)
        query = sa.select(count.label("open"), sql.IS_STUDY.label("study_exists"))
        (row,) = self._rows(query)
        if not row.study_exists:
            raise sql.study_deleted()
        return int(row.open)

    def _count_query(self, trials: int, condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        """Builds the query that counts the slots which are not done and meet a condition."""
        return (
            sa.select(sa.func.count())
            .where(self._in_study, SLOTS.c.slot < trials, slot_table.IS_OPEN, condition)
            .scalar_subquery()
        )

    def counts(self) -> dict[str, int]:
        """Counts the slots that are free, held and done, by these names."""
        counts = {"free": 0, "held": 0, "done": 0}
        query = sa.select(SLOTS.c.state, sa.func.count()).where(self._in_study)
        for state, count in self._rows(query.group_by(SLOTS.c.state)):
            counts[str(state)] = int(count)
        return counts

    def held(self) -> list[HeldSlot]:
        """Lists the slots that workers hold, by worker."""
        return self._select_held(self._in_study)

    def testing_commands(self) -> list[HeldSlot]:
        """Lists the command that holds the lease to test the winner; empty if there is none."""
        is_test_slot = sa.and_(SLOTS.c.study_id == self.study_id, SLOTS.c.slot == TEST_SLOT)
        return self._select_held(is_test_slot)

    def _select_held(self, condition: sa.ColumnElement[bool]) -> list[HeldSlot]:
        """Lists the held slots that meet a condition, by their holder."""
        seconds_left = SLOTS.c.expires - clock()
        age = clock() - SLOTS.c.since
        query = (
            sa.select(SLOTS.c.owner, SLOTS.c.trial_id, seconds_left, age)
            .where(condition, IS_HELD)
            .order_by(SLOTS.c.owner)
        )
        return [HeldSlot(*row) for row in self._rows(query)]

    def overdue(self, workers: Sequence[str], seconds: float) -> list[HeldClaim]:
        """Lists the claims that some workers have held for longer than `seconds`."""
        is_overdue = clock() - SLOTS.c.since > seconds
        query = sa.select(SLOTS.c.owner, SLOTS.c.study_id, SLOTS.c.slot, SLOTS.c.token).where(
            _held_by(workers), is_overdue
        )
        return [HeldClaim(*row) for row in self._rows(query)]

    def lock_slot(self, connection: sa.Connection, slot: int) -> str:
        """Locks a slot until the commit: its holder, if it has one, commits nothing meanwhile.

        Returns:
            "done", "held" by a worker whose lease has not ended, or "free".
        """
        has_lease = sa.and_(IS_HELD, SLOTS.c.expires > clock())
        state = sa.case((SLOTS.c.state == "done", "done"), (has_lease, "held"), else_="free")
        query = sa.select(state).where(self._in_study, SLOTS.c.slot == slot).with_for_update()
        return str(connection.execute(query).scalar_one())

    def never_claimed(self, connection: sa.Connection, trials: int) -> list[int]:
        """Lists which of the first `trials` slots have no trial and were never claimed."""
        query = (
            sa.select(SLOTS.c.slot)
            .where(
                slot_table.IN_BUDGET,
                slot_table.IS_OPEN,
                slot_table.HAS_NO_TRIAL,
                SLOTS.c.token == 0,  # each claim adds 1
            )
            .order_by(SLOTS.c.slot)
        )
        parameters = {"study": self.study_id, "trials": trials}
        return list(connection.execute(query, parameters).scalars())

    # Claims of other workers

    def renew_for(self, workers: Sequence[str], lease: float) -> None:
        """Extends the claims of workers to `lease` seconds from now, for their supervisor.

        A claim that ends later stays unchanged.
        """
        new_end = clock() + lease
        ends_earlier = SLOTS.c.expires < new_end
        statement = sa.update(SLOTS).where(_held_by(workers), ends_earlier).values(expires=new_end)
        self.storage.execute(lambda connection: connection.execute(statement))

    def record_death(self, owner: str, death: str, *, overdue: HeldClaim | None = None) -> int:
        """Releases the slots of a dead worker, and records how it ended.

        Args:
            owner: The id of the worker.
            death: How it ended.
            overdue: A claim on a trial that took too long and must not be tried again. It counts
                only if the worker still held it: it may have ended that trial itself, and have
                begun another one.

        Returns:
            How many slots the worker held.
        """
        fatal: sa.ColumnElement[int]  # 1: the trial must not be tried again
        if overdue is None:
            fatal = sa.literal(0)
        else:
            # The slot has this token only as long as the claim is the same: each claim changes it.
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
        """Records the death of each holder of a slot whose process on this host is gone.

        Others can then claim its slot at once, and need not wait until its lease ends.
        """
        for holder in (*self.held(), *self.testing_commands()):
            if is_gone(holder.owner):
                self.record_death(holder.owner, "its process is gone")

    # The lease to test the winner

    @contextmanager
    def testing(self) -> Iterator[Store]:
        """Holds the lease with which one command at a time tests the winner.

        Waits while another command holds it. The lease stays valid through an outage shorter than
        `storage.deadline`. If the process that holds it is gone, a command that waits on the same
        host ends the lease; on other hosts a command waits until the lease ends by itself.

        Yields:
            A function that stores an attribute of a study of the database, by its id; it raises
            StorageError, and stores nothing, if another command has taken over the lease.
        """
        # A lease in the table outlasts a restart of the database server; a lock of it would not.
        lease = self.storage.retry.deadline + connections.LEASE
        claim = self._wait_to_test(lease)

        def renew_regularly(body_ended: threading.Event) -> None:
            with suppress(StorageError):
                while not body_ended.wait(connections.LEASE / connections.RENEWALS):
                    self.renew(claim, lease)

        def store(study_id: int, key: str, value: object) -> None:
            """Stores an attribute and renews the lease, in one transaction."""

            def write(connection: sa.Connection) -> None:
                sql.set_study_attr(connection, study_id, key, value)

            still_holds_lease = self.renew(claim, lease, write)
            if not still_holds_lease:  # nothing was written
                raise StorageError(
                    f"this command was silent for longer than {lease:g} s while it tested the "
                    "winner, and another one has taken over; run this one again to see its result"
                )

        try:
            with running_in_thread(renew_regularly):
                yield store
        finally:
            with suppress(StorageError):  # it must not hide an error of the body
                self.release(claim)

    def _wait_to_test(self, lease: float) -> Claim:
        """Waits until no other command tests the winner, and claims the slot for it."""
        is_announced = False
        while True:
            claim = self.storage.execute(lambda connection: self._try_to_test(connection, lease))
            if claim is not None:
                return claim
            self.record_gone()  # releases the slot if its holder on this host is gone
            holders = self.testing_commands()  # none if it has just released the slot
            if holders and not is_announced:
                is_announced = True
                message = "waiting for %s, which tests the winner, for %g s at most"
                log.warning(message, holders[0].owner, lease)
            time.sleep(POLL_SECONDS)

    def _try_to_test(self, connection: sa.Connection, lease: float) -> Claim | None:
        """Claims the slot of the command that tests the winner; None while another one holds it."""
        self._lock_study(connection)
        # The first command that tests the winner makes the slot.
        connection.execute(slot_table.INSERT_SLOT, {"study": self.study_id, "slot": TEST_SLOT})
        parameters = {
            "study": self.study_id,
            # Claims select among the slots below this number, mostly the budget. TEST_SLOT lies
            # beyond every budget.
            "trials": LARGEST,
            "me": worker_id(os.getpid()),
            "lease": lease,
        }
        taken = _take(connection, parameters, SlotChoice(TEST_SLOT))
        if taken is None:
            return None
        return Claim(TEST_SLOT, taken.claim.token, trial_id=None)

    # Changes by commands, and repairs

    def set_slots(self, connection: sa.Connection, entries: Sequence[SlotEntry]) -> None:
        """Writes the rows of some slots; a worker that holds one of them loses it."""
        rows = []
        for entry in entries:
            row = {
                "study": self.study_id,
                "slot": entry.slot,
                "state": entry.state,
                "trial_id": entry.trial_id,
            }
            rows.append(row)
        if rows:
            connection.execute(slot_table.SET_SLOT, rows)

    def queue(
        self,
        connection: sa.Connection,
        slot: int,
        configuration: Configuration,
        attributes: Attributes,
    ) -> FrozenTrial:
        """Makes a waiting trial of a configuration, which the next worker that claims `slot` runs.

        A worker that holds the slot loses it.
        """
        trial = sql.insert_trial(
            connection, self.study_id, {SLOT: slot, **attributes}, configuration
        )
        self.set_slots(connection, [SlotEntry(slot, "free", trial._trial_id)])
        return trial

    def reconcile(self, name: str, trials: int) -> bool:
        """Repairs the ledger if it differs from the trials, and extends it to `trials` slots.

        Args:
            name: The name of the study, for the log.

        Returns:
            Whether slots differed from their trials, or were missing.
        """
        slot_table.create_table(self.storage)
        difference = self.compare(repair=True)
        if difference is not None:
            log.warning("%s: %s", name, difference)
        was_extended = self.extend(trials)
        return was_extended or difference is not None

    def compare(self, *, repair: bool = False) -> str | None:
        """Compares the slots of the ledger, whose table exists, with the trials.

        A slot that a worker holds is skipped. If its trial has ended or was deleted, the worker
        gets ClaimLost at its next report.

        Args:
            repair: Whether slots that differ are set as their trials say.

        Returns:
            Which slots differ, and how they are repaired; None if none does.

        Raises:
            StorageError: Two trials have one slot or one number, so that a person must decide.
        """

        def find_differences(connection: sa.Connection) -> list[SlotEntry]:
            """Returns the expected entries of slots that differ, and writes them to repair them."""
            self._lock_study(connection)
            entries = self._differing_slots(connection)
            if repair:
                self.set_slots(connection, entries)
            return entries

        entries = self.storage.execute(find_differences)
        if not entries:
            return None
        slots = format_ranges([entry.slot for entry in entries])
        return (
            f"slots {slots}: differ from their trials; linked to these, or open where there is no "
            "trial"
        )

    def _differing_slots(self, connection: sa.Connection) -> list[SlotEntry]:
        """Returns the expected entries of the slots that differ from their trials.

        Slots that workers hold are left out.
        """
        is_leased = sa.and_(IS_HELD, SLOTS.c.expires > clock()).label("is_leased")
        query = sa.select(SLOTS.c.slot, SLOTS.c.state, SLOTS.c.trial_id, is_leased)
        rows = connection.execute(query.where(self._in_study).with_for_update())
        row_by_slot = {row.slot: row for row in rows}
        trial_by_slot = _trials_by_slot(sql.read_summaries(connection, self.study_id))
        differing_entries = []
        for slot in sorted(row_by_slot.keys() | trial_by_slot.keys()):
            expected_entry = _expected_entry(slot, trial_by_slot.get(slot))
            row = row_by_slot.get(slot)
            if row is not None and row.is_leased:
                continue
            if row is None or _read_entry(row) != expected_entry:
                differing_entries.append(expected_entry)
        return differing_entries


@dataclass(frozen=True)
class ClaimChange:
    """A change of a claim.

    Attributes:
        statement: Updates the row of the slot; no row if the claim no longer holds.
        parameters: Its parameters, besides those that name the claim.
        next_state: The state of the slot afterwards.
        replaces_trial: Whether the slot gets another trial.
    """

    statement: sa.UpdateBase
    parameters: Mapping[str, object]
    next_state: str
    replaces_trial: bool = False


def _was_changed_by_earlier_try(
    connection: sa.Connection,
    claim: Claim,
    change: ClaimChange,
    claim_parameters: Mapping[str, object],
) -> bool:
    """Returns whether an earlier try of this call was committed, and only its reply was lost.

    A finished slot still has the token of the claim. A released one may have been claimed by other
    workers since, but its deaths are as they were: a claim that is lost to another worker counts as
    a death. If the change replaces the trial of the claim, that trial was taken out of the slot.
    """
    if not call_state.may_be_committed:
        return False
    if change.replaces_trial:
        assert claim.trial_id is not None
        return sql.has_user_attr(connection, claim.trial_id, FORMER_SLOT)
    slot = connection.execute(slot_table.READ_SLOT_OF_CLAIM, claim_parameters).one_or_none()
    if slot is None:  # the study was deleted
        return False
    if change.next_state == "free":
        return bool(slot.trial_id == claim.trial_id and slot.deaths == claim.deaths)
    return bool(slot.token == claim.token and slot.state == change.next_state)


FINISH = ClaimChange(slot_table.END, {"next_state": "done"}, next_state="done")
FINISH_AND_QUEUE = replace(FINISH, replaces_trial=True)
RELEASE = ClaimChange(slot_table.END, {"next_state": "free"}, next_state="free")


class NoLedger(Ledger):
    """The ledger of a study of another program: it has no slots, and there may be no table.

    Only the questions of views are answered, without a query. The other methods need the table.
    """

    def count_open(self, trials: int, *, only_with_trial: bool = False) -> int:
        return 0

    def counts(self) -> dict[str, int]:
        return {"free": 0, "held": 0, "done": 0}

    def held(self) -> list[HeldSlot]:
        return []

    def testing_commands(self) -> list[HeldSlot]:
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
) -> TakenSlot | None:
    """Claims the slot that this worker holds already, or else the first that can be claimed.

    A slot can be claimed if it is free, or if the lease of its holder has ended. One with a trial
    goes before others.

    Returns:
        The slot; None if none can be claimed.
    """
    statement = slot_table.claim_first(only_with_trial=only_with_trial)
    row = connection.execute(statement, parameters).one_or_none()
    if row is None:
        return None
    # Only an order ends paused trials or trains in segments; by default SlotChoice has neither.
    choice = SlotChoice(row.slot)
    return _read_taken(row, choice)


def _take(
    connection: sa.Connection,
    parameters: sql.Row,
    choice: SlotChoice,
    *,
    only_with_trial: bool = False,
) -> TakenSlot | None:
    """Claims the slot that was chosen.

    Args:
        only_with_trial: Whether it is claimed only if it has a trial, as once the search has ended.

    Returns:
        The slot; None if another worker holds it, it is done, or it lacks the required trial.
    """
    statement = slot_table.claim_chosen(only_with_trial=only_with_trial)
    row = connection.execute(statement, {**parameters, "chosen": choice.slot}).one_or_none()
    if row is None:
        return None
    return _read_taken(row, choice)


def _read_taken(row: SlotRow, choice: SlotChoice) -> TakenSlot:
    """Makes the claim from the row that the claiming statement has returned.

    Args:
        row: The slot's columns, and as `slot_of_trial` the slot that the trial itself names.
        choice: The decision on the slot, which also says how far its trial is to run.
    """
    claim = Claim(
        slot=row.slot,
        token=row.token,
        trial_id=row.trial_id,
        deaths=row.deaths,
        last_death=row.death,
        fatal=bool(row.fatal),
        ends_pruned=choice.ends_pruned,
        segments=choice.segments,
    )
    # Another program may have deleted the trial of an earlier claim, whose id the row still has.
    has_trial = row.trial_id is not None and _fills_slot(row.slot_of_trial, claim)
    return TakenSlot(claim, has_trial)


def _check_trial(row: SlotRow, claim: Claim) -> None:
    """Checks that the trial of a claim still runs.

    Args:
        row: The row that the statement on the slot has returned.

    Raises:
        ClaimLost: Another program has deleted or ended the trial.
    """
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
        return SlotEntry(slot, "free", trial_id=None)
    if trial.state.is_finished():
        return SlotEntry(slot, "done", trial.trial_id)
    return SlotEntry(slot, "free", trial.trial_id)


def _read_entry(row: SlotRow) -> SlotEntry:
    """Returns how a slot is that no worker holds; one whose lease has ended counts as free."""
    if row.state == "held":
        return SlotEntry(row.slot, "free", row.trial_id)
    return SlotEntry(row.slot, row.state, row.trial_id)


def _trials_by_slot(trials: Sequence[sql.TrialSummary]) -> dict[int, sql.TrialSummary]:
    """Returns the trials that fill slots, by slot.

    Raises:
        StorageError: Two trials have one slot or one number.
    """
    _check_unique("slot", [trial.slot for trial in trials if trial.slot is not None])
    _check_unique("number", [trial.number for trial in trials])
    return {trial.slot: trial for trial in trials if trial.slot is not None}


def _check_unique(kind: str, values: Sequence[int]) -> None:
    """Raises StorageError if several trials have one value, such as one number."""
    repeated_values = [value for value, count in Counter(values).items() if count > 1]
    if repeated_values:
        raise StorageError(
            f"study.name: the database is inconsistent: several trials have the {kind} "
            f"{format_ranges(sorted(repeated_values))}; delete all but one of each, as in "
            "optuna-dashboard"
        )
