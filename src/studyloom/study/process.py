"""A Gaussian process of what each configuration reaches, and TPE next to it.

Optuna's Gaussian process (`GPSampler`) models hyperparameters that all trials share. Here TPE
chooses the options of groups and the lengths of lists, and the process the values that they open,
from the trials with the same options and lengths. The first trials are TPE's alone.
"""

import copy
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import GPSampler, TPESampler
from optuna.search_space import intersection_search_space
from optuna.trial import FrozenTrial, TrialState

from studyloom.space.tree import Parameter, Space, count_values
from studyloom.storage.attributes import SAMPLER, TIMES
from studyloom.study.extrapolation import extrapolated
from studyloom.study.trial_record import TrialRecord

FEW = 16  # values of a number up to which Optuna tries each; of more it searches one by one
PAYS = 2.0  # seconds of training, of which a process takes a twentieth
MOST_RESULTS, MOST_DIMENSIONS = 200, 20  # beyond which it takes longer than that
TRAINING = ("training", "evaluation", "other")  # kinds of a worker's time
GP, TPE = "gp", "tpe"
log = logging.getLogger(__name__)


class ProcessSampler(TPESampler):
    """Chooses by TPE, and values that a branch of the space opens by a Gaussian process.

    Args:
        space: the search space.
        seed: of both.
        n_startup_trials: how many results the process needs; of a branch, as many of its own.
    """

    def __init__(self, space: Space, seed: int | None = None, n_startup_trials: int = 10) -> None:
        super().__init__(seed=seed, multivariate=True, group=True, constant_liar=True)
        self._space, self._enough, self._seed = space, n_startup_trials, seed

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        chosen = super().sample_relative(study, trial, search_space)
        if not self._serves(study):
            return chosen
        trials = extrapolated(study).get_trials(deepcopy=False)
        results = [each for each in trials if each.state == TrialState.COMPLETE]
        if len(results) < self._enough:
            return chosen
        fixed: dict[str, Any] = {}

        def decide(parameter: Parameter) -> Any:
            single = parameter.distribution.single()  # which TPE is not asked for
            value = parameter.stand_in({}) if single else chosen[parameter.name]
            if parameter.role in ("option", "length"):
                fixed[parameter.name] = value
            return value

        try:
            opened = self._space.walk(decide).distributions
        except KeyError:  # no trial has had this branch yet
            return chosen
        if not self._space.nodes:  # the objective suggests its hyperparameters itself
            shared = intersection_search_space(results)
            opened = {name: shared[name] for name in shared if name in search_space}
        free = {n: each for n, each in opened.items() if n not in fixed and not each.single()}
        alike = [each for each in trials if _is_alike(each, fixed, free)]
        results = [each for each in alike if each.state == TrialState.COMPLETE]
        if not (free and self._enough <= len(results) and self._takes(len(results), len(free))):
            return chosen
        running = [each for each in alike if each.state == TrialState.RUNNING]
        process = Process(seed=self._seed, n_startup_trials=1)
        return chosen | process.propose(study, results, running, free)

    @property
    def fallback(self) -> "ProcessSampler":
        """TPE alone, which draws again what was not accepted: the process would repeat it."""
        alone = copy.copy(self)
        alone._enough = sys.maxsize
        return alone

    def _serves(self, study: Study) -> bool:
        """Whether the process serves the study at all."""
        return True

    def _takes(self, results: int, dimensions: int) -> bool:
        """Whether the process takes so many results and hyperparameters."""
        return True


