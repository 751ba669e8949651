"""Intervals of what the replays have found, by the bootstrap."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DRAWS = 2000


def interval(values: Floats) -> tuple[float, float]:
    """Returns a 95 % interval of a mean, by a bootstrap over tasks and seeds.

    Args:
        values: (tasks, seeds); the seeds are drawn anew in each task.
    """
    tasks, seeds = values.shape
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, tasks, (DRAWS, tasks, 1))
    means = values[drawn, generator.integers(0, seeds, (DRAWS, tasks, seeds))].mean((1, 2))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def interval_of_share(ours: Floats, theirs: Floats) -> tuple[float, float]:
    """Returns a 95 % interval of the share that a mean is less than another, likewise.

    Args:
        ours: (tasks, seeds), in pairs with theirs.
        theirs: (tasks, seeds).
    """
    tasks, seeds = ours.shape
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(DRAWS):
        rows = generator.integers(0, tasks, (tasks, 1))
        columns = generator.integers(0, seeds, (tasks, seeds))
        shares.append(1.0 - ours[rows, columns].mean() / theirs[rows, columns].mean())
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(low), float(high)


def until(curves: Floats, level: Floats) -> tuple[float, float, float]:
    """Returns when a mean regret is no more than a level, with a 95 % interval over seeds.

    Args:
        curves: (seeds, epochs): regrets of a method.
        level: (seeds,): regrets of the default at its end, of the same seeds.

    Returns:
        epochs, and the ends of their interval; one more than there are if it never is.
    """
    seeds, end = curves.shape

    def first(chosen: NDArray[np.int64]) -> float:
        reached = curves[chosen].mean(0) <= level[chosen].mean() + 1e-12
        return float(reached.argmax() + 1) if reached.any() else end + 1.0

    generator = np.random.default_rng(0)
    chosen = generator.integers(0, seeds, (DRAWS // 2, seeds))
    draws = [first(row) for row in chosen]
    low, high = np.quantile(draws, [0.025, 0.975])
    return first(np.arange(seeds)), float(low), float(high)
