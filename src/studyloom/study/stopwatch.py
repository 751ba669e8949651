"""TODO study.stopwatch."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Stopwatch:
    """Where a worker's time goes, in seconds by kind."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    taken: float = field(default_factory=time.perf_counter)

    @classmethod
    def since(cls, start_up: float) -> "Stopwatch":
        """One that has run for so many seconds, in which a process was started up."""
        return cls(defaultdict(float, {"start-up": start_up}), time.perf_counter() - start_up)

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(kind, time.perf_counter() - start)

    def add(self, kind: str, seconds: float) -> None:
        self.seconds[kind] += seconds

    def take(self) -> dict[str, float]:
        """All the time since it was taken before; what was not measured is `other`."""
        now = time.perf_counter()
        taken = {"other": max(0.0, now - self.taken - sum(self.seconds.values()))} | self.seconds
        self.taken = now
        self.seconds.clear()
        return taken
