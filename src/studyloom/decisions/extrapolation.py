"""Trials at the end of their training, as samplers see them that learn only from complete ones.

Under promotion few trials complete: of 70 trials in 432 epochs 4 to 8. Optuna's Gaussian process,
CMA-ES and NSGA-II would see only these. Here a trial that stopped earlier is shown as complete,
with its last value and what trials typically gained from there to the end.

A sampler reads trials from the storage of its study. It gets a *view* of the study: a copy whose
storage shows the trials as a function changes them, and passes on everything else. In a search in
rounds, a view shows of each trial what is known in its round, see `rounds`.
"""

import copy
import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, PartialFixedSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from studyloom.storage.attributes import FAILURE, PAUSED, SEGMENTS
from studyloom.storage.optuna_internals import CONSTRAINT

PRUNED = "pruned"  # the constraint that a pruned trial of several objectives breaks
Curve = list[tuple[int, float]]  # the reports of a trial: step and value, by step
Show = Callable[[list[FrozenTrial]], list[FrozenTrial]]  # returns trials as a view shows them


def extrapolate(
    trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection], costs: Sequence[str] = ()
) -> list[FrozenTrial]:
    """Shows every trial that has reached a stop as complete, with its value at the end.

    A *stop* is the last step of a trial that is complete, pruned or paused: a rung, or the end. To
    the value at a stop is added the median gain from each stop to the next, of the trials that
    have reached both, if there are two. A trial that failed because of its configuration, such as
    one that diverged, has the worst values of all. Others stay unchanged: running trials before
    their first stop, and those of which nothing is known.

    Args:
        directions: The directions of the study, one for each objective.
        costs: The attributes that have the values of the objectives after the first.
    """
    curves = {trial.number: _read_curve(trial) for trial in trials}
    stopped_curves = [curves[trial.number] for trial in trials if _has_stopped(trial)]
    gains = _find_gains(stopped_curves, curves.values())
    values: dict[int, list[float]] = {}
    for trial in trials:
        final_values = _extrapolate_trial(trial, curves[trial.number], gains, costs)
        if final_values is not None:
            values[trial.number] = final_values
    if values:
        worst_values = _find_worst(directions, values.values())
        for trial in trials:
            if _failed_by_configuration(trial):
                values[trial.number] = worst_values
    return _show_as_complete(trials, values)


def _has_stopped(trial: FrozenTrial) -> bool:
    """Returns whether the last report of a trial is at a stop."""
    return trial.state.is_finished() or trial.user_attrs.get(PAUSED) is not None


def _failed_by_configuration(trial: FrozenTrial) -> bool:
    """Returns whether a trial failed in a way that teaches the sampler; see `failures.TEACHES`."""
    return trial.state == TrialState.PRUNED and FAILURE in trial.user_attrs


def _read_curve(trial: FrozenTrial) -> Curve:
    """Returns the reports that are numbers; the value of a complete trial is its last.

    A trial that failed because of its configuration has an empty curve: its reports show no typical
    gain.
    """
    if _failed_by_configuration(trial):
        return []
    reports = dict(trial.intermediate_values)
    if trial.state == TrialState.COMPLETE and trial.last_step is not None:
        reports[trial.last_step] = trial.values[0]
    return sorted((step, value) for step, value in reports.items() if math.isfinite(value))


def _extrapolate_trial(
    trial: FrozenTrial, curve: Curve, gains: Mapping[int, float], costs: Sequence[str]
) -> list[float] | None:
    """Returns the values of a trial at the end of training; None if nothing is known of them.

    Args:
        gains: The gain from each stop to the end, by stop, the last stop first.
        costs: The attributes that have the values of the objectives after the first.
    """
    if trial.state == TrialState.COMPLETE:
        return list(trial.values)
    if trial.state not in (TrialState.PRUNED, TrialState.RUNNING):
        return None
    metric_value = _extrapolate_curve(curve, gains)
    if metric_value is None:
        return None
    values = [metric_value]
    for name in costs:
        cost = trial.user_attrs.get(name)
        if not isinstance(cost, int | float):
            return None
        values.append(cost)
    return values


