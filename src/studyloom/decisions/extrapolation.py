"""What samplers that learn only from complete trials see: each trial at the end of its training.

Under promotion few trials complete: of 70 trials in 432 epochs 4 to 8. Optuna's Gaussian process,
CMA-ES and NSGA-II would see only these. Here a trial that stopped earlier is shown as complete,
with its last value and what trials typically gained from there to the end.

In a search in rounds, samplers see of each trial what is known in its round, see `rounds`.
"""

import copy
import math
from bisect import bisect_right
from collections.abc import Callable, Container, Mapping, Sequence
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
Curve = list[tuple[int, float]]  # step and value, by step


def extrapolate(
    trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection], costs: Sequence[str] = ()
) -> list[FrozenTrial]:
    """Shows every trial that has reached a stop as complete, with its value at the end.

    A stop is the last step of a trial that is complete, pruned or paused: a rung, or the end. To
    the value at a stop is added the median gain from each stop to the next, of the trials that
    have reached both, if there are two. A trial that failed because of its configuration, such as
    one that diverged, has the worst values of all. Others stay unchanged: running trials before
    their first stop, and those of which nothing is known.

    Args:
        directions: of the study.
        costs: the attributes that have the values of its other objectives.
    """
    failed = {t.number for t in trials if t.state == TrialState.PRUNED and FAILURE in t.user_attrs}
    curves = {t.number: [] if t.number in failed else _curve(t) for t in trials}
    gains = _gains([curves[t.number] for t in trials if _has_stopped(t)], [*curves.values()])
    values: dict[int, list[float]] = {}
    for trial in trials:
        reached = ((_at(curves[trial.number], stop), gain) for stop, gain in gains.items())
        ends = [value + gain for value, gain in reached if value is not None]  # the last stop first
        known = [trial.user_attrs.get(name) for name in costs]
        is_known = all(isinstance(cost, int | float) for cost in known)
        if trial.state == TrialState.COMPLETE:
            values[trial.number] = trial.values
        elif trial.state in (TrialState.PRUNED, TrialState.RUNNING) and ends and is_known:
            values[trial.number] = [ends[0], *known]  # type: ignore[list-item]
    if values:
        sides = zip(directions, zip(*values.values(), strict=True), strict=True)
        worst = [max(each) if way == StudyDirection.MINIMIZE else min(each) for way, each in sides]
        values |= dict.fromkeys(failed, worst)
    shared = [set(trial.constraints or ()) for trial in trials if trial.number in values]
    names = set.intersection(*shared) if shared else set()
    return [
        _complete(trial, values[trial.number], names) if trial.number in values else trial
        for trial in trials
    ]


def _has_stopped(trial: FrozenTrial) -> bool:
    return trial.state.is_finished() or trial.user_attrs.get(PAUSED) is not None


def _curve(trial: FrozenTrial) -> Curve:
    """Returns the reports that are numbers; the value of a complete trial is its last."""
    reports = dict(trial.intermediate_values)
    if trial.state == TrialState.COMPLETE and trial.last_step is not None:
        reports[trial.last_step] = trial.values[0]
    return sorted((step, value) for step, value in reports.items() if math.isfinite(value))


def _at(curve: Curve, stop: int) -> float | None:
    """Returns the last value of a curve up to a stop; None if it has not come so far."""
    if not curve or curve[-1][0] < stop:
        return None
    place = bisect_right(curve, (stop, math.inf))
    return curve[place - 1][1] if place else None


def _gains(stopped: Sequence[Curve], curves: Sequence[Curve]) -> dict[int, float]:
    """Returns the median gain from each stop to the last one, by stop, the last first."""
    stops = sorted({curve[-1][0] for curve in stopped if curve}, reverse=True)
    gains = dict.fromkeys(stops[:1], 0.0)
    for later, stop in pairwise(stops):
        both = [(_at(curve, stop), _at(curve, later)) for curve in curves]
        each = [end - start for start, end in both if start is not None and end is not None]
        gains[stop] = gains[later] + (median(each) if len(each) > 1 else 0.0)
    return gains


