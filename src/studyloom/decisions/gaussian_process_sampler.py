"""The sampler `gp`: a Gaussian process of all results, and TPE next to it.

Optuna's Gaussian process models hyperparameters that all trials share. Here it models all: one that
a trial lacks, since its branch of the space does not have it, counts as the middle of its range.
The process proposes a configuration in a branch that trials have had; `gaussian_process` says what
a branch is, and which of its hyperparameters are fixed. The first trials are TPE's.

Proposals take longer the more results the process learns from. Of more than MOST_RESULTS it learns
from the most useful ones (`select_useful`), so that a proposal takes at most 0.2 s with 7
hyperparameters, and 0.5 s with 40.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.search_space import intersection_search_space
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from studyloom.decisions.asha import argsort_by_fronts
from studyloom.decisions.extrapolation import view_extrapolated
from studyloom.decisions.gaussian_process import Distributions, GaussianProcess, Params
from studyloom.decisions.samplers import SamplerContext
from studyloom.space.tree import Hyperparameter, find_middle

# The results that the process learns from, if there are more.
MOST_RESULTS = 200
MOST_BEST = 100
MOST_LATEST = 50
# The branches in which the process searches: the best ones, and one that was tried rarely.
MOST_BEST_BRANCHES = 5


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
        if self._context.redraws:
            return tpe_proposal
        proposal = self._propose(study, search_space, tpe_proposal)
        return tpe_proposal | proposal

    def _propose(self, study: Study, search_space: Distributions, tpe_proposal: Params) -> Params:
        """Returns the proposal of the Gaussian process; an empty one if it cannot propose.

        Args:
            study: The study.
            search_space: The hyperparameters that TPE proposes, with their distributions.
            tpe_proposal: TPE's proposal, whose branch is one of those that the process tries.
        """
        trials = view_extrapolated(study).get_trials(deepcopy=False)
        distributions = self._find_modeled(trials, search_space)
        modeled_trials = self._represent_trials(trials, distributions)
        results = _select_trials(modeled_trials, TrialState.COMPLETE)
        running = _select_trials(modeled_trials, TrialState.RUNNING)
        fixed_by_tpe = self._find_fixed(tpe_proposal, distributions)

        if not distributions or len(results) < self._least_results:
            return {}
        if fixed_by_tpe is None:  # no complete trial has had this branch
            return {}
        best_first = _sort_best_first(results, study.directions)
        branches = _select_branches(fixed_by_tpe, best_first)
        useful_results = select_useful(best_first)
        process = GaussianProcess(seed=self._seed)
        return process.propose(
            study,
            [result.trial for result in useful_results],
            [modeled.trial for modeled in running],
            distributions,
            branches,
        )

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


def _select_trials(
    modeled_trials: Sequence[_ModeledTrial], state: TrialState
) -> list[_ModeledTrial]:
    return [modeled for modeled in modeled_trials if modeled.trial.state == state]


def _sort_best_first(
    results: Sequence[_ModeledTrial], directions: Sequence[StudyDirection]
) -> list[_ModeledTrial]:
    """Sorts results by their values, the best first; those of several objectives by their fronts.

    Args:
        results: Complete trials.
        directions: The direction of each objective.
    """
    if len(directions) == 1:
        return sorted(results, key=lambda result: _find_losses(result, directions))
    losses = tuple(_find_losses(result, directions) for result in results)
    return [results[position] for position in argsort_by_fronts(losses)]


def _find_losses(result: _ModeledTrial, directions: Sequence[StudyDirection]) -> tuple[float, ...]:
    """Returns the values of a result, one for each objective, with signs by which less is better.

    Args:
        result: A complete trial.
        directions: The direction of each objective.
    """
    losses = []
    for value, direction in zip(result.trial.values, directions, strict=True):
        if direction == StudyDirection.MAXIMIZE:
            losses.append(-value)
        else:
            losses.append(value)
    return tuple(losses)


def _find_number(result: _ModeledTrial) -> int:
    return result.trial.number


def select_useful(best_first: Sequence[_ModeledTrial]) -> list[_ModeledTrial]:
    """Selects the results from which the process learns most, if there are too many for it.

    They are the best ones and the latest ones, around which it searches, and of the rest some from
    all ranks, which show where not to search.

    Args:
        best_first: All results, the best first.

    Returns:
        At most MOST_RESULTS of them, by number.
    """
    if len(best_first) <= MOST_RESULTS:
        return sorted(best_first, key=_find_number)
    best = best_first[:MOST_BEST]
    others = best_first[MOST_BEST:]
    latest = sorted(others, key=_find_number)[-MOST_LATEST:]
    latest_numbers = {result.trial.number for result in latest}
    rest = [result for result in others if result.trial.number not in latest_numbers]
    count_of_rest = MOST_RESULTS - MOST_BEST - MOST_LATEST
    ranks = np.linspace(0, len(rest) - 1, count_of_rest).round().astype(int)
    spread = [rest[rank] for rank in ranks]
    return sorted([*best, *latest, *spread], key=_find_number)


def _select_branches(first: Params, best_first: Sequence[_ModeledTrial]) -> list[Params]:
    """Selects the branches in which the process searches, without repetitions.

    They are a first one; those whose best results are the best; and, so that a branch gets its
    chance that had bad luck, the one of the others with the fewest results.

    Args:
        first: The fixed hyperparameters of the first branch.
        best_first: All results, the best first.

    Returns:
        The fixed hyperparameters of each branch, with their values.
    """
    # By the items of its fixed hyperparameters, how many results a branch has. A branch comes
    # before another if its best result does.
    counts = Counter(tuple(result.fixed.items()) for result in best_first)
    best_branches = list(counts)[:MOST_BEST_BRANCHES]
    other_branches = list(counts)[MOST_BEST_BRANCHES:]
    if other_branches:
        best_branches.append(min(other_branches, key=lambda branch: counts[branch]))
    branches = [first]
    for items in best_branches:
        branch = dict(items)
        if branch != first:
            branches.append(branch)
    return branches


def _has_distributions(trial: FrozenTrial, distributions: Distributions) -> bool:
    """Returns whether a trial has drawn its hyperparameters from these distributions.

    It need not have all hyperparameters, and may have others.
    """
    for name, distribution in trial.distributions.items():
        if name in distributions and distributions[name] != distribution:
            return False
    return True