class AutoSampler(ProcessSampler):
    """What `sampler=auto` stands for: a Gaussian process where it pays, and TPE elsewhere.

    It pays with one objective if trials have trained for two seconds on average, twenty times what
    the process takes, and with up to 200 results and 20 hyperparameters in a branch. That is
    decided after the first results, and stored with the study, which continues so.

    Args:
        space: the search space.
        seed: of both.
        objectives: how many the study has.
        chosen: what is stored; None before that.
    """

    def __init__(
        self,
        space: Space,
        seed: int | None = None,
        objectives: int = 1,
        chosen: str | None = None,
    ) -> None:
        super().__init__(space, seed)
        self._several, self._chosen = objectives > 1, chosen

    @property
    def note(self) -> str:
        """What is printed before the first trial."""
        words = {
            GP: f"a Gaussian process, since trials train for at least {PAYS:g} s on average",
            TPE: f"TPE, since trials train for less than {PAYS:g} s on average",
        }
        later = f"TPE, then a Gaussian process if trials train for {PAYS:g} s on average"
        several = "TPE, since objective.metric names several"
        return f"sampler=auto: {several if self._several else words.get(str(self._chosen), later)}"

    def _serves(self, study: Study) -> bool:
        if self._several:
            return False
        self._chosen = study.user_attrs.get(SAMPLER)
        if self._chosen is None:
            times = training_times(study)
            if len(times) < self._enough:
                return False
            self._chosen = GP if sum(times) / len(times) >= PAYS else TPE
            # Not the method of a study, which a user's objective has, with reserved names.
            study._storage.set_study_user_attr(study._study_id, SAMPLER, self._chosen)
            log.info(self.note)
        return self._chosen == GP

    def _takes(self, results: int, dimensions: int) -> bool:
        return results <= MOST_RESULTS and dimensions <= MOST_DIMENSIONS


def training_times(study: Study) -> list[float]:
    """Returns how many seconds trials have trained so far, of those that have ended or paused."""
    trials = study.get_trials(deepcopy=False)
    times = [TrialRecord(trial).times for trial in trials if TIMES in trial.user_attrs]
    return [sum(each.get(kind, 0.0) for kind in TRAINING) for each in times]


def _is_alike(
    trial: FrozenTrial, fixed: Mapping[str, Any], free: Mapping[str, BaseDistribution]
) -> bool:
    """Whether a trial is of a branch: it has the same options and lengths, and what they open."""
    same = all(trial.params.get(name) == value for name, value in fixed.items())
    return same and all(trial.distributions.get(name) == each for name, each in free.items())


class Process(GPSampler):
    """Optuna's Gaussian process, which is given its results."""

    def propose(
        self,
        study: Study,
        results: Sequence[FrozenTrial],
        running: Sequence[FrozenTrial],
        space: Mapping[str, BaseDistribution],
    ) -> dict[str, Any]:
        """Returns the values that promise most.

        Numbers of many values are searched as if all between them were possible, and then rounded:
        to search their values one by one took two thirds of the time.
        """
        import torch  # its users have imported it; importing this module must not

        smooth = {name: _smooth(each) for name, each in space.items()}
        # To name the device takes as long as all else, so it is named where a user has set another.
        on_cpu, threads = torch.get_default_device().type == "cpu", torch.get_num_threads()
        torch.set_num_threads(1)  # the last bits depend on it
        try:
            with nullcontext() if on_cpu else torch.device("cpu"):
                found = self._sample_relative_impl(study, [*results], [*running], smooth)
        finally:
            torch.set_num_threads(threads)
        return {name: _rounded(space[name], value) for name, value in found.items()}


def _smooth(distribution: BaseDistribution) -> BaseDistribution:
    match distribution:
        case IntDistribution(low=low, high=high, step=step, log=log) if (
            count_values(distribution) > FEW
        ):
            return FloatDistribution(low - step / 2, high + step / 2, log=log)
        case FloatDistribution(low=low, high=high, step=float(step)) if (
            count_values(distribution) > FEW
        ):
            return FloatDistribution(low - step / 2, high + step / 2)
    return distribution


def _rounded(distribution: BaseDistribution, value: Any) -> Any:
    match distribution:
        case IntDistribution(low=low, high=high, step=step):
            return min(max(low, low + round((value - low) / step) * step), high)
        case FloatDistribution(low=low, high=high, step=float(step)):
            return min(max(low, low + round((value - low) / step) * step), high)
    return value
