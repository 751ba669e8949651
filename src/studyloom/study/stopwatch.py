"""Measures where a worker's time goes, for each trial."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Stopwatch:
    """Adds up a worker's time by kind, such as training or storage.

    Args:
        seconds: by kind, since the last `take`.
        taken: the time of the last `take`, on the clock of time.perf_counter.
    """

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    taken: float = field(default_factory=time.perf_counter)

    @classmethod
    def since(cls, start_up: float) -> "Stopwatch":
        """Returns a stopwatch that has run while the process started.

        Args:
            start_up: the seconds that this took.
        """
        return cls(defaultdict(float, {"start-up": start_up}), time.perf_counter() - start_up)

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        """Measures the time of the body."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(kind, time.perf_counter() - start)

    def add(self, kind: str, seconds: float) -> None:
        self.seconds[kind] += seconds

    def take(self) -> dict[str, float]:
        """Returns the seconds by kind since the last call, and starts again from zero.

        Time that was not measured is `other`.
        """
        now = time.perf_counter()
        taken = {"other": max(0.0, now - self.taken - sum(self.seconds.values()))} | self.seconds
        self.taken = now
        self.seconds.clear()
        return taken
