"""The ledger: the budget of a study, as one table of our own beside Optuna's, a row for each slot.

A worker claims a slot before it asks for a trial, in one conditional statement, so that any number
of workers, restarts and crashes make exactly `study.trials` trials. A claim is a lease on the
database's clock. Whoever claims a slot that was released, or whose lease has ended, goes on with
the trial that was started there; the slot's token tells the previous holder, should it still be
alive, that it has lost the slot. Clocks are set, by hours too: so others wait on a clock of their
own for as long as a lease seemed to last when they first saw it, and start again when it changes.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Update,
    bindparam,
    case,
    false,
    func,
    literal,
    select,
    text,
    update,
)
from sqlalchemy import and_ as all_of
from sqlalchemy import or_ as any_of

from studyloom.processes import host_id, is_alive
from studyloom.storage.claiming import (
    HAS_NONE,
    HAS_TRIAL,
    IS_HELD,
    IS_OPEN,
    Wanted,
    claiming,
    clock,
)
from studyloom.storage.compare import Slot
from studyloom.storage.database import RetryingStorage, execute, read
from studyloom.storage.heads import fills
from studyloom.storage.leases import LEASE_FACTOR, LeaseWatch, Sightings
from studyloom.storage.posting import post
from studyloom.storage.retry import call_state
from studyloom.storage.slots import SLOTS, Claim, HeldClaim, HeldSlot
from studyloom.storage.standings import Known, Order, Standing, read_standings
from studyloom.storage.studies import is_study, lock_study, study_deleted

WriteRows = Callable[[Connection], None]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ledger:
    """The slots of one study.

    Its methods raise StorageLost if the database stays away.

    Attributes:
        storage: The database.
        study_id: The study's id in Optuna's tables.
        uuid: The study's attribute UUID; None for a study of an earlier version.
        clock: Seconds on a clock of this process that nobody sets.
    """

    storage: RetryingStorage
    study_id: int
    uuid: str | None = None
    clock: Callable[[], float] = time.monotonic

    def extend(self, trials: int) -> None:
        """Gives the study at least `trials` slots."""
        statement = text(
            "INSERT INTO studyloom_slots (study_id, slot, state, token, deaths, fatal) "
            "VALUES (:study, :slot, 'free', 0, 0, 0) ON CONFLICT DO NOTHING"
        )
        existing = select(SLOTS.c.slot).where(self._mine)

        def insert(connection: Connection) -> None:
            if missing := {*range(trials)}.difference(connection.execute(existing).scalars()):
                rows = [{"study": self.study_id, "slot": slot} for slot in sorted(missing)]
                connection.execute(statement, rows)

        execute(self.storage, insert)

    @property
    def _mine(self) -> ColumnElement[bool]:
        return SLOTS.c.study_id == self.study_id

    @property
    def _now(self) -> ColumnElement[float]:
        """Seconds since 1970 on the database's clock: those of the workers may differ by hours."""
        return clock(self.storage.engine.dialect.name)

    def claim(
        self,
        owner: str,
        trials: int,
        lease: float,
        make: Callable[[Connection, int], int] | None = None,
        *,
        fresh: bool = False,
        begun: bool = False,
        order: Order | None = None,
    ) -> Claim | None:
        """Takes a slot, one with a trial first.

        A worker holds one slot at a time. If it holds one already, the answer to its claim was lost
        on the way from the database, and it takes that slot again.

        Args:
            owner: The worker's id.
            trials: Only the first so many slots are taken.
            lease: Seconds until the claim ends unless it is renewed.
            make: Creates a trial for a slot that has none, or whose trial is gone, in the
                transaction of the claim, and returns its id.
            fresh: Whether to take only a slot without a trial that no other worker has held.
            begun: Whether to take only a slot with a trial, since the search has ended.
            order: Decides which slot is taken; None for the first, one with a trial before others.

        Returns:
            The claim; None if all slots are done, or held by others.

        Raises:
            StorageLost: The study was deleted.
        """

        def take(connection: Connection) -> Claim | None:
            held = all_of(self._mine, IS_HELD, SLOTS.c.owner != owner)
            abandoned = self._leases.ended(connection, held, self._now, lease)
            # Before the slot is chosen, so that slots and trials are in the same order.
            lock_study(connection, self.study_id, self.uuid)
            chosen = None
            if order is not None:
                standings = self._standings(connection, owner, trials, order, abandoned)
                if (chosen := order.choose(standings, closed=begun)) is None:
                    return None
            wanted = Wanted(fresh, begun, chosen is not None, call_state.uncertain)
            slot = None if chosen is None else chosen.slot
            of = {"study": self.study_id, "trials": trials, "chosen": slot, "me": owner}
            statement = claiming(wanted, self.storage.engine.dialect.name, abandoned)
            row = connection.execute(statement, of | {"lease": lease}).one_or_none()
            if row is None:
                return None
            over = chosen is not None and chosen.over
            known = (row.slot, row.token, row.trial_id, row.deaths, row.death, bool(row.fatal))
            claim = Claim(*known, over)
            return claim if make is None else self._with_trial(connection, claim, make)

        return execute(self.storage, take)

    def _with_trial(
        self, connection: Connection, claim: Claim, make: Callable[[Connection, int], int]
    ) -> Claim:
        """Creates the trial of a claim if there is none, also where it was deleted."""
        slot = claim.slot
        if claim.trial_id is not None:
            if fills(connection, self.study_id, claim.trial_id, slot):
                return claim
            log.warning("slot %d: its trial is gone; a new one takes its place", slot)
            claim = Claim(slot, claim.token, None)  # what happened to the other one does not count
        claim = replace(claim, trial_id=make(connection, slot))
        values = {
            "trial_id": claim.trial_id,
            "deaths": claim.deaths,
            "death": claim.death,
            "fatal": int(claim.fatal),
        }
        connection.execute(update(SLOTS).where(self._mine, SLOTS.c.slot == slot).values(values))
        return claim

    @cached_property
    def _leases(self) -> LeaseWatch:
        return LeaseWatch(self.clock)

    @cached_property
    def _claims(self) -> Sightings[HeldClaim, None]:
        return Sightings(self.clock)

    def renew(
        self,
        claim: Claim,
        lease: float,
        write: WriteRows | None = None,
        report: Mapping[str, Any] | None = None,
    ) -> bool:
        """Extends a claim, in one transaction with whatever else there is to write.

        Args:
            claim: The claim.
            lease: Seconds from now until it ends.
            write: Writes further rows; it must bear being called twice.
            report: The only row that `write` writes, if that is a report.

        Returns:
            False if another worker has the slot by now; then nothing was written.
        """
        own = (self.study_id, self.uuid, claim, lease)
        if report is not None and post(self.storage, *own, report):
            return True
        return self._update(self._renewal, claim, "held", write, lease=lease)

    def finish(self, claim: Claim, write: WriteRows | None = None) -> bool:
        """Ends a claim whose slot is done.

        Args:
            claim: The claim.
            write: Writes further rows, as for `renew`.

        Returns:
            False if another worker has the slot by now; then nothing was written.
        """
        return self._update(self._end, claim, "done", write, next_state="done")

    def release(self, claim: Claim, write: WriteRows | None = None) -> bool:
        """Gives a slot back, with the trial that was started there.

        Args:
            claim: The claim.
            write: Writes further rows, as for `renew`.

        Returns:
            False if another worker has the slot by now; then nothing was written.
        """
        return self._update(self._end, claim, "free", write, next_state="free")

    def standings(self, owner: str, trials: int, order: Order) -> list[Standing]:
        """Reads where the first slots stand, as for a claim."""
        return read(self.storage, lambda c: self._standings(c, owner, trials, order, false()))

    def _standings(
        self,
        connection: Connection,
        owner: str,
        trials: int,
        order: Order,
        abandoned: ColumnElement[bool],
    ) -> list[Standing]:
        known = self._known.setdefault(order, {})
        return read_standings(connection, self.study_id, trials, order, owner, abandoned, known)

    @cached_property
    def _known(self) -> dict[Order, Known]:
        return {}

    # Statements that a worker runs after each epoch, built once: building one took longer than the
    # database takes to run it. ("slot" and "token" would be taken for columns to set.)

    @cached_property
    def _own(self) -> ColumnElement[bool]:
        return all_of(
            SLOTS.c.study_id == bindparam("study"),
            SLOTS.c.slot == bindparam("own_slot"),
            SLOTS.c.token == bindparam("own_token"),
            self._exists,
        )

    @property
    def _exists(self) -> ColumnElement[bool]:
        return is_study(self.study_id, None if self.uuid is None else json.dumps(self.uuid))

    @cached_property
    def _end(self) -> Update:
        return (
            update(SLOTS)
            .where(self._own, SLOTS.c.state == "held")
            .values(state=bindparam("next_state"), owner=None, expires=None)
        )

    @cached_property
    def _renewal(self) -> Update:
        return (
            update(SLOTS)
            .where(self._own, SLOTS.c.state == "held")
            .values(expires=self._now + bindparam("lease"))
        )

    def _update(
        self,
        statement: Update,
        claim: Claim,
        state: str,
        write: WriteRows | None = None,
        **values: object,
    ) -> bool:
        """Updates the slot of a claim that still holds, and writes further rows.

        Args:
            statement: Updates no row if the claim no longer holds.
            claim: The claim.
            state: The state of the slot afterwards.
            write: Writes further rows.
            values: Of the parameters of the statement.
        """
        own = {"study": self.study_id, "own_slot": claim.slot, "own_token": claim.token}
        stored = select(SLOTS.c.state).where(self._own)

        def work(connection: Connection) -> bool:
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
            workers: Ids of workers.
            lease: Seconds from now until their claims end; a later end stays, unless it is further
                ahead than that of any lease, because a clock was set back.
        """
        left, longest = SLOTS.c.expires - self._now, LEASE_FACTOR * (self._now - SLOTS.c.since)
        other = any_of(left.is_(None), left < lease, all_of(left > lease, left > longest))
        statement = (
            update(SLOTS).where(self._held_by(workers), other).values(expires=self._now + lease)
        )
        execute(self.storage, lambda connection: connection.execute(statement))

    def record_death(self, owner: str, death: str, *, overdue: HeldClaim | None = None) -> int:
        """Releases what a dead worker held, and records how it ended.

        Args:
            owner: The worker's id.
            death: How it ended, in a few words.
            overdue: The claim whose trial must not be tried again, if the worker still holds that:
                it may have ended the trial itself and have begun another one.

        Returns:
            The number of slots that it held.
        """
        fatal: ColumnElement[Any] = literal(0)
        if overdue is not None:
            of = (SLOTS.c.study_id, SLOTS.c.slot, SLOTS.c.token)
            same = all_of(*(column == value for column, value in zip(of, overdue[1:], strict=True)))
            fatal = case((same, 1), else_=0)
        statement = (
            update(SLOTS)
            .where(self._held_by([owner]))
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
        """Selects the claims of workers that this process has seen for more than `limit` seconds.

        Args:
            workers: Ids of workers; those of one supervisor, which asks again and again.
            limit: Seconds since their claims were seen first.
        """
        query = select(SLOTS.c.owner, SLOTS.c.study_id, SLOTS.c.slot, SLOTS.c.token).where(
            self._held_by(workers)
        )
        rows = read(self.storage, lambda connection: connection.execute(query).all())
        claims = {HeldClaim(*row): None for row in rows}
        return [claim for claim, (_, seen) in self._claims.look(claims).items() if seen > limit]

    @staticmethod
    def _held_by(workers: Sequence[str]) -> ColumnElement[bool]:
        """In every study of the database: a worker goes from one stage of a run to the next."""
        return all_of(SLOTS.c.owner.in_(workers), IS_HELD)

    def todo(self, trials: int, *, begun: bool = False) -> int:
        """Counts those of the first `trials` slots that are not done; or only those with a trial.

        Raises:
            StorageLost: The study was deleted.
        """
        conditions = (HAS_TRIAL,) if begun else (HAS_TRIAL, HAS_NONE)  # each by its index
        counts = [
            select(func.count())
            .where(self._mine, SLOTS.c.slot < trials, IS_OPEN, condition)
            .scalar_subquery()
            for condition in conditions
        ]
        query = select(sum(counts[1:], counts[0]), self._exists)
        number, exists = read(self.storage, lambda connection: connection.execute(query).one())
        if not exists:
            raise study_deleted()
        return int(number)

    def counts(self) -> dict[str, int]:
        """Counts the slots that are free, held and done."""
        query = select(SLOTS.c.state, func.count()).where(self._mine).group_by(SLOTS.c.state)
        rows = read(self.storage, lambda connection: connection.execute(query).all())
        return {"free": 0, "held": 0, "done": 0} | {str(state): int(n) for state, n in rows}

    def rows(self, connection: Connection) -> list[Slot]:
        """Reads all slots of the study, and locks them until the commit."""
        leased = all_of(SLOTS.c.state == "held", SLOTS.c.expires > self._now)
        query = select(SLOTS.c.slot, SLOTS.c.state, SLOTS.c.trial_id, leased).where(self._mine)
        return [
            Slot(slot, state, trial_id, bool(held))
            for slot, state, trial_id, held in connection.execute(query.with_for_update())
        ]

    def held(self) -> list[HeldSlot]:
        """Lists the slots that workers hold, in the order of the workers' ids."""
        left = (SLOTS.c.expires - self._now).label("left")
        age = (self._now - SLOTS.c.since).label("age")
        query = (
            select(SLOTS.c.owner, SLOTS.c.trial_id, left, age)
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
