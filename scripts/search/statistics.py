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
    draws = [first(generator.integers(0, seeds, seeds)) for _ in range(DRAWS // 2)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return first(np.arange(seeds)), float(low), float(high)
