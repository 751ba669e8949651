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
from typing import Any, NamedTuple

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, PartialFixedSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from studyloom.storage.attributes import FAILURE, PAUSED, SEGMENTS
from studyloom.storage.optuna_internals import CONSTRAINT

PRUNED = "pruned"  # the constraint that a pruned trial of several objectives breaks
FEWEST_GAINS = 2  # trials with a gain between two stops, for its median to be typical
# A function that returns trials as a view shows them.
ShowTrials = Callable[[list[FrozenTrial]], list[FrozenTrial]]


class Report(NamedTuple):
    """A report of a trial: its step, and the value of the metric."""

    step: int
    value: float


Curve = list[Report]  # the reports of a trial that are finite, by step


def extrapolate(
    trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection], costs: Sequence[str] = ()
) -> list[FrozenTrial]:
    """Shows every trial that has reached a stop as complete, with its value at the end.

    A *stop* is a step at which trials are complete, pruned or paused: a rung, or the end. What
    trials typically gain from a stop to the end is added to a trial's value at its last stop. A
    trial that failed because of its configuration, such as one that diverged, has the worst values
    of all. Others stay unchanged: running trials before their first stop, and those of which
    nothing is known.

    Args:
        trials: The trials of a study.
        directions: The directions of the study, one for each objective.
        costs: The attributes that have the values of the objectives after the first.
    """
    curves = {trial.number: _read_curve(trial) for trial in trials}
    stopped_curves = [curves[trial.number] for trial in trials if _has_stopped(trial)]
    gains = _find_gains(stopped_curves, curves.values())
    final_values: dict[int, list[float]] = {}  # by trial number
    for trial in trials:
        values = _extrapolate_trial(trial, curves[trial.number], gains, costs)
        if values is not None:
            final_values[trial.number] = values
    if final_values:
        worst_values = _find_worst(directions, final_values.values())
        for trial in trials:
            if _failed_by_configuration(trial):
                final_values[trial.number] = worst_values
    return _show_as_complete(trials, final_values)


def _has_stopped(trial: FrozenTrial) -> bool:
    """Returns whether a trial has ended or is paused, so that its last report is at a stop."""
    return trial.state.is_finished() or trial.user_attrs.get(PAUSED) is not None


def _failed_by_configuration(trial: FrozenTrial) -> bool:
    """Returns whether a trial failed in a way that teaches the sampler: one of TEACHING_KINDS."""
    return trial.state == TrialState.PRUNED and FAILURE in trial.user_attrs


def _read_curve(trial: FrozenTrial) -> Curve:
    """Returns the finite reports of a trial, by step.

    The curve of a complete trial ends with the trial's value, whatever it has reported last. A
    trial that failed because of its configuration has an empty curve: its reports show no typical
    gain.
    """
    if _failed_by_configuration(trial):
        return []
    values_by_step = dict(trial.intermediate_values)
    if trial.state == TrialState.COMPLETE and trial.last_step is not None:
        values_by_step[trial.last_step] = trial.values[0]
    curve = []
    for step in sorted(values_by_step):
        value = values_by_step[step]
        if math.isfinite(value):
            curve.append(Report(step, value))
    return curve


