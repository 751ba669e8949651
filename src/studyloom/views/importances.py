"""Which parameters matter: the importances that status and report show."""

import functools
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from studyloom.views.figures.plot_study import quiet_optuna


def varied_parameters(trials: Sequence[FrozenTrial], least: int = 2) -> list[str]:
    """Returns the parameters that had different values in complete trials, in alphabetical order.

    Args:
        trials: the trials of a study; those that are not complete are skipped.
        least: the number of complete trials that must have a parameter.
    """
    values: dict[str, list[Any]] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            for name, value in trial.params.items():
                values.setdefault(name, []).append(value)
    return sorted(name for name, seen in values.items() if len(seen) >= least and len({*seen}) > 1)


def importances(study: optuna.Study, names: Sequence[str]) -> dict[str, float]:
    """Computes how much of the differences in value each parameter explains, by PED-ANOVA.

    Watanabe et al., PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary
    Subspaces, IJCAI 2023, https://arxiv.org/abs/2304.10255, as Optuna implements it.

    Args:
        study: a study with one value per trial.
        names: the parameters to compare, from `varied_parameters`.

    Returns:
        The share of each parameter, in all 1, the largest first; empty without names.
    """
    if not names:
        return {}
    with quiet_optuna():
        return _get_param_importances()(study, params=list(names))


@functools.cache
def _get_param_importances() -> Callable[..., dict[str, float]]:
    """Imports Optuna's function without scikit-learn, as if that were not installed.

    Two evaluators that are not used here need it, and with it come scipy and pandas: 1.3 s, for
    the 3 ms that PED-ANOVA takes. Afterwards nothing is left that lacks it, since a program may
    use those evaluators.
    """
    package, hidden = "optuna.importance", "sklearn"
    if package in sys.modules or hidden in sys.modules:
        module = import_module(package)
    else:
        before, attributes = {*sys.modules}, dict(vars(optuna))
        sys.modules[hidden] = None  # type: ignore[assignment]
        try:
            module = import_module(package)
        finally:
            del sys.modules[hidden]
            for name in {*sys.modules} - before:
                if name.startswith(package):
                    del sys.modules[name]
            vars(optuna).update(attributes)
    function: Callable[..., dict[str, float]] = module.get_param_importances
    return function
