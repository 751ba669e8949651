"""Optuna's Gaussian process, which bears enormous values and searches within branches.

The *process* is a model of the values of all configurations: it predicts a mean and a variance for
each. It proposes the configuration with the largest *expected improvement*, by how much a value is
expected to be better than the best so far.

Two things differ from Optuna's `GPSampler`:

* A value that is far worse than the others counts as less bad (`clip_bad_values`). Otherwise all
  others would look the same next to a single loss of 1e5.
* The configuration is searched within branches. A *branch* of a search space is a choice of its
  options and list lengths, which decide what hyperparameters there are. Within a branch these are
  *fixed*, and so are the hyperparameters that the branch lacks: at the middle of their ranges.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import GPSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from studyloom.space.tree import count_values, find_middle

Params = dict[str, Any]  # values by hyperparameter
Distributions = Mapping[str, Any]  # by hyperparameter; Optuna types them by their base class

# A number with more values is searched as if it were continuous, and rounded. Optuna would try one
# value after the other.
MOST_SINGLE_VALUES = 16
# How many interquartile ranges a value may be worse than the worse quartile. Box plots have two
# fences: the inner one, at 1.5, also clips accuracies where nothing has exploded.
OUTER_FENCE = 3.0
# A value has exploded if it is below the median by this many times as much as the best is above it.
EXPLOSION = 20.0


@dataclass(frozen=True)
class _FixedValues:
    """The fixed hyperparameters of a branch, as Optuna's process takes them.

    Attributes:
        is_fixed: bool (hyperparameters,): which of all hyperparameters are fixed.
        params: A value for each hyperparameter; only those of the fixed ones are used.
    """

    is_fixed: NDArray[np.bool_]
    params: Params


class GaussianProcess(GPSampler):
    """Proposes configurations by a model of the results; see the module.

    Args:
        seed: The seed of the search for the largest expected improvement.
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(seed=seed, n_startup_trials=1)
        self._branches: list[_FixedValues] = []

    def propose(
        self,
        study: Study,
        results: Sequence[FrozenTrial],
        running: Sequence[FrozenTrial],
        distributions: Distributions,
        branches: Sequence[Params],
    ) -> Params:
        """Returns the configuration with the largest expected improvement.

        Integers and steps with many values are searched as continuous ranges, and then rounded: to
        search their values one by one took two thirds of the time.

        Args:
            study: The study, which has the directions.
            results: Complete trials, from which the process learns.
            running: Trials that other workers run, near which the process does not propose.
            distributions: The distributions of the hyperparameters that the process models.
            branches: The fixed hyperparameters of each branch, with their values. The process
                chooses one of the branches, and a value for each hyperparameter that is not fixed.
        """
        middle = {name: find_middle(distribution) for name, distribution in distributions.items()}
        self._branches = []
        for branch in branches:
            is_fixed = np.array([name in branch for name in distributions], bool)
            self._branches.append(_FixedValues(is_fixed, middle | branch))
        # A hyperparameter that a trial lacks counts as the middle of its range.
        filled_results = [_fill_params(trial, middle) for trial in results]
        filled_running = [_fill_params(trial, middle) for trial in running]
        if len(study.directions) == 1:
            # With several objectives, the best of one may be by far the worst of another.
            _clip_results(filled_results, study.directions[0])
        smooth_distributions = {
            name: _smooth_distribution(distribution) for name, distribution in distributions.items()
        }
        with _one_cpu_thread():
            proposal = self._sample_relative_impl(
                study, filled_results, filled_running, smooth_distributions
            )
        return {name: _round_value(distributions[name], value) for name, value in proposal.items()}

    def _optimize_acqf(self, acqf: Any, best_params: Any) -> Any:
        """Returns the point with the largest expected improvement; Optuna's hook for it.

        The search is within one branch after the other. In each branch the search space of the
        acquisition function is replaced by one in which the fixed hyperparameters do not vary.

        Args:
            acqf: Optuna's acquisition function, such as the expected improvement.
            best_params: The points of the best results, (results, hyperparameters), at which
                Optuna begins to search; None for none.
        """
        whole_space = acqf.search_space
        best_value = -math.inf
        best_point: Any = None
        for branch in self._branches:
            branch_space = _BranchSpace(whole_space, branch)
            acqf.search_space = branch_space
            start_points = None
            if best_params is not None:
                start_points = branch_space.move_into_branch(best_params.copy())
            point = super()._optimize_acqf(acqf, start_points)  # (hyperparameters,)
            points = point[None]  # (1, hyperparameters), as the function takes them
            value = float(acqf.eval_acqf_no_grad(points)[0])
            if best_point is None or value > best_value:
                best_value = value
                best_point = point
        acqf.search_space = whole_space
        return best_point


def _clip_results(results: Sequence[FrozenTrial], direction: StudyDirection) -> None:
    """Gives results the clipped values in place of their own.

    Args:
        results: Complete trials with one value each, which are changed.
        direction: The direction of the objective.
    """
    sign = 1.0 if direction == StudyDirection.MAXIMIZE else -1.0
    values = np.array([trial.value for trial in results], float)  # (results,)
    clipped_values = sign * clip_bad_values(sign * values)
    for trial, value in zip(results, clipped_values.tolist(), strict=True):
        trial.value = value


