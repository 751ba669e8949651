"""What a sampler is given of its study; a grid without repetitions, and CMA-ES without pickles."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from studyloom.errors import ConfigError
from studyloom.space.tree import LARGEST_GRID, Point, Space
from studyloom.storage.attributes import SLOT


@dataclass(frozen=True)
class SamplerContext:
    """Describes the study and the trial that a sampler is made for.

    A sampler whose class has a parameter `context` gets one, and a parameter `seed` gets the seed
    of the trial.

    Attributes:
        space: the search space; it has no nodes if an Optuna objective suggests its values.
        baseline: the configuration that the first trial runs; None without a baseline.
        objectives: how many objectives the study has.
        redraws: whether the sampler has drawn for this trial already, and its configuration was
            refused.
        deterministic: whether the trials must not depend on times, see `study.deterministic`.
        auto_sampler: what `sampler=auto` stands for in this study; None until that is decided.
    """

    space: Space
    baseline: Point | None = None
    objectives: int = 1
    redraws: bool = False
    deterministic: bool = False
    auto_sampler: str | None = None


class GridSampler(BaseSampler):
    """Gives the trial of slot n the n-th configuration of the space.

    The baseline comes first; the seed shuffles the others. Optuna's GridSampler reads from the
    storage which configurations are left, so parallel workers repeat some and failed ones are lost.
    Here the trial's slot is the number of its configuration: none is used twice, without a look
    at the storage.

    Args:
        context: of which it takes the space and the baseline.
        seed: shuffles the configurations.

    Raises:
        ConfigError: the space has continuous ranges, or more than 100,000 configurations.
    """

    def __init__(self, context: SamplerContext, seed: int = 0) -> None:
        space = context.space
        baseline = context.baseline
        next(Space(space.nodes).points())  # raises ConfigError for continuous ranges
        if (size := space.size()) > LARGEST_GRID:
            raise ConfigError(
                f"sampler=grid: the space has {size:.6g} configurations; at most "
                f"{LARGEST_GRID} can be enumerated; narrow its ranges, or set sampler=tpe"
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
        """Returns the configuration of a trial's slot; trial numbers may have gaps."""
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
        raise AssertionError(f"{param_name} is not a hyperparameter of the grid")


class CmaEsSampler(optuna.samplers.CmaEsSampler):
    """Optuna's CMA-ES, whose state is derived from the trials, and never unpickled.

    Optuna's own sampler pickles its optimizer into attributes of trials, so that write access to
    the database can run code in every worker. The optimizer knows only which configurations
    of which generation had which values, and those are stored anyway. So a new one is trained on
    them before each trial (0.2 ms a generation), and gives the same configurations.
    """

    _completed: list[FrozenTrial]

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> None:
        """Restores nothing, so that Optuna makes a new optimizer next."""
        self._completed = completed_trials

    def _init_optimizer(self, trans: Any, direction: StudyDirection) -> Any:
        """Makes an optimizer, and trains it on each complete generation from the first one on."""
        random = self._cma_rng.rng.get_state()
        optimizer = super()._init_optimizer(trans, direction)
        generations: dict[Any, list[FrozenTrial]] = {}
        for trial in self._completed:
            generation = trial.system_attrs.get(self._attr_key_generation)
            if type(generation) is int:
                generations.setdefault(generation, []).append(trial)
        if any(generation > 0 for generation in generations):
            self._cma_rng.rng.set_state(random)  # an optimizer that is restored draws no seed
        sign = 1.0 if direction == StudyDirection.MINIMIZE else -1.0
        while True:
            trials = generations.get(optimizer.generation, [])
            points = [(self._point(trial, trans, optimizer.dim), trial.value) for trial in trials]
            solutions = [(x, sign * y) for x, y in points if x is not None and y is not None]
            if len(solutions) < optimizer.population_size:
                return optimizer
            optimizer.tell(solutions[: optimizer.population_size])

    def _point(self, trial: FrozenTrial, trans: Any, dimensions: int) -> Any:
        """Returns a trial's coordinates in the optimizer; None if it is not of this space."""
        try:
            if self._with_margin:
                x = np.array(trial.system_attrs["x_for_tell"], dtype=float)
            else:
                x = trans.transform(trial.params)
        except (KeyError, ValueError, TypeError):  # another program has added the trial
            return None
        known = x.shape == (dimensions,) and bool(np.isfinite(x).all())
        return x if known and np.abs(x).max() < 1e9 else None

    def _get_solution_trials(self, trials: Any, generation: int) -> list[FrozenTrial]:
        """Returns none: the optimizer has been trained on all of them, and is not to be stored."""
        return []
