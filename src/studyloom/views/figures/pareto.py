"""The Pareto front: value over cost, with the trials that no other beats as a staircase."""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna  # imports optuna.visualization, and with it scipy, only when it is first used
import plotly.graph_objects as go  # type: ignore[import-untyped]
from optuna.trial import FrozenTrial

from studyloom.study.stored_study import StoredStudy
from studyloom.text import format_cost, format_value
from studyloom.views.figures.axes import Axis, log_ticks
from studyloom.views.figures.plot_study import (
    complete_trials,
    literal,
    plot_study_all_goals,
    quiet_optuna,
)
from studyloom.views.figures.style import COLOURS, add_points, apply_style

SPREAD = 10.0  # costs that differ by more than this factor are drawn on a logarithmic axis


def front(
    stored: StoredStudy, marked: Mapping[str, FrozenTrial | None], axis: Axis
) -> go.Figure | str:
    """Draws each complete trial by its cost and its value, also those that break a constraint.

    Args:
        stored: a study with two objectives, the second a cost.
        marked: the trials to mark with a ring, by name: baseline, best, winner.
        axis: the axis of the values.
    """
    study = plot_study_all_goals(stored)
    trials = complete_trials(study)
    if not trials:
        return "No trial is complete yet."
    cost = stored.goals[1].name
    with quiet_optuna():
        figure = optuna.visualization.plot_pareto_front(
            study,
            targets=lambda trial: (trial.values[1], axis.height(trial.values[0])),
            target_names=[cost, stored.metric],
        )
    # A trace of Optuna's does not say which trial a point is; cost and height do.
    texts = {
        (trial.values[1], axis.height(trial.values[0])): describe_trial(trial, cost)
        for trial in trials
    }
    *infeasible, beaten, unbeaten = figure.data
    _restyle(beaten, "beaten", COLOURS["complete"], texts)
    _restyle(unbeaten, "front", COLOURS["best"], texts)
    for trace in infeasible:
        _restyle(trace, "infeasible", COLOURS["failed"], texts)
    _add_staircase(figure, sorted(zip(unbeaten.x, unbeaten.y, strict=True)))
    for name, trial in marked.items():
        if trial is not None and trial.values:
            point = [trial.values[1]], [axis.height(trial.values[0])]
            size = 20 if name == "winner" else 14  # the winner may be the best: around its ring
            text = f"{name}, {describe_trial(trial, cost)}"
            add_points(figure, name, *point, [text], size, "circle-open")
            figure.data[-1].marker.line = {"width": 2.5, "color": COLOURS[name]}
    costs = [trial.values[1] for trial in trials]
    xaxis: dict[str, Any] = {"nticks": 5}
    if 0 < SPREAD * min(costs) < max(costs):
        xaxis = {"type": "log", **log_ticks(costs)}
        xaxis["ticktext"] = [format_cost(mark) for mark in xaxis["tickvals"]]
    xaxis = {"title": f"{literal(cost)}, less is better", **xaxis}
    yaxis = axis.layout([trial.values[0] for trial in trials])
    return apply_style(figure, 420, f"validation {literal(axis.metric)}", xaxis=xaxis, yaxis=yaxis)


def _restyle(
    trace: go.Scatter, name: str, colour: str, texts: Mapping[tuple[float, float], str]
) -> None:
    """Gives a trace of Optuna's plot our name, colour and texts."""
    text = [texts[point] for point in zip(trace.x, trace.y, strict=True)]
    trace.update(
        text=text,
        hoverinfo="text",
        hovertemplate=None,
        name=name,
        marker={"color": colour, "size": 8, "colorscale": None},
        showlegend=bool(text),
    )
    opacity = 0.55 if name == "beaten" else 1
    trace.marker.update(showscale=False, line={"width": 0}, opacity=opacity)


def _add_staircase(figure: go.Figure, steps: Sequence[tuple[float, float]]) -> None:
    """Joins the points of the front, by ascending cost."""
    figure.add_scatter(
        x=[x for x, _ in steps],
        y=[y for _, y in steps],
        mode="lines",
        line={"color": COLOURS["best"], "width": 1.5, "shape": "hv"},
        hoverinfo="skip",
        name="staircase",
    )


def describe_trial(trial: FrozenTrial, cost: str) -> str:
    """Returns a trial's number, value and cost in one line, for plotly.

    Args:
        trial: a trial with two values.
        cost: the name of the second.
    """
    value, price = trial.values
    return f"trial {trial.number}: {format_value(value)}, {literal(cost)} {format_cost(price)}"
