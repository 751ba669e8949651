"""Figures of parameters: how much each matters, each against the value, and several together."""

import html
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna  # imports optuna.visualization, and with it scipy, only when it is first used
import plotly.graph_objects as go  # type: ignore[import-untyped]
from optuna.trial import FrozenTrial
from plotly.colors import sample_colorscale  # type: ignore[import-untyped]

from studyloom.study.stored_study import value_of
from studyloom.text import shorten
from studyloom.views.figures.axes import Axis, log_ticks
from studyloom.views.figures.plot_study import complete_trials, literal
from studyloom.views.figures.style import (
    BAR,
    COLOURS,
    ENOUGH,
    NO_PARAMETERS,
    RAMP,
    ROW,
    TINT,
    add_points,
    apply_style,
    label_rows,
)

MOST_AXES = 8  # parallel ones; more cannot be told apart


def importance_bars(shares: Mapping[str, float]) -> go.Figure | str:
    """Draws a bar for each parameter, under its name.

    Args:
        shares: the importance of each parameter by its literal name, the largest first.
    """
    if not shares:
        return NO_PARAMETERS
    names, values = [*shares][::-1], [*shares.values()][::-1]  # bars are drawn from the bottom up
    text = [f"{value:.2f}" if value >= 0.01 else "<0.01" for value in values]
    figure = go.Figure()
    figure.add_bar(
        x=values,
        y=[*range(len(names))],
        text=[*map(literal, text)],
        hoverinfo="skip",
        textposition="outside",
        cliponaxis=False,
        orientation="h",
        width=BAR,
        marker={"color": COLOURS["complete"]},
    )
    label_rows(figure, [literal(shorten(html.unescape(name), 40)) for name in names])
    xaxis = {"visible": False, "range": [0, 1.15 * max(values) or 1]}
    return apply_style(figure, ROW * len(names) + 16, xaxis=xaxis)


def slices(
    study: optuna.Study, names: Sequence[str], best: FrozenTrial | None, axis: Axis
) -> dict[str, go.Figure] | str:
    """Draws the value over each parameter.

    Args:
        study: the complete trials, as `plot_study` copies them.
        names: the literal names of the parameters.
        best: the trial to mark as the best.
        axis: the axis of the values.

    Returns:
        A figure by literal name; a sentence if there is no parameter to draw.
    """
    if not names:
        return NO_PARAMETERS
    yaxis = axis.layout([trial.value or 0.0 for trial in complete_trials(study)])
    return {name: _slice(study, name, best, axis, yaxis) for name in names}


def _slice(
    study: optuna.Study,
    name: str,
    best: FrozenTrial | None,
    axis: Axis,
    yaxis: Mapping[str, Any],
) -> go.Figure:
    trials = study.get_trials(deepcopy=False)
    figure = optuna.visualization.plot_slice(
        study, params=[name], target=_height(axis), target_name="value"
    )
    marker = {"size": 8, "line": {"width": 0}, "showscale": False, "opacity": 0.85}
    for trace in figure.data:
        trace.update(marker=marker, hoverinfo="x")
    figure.data[0].marker.update(colorscale=RAMP, cmin=0, cmax=max(1, len(trials) - 1))
    setting = None if best is None else trials[best.number].params.get(name)
    if best is not None and setting is not None:
        x = repr(setting) if figure.layout.xaxis.type == "category" else setting
        y = axis.height(value_of(best) or 0.0)
        text = f"trial {best.number}, the best"
        add_points(figure, "best", [x], [y], [text], 12, "circle-open")
        figure.data[-1].update(showlegend=False, marker={"line": {"width": 2.5}})
    if figure.layout.xaxis.type == "log":
        settings = [t.params[name] for t in complete_trials(study) if name in t.params]
        figure.update_xaxes(log_ticks(settings))
    xaxis = {"nticks": 5, "title": None, "tickfont": {"size": 10}}
    return apply_style(figure, 190, yaxis=yaxis, xaxis=xaxis)


def _height(axis: Axis) -> Callable[[FrozenTrial], float]:
    return lambda trial: axis.height(trial.value or 0.0)


