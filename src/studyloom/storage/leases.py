"""Which leases have ended: told by a clock of this process, since those of databases are set."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sqlalchemy import ColumnElement, Connection, select
from sqlalchemy import and_ as all_of
from sqlalchemy import or_ as any_of

from studyloom.storage.claiming import NONE_ENDED
from studyloom.storage.slots import SLOTS

# A lease is no longer than the time from its claim to its renewal by this factor, or than the
# seconds that `study.lease` says.
LEASE_FACTOR = 4
K = TypeVar("K")
V = TypeVar("V")
Lease = tuple[int, int, float | None]  # slot, token, and when it ends


@dataclass
class Sightings(Generic[K, V]):
    """What this process sees again and again, and for how long it has seen each thing so far.

    Attributes:
        clock: Seconds on a clock that nobody sets, unlike that of a host or a server.
    """

    clock: Callable[[], float] = time.monotonic
    _last: float = 0.0
    _seen: dict[K, tuple[V, float]] = field(default_factory=dict)

    def look(self, things: Mapping[K, V], most: float = math.inf) -> dict[K, tuple[V, float]]:
        """Takes note of what is there now, and forgets what no longer is.

        Args:
            things: What is there, each with something to remember from its first sight.
            most: Seconds of the time between two looks that count.

        Returns:
            For each thing what is remembered, and the seconds since it was first seen.
        """
        now = self.clock()
        passed, self._last = min(now - self._last, most), now
        self._seen = {
            key: (self._seen[key][0], self._seen[key][1] + passed)
            if key in self._seen
            else (value, 0.0)
            for key, value in things.items()
        }
        return self._seen


class LeaseWatch:
    """Watches the leases of other workers.

    Args:
        clock: seconds on a clock that nobody sets.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._sightings: Sightings[Lease, float] = Sightings(clock)

    def ended(
        self,
        connection: Connection,
        held: ColumnElement[bool],
        now: ColumnElement[float],
        lease: float,
    ) -> ColumnElement[bool]:
        """Looks at leases, and selects those that have ended.

        These are the ones that have stayed as they are for as long as they had left at first sight,
        and for two renewals at least: a clock that leaps ahead ends the leases of the living, who
        renew them. Of the time between two looks half a lease counts, since this process, and with
        it the others, may have been stopped in between.

        Args:
            connection: of the transaction that will take one of them.
            held: selects the slots to look at.
            now: seconds on the database's clock.
            lease: seconds that a lease has from a claim or renewal.
        """
        left, age = SLOTS.c.expires - now, now - SLOTS.c.since
        query = select(
            SLOTS.c.slot, SLOTS.c.token, SLOTS.c.expires, left.label("left"), age.label("age")
        ).where(held)
        left_of = {
            (row.slot, row.token, row.expires): min(
                row.left or 0.0, max(lease, LEASE_FACTOR * (row.age or 0.0))
            )
            for row in connection.execute(query)
        }
        looks = self._sightings.look(left_of, lease / 2)
        ended = [key for key, (left, seen) in looks.items() if seen >= max(left, lease / 2)]
        if not ended:
            return NONE_ENDED
        return any_of(
            *(
                all_of(SLOTS.c.slot == slot, SLOTS.c.token == token, SLOTS.c.expires == expires)
                for slot, token, expires in ended
            ),
        )
