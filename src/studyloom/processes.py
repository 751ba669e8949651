"""Hosts and processes: the worker ids in the ledger, and which processes give signs of life."""

import contextlib
import functools
import hashlib
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


def worker_id(pid: int) -> str:
    """Returns the id of a worker on this host, such as host-1a2b:4711."""
    return f"{host_id()}:{pid}"


@functools.cache
def host_id() -> str:
    """Returns this host's name and four hexadecimal digits, such as host-1a2b.

    The digits come from the boot and the process namespace: several hosts may be called
    `localhost`, and containers on one host may share its name while using the same process ids.
    Outside Linux it is the host's name alone.
    """
    with contextlib.suppress(OSError):  # outside Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = os.readlink("/proc/self/ns/pid")
        digest = hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()
        return f"{socket.gethostname()}-{digest[:4]}"
    return socket.gethostname()


def is_alive(pid: int) -> bool:
    """Reports whether a process of this host exists; an ended one does until it is waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists, and belongs to another user
        return True
    return True


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
