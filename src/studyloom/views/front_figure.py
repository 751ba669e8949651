"""The figure of the Pareto front: each complete trial by its cost and its value."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from studyloom.storage.stored_study import StoredStudy
from studyloom.text import format_cost
from studyloom.views import axes, charts
from studyloom.views.drawn_trials import (
    MANY,
    NOTHING_COMPLETE,
    SMALLER,
    Marked,
    remove_points,
    select_points,
)
from studyloom.views.trial_values import complete_trials

SPREAD = 10.0  # costs that differ by more than this factor are drawn on a logarithmic axis


def draw_front(
    stored: StoredStudy, marked: Marked, axis: axes.Axis, table: charts.PageTable
) -> charts.Chart | str:
    """Draws each complete trial by cost and value, including those that violate a constraint.

    Args:
        table: that of the trials on the front.
    """
    height = 340  # pixels
    trials = [trial for trial in complete_trials(stored.trials()) if len(trial.values or ()) > 1]
    if not trials:
        return NOTHING_COMPLETE
    cost = stored.objectives[1]
    costs = [trial.values[1] for trial in trials]
    if cost.sign > 0:
        better = "more"
    else:
        better = "less"
    x = _make_cost_scale(costs, f"{cost.name}, {better} is better")
    y = axis.make_scale([trial.values[0] for trial in trials], height)
    # The first screen ends above the title of the horizontal axis.
    y = replace(y, title=f"{y.title}, over {cost.name}")
    points: dict[int, charts.Point] = {}
    for trial in trials:
        value, amount = trial.values[:2]
        if x.kind == "tens":  # a logarithmic axis
            from_left = math.log10(amount)
        else:
            from_left = amount
        points[trial.number] = (from_left, axis.coordinate(value))
    feasible = {trial.number for trial in stored.feasible()}
    on_front = {trial.number for trial in stored.front()}
    marks = _mark_front(points, feasible, on_front)
    for name, marked_trial in marked.items():
        if marked_trial is not None and marked_trial.values:
            ring_width = 14
            if name == "winner":
                ring_width = 20  # around the ring of the best trial, which may be the same trial
            point = select_points(points, [marked_trial.number])
            ring = charts.make_trial_dots(
                point, color=name, name=name, width=ring_width, shape="ring"
            )
            marks.append(ring)
    label = f"{axis.metric} over {cost.name}, of {len(trials)} complete trials"
    return charts.Chart(label, height, x, y, charts.without_empty(marks), table)


def _mark_front(
    points: Mapping[int, charts.Point], feasible: Collection[int], on_front: Collection[int]
) -> list[charts.Mark]:
    """Returns the dots of trials by cost and value, and a stepped line through the Pareto front.

    Args:
        points: the coordinates of all trials, by number.
        feasible: the trials that satisfy all constraints.
        on_front: the feasible trials that no other one beats in all values.
    """
    front = select_points(points, on_front)
    beaten = remove_points(select_points(points, feasible), on_front)
    infeasible = remove_points(points, feasible)
    width = 8.0
    if len(points) > MANY:
        width = SMALLER * width
    corners = sorted(front.values())
    return [
        charts.Mark("", "best", "line", [corners], width=1.5, style=("stepped", "quiet")),
        charts.make_trial_dots(infeasible, color="failed", name="infeasible", shape="square"),
        charts.make_trial_dots(beaten, color="complete", name="beaten", width=width),
        charts.make_trial_dots(front, color="best", name="front: not beaten in both"),
    ]


def _make_cost_scale(costs: Sequence[float], title: str) -> axes.ChartScale:
    """Returns the horizontal axis of a cost; logarithmic if they differ by more than SPREAD."""
    is_logarithmic = 0 < SPREAD * min(costs) < max(costs)
    if is_logarithmic:
        x = axes.make_log_scale(costs, title)
    else:
        x = axes.make_linear_scale(costs, title)
    ticks = []
    for tick in x.ticks:
        amount = tick.coordinate
        if is_logarithmic:
            amount = 10**tick.coordinate
        ticks.append(axes.Tick(tick.coordinate, format_cost(amount)))
    return replace(x, ticks=axes.fit_labels(ticks, x.low, x.high))
