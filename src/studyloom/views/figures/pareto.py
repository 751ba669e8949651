"""The plot of a Pareto front: what is gained by what it costs, with the trials that none beats as a staircase."""

from collections.abc import Mapping
from typing import Any

import optuna  # optuna.visualization is imported when it is first used; it takes scipy along, where there is one
import plotly.graph_objects as go  # type: ignore[import-untyped]
from optuna.trial import FrozenTrial

from studyloom.study.stored_study import StoredStudy
from studyloom.text import format_cost, format_value
from studyloom.views.figures.axes import Axis, log_ticks
from studyloom.views.figures.plot_study import complete, literal, plot_study_all_goals, quiet_optuna
from studyloom.views.figures.style import COLOURS, add_points, dress

SPREAD = 10.0  # a cost that differs by more than this factor is drawn by its logarithm


def front(
    stored: StoredStudy, marked: Mapping[str, FrozenTrial | None], scale: Axis
) -> go.Figure | str:
    """Each complete trial by its cost and its value, those that break a limit too.

    marked: the trials with a ring, by what they are: baseline, best, winner.
    """
    study = plot_study_all_goals(stored)
    ended = complete(study)
    if not ended:
        return "No trial is complete yet."
    cost = stored.goals[1].name
    with quiet_optuna():
        figure = optuna.visualization.plot_pareto_front(
            study,
            targets=lambda trial: (trial.values[1], scale.height(trial.values[0])),
            target_names=[cost, stored.metric],
        )
    *beyond, beaten, unbeaten = figure.data
    names = (
        (beaten, "beaten", "complete"),
        (unbeaten, "front", "front"),
        *((t, "infeasible", "failed") for t in beyond),
    )
    # Optuna puts the trials of a trace in no order of ours; a height and a cost say which of them it is.
    told = {(trial.values[1], scale.height(trial.values[0])): words(trial, cost) for trial in ended}
    for trace, name, colour in names:
        text = [told[point] for point in zip(trace.x, trace.y, strict=True)]
        marker = {
            "color": {**COLOURS, "front": COLOURS["best"]}[colour],
            "size": 8,
            "colorscale": None,
        }
        trace.update(
            text=text,
            hoverinfo="text",
            hovertemplate=None,
            name=name,
            marker=marker,
            showlegend=bool(text),
        )
        trace.marker.update(
            showscale=False, line={"width": 0}, opacity=0.55 if name == "beaten" else 1
        )
    steps = sorted(zip(unbeaten.x, unbeaten.y, strict=True))
    line = {"color": COLOURS["best"], "width": 1.5, "shape": "hv"}
    figure.add_scatter(
        x=[x for x, _ in steps],
        y=[y for _, y in steps],
        mode="lines",
        line=line,
        hoverinfo="skip",
        name="staircase",
    )
    for name, trial in marked.items():
        if trial is not None and trial.values:
            place = [trial.values[1]], [scale.height(trial.values[0])]
            size = 20 if name == "winner" else 14  # around the best, if it is that
            add_points(figure, name, *place, [f"{name}, {words(trial, cost)}"], size, "circle-open")
            figure.data[-1].marker.line = {"width": 2.5, "color": COLOURS[name]}
    costs = [trial.values[1] for trial in ended]
    axis: dict[str, Any] = {"nticks": 5}
    if 0 < SPREAD * min(costs) < max(costs):
        axis = {"type": "log", **log_ticks(costs)}
        axis["ticktext"] = [format_cost(mark) for mark in axis["tickvals"]]
    drawn = scale.drawn([trial.values[0] for trial in ended])
    xaxis = {"title": f"{literal(cost)}, less is better", **axis}
    return dress(figure, 420, f"validation {literal(scale.metric)}", xaxis=xaxis, yaxis=drawn)


def words(trial: FrozenTrial, cost: str) -> str:
    value, much = trial.values
    return f"trial {trial.number}: {format_value(value)}, {literal(cost)} {format_cost(much)}"
