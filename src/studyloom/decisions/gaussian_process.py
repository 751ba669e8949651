"""A Gaussian process of what each configuration reaches, and TPE next to it.

Optuna's Gaussian process (`GPSampler`) models hyperparameters that all trials share. Here it models
all: one that a trial lacks, since its branch of the space does not have it, counts as the middle of
its range. The process proposes a configuration in a branch that trials have had.

Within a branch some hyperparameters are *fixed*: the options and lengths that make the branch, and
those that it lacks, which stay at the middle of their ranges. The process varies the others. The
first trials are TPE's.
"""

import copy
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import GPSampler, TPESampler
from optuna.search_space import intersection_search_space
from optuna.trial import FrozenTrial, TrialState

from studyloom.decisions.extrapolation import view_extrapolated
from studyloom.decisions.samplers import SamplerContext
from studyloom.space.tree import Hyperparameter, count_values, find_middle
from studyloom.storage.attributes import SAMPLER, TIMES
from studyloom.storage.trial_record import TrialRecord

Params = dict[str, Any]  # values by hyperparameter
Distributions = Mapping[str, Any]  # by hyperparameter; Optuna types them by their base class

# A number with more values is searched as if it were continuous, and rounded. Optuna would try one
# value after the other.
MOST_SINGLE_VALUES = 16
WORTHWHILE_SECONDS = 2.0  # of training, of which the model takes a twentieth
LATEST = 50  # results after which TPE is chosen: with many workers all trials are short at first
MOST_BRANCHES = 6  # that the model tries: those with the most results
TRAINING = ("training", "evaluation", "other")  # kinds of a worker's time
GP = "gp"
TPE = "tpe"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _ModeledTrial:
    """A trial whose configuration the model can represent.

    Attributes:
        trial: The trial.
        fixed: The fixed hyperparameters of its branch, with their values.
    """

    trial: FrozenTrial
    fixed: Params


