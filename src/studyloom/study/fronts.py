"""Ranks points of several goals: by non-dominated sorting, and within a front by their spread.

Sources: Schmucker, Donini, Zafar, Salinas and Archambeau, "Multi-objective Asynchronous Successive
Halving" (2021, arXiv:2106.12639); the sorting is that of Deb, Pratap, Agarwal and Meyarivan, "A
fast and elitist multiobjective genetic algorithm: NSGA-II" (IEEE TEVC 2002).
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def dominance(points: Sequence[Sequence[float]]) -> NDArray[np.bool_]:
    """Tells which points dominate which: as good in all goals, and better in one.

    Args:
        points: the values of each, of which less is better.

    Returns:
        bool (points, points): whether the point of the row dominates that of the column.
    """
    at = np.asarray(points, float)
    no_worse: NDArray[np.bool_] = np.all(at[:, None] <= at[None, :], 2)
    dominates: NDArray[np.bool_] = no_worse & ~no_worse.T
    return dominates


@lru_cache(256)  # at most claims nothing has changed at most rungs
def rank_points(points: tuple[tuple[float, ...], ...]) -> tuple[int, ...]:
    """Ranks points: those that none dominates first, then those that only these do, and so on.

    Within a front the one that is best by the first goal comes first, and then always the one that
    is the farthest from all before it (the paper's epsilon-net), so that however few are taken,
    they lie all along the front. A distance is one of ranks among all points, since networks differ
    by orders of magnitude in what they cost. Of equal points the earlier one comes first.

    Args:
        points: finite values of each, of which less is better.

    Returns:
        The positions of the points, the best first.
    """
    if not points:
        return ()
    at, dominates = np.asarray(points, float), dominance(points)
    places = np.stack([np.unique(goal, return_inverse=True)[1] for goal in at.T], 1)
    places = places / np.maximum(places.max(0), 1)
    order: list[int] = []
    above = dominates.sum(0)  # how many that are not yet ranked dominate each
    while len(order) < len(at):
        front = np.flatnonzero(above == 0)
        above = above - dominates[front].sum(0)
        above[front] = -1
        order += [int(front[k]) for k in _spread(places[front], int(np.argmin(at[front, 0])))]
    return tuple(order)


def _spread(places: NDArray[np.float64], first: int) -> list[int]:
    """Returns positions from one point on, each time that of the farthest from all before it."""
    order, away = [first], np.full(len(places), np.inf)
    while len(order) < len(places):
        steps = places - places[order[-1]]
        away = np.minimum(away, (steps * steps).sum(1))
        away[order] = -1.0
        order.append(int(np.argmax(away)))
    return order
