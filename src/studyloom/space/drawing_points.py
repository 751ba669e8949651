"""Draws configurations of a space at random, and recognizes equal ones."""

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial

from studyloom.space.tree import LARGEST_GRID, Point, Space

DRAWS = 10_000  # of a space that is not enumerated, until a configuration is found


def identify(point: Point | FrozenTrial) -> frozenset[tuple[str, Any]]:
    """Returns a key that only equal configurations share; 0.1 + 2 × 0.1 equals the step 0.3."""
    given: Any = point.distributions
    stepped = [name for name in given if getattr(given[name], "step", None)]
    steps = {n: round((point.params[n] - given[n].low) / given[n].step) for n in stepped}
    return frozenset((point.params | steps).items())


def any_point(space: Space, seed: int, taken: Collection[Any] = ()) -> Point | None:
    """Draws a random configuration that breaks no relation and is not taken.

    Args:
        taken: the keys of those that are, from `identify`.

    Returns:
        None if all are taken, or if DRAWS draws from a space too large to enumerate found none.
    """
    points: Iterable[Point]
    if Space(space.nodes).size() <= LARGEST_GRID:
        order = np.random.default_rng(seed).permutation(len(space.grid))
        points = (space.grid[i] for i in order)
    else:
        draw: Any = RandomSampler(seed).sample_independent
        decide = lambda asked: draw(None, None, asked.name, asked.distribution)  # noqa: E731
        points = (space.walk(decide) for _ in range(DRAWS))
    held = (point for point in points if space.find_breach(point.params) is None)
    return next((point for point in held if identify(point) not in taken), None)