class GaussianProcessSampler(TPESampler):
    """Proposes by a Gaussian process once there are results, and before by TPE.

    TPE also draws again where a configuration was refused: the model would repeat it.

    Args:
        context: Has the space, and says whether a configuration was refused.
        seed: The seed of both.
        n_startup_trials: How many results the model needs.
    """

    most_results: float = math.inf  # with more, TPE proposes
    most_dimensions: float = math.inf  # with more hyperparameters, TPE proposes

    def __init__(
        self, context: SamplerContext, seed: int | None = None, n_startup_trials: int = 10
    ) -> None:
        super().__init__(
            seed=seed,
            n_startup_trials=n_startup_trials,
            multivariate=True,
            group=True,
            constant_liar=True,
        )
        self._context = context
        self._space = context.space
        self._least_results = n_startup_trials
        self._seed = seed

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Params:
        tpe_proposal = super().sample_relative(study, trial, search_space)
        if self._context.redraws or not self._uses_process(study):
            return tpe_proposal
        trials = view_extrapolated(study).get_trials(deepcopy=False)
        distributions = self._find_modeled(trials, search_space)
        tpe_fixed = self._find_fixed(tpe_proposal, distributions)
        if tpe_fixed is None:  # no trial has had this branch
            return tpe_proposal
        modeled_trials = self._represent_trials(trials, distributions)
        results = _select_trials(modeled_trials, TrialState.COMPLETE)
        if not self._least_results <= len(results) <= self.most_results:
            return tpe_proposal
        if not 0 < len(distributions) <= self.most_dimensions:
            return tpe_proposal
        running = _select_trials(modeled_trials, TrialState.RUNNING)
        branches = _select_branches(tpe_fixed, modeled_trials)
        process = GaussianProcess(seed=self._seed, n_startup_trials=1)
        return tpe_proposal | process.propose(study, results, running, distributions, branches)

    def _find_modeled(
        self, trials: Sequence[FrozenTrial], search_space: Distributions
    ) -> Distributions:
        """Returns the hyperparameters that the model has: those of complete trials.

        An objective that suggests its hyperparameters itself has no branches: the model has those
        that all complete trials share.

        Args:
            search_space: The hyperparameters that TPE proposes. Others cannot be proposed here: TPE
                has not seen the branch of a running trial.
        """
        results = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        has_branches = bool(self._space.nodes)
        distributions: dict[str, Any] = {}
        if has_branches:
            for result in results:  # the first trial that has a hyperparameter decides
                distributions = result.distributions | distributions
        else:
            distributions = intersection_search_space(results)
        modeled = {}
        for name, distribution in distributions.items():
            if name in search_space and not distribution.single():
                modeled[name] = distribution
        return modeled

    def _represent_trials(
        self, trials: Sequence[FrozenTrial], distributions: Distributions
    ) -> list[_ModeledTrial]:
        """Returns the trials whose configurations the model can represent.

        Args:
            distributions: The hyperparameters of the model.
        """
        modeled_trials = []
        for trial in trials:
            if _has_distributions(trial, distributions):
                fixed = self._find_fixed(trial.params, distributions)
                if fixed is not None:
                    modeled_trials.append(_ModeledTrial(trial, fixed))
        return modeled_trials

    def _find_fixed(self, params: Mapping[str, Any], distributions: Distributions) -> Params | None:
        """Returns the fixed hyperparameters of a configuration's branch, with their values.

        None if the configuration lacks a value, or has a hyperparameter that the model does not.

        Args:
            params: The configuration.
            distributions: The hyperparameters of the model.
        """
        has_branches = bool(self._space.nodes)
        if not has_branches:
            has_all_values = distributions.keys() <= params.keys()
            if has_all_values:
                return {}
            return None
        # At first all are fixed to the middles of their ranges, as those are that the branch lacks.
        fixed = {name: find_middle(distribution) for name, distribution in distributions.items()}

        def visit(hyperparameter: Hyperparameter) -> Any:
            """Returns the value of a hyperparameter of the branch, and corrects `fixed` for it."""
            name = hyperparameter.name
            if hyperparameter.distribution.single():  # it has one value, and is in no model
                value = hyperparameter.make_placeholder({})
            elif name in distributions:
                value = params[name]
            else:
                raise KeyError(name)
            makes_branch = hyperparameter.role in ("option", "length")
            if makes_branch and name in fixed:
                fixed[name] = value
            else:
                fixed.pop(name, None)  # the process varies it
            return value

        try:
            self._space.walk(visit)
        except KeyError:  # of a value or hyperparameter, or an option that the space lacks
            return None
        return fixed

    def _uses_process(self, study: Study) -> bool:
        """Returns whether the process serves the study at all."""
        return True


def _select_trials(modeled_trials: Sequence[_ModeledTrial], state: TrialState) -> list[FrozenTrial]:
    return [modeled.trial for modeled in modeled_trials if modeled.trial.state == state]


def _select_branches(first: Params, modeled_trials: Sequence[_ModeledTrial]) -> list[Params]:
    """Returns the branches to propose in: a first one, and those with the most trials.

    A branch is given and returned as its fixed hyperparameters, with their values.
    """
    counts = Counter(tuple(modeled.fixed.items()) for modeled in modeled_trials)
    branches = [first]
    for items, _ in counts.most_common(MOST_BRANCHES):
        branch = dict(items)
        if branch != first:
            branches.append(branch)
    return branches