def _extrapolate_trial(
    trial: FrozenTrial, curve: Curve, gains: Mapping[int, float], costs: Sequence[str]
) -> list[float] | None:
    """Returns the values of a trial at the end of training; None if they cannot be known.

    Args:
        trial: The trial.
        curve: Its reports.
        gains: The gain from each stop to the end, by the stop's step, the last stop first.
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
    """Returns the value of a curve at a stop, or before if it has none there.

    None if the curve ends before the stop, or begins after it.
    """
    if not curve or curve[-1].step < stop:
        return None
    count_until_stop = bisect_right(curve, stop, key=lambda report: report.step)
    if count_until_stop == 0:
        return None
    return curve[count_until_stop - 1].value


def _find_gains(stopped_curves: Sequence[Curve], curves: Collection[Curve]) -> dict[int, float]:
    """Returns by how much a value typically grows from each stop to the last one.

    A stop is a step after which a trial has stopped training: at a rung, or at the end. The gain
    from a stop to the last one is the sum of the median gains from each stop to the next.

    Args:
        stopped_curves: The curves of trials that are complete, pruned or paused: their last steps
            are the stops.
        curves: The curves of all trials, which show the gains.

    Returns:
        The gain of each stop, by the stop's step. The last stop comes first, with a gain of 0.
    """
    stops = {curve[-1].step for curve in stopped_curves if curve}
    gains_to_end: dict[int, float] = {}
    later_stop: int | None = None
    for stop in sorted(stops, reverse=True):
        if later_stop is None:
            gains_to_end[stop] = 0.0
        else:
            gain_between = _find_median_gain(curves, stop, later_stop)
            gains_to_end[stop] = gain_between + gains_to_end[later_stop]
        later_stop = stop
    return gains_to_end


def _find_median_gain(curves: Collection[Curve], stop: int, later_stop: int) -> float:
    """Returns the median gain between two stops; 0 unless at least two trials have reached both."""
    gains = []
    for curve in curves:
        value = _find_value(curve, stop)
        later_value = _find_value(curve, later_stop)
        if value is not None and later_value is not None:
            gains.append(later_value - value)
    if len(gains) < FEWEST_GAINS:
        return 0.0
    return median(gains)


def _extrapolate_curve(curve: Curve, gains: Mapping[int, float]) -> float | None:
    """Returns the value of a curve at the end of training; None if it has reached no stop.

    Args:
        curve: The reports of a trial.
        gains: The gain from each stop to the end, by the stop's step, the last stop first.
    """
    for stop, gain in gains.items():  # the first one that the curve has reached is its last stop
        value = _find_value(curve, stop)
        if value is not None:
            return value + gain
    return None


def _find_worst(
    directions: Sequence[StudyDirection], values: Collection[Sequence[float]]
) -> list[float]:
    """Returns the worst value of each objective.

    Args:
        directions: The direction of each objective.
        values: The values of each trial, one for each objective.
    """
    worst_values = []
    for index, direction in enumerate(directions):
        values_of_objective = [trial_values[index] for trial_values in values]
        if direction == StudyDirection.MINIMIZE:
            worst_values.append(max(values_of_objective))
        else:
            worst_values.append(min(values_of_objective))
    return worst_values


def _show_as_complete(
    trials: Sequence[FrozenTrial], final_values: Mapping[int, list[float]]
) -> list[FrozenTrial]:
    """Returns trials, with complete copies in place of those that have final values.

    A copy keeps only the constraints that all of these trials have: Optuna's Gaussian process
    raises an exception if some trials have other constraints than others.

    Args:
        trials: The trials of a study.
        final_values: The values of the trials to show as complete, by number.
    """
    if not final_values:
        return list(trials)
    names_by_trial = []  # the names of the constraints of each trial that is replaced
    for trial in trials:
        if trial.number in final_values:
            names_by_trial.append(set(trial.constraints or ()))
    shared_names = set.intersection(*names_by_trial)
    shown_trials = []
    for trial in trials:
        if trial.number in final_values:
            complete_copy = copy.copy(trial)
            _select_constraints(complete_copy, shared_names)
            complete_copy.state = TrialState.COMPLETE
            complete_copy.values = final_values[trial.number]
            shown_trials.append(complete_copy)
        else:
            shown_trials.append(trial)
    return shown_trials


def view_extrapolated(study: Study) -> Study:
    """Returns a view of a study whose trials are shown as `extrapolate` does."""
    costs = (study.metric_names or [])[1:]
    return _make_view(study, partial(extrapolate, directions=study.directions, costs=costs))


def _make_view(study: Study, show_trials: ShowTrials) -> Study:
    """Returns a view of a study: a copy that shows the trials as a function returns them."""
    view = copy.copy(study)
    storage: Any = _ViewStorage(study._storage, show_trials)
    view._storage = storage
    return view


def view_in_rounds(study: Study, find_last_known_step: Callable[[Any], int | None]) -> Study:
    """Returns a view of a study whose trials are shown as rounds allow it; see `RoundOrder`.

    Args:
        study: The study.
        find_last_known_step: Returns from a trial's attribute SEGMENTS the last step that the view
            may show; None if it may show all.
    """
    has_several_objectives = len(study.directions) > 1

    def show_known(trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Returns copies of the trials with only what is known of them."""
        shown_trials = []
        for trial in trials:
            last_step = find_last_known_step(trial.user_attrs.get(SEGMENTS, ()))
            paused_at = trial.user_attrs.get(PAUSED)  # None again once it is promoted
            is_paused = trial.state == TrialState.RUNNING and paused_at is not None
            if last_step is not None:
                shown_trials.append(_show_as_running(trial, last_step))
            elif is_paused and has_several_objectives:
                shown_trials.append(_show_as_pruned(trial))
            else:
                shown_trials.append(copy.copy(trial))
        return shown_trials

    return _make_view(study, show_known)


