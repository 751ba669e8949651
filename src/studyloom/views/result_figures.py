"""Figures of a result: what the winner predicts, and what it loses without each of its changes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from studyloom.text import format_value, shorten
from studyloom.views import axes, charts
from studyloom.views.words import describe_ablation
from studyloom.winner.result import Ablation, AblationRow, Predictions

EXAMPLE_ROWS = 40  # of the table behind the predictions


def draw_predictions(stored: Predictions) -> charts.Chart | str:
    """Draws predicted and true numbers: over time if they are in that order, else as pairs."""
    predicted = [numbers[0] for numbers in stored.predicted]  # the network's first output
    targets = [numbers[0] for numbers in stored.targets]
    if not predicted:
        return "winner.json holds no predictions."
    pairs = list(zip(targets, predicted, strict=True))
    rows = []
    for example, (target, prediction) in enumerate(pairs[:EXAMPLE_ROWS]):
        rows.append((example, format_value(target), format_value(prediction)))
    note = charts.note_left_out(rows, len(pairs), "examples")
    table = charts.PageTable(("example", "true value", "prediction"), rows, note=note)
    if stored.in_time_order:
        return _draw_predictions_over_time(targets, predicted, table)
    return _draw_predictions_over_targets(targets, predicted, table)


def _draw_predictions_over_time(
    targets: Sequence[float], predicted: Sequence[float], table: charts.PageTable
) -> charts.Chart:
    """Draws predicted and true numbers as two lines over the examples."""
    height = 280  # pixels
    marks = [
        charts.Mark("true value", charts.GRAY, "line", [[*enumerate(targets)]], width=2),
        charts.Mark("prediction", charts.TEAL, "line", [[*enumerate(predicted)]], width=2),
    ]
    x = axes.make_integer_scale(0, max(1, len(targets) - 1), "example")
    y = axes.make_linear_scale([*targets, *predicted], upright=True, height=height)
    label = f"predictions and true values of {len(targets)} examples in the order of time"
    return charts.Chart(label, height, x, y, marks, table)


def _draw_predictions_over_targets(
    targets: Sequence[float], predicted: Sequence[float], table: charts.PageTable
) -> charts.Chart:
    """Draws a dot for each example, and the diagonal on which predictions are right."""
    height = 360  # pixels
    numbers = [*targets, *predicted]
    diagonal = [(end, end) for end in (min(numbers), max(numbers))]
    dots = [[pair] for pair in zip(targets, predicted, strict=True)]
    marks = [
        charts.make_dotted_line(diagonal, color=charts.GRAY, name="prediction = true value"),
        charts.Mark(name="example", color=charts.TEAL, shape="dot", parts=dots, width=6),
    ]
    x = axes.make_linear_scale(numbers, "true value")
    y = axes.make_linear_scale(numbers, "prediction", upright=True, height=height)
    label = f"predictions over true values of {len(targets)} examples"
    return charts.Chart(label, height, x, y, marks, table)


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


def draw_ablation(stored: Ablation) -> charts.Chart | str:
    """Draws how much worse the winner is without each of its changes, with intervals.

    The change that is needed most is on top.
    """
    losses = _place_losses(stored)
    ends = []
    for loss in losses:
        ends += [loss.low, loss.high]
    if not losses or not all(map(math.isfinite, ends)):
        return "winner.json holds no losses."
    x = axes.make_linear_scale([0.0, *ends], "worse by")
    # Row n is at the coordinate n, so that the lowest row begins at -0.5.
    bottom = -0.5
    y = axes.ChartScale(bottom, len(losses) - 1 + ABOVE_ROWS, kind="none")
    zero_line = [(0, bottom), (0, len(losses) - 0.5)]
    needed = [loss for loss in losses if loss.change.needed]
    not_needed = [loss for loss in losses if not loss.change.needed]
    marks = [charts.make_dotted_line(zero_line, color=charts.GRAY)]
    marks += _mark_losses("needed", charts.TEAL, needed)
    marks += _mark_losses("not needed", charts.BLUE, not_needed)
    notes = []
    for loss in losses:
        label_y = loss.row + LABEL_DISTANCE
        notes.append(charts.Note(x.low, label_y, shorten(loss.change.name, 32), "above"))
    head = ("hyperparameter", "winner", "default", "worse by", "", "winner.simple.yaml")
    rows = []
    for change in describe_ablation(stored):
        texts = (change.value, change.default, change.loss, change.verdict, change.in_simple)
        rows.append((change.name, *texts))
    table = charts.PageTable(head, rows, text_columns=(0, 4, 5))
    label = "how much worse the winner is without each change"
    height = charts.ROW_HEIGHT * len(losses) + 30  # pixels
    return charts.Chart(label, height, x, y, charts.without_empty(marks), table, notes)


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


def _mark_losses(name: str, color: str, losses: Sequence[_Loss]) -> list[charts.Mark]:
    """Returns the intervals of some losses as lines, and their values as dots."""
    intervals = []
    dots = []
    for loss in losses:
        intervals.append([(loss.low, loss.row), (loss.high, loss.row)])
        dots.append([(loss.value, loss.row)])
    return [
        charts.make_interval_lines(intervals, color=color),
        charts.Mark(name, color, "dot", dots, width=9),
    ]
