"""The history of a search: each trial at its value, the best so far, the winner on new seeds."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from optuna.trial import FrozenTrial

from studyloom.storage.stored_study import value_of
from studyloom.storage.trial_record import INTERRUPTED, shown_state
from studyloom.text import format_value
from studyloom.views import axes, charts
from studyloom.views.drawn_trials import MANY, SMALLER, Marked, color_of_outcome, select_points
from studyloom.views.trial_values import best_so_far, complete_trials, last_values, metric_value
from studyloom.winner.result import Result, Summary

NO_VALUE = "No trial has a value yet."
# The width of a trial's mark in the history, by its outcome. The last are on top.
HISTORY = {"failed": 4, "pruned": 4, "paused": 5, "complete": 8, INTERRUPTED: 7, "running": 9}
SMALLEST_DOT = 8  # the width of a mark of the history from which on it is a dot, not a square


def draw_history(
    trials: Sequence[FrozenTrial],
    marked: Marked,
    axis: axes.Axis,
    winner: Result | None = None,
    live_trials: Collection[int] | None = None,
    early_trials: Collection[int] = (),
) -> charts.Chart | str:
    """Draws each trial at its last value, the best so far, and the winner's values on new seeds.

    A dotted line is the baseline: across the search, and short next to each value on new seeds.
    A stroke at the edge is a trial far worse than the others, one at the bottom has no value.

    Args:
        early_trials: the numbers of trials that ended too early to say how long the axis must be.
    """
    height = 320  # pixels
    values = last_values(trials)
    if not values:
        return NO_VALUE
    new_values: Mapping[str, Summary] = {}
    new_baseline_values: Mapping[str, Summary] = {}
    if winner is not None:
        new_values = winner.values_after_search(axis.metric)
        new_baseline_values = winner.baseline_values_after_search(axis.metric)
    all_new_values = [*new_values.values(), *new_baseline_values.values()]
    late_values = [value for number, value in values.items() if number not in early_trials]
    y = _make_history_scale(axis, late_values or values.values(), all_new_values, height)
    outcomes = {trial.number: shown_state(trial, live_trials) for trial in trials}
    last_number = max(outcomes)
    x = axes.make_integer_scale(0, last_number, "trial")
    right_edge = x.high
    step = 0.035 * (x.high - x.low)  # between the new values, to the right of the trials
    x = replace(x, high=right_edge + step * len(new_values))

    margin = 0.05 * (y.high - y.low)
    bottom = y.low - margin
    points: dict[int, charts.Point] = {}
    within_axis = set()  # the numbers of trials
    for number, outcome in outcomes.items():
        coordinate = bottom
        if number in values:
            unclipped = axis.coordinate(values[number])
            coordinate = y.clip(unclipped)
            if coordinate == unclipped:
                within_axis.add(number)
        if outcome in HISTORY:
            points[number] = (number, coordinate)
    if any(number not in values for number in points):
        y = replace(y, low=bottom - margin)

    marks = _mark_outcomes(points, outcomes, within_axis)
    improvements = best_so_far(complete_trials(trials), axis.sign)
    corners = [points[trial.number] for trial in improvements if trial.number in within_axis]
    marks.append(_mark_best_so_far(corners, last_number))
    baseline = value_of(marked["baseline"])
    if baseline is not None:
        marks += _mark_baseline(axis.coordinate(baseline), replace(x, high=right_edge), y)
    marks.append(_ring_best(select_points(points, within_axis), marked, winner))
    for position, (name, new_value) in enumerate(new_values.items()):
        position_on_axis = right_edge + step * position
        marks += _mark_new_value(name, new_value, position_on_axis, axis)
        if name in new_baseline_values:
            baseline_mean = axis.coordinate(new_baseline_values[name].mean)
            marks.append(_mark_new_baseline(name, baseline_mean, position_on_axis, step))

    rows = [(trial.number, format_value(metric_value(trial))) for trial in improvements]
    note = ""
    if baseline is not None:
        note = f"The baseline has {format_value(baseline)}."
    table = charts.PageTable(("from trial", f"best {axis.metric} so far"), rows, note=note)
    label = f"{axis.metric} of {len(values)} trials, in the order in which they began"
    return charts.Chart(label, height, x, y, charts.without_empty(marks), table, kind="history")


def _make_history_scale(
    axis: axes.Axis, values: Collection[float], new_values: Collection[Summary], height: int
) -> axes.ChartScale:
    """Returns the vertical axis of the history: all values but outliers, and the new values.

    Args:
        values: the last value of each trial.
        new_values: the winner's values on new seeds, which are drawn with their errors.
        height: the length of the axis in pixels.
    """
    covered = axis.drop_outliers(values)
    for new_value in new_values:
        covered += new_value.error_bounds
    return axis.make_scale(covered, height)


def _mark_best_so_far(corners: Sequence[charts.Point], last_number: int) -> charts.Mark:
    """Returns the line of the best value so far, which continues to the last trial.

    Args:
        corners: the points of the trials that were better than all before them.
    """
    lines = []
    if corners:
        _, best = corners[-1]
        lines.append([*corners, (last_number, best)])
    return charts.Mark("best so far", "best", "line", lines, width=2, style=("stepped",))


def _mark_baseline(coordinate: float, x: axes.ChartScale, y: axes.ChartScale) -> list[charts.Mark]:
    """Returns a dotted line across the history at the baseline's value, if the axis has it."""
    if not y.low <= coordinate <= y.high:
        return []
    ends = [(x.low, coordinate), (x.high, coordinate)]
    return [charts.make_dotted_line(ends, color="baseline", name="baseline", width=1.5)]


