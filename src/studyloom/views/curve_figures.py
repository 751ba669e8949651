"""Figures over epochs: the learning curves of trials, and the losses of one trial."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.storage.trial_record import INTERRUPTED, TrialRecord, shown_state
from studyloom.storage.trial_tables import quantities
from studyloom.text import format_value
from studyloom.views import axes, charts
from studyloom.views.drawn_trials import Marked, color_of_outcome, select_drawn
from studyloom.views.trial_values import Curve, finite_curves, is_finite

# The outcomes in the order in which their curves are drawn: the last are on top.
CURVES = ("failed", "pruned", "paused", INTERRUPTED, "running", "complete")
CUT_SHORT = ("failed", "pruned", "paused", INTERRUPTED)  # their curves end in a square
QUANTITY_COLORS = ("complete", "baseline", "running", "failed", "pruned")  # all but losses
LOSSES = {"train_loss": "training loss", "valid_loss": "validation loss"}
CURVE_ROWS = 60  # of the table behind the curves


def draw_curves(
    trials: Sequence[FrozenTrial],
    marked: Marked,
    axis: axes.Axis,
    live_trials: Collection[int] | None = None,
) -> charts.Chart | str:
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
    x = axes.make_integer_scale(first_epoch, max(epochs), "epoch")
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
    return charts.Chart(label, height, x, y, charts.without_empty(marks), table)


def _make_curve_line(curve: Curve, axis: axes.Axis) -> charts.Part:
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


def _mark_curves_by_outcome(
    lines: Mapping[int, charts.Part], outcomes: Mapping[int, str]
) -> list[charts.Mark]:
    """Returns a mark for the curves of each outcome, and the squares at their ends."""
    marks = []
    for outcome in CURVES:
        members = {number: line for number, line in lines.items() if outcomes[number] == outcome}
        marks.append(_mark_curves(outcome, members, width=1.3, style=("faint",)))
        if outcome in CUT_SHORT:
            ends = {number: line[-1] for number, line in members.items()}
            color = color_of_outcome(outcome)
            marks.append(charts.make_trial_dots(ends, color=color, width=5, shape="square"))
    return marks


def _mark_curves(
    name: str, lines: Mapping[int, charts.Part], width: float, style: Sequence[str] = ()
) -> charts.Mark:
    """Returns one mark for the curves of some trials, or large dots if each has only one epoch.

    Among longer curves, `Chart` draws one of a single epoch as a dot as wide as their lines.
    """
    numbers = [*lines]
    parts = [*lines.values()]
    have_one_epoch = all(len(line) == 1 for line in parts)
    if have_one_epoch:
        return charts.Mark(
            name, color_of_outcome(name), "dot", parts, numbers, width=7, style=style
        )
    return charts.Mark(
        name, color_of_outcome(name), "line", parts, numbers, width=width, style=style
    )


def _mark_rungs(trials: Sequence[FrozenTrial], y: axes.ChartScale) -> list[charts.Mark]:
    """Returns an upright line at each rung: an epoch at which the pruner compared trials."""
    rungs = set[int]()
    for trial in trials:
        rungs.update(TrialRecord(trial).rungs)
    marks = []
    for rung in sorted(rungs):  # in the color of the trials that wait there
        marks.append(charts.make_dotted_line([(rung, y.low), (rung, y.high)], color="paused"))
    return marks


def _tabulate_curves(
    best_first: Mapping[int, Curve], outcomes: Mapping[int, str], axis: axes.Axis
) -> charts.PageTable:
    """Returns the table of learning curves: their length, first, best and last value."""
    rows = []
    for number, curve in itertools.islice(best_first.items(), CURVE_ROWS):
        values = [value for _, value in curve]
        first = format_value(values[0])
        best = format_value(max(values, key=lambda value: axis.sign * value))
        last = format_value(values[-1])
        rows.append((number, outcomes[number], len(values), first, best, last))
    head = ("trial", "state", "epochs", "first", "best", "last")
    note = charts.note_left_out(rows, len(best_first), "trials")
    return charts.PageTable(head, rows, text_columns=(1,), note=note)


def name_losses_section(trial: FrozenTrial | None) -> str:
    """Returns the section of the figure that `draw_losses` draws: `losses` or `quantities`."""
    if trial is not None and {*quantities([trial])} - {*LOSSES}:
        return "quantities"
    return "losses"


def draw_losses(trial: FrozenTrial) -> charts.Chart | str:
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
    x = axes.make_integer_scale(epochs[0], epochs[-1], "epoch")
    y = _make_loss_scale(values, title, height)
    marks = []
    for index, (name, line) in enumerate(lines.items()):
        color = QUANTITY_COLORS[index % len(QUANTITY_COLORS)]
        if name in LOSSES:
            color = charts.TEAL
        marks.append(_mark_quantity(name, line, color))
    notes = []
    if {*names} == {*LOSSES} and len(lines["valid_loss"]) > 1:
        lowest_epoch, _ = min(lines["valid_loss"], key=lambda point: point[1])
        ends = [(lowest_epoch, y.low), (lowest_epoch, y.high)]
        marks.append(charts.make_dotted_line(ends, color=charts.GRAY))
        side = "right"
        if lowest_epoch > (epochs[0] + epochs[-1]) / 2:  # in the right half of the chart
            side = "left"
        notes.append(charts.Note(lowest_epoch, y.high, f"lowest at epoch {lowest_epoch}", side))
    titles = [LOSSES.get(name, name) for name in names]
    label = f"{', '.join(titles)} of trial {trial.number} by epoch"
    table = charts.PageTable(("epoch", *titles), _list_quantities(epochs, columns, names))
    return charts.Chart(label, height, x, y, charts.without_empty(marks), table, notes)


def _make_quantity_line(epochs: Sequence[int], values: Sequence[Any]) -> list[charts.Point]:
    """Returns the finite values of a quantity; a loop may report it only in some epochs."""
    line: list[charts.Point] = []
    for epoch, value in zip(epochs, values, strict=False):
        if is_finite(value):
            line.append((epoch, value))
    return line


def _make_loss_scale(values: Sequence[float], title: str, height: int) -> axes.ChartScale:
    """Returns a vertical axis that begins at 0, or below it if a value is negative."""
    y = axes.make_linear_scale([0.0, *values], upright=True, height=height)
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
            if is_finite(value):
                cell = format_value(value)
            cells.append(cell)
        rows.append((epoch, *cells))
    return rows


def _mark_quantity(name: str, line: charts.Part, color: str) -> charts.Mark:
    """Returns the line of a quantity, or a dot if it was reported in one epoch."""
    style: Sequence[str] = ()
    if name == "train_loss":  # both losses have one color
        style = ["dotted"]
    title = LOSSES.get(name, name)
    if len(line) > 1:
        return charts.Mark(title, color, "line", [line], width=2.5, style=style)
    parts = []
    if line:
        parts.append(line)
    return charts.Mark(title, color, "dot", parts, width=8, style=style)
