"""The context of a sampler; a grid without repetitions, and CMA-ES without pickles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from studyloom.errors import ConfigError
from studyloom.space.tree import LARGEST_GRID, Configuration, Space
from studyloom.storage.attributes import SLOT

# The coordinates of trials from which CMA-ES learns; its package raises an exception at 1e32.
LARGEST_COORDINATE = 1e9


@dataclass(frozen=True)
class SamplerContext:
    """Describes the study and the trial that a sampler is made for.

    A sampler whose class has a parameter `context` gets one, and a parameter `seed` gets the seed
    of the trial.

    Attributes:
        space: The search space; it has no nodes if an Optuna objective suggests its values.
        baseline: The configuration that the first trial runs; None without a baseline.
        objectives: How many objectives the study has.
        redraws: Whether the sampler has drawn for this trial already, and its configuration was
            refused.
        deterministic: Whether the trials must not depend on times, see `study.deterministic`.
        auto_sampler: What `sampler=auto` stands for in this study; None until that is decided.
    """

    space: Space
    baseline: Configuration | None = None
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
        context: Has the space and the baseline.
        seed: Shuffles the configurations.

    Raises:
        ConfigError: The space has continuous ranges, or more than 100,000 configurations.
    """

    def __init__(self, context: SamplerContext, seed: int = 0) -> None:
        space = context.space
        baseline = context.baseline
        # The first configuration raises ConfigError if there are continuous ranges. Relations are
        # left out, as many configurations may have to be tried to find one that satisfies them.
        space_without_relations = Space(space.nodes)
        next(space_without_relations.configurations())
        size = space.size()
        if size > LARGEST_GRID:
            raise ConfigError(
                f"sampler=grid: the space has {size:.6g} configurations; at most "
                f"{LARGEST_GRID} can be enumerated; narrow its ranges, or set sampler=tpe"
            )
        shuffled_positions = np.random.default_rng(seed).permutation(len(space.grid))
        configurations: list[Configuration] = [
            space.grid[position] for position in shuffled_positions
        ]
        if baseline is not None:
            other_configurations = [
                configuration
                for configuration in configurations
                if configuration.params != baseline.params
            ]
            configurations = [baseline, *other_configurations]
        self.configurations = configurations

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._find_configuration(trial).distributions

    def _find_configuration(self, trial: FrozenTrial) -> Configuration:
        """Returns the configuration of a trial's slot, its row of the budget.

        Trial numbers may have gaps, and slots have none.
        """
        slot = trial.user_attrs.get(SLOT, trial.number)
        return self.configurations[int(slot)]

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._find_configuration(trial).params

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

    _completed_trials: list[FrozenTrial]

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> None:
        """Restores nothing, so that Optuna makes a new optimizer next, in `_init_optimizer`."""
        self._completed_trials = completed_trials

    def _init_optimizer(self, trans: Any, direction: StudyDirection) -> Any:
        """Makes an optimizer, and trains it on each complete generation of trials.

        Args:
            trans: Optuna's transform of configurations to coordinates.
            direction: The direction of the study.
        """
        random_state = self._cma_rng.rng.get_state()
        optimizer = super()._init_optimizer(trans, direction)  # draws a seed
        generations = self._group_by_generation()
        if any(generation > 0 for generation in generations):
            # Optuna's own sampler makes an optimizer only before the first generation, and restores
            # it later, without a draw. So the draw is undone.
            self._cma_rng.rng.set_state(random_state)
        solutions = self._find_solutions(generations, optimizer, trans, direction)
        while len(solutions) >= optimizer.population_size:  # this generation is complete
            optimizer.tell(solutions[: optimizer.population_size])  # begins the next generation
            solutions = self._find_solutions(generations, optimizer, trans, direction)
        return optimizer

    def _find_solutions(
        self,
        generations: Mapping[int, Sequence[FrozenTrial]],
        optimizer: Any,
        trans: Any,
        direction: StudyDirection,
    ) -> list[tuple[NDArray[np.float64], float]]:
        """Returns the trials of the optimizer's current generation, as the optimizer takes them.

        Args:
            generations: The completed trials, by generation.
            optimizer: The optimizer.
            trans: Optuna's transform of configurations to coordinates.
            direction: The direction of the study.

        Returns:
            The coordinates of each trial, and its value, with a sign by which less is better.
        """
        sign = -1.0
        if direction == StudyDirection.MINIMIZE:
            sign = 1.0
        solutions = []
        for trial in generations.get(optimizer.generation, []):
            coordinates = self._find_coordinates(trial, trans, optimizer.dim)
            if coordinates is not None and trial.value is not None:
                solutions.append((coordinates, sign * trial.value))
        return solutions

    def _group_by_generation(self) -> dict[int, list[FrozenTrial]]:
        """Returns the completed trials by the generation in which they were drawn."""
        generations: dict[int, list[FrozenTrial]] = {}
        for trial in self._completed_trials:
            generation = trial.system_attrs.get(self._attr_key_generation)
            if type(generation) is int:  # another program may have stored anything
                generations.setdefault(generation, []).append(trial)
        return generations

    def _find_coordinates(
        self, trial: FrozenTrial, trans: Any, dimensions: int
    ) -> NDArray[np.float64] | None:
        """Returns a trial's coordinates in the optimizer, (dimensions,).

        None if another program has added the trial, with hyperparameters of another space or with
        values that the optimizer refuses.

        Args:
            trial: The trial.
            trans: Optuna's transform of configurations to coordinates.
            dimensions: The number of coordinates.
        """
        coordinates: NDArray[np.float64]
        try:
            if self._with_margin:  # Optuna has stored the coordinates before they were rounded
                coordinates = np.array(trial.system_attrs["x_for_tell"], dtype=float)
            else:
                coordinates = trans.transform(trial.params)
        except (KeyError, ValueError, TypeError):
            return None
        if coordinates.shape != (dimensions,) or not np.isfinite(coordinates).all():
            return None
        if np.abs(coordinates).max() >= LARGEST_COORDINATE:
            return None
        return coordinates

    def _get_solution_trials(self, trials: Any, generation: int) -> list[FrozenTrial]:
        """Returns no trials, so that Optuna neither trains the optimizer on them nor stores it."""
        return []
