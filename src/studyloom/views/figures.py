"""The figures of the reports: charts of a study's trials, and of its winner's predictions.

The function of a figure returns a chart, or several small ones (`Multiples`), or a sentence that
says why there is nothing to draw yet.
`trials` are those of a study, by number; `marked` ones are highlighted. An *outcome* is how a trial
stands, as the table of trials calls it: complete, pruned, paused, failed, interrupted or running.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from statistics import median
from typing import Any, Literal

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from studyloom.storage.stored_study import StoredStudy, value_of
from studyloom.storage.trial_record import INTERRUPTED, TrialRecord, shown_state
from studyloom.storage.trial_tables import quantities
from studyloom.text import (
    format_cost,
    format_duration,
    format_parameter,
    format_value,
    shorten,
    write_minus,
)
from studyloom.views.charts import (
    BLUE,
    GRAY,
    TEAL,
    Axis,
    Chart,
    ChartScale,
    Mark,
    Multiples,
    Note,
    PageTable,
    Part,
    Point,
    Tick,
    choose_round_numbers,
    drop_overlapping,
    fit_labels,
    make_dotted_line,
    make_integer_scale,
    make_interval_lines,
    make_linear_scale,
    make_log_scale,
    make_trial_dots,
)
from studyloom.views.drawn_trials import select_drawn
from studyloom.views.importances import compare_values
from studyloom.views.words import describe_ablation
from studyloom.winner.result import Ablation, AblationRow, Predictions, Result, Summary

ENOUGH = 3  # trials with a value that must have a hyperparameter before it is drawn
NO_PARAMETERS = f"No hyperparameter has had different values in {ENOUGH} trials with a value yet."
NOTHING_COMPLETE = "No trial is complete yet."
NO_VALUE = "No trial has a value yet."
# The width of a trial's mark in the history, by its outcome. The last are on top.
HISTORY = {"failed": 4, "pruned": 4, "paused": 5, "complete": 8, INTERRUPTED: 7, "running": 9}
SMALLEST_DOT = 8  # the width of a mark of the history from which on it is a dot, not a square
# The outcomes in the order in which their curves are drawn: the last are on top.
CURVES = ("failed", "pruned", "paused", INTERRUPTED, "running", "complete")
BARS = ("complete", "pruned", "failed", "paused", INTERRUPTED, "running")  # order of the timeline
CUT_SHORT = ("failed", "pruned", "paused", INTERRUPTED)  # their curves end in a square
COLORS = {INTERRUPTED: "running"}  # of a state that shares the color of another
MANY = 400  # trials, whose marks are smaller
SMALLER = 0.6  # the share of their width that is left
BINS = 4  # of a hyperparameter's settings, in the table behind its figure
QUANTITY_COLORS = ("complete", "baseline", "running", "failed", "pruned")  # all but losses
LOSSES = {"train_loss": "training loss", "valid_loss": "validation loss"}
STUDY_COLORS = ("complete", "failed", "best", "baseline", "running", "paused", "pruned")
MOST_STUDIES = len(STUDY_COLORS)  # more lines cannot be distinguished
CURVE_ROWS = 60  # of the table behind the curves
EXAMPLE_ROWS = 40  # of the table behind the predictions
LINE_ROWS = 12  # of each study, in the table behind a comparison: improvements, then its end
PAIR_ROWS = 20  # of the table behind two hyperparameters
SPREAD = 10.0  # costs that differ by more than this factor are drawn on a logarithmic axis
MOST_CHOICES = 5  # of a number, each has a label
SHADES = 5  # of a ramp from gray to blue
SMALL = 170  # pixels of the height of a small chart
PAIR_HEIGHT = 360  # pixels
MINUTE = 60  # seconds
DAY = 86_400  # seconds
PHONE = 124  # pixels of a small chart's axis on a phone, where two share a row
LETTERS = 24  # in the labels of all choices together, on a small chart
ROW = 44  # pixels of a row: a bar or dot with its label above it
BAR = 0.32  # the share of a row that a worker's bar takes
# Multiples of these irrational numbers, modulo 1, are spread evenly over 0 to 1, however many
# there are. Two axes take different ones; with the same, dots of two choices would lie on a
# diagonal.
GOLDEN = 0.618034
PLASTIC = 0.754878

Curve = Sequence[tuple[int, float]]  # epochs, and the value after each; a loop may begin at 0
Marked = Mapping[str, FrozenTrial | None]  # `baseline`, `best` and, of a front, `winner`


# Values and settings of trials


def complete_trials(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the complete trials whose value is a finite number."""
    return [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE and math.isfinite(_value(trial))
    ]


def last_values(trials: Sequence[FrozenTrial]) -> dict[int, float]:
    """Returns the last finite value of each trial that has one, by its number.

    For a complete trial this is its final value, and nothing if that is not finite. For another
    trial it is the last finite value of its learning curve.
    """
    values = {trial.number: _value(trial) for trial in complete_trials(trials)}
    for trial in trials:
        if trial.state != TrialState.COMPLETE:
            reported = [value for _, value in learning_curve(trial) if _is_finite(value)]
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
        if not improvements or sign * _value(trial) > sign * _value(improvements[-1]):
            improvements.append(trial)
    return improvements


def _value(trial: FrozenTrial) -> float:
    return value_of(trial) or 0.0


def _label(setting: object, length: int = 24) -> str:
    return shorten(format_parameter(setting), length)


