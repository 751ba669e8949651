"""Latencies of several networks, measured side by side."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WARM = 3  # calls before the first that counts
SPREAD = (10, 90)  # percentiles
LONGEST = 5.0  # seconds for each network; slow ones are measured less often


@dataclass(frozen=True)
class Latency:
    """How long one call takes.

    Attributes:
        median: milliseconds.
        low: the 10th percentile.
        high: the 90th percentile.
        calls: how many were measured.
    """

    median: float
    low: float
    high: float
    calls: int


def measure_latencies(calls: Sequence[Callable[[], object]], repeats: int) -> list[Latency]:
    """Measures calls in turns, so that what else the machine does falls on all of them alike.

    Args:
        calls: what is measured.
        repeats: how often each is measured at most.
    """
    for call in calls:
        for _ in range(WARM):
            call()
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, each in zip(calls, seconds, strict=True):
            if sum(each) > LONGEST:
                continue
            call()  # so that its weights are in the cache again, after the others
            began = time.perf_counter()
            call()
            each.append(time.perf_counter() - began)
    return [_summarise(np.array(each) * 1e3) for each in seconds]


def _summarise(milliseconds: NDArray[np.float64]) -> Latency:
    low, high = np.percentile(milliseconds, SPREAD)
    return Latency(float(np.median(milliseconds)), float(low), float(high), len(milliseconds))
