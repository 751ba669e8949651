"""Every point of a finite space, once."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from studyloom.errors import ConfigError
from studyloom.space.tree import Point, Space

LARGEST_GRID = 100_000


class GridSampler(BaseSampler):
    """Gives trial n the n-th point of the space, the baseline first and the others in an order drawn from the seed.

    Optuna's own GridSampler asks the storage what is left, so it repeats points among parallel workers and forgets
    failed ones. Here the trial's number is the point's: nothing is asked, and nothing is given twice.

    Raises:
        SpaceError: continuous ranges, or more than 100 000 points.
    """

    def __init__(self, space: Space, seed: int = 0, baseline: Point | None = None) -> None:
        next(space.points())  # refuses continuous ranges
        if (size := space.size()) > LARGEST_GRID:
            raise ConfigError(
                [
                    f"sampler=grid: the space has {size:.6g} points; at most {LARGEST_GRID} can be enumerated"
                ]
            )
        order = np.random.default_rng(seed).permutation(len(space.grid))
        self.points: list[Point] = [space.grid[i] for i in order]
        if baseline is not None:
            self.points = [
                baseline,
                *(point for point in self.points if point.params != baseline.params),
            ]

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.points[trial.number].distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.points[trial.number].params

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        raise AssertionError(f"{param_name} is in no point of the grid")