class AutoSampler(GaussianProcessSampler):
    """Stands for `sampler=auto`: a Gaussian process where it pays, and TPE elsewhere.

    It pays with one objective if trials have trained for two seconds on average, twenty times what
    the model takes, and with up to 200 results and 20 hyperparameters. Whether trials train so
    long is decided between the tenth and the fiftieth result, and stored with the study.

    Args:
        context: Describes the study; a deterministic one always gets a Gaussian process.
        seed: The seed of both.
    """

    most_results = 200  # beyond these the model takes more than a twentieth
    most_dimensions = 20

    def __init__(self, context: SamplerContext, seed: int | None = None) -> None:
        super().__init__(context, seed)
        self._has_several_objectives = context.objectives > 1
        self._deterministic = context.deterministic
        self._decision = context.auto_sampler  # GP, TPE, or None before it is decided
        if self._has_several_objectives:
            self._decision = TPE

    @property
    def note(self) -> str:
        """The line that is printed before the first trial."""
        seconds = f"{WORTHWHILE_SECONDS:g} s on average"
        if self._has_several_objectives:
            sampler = "TPE, since objective.metric names several"
        elif self._deterministic:
            sampler = "TPE, then a Gaussian process, since study.deterministic=true ignores times"
        elif self._decision == GP:
            sampler = f"a Gaussian process, since trials train for at least {seconds}"
        elif self._decision == TPE:
            sampler = f"TPE, since trials train for less than {seconds}"
        else:
            sampler = f"TPE, then a Gaussian process if trials train for {seconds}"
        return f"sampler=auto: {sampler}"

    def _uses_process(self, study: Study) -> bool:
        if self._decision is None:
            self._decision = study.user_attrs.get(SAMPLER)  # another worker may have decided
        if self._decision is None:
            self._decision = self._decide(study)
            if self._decision is None:
                return False
            # `study.set_user_attr` may refuse our keys: the study may be the one that a user's
            # objective gets.
            study._storage.set_study_user_attr(study._study_id, SAMPLER, self._decision)
            log.info(self.note)
        return self._decision == GP

    def _decide(self, study: Study) -> str | None:
        """Decides by the training times of trials, GP or TPE; None while these are too few."""
        if self._deterministic:  # times differ from run to run
            return GP
        times = read_training_times(study)
        if len(times) < self._least_results:
            return None
        if sum(times) / len(times) >= WORTHWHILE_SECONDS:
            return GP
        if len(times) < LATEST:
            return None
        return TPE


def read_training_times(study: Study) -> list[float]:
    """Returns how many seconds trials have trained so far, of those that have ended or paused."""
    seconds = []
    for trial in study.get_trials(deepcopy=False):
        if TIMES in trial.user_attrs:
            times = TrialRecord(trial).times
            seconds.append(sum(times.get(kind, 0.0) for kind in TRAINING))
    return seconds


def _has_distributions(trial: FrozenTrial, distributions: Distributions) -> bool:
    """Returns whether the hyperparameters of a trial have these distributions."""
    for name, distribution in trial.distributions.items():
        if name in distributions and distributions[name] != distribution:
            return False
    return True


@dataclass(frozen=True)
class _FixedValues:
    """The fixed hyperparameters of a branch, as Optuna's process takes them.

    Attributes:
        mask: bool (hyperparameters,): Which are fixed.
        params: A configuration with the fixed values.
    """

    mask: NDArray[np.bool_]
    params: Params


