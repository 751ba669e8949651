"""What figures ask of trials: their learning curves, and which of them to draw."""

import itertools
import math
from collections.abc import Sequence
from statistics import median

from optuna.trial import FrozenTrial, TrialState

from studyloom.storage.attributes import EPOCHS
from studyloom.study.failures import outcome
from studyloom.study.stored_study import StoredStudy, value_of
from studyloom.text import format_parameter, format_value, shorten
from studyloom.views.figures.chart import Table

ENOUGH = 3  # complete trials that must have a parameter before it is drawn
NO_PARAMETERS = f"No parameter has had different values in {ENOUGH} complete trials or more yet."
NOT_COMPLETE = ("failed", "pruned", "paused", "running")
BINS = 4  # of a parameter's settings, in the table behind its figure


def complete_trials(trials: Sequence[FrozenTrial], goal: int = 0) -> list[FrozenTrial]:
    """Returns the complete trials whose value is a finite number, by number.

    Args:
        trials: all trials of a study, by number.
        goal: the position of the value.
    """
    return [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE and math.isfinite(value_of(trial, goal) or 0.0)
    ]


def learning_curve(trial: FrozenTrial) -> list[tuple[int, float]]:
    """Returns the learning curve that a trial stored, or else the values that it reported.

    Returns:
        The epochs, from 1, with the value after each; empty if there are none.
    """
    epochs = trial.user_attrs.get(EPOCHS) or {}
    stored = list(zip(epochs.get("number", ()), epochs.get("value", ()), strict=False))
    return stored or sorted(trial.intermediate_values.items())


def best_of(stored: StoredStudy, count: int) -> list[FrozenTrial]:
    """Returns the complete trials with the best values, the best first.

    Args:
        stored: the study.
        count: how many trials to return at most. Trials that break a constraint, or the rule by
            which the best is chosen, are taken only if there is room after all others.
    """
    ranked = stored.ranked()
    numbers = {trial.number for trial in ranked}
    rest = [trial for trial in complete_trials(stored.trials()) if trial.number not in numbers]
    rest.sort(key=stored.costs)
    return [*ranked, *rest][:count]


def best_so_far(complete: Sequence[FrozenTrial], sign: int) -> list[FrozenTrial]:
    """Returns the trials that were better than all feasible ones before them.

    Args:
        complete: trials with a finite value, by number.
        sign: 1 if more of the value is better, -1 if less is.
    """
    steps: list[FrozenTrial] = []
    for trial in complete:
        value = sign * (value_of(trial) or 0.0)
        feasible = all(broken <= 0 for broken in (trial.constraints or {}).values())
        if feasible and (not steps or value > sign * (value_of(steps[-1]) or 0.0)):
            steps.append(trial)
    return steps


def label_of(setting: object, length: int = 24) -> str:
    """Returns the setting of a parameter as a label, cut in its middle if it is long."""
    return shorten(format_parameter(setting), length)


def summary(trials: Sequence[FrozenTrial], name: str, sign: int, goal: int = 0) -> Table:
    """Returns what the values were by the setting of a parameter, as a table.

    Args:
        trials: complete trials that have the parameter.
        name: the parameter.
        sign: 1 if more of the value is better, -1 if less is.
        goal: the position of the value.
    """
    settings = [trial.params[name] for trial in trials]
    distinct = list(dict.fromkeys(sorted(settings, key=_order)))
    groups: list[tuple[str, list[FrozenTrial]]]
    if len(distinct) <= 2 * BINS or not _are_numbers(distinct):
        by_setting: dict[object, list[FrozenTrial]] = {}
        for trial in trials:
            by_setting.setdefault(trial.params[name], []).append(trial)
        groups = [(label_of(setting, 60), by_setting[setting]) for setting in distinct]
    else:
        ordered = sorted(trials, key=lambda trial: _order(trial.params[name]))
        ends = [len(ordered) * part // BINS for part in range(BINS + 1)]
        groups = [
            (f"{label_of(part[0].params[name])} to {label_of(part[-1].params[name])}", part)
            for part in (ordered[a:b] for a, b in itertools.pairwise(ends))
            if part
        ]
    rows = []
    for label, members in groups:
        values = [value_of(trial, goal) or 0.0 for trial in members]
        best = max(values, key=lambda value: sign * value)
        rows.append((label, len(members), format_value(best), format_value(median(values))))
    return Table((name, "complete trials", "best", "median"), rows, words=(0,))


def _order(setting: object) -> tuple[bool, float, str]:
    number = isinstance(setting, int | float)
    return not number, float(setting) if isinstance(setting, int | float) else 0.0, str(setting)


def _are_numbers(settings: Sequence[object]) -> bool:
    return all(isinstance(s, int | float) and not isinstance(s, bool) for s in settings)


def by_outcome(trials: Sequence[FrozenTrial], kind: str) -> list[FrozenTrial]:
    """Returns the trials that ended, or stand, in one way."""
    return [trial for trial in trials if outcome(trial) == kind]
