"""Draws configurations of a space at random, and recognizes equal ones."""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial

from studyloom.space.tree import LARGEST_GRID, Configuration, Hyperparameter, Space

DRAWS = 10_000  # of a space that is not enumerated, until a configuration is found
ConfigurationKey = frozenset[tuple[str, Any]]  # equal for equal configurations


def identify(configuration: Configuration | FrozenTrial) -> ConfigurationKey:
    """Returns a key that only equal configurations share.

    A value of a range with a step is replaced by the number of its steps: 0.1 + 2 × 0.1 is not
    0.3 to a computer, and both are two steps.
    """
    values = dict(configuration.params)
    for name, distribution in configuration.distributions.items():
        if isinstance(distribution, IntDistribution | FloatDistribution) and distribution.step:
            values[name] = round((values[name] - distribution.low) / distribution.step)
    return frozenset(values.items())


def draw_configuration(
    space: Space, seed: int, taken_keys: Collection[ConfigurationKey] = ()
) -> Configuration | None:
    """Draws a random configuration that breaks no relation and is not taken.

    Args:
        taken_keys: the keys of configurations that are taken, from `identify`.

    Returns:
        None if all are taken, or if none was drawn in DRAWS draws from a large space.
    """
    for configuration in _draw_configurations(space, seed):
        breach = space.find_breach(configuration.params)
        if breach is None and identify(configuration) not in taken_keys:
            return configuration
    return None


def _draw_configurations(space: Space, seed: int) -> Iterator[Configuration]:
    """Yields random configurations.

    A small space gives each configuration that breaks no relation once, in a random order. A large
    space gives DRAWS configurations, some of which may be equal or break a relation.
    """
    # Only the size decides whether the space is enumerated, and it is known without the relations.
    size_without_relations = Space(space.nodes).size()
    if size_without_relations <= LARGEST_GRID:
        grid = space.grid  # without the configurations that break a relation
        positions = np.random.default_rng(seed).permutation(len(grid))
        for position in positions:
            yield grid[position]
        return
    draw_value: Any = RandomSampler(seed).sample_independent

    def decide(hyperparameter: Hyperparameter) -> Any:
        # The sampler looks at neither the study nor the trial, its first two arguments.
        return draw_value(None, None, hyperparameter.name, hyperparameter.distribution)

    for _ in range(DRAWS):
        yield space.walk(decide)
