"""Runs of a tracker, such as W&B or MLflow, as trials of Optuna.

A tracker stores the whole configuration of a run. Its hyperparameters are those settings that
differ between runs.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeGuard

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from studyloom.errors import ConfigError, DataError
from studyloom.extras.adopt.csv_file import MAX_INTEGER
from studyloom.text import is_scalar, nearest, one_line, shorten

UNFINISHED = ("running", "pending", "scheduled")  # states of a run that has not ended
FINISHED = ("finished", "")
MAX_LIST_LENGTH = 300  # characters of a list of names in a message


class TrackedFile(Protocol):
    """A file or folder of a tracker, which errors name."""

    def error(self, problem: str) -> DataError: ...


@dataclass(frozen=True)
class Run:
    """A run of a tracker.

    Args:
        name: its name, or else its id.
        state: the state in the tracker's words, such as `finished` or `crashed`.
        settings: its configuration by name; a nested one is named with dots.
        values: the values of the metric, in the order in which they were logged.
        start: when it began, in local time; None if that is not stored.
        end: when it ended, in local time; None if it has not, or if that is not stored.
    """

    name: str
    state: str
    settings: Mapping[str, object]
    values: Sequence[float]
    start: datetime | None = None
    end: datetime | None = None


def make_trials(runs: Sequence[Run], metric: str, names: Sequence[str]) -> list[FrozenTrial]:
    """Returns the trials of runs, with the metric's last value as the value of each.

    Args:
        names: the settings that are hyperparameters. If it is empty, they are those that differ.
    """
    settings_by_name = _group_settings(runs)
    distributions = {}
    for name in names or _find_varied_settings(settings_by_name, len(runs)):
        distributions[name] = _infer_distribution(settings_by_name.get(name, []))
    trials = []
    for number, run in enumerate(runs):
        value = None
        if run.values:
            value = run.values[-1]
        trial = make_trial(number, run.state, value, metric)
        trial.intermediate_values = dict(enumerate(run.values))
        trial.datetime_start = run.start
        trial.datetime_complete = run.end
        for name, distribution in distributions.items():
            if name in run.settings:
                trial.params[name] = _convert(run.settings[name], distribution)
                trial.distributions[name] = distribution
        trials.append(trial)
    return trials


def check_metric(source: TrackedFile, metric: str | None, metrics: Iterable[str]) -> str:
    """Returns the metric that is to be optimized.

    Args:
        source: the file that holds the runs.
        metric: the metric that the user names; None without one.
        metrics: the metrics that the runs have.

    Raises:
        ConfigError: the user names none.
        DataError: no run has it.
    """
    sorted_metrics = sorted(metrics)
    listed = shorten(one_line(", ".join(sorted_metrics) or "none"), MAX_LIST_LENGTH)
    if metric is None:
        raise ConfigError(
            f"name the metric with --maximize METRIC or --minimize METRIC; the runs have {listed}"
        )
    if metric not in sorted_metrics:
        hint = nearest(metric, sorted_metrics)
        name = shorten(one_line(metric), MAX_LIST_LENGTH)
        raise source.error(f"no run has the metric {name}{hint}; they have {listed}")
    return metric


def check_settings(source: TrackedFile, names: Sequence[str], runs: Sequence[Run]) -> None:
    """Raises DataError if no run has a setting that --params names."""
    settings = sorted(_group_settings(runs))
    for name in names:
        if name not in settings:
            listed = shorten(one_line(", ".join(settings) or "none"), MAX_LIST_LENGTH)
            problem = f"no run has the setting {one_line(name)}{nearest(name, settings)}"
            raise source.error(f"{problem}; they have {listed}")


def choose_study(source: TrackedFile, name: str | None, names: Iterable[str], option: str) -> str:
    """Returns the name of the group of runs that is read: the only one, or that of --study.

    Args:
        option: what the tracker calls such a group.

    Raises:
        DataError: there is no such group, or there are several.
    """
    sorted_names = sorted(names)
    if name is None and len(sorted_names) == 1:
        return sorted_names[0]
    if name is None or name not in sorted_names:
        listed = shorten(one_line(", ".join(sorted_names) or "none"), MAX_LIST_LENGTH)
        raise source.error(f"name the {option} with --study; there is {listed}")
    return name


def _group_settings(runs: Sequence[Run]) -> dict[str, list[object]]:
    """Returns the values of each setting that any run has, by its name."""
    values_by_name: dict[str, list[object]] = {}
    for run in runs:
        for name, value in run.settings.items():
            values_by_name.setdefault(name, []).append(_as_scalar(value))
    return values_by_name


def _find_varied_settings(settings: Mapping[str, Sequence[object]], run_count: int) -> list[str]:
    """Returns the names of the settings that differ between runs, or that only some runs have.

    A single run has nothing to differ from, so all of its settings are returned.
    """
    varied = []
    for name, values in settings.items():
        differs = len({repr(value) for value in values}) > 1
        if differs or len(values) < run_count or run_count == 1:
            varied.append(name)
    return varied


def _infer_distribution(values: Sequence[object]) -> BaseDistribution:
    """Returns the distribution of a setting: of integers, of numbers, or of choices."""
    numbers = [value for value in values if _is_number(value)]
    if numbers and len(numbers) == len(values):
        if all(isinstance(number, int) for number in numbers):
            return IntDistribution(int(min(numbers)), int(max(numbers)))
        return FloatDistribution(float(min(numbers)), float(max(numbers)))
    choices: dict[str, Any] = {repr(value): value for value in values}  # 1 and True are equal
    return CategoricalDistribution([*choices.values()])


def _as_scalar(value: object) -> object:
    """Returns a setting as it is, or the text of one that Optuna cannot store, such as a list."""
    if is_scalar(value):
        return value
    return str(value)


def _is_number(value: object) -> TypeGuard[int | float]:
    """Returns True for a finite number that a float can hold exactly; no truth value is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and abs(value) <= MAX_INTEGER


def _convert(value: object, distribution: BaseDistribution) -> object:
    """Returns a setting as its distribution has it: an integer among floats is a float."""
    if isinstance(distribution, FloatDistribution):
        return float(str(value))
    return _as_scalar(value)


def make_trial(number: int, state: str, value: float | None, metric: str) -> FrozenTrial:
    """Returns the trial of a run, without its hyperparameters and times.

    A run that finished without a value counts as failed.

    Args:
        state: the state of the run in the file; empty if the file does not say it.
        value: the value of the metric; None if the file has none.
        metric: the name of the metric, for the reason of a failure.
    """
    final_value = None
    attributes = {}
    if state.lower() in UNFINISHED:
        trial_state = TrialState.RUNNING
    elif state.lower() not in FINISHED:  # such as crashed
        trial_state = TrialState.FAIL
        attributes["fail_reason"] = state
    elif value is None:
        trial_state = TrialState.FAIL
        attributes["fail_reason"] = f"no {metric} is stored"
    elif math.isnan(value):
        trial_state = TrialState.FAIL
        attributes["fail_reason"] = f"{metric} is NaN"
    else:
        trial_state = TrialState.COMPLETE
        final_value = value
    return FrozenTrial(
        number=number,
        state=trial_state,
        value=final_value,
        datetime_start=None,
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs=attributes,
        intermediate_values={},
        trial_id=number,
    )
