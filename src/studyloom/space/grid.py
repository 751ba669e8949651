"""A sampler that tries every point of a finite space once."""

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
SLOT = "slot"  # as in storage.attributes, which this room may not import


class GridSampler(BaseSampler):
    """Gives the trial of slot n the n-th point of the space.

    The baseline comes first; a shuffle with the seed orders the other points. Optuna's own
    GridSampler asks the storage which points are left, so it repeats points among parallel workers
    and forgets failed ones. Here the trial's slot is the number of its point: no storage is
    asked, and no point is given twice.

    Args:
        space: has at most 100 000 points.
        seed: decides the order of the points.
        baseline: the point of trial 0, if there is one.

    Raises:
        ConfigError: the space has continuous ranges, or more than 100 000 points.
    """

    def __init__(self, space: Space, seed: int = 0, baseline: Point | None = None) -> None:
        next(space.points())  # raises ConfigError for continuous ranges
        if (size := space.size()) > LARGEST_GRID:
            raise ConfigError(
                [
                    f"sampler=grid: the space has {size:.6g} points; at most {LARGEST_GRID} can be "
                    "enumerated; narrow its ranges, or choose another sampler, such as sampler=tpe"
                ]
            )
        order = np.random.default_rng(seed).permutation(len(space.grid))
        self.points: list[Point] = [space.grid[i] for i in order]
        if baseline is not None:
            others = [point for point in self.points if point.params != baseline.params]
            self.points = [baseline, *others]

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._point_of(trial).distributions

    def _point_of(self, trial: FrozenTrial) -> Point:
        """The slot, since numbers have holes where other programs have added or deleted trials."""
        return self.points[int(trial.user_attrs.get(SLOT, trial.number))]

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._point_of(trial).params

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        raise AssertionError(f"{param_name} is a parameter of no point of the grid")
