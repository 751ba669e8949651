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
from itertools import pairwise
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
        directions: of the study, one for each objective.
        costs: the attributes that have the values of the objectives after the first.
    """
    curves: dict[int, Curve] = {}
    stopped_curves = []
    failed_numbers = []
    for trial in trials:
        curve = _read_curve(trial)
        if trial.state == TrialState.PRUNED and FAILURE in trial.user_attrs:
            failed_numbers.append(trial.number)
            curve = []  # its reports show no typical gain
        curves[trial.number] = curve
        if trial.state.is_finished() or trial.user_attrs.get(PAUSED) is not None:
            stopped_curves.append(curve)
    gains = _find_gains(stopped_curves, curves.values())
    values: dict[int, list[float]] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            values[trial.number] = trial.values
        elif trial.state in (TrialState.PRUNED, TrialState.RUNNING):
            end_value = _extrapolate_curve(curves[trial.number], gains)
            cost_values = [trial.user_attrs.get(name) for name in costs]
            has_costs = all(isinstance(cost, int | float) for cost in cost_values)
            if end_value is not None and has_costs:
                values[trial.number] = [end_value, *cost_values]  # type: ignore[list-item]
    if values:
        worst_values = _find_worst(directions, values.values())
        for number in failed_numbers:
            values[number] = worst_values
    return _show_as_complete(trials, values)


def _read_curve(trial: FrozenTrial) -> Curve:
    """Returns the reports that are numbers; the value of a complete trial is its last."""
    reports = dict(trial.intermediate_values)
    if trial.state == TrialState.COMPLETE and trial.last_step is not None:
        reports[trial.last_step] = trial.values[0]
    return sorted((step, value) for step, value in reports.items() if math.isfinite(value))


def _find_value(curve: Curve, stop: int) -> float | None:
    """Returns the last value of a curve up to a stop; None if it has not come so far."""
    if not curve or curve[-1][0] < stop:
        return None
    reports_before = bisect_right(curve, (stop, math.inf))
    if reports_before == 0:
        return None
    return curve[reports_before - 1][1]


def _find_gains(stopped_curves: Sequence[Curve], curves: Collection[Curve]) -> dict[int, float]:
    """Returns the median gain from each stop to the last one, by stop, the last first.

    Args:
        stopped_curves: of trials that have reached a stop.
        curves: of all trials.
    """
    stops = sorted({curve[-1][0] for curve in stopped_curves if curve}, reverse=True)
    total_gains = dict.fromkeys(stops[:1], 0.0)
    for later_stop, stop in pairwise(stops):
        gains = []
        for curve in curves:
            start = _find_value(curve, stop)
            end = _find_value(curve, later_stop)
            if start is not None and end is not None:
                gains.append(end - start)
        typical_gain = 0.0
        if len(gains) > 1:
            typical_gain = median(gains)
        total_gains[stop] = total_gains[later_stop] + typical_gain
    return total_gains


def _extrapolate_curve(curve: Curve, gains: Mapping[int, float]) -> float | None:
    """Returns the value of a curve at the end of training; None if it has reached no stop.

    Args:
        gains: from each stop to the end, the last stop first.
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
        values: of each trial, one for each objective.
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
    """Returns trials, those with values as complete, with the constraints that they all have.

    Optuna's Gaussian process raises an exception where one trial has other constraints.

    Args:
        values: of some trials, by number.
    """
    shared_names: set[str] | None = None
    for trial in trials:
        if trial.number in values:
            names = set(trial.constraints or ())
            if shared_names is not None:
                names &= shared_names
            shared_names = names
    shown_trials = []
    for trial in trials:
        if trial.number in values:
            trial = copy.copy(trial)
            _select_constraints(trial, shared_names or ())
            trial.state = TrialState.COMPLETE
            trial.values = values[trial.number]
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
        find_cut: returns the step after which the segments of a trial are unknown, or None.
    """
    several_objectives = len(study.directions) > 1

    def show(trials: list[FrozenTrial]) -> list[FrozenTrial]:
        return [_show_until(trial, find_cut, several_objectives) for trial in trials]

    return _view(study, show)


def _show_until(
    trial: FrozenTrial, find_cut: Callable[[Any], int | None], several_objectives: bool
) -> FrozenTrial:
    """Returns a trial without what was reported in its unknown segments: there it runs.

    Args:
        find_cut: see `view_in_rounds`.
    """
    shown_trial = copy.copy(trial)
    attributes = trial.user_attrs
    is_paused = trial.state == TrialState.RUNNING and attributes.get(PAUSED) is not None
    cut = find_cut(attributes.get(SEGMENTS, ()))
    if cut is not None:
        constraints: Container[str] = ()
        if cut > 0:
            # Its costs, which are attributes too, are known from its first segment on.
            constraints = attributes
        _select_constraints(shown_trial, constraints)
        shown_trial.state = TrialState.RUNNING
        shown_trial.values = None
        shown_trial.intermediate_values = {
            step: value for step, value in trial.intermediate_values.items() if step <= cut
        }
        shown_trial.user_attrs = {key: value for key, value in attributes.items() if key != PAUSED}
    elif several_objectives and is_paused:
        # As it will be if it ends at the rung where it waits.
        _select_constraints(shown_trial, trial.constraints or ())
        shown_trial.state = TrialState.PRUNED
        mark_worse_than_complete(shown_trial, shown_trial.set_constraint)
    return shown_trial


def mark_worse_than_complete(
    trial: FrozenTrial, set_constraint: Callable[[str, float], None]
) -> None:
    """Makes a sampler rank a pruned trial behind all complete ones; one that got further is first.

    Optuna's TPE sorts pruned trials by the study's only direction, and raises with several
    (`_get_pruned_trial_score` of 5.0). It sorts trials that break a constraint by how far.
    """
    if not any(excess > 0 for excess in (trial.constraints or {}).values()):
        set_constraint(PRUNED, 1 / max(trial.last_step or 1, 1))


def _select_constraints(trial: FrozenTrial, names: Container[str]) -> None:
    """Removes all constraints of a copy of a trial but some."""
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
        sampler: one that learns only from complete trials.
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
