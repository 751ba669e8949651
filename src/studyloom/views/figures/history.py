"""The history of a search: each trial's value, and the best so far."""

import math
from collections.abc import Sequence

import optuna  # imports optuna.visualization, and with it scipy, only when it is first used
import plotly.graph_objects as go  # type: ignore[import-untyped]
from optuna.trial import FrozenTrial

from studyloom.study.stored_study import value_of
from studyloom.study.trials.failures import outcome
from studyloom.text import format_value
from studyloom.views.figures.axes import Axis, integer_ticks
from studyloom.views.figures.plot_study import complete_trials, literal
from studyloom.views.figures.style import COLOURS, add_points, apply_style


def history(
    study: optuna.Study,
    trials: Sequence[FrozenTrial],
    best: FrozenTrial | None,
    baseline: FrozenTrial | None,
    axis: Axis,
) -> go.Figure | str:
    """Draws each complete trial and the best so far; below them, trials that ended otherwise.

    Args:
        study: the complete trials, as `plot_study` copies them.
        trials: all trials of the study, by number.
        best: the trial to mark as the best.
        baseline: the trial whose value is drawn as a dotted line.
        axis: the axis of the values.
    """
    complete = complete_trials(study)
    if not complete:
        return "No trial is complete yet."
    yaxis = axis.layout([trial.value or 0.0 for trial in complete])
    bottom, top = yaxis["range"]
    rug = bottom - 0.05 * (top - bottom)
    yaxis["range"] = [rug - 0.05 * (top - bottom), top]
    figure = optuna.visualization.plot_optimization_history(study)
    _restyle(figure, axis)
    _add_rug(figure, trials, rug)
    if (start := value_of(baseline)) is not None:
        style = {"color": COLOURS["baseline"], "width": 1.5, "dash": "dot"}
        y = axis.height(start)
        figure.add_scatter(
            x=[0, max(1, len(trials) - 1)],
            y=[y, y],
            mode="lines",
            line=style,
            hoverinfo="skip",
            name="baseline",
        )
        figure.data[-1].showlegend = True
    if best is not None and (value := value_of(best)) is not None:
        text = f"trial {best.number}: {format_value(value)}"
        add_points(figure, "best", [best.number], [axis.height(value)], [text], 12)
    xaxis = integer_ticks(len(trials)) | {"title": "trial"}
    title = f"validation {literal(axis.metric)}"
    figure = apply_style(figure, 340, title, xaxis=xaxis, yaxis=yaxis)
    return figure.update_xaxes(range=[-0.03 * len(trials) - 0.3, 1.03 * len(trials) - 0.7])


def _restyle(figure: go.Figure, axis: Axis) -> None:
    """Gives the traces of Optuna's plot our colours, texts and heights."""
    points, so_far, infeasible = figure.data
    for trace, name, colour in (
        (points, "complete", "complete"),
        (infeasible, "infeasible", "failed"),
    ):
        text = [
            f"trial {number}: {format_value(value)}"
            for number, value in zip(trace.x, trace.y, strict=True)
        ]
        marker = {"color": COLOURS[colour], "size": 8}
        trace.update(
            y=[*map(axis.height, trace.y)], text=text, hoverinfo="text", name=name, marker=marker
        )
        trace.showlegend = bool(text)
    line = {"color": COLOURS["best"], "width": 2, "shape": "hv"}
    heights = [axis.height(value) if math.isfinite(value) else None for value in so_far.y]
    so_far.update(y=heights, name="best so far", line=line, hoverinfo="skip", showlegend=True)


def _add_rug(figure: go.Figure, trials: Sequence[FrozenTrial], height: float) -> None:
    """Marks at the bottom the trials that are not complete."""
    for kind in ("pruned", "failed", "paused", "running"):
        numbers = [trial.number for trial in trials if outcome(trial) == kind]
        text = [f"trial {number}: {kind}" for number in numbers]
        add_points(figure, kind, numbers, [height] * len(numbers), text, symbol="line-ns-open")
