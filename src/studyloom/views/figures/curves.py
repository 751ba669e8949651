"""Learning curves: of all trials by epoch, and the losses of one."""

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go  # type: ignore[import-untyped]
from optuna.trial import FrozenTrial

from studyloom.storage.attributes import EPOCHS, RUNGS
from studyloom.study.trials.failures import outcome
from studyloom.study.trials.rows import quantities
from studyloom.text import format_value
from studyloom.views import captions
from studyloom.views.figures.axes import Axis, integer_ticks
from studyloom.views.figures.plot_study import literal
from studyloom.views.figures.style import COLOURS, add_points, apply_style, learning_curve

LINES = [COLOURS[name] for name in ("complete", "baseline", "winner", "failed", "pruned")]
# Drawn in this order, the last on top.
KINDS = ("failed", "pruned", "paused", "running", "complete")

LOSSES = {"train_loss": "training loss", "valid_loss": "validation loss"}

Curve = Sequence[tuple[int, float]]  # epochs from 1, and the value after each


def curves(
    trials: Sequence[FrozenTrial],
    best: FrozenTrial | None,
    baseline: FrozenTrial | None,
    axis: Axis,
) -> go.Figure | str:
    """Draws the learning curves of all trials, in one trace for each outcome.

    Args:
        trials: all trials of the study, by number.
        best: the trial to draw as the best.
        baseline: the trial to draw as the baseline.
        axis: the axis of the values.
    """
    known: dict[int, Curve] = {trial.number: learning_curve(trial) for trial in trials}
    known = {
        number: curve
        for number, curve in known.items()
        if curve and all(math.isfinite(value) for _, value in curve)
    }
    if not known:
        return "No trial has ended an epoch yet."
    marked = {"baseline": baseline, "best": best}
    special = {trial.number for trial in marked.values() if trial is not None}
    groups = {
        kind: [
            trial.number
            for trial in trials
            if trial.number in known and outcome(trial) == kind and trial.number not in special
        ]
        for kind in KINDS
    }
    groups |= {
        kind: [trial.number]
        for kind, trial in marked.items()
        if trial is not None and trial.number in known
    }
    figure = go.Figure()
    for kind, numbers in groups.items():
        if numbers:
            _add_lines(figure, kind, {number: known[number] for number in numbers}, axis)
    for kind in ("pruned", "failed", "paused"):
        _add_ends(figure, kind, {number: known[number] for number in groups[kind]}, axis)
    for rung in sorted({rung for trial in trials for rung in trial.user_attrs.get(RUNGS, ())}):
        figure.add_vline(x=rung, line={"color": COLOURS["paused"], "width": 1, "dash": "dot"})
    values = [value for curve in known.values() for _, value in curve]
    longest = max(epoch for curve in known.values() for epoch, _ in curve)
    xaxis = integer_ticks(longest) | {"title": "epoch"}
    title = f"validation {literal(axis.metric)}"
    return apply_style(figure, 380, title, xaxis=xaxis, yaxis=axis.layout(values))


def _add_lines(figure: go.Figure, kind: str, members: Mapping[int, Curve], axis: Axis) -> None:
    """Adds the curves of one outcome, by trial number, as one trace."""
    x: list[int | None] = []
    y: list[float | None] = []
    text: list[str] = []
    for number, curve in members.items():
        for epoch, value in curve:
            x.append(epoch)
            y.append(axis.height(value))
            text.append(f"trial {number}, epoch {epoch}: {format_value(value)}")
        x.append(None)  # no line to the next curve
        y.append(None)
        text.append("")
    marked = kind not in KINDS
    line = {"color": COLOURS[kind], "width": 3 if marked else 1.3}
    figure.add_scatter(x=x, y=y, text=text, hoverinfo="text", mode="lines", name=kind, line=line)
    figure.data[-1].update(opacity=1 if marked else 0.6, showlegend=True)


def _add_ends(figure: go.Figure, kind: str, members: Mapping[int, Curve], axis: Axis) -> None:
    """Adds a cross at the last epoch of trials that ended early."""
    if not members:
        return
    ends = [(number, *curve[-1]) for number, curve in members.items()]
    text = [
        f"trial {number}: {kind} after epoch {epoch} at {format_value(value)}"
        for number, epoch, value in ends
    ]
    heights = [axis.height(value) for *_, value in ends]
    add_points(figure, kind, [epoch for _, epoch, _ in ends], heights, text, 6, "x-thin-open")
    figure.data[-1].showlegend = False


def beside(trial: FrozenTrial | None, which: str) -> tuple[str, str]:
    """Returns the title and the caption of what `losses` draws.

    Args:
        trial: that is drawn.
        which: trial it is, in words.
    """
    if trial is not None and {*quantities([trial])} - {*LOSSES}:
        return "Further quantities", which + captions.QUANTITIES
    return "Over-fitting", which + captions.LOSSES


def losses(trial: FrozenTrial | None) -> go.Figure | str:
    """Draws the training and validation loss of a trial, epoch by epoch.

    Of a loop of one's own it draws all that the loop reported beside the value.
    """
    if trial is None:
        return "No trial is complete yet."
    epochs = trial.user_attrs.get(EPOCHS) or {}
    numbers, names = epochs.get("number") or [], quantities([trial])
    if not numbers or not names or any(len(epochs[name]) != len(numbers) for name in names):
        return f"Trial {trial.number} stored no losses."
    figure = go.Figure()
    for position, name in enumerate(names):
        shown = LOSSES.get(name, literal(name))
        text = [
            "" if value is None else f"epoch {number}: {shown} {format_value(value)}"
            for number, value in zip(numbers, epochs[name], strict=True)
        ]
        colour = COLOURS["best"] if name in LOSSES else LINES[position % len(LINES)]
        dash = "dot" if name == "train_loss" else "solid"
        figure.add_scatter(
            x=numbers,
            y=epochs[name],
            text=text,
            hoverinfo="text",
            mode="lines+markers",
            name=shown,
            line={"color": colour, "width": 2.5, "dash": dash},
            connectgaps=True,
        )
        figure.data[-1].update(showlegend=True, marker={"size": 5})
    if {*names} == {*LOSSES}:
        _mark_lowest(figure, numbers, epochs["valid_loss"])
    xaxis = integer_ticks(numbers[-1]) | {"title": "epoch"}
    title = "loss" if {*names} <= {*LOSSES} else ""
    return apply_style(figure, 300, title, xaxis=xaxis, yaxis={"rangemode": "tozero"})


def _mark_lowest(figure: go.Figure, numbers: Sequence[int], valid: Sequence[float]) -> None:
    """Marks the epoch with the lowest validation loss."""
    lowest = min(range(len(valid)), key=valid.__getitem__)
    late = lowest > len(valid) // 2
    line = {"color": COLOURS["pruned"], "width": 1, "dash": "dot"}
    figure.add_vline(x=numbers[lowest], line=line)
    figure.add_annotation(
        x=numbers[lowest],
        y=1,
        yref="paper",
        yanchor="top",
        text=f"lowest at epoch {numbers[lowest]}",
        showarrow=False,
        xanchor="right" if late else "left",
        xshift=-6 if late else 6,
    )