def _is_number(setting: object) -> bool:
    return isinstance(setting, int | float) and not isinstance(setting, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _sort_key(setting: object) -> tuple[str, float, str]:
    """Returns a key that sorts numbers by size, and other settings after them by type and name."""
    if isinstance(setting, int | float):
        return "", float(setting), str(setting)
    return type(setting).__name__, 0.0, str(setting)


def _select(points: Mapping[int, Point], numbers: Collection[int]) -> dict[int, Point]:
    """Returns the points of some trials, by number."""
    return {number: point for number, point in points.items() if number in numbers}


def _remove(points: Mapping[int, Point], numbers: Collection[int]) -> dict[int, Point]:
    """Returns the points of all trials but some, by number."""
    return {number: point for number, point in points.items() if number not in numbers}


def without_empty(marks: Sequence[Mark]) -> list[Mark]:
    """Returns the marks that have something to draw."""
    return [mark for mark in marks if mark.parts]


def _color(outcome: str) -> str:
    """Returns the color of an outcome, or that of the outcome whose color it shares."""
    return COLORS.get(outcome, outcome)


def _count_left_out(rows: Sequence[object], total: int, what: str) -> str:
    """Returns a note on how many trials or examples have no row; empty if all have one."""
    count = total - len(rows)
    if count == 0:
        return ""
    return f"{count} further {what} are left out."


def summarize_settings(trials: Sequence[FrozenTrial], name: str, sign: int) -> PageTable:
    """Returns a table of a hyperparameter's settings: how many trials, and their values.

    Many different numbers are divided into four ranges with as many trials each.

    Args:
        trials: complete trials that have the hyperparameter.
        sign: 1 if more is better, -1 if less is.
    """
    rows = []
    for label, members in _group_by_setting(trials, name):
        values = sorted(map(_value, members), key=lambda value: -sign * value)
        best = values[0]
        rows.append((label, len(members), format_value(best), format_value(median(values))))
    return PageTable((name, "complete trials", "best", "median"), rows, text_columns=(0,))


def _group_by_setting(
    trials: Sequence[FrozenTrial], name: str
) -> Iterator[tuple[str, Sequence[FrozenTrial]]]:
    """Yields each setting of a hyperparameter as a label, and the trials that have it.

    Yields BINS ranges instead, with as many trials each, if there are many different numbers.
    """
    ordered = sorted(trials, key=lambda trial: _sort_key(trial.params[name]))
    settings = list(dict.fromkeys(trial.params[name] for trial in ordered))  # without repetitions
    has_many_numbers = len(settings) > 2 * BINS and all(map(_is_number, settings))
    if not has_many_numbers:
        for setting in settings:
            trials_with_setting = [trial for trial in trials if trial.params[name] == setting]
            yield _label(setting, 60), trials_with_setting
        return
    # The positions in `ordered` at which the ranges begin, and the end of the last one.
    limits = [len(ordered) * part // BINS for part in range(BINS + 1)]
    for start, end in itertools.pairwise(limits):
        members = ordered[start:end]
        lowest = _label(members[0].params[name])
        highest = _label(members[-1].params[name])
        yield f"{lowest} to {highest}", members


# The history


def draw_history(
    trials: Sequence[FrozenTrial],
    marked: Marked,
    axis: Axis,
    winner: Result | None = None,
    live_trials: Collection[int] | None = None,
    early_trials: Collection[int] = (),
) -> Chart | str:
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
    x = make_integer_scale(0, last_number, "trial")
    right_edge = x.high
    step = 0.035 * (x.high - x.low)  # between the new values, to the right of the trials
    x = replace(x, high=right_edge + step * len(new_values))

    margin = 0.05 * (y.high - y.low)
    bottom = y.low - margin
    points: dict[int, Point] = {}
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
    marks.append(_ring_best(_select(points, within_axis), marked, winner))
    for position, (name, new_value) in enumerate(new_values.items()):
        position_on_axis = right_edge + step * position
        marks += _mark_new_value(name, new_value, position_on_axis, axis)
        if name in new_baseline_values:
            # The baseline has other values there too: its line of the search would mislead.
            coordinate = axis.coordinate(new_baseline_values[name].mean)
            ends = [
                (position_on_axis - step / 2, coordinate),
                (position_on_axis + step / 2, coordinate),
            ]
            stroke = make_dotted_line(ends, color="baseline", width=2.5)
            marks.append(replace(stroke, hint=f"baseline, {name}"))

    rows = [(trial.number, format_value(_value(trial))) for trial in improvements]
    note = ""
    if baseline is not None:
        note = f"The baseline has {format_value(baseline)}."
    table = PageTable(("from trial", f"best {axis.metric} so far"), rows, note=note)
    label = f"{axis.metric} of {len(values)} trials, in the order in which they began"
    return Chart(label, height, x, y, without_empty(marks), table, kind="history")


def _make_history_scale(
    axis: Axis, values: Collection[float], new_values: Collection[Summary], height: int
) -> ChartScale:
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


def _mark_best_so_far(corners: Sequence[Point], last_number: int) -> Mark:
    """Returns the line of the best value so far, which continues to the last trial.

    Args:
        corners: the points of the trials that were better than all before them.
    """
    lines = []
    if corners:
        _, best = corners[-1]
        lines.append([*corners, (last_number, best)])
    return Mark("best so far", "best", "line", lines, width=2, style=("stepped",))


def _mark_baseline(coordinate: float, x: ChartScale, y: ChartScale) -> list[Mark]:
    """Returns a dotted line across the history at the baseline's value, if the axis has it."""
    if not y.low <= coordinate <= y.high:
        return []
    ends = [(x.low, coordinate), (x.high, coordinate)]
    return [make_dotted_line(ends, color="baseline", name="baseline", width=1.5)]


def _ring_best(points: Mapping[int, Point], marked: Marked, winner: Result | None) -> Mark:
    """Returns a ring around the winner, or around the best trial before there is a winner."""
    role = "best"
    numbers = []
    if winner is not None:
        role = "winner"
        numbers = [winner.winner.trial]
    elif marked["best"] is not None:
        numbers = [marked["best"].number]
    return make_trial_dots(_select(points, numbers), color=role, name=role, width=13, shape="ring")


def _mark_new_value(name: str, value: Summary, x: float, axis: Axis) -> list[Mark]:
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
        make_interval_lines([error_line], color="winner"),
        Mark(name, "winner", shape, [[mean]]),
    ]


def _mark_outcomes(
    points: Mapping[int, Point], outcomes: Mapping[int, str], within_axis: Collection[int]
) -> list[Mark]:
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
        dots = _select(points, members.intersection(within_axis))
        strokes = _select(points, members.difference(within_axis))
        name_of_strokes = outcome
        if dots:
            name_of_strokes = ""  # the legend names the outcome once
        color = _color(outcome)
        marks.append(make_trial_dots(dots, color=color, name=outcome, width=width, shape=shape))
        marks.append(
            make_trial_dots(strokes, color=color, name=name_of_strokes, width=2, shape="rug")
        )
    return marks


# Learning curves


def finite_curves(trials: Sequence[FrozenTrial]) -> dict[int, Curve]:
    """Returns the learning curves whose values are finite numbers, by trial."""
    curves = {}
    for trial in trials:
        curve = learning_curve(trial)
        if curve and all(_is_finite(value) for _, value in curve):
            curves[trial.number] = curve
    return curves


def draw_curves(
    trials: Sequence[FrozenTrial],
    marked: Marked,
    axis: Axis,
    live_trials: Collection[int] | None = None,
) -> Chart | str:
    """Draws the learning curves, as one mark for each outcome; of many, the best and the latest.

    Args:
        marked: trials by their role, such as `best`. Their curves are always drawn, each as a mark
            of its own.
        live_trials: the numbers of the trials that living workers hold; other unfinished ones are
            interrupted. None for a study of Optuna, whose workers are unknown.
    """
    height = 360  # pixels
    all_curves = finite_curves(trials)
    if not all_curves:
        return "No trial has ended an epoch yet."
    best_first = _sort_by_last_value(all_curves, axis.sign)
    last_curve_values = {number: curve[-1][1] for number, curve in all_curves.items()}
    marked_numbers = {trial.number for trial in marked.values() if trial is not None}
    drawn_numbers = select_drawn(last_curve_values, axis.sign) | marked_numbers
    drawn = _select_curves(all_curves, drawn_numbers)

    points = [*itertools.chain.from_iterable(drawn.values())]
    epochs = [epoch for epoch, _ in points]
    values = [value for _, value in points]
    first_epoch = min(1, *epochs)  # 1, or 0 if a loop counts from there
    x = make_integer_scale(first_epoch, max(epochs), "epoch")
    y = axis.make_scale(values, height)

    lines = {number: _make_curve_line(curve, axis) for number, curve in drawn.items()}
    outcomes = {trial.number: shown_state(trial, live_trials) for trial in trials}
    other_lines = {number: line for number, line in lines.items() if number not in marked_numbers}
    marks = _mark_curves_by_outcome(other_lines, outcomes)
    for name, trial in marked.items():
        if trial is not None and trial.number in lines:
            marks.append(_mark_curves(name, {trial.number: lines[trial.number]}, width=3))
    marks += _mark_rungs(trials, y)
    table = _tabulate_curves(best_first, outcomes, axis)
    label = f"{axis.metric} after each epoch, of {len(lines)} of {len(all_curves)} trials"
    return Chart(label, height, x, y, without_empty(marks), table)


def _make_curve_line(curve: Curve, axis: Axis) -> Part:
    """Returns the coordinates of a learning curve."""
    return [(epoch, axis.coordinate(value)) for epoch, value in curve]


def _sort_by_last_value(curves: Mapping[int, Curve], sign: int) -> dict[int, Curve]:
    """Returns learning curves by trial, those with the best last values first."""

    def last_value(number: int) -> float:
        _, value = curves[number][-1]
        return value

    best_first = sorted(curves, key=lambda number: -sign * last_value(number))
    return {number: curves[number] for number in best_first}


def _select_curves(curves: Mapping[int, Curve], numbers: Collection[int]) -> dict[int, Curve]:
    """Returns the learning curves of some trials, by number."""
    return {number: curve for number, curve in curves.items() if number in numbers}


def _mark_curves_by_outcome(lines: Mapping[int, Part], outcomes: Mapping[int, str]) -> list[Mark]:
    """Returns a mark for the curves of each outcome, and the squares at their ends."""
    marks = []
    for outcome in CURVES:
        members = {number: line for number, line in lines.items() if outcomes[number] == outcome}
        marks.append(_mark_curves(outcome, members, width=1.3, style=("faint",)))
        if outcome in CUT_SHORT:
            ends = {number: line[-1] for number, line in members.items()}
            color = _color(outcome)
            marks.append(make_trial_dots(ends, color=color, width=5, shape="square"))
    return marks


def _mark_curves(
    name: str, lines: Mapping[int, Part], width: float, style: Sequence[str] = ()
) -> Mark:
    """Returns one mark for the curves of some trials, or large dots if each has only one epoch.

    Among longer curves, `Chart` draws one of a single epoch as a dot as wide as their lines.
    """
    numbers = [*lines]
    parts = [*lines.values()]
    have_one_epoch = all(len(line) == 1 for line in parts)
    if have_one_epoch:
        return Mark(name, _color(name), "dot", parts, numbers, width=7, style=style)
    return Mark(name, _color(name), "line", parts, numbers, width=width, style=style)


def _mark_rungs(trials: Sequence[FrozenTrial], y: ChartScale) -> list[Mark]:
    """Returns an upright line at each rung: an epoch at which the pruner compared trials."""
    rungs = set[int]()
    for trial in trials:
        rungs.update(TrialRecord(trial).rungs)
    marks = []
    for rung in sorted(rungs):  # in the color of the trials that wait there
        marks.append(make_dotted_line([(rung, y.low), (rung, y.high)], color="paused"))
    return marks


def _tabulate_curves(
    best_first: Mapping[int, Curve], outcomes: Mapping[int, str], axis: Axis
) -> PageTable:
    """Returns the table of learning curves: their length, first, best and last value."""
    rows = []
    for number, curve in itertools.islice(best_first.items(), CURVE_ROWS):
        values = [value for _, value in curve]
        first = format_value(values[0])
        best = format_value(max(values, key=lambda value: axis.sign * value))
        last = format_value(values[-1])
        rows.append((number, outcomes[number], len(values), first, best, last))
    head = ("trial", "state", "epochs", "first", "best", "last")
    note = _count_left_out(rows, len(best_first), "trials")
    return PageTable(head, rows, text_columns=(1,), note=note)


# Losses, and other quantities of a trial


def name_losses_section(trial: FrozenTrial | None) -> str:
    """Returns the section of the figure that `draw_losses` draws: `losses` or `quantities`."""
    if trial is not None and {*quantities([trial])} - {*LOSSES}:
        return "quantities"
    return "losses"


def draw_losses(trial: FrozenTrial) -> Chart | str:
    """Draws the training and validation loss of a trial, epoch by epoch.

    If the trial has these two and nothing else, a dotted line marks the epoch with the lowest
    validation loss, unless only one epoch has such a loss.

    For a custom training loop it draws all that the loop reported next to the value.
    """
    height = 280  # pixels
    columns = TrialRecord(trial).curve
    epochs = columns.get("number") or []
    names = quantities([trial])
    lines = {name: _make_quantity_line(epochs, columns[name]) for name in names}
    values = []
    for line in lines.values():
        values += [value for _, value in line]
    if not values or any(len(columns[name]) != len(epochs) for name in names):
        return f"Trial {trial.number} stored no losses."
    has_only_losses = {*names} <= {*LOSSES}
    if has_only_losses:
        title = "loss"
    else:
        title = ""  # a custom loop reports other quantities too
    x = make_integer_scale(epochs[0], epochs[-1], "epoch")
    y = _make_loss_scale(values, title, height)
    marks = []
    for index, (name, line) in enumerate(lines.items()):
        color = QUANTITY_COLORS[index % len(QUANTITY_COLORS)]
        if name in LOSSES:
            color = TEAL
        marks.append(_mark_quantity(name, line, color))
    notes = []
    if {*names} == {*LOSSES} and len(lines["valid_loss"]) > 1:
        lowest_epoch, _ = min(lines["valid_loss"], key=lambda point: point[1])
        ends = [(lowest_epoch, y.low), (lowest_epoch, y.high)]
        marks.append(make_dotted_line(ends, color=GRAY))
        side = "right"
        if lowest_epoch > (epochs[0] + epochs[-1]) / 2:  # in the right half of the chart
            side = "left"
        notes.append(Note(lowest_epoch, y.high, f"lowest at epoch {lowest_epoch}", side))
    titles = [LOSSES.get(name, name) for name in names]
    label = f"{', '.join(titles)} of trial {trial.number} by epoch"
    table = PageTable(("epoch", *titles), _list_quantities(epochs, columns, names))
    return Chart(label, height, x, y, without_empty(marks), table, notes)


def _make_quantity_line(epochs: Sequence[int], values: Sequence[Any]) -> list[Point]:
    """Returns the finite values of a quantity; a loop may report it only in some epochs."""
    line: list[Point] = []
    for epoch, value in zip(epochs, values, strict=False):
        if _is_finite(value):
            line.append((epoch, value))
    return line


def _make_loss_scale(values: Sequence[float], title: str, height: int) -> ChartScale:
    """Returns a vertical axis that begins at 0, or below it if a value is negative."""
    y = make_linear_scale([0.0, *values], upright=True, height=height)
    bottom = 0.0  # without a margin
    if min(values) < 0:
        bottom = min(0.0, y.low)
    return replace(y, low=bottom, title=title)


def _list_quantities(
    epochs: Sequence[int], columns: Mapping[str, Sequence[Any]], names: Sequence[str]
) -> list[tuple[object, ...]]:
    """Returns a row for each epoch, with a cell for each quantity; empty if it has no value."""
    rows: list[tuple[object, ...]] = []
    for position, epoch in enumerate(epochs):
        cells = []
        for name in names:
            value = columns[name][position]
            cell = ""
            if _is_finite(value):
                cell = format_value(value)
            cells.append(cell)
        rows.append((epoch, *cells))
    return rows


def _mark_quantity(name: str, line: Part, color: str) -> Mark:
    """Returns the line of a quantity, or a dot if it was reported in one epoch."""
    style: Sequence[str] = ()
    if name == "train_loss":  # both losses have one color
        style = ["dotted"]
    title = LOSSES.get(name, name)
    if len(line) > 1:
        return Mark(title, color, "line", [line], width=2.5, style=style)
    parts = []
    if line:
        parts.append(line)
    return Mark(title, color, "dot", parts, width=8, style=style)


# The Pareto front


def draw_front(stored: StoredStudy, marked: Marked, axis: Axis, table: PageTable) -> Chart | str:
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
    points: dict[int, Point] = {}
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
            point = _select(points, [marked_trial.number])
            ring = make_trial_dots(point, color=name, name=name, width=ring_width, shape="ring")
            marks.append(ring)
    label = f"{axis.metric} over {cost.name}, of {len(trials)} complete trials"
    return Chart(label, height, x, y, without_empty(marks), table)


def _mark_front(
    points: Mapping[int, Point], feasible: Collection[int], on_front: Collection[int]
) -> list[Mark]:
    """Returns the dots of trials by cost and value, and a stepped line through the Pareto front.

    Args:
        points: the coordinates of all trials, by number.
        feasible: the trials that satisfy all constraints.
        on_front: the feasible trials that no other one beats in all values.
    """
    front = _select(points, on_front)
    beaten = _remove(_select(points, feasible), on_front)
    infeasible = _remove(points, feasible)
    width = 8.0
    if len(points) > MANY:
        width = SMALLER * width
    corners = sorted(front.values())
    return [
        Mark("", "best", "line", [corners], width=1.5, style=("stepped", "quiet")),
        make_trial_dots(infeasible, color="failed", name="infeasible", shape="square"),
        make_trial_dots(beaten, color="complete", name="beaten", width=width),
        make_trial_dots(front, color="best", name="front: not beaten in both"),
    ]


def _make_cost_scale(costs: Sequence[float], title: str) -> ChartScale:
    """Returns the horizontal axis of a cost; logarithmic if they differ by more than SPREAD."""
    is_logarithmic = 0 < SPREAD * min(costs) < max(costs)
    if is_logarithmic:
        x = make_log_scale(costs, title)
    else:
        x = make_linear_scale(costs, title)
    ticks = []
    for tick in x.ticks:
        amount = tick.coordinate
        if is_logarithmic:
            amount = 10**tick.coordinate
        ticks.append(Tick(tick.coordinate, format_cost(amount)))
    return replace(x, ticks=fit_labels(ticks, x.low, x.high))


# Trials over their hyperparameters


@dataclass(frozen=True)
class SettingAxis:
    """The axis of a hyperparameter, and the coordinate of each trial on it."""

    scale: ChartScale
    coordinates: Sequence[float]


def make_setting_axis(
    trials: Sequence[FrozenTrial], name: str, pixels: float | None = None
) -> SettingAxis:
    """Returns the horizontal axis of a hyperparameter, which has choices at 0, 1 and so on.

    Args:
        trials: at least one; all have the hyperparameter.
        pixels: the length of the axis, if it is the same on a phone and on a wide screen.
    """
    settings = [trial.params[name] for trial in trials]
    distribution = trials[0].distributions[name]
    if isinstance(distribution, CategoricalDistribution) or not all(map(_is_number, settings)):
        return _make_choice_axis(settings, name, pixels)
    is_logarithmic = False
    has_step = False
    if isinstance(distribution, IntDistribution | FloatDistribution):
        is_logarithmic = distribution.log and min(settings) > 0
        has_step = distribution.step is not None
    is_whole = all(isinstance(setting, int) for setting in settings)
    to_coordinate: Callable[[float], float]
    if is_logarithmic:
        to_coordinate = math.log10
        scale = make_log_scale(settings, name, pixels)
    else:
        to_coordinate = float
        scale = make_linear_scale(settings, name)

    # The labels. Without numbers to label, those of the scale stay.
    distinct = _distinct_settings(settings)
    numbers: Sequence[float] = []
    if (is_whole or has_step) and len(distinct) <= MOST_CHOICES:
        numbers = distinct
    elif not is_logarithmic:
        numbers = _choose_numbers(settings, pixels, is_whole=is_whole)
    if numbers:
        format_spec = ".4g"  # short enough for a small chart: a million is 1e+06
        if is_whole and pixels is None:
            format_spec = ".0f"  # a large chart has space for all digits of an integer
        ticks = [
            Tick(to_coordinate(number), write_minus(format(number, format_spec)))
            for number in numbers
        ]
        scale = replace(scale, ticks=fit_labels(ticks, scale.low, scale.high, pixels))
    if is_whole and not is_logarithmic:
        scale = replace(scale, kind="whole")
    return SettingAxis(scale, [to_coordinate(setting) for setting in settings])


def _distinct_settings(settings: Sequence[float]) -> list[float]:
    """Returns each setting once, in ascending order."""
    return list(dict.fromkeys(sorted(settings, key=_sort_key)))


def _choose_numbers(
    settings: Sequence[float], pixels: float | None, *, is_whole: bool
) -> list[float]:
    """Returns the round numbers that the axis of a hyperparameter labels; few on a small chart.

    The list is empty for a large chart of floats, whose axis keeps its usual labels.

    Args:
        pixels: the length of a small chart's axis; None for a large chart.
        is_whole: whether all settings are integers, and so must be the labels.
    """
    count = 5
    if pixels is not None:
        count = 3
    numbers = choose_round_numbers(min(settings), max(settings), count)
    if is_whole:
        return [number for number in numbers if number % 1 == 0]
    if pixels is None:
        return []
    return numbers


def _make_choice_axis(settings: Sequence[object], name: str, pixels: float | None) -> SettingAxis:
    """Returns an axis with choices at 0, 1 and so on; the more, the shorter their labels.

    Args:
        settings: the choice of each trial.
        pixels: the length of the axis, if it is a small chart's.
    """
    choices = list(dict.fromkeys(sorted(settings, key=_sort_key)))  # without repetitions
    letters = 4 * LETTERS  # as many fit on the axis of a large chart
    if pixels is not None:
        letters = LETTERS
    letters_per_choice = letters // len(choices)
    longest_label = max(3, letters_per_choice - 1)  # one letter is the gap between two labels
    ticks = []
    for position, choice in enumerate(choices):
        ticks.append(Tick(position, _label(choice, longest_label)))
    low = -0.5
    high = len(choices) - 0.5
    scale = ChartScale(
        low,
        high,
        fit_labels(ticks, low, high, pixels),
        title=name,
        kind="choices",
        choices=[_label(choice) for choice in choices],
    )
    positions = {choice: float(position) for position, choice in enumerate(choices)}
    return SettingAxis(scale, [positions[setting] for setting in settings])


def spread_choices(
    axis: SettingAxis, trials: Sequence[FrozenTrial], step: float, width: float
) -> Sequence[float]:
    """Returns the coordinates of trials; on an axis of choices, those of one choice side by side.

    Their dots would otherwise hide each other. On an axis of numbers, trials keep their
    coordinates.

    Args:
        step: GOLDEN, or PLASTIC for a second axis: irrational numbers, whose multiples modulo 1 are
            spread evenly over 0 to 1. Trial n is drawn at the share n × `step`, modulo 1, of the
            space of its choice.
        width: the width of the space that a choice has; choices are at 0, 1 and so on.
    """
    if axis.scale.kind != "choices":
        return axis.coordinates
    spread = []
    for coordinate, trial in zip(axis.coordinates, trials, strict=True):
        share = step * trial.number % 1
        spread.append(coordinate + width * (share - 0.5))
    return spread


@dataclass(frozen=True)
class _SliceValues:
    """The values of trials, on the vertical axis that all slices share.

    Args:
        coordinates: where each trial is on the axis, by number.
        early: the trials that ended early, by outcome.
        within_axis: the trials that lie within the axis; the others are strokes at its end.
    """

    y: ChartScale
    coordinates: Mapping[int, float]
    early: Mapping[str, Collection[int]]
    within_axis: Collection[int]


def draw_slices(
    trials: Sequence[FrozenTrial], names: Sequence[str], best: FrozenTrial | None, axis: Axis
) -> Multiples | str:
    """Draws the value of each trial over each hyperparameter; the last value if it ended early.

    Of many trials the best and the latest are drawn. The axes and the tables are those of all.

    The axis covers the range of the complete trials, and those that ended early with a value near
    it: at most the length of this range above or below it. Trials further away are strokes at the
    end of the axis.
    """
    if not names:
        return NO_PARAMETERS
    shared = _place_slice_values(trials, axis)
    drawn_numbers = select_drawn(last_values(trials), axis.sign)
    if best is not None:
        drawn_numbers.add(best.number)
    charts = {}
    for name in names:
        members = []
        for trial in trials:
            if trial.number in shared.coordinates and name in trial.params:
                members.append(trial)
        last_number = trials[-1].number
        if members:  # else none of the trials that are drawn has it
            chart = _draw_slice(members, drawn_numbers, name, shared, best, axis, last_number)
            charts[name] = chart
    return Multiples(charts)


def _place_slice_values(trials: Sequence[FrozenTrial], axis: Axis) -> _SliceValues:
    """Returns the vertical axis of all slices, and where each trial with a value is on it.

    The axis covers the range of the complete trials, and those that ended early with a value near
    it: at most the length of this range above or below it. The others are put at an end of the
    axis. Before any trial is complete it covers all.
    """
    early = ended_early(trials)  # the last values of trials that were pruned or are paused
    values = {trial.number: _value(trial) for trial in complete_trials(trials)}
    bottom = 0.0
    reach = 0.0  # a value is near if it lies at most so far above or below
    if values:
        bottom = axis.coordinate(min(values.values()))
        reach = axis.coordinate(max(values.values())) - bottom
    top = bottom + reach
    if reach == 0:  # no complete trials differ in their value: every trial is within the axis
        reach = math.inf
    for last_values_of_outcome in early.values():
        values |= last_values_of_outcome
    within_axis = set()
    for number, value in values.items():
        if bottom - reach <= axis.coordinate(value) <= top + reach:
            within_axis.add(number)
    y = axis.make_scale([values[number] for number in within_axis], SMALL)
    coordinates = {number: y.clip(axis.coordinate(value)) for number, value in values.items()}
    return _SliceValues(y, coordinates, early, within_axis)


def _draw_slice(
    trials: Sequence[FrozenTrial],
    drawn_numbers: Collection[int],
    name: str,
    shared: _SliceValues,
    best: FrozenTrial | None,
    axis: Axis,
    last_number: int,
) -> Chart:
    """Draws trials over one hyperparameter: the later a trial began, the bluer its dot.

    Args:
        trials: those that have the hyperparameter and a value.
        drawn_numbers: the numbers of the trials that are drawn, if they are among `trials`.
        best: the trial that gets a ring.
        last_number: the number of the study's last trial.
    """
    setting_axis = make_setting_axis(trials, name, PHONE)
    # Trials of one choice are drawn side by side; multiples of GOLDEN spread them evenly.
    x_coordinates = spread_choices(setting_axis, trials, step=GOLDEN, width=0.5)
    points: dict[int, Point] = {}
    for trial, coordinate in zip(trials, x_coordinates, strict=True):
        if trial.number in drawn_numbers:
            points[trial.number] = (coordinate, shared.coordinates[trial.number])
    ended_early_numbers = set[int]().union(*shared.early.values())
    complete_points = _remove(points, ended_early_numbers)
    trial_count = last_number + 1
    shades = {number: _choose_shade(number, trial_count) for number in complete_points}
    marks = _mark_ended_early(points, shared.early, shared.within_axis)
    marks += _mark_shades(complete_points, shades, width=7)
    if best is not None and best.number in points:
        ring = _select(points, [best.number])
        marks.append(make_trial_dots(ring, color="best", width=12, shape="ring"))
    label = f"{axis.metric} over {name}, of {len(complete_points)} complete trials"
    early_count = len(points) - len(complete_points)
    if early_count:
        label += f" and {early_count} that ended early"
    table = summarize_settings(complete_trials(trials), name, axis.sign)
    return Chart(label, SMALL, setting_axis.scale, shared.y, marks, table)


def _mark_ended_early(
    points: Mapping[int, Point], early: Mapping[str, Collection[int]], within_axis: Collection[int]
) -> list[Mark]:
    """Returns a square for each trial that ended early, or a stroke if it lies beyond the axis.

    Args:
        points: the coordinates of all trials, by number.
        early: the trials that ended early, by outcome.
        within_axis: the trials that lie within the axis.
    """
    marks = []
    for outcome, numbers in early.items():
        members = _select(points, numbers)
        squares = _select(members, within_axis)
        strokes = _remove(members, within_axis)
        marks.append(make_trial_dots(squares, color=outcome, width=5, shape="square"))
        marks.append(make_trial_dots(strokes, color=outcome, width=2, shape="rug"))
    return without_empty(marks)


def _choose_shade(position: int, count: int) -> int:
    """Returns the shade of the item at a position of `count`: from 0, gray, to the bluest."""
    return SHADES * position // count


def _mark_shades(
    points: Mapping[int, Point],
    shades: Mapping[int, int],
    width: float,
    shape: Literal["dot", "square"] = "dot",
) -> list[Mark]:
    """Returns the dots or squares of trials, a mark for each shade from gray to blue.

    Args:
        points: the coordinates of the trials, by number.
        shades: the shade of each trial, below SHADES.
    """
    marks = []
    for shade in range(SHADES):
        members = {number for number in points if shades[number] == shade}
        selected = _select(points, members)
        marks.append(make_trial_dots(selected, color=f"ramp-{shade}", width=width, shape=shape))
    return without_empty(marks)


@dataclass(frozen=True)
class _Pair:
    """Two hyperparameters, and the trials with a value that have both."""

    first: str
    second: str
    trials: list[FrozenTrial]

    @property
    def choice_count(self) -> int:
        """How many of the two are choices, and not numbers."""
        settings = self.trials[0].params
        return sum(isinstance(settings[name], str | bool) for name in (self.first, self.second))

    @property
    def is_varied(self) -> bool:
        """Returns whether enough trials have both, with different values of each."""
        if len(self.trials) < ENOUGH:
            return False
        for name in (self.first, self.second):
            if len({str(trial.params[name]) for trial in self.trials}) == 1:
                return False
        return True


def _choose_pair(trials: Sequence[FrozenTrial], names: Sequence[str]) -> _Pair | None:
    """Chooses two hyperparameters that vary together; None if there are none.

    Prefers two numbers to a number and a choice, and a number and a choice to two choices.

    Args:
        trials: those with a value.
        names: the most important hyperparameter first.
    """
    best: _Pair | None = None
    for first, second in itertools.combinations(names, 2):
        members = [trial for trial in trials if first in trial.params and second in trial.params]
        pair = _Pair(first, second, members)
        if not pair.is_varied:
            continue
        if pair.choice_count == 0:  # no later pair is preferred to two numbers
            return pair
        if best is None or pair.choice_count < best.choice_count:
            best = pair
    return best


def _format_setting(trial: FrozenTrial, name: str) -> str:
    if name not in trial.params:
        return "–"
    return format_parameter(trial.params[name])


def draw_pair(trials: Sequence[FrozenTrial], names: Sequence[str], axis: Axis) -> Chart | str:
    """Draws trials over the two most important hyperparameters that occur together.

    The better a trial, the bluer its dot; it is a square if the trial ended early. Trials are
    compared by their values at one epoch, as for the importances.

    Args:
        names: the hyperparameters, the most important one first.
    """
    values = compare_values(trials).values
    pair = _choose_pair([trial for trial in trials if trial.number in values], names)
    if pair is None:
        return "No two hyperparameters have been varied together in enough trials yet."
    members = pair.trials
    x = make_setting_axis(members, pair.first)
    y = make_setting_axis(members, pair.second)
    # Trials with the same two choices are drawn side by side; multiples of GOLDEN and of PLASTIC
    # spread them evenly in both directions.
    x_coordinates = spread_choices(x, members, step=GOLDEN, width=0.4)
    y_coordinates = spread_choices(y, members, step=PLASTIC, width=0.4)
    points: dict[int, Point] = {}
    for trial, from_left, from_bottom in zip(members, x_coordinates, y_coordinates, strict=True):
        points[trial.number] = (from_left, from_bottom)
    worst_first = sorted(members, key=lambda trial: axis.sign * values[trial.number])
    shades = {}
    for rank, trial in enumerate(worst_first):
        shades[trial.number] = _choose_shade(rank, len(worst_first))
    complete = {trial.number for trial in members if trial.state == TrialState.COMPLETE}
    marks = _mark_shades(_remove(points, complete), shades, width=7, shape="square")
    marks += _mark_shades(_select(points, complete), shades, width=10)
    table = _tabulate_pair(pair, worst_first[::-1], values, axis.metric)
    label = f"{len(members)} trials over {pair.first} and {pair.second}, the better the bluer"
    return Chart(label, PAIR_HEIGHT, x.scale, _turn_upright(y.scale, PAIR_HEIGHT), marks, table)


def _turn_upright(scale: ChartScale, height: int) -> ChartScale:
    """Returns a horizontal axis as a vertical one, whose labels are the same on all screens.

    Args:
        height: its length in pixels.
    """
    ticks = [tick for tick in scale.ticks if tick.when != "narrow"]
    fitting = drop_overlapping(ticks, scale.low, scale.high, height, upright=True)
    return replace(scale, ticks=fitting)


def _tabulate_pair(
    pair: _Pair, best_first: Sequence[FrozenTrial], values: Mapping[int, float], metric: str
) -> PageTable:
    """Returns the table of the best trials with their settings of two hyperparameters.

    Args:
        values: the values by which they are compared, by number.
    """
    rows = []
    for trial in best_first[:PAIR_ROWS]:
        first = _format_setting(trial, pair.first)
        second = _format_setting(trial, pair.second)
        rows.append((trial.number, first, second, format_value(values[trial.number])))
    note = f"The best {len(rows)} of {len(best_first)}."
    head = ("trial", pair.first, pair.second, metric)
    return PageTable(head, rows, text_columns=(1, 2), note=note)


# Several studies


def draw_best_lines(
    lines: Mapping[str, Part], metric: str, sign: int, *, over_time: bool
) -> Chart | str:
    """Draws the best value so far of several studies, over their trials or seconds of workers.

    Args:
        lines: when each study improved and when it ended, by label.
        sign: 1 if more is better, -1 if less is.
    """
    height = 340  # pixels
    values = []
    positions = []
    for line in lines.values():
        for position, value in line:
            positions.append(position)
            values.append(value)
    if not values:
        return NOTHING_COMPLETE
    axis = Axis.choose(metric, sign, values)
    marks = []
    for index, (label, line) in enumerate(lines.items()):
        corners = [(position, axis.coordinate(value)) for position, value in _make_staircase(line)]
        lines_above = len(lines) - 1 - index
        width = 2 + 1.5 * lines_above  # both are seen where lines meet
        if corners:
            marks.append(Mark(label, STUDY_COLORS[index], "line", [corners], width=width))
    y = axis.make_scale(values, height)
    if over_time:
        title = "seconds of workers"
        x = make_linear_scale([0.0, max(positions)], title)
    else:
        title = "trials"
        x = make_integer_scale(1, int(max(positions)), title)
    rows = []
    for label, line in lines.items():
        for position, value in line[-LINE_ROWS:]:
            rows.append((label, f"{position:.0f}", format_value(value)))
    table = PageTable(("study", title, f"best {axis.metric} so far"), rows, text_columns=(0,))
    label = f"the best {axis.metric} so far of {len(lines)} studies, by {title}"
    return Chart(label, height, x, y, marks, table)


def _make_staircase(line: Part) -> list[Point]:
    """Returns the corners of a line on which each value holds until the next one."""
    corners: list[Point] = []
    for position, value in line:
        if corners:
            _, previous_value = corners[-1]
            if value != previous_value:
                corners.append((position, previous_value))
        corners.append((position, value))
    return corners


# The timeline


@dataclass(frozen=True)
class Span:
    """A period of time, such as the one in which a trial was trained."""

    start: datetime
    end: datetime

    @property
    def seconds(self) -> float:
        """The length of the period."""
        return (self.end - self.start).total_seconds()


def draw_timeline(
    trials: Sequence[FrozenTrial], live_trials: Collection[int | None]
) -> Chart | str:
    """Draws a row for each worker, with a bar for each trial that began there.

    Args:
        live_trials: the numbers of the trials that living workers hold. Their bars end now; those
            of other unfinished trials end at the latest time stored with any trial.
    """
    spans_by_worker = _measure_spans(trials, live_trials)
    if not spans_by_worker:
        return "No trial has begun yet."
    workers = sorted(spans_by_worker, reverse=True)  # rows are drawn from the bottom up
    all_spans: list[Span] = []
    for spans_by_trial in spans_by_worker.values():
        all_spans += spans_by_trial.values()
    start = min(span.start for span in all_spans)
    end = max(span.end for span in all_spans)

    bars: dict[int, Part] = {}  # the lower corners of each trial's bar, by number
    notes = []
    rows: list[tuple[object, ...]] = []
    for row, worker in enumerate(workers):
        spans = [*spans_by_worker[worker].values()]
        for number, span in spans_by_worker[worker].items():
            left = Span(start, span.start).seconds
            right = Span(start, span.end).seconds
            bars[number] = [(left, row), (right, row)]
        idle = f"{100 * idle_share(spans):.1f}%"
        notes.append(Note(0, row + BAR + 0.02, f"{shorten(worker, 32)} · {idle} idle", "above"))
        trained = format_duration(sum(span.seconds for span in spans))
        rows.append((worker, len(spans), trained, idle))
    rows.reverse()  # the table has the top row first
    outcomes = {trial.number: shown_state(trial, live_trials) for trial in trials}
    marks = _mark_bars(bars, outcomes)
    x = _make_clock_scale(start, max(Span(start, end).seconds, 1.0))
    y = ChartScale(-0.12, len(workers) - 0.12, kind="none")  # a little space below the first row
    label = f"when each of {len(workers)} workers trained which trial"
    table = PageTable(("worker", "trials", "trained for", "idle"), rows, text_columns=(0,))
    return Chart(label, ROW * len(workers) + 8, x, y, without_empty(marks), table, notes)


def _mark_bars(bars: Mapping[int, Part], outcomes: Mapping[int, str]) -> list[Mark]:
    """Returns the bars of the timeline, a mark for each outcome of trials.

    Args:
        bars: the lower corners of each trial's bar, by number.
    """
    marks = []
    for outcome in BARS:
        numbers = [number for number in bars if outcomes[number] == outcome]
        parts = [bars[number] for number in numbers]
        marks.append(Mark(outcome, _color(outcome), "bar", parts, numbers, width=BAR))
    return marks


def _make_clock_scale(start: datetime, length: float) -> ChartScale:
    """Returns a horizontal axis of seconds since a moment, with labels of the clock."""
    if length < 10 * MINUTE:
        pattern = "%H:%M:%S"
    elif length < DAY:
        pattern = "%H:%M"
    else:
        pattern = "%d %b %H:%M"
    ticks = []
    for part in range(6):
        seconds = length * part / 5
        moment = start + timedelta(seconds=seconds)
        ticks.append(Tick(seconds, moment.strftime(pattern)))
    return ChartScale(0.0, length, fit_labels(ticks, 0.0, length), kind="none")


def _measure_spans(
    trials: Sequence[FrozenTrial], live_trials: Collection[int | None]
) -> dict[str, dict[int, Span]]:
    """Returns the time that each trial was trained, by the worker that began it and by number.

    The time of other workers that have resumed the trial counts for the one that began it.

    Args:
        live_trials: the numbers of the trials that are trained now.
    """
    latest = _find_latest_moment(trials)
    spans: dict[str, dict[int, Span]] = {}
    for trial in trials:
        start = trial.datetime_start
        if start is None:
            continue
        end = trial.datetime_complete
        if end is None and trial.number in live_trials:
            end = max(datetime.now(), start)
        elif end is None:
            end = latest
        record = TrialRecord(trial)
        if record.rungs:
            # The trial may have paused at a rung, an epoch at which the pruner compares trials. Its
            # bar shows only the time that workers spent on it, with their start-up and waits.
            worked = timedelta(seconds=sum(record.times.values()))
            if worked:
                end = min(end, start + worked)
        worker = str(record.worker or "unknown worker")
        spans.setdefault(worker, {})[trial.number] = Span(start, end)
    return spans


def _find_latest_moment(trials: Sequence[FrozenTrial]) -> datetime:
    """Returns the latest time at which a trial began or ended."""
    latest = datetime.min
    for trial in trials:
        start = trial.datetime_start
        if start is not None:
            latest = max(latest, start, trial.datetime_complete or start)
    return latest


def idle_share(spans: Sequence[Span]) -> float:
    """Computes the share of time without a trial between the first start and the last end.

    Spans may overlap: each adds only its time after the end of all spans before it.
    """
    start = min(span.start for span in spans)
    end = start  # the latest end of the spans so far
    busy = 0.0
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        not_counted = Span(max(span.start, end), span.end)
        busy += max(0.0, not_counted.seconds)
        end = max(end, span.end)
    total = Span(start, end).seconds
    if total == 0:
        return 0.0
    return 1 - busy / total


# The winner's predictions and ablation


def draw_predictions(stored: Predictions) -> Chart | str:
    """Draws predicted and true numbers: over time if they are in that order, else as pairs."""
    predicted = [numbers[0] for numbers in stored.predicted]  # the network's first output
    targets = [numbers[0] for numbers in stored.targets]
    if not predicted:
        return "winner.json holds no predictions."
    pairs = list(zip(targets, predicted, strict=True))
    rows = []
    for example, (target, prediction) in enumerate(pairs[:EXAMPLE_ROWS]):
        rows.append((example, format_value(target), format_value(prediction)))
    note = _count_left_out(rows, len(pairs), "examples")
    table = PageTable(("example", "true value", "prediction"), rows, note=note)
    if stored.in_time_order:
        return _draw_predictions_over_time(targets, predicted, table)
    return _draw_predictions_over_targets(targets, predicted, table)


def _draw_predictions_over_time(
    targets: Sequence[float], predicted: Sequence[float], table: PageTable
) -> Chart:
    """Draws predicted and true numbers as two lines over the examples."""
    height = 280  # pixels
    marks = [
        Mark("true value", GRAY, "line", [[*enumerate(targets)]], width=2),
        Mark("prediction", TEAL, "line", [[*enumerate(predicted)]], width=2),
    ]
    x = make_integer_scale(0, max(1, len(targets) - 1), "example")
    y = make_linear_scale([*targets, *predicted], upright=True, height=height)
    label = f"predictions and true values of {len(targets)} examples in the order of time"
    return Chart(label, height, x, y, marks, table)


def _draw_predictions_over_targets(
    targets: Sequence[float], predicted: Sequence[float], table: PageTable
) -> Chart:
    """Draws a dot for each example, and the diagonal on which predictions are right."""
    height = 360  # pixels
    numbers = [*targets, *predicted]
    diagonal = [(end, end) for end in (min(numbers), max(numbers))]
    dots = [[pair] for pair in zip(targets, predicted, strict=True)]
    marks = [
        make_dotted_line(diagonal, color=GRAY, name="prediction = true value"),
        Mark(name="example", color=TEAL, shape="dot", parts=dots, width=6),
    ]
    x = make_linear_scale(numbers, "true value")
    y = make_linear_scale(numbers, "prediction", upright=True, height=height)
    label = f"predictions over true values of {len(targets)} examples"
    return Chart(label, height, x, y, marks, table)


MOST_ABLATED = 40  # rows of the figure; its table has all
LABEL_DISTANCE = 0.2  # from a change's dot up to its name, as a share of a row
ABOVE_ROWS = 0.7  # free space above the top row, where its name is, as a share of a row


@dataclass(frozen=True)
class _Loss:
    """How much worse the winner is without one change, with its interval and row in the figure."""

    change: AblationRow
    row: int
    value: float
    low: float
    high: float


def draw_ablation(stored: Ablation) -> Chart | str:
    """Draws how much worse the winner is without each of its changes, with intervals.

    The change that is needed most is on top.
    """
    losses = _place_losses(stored)
    ends = []
    for loss in losses:
        ends += [loss.low, loss.high]
    if not losses or not all(map(math.isfinite, ends)):
        return "winner.json holds no losses."
    x = make_linear_scale([0.0, *ends], "worse by")
    # Row n is at the coordinate n, so that the lowest row begins at -0.5.
    bottom = -0.5
    y = ChartScale(bottom, len(losses) - 1 + ABOVE_ROWS, kind="none")
    zero_line = [(0, bottom), (0, len(losses) - 0.5)]
    needed = [loss for loss in losses if loss.change.needed]
    not_needed = [loss for loss in losses if not loss.change.needed]
    marks = [make_dotted_line(zero_line, color=GRAY)]
    marks += _mark_losses("needed", TEAL, needed)
    marks += _mark_losses("not needed", BLUE, not_needed)
    notes = []
    for loss in losses:
        label_y = loss.row + LABEL_DISTANCE
        notes.append(Note(x.low, label_y, shorten(loss.change.name, 32), "above"))
    head = ("hyperparameter", "winner", "default", "worse by", "", "winner.simple.yaml")
    rows = []
    for change in describe_ablation(stored):
        texts = (change.value, change.default, change.loss, change.verdict, change.in_simple)
        rows.append((change.name, *texts))
    table = PageTable(head, rows, text_columns=(0, 4, 5))
    label = "how much worse the winner is without each change"
    height = ROW * len(losses) + 30  # pixels
    return Chart(label, height, x, y, without_empty(marks), table, notes)


def _place_losses(stored: Ablation) -> list[_Loss]:
    """Returns the known losses of an ablation with their intervals, from the bottom row up."""
    error = stored.half_interval or 0.0
    changes = [change for change in stored.rows if change.worse_by is not None][:MOST_ABLATED]
    losses = []
    for row, change in enumerate(reversed(changes)):
        value = change.worse_by
        assert value is not None
        losses.append(_Loss(change, row, value, value - error, value + error))
    return losses


def _mark_losses(name: str, color: str, losses: Sequence[_Loss]) -> list[Mark]:
    """Returns the intervals of some losses as lines, and their values as dots."""
    intervals = []
    dots = []
    for loss in losses:
        intervals.append([(loss.low, loss.row), (loss.high, loss.row)])
        dots.append([(loss.value, loss.row)])
    return [
        make_interval_lines(intervals, color=color),
        Mark(name, color, "dot", dots, width=9),
    ]
