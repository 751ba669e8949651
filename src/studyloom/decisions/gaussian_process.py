"""A Gaussian process of what each configuration reaches, and TPE next to it.

Optuna's Gaussian process (`GPSampler`) models hyperparameters that all trials share. Here it models
all: one that a trial lacks, since its branch of the space does not have it, counts as the middle of
its range. The process proposes a configuration in a branch that trials have had.

A *branch* is a choice of options and of list lengths, which decide what hyperparameters there are.
Within a branch some hyperparameters are *fixed*: these options and lengths, and those that the
branch lacks, which stay at the middle of their ranges. The process varies the others. The first
trials are TPE's.
"""

import copy
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
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
# Results after which TPE is chosen if trials are short. With fewer they may be short only because,
# with many workers, all of them are at their first rungs.
RESULTS_TO_CHOOSE_TPE = 50
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
        """Returns the proposal of the Gaussian process, or that of TPE where the process has none.

        TPE always proposes first. The branch that TPE has chosen is one of those that the process
        tries, and TPE's values stay for the hyperparameters that the process does not model.
        """
        tpe_proposal = super().sample_relative(study, trial, search_space)
        if self._context.redraws or not self._chooses_gaussian_process(study):
            return tpe_proposal

        # The hyperparameters that the process models, and the trials from which it learns
        trials = view_extrapolated(study).get_trials(deepcopy=False)
        distributions = self._find_modeled(trials, search_space)
        modeled_trials = self._represent_trials(trials, distributions)
        results = _select_trials(modeled_trials, TrialState.COMPLETE)
        running = _select_trials(modeled_trials, TrialState.RUNNING)
        fixed_by_tpe = self._find_fixed(tpe_proposal, distributions)

        has_few_dimensions = 0 < len(distributions) <= self.most_dimensions
        has_fitting_results = self._least_results <= len(results) <= self.most_results
        if not has_few_dimensions or not has_fitting_results:
            return tpe_proposal
        if fixed_by_tpe is None:  # no complete trial has had this branch
            return tpe_proposal
        branches = _select_branches(fixed_by_tpe, modeled_trials)
        process = GaussianProcess(seed=self._seed, n_startup_trials=1)
        proposal = process.propose(study, results, running, distributions, branches)
        return tpe_proposal | proposal

    def _find_modeled(
        self, trials: Sequence[FrozenTrial], search_space: Distributions
    ) -> Distributions:
        """Returns the distributions of the hyperparameters that the process models, by name.

        It models each hyperparameter that any complete trial has had. If an Optuna objective
        suggests its hyperparameters itself, the space shows no branches: then it models only those
        that all complete trials share.

        Args:
            trials: The trials of the study.
            search_space: The hyperparameters that TPE proposes. No others are modeled: the process
                only replaces values that TPE proposes.
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
        """Returns the trials whose configurations the process can model.

        Args:
            trials: The trials of the study.
            distributions: The distributions of the hyperparameters that it models.
        """
        modeled_trials = []
        for trial in trials:
            if _has_distributions(trial, distributions):
                fixed = self._find_fixed(trial.params, distributions)
                if fixed is not None:
                    modeled_trials.append(_ModeledTrial(trial, fixed))
        return modeled_trials

    def _find_fixed(self, params: Mapping[str, Any], distributions: Distributions) -> Params | None:
        """Returns the hyperparameters that are fixed in the branch of a configuration.

        The process does not vary these: the options and list lengths that make the branch, each
        with its value; and all hyperparameters that the branch lacks, each with the middle of its
        range.

        Args:
            params: The configuration.
            distributions: The distributions of the hyperparameters that the process models.

        Returns:
            The fixed hyperparameters by name; None if the process cannot model the configuration,
            which lacks a value or has a hyperparameter that is not modeled.
        """
        has_branches = bool(self._space.nodes)
        if not has_branches:
            has_all_values = distributions.keys() <= params.keys()
            if has_all_values:
                return {}
            return None
        # At first all are fixed at the middle of their range. A walk through the space visits those
        # that the branch has, and corrects them.
        fixed = {name: find_middle(distribution) for name, distribution in distributions.items()}

        def visit(hyperparameter: Hyperparameter) -> Any:
            """Returns the value of a hyperparameter, by which the walk continues."""
            name = hyperparameter.name
            if hyperparameter.distribution.single():  # it has one value, and is not modeled
                value = hyperparameter.make_placeholder({})
            elif name in distributions:
                value = params[name]
            else:
                raise KeyError(name)
            makes_branch = hyperparameter.role in ("option", "length")
            if not makes_branch:
                fixed.pop(name, None)  # the process varies it
            elif name in fixed:
                fixed[name] = value
            return value

        try:
            self._space.walk(visit)
        except KeyError:  # also for an option that the space does not have
            return None
        return fixed

    def _chooses_gaussian_process(self, study: Study) -> bool:
        """Returns True: the process may propose in each study. `AutoSampler` overrides this."""
        return True


def _select_trials(modeled_trials: Sequence[_ModeledTrial], state: TrialState) -> list[FrozenTrial]:
    return [modeled.trial for modeled in modeled_trials if modeled.trial.state == state]


def _select_branches(first: Params, modeled_trials: Sequence[_ModeledTrial]) -> list[Params]:
    """Returns the branches in which the process searches: a first one, and the most frequent ones.

    A branch is represented by its fixed hyperparameters, with their values.

    Args:
        first: The first branch.
        modeled_trials: The trials whose branches are counted.
    """
    counts = Counter(tuple(modeled.fixed.items()) for modeled in modeled_trials)
    branches = [first]
    for fixed_items, _ in counts.most_common(MOST_BRANCHES):
        branch = dict(fixed_items)
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

    def _chooses_gaussian_process(self, study: Study) -> bool:
        """Returns whether the Gaussian process is chosen for a study, and not TPE.

        The first worker that can decide stores the decision with the study, so that all others
        choose the same.
        """
        if self._decision is None:
            self._decision = study.user_attrs.get(SAMPLER)
        if self._decision is None:
            self._decision = self._decide(study)
            if self._decision is None:
                return False
            # Directly in the storage: this Study object may be the wrapper that a user's objective
            # gets, whose `set_user_attr` refuses studyloom's keys.
            study._storage.set_study_user_attr(study._study_id, SAMPLER, self._decision)
            log.info(self.note)
        return self._decision == GP

    def _decide(self, study: Study) -> str | None:
        """Chooses GP or TPE by the mean training time of trials; None while there are too few.

        Long trainings choose the process early. Short ones choose TPE only after more trials, since
        the first ones to end or pause are the shortest.
        """
        if self._deterministic:  # times differ from run to run
            return GP
        times = read_training_times(study)
        if len(times) < self._least_results:
            return None
        mean_time = sum(times) / len(times)
        if mean_time >= WORTHWHILE_SECONDS:
            return GP
        if len(times) < RESULTS_TO_CHOOSE_TPE:
            return None
        return TPE


def read_training_times(study: Study) -> list[float]:
    """Returns the training time of each trial that has ended or was paused, in seconds."""
    training_times = []
    for trial in study.get_trials(deepcopy=False):
        if TIMES in trial.user_attrs:
            seconds_by_kind = TrialRecord(trial).times
            training_times.append(sum(seconds_by_kind.get(kind, 0.0) for kind in TRAINING))
    return training_times


def _has_distributions(trial: FrozenTrial, distributions: Distributions) -> bool:
    """Returns whether a trial has drawn its hyperparameters from these distributions.

    It need not have all hyperparameters, and may have others.
    """
    for name, distribution in trial.distributions.items():
        if name in distributions and distributions[name] != distribution:
            return False
    return True


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
        """Returns the most promising configuration by the expected improvement.

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
        smooth_distributions = {
            name: _smooth_distribution(distribution) for name, distribution in distributions.items()
        }
        with _one_cpu_thread():
            proposal = self._sample_relative_impl(
                study, filled_results, filled_running, smooth_distributions
            )
        return {name: _round_value(distributions[name], value) for name, value in proposal.items()}

    def _optimize_acqf(self, acqf: Any, best_params: Any) -> Any:
        """Returns the point at which the acquisition function is largest; Optuna's hook for it.

        It is optimized within one branch after the other. In each branch its search space is
        replaced by one in which the fixed hyperparameters do not vary.

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