def clip_bad_values(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Raises values that are far worse than most to a *fence*; others stay as they are.

    Args:
        values: float (results,), of which more is better.
    """
    finite_values = values[np.isfinite(values)]
    if finite_values.size == 0:
        return values
    fence = _find_fence(finite_values)
    clipped_values: NDArray[np.float64] = np.maximum(values, fence)
    return clipped_values


def _find_fence(values: NDArray[np.float64]) -> float:
    """Returns the value below which values are clipped; minus infinity for none.

    It is the outer fence of Tukey's box plots, 3 interquartile ranges below the lower quartile.
    There is none if the quartiles are equal: every other value would be beyond it.

    If more than a quarter of the trials explode, the lower quartile is an explosion itself, and no
    value would be beyond the fence. Then the fence is that of the values that have not exploded.

    Args:
        values: float (results,), all finite.
    """
    lower_quartile, median, upper_quartile = np.quantile(values, [0.25, 0.5, 0.75])
    best_gain = values.max() - median
    worst_usual_value = median - EXPLOSION * best_gain
    if best_gain > 0 and lower_quartile < worst_usual_value:
        return _find_fence(values[values >= worst_usual_value])
    interquartile_range = upper_quartile - lower_quartile
    if interquartile_range == 0:
        return -math.inf
    return float(lower_quartile - OUTER_FENCE * interquartile_range)


@contextmanager
def _one_cpu_thread() -> Iterator[None]:
    """Lets torch compute on the CPU with one thread, so that all workers get the same last bits."""
    import torch  # here: until a process proposes, no torch is needed

    # Entering a device doubles the time of the process, so it happens only where a user has set
    # another default device.
    device: Any = nullcontext()
    if torch.get_default_device().type != "cpu":
        device = torch.device("cpu")
    thread_count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with device:
            yield
    finally:
        torch.set_num_threads(thread_count)


def _fill_params(trial: FrozenTrial, middle: Params) -> FrozenTrial:
    """Returns a copy of a trial with exactly the hyperparameters that the process models.

    Args:
        trial: The trial.
        middle: The middle of each hyperparameter's range, which the trial gets where it lacks one.
    """
    filled_trial = copy.copy(trial)
    filled_trial.params = dict(middle)
    for name, value in trial.params.items():
        if name in middle:
            filled_trial.params[name] = value
    return filled_trial


class _BranchSpace:
    """A search space of Optuna's process (its `SearchSpace`) in which some values are fixed.

    Points are rows of numbers from 0 to 1, with a column for each hyperparameter.
    """

    def __init__(self, whole_space: Any, branch: _FixedValues) -> None:
        self._whole_space = whole_space
        self._is_fixed = branch.is_fixed
        # The values of the branch as a point. Of the trials, the first argument, Optuna's method
        # uses only the number: one.
        self._fixed_point = whole_space.get_normalized_params([None], [branch.params])[0]
        free_indices = np.flatnonzero(~branch.is_fixed)
        self.continuous_indices = np.intersect1d(whole_space.continuous_indices, free_indices)
        self.discrete_indices = np.intersect1d(whole_space.discrete_indices, free_indices)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole_space, name)

    def move_into_branch(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Gives points the fixed values of the branch in place of their own, and returns them.

        Args:
            points: float (points, hyperparameters); changed in place.
        """
        points[:, self._is_fixed] = self._fixed_point[self._is_fixed]
        return points

    def sample_normalized_params(self, n: int, rng: Any) -> NDArray[np.float64]:
        return self.move_into_branch(self._whole_space.sample_normalized_params(n, rng))

    def get_choices_of_discrete_params(self) -> list[NDArray[np.float64]]:
        """Returns the values of each discrete hyperparameter that is not fixed."""
        choices_of_all = self._whole_space.get_choices_of_discrete_params()
        free_choices = []
        for index, choices in zip(self._whole_space.discrete_indices, choices_of_all, strict=True):
            if index in self.discrete_indices:
                free_choices.append(choices)
        return free_choices


def _smooth_distribution(distribution: BaseDistribution) -> BaseDistribution:
    """Returns a continuous range for one that has a step and many values.

    For integers from 1 to 100 it is 0.5 to 100.5: wider by half a step at each end, so that as many
    of its numbers are rounded to 1 as to 2. Any other distribution is returned unchanged.
    """
    if not isinstance(distribution, IntDistribution | FloatDistribution):
        return distribution
    step = distribution.step
    if step is None or count_values(distribution) <= MOST_SINGLE_VALUES:
        return distribution
    low = distribution.low - step / 2
    high = distribution.high + step / 2
    return FloatDistribution(low, high, log=distribution.log)


def _round_value(distribution: BaseDistribution, value: Any) -> Any:
    """Returns the nearest value of a range with a step; any other value unchanged."""
    if not isinstance(distribution, IntDistribution | FloatDistribution):
        return value
    low = distribution.low
    step = distribution.step
    if step is None:
        return value
    nearest_value = low + round((value - low) / step) * step
    return min(max(low, nearest_value), distribution.high)