def _complete(trial: FrozenTrial, values: list[float], names: Container[str]) -> FrozenTrial:
    """Returns a trial as complete, with those of its constraints that all trials have.

    Optuna's Gaussian process raises an exception where one trial has other constraints.
    """
    shown = copy.copy(trial)
    _keep_constraints(shown, names)
    shown.state, shown.values = TrialState.COMPLETE, values
    return shown


def extrapolated(study: Study) -> Study:
    """Returns a study whose trials are read as `extrapolate` shows them."""
    costs = (study.metric_names or [])[1:]
    return seen_as(study, partial(extrapolate, directions=study.directions, costs=costs))


def seen_as(study: Study, show: Callable[[list[FrozenTrial]], list[FrozenTrial]]) -> Study:
    """Returns a study whose trials are read as a function shows them."""
    seen = copy.copy(study)
    storage: Any = _Shown(study._storage, show)
    seen._storage = storage
    return seen


def seen_in_rounds(study: Study, unknown_from: Callable[[Any], int | None]) -> Study:
    """Returns a study whose trials are read as rounds allow it; see `rounds.RoundOrder`.

    Args:
        unknown_from: returns the step after which the segments of a trial are unknown, or None.
    """
    several = len(study.directions) > 1
    return seen_as(study, lambda trials: [_as_known(t, unknown_from, several) for t in trials])


def _as_known(
    trial: FrozenTrial, unknown_from: Callable[[Any], int | None], several: bool
) -> FrozenTrial:
    """Returns a trial in whose unknown segments nothing has been reported: it runs."""
    shown, attributes = copy.copy(trial), trial.user_attrs
    cut, waits = unknown_from(attributes.get(SEGMENTS, ())), attributes.get(PAUSED) is not None
    if cut is not None:
        # Its costs, which are attributes too, are known from its first segment on.
        _keep_constraints(shown, attributes if cut else ())
        shown.state, shown.values = TrialState.RUNNING, None
        reports = trial.intermediate_values.items()
        shown.intermediate_values = {step: value for step, value in reports if step <= cut}
        shown.user_attrs = {key: each for key, each in attributes.items() if key != PAUSED}
    elif several and waits and trial.state == TrialState.RUNNING:  # as when it ends there
        _keep_constraints(shown, trial.constraints or ())
        shown.state = TrialState.PRUNED
        mark_worse_than_complete(shown, shown.set_constraint)
    return shown


def mark_worse_than_complete(
    trial: FrozenTrial, set_constraint: Callable[[str, float], None]
) -> None:
    """Puts a pruned trial behind all complete ones for the sampler; who got further is first.

    Optuna's TPE sorts pruned trials by the study's only direction, and raises with several
    (`_get_pruned_trial_score` of 5.0). Those that break a constraint it sorts by how far.
    """
    if not any(excess > 0 for excess in (trial.constraints or {}).values()):
        set_constraint(PRUNED, 1 / max(trial.last_step or 1, 1))


def _keep_constraints(trial: FrozenTrial, names: Container[str]) -> None:
    """Keeps only some constraints of a copy of a trial."""
    constraints, attributes = trial.constraints or {}, trial.system_attrs.items()
    trial.system_attrs = {k: each for k, each in attributes if not k.startswith(CONSTRAINT)}
    for name in constraints:
        if name in names:
            trial.set_constraint(name, constraints[name])


class _Shown:
    """A storage of which only the trials of a study are read in another way."""

    def __init__(self, storage: Any, show: Callable[[list[FrozenTrial]], Any]) -> None:
        self._storage, self._show = storage, show

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        shown = self._show(self._storage.get_all_trials(study_id, deepcopy=deepcopy))
        return [trial for trial in shown if states is None or trial.state in states]


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
        return super().infer_relative_search_space(extrapolated(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        return super().sample_relative(extrapolated(study), trial, dict(search_space))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        seen = extrapolated(study)
        return super().sample_independent(seen, trial, param_name, param_distribution)