class GaussianProcess(GPSampler):
    """Optuna's Gaussian process, which is given its results, and optimizes within branches."""

    _branches: list[_FixedValues]

    def propose(
        self,
        study: Study,
        results: Sequence[FrozenTrial],
        running: Sequence[FrozenTrial],
        distributions: Distributions,
        branches: Sequence[Params],
    ) -> Params:
        """Returns the configuration that promises most.

        Numbers of many values are searched as if all between them were possible, and then rounded:
        to search their values one by one took two thirds of the time.

        Args:
            study: The study, which has the directions.
            results: Complete trials.
            running: Trials of other workers.
            distributions: The hyperparameters of the model.
            branches: The fixed hyperparameters of each branch; the process chooses one branch, and
                all other values.
        """
        import torch  # not before it is needed

        middle = {name: find_middle(distribution) for name, distribution in distributions.items()}
        self._branches = []
        for branch in branches:
            mask = np.array([name in branch for name in distributions], bool)
            self._branches.append(_FixedValues(mask, middle | branch))
        complete_results = [_fill_params(trial, middle) for trial in results]
        complete_running = [_fill_params(trial, middle) for trial in running]
        smooth_distributions = {
            name: _smooth_distribution(distribution) for name, distribution in distributions.items()
        }
        # To name the device takes as long as all else, so it is named where a user has set another.
        device: Any = nullcontext()
        if torch.get_default_device().type != "cpu":
            device = torch.device("cpu")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the last bits depend on it
        try:
            with device:
                proposal = self._sample_relative_impl(
                    study, complete_results, complete_running, smooth_distributions
                )
        finally:
            torch.set_num_threads(threads)
        return {name: _round_value(distributions[name], value) for name, value in proposal.items()}

    def _optimize_acqf(self, acqf: Any, best_params: Any) -> Any:
        """Returns the most promising of the best points of the branches, as Optuna's method does.

        The acquisition function is optimized in one branch after the other. Meanwhile it has a
        space in which only the hyperparameters vary that the branch does not fix.

        Args:
            acqf: Optuna's acquisition function.
            best_params: The points of the best results, (results, hyperparameters), at which
                Optuna begins to search; None for none.
        """
        whole_space = acqf.search_space
        best_value = -math.inf
        best_point: Any = None
        for branch in self._branches:
            branch_space = _BranchSpace(whole_space, branch)
            acqf.search_space = branch_space
            start = None
            if best_params is not None:
                start = branch_space.set_fixed(best_params.copy())
            point = super()._optimize_acqf(acqf, start)
            points = point[None]  # the function evaluates several at once
            value = float(acqf.eval_acqf_no_grad(points)[0])
            if best_point is None or value > best_value:
                best_value = value
                best_point = point
        acqf.search_space = whole_space
        return best_point


def _fill_params(trial: FrozenTrial, middle: Params) -> FrozenTrial:
    """Returns a trial with a value for each hyperparameter of the model, and no others."""
    filled_trial = copy.copy(trial)
    filled_trial.params = dict(middle)
    for name, value in trial.params.items():
        if name in middle:
            filled_trial.params[name] = value
    return filled_trial


class _BranchSpace:
    """A space of Optuna's process in which some values are fixed; see its `SearchSpace`."""

    def __init__(self, whole_space: Any, branch: _FixedValues) -> None:
        self._whole_space = whole_space
        self._mask = branch.mask
        self._fixed_row = whole_space.get_normalized_params([None], [branch.params])[0]
        free_indices = np.flatnonzero(~branch.mask)
        self.continuous_indices = np.intersect1d(whole_space.continuous_indices, free_indices)
        self.discrete_indices = np.intersect1d(whole_space.discrete_indices, free_indices)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole_space, name)

    def set_fixed(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sets the fixed values in points, float (…, hyperparameters), and returns these."""
        points[:, self._mask] = self._fixed_row[self._mask]
        return points

    def sample_normalized_params(self, n: int, rng: Any) -> NDArray[np.float64]:
        return self.set_fixed(self._whole_space.sample_normalized_params(n, rng))

    def get_choices_of_discrete_params(self) -> list[NDArray[np.float64]]:
        choices = self._whole_space.get_choices_of_discrete_params()
        choices_by_index = dict(zip(self._whole_space.discrete_indices, choices, strict=True))
        return [choices_by_index[index] for index in self.discrete_indices]


def _smooth_distribution(distribution: BaseDistribution) -> BaseDistribution:
    """Returns a continuous range instead of one with a step and many values.

    It is wider by half a step at each end, so that as many of its numbers are rounded to the lowest
    and highest value as to any other. Other distributions are returned unchanged.
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
    """Returns the value of a range with a step that is nearest to a number; else the value."""
    if not isinstance(distribution, IntDistribution | FloatDistribution):
        return value
    low = distribution.low
    step = distribution.step
    if step is None:
        return value
    nearest_value = low + round((value - low) / step) * step
    return min(max(low, nearest_value), distribution.high)
