"""TODO views.figures.parameters."""

import html
import itertools
from collections.abc import Callable, Sequence

import optuna  # optuna.visualization is imported when it is first used; it takes scipy along, where there is one
import plotly.graph_objects as go  # type: ignore[import-untyped]
from optuna.trial import FrozenTrial
from plotly.colors import sample_colorscale  # type: ignore[import-untyped]

from studyloom.study.stored_study import value_of
from studyloom.text import shorten
from studyloom.views.figures.axes import Axis, log_ticks
from studyloom.views.figures.plot_study import ENOUGH, complete, literal, quiet_optuna
from studyloom.views.figures.style import (
    BAR,
    COLOURS,
    NO_PARAMETERS,
    RAMP,
    ROW,
    TINT,
    add_points,
    dress,
    label_rows,
)

AXES = 8  # parallel ones; more cannot be told apart


def importances(study: optuna.Study, names: Sequence[str]) -> go.Figure | str:
    """Bars under the names of the parameters."""
    if not names:
        return NO_PARAMETERS
    with quiet_optuna():
        figure = optuna.visualization.plot_param_importances(study, params=list(names))
    (bars,) = figure.data
    labels = [*bars.y]
    marker = {"color": COLOURS["complete"]}
    bars.update(y=[*range(len(labels))], text=[*map(literal, bars.text)], width=BAR, marker=marker)
    bars.update(hovertemplate=None, hoverinfo="skip")
    label_rows(figure, [literal(shorten(html.unescape(label), 40)) for label in labels])
    axis = {"visible": False, "range": [0, 1.15 * max(bars.x) or 1]}
    return dress(figure, ROW * len(labels) + 16, xaxis=axis)


def slices(
    study: optuna.Study, names: Sequence[str], best: FrozenTrial | None, scale: Axis
) -> dict[str, go.Figure] | str:
    """A figure for each parameter, by its literal name."""
    if not names:
        return NO_PARAMETERS
    axis = scale.drawn([trial.value or 0.0 for trial in complete(study)])
    drawn = {}
    for name in names:
        figure = optuna.visualization.plot_slice(
            study, params=[name], target=_height(scale), target_name="value"
        )
        for trace in figure.data:
            trace.update(
                marker={"size": 8, "line": {"width": 0}, "showscale": False, "opacity": 0.85}
            )
            trace.update(hoverinfo="x")
        figure.data[0].marker.update(
            colorscale=RAMP, cmin=0, cmax=max(1, len(study.get_trials(deepcopy=False)) - 1)
        )
        if (
            best is not None
            and (value := study.get_trials(deepcopy=False)[best.number].params.get(name))
            is not None
        ):
            x = repr(value) if figure.layout.xaxis.type == "category" else value
            text = f"trial {best.number}, the best"
            add_points(
                figure,
                "best",
                [x],
                [scale.height(value_of(best) or 0.0)],
                [text],
                12,
                "circle-open",
            )
            figure.data[-1].update(showlegend=False, marker={"line": {"width": 2.5}})
        if figure.layout.xaxis.type == "log":
            figure.update_xaxes(
                log_ticks([trial.params[name] for trial in complete(study) if name in trial.params])
            )
        drawn[name] = dress(
            figure, 190, yaxis=axis, xaxis={"nticks": 5, "title": None, "tickfont": {"size": 10}}
        )
    return drawn


def _height(scale: Axis) -> Callable[[FrozenTrial], float]:
    return lambda trial: scale.height(trial.value or 0.0)