def _find_value(curve: Curve, stop: int) -> float | None:
    """Returns the last value of a curve up to a stop; None if it has not come so far."""
    if not curve or curve[-1][0] < stop:
        return None
    report_count = bisect_right(curve, (stop, math.inf))  # of the reports up to the stop
    if report_count == 0:
        return None
    return curve[report_count - 1][1]


def _find_gains(stopped_curves: Sequence[Curve], curves: Collection[Curve]) -> dict[int, float]:
    """Returns the typical gain from each stop to the last one, by stop, the last first.

    Args:
        stopped_curves: The curves of trials that have reached a stop.
        curves: The curves of all trials.
    """
    stops = sorted({curve[-1][0] for curve in stopped_curves if curve}, reverse=True)
    total_gains: dict[int, float] = {}
    later_stop: int | None = None
    for stop in stops:
        if later_stop is None:
            total_gains[stop] = 0.0
        else:
            gain_between = _find_median_gain(curves, stop, later_stop)
            total_gains[stop] = gain_between + total_gains[later_stop]
        later_stop = stop
    return total_gains


def _find_median_gain(curves: Collection[Curve], stop: int, later_stop: int) -> float:
    """Returns the median gain between two stops; 0 unless two trials have reached both."""
    gains = []
    for curve in curves:
        value = _find_value(curve, stop)
        later_value = _find_value(curve, later_stop)
        if value is not None and later_value is not None:
            gains.append(later_value - value)
    if len(gains) < 2:
        return 0.0
    return median(gains)


def _extrapolate_curve(curve: Curve, gains: Mapping[int, float]) -> float | None:
    """Returns the value of a curve at the end of training; None if it has reached no stop.

    Args:
        gains: The gain from each stop to the end, by stop, the last stop first.
    """
    for stop, gain in gains.items():
        value = _find_value(curve, stop)
        if value is not None:
            return value + gain
    return None


def _find_worst(
    directions: Sequence[StudyDirection], values: Collection[Sequence[float]]
) -> list[float]:
    """Returns the worst value of each objective.

    Args:
        values: The values of each trial, one for each objective.
    """
    worst_values = []
    for direction, column in zip(directions, zip(*values, strict=True), strict=True):
        if direction == StudyDirection.MINIMIZE:
            worst_values.append(max(column))
        else:
            worst_values.append(min(column))
    return worst_values


def _show_as_complete(
    trials: Sequence[FrozenTrial], values: Mapping[int, list[float]]
) -> list[FrozenTrial]:
    """Returns trials, with copies instead of some that show these as complete, with new values.

    The copies have only the constraints that all of them have: Optuna's Gaussian process raises an
    exception where one trial has other constraints.

    Args:
        values: The values of the trials to show as complete, by number.
    """
    constraint_names = [set(trial.constraints or ()) for trial in trials if trial.number in values]
    shared_names: set[str] = set()
    if constraint_names:
        shared_names = set.intersection(*constraint_names)
    shown_trials = []
    for trial in trials:
        if trial.number in values:
            shown_trial = copy.copy(trial)
            _select_constraints(shown_trial, shared_names)
            shown_trial.state = TrialState.COMPLETE
            shown_trial.values = values[trial.number]
            shown_trials.append(shown_trial)
        else:
            shown_trials.append(trial)
    return shown_trials


def view_extrapolated(study: Study) -> Study:
    """Returns a view of a study whose trials are shown as `extrapolate` does."""
    costs = (study.metric_names or [])[1:]
    return _view(study, partial(extrapolate, directions=study.directions, costs=costs))


def _view(study: Study, show: Show) -> Study:
    """Returns a view of a study, whose trials a function changes when they are read."""
    view = copy.copy(study)
    storage: Any = _ViewStorage(study._storage, show)
    view._storage = storage
    return view


