"""A Gaussian process of what each configuration reaches, and TPE next to it.

Optuna's Gaussian process (`GPSampler`) models hyperparameters that all trials share. Here it models
all: one that a trial lacks, since its branch of the space does not have it, counts as the middle of
its range. The model chooses a branch that trials have had, and the values in it. The first trials
are TPE's.
"""

import copy
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
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

FEW = 16  # values of a number up to which Optuna tries each; of more it searches one by one
PAYS = 2.0  # seconds of training, of which the model takes a twentieth
LATEST = 50  # results after which TPE is chosen: with many workers all trials are short at first
MOST_BRANCHES = 6  # that the model tries: those with the most results
TRAINING = ("training", "evaluation", "other")  # kinds of a worker's time
GP, TPE = "gp", "tpe"
log = logging.getLogger(__name__)


class GaussianProcessSampler(TPESampler):
    """Chooses by a Gaussian process once there are results, and before by TPE.

    TPE also draws again where a configuration was refused: the model would repeat it.

    Args:
        context: of which it takes the space.
        seed: of both.
        n_startup_trials: how many results the model needs.
    """

    most_results = most_dimensions = math.inf  # that the model takes

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
        self._enough = n_startup_trials
        self._seed = seed

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        chosen = super().sample_relative(study, trial, search_space)
        if self._context.redraws or not self._serves(study):
            return chosen
        trials = view_extrapolated(study).get_trials(deepcopy=False)
        results = [each for each in trials if each.state == TrialState.COMPLETE]
        known: dict[str, Any] = {}
        for result in results:
            known = result.distributions | known
        if not self._space.nodes:  # the objective suggests its hyperparameters itself
            known = intersection_search_space(results)
        # Only what TPE knows may be chosen here. It has not seen the branch of a running trial.
        known = {n: each for n, each in known.items() if n in search_space and not each.single()}
        own = self._branch(chosen, known)
        placed = [(each, self._branch(each.params, known)) for each in trials if _fits(each, known)]
        alike = [each for each, branch in placed if branch is not None]
        results = [each for each in alike if each.state == TrialState.COMPLETE]
        enough = self._enough <= len(results) <= self.most_results
        fits = 0 < len(known) <= self.most_dimensions
        if own is None or not fits or not enough:  # own is None if no trial has had this branch
            return chosen
        had = Counter(tuple(branch.items()) for _, branch in placed if branch is not None)
        others = [dict(branch) for branch, _ in had.most_common(MOST_BRANCHES)]
        branches = [own, *(branch for branch in others if branch != own)]
        running = [each for each in alike if each.state == TrialState.RUNNING]
        model = GaussianProcess(seed=self._seed, n_startup_trials=1)
        return chosen | model.propose(study, results, running, known, branches)

    def _branch(self, params: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns what is given in the branch of a configuration: options, lengths, what it lacks.

        None if the configuration is not whole, or has a hyperparameter that is not known.
        """
        if not self._space.nodes:
            return {} if known.keys() <= params.keys() else None
        given = {name: find_middle(each) for name, each in known.items()}

        def decide(parameter: Hyperparameter) -> Any:
            name, single = parameter.name, parameter.distribution.single()
            if not single and name not in known:
                raise KeyError(name)
            value = parameter.make_placeholder({}) if single else params[name]
            if parameter.role in ("option", "length") and name in given:
                given[name] = value
            else:
                given.pop(name, None)
            return value

        try:
            self._space.walk(decide)
        except KeyError:
            return None
        return given

    def _serves(self, study: Study) -> bool:
        """Whether the model serves the study at all."""
        return True


class AutoSampler(GaussianProcessSampler):
    """What `sampler=auto` stands for: a Gaussian process where it pays, and TPE elsewhere.

    It pays with one objective if trials have trained for two seconds on average, twenty times what
    the model takes, and with up to 200 results and 20 hyperparameters. Whether trials train so
    long is decided between the tenth and the fiftieth result, and stored with the study.

    Args:
        context: of which it takes all; a deterministic study always gets a Gaussian process.
        seed: of both.
    """

    most_results, most_dimensions = 200, 20  # beyond them it takes more than a twentieth

    def __init__(self, context: SamplerContext, seed: int | None = None) -> None:
        super().__init__(context, seed)
        self._several = context.objectives > 1
        self._deterministic = context.deterministic
        self._chosen = context.auto_sampler
        if self._several:
            self._chosen = TPE

    @property
    def note(self) -> str:
        """What is printed before the first trial."""
        words = {
            GP: f"a Gaussian process, since trials train for at least {PAYS:g} s on average",
            TPE: f"TPE, since trials train for less than {PAYS:g} s on average",
        }
        later = f"TPE, then a Gaussian process if trials train for {PAYS:g} s on average"
        said = words.get(str(self._chosen), later)
        if self._several:
            said = "TPE, since objective.metric names several"
        elif self._deterministic:
            said = "TPE, then a Gaussian process, since study.deterministic=true ignores times"
        return f"sampler=auto: {said}"

    def _serves(self, study: Study) -> bool:
        self._chosen = self._chosen or study.user_attrs.get(SAMPLER)
        if self._chosen is None:
            times = training_times(study)
            if len(times) < self._enough and not self._deterministic:
                return False
            pays = self._deterministic or sum(times) / len(times) >= PAYS
            if not pays and len(times) < LATEST:
                return False
            self._chosen = GP if pays else TPE
            # Not the method of a study, which a user's objective has, with reserved names.
            study._storage.set_study_user_attr(study._study_id, SAMPLER, self._chosen)
            log.info(self.note)
        return self._chosen == GP


def training_times(study: Study) -> list[float]:
    """Returns how many seconds trials have trained so far, of those that have ended or paused."""
    trials = study.get_trials(deepcopy=False)
    times = [TrialRecord(trial).times for trial in trials if TIMES in trial.user_attrs]
    return [sum(each.get(kind, 0.0) for kind in TRAINING) for each in times]


def _fits(trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> bool:
    """Whether the hyperparameters of a trial have these distributions."""
    own = trial.distributions
    return all(own[name] == each for name, each in space.items() if name in own)


class GaussianProcess(GPSampler):
    """Optuna's Gaussian process, which is given its results, and optimizes within branches."""

    _branches: list[tuple[NDArray[np.bool_], dict[str, Any]]]

    def propose(
        self,
        study: Study,
        results: Sequence[FrozenTrial],
        running: Sequence[FrozenTrial],
        space: Mapping[str, Any],
        branches: Sequence[dict[str, Any]],
    ) -> dict[str, Any]:
        """Returns the configuration that promises most.

        Numbers of many values are searched as if all between them were possible, and then rounded:
        to search their values one by one took two thirds of the time.

        Args:
            study: which has the directions.
            results: complete trials.
            running: those of other workers.
            space: all hyperparameters.
            branches: what is given in each branch; it chooses one, and all else.
        """
        import torch  # not before it is needed

        middle = {name: find_middle(each) for name, each in space.items()}

        def whole(trial: FrozenTrial) -> FrozenTrial:
            filled = copy.copy(trial)
            filled.params = middle | {n: each for n, each in trial.params.items() if n in space}
            return filled

        self._branches = [
            (np.array([name in branch for name in space], bool), middle | branch)
            for branch in branches
        ]
        complete, others = [*map(whole, results)], [*map(whole, running)]
        smooth = {name: _smooth(each) for name, each in space.items()}
        # To name the device takes as long as all else, so it is named where a user has set another.
        on_cpu, threads = torch.get_default_device().type == "cpu", torch.get_num_threads()
        torch.set_num_threads(1)  # the last bits depend on it
        try:
            with nullcontext() if on_cpu else torch.device("cpu"):
                found = self._sample_relative_impl(study, complete, others, smooth)
        finally:
            torch.set_num_threads(threads)
        return {name: _rounded(space[name], value) for name, value in found.items()}

    def _optimize_acqf(self, acqf: Any, best_params: Any) -> Any:
        """Returns the most promising of the best points of the branches; see Optuna's."""
        whole, found = acqf.search_space, list[tuple[float, int, Any]]()
        for given, params in self._branches:
            acqf.search_space = part = _Branch(whole, given, params)
            start = None if best_params is None else part.give(best_params.copy())
            point = super()._optimize_acqf(acqf, start)
            found.append((float(acqf.eval_acqf_no_grad(point[None])[0]), -len(found), point))
        acqf.search_space = whole
        return max(found, key=lambda each: each[:2])[2]


class _Branch:
    """A space of Optuna's process in which some values are given."""

    def __init__(self, whole: Any, given: NDArray[np.bool_], params: dict[str, Any]) -> None:
        self._whole, self._given = whole, given
        self._row = whole.get_normalized_params([None], [params])[0]
        free = np.flatnonzero(~given)
        self.continuous_indices = np.intersect1d(whole.continuous_indices, free)
        self.discrete_indices = np.intersect1d(whole.discrete_indices, free)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def give(self, points: Any) -> Any:
        """Sets what is given in some points."""
        points[:, self._given] = self._row[self._given]
        return points

    def sample_normalized_params(self, n: int, rng: Any) -> Any:
        return self.give(self._whole.sample_normalized_params(n, rng))

    def get_choices_of_discrete_params(self) -> Any:
        choices = self._whole.get_choices_of_discrete_params()
        by_index = dict(zip(self._whole.discrete_indices, choices, strict=True))
        return [by_index[index] for index in self.discrete_indices]


def _smooth(distribution: BaseDistribution) -> BaseDistribution:
    match distribution:
        case (
            IntDistribution(low=low, high=high, step=step, log=log)
            | FloatDistribution(low=low, high=high, step=float(step), log=log)
        ) if count_values(distribution) > FEW:
            return FloatDistribution(low - step / 2, high + step / 2, log=log)
    return distribution


def _rounded(distribution: BaseDistribution, value: Any) -> Any:
    match distribution:
        case (
            IntDistribution(low=low, high=high, step=step)
            | FloatDistribution(low=low, high=high, step=float(step))
        ):
            return min(max(low, low + round((value - low) / step) * step), high)
    return value
