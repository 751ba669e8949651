"""Intervals of what the replays have found, by the bootstrap."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DRAWS = 2000


def interval(values: Floats) -> tuple[float, float]:
    """Returns a 95% interval of a mean, by a bootstrap over tasks and seeds.

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
    """Returns a 95% interval of the share that a mean is less than another, likewise.

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


def until(curves: Floats, other: Floats) -> tuple[float, float, float]:
    """Returns after how many epochs a mean regret is what that of another method is at its end.

    Args:
        curves: (tasks, seeds, epochs): regrets of a method.
        other: (tasks, seeds, epochs): of the other one, in pairs.

    Returns:
        epochs, and the ends of their 95% interval over tasks and seeds; one more than there are
        if it never comes there.
    """
    tasks, seeds, end = curves.shape
    generator = np.random.default_rng(0)

    def first(weights: Floats) -> float:
        level = (weights * other[..., -1]).sum()
        reached = np.einsum("ts,tse->e", weights, curves) <= level + 1e-12
        return float(reached.argmax() + 1) if reached.any() else end + 1.0

    draws = []
    for _ in range(DRAWS // 4):
        weights = np.zeros((tasks, seeds))
        rows = generator.integers(0, tasks, (tasks, 1))
        np.add.at(weights, (rows, generator.integers(0, seeds, (tasks, seeds))), 1.0)
        draws.append(first(weights))
    low, high = np.quantile(draws, [0.025, 0.975])
    return first(np.ones((tasks, seeds))), float(low), float(high)
