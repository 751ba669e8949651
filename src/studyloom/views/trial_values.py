"""Values of trials as figures draw them: the last value, the learning curve, the best so far."""

import math
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from studyloom.storage.stored_study import value_of
from studyloom.storage.trial_record import TrialRecord

Curve = Sequence[tuple[int, float]]  # epochs, and the value after each; a loop may begin at 0


def complete_trials(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the complete trials whose value is a finite number."""
    return [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE and math.isfinite(metric_value(trial))
    ]


def last_values(trials: Sequence[FrozenTrial]) -> dict[int, float]:
    """Returns the last finite value of each trial that has one, by its number.

    For a complete trial this is its final value, and nothing if that is not finite. For another
    trial it is the last finite value of its learning curve.
    """
    values = {trial.number: metric_value(trial) for trial in complete_trials(trials)}
    for trial in trials:
        if trial.state != TrialState.COMPLETE:
            reported = [value for _, value in learning_curve(trial) if is_finite(value)]
            if reported:
                values[trial.number] = reported[-1]
    return values


def ended_early(trials: Sequence[FrozenTrial]) -> dict[str, dict[int, float]]:
    """Returns the last value of each trial that was pruned or is paused, by outcome and number."""
    values = last_values(trials)
    early: dict[str, dict[int, float]] = {"pruned": {}, "paused": {}}
    for trial in trials:
        outcome = TrialRecord(trial).outcome
        if outcome in early and trial.number in values:
            early[outcome][trial.number] = values[trial.number]
    return early


def learning_curve(trial: FrozenTrial) -> Curve:
    """Returns the learning curve that a trial stored, or else the values that it reported."""
    columns = TrialRecord(trial).curve
    return list(zip(columns.get("number", ()), columns.get("value", ()), strict=False))


def finite_curves(trials: Sequence[FrozenTrial]) -> dict[int, Curve]:
    """Returns the learning curves whose values are finite numbers, by trial."""
    curves = {}
    for trial in trials:
        curve = learning_curve(trial)
        if curve and all(is_finite(value) for _, value in curve):
            curves[trial.number] = curve
    return curves


def best_so_far(complete: Sequence[FrozenTrial], sign: int) -> list[FrozenTrial]:
    """Returns the trials that were better than all feasible trials before them.

    Args:
        sign: 1 if more is better, -1 if less is.
    """
    improvements: list[FrozenTrial] = []
    for trial in complete:
        constraints = trial.constraints or {}
        is_feasible = all(excess <= 0 for excess in constraints.values())
        if not is_feasible:
            continue
        if not improvements or sign * metric_value(trial) > sign * metric_value(improvements[-1]):
            improvements.append(trial)
    return improvements


def metric_value(trial: FrozenTrial) -> float:
    """Returns the value of a complete trial for the metric."""
    return value_of(trial) or 0.0


def is_finite(value: object) -> bool:
    """Returns whether a stored value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)
