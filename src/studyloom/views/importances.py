"""Importances of hyperparameters: how much each sets the best trials apart from the others."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studyloom.storage.optuna_internals import ped_anova
from studyloom.study.stored_study import StoredStudy

ENOUGH = 10  # complete trials, of which the best tenth is one
TOO_FEW = f"With fewer than {ENOUGH} complete trials no hyperparameter has an importance yet."
ALL_ALIKE = "No hyperparameter sets the best complete trials apart from the others."


def varied_parameters(trials: Sequence[FrozenTrial], least: int = 2) -> list[str]:
    """Returns the hyperparameters that had different values in at least `least` of the trials."""
    values: dict[str, list[Any]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values.setdefault(name, []).append(value)
    return sorted(name for name, seen in values.items() if len(seen) >= least and len({*seen}) > 1)


def importances(stored: StoredStudy, position: int = 0) -> dict[str, float] | str:
    """Returns the importances of hyperparameters, as optuna-dashboard shows them.

    PED-ANOVA (Watanabe et al., IJCAI 2023) compares the distribution of each hyperparameter in the
    best tenth of the complete trials with that in all of them.

    Args:
        position: of the objective.

    Returns:
        The share of each hyperparameter that had different values, the largest first; all shares
        that Optuna computes sum to 1. Or else why there are none.
    """
    trials = [
        trial
        for trial in stored.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if math.isfinite(trial.values[position])
    ]
    if len(trials) < ENOUGH:
        return TOO_FEW
    sign = stored.goals[position].sign
    with warnings.catch_warnings():  # that it minimizes, and that few trials have a hyperparameter
        warnings.simplefilter("ignore")
        found = ped_anova().evaluate(
            stored.optuna, target=lambda trial: -sign * trial.values[position]
        )
    total = sum(found.values())
    shares = {name: found[name] / total for name in varied_parameters(trials) if total}
    # Optuna leaves the order of equal ones to chance.
    return dict(sorted(shares.items(), key=lambda item: -item[1])) or ALL_ALIKE