def _ring_best(
    points: Mapping[int, charts.Point], marked: Marked, winner: Result | None
) -> charts.Mark:
    """Returns a ring around the winner, or around the best trial before there is a winner."""
    role = "best"
    numbers = []
    if winner is not None:
        role = "winner"
        numbers = [winner.winner.trial]
    elif marked["best"] is not None:
        numbers = [marked["best"].number]
    return charts.make_trial_dots(
        select_points(points, numbers), color=role, name=role, width=13, shape="ring"
    )


def _mark_new_value(name: str, value: Summary, x: float, axis: axes.Axis) -> list[charts.Mark]:
    """Returns the winner's mean on new seeds, with a line from one standard error below to above.

    Args:
        name: the name of the value; `test` is drawn as a square.
        x: where it is drawn.
    """
    low, high = value.error_bounds
    error_line = [(x, axis.coordinate(low)), (x, axis.coordinate(high))]
    shape = "dot"
    if name == "test":
        shape = "square"
    mean = (x, axis.coordinate(value.mean))
    return [
        charts.make_interval_lines([error_line], color="winner"),
        charts.Mark(name, "winner", shape, [[mean]]),
    ]


def _mark_new_baseline(name: str, coordinate: float, x: float, width: float) -> charts.Mark:
    """Returns a short dotted line at the baseline's mean on new seeds.

    This mean differs from the baseline's value in the search, whose line would mislead here.

    Args:
        name: the name of the value, such as `test`.
        x: the middle of the line.
    """
    ends = [(x - width / 2, coordinate), (x + width / 2, coordinate)]
    stroke = charts.make_dotted_line(ends, color="baseline", width=2.5)
    return replace(stroke, hint=f"baseline, {name}")


def _mark_outcomes(
    points: Mapping[int, charts.Point], outcomes: Mapping[int, str], within_axis: Collection[int]
) -> list[charts.Mark]:
    """Returns the dots or squares of the trials in the history, a mark for each outcome.

    Args:
        points: the coordinates of the trials, by number.
        within_axis: the trials that lie within the axis; the others are strokes at its edge.
    """
    marks = []
    for outcome, full_width in HISTORY.items():  # the width of the dots of each outcome, in pixels
        width: float = full_width
        if len(outcomes) > MANY:
            width = SMALLER * full_width
        shape = "dot"
        if full_width < SMALLEST_DOT:
            shape = "square"
        members = {number for number in points if outcomes[number] == outcome}
        dots = select_points(points, members.intersection(within_axis))
        strokes = select_points(points, members.difference(within_axis))
        name_of_strokes = outcome
        if dots:
            name_of_strokes = ""  # the legend names the outcome once
        color = color_of_outcome(outcome)
        marks.append(
            charts.make_trial_dots(dots, color=color, name=outcome, width=width, shape=shape)
        )
        marks.append(
            charts.make_trial_dots(strokes, color=color, name=name_of_strokes, width=2, shape="rug")
        )
    return marks