def _show_as_pruned(trial: FrozenTrial) -> FrozenTrial:
    """Returns a copy of a paused trial as if it had ended at the rung where it waits."""
    pruned_copy = copy.copy(trial)
    # Keep all constraints, but in a dict of the copy, which gets one more.
    _select_constraints(pruned_copy, trial.constraints or ())
    pruned_copy.state = TrialState.PRUNED
    mark_worse_than_complete(pruned_copy, pruned_copy.set_constraint)
    return pruned_copy


def _show_as_running(trial: FrozenTrial, last_step: int) -> FrozenTrial:
    """Returns a copy of a trial that runs, and has reported nothing after the step `last_step`."""
    running_copy = copy.copy(trial)
    running_copy.state = TrialState.RUNNING
    running_copy.values = None
    known_names: Container[str] = ()  # of constraints
    if last_step > 0:
        # Only constraints on costs are known, which were measured before the first step. Each cost
        # is stored as an attribute with the same name as its constraint.
        known_names = trial.user_attrs
    _select_constraints(running_copy, known_names)
    running_copy.intermediate_values = {
        step: value for step, value in trial.intermediate_values.items() if step <= last_step
    }
    running_copy.user_attrs = dict(trial.user_attrs)
    running_copy.user_attrs.pop(PAUSED, None)
    return running_copy


def mark_worse_than_complete(
    trial: FrozenTrial, set_constraint: Callable[[str, float], None]
) -> None:
    """Makes a sampler rank a pruned trial of several objectives behind all complete ones.

    Optuna's TPE cannot rank pruned trials if there are several objectives: it raises an exception
    (`_get_pruned_trial_score` of 5.0). But it ranks trials that break a constraint behind all
    others, by how far they break it. So a pruned trial that breaks none gets a constraint, which it
    breaks the less the further it got.

    Args:
        trial: The pruned trial.
        set_constraint: Sets a constraint of the trial, by name; a positive value breaks it.
    """
    constraints = trial.constraints or {}
    breaks_constraint = any(excess > 0 for excess in constraints.values())
    if not breaks_constraint:
        steps = max(trial.last_step or 1, 1)
        set_constraint(PRUNED, 1 / steps)


def _select_constraints(trial: FrozenTrial, names: Container[str]) -> None:
    """Removes the constraints of a copy of a trial, except for those with these names.

    Optuna stores constraints among the system attributes. These get a new dict, since the trial
    that was copied still has the old one.
    """
    constraints = trial.constraints or {}
    other_attributes = {}
    for key, value in trial.system_attrs.items():
        if not key.startswith(CONSTRAINT):
            other_attributes[key] = value
    trial.system_attrs = other_attributes
    for name, excess in constraints.items():
        if name in names:
            trial.set_constraint(name, excess)


class _ViewStorage:
    """The storage of a view, which changes only how trials are read."""

    def __init__(self, storage: Any, show_trials: ShowTrials) -> None:
        self._storage = storage
        self._show_trials = show_trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        stored_trials = self._storage.get_all_trials(study_id, deepcopy=deepcopy)
        trials = self._show_trials(stored_trials)
        if states is None:
            return trials
        return [trial for trial in trials if trial.state in states]


class Extrapolating(PartialFixedSampler):
    """Shows another sampler all trials as if at the end of their training.

    Optuna's PartialFixedSampler passes each call on to another sampler, and fixes some of the
    hyperparameters; here it fixes none.

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
