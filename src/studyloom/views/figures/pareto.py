"""The Pareto front: value over cost, with the trials that no other beats as a staircase."""

from collections.abc import Mapping, Sequence
from math import log10

from optuna.trial import FrozenTrial

from studyloom.study.stored_study import StoredStudy
from studyloom.text import format_cost, format_value
from studyloom.views.figures.axes import Axis
from studyloom.views.figures.chart import (
    Chart,
    Mark,
    Scale,
    Table,
    Tick,
    log_scale,
    plain_scale,
    responsive,
)
from studyloom.views.figures.trials import complete_trials

SPREAD = 10.0  # costs that differ by more than this factor are drawn on a logarithmic axis
HEIGHT = 400


def front(stored: StoredStudy, marked: Mapping[str, FrozenTrial | None], axis: Axis) -> Chart | str:
    """Draws each complete trial by its cost and its value, also those that break a constraint.

    Args:
        stored: a study with two objectives, the second a cost.
        marked: the trials to mark with a ring, by name: baseline, best, winner.
        axis: the axis of the values.

    Returns:
        The chart, or the sentence to show in its place.
    """
    trials = [trial for trial in complete_trials(stored.trials()) if len(trial.values or ()) > 1]
    if not trials:
        return "No trial is complete yet."
    cost = stored.goals[1].name
    feasible = {trial.number for trial in stored.feasible()}
    ahead = {trial.number for trial in stored.front()}
    x = _cost_scale([trial.values[1] for trial in trials], f"{cost}, less is better")
    kinds = {
        "infeasible": ("failed", [t for t in trials if t.number not in feasible]),
        "beaten": ("complete", [t for t in trials if t.number in feasible - ahead]),
        "front": ("best", [t for t in trials if t.number in ahead]),
    }
    if stored.goals[1].sign > 0:
        x = Scale(x.low, x.high, x.ticks, f"{cost}, more is better", x.reads)
    steps = sorted(_point(trial, x, axis) for trial in kinds["front"][1])
    marks = [Mark("staircase", "best", "line", [steps], width=1.5, style=("stepped", "quiet"))]
    for name, (colour, members) in kinds.items():
        parts = [[_point(trial, x, axis)] for trial in members]
        shape = "square" if name == "infeasible" else "dot"
        style = ("faint",) if name == "beaten" else ()
        marks.append(Mark(name, colour, shape, parts, [t.number for t in members], 8, style))
    for name, trial in marked.items():
        if trial is not None and trial.values:
            size = 20 if name == "winner" else 14  # the winner may be the best: around its ring
            marks.append(Mark(name, name, "ring", [[_point(trial, x, axis)]], [trial.number], size))
    y = axis.scale_of([trial.values[0] for trial in trials], HEIGHT)
    label = f"{axis.metric} over {cost}, of {len(trials)} complete trials"
    return Chart(
        label, HEIGHT, x, y, [mark for mark in marks if mark.parts], _table(kinds, axis, cost)
    )


def _point(trial: FrozenTrial, x: Scale, axis: Axis) -> tuple[float, float]:
    value, cost = trial.values[:2]
    return (log10(cost) if x.reads == "tens" else cost), axis.height(value)


def _cost_scale(costs: Sequence[float], title: str) -> Scale:
    """Returns the axis of the costs, labelled in the digits that a rule accepts."""
    if 0 < SPREAD * min(costs) < max(costs):
        scale = log_scale(costs, title)
        ticks = [Tick(tick.at, format_cost(10**tick.at)) for tick in scale.ticks]
    else:
        scale = plain_scale(costs, title)
        ticks = [Tick(tick.at, format_cost(tick.at)) for tick in scale.ticks]
    shown = responsive(ticks, scale.low, scale.high)
    return Scale(scale.low, scale.high, shown, title, scale.reads)


def _table(kinds: Mapping[str, tuple[str, Sequence[FrozenTrial]]], axis: Axis, cost: str) -> Table:
    members = sorted(kinds["front"][1], key=lambda trial: trial.values[1])
    rows = [(t.number, format_value(t.values[0]), format_cost(t.values[1])) for t in members]
    beaten = len(kinds["beaten"][1])
    return Table(
        ("trial", axis.metric, cost), rows, note=f"The front; {beaten} further trials are beaten."
    )