def parallel(study: optuna.Study, names: Sequence[str], axis: Axis) -> go.Figure | str:
    """Draws a line for each trial, from its value over the most important parameters.

    Args:
        study: the complete trials, as `plot_study` copies them.
        names: the literal names of the parameters, the most important first.
        axis: the axis of the values.
    """
    trials = complete_trials(study)
    known = [name for name in names if any(name in trial.params for trial in trials)]
    names = sorted(known[:MOST_AXES])
    if not names:
        return NO_PARAMETERS
    figure = optuna.visualization.plot_parallel_coordinate(
        study, params=names, target=_height(axis), target_name="value"
    )
    notes = [note for note in figure.layout.annotations if note.x != 0]
    for note in notes:
        if note.text == "None":  # Optuna's word for a parameter that the trial does not have
            note.update(text="–")
    titles = [axis.metric, *names]
    layout = go.Layout(
        xaxis={
            "tickvals": [*range(len(titles))],
            "ticktext": [*map(_axis_name, titles)],
            "side": "top",
            "tickangle": 0,
        },
        yaxis={"visible": False, "range": [-0.04, 1.04]},
        annotations=notes,
        shapes=figure.layout.shapes,
    )
    figure = go.Figure(_coloured_lines(figure, axis), layout)
    values = [trial.value or 0.0 for trial in trials]
    low, high = min(values), max(values)
    span = axis.height(high) - axis.height(low)
    for mark in axis.marks(low, high):
        y = (axis.height(mark) - axis.height(low)) / span if span else 0.5
        figure.add_annotation(x=0, y=y, text=f"{mark:g}", showarrow=False)
    figure.update_annotations(xanchor="left", xshift=5, font={"size": 11, "color": None})
    figure.update_shapes(line={"color": COLOURS["pruned"], "width": 1})
    figure.update_xaxes(range=[-0.35, len(titles) - 0.4], showgrid=False, tickfont={"size": 11})
    return apply_style(figure, 380)


def _coloured_lines(figure: go.Figure, axis: Axis) -> list[go.Scatter]:
    """Returns the lines of trials, the worst first: the last is drawn on top."""
    lines = [trace for trace in figure.data if trace.mode == "lines" and trace.x[0] is not None]
    # Sorted from the best down and then reversed, so that of several alike the first is on top.
    lines = sorted(lines, key=lambda line: axis.sign * line.y[0], reverse=True)[::-1]
    colours = sample_colorscale(RAMP, [rank / max(1, len(lines) - 1) for rank in range(len(lines))])
    for line, colour in zip(lines, colours, strict=True):
        line.update(
            opacity=0.75, line={"color": colour, "width": 1.5}, hoverinfo="skip", hovertemplate=None
        )
    lines[-1].update(opacity=1, line={"color": COLOURS["best"], "width": 3})
    return lines


def _axis_name(name: str) -> str:
    """Breaks a name at its last dot into two lines: a parallel axis is a hundred pixels wide."""
    above, dot, last = html.unescape(name).rpartition(".")
    return f"{literal(shorten(above + dot, 16))}<br><b>{literal(shorten(last, 14))}</b>"


def contour(study: optuna.Study, names: Sequence[str], axis: Axis) -> go.Figure | str:
    """Draws the value over the two most important parameters that occur together.

    Args:
        study: the complete trials, as `plot_study` copies them.
        names: the literal names of the parameters, the most important first.
        axis: the axis of the values.
    """
    trials = complete_trials(study)
    for pair in itertools.combinations(names, 2):
        common = [trial.params for trial in trials if all(name in trial.params for name in pair)]
        varied = all(len({params[name] for params in common}) > 1 for name in pair)
        if len(common) >= ENOUGH and varied:
            break
    else:
        return "No two parameters have been varied together in enough trials yet."
    figure = optuna.visualization.plot_contour(
        study, params=list(pair), target=_height(axis), target_name="value"
    )
    surface, *points = figure.data
    values = [trial.value or 0.0 for trial in trials]
    ticks = axis.ticks(min(values), max(values))
    surface.update(
        colorscale=TINT,
        reversescale=axis.sign < 0,
        colorbar={"title": None, "thickness": 10, "outlinewidth": 0, "len": 1, **ticks},
        line={"width": 0.5, "color": COLOURS["pruned"]},
    )
    for trace in points:
        trace.marker.update(
            size=7, color=COLOURS["complete"], line={"width": 1.5, "color": "white"}
        )
        trace.update(hoverinfo="x+y")
    titles = {name: literal(shorten(html.unescape(name), 40)) for name in pair}
    sides = dict(zip("xy", sorted(pair), strict=True))
    for side, name in sides.items():
        if (drawn := figure.layout[f"{side}axis"]).type == "log":
            drawn.update(log_ticks([params[name] for params in common]))
    figure.update_layout(xaxis={"title": titles[sides["x"]], "ticks": ""}, yaxis={"ticks": ""})
    return apply_style(figure, 380, titles[sides["y"]])