def view_in_rounds(study: Study, find_cut: Callable[[Any], int | None]) -> Study:
    """Returns a view of a study whose trials are shown as rounds allow it; see `RoundOrder`.

    Args:
        find_cut: Returns from a trial's attribute SEGMENTS the step after which they are unknown;
            None if all are known.
    """
    several_objectives = len(study.directions) > 1

    def show(trials: list[FrozenTrial]) -> list[FrozenTrial]:
        return [_show_until(trial, find_cut, several_objectives) for trial in trials]

    return _view(study, show)


def _show_until(
    trial: FrozenTrial, find_cut: Callable[[Any], int | None], several_objectives: bool
) -> FrozenTrial:
    """Returns a copy of a trial as its known segments show it.

    Args:
        find_cut: See `view_in_rounds`.
    """
    cut = find_cut(trial.user_attrs.get(SEGMENTS, ()))
    if cut is not None:
        return _show_as_running(trial, cut)
    shown_trial = copy.copy(trial)
    is_paused = trial.state == TrialState.RUNNING and trial.user_attrs.get(PAUSED) is not None
    if several_objectives and is_paused:
        # It is shown as it will be if it ends at the rung where it waits.
        _select_constraints(shown_trial, trial.constraints or ())  # in a new dict
        shown_trial.state = TrialState.PRUNED
        mark_worse_than_complete(shown_trial, shown_trial.set_constraint)
    return shown_trial


def _show_as_running(trial: FrozenTrial, cut: int) -> FrozenTrial:
    """Returns a copy of a trial that runs, and has reported nothing after the step `cut`."""
    shown_trial = copy.copy(trial)
    attributes = trial.user_attrs
    known_constraints: Container[str] = ()
    if cut > 0:
        # Constraints on its costs, which are attributes too, are known from its first segment on.
        known_constraints = attributes
    _select_constraints(shown_trial, known_constraints)
    shown_trial.state = TrialState.RUNNING
    shown_trial.values = None
    shown_trial.intermediate_values = {
        step: value for step, value in trial.intermediate_values.items() if step <= cut
    }
    shown_trial.user_attrs = {key: value for key, value in attributes.items() if key != PAUSED}
    return shown_trial


def mark_worse_than_complete(
    trial: FrozenTrial, set_constraint: Callable[[str, float], None]
) -> None:
    """Makes a sampler rank a pruned trial behind all complete ones; one that got further is first.

    Optuna's TPE sorts pruned trials by the study's only direction, and raises with several
    (`_get_pruned_trial_score` of 5.0). But it sorts trials that break a constraint by how far they
    break it. So a pruned trial gets a constraint, which it breaks the less the further it got.

    Args:
        set_constraint: Sets a constraint of the trial, by name; a positive value breaks it.
    """
    breaks_constraint = any(excess > 0 for excess in (trial.constraints or {}).values())
    if not breaks_constraint:
        steps = max(trial.last_step or 1, 1)
        set_constraint(PRUNED, 1 / steps)


def _select_constraints(trial: FrozenTrial, names: Container[str]) -> None:
    """Removes the constraints of a copy of a trial, except for those with these names."""
    constraints = trial.constraints or {}
    trial.system_attrs = {
        key: value for key, value in trial.system_attrs.items() if not key.startswith(CONSTRAINT)
    }
    for name, excess in constraints.items():
        if name in names:
            trial.set_constraint(name, excess)


class _ViewStorage:
    """The storage of a view: only the trials of the study are read in another way."""

    def __init__(self, storage: Any, show: Show) -> None:
        self._storage = storage
        self._show = show

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = self._show(self._storage.get_all_trials(study_id, deepcopy=deepcopy))
        if states is None:
            return trials
        return [trial for trial in trials if trial.state in states]


class Extrapolating(PartialFixedSampler):
    """A sampler that sees all trials at the end of their training; it fixes no hyperparameter.

    Args:
        sampler: A sampler that learns only from complete trials.
    """

    def __init__(self, sampler: BaseSampler) -> None:
        super().__init__({}, sampler)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return super().infer_relative_search_space(view_extrapolated(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        return super().sample_relative(view_extrapolated(study), trial, dict(search_space))

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        view = view_extrapolated(study)
        return super().sample_independent(view, trial, param_name, param_distribution)
