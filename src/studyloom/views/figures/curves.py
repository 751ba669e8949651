"""Learning curves: of all trials by epoch, and the losses of one."""

import math
from collections.abc import Mapping, Sequence

from optuna.trial import FrozenTrial

from studyloom.storage.attributes import EPOCHS, RUNGS
from studyloom.study.failures import outcome
from studyloom.study.rows import quantities
from studyloom.text import format_value
from studyloom.views.figures.axes import Axis
from studyloom.views.figures.chart import (
    Chart,
    Mark,
    Note,
    Scale,
    Table,
    plain_scale,
    whole_scale,
)
from studyloom.views.figures.trials import learning_curve

HEIGHT, LOSSES_HEIGHT = 360, 280
LINES = ("complete", "baseline", "running", "failed", "pruned")  # colours of further quantities
# Drawn in this order, the last on top.
KINDS = ("failed", "pruned", "paused", "running", "complete")
LOSSES = {"train_loss": "training loss", "valid_loss": "validation loss"}
MOST_BEST, MOST_LATEST = 100, 200  # curves that are drawn; more are one stain
MOST_ROWS = 60  # of the table
QUANTITIES = "What the loop reported beside the value."
OVER_FITTING = (
    "Where the validation loss rises again while the training loss goes on falling, "
    "the network is over-fitting."
)

Curve = Sequence[tuple[int, float]]  # epochs, and the value after each; a loop may begin at 0


def curves(
    trials: Sequence[FrozenTrial],
    best: FrozenTrial | None,
    baseline: FrozenTrial | None,
    axis: Axis,
) -> Chart | str:
    """Draws the learning curves of the trials, as one mark for each outcome.

    Of many trials, these are the curves of the best and of the latest.

    Args:
        trials: all trials of the study, by number.
        best: the trial to draw as the best.
        baseline: the trial to draw as the baseline.
        axis: the axis of the values.

    Returns:
        The chart, or the sentence to show in its place.
    """
    every = {trial.number: learning_curve(trial) for trial in trials}
    every = {
        number: curve
        for number, curve in every.items()
        if curve and all(math.isfinite(value) for _, value in curve)
    }
    if not every:
        return "No trial has ended an epoch yet."
    marked = {"baseline": baseline, "best": best}
    special = {trial.number for trial in marked.values() if trial is not None}
    known = _drawn(every, special, axis.sign)
    heights = {n: [(e, axis.height(value)) for e, value in curve] for n, curve in known.items()}
    kinds = {trial.number: outcome(trial) for trial in trials}
    marks = []
    for kind in KINDS:
        own = [n for n in heights if kinds[n] == kind and n not in special]
        marks.append(_lines(kind, kind, own, heights, 1.3, ("faint",)))
        if kind in ("failed", "pruned", "paused"):
            ends = [[heights[number][-1]] for number in own]
            marks.append(Mark("", kind, "square", ends, own, 5))
    for name, trial in marked.items():
        own = [trial.number] if trial is not None and trial.number in heights else []
        marks.append(_lines(name, name, own, heights, 3, ()))
    y = axis.scale_of([value for curve in known.values() for _, value in curve], HEIGHT)
    epochs = [epoch for curve in known.values() for epoch, _ in curve]
    x = whole_scale(min(1, *epochs), max(epochs), "epoch")
    for rung in sorted({rung for trial in trials for rung in trial.user_attrs.get(RUNGS, ())}):
        line = [[(rung, y.low), (rung, y.high)]]
        marks.append(Mark("", "paused", "line", line, width=1, style=("dotted",)))
    label = f"{axis.metric} after each epoch, of {len(known)} of {len(every)} trials"
    shown = [mark for mark in marks if mark.parts]
    return Chart(label, HEIGHT, x, y, shown, _table(every, kinds, axis))


def _drawn(known: Mapping[int, Curve], special: set[int], sign: int) -> dict[int, Curve]:
    """Returns the curves to draw, by number: those of the best trials and of the latest."""
    if len(known) <= MOST_BEST + MOST_LATEST:
        return dict(known)
    ranked = sorted(known, key=lambda number: -sign * known[number][-1][1])
    chosen = {*ranked[:MOST_BEST], *[*known][-MOST_LATEST:], *special}
    return {number: curve for number, curve in known.items() if number in chosen}


