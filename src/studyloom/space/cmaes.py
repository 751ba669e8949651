"""CMA-ES whose state is derived from the trials, and never unpickled from a database.

Optuna's own sampler keeps its optimizer in attributes of trials, as a pickle: whoever writes to the
database runs code in every worker. Yet all that the optimizer has learned is which points of which
generation had which values, and those are stored anyway. So a new one is trained on them before
each trial (0.2 ms a generation), and gives the same points.
"""

from typing import Any

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial


class CmaEsSampler(optuna.samplers.CmaEsSampler):
    """Optuna's CMA-ES, with its arguments and its points, and without its pickles."""

    _completed: list[FrozenTrial]

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> None:
        """Restores nothing, so that Optuna asks for a new optimizer next."""
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
        """Returns a trial's point as the optimizer knows it; None if it is none of this space."""
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
