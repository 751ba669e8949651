"""All trials get one epoch, and the best of them go on to the end."""

from typing import Any

from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

CONTINUES = "continues"


class Screening(BaseSampler):
    """All get one epoch, and the best of every nine goes on to the end (arXiv:2307.15422).

    A trial that goes on is a new one with the parameters of the screened trial: then it works
    without any means to continue a trial. It is a pure function of the stored trials.

    Args:
        seed: of the trial.
        share: of how many screened trials one goes on.
    """

    def __init__(self, seed: int, share: int = 9) -> None:
        self.share, self.random = share, RandomSampler(seed=seed)
        self.chosen: FrozenTrial | None = None

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        trials = study.get_trials(deepcopy=False)
        taken = {other.system_attrs.get(CONTINUES) for other in trials}
        screened = [
            other
            for other in trials
            if other.intermediate_values and CONTINUES not in other.system_attrs
        ]
        screened.sort(key=lambda other: -other.intermediate_values[1])
        best = screened[: len(screened) // self.share]
        self.chosen = next((one for one in best if one.number not in taken), None)
        if self.chosen is not None:
            # Of the system: what is set for the user now, the pruner would not see.
            number = self.chosen.number
            study._storage.set_trial_system_attr(trial._trial_id, CONTINUES, number)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        if self.chosen is not None:
            return self.chosen.params[name]
        return self.random.sample_independent(study, trial, name, distribution)


class FirstEpoch(BasePruner):
    """Stops a trial after its first epoch, unless `Screening` lets it go on."""

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        return CONTINUES not in trial.system_attrs