def _lines(
    name: str,
    colour: str,
    numbers: Sequence[int],
    curves: Mapping[int, Sequence[tuple[int, float]]],
    width: float,
    style: Sequence[str],
) -> Mark:
    """Returns curves of one kind; of a single epoch each is a point, which needs some width."""
    single = all(len(curves[number]) == 1 for number in numbers)
    parts = [curves[number] for number in numbers]
    return Mark(
        name, colour, "dot" if single else "line", parts, numbers, 7 if single else width, style
    )


def _table(known: Mapping[int, Curve], kinds: Mapping[int, str], axis: Axis) -> Table:
    """Returns the first, best and last value of each curve, of the best trials first."""
    ranked = sorted(known, key=lambda number: -axis.sign * known[number][-1][1])
    rows = []
    for number in ranked[:MOST_ROWS]:
        values = [value for _, value in known[number]]
        best = max(values, key=lambda value: axis.sign * value)
        first, top, last = (format_value(value) for value in (values[0], best, values[-1]))
        rows.append((number, kinds[number], len(values), first, top, last))
    left = len(ranked) - len(rows)
    note = f"{left} further trials are left out." if left else ""
    head = ("trial", "state", "epochs", "first", "best", "last")
    return Table(head, rows, words=(1,), note=note)


def beside(trial: FrozenTrial | None, which: str) -> tuple[str, str]:
    """Returns the title and the caption of what `losses` draws.

    Args:
        trial: that is drawn.
        which: trial it is, in words.
    """
    if trial is not None and {*quantities([trial])} - {*LOSSES}:
        return "Further quantities", which + QUANTITIES
    return "Over-fitting", which + OVER_FITTING


def losses(trial: FrozenTrial) -> Chart | str:
    """Draws the training and validation loss of a trial, epoch by epoch.

    Of a loop of one's own it draws all that the loop reported beside the value.

    Returns:
        The chart, or the sentence to show in its place.
    """
    epochs = trial.user_attrs.get(EPOCHS) or {}
    numbers, names = epochs.get("number") or [], quantities([trial])
    columns = {
        name: [(n, v) for n, v in zip(numbers, epochs[name], strict=False) if _is_finite(v)]
        for name in names
    }
    told = [value for column in columns.values() for _, value in column]
    if not told or any(len(epochs[name]) != len(numbers) for name in names):
        return f"Trial {trial.number} stored no losses."
    marks, notes = [], []
    for position, name in enumerate(names):
        colour = "best" if name in LOSSES else LINES[position % len(LINES)]
        style = ("dotted",) if name == "train_loss" else ()
        shown = LOSSES.get(name, name)
        shape, width = ("line", 2.5) if len(columns[name]) > 1 else ("dot", 8)
        parts = [columns[name]] if columns[name] else []
        marks.append(Mark(shown, colour, shape, parts, width=width, style=style))
    y = plain_scale([0.0, *told], upright=True, height=LOSSES_HEIGHT)
    y = Scale(min(0.0, y.low if min(told) < 0 else 0.0), y.high, y.ticks, _title(names), y.reads)
    x = whole_scale(numbers[0], numbers[-1], "epoch")
    if {*names} == {*LOSSES} and len(columns["valid_loss"]) > 1:
        epoch, _ = min(columns["valid_loss"], key=lambda pair: pair[1])
        line = [[(epoch, y.low), (epoch, y.high)]]
        marks.append(Mark("", "pruned", "line", line, width=1, style=("dotted",)))
        side = "left" if epoch > (numbers[0] + numbers[-1]) / 2 else "right"
        notes.append(Note(epoch, y.high, f"lowest at epoch {epoch}", side))
    rows = [
        (number, *("" if not _is_finite(v) else format_value(v) for v in row))
        for number, *row in zip(numbers, *(epochs[name] for name in names), strict=True)
    ]
    table = Table(("epoch", *(LOSSES.get(name, name) for name in names)), rows)
    label = (
        f"{', '.join(LOSSES.get(name, name) for name in names)} of trial {trial.number} by epoch"
    )
    return Chart(label, LOSSES_HEIGHT, x, y, [m for m in marks if m.parts], table, notes)


def _title(names: Sequence[str]) -> str:
    return "loss" if {*names} <= {*LOSSES} else ""


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