def parallel(study: optuna.Study, names: Sequence[str], scale: Axis) -> go.Figure | str:
    """A line for each trial, from its value over those of the most important parameters."""
    ended = complete(study)
    names = sorted([name for name in names if any(name in trial.params for trial in ended)][:AXES])
    if not names:
        return NO_PARAMETERS
    figure = optuna.visualization.plot_parallel_coordinate(
        study, params=names, target=_height(scale), target_name="value"
    )
    lines = [trace for trace in figure.data if trace.mode == "lines" and trace.x[0] is not None]
    lines = sorted(lines, key=lambda line: scale.sign * line.y[0], reverse=True)[
        ::-1
    ]  # on top the best, and of several the first
    colours = sample_colorscale(RAMP, [rank / max(1, len(lines) - 1) for rank in range(len(lines))])
    for line, colour in zip(lines, colours, strict=True):
        line.update(
            opacity=0.75, line={"color": colour, "width": 1.5}, hoverinfo="skip", hovertemplate=None
        )
    lines[-1].update(opacity=1, line={"color": COLOURS["best"], "width": 3})
    values = [trial.value or 0.0 for trial in ended]
    low, high = min(values), max(values)
    span = scale.height(high) - scale.height(low)
    notes = [note for note in figure.layout.annotations if note.x != 0]
    for note in notes:
        note.update(
            text="–" if note.text == "None" else note.text
        )  # Optuna's word for a parameter that is not asked
    axes = [scale.metric, *names]
    layout = go.Layout(
        xaxis={
            "tickvals": [*range(len(axes))],
            "ticktext": [*map(_axis_name, axes)],
            "side": "top",
            "tickangle": 0,
        },
        yaxis={"visible": False, "range": [-0.04, 1.04]},
        annotations=notes,
        shapes=figure.layout.shapes,
    )
    figure = go.Figure(lines, layout)
    for mark in scale.marks(low, high):
        y = (scale.height(mark) - scale.height(low)) / span if span else 0.5
        figure.add_annotation(x=0, y=y, text=f"{mark:g}", showarrow=False)
    figure.update_annotations(xanchor="left", xshift=5, font={"size": 11, "color": None})
    figure.update_shapes(line={"color": COLOURS["pruned"], "width": 1})
    figure.update_xaxes(range=[-0.35, len(axes) - 0.4], showgrid=False, tickfont={"size": 11})
    return dress(figure, 380)


def _axis_name(name: str) -> str:
    """A name on two lines, broken at its last dot, for an axis that has a hundred pixels of its own."""
    above, dot, last = html.unescape(name).rpartition(".")
    return f"{literal(shorten(above + dot, 16))}<br><b>{literal(shorten(last, 14))}</b>"


def contour(study: optuna.Study, names: Sequence[str], scale: Axis) -> go.Figure | str:
    """The value over the two most important parameters that occur together."""
    ended = complete(study)
    for pair in itertools.combinations(names, 2):
        common = [trial.params for trial in ended if all(name in trial.params for name in pair)]
        if len(common) >= ENOUGH and all(
            len({params[name] for params in common}) > 1 for name in pair
        ):
            break
    else:
        return "No two parameters have been varied together in enough trials yet."
    figure = optuna.visualization.plot_contour(
        study, params=list(pair), target=_height(scale), target_name="value"
    )
    surface, *trials = figure.data
    values = [trial.value or 0.0 for trial in ended]
    bar = {
        "title": None,
        "thickness": 10,
        "outlinewidth": 0,
        "len": 1,
        **scale.ticks(min(values), max(values)),
    }
    surface.update(
        colorscale=TINT,
        reversescale=scale.sign < 0,
        colorbar=bar,
        line={"width": 0.5, "color": COLOURS["pruned"]},
    )
    for trace in trials:
        trace.marker.update(
            size=7, color=COLOURS["complete"], line={"width": 1.5, "color": "white"}
        )
        trace.update(hoverinfo="x+y")
    titles = {name: literal(shorten(html.unescape(name), 40)) for name in pair}
    axes = {"x": sorted(pair)[0], "y": sorted(pair)[1]}
    for letter, name in axes.items():
        if (axis := figure.layout[f"{letter}axis"]).type == "log":
            axis.update(log_ticks([params[name] for params in common]))
    figure.update_layout(xaxis={"title": titles[axes["x"]], "ticks": ""}, yaxis={"ticks": ""})
    return dress(figure, 380, titles[axes["y"]])
