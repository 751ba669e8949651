"""Means of what the replays have found, with intervals by the bootstrap."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DRAWS = 2000


def interval(values: Floats) -> tuple[float, float]:
    """Returns a 95% interval of a mean, by a bootstrap over tasks and seeds.

    Args:
        values: (tasks, seeds), such as paired differences; seeds are drawn again in each task.
    """
    tasks, seeds = values.shape
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, tasks, (DRAWS, tasks, 1))
    means = values[drawn, generator.integers(0, seeds, (DRAWS, tasks, seeds))].mean((1, 2))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def describe(values: Floats, digits: int = 3) -> str:
    """Returns the mean of values and its interval, such as `+0.136 [+0.060, +0.217]`."""
    low, high = (f"{end:+.{digits}f}" for end in interval(values))
    return f"{values.mean():+.{digits}f} [{low}, {high}]"
