"""The plots of a report, as plotly figures; where there is nothing to draw, a line that says why.

Optuna draws what it has a plot for, from a replica of the study. What depends on light and dark, such as the colour of
text and grid, is left to the page.
"""

import html
import itertools
import math
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any

import optuna  # optuna.visualization is imported when it is first used; it takes scipy along, where there is one
import plotly.graph_objects as go  # type: ignore[import-untyped]
from optuna.trial import FrozenTrial
from plotly.colors import sample_colorscale  # type: ignore[import-untyped]

from studyloom.axes import Axis, log_ticks, whole
from studyloom.metrics import shown
from studyloom.progress import outcome
from studyloom.record import value_of
from studyloom.replica import ENOUGH, complete, cut, literal, quiet
from studyloom.study import EPOCHS, WORKER

# Middle tones, with a contrast of 3 or so to white and to near black alike.
COLOURS = {
    "complete": "#4c8bf5",
    "pruned": "#8b95a5",
    "failed": "#e5484d",
    "running": "#d9870b",
    "best": "#12a150",
    "baseline": "#9a5cf0",
    "winner": "#d9870b",
}
RAMP = ["#98a2b1", "#4c8bf5"]  # of lines and points
TINT = [[0, "rgba(76,139,245,0.04)"], [1, "rgba(76,139,245,0.85)"]]  # of areas: the page shines through at the low end
AXES = 8  # parallel ones; more cannot be told apart
ROW = 44  # pixels of a bar with its label above
BAR = 0.32  # of which are the bar's

NO_PARAMETERS = f"No parameter has had different values in {ENOUGH} complete trials or more yet."


def dress(figure: go.Figure, height: int, title: str = "", **layout: Any) -> go.Figure:
    """What all figures share; the title stands at the upper left, where it names the vertical axis."""
    figure.update_layout(
        height=height,
        showlegend=False,
        dragmode=False,  # a finger scrolls the page
        hovermode="closest",
        margin={"l": 0, "r": 8, "t": 28 if title else 8, "b": 8},
        title={"text": title, "x": 0, "xref": "container", "y": 1, "yanchor": "top", "pad": {"t": 4}},
        plot_bgcolor=None,
        **layout,
    )
    figure.update_xaxes(fixedrange=True, automargin=True)
    figure.update_yaxes(fixedrange=True, automargin=True, title=None)
    return figure


def history(
    study: optuna.Study,
    trials: Sequence[FrozenTrial],
    best: FrozenTrial | None,
    baseline: FrozenTrial | None,
    scale: Axis,
) -> go.Figure | str:
    """Each complete trial and the best so far; below them, where trials ended otherwise."""
    ended = complete(study)
    if not ended:
        return "No trial is complete yet."
    axis = scale.drawn([trial.value or 0.0 for trial in ended])
    bottom, top = axis["range"]
    rug = bottom - 0.05 * (top - bottom)
    axis["range"] = [rug - 0.05 * (top - bottom), top]
    figure = optuna.visualization.plot_optimization_history(study)
    points, so_far, infeasible = figure.data
    for trace, name, colour in ((points, "complete", "complete"), (infeasible, "infeasible", "failed")):
        text = [f"trial {number}: {shown(value)}" for number, value in zip(trace.x, trace.y, strict=True)]
        marker = {"color": COLOURS[colour], "size": 8}
        trace.update(y=[*map(scale.height, trace.y)], text=text, hoverinfo="text", name=name, marker=marker)
        trace.showlegend = bool(text)
    line = {"color": COLOURS["best"], "width": 2, "shape": "hv"}
    heights = [scale.height(value) if math.isfinite(value) else None for value in so_far.y]
    so_far.update(y=heights, name="best so far", line=line, hoverinfo="skip", showlegend=True)
    for kind in ("pruned", "failed", "running"):
        others = [trial for trial in trials if outcome(trial) == kind]
        text = [f"trial {trial.number}: {kind}" for trial in others]
        add_points(figure, kind, [trial.number for trial in others], [rug] * len(others), text, symbol="line-ns-open")
    if (begun := value_of(baseline)) is not None:
        style = {"color": COLOURS["baseline"], "width": 1.5, "dash": "dot"}
        y = scale.height(begun)
        figure.add_scatter(
            x=[0, max(1, len(trials) - 1)], y=[y, y], mode="lines", line=style, hoverinfo="skip", name="baseline"
        )
        figure.data[-1].showlegend = True
    if best is not None and (found := value_of(best)) is not None:
        told = f"trial {best.number}: {shown(found)}"
        add_points(figure, "best", [best.number], [scale.height(found)], [told], 12)
    figure = dress(
        figure, 340, f"validation {literal(scale.metric)}", xaxis=whole(len(trials)) | {"title": "trial"}, yaxis=axis
    )
    return figure.update_xaxes(range=[-0.03 * len(trials) - 0.3, 1.03 * len(trials) - 0.7])


def add_points(
    figure: go.Figure,
    name: str,
    x: Sequence[Any],
    y: Sequence[float],
    text: Sequence[str],
    size: int = 8,
    symbol: str = "circle",
) -> None:
    marker = {"color": COLOURS[name], "size": size, "symbol": symbol}
    if x:
        figure.add_scatter(
            x=x, y=y, text=text, hoverinfo="text", mode="markers", name=name, marker=marker, showlegend=True
        )


def points(trial: FrozenTrial) -> list[tuple[int, float]]:
    """The learning curve of a trial: epoch and value."""
    epochs = trial.user_attrs.get(EPOCHS) or {}
    stored = list(zip(epochs.get("number", ()), epochs.get("value", ()), strict=False))
    return stored or sorted(trial.intermediate_values.items())


def curves(
    trials: Sequence[FrozenTrial], best: FrozenTrial | None, baseline: FrozenTrial | None, scale: Axis
) -> go.Figure | str:
    """The learning curves of all trials, in one trace for each outcome."""
    known = {trial.number: points(trial) for trial in trials}
    known = {
        number: curve for number, curve in known.items() if curve and all(math.isfinite(value) for _, value in curve)
    }
    if not known:
        return "No trial has ended an epoch yet."
    marked = {"baseline": baseline, "best": best}
    special = {trial.number for trial in marked.values() if trial is not None}
    groups = {
        kind: [t for t in trials if t.number in known and outcome(t) == kind and t.number not in special]
        for kind in ("failed", "pruned", "running", "complete")
    }
    groups |= {kind: [trial] for kind, trial in marked.items() if trial is not None and trial.number in known}
    figure = go.Figure()
    for kind, members in groups.items():
        x: list[int | None] = []
        y: list[float | None] = []
        text: list[str] = []
        for trial in members:
            for epoch, value in known[trial.number]:
                x.append(epoch)
                y.append(scale.height(value))
                text.append(f"trial {trial.number}, epoch {epoch}: {shown(value)}")
            x.append(None)  # the pen is lifted
            y.append(None)
            text.append("")
        if members:
            line = {"color": COLOURS[kind], "width": 3 if kind in marked else 1.3}
            figure.add_scatter(x=x, y=y, text=text, hoverinfo="text", mode="lines", name=kind, line=line)
            figure.data[-1].update(opacity=1 if kind in marked else 0.6, showlegend=True)
    for kind in ("pruned", "failed"):
        ends = [(trial.number, *known[trial.number][-1]) for trial in groups[kind]]
        text = [f"trial {number}: {kind} after epoch {epoch} at {shown(value)}" for number, epoch, value in ends]
        heights = [scale.height(value) for *_, value in ends]
        add_points(figure, kind, [epoch for _, epoch, _ in ends], heights, text, 6, "x-thin-open")
        if ends:
            figure.data[-1].showlegend = False
    values = [value for curve in known.values() for _, value in curve]
    longest = max(epoch for curve in known.values() for epoch, _ in curve)
    xaxis = whole(longest) | {"title": "epoch"}
    return dress(figure, 380, f"validation {literal(scale.metric)}", xaxis=xaxis, yaxis=scale.drawn(values))


def losses(trial: FrozenTrial | None) -> go.Figure | str:
    """The training and validation loss of a trial, epoch by epoch."""
    if trial is None:
        return "No trial is complete yet."
    epochs = trial.user_attrs.get(EPOCHS) or {}
    numbers, train, valid = (epochs.get(name) or [] for name in ("number", "train_loss", "valid_loss"))
    if not numbers or not len(numbers) == len(train) == len(valid):
        return f"Trial {trial.number} stored no losses."
    figure = go.Figure()
    for name, values, dash in (("training loss", train, "dot"), ("validation loss", valid, "solid")):
        text = [f"epoch {number}: {name} {shown(value)}" for number, value in zip(numbers, values, strict=True)]
        line = {"color": COLOURS["best"], "width": 2.5, "dash": dash}
        figure.add_scatter(x=numbers, y=values, text=text, hoverinfo="text", mode="lines+markers", name=name, line=line)
        figure.data[-1].update(showlegend=True, marker={"size": 5})
    lowest = min(range(len(valid)), key=valid.__getitem__)
    figure.add_vline(x=numbers[lowest], line={"color": COLOURS["pruned"], "width": 1, "dash": "dot"})
    figure.add_annotation(
        x=numbers[lowest],
        y=1,
        yref="paper",
        yanchor="top",
        text=f"lowest at epoch {numbers[lowest]}",
        showarrow=False,
        xanchor="right" if lowest > len(valid) // 2 else "left",
        xshift=-6 if lowest > len(valid) // 2 else 6,
    )
    axis = {"rangemode": "tozero"}
    return dress(figure, 300, "loss", xaxis=whole(len(numbers)) | {"title": "epoch"}, yaxis=axis)


def predictions(found: dict[str, Any]) -> go.Figure | str:
    """What a network told of numbers and what came: over time where they are in its order, else one over the other."""
    try:
        pairs = [(float(one[0]), float(other[0])) for one, other in zip(found["told"], found["came"], strict=True)]
    except (KeyError, IndexError, TypeError, ValueError):
        return "winner.json holds no predictions."
    told, came = ([pair[place] for pair in pairs] for place in (0, 1))
    text = [f"told {shown(one)}, came {shown(other)}" for one, other in pairs]
    figure = go.Figure()
    if found.get("ordered"):
        for name, values, kind in (("what came", came, "pruned"), ("told", told, "best")):
            line = {"color": COLOURS[kind], "width": 2}
            figure.add_scatter(x=[*range(len(pairs))], y=values, text=text, hoverinfo="text", mode="lines", name=name)
            figure.data[-1].update(line=line, showlegend=True)
        return dress(figure, 300, xaxis={"title": "example"})
    low, high = min([*told, *came], default=0.0), max([*told, *came], default=1.0)
    line = {"color": COLOURS["pruned"], "width": 1, "dash": "dot"}
    figure.add_scatter(x=[low, high], y=[low, high], mode="lines", line=line, hoverinfo="skip", name="told what came")
    figure.data[-1].showlegend = True
    add_points(figure, "best", came, told, text)
    return dress(figure, 380, "told", xaxis={"title": "what came"})


def importances(study: optuna.Study, names: Sequence[str]) -> go.Figure | str:
    """Bars under the names of the parameters."""
    if not names:
        return NO_PARAMETERS
    with quiet():
        figure = optuna.visualization.plot_param_importances(study, params=list(names))
    (bars,) = figure.data
    labels = [*bars.y]
    marker = {"color": COLOURS["complete"]}
    bars.update(y=[*range(len(labels))], text=[*map(literal, bars.text)], width=BAR, marker=marker)
    bars.update(hovertemplate=None, hoverinfo="skip")
    _label_rows(figure, [literal(cut(html.unescape(label), 40)) for label in labels])
    axis = {"visible": False, "range": [0, 1.15 * max(bars.x) or 1]}
    return dress(figure, ROW * len(labels) + 16, xaxis=axis)


def _label_rows(figure: go.Figure, labels: Sequence[str]) -> None:
    """Writes labels above the bars at 0, 1, …: beside them they would take half of a phone."""
    for row, label in enumerate(labels):
        place = {"x": 0, "xref": "paper", "xanchor": "left", "y": row + BAR / 2, "yanchor": "bottom"}
        figure.add_annotation(text=label, showarrow=False, **place)
    figure.update_yaxes(visible=False, range=[-0.4, len(labels) - 0.25])


def slices(
    study: optuna.Study, names: Sequence[str], best: FrozenTrial | None, scale: Axis
) -> dict[str, go.Figure] | str:
    """A figure for each parameter, by its literal name."""
    if not names:
        return NO_PARAMETERS
    axis = scale.drawn([trial.value or 0.0 for trial in complete(study)])
    drawn = {}
    for name in names:
        figure = optuna.visualization.plot_slice(study, params=[name], target=_height(scale), target_name="value")
        for trace in figure.data:
            trace.update(marker={"size": 8, "line": {"width": 0}, "showscale": False, "opacity": 0.85})
            trace.update(hoverinfo="x")
        figure.data[0].marker.update(colorscale=RAMP, cmin=0, cmax=max(1, len(study.get_trials(deepcopy=False)) - 1))
        if best is not None and (value := study.get_trials(deepcopy=False)[best.number].params.get(name)) is not None:
            x = repr(value) if figure.layout.xaxis.type == "category" else value
            text = f"trial {best.number}, the best"
            add_points(figure, "best", [x], [scale.height(value_of(best) or 0.0)], [text], 12, "circle-open")
            figure.data[-1].update(showlegend=False, marker={"line": {"width": 2.5}})
        if figure.layout.xaxis.type == "log":
            figure.update_xaxes(log_ticks([trial.params[name] for trial in complete(study) if name in trial.params]))
        drawn[name] = dress(figure, 190, yaxis=axis, xaxis={"nticks": 5, "title": None, "tickfont": {"size": 10}})
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
        line.update(opacity=0.75, line={"color": colour, "width": 1.5}, hoverinfo="skip", hovertemplate=None)
    lines[-1].update(opacity=1, line={"color": COLOURS["best"], "width": 3})
    values = [trial.value or 0.0 for trial in ended]
    low, high = min(values), max(values)
    span = scale.height(high) - scale.height(low)
    notes = [note for note in figure.layout.annotations if note.x != 0]
    for note in notes:
        note.update(text="–" if note.text == "None" else note.text)  # Optuna's word for a parameter that is not asked
    axes = [scale.metric, *names]
    layout = go.Layout(
        xaxis={"tickvals": [*range(len(axes))], "ticktext": [*map(_axis_name, axes)], "side": "top", "tickangle": 0},
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
    return f"{literal(cut(above + dot, 16))}<br><b>{literal(cut(last, 14))}</b>"


def contour(study: optuna.Study, names: Sequence[str], scale: Axis) -> go.Figure | str:
    """The value over the two most important parameters that occur together."""
    ended = complete(study)
    for pair in itertools.combinations(names, 2):
        common = [trial.params for trial in ended if all(name in trial.params for name in pair)]
        if len(common) >= ENOUGH and all(len({params[name] for params in common}) > 1 for name in pair):
            break
    else:
        return "No two parameters have been varied together in enough trials yet."
    figure = optuna.visualization.plot_contour(study, params=list(pair), target=_height(scale), target_name="value")
    surface, *trials = figure.data
    values = [trial.value or 0.0 for trial in ended]
    bar = {"title": None, "thickness": 10, "outlinewidth": 0, "len": 1, **scale.ticks(min(values), max(values))}
    surface.update(
        colorscale=TINT, reversescale=scale.sign < 0, colorbar=bar, line={"width": 0.5, "color": COLOURS["pruned"]}
    )
    for trace in trials:
        trace.marker.update(size=7, color=COLOURS["complete"], line={"width": 1.5, "color": "white"})
        trace.update(hoverinfo="x+y")
    titles = {name: literal(cut(html.unescape(name), 40)) for name in pair}
    axes = {"x": sorted(pair)[0], "y": sorted(pair)[1]}
    for letter, name in axes.items():
        if (axis := figure.layout[f"{letter}axis"]).type == "log":
            axis.update(log_ticks([params[name] for params in common]))
    figure.update_layout(xaxis={"title": titles[axes["x"]], "ticks": ""}, yaxis={"ticks": ""})
    return dress(figure, 380, titles[axes["y"]])


def timeline(trials: Sequence[FrozenTrial], alive: Collection[int]) -> go.Figure | str:
    """A row for each worker, with a bar for each trial that began there.

    alive holds the ids of the trials that a worker is at now; other unfinished ones end with the last that is known.
    """
    begun = [trial for trial in trials if trial.datetime_start is not None]
    if not begun:
        return "No trial has begun yet."
    latest = max(moment for t in begun for moment in (t.datetime_start, t.datetime_complete) if moment is not None)
    rows: dict[str, list[tuple[FrozenTrial, datetime, datetime]]] = {}
    for trial in begun:
        start = trial.datetime_start or latest
        end = trial.datetime_complete or (max(datetime.now(), start) if trial._trial_id in alive else latest)
        rows.setdefault(str(trial.user_attrs.get(WORKER, "unknown worker")), []).append((trial, start, end))
    names = sorted(rows, reverse=True)  # the first is to be on top
    figure = go.Figure()
    for kind in ("complete", "pruned", "failed", "running"):
        bars = [
            (names.index(name), trial.number, start, end)
            for name, row in rows.items()
            for trial, start, end in row
            if outcome(trial) == kind
        ]
        if bars:
            figure.add_bar(
                base=[start for _, _, start, _ in bars],
                x=[1000 * (end - start).total_seconds() for _, _, start, end in bars],
                y=[row for row, *_ in bars],
                text=[f"trial {n}: {kind}, {(end - start).total_seconds():.1f} s" for _, n, start, end in bars],
                hoverinfo="text",
                textposition="none",
                orientation="h",
                width=BAR,
                name=kind,
                showlegend=True,
                marker={"color": COLOURS[kind], "line": {"width": 0}},
            )
    labels = []
    for name in names:
        idle = idle_share([(start, end) for _, start, end in rows[name]])
        labels.append(f"{literal(cut(name, 32))} · {100 * idle:.1f} % idle")
    _label_rows(figure, labels)
    first = min(start for row in rows.values() for _, start, _ in row)
    last = max(end for row in rows.values() for *_, end in row)
    axis = {"type": "date", "nticks": 5, "tickangle": 0, "range": [first, last]}
    return dress(figure, ROW * len(names) + 36, barmode="overlay", xaxis=axis)


def idle_share(spans: Sequence[tuple[datetime, datetime]]) -> float:
    """The part of the time from the first start to the last end in which there was no trial, from 0 to 1."""
    first = until = min(start for start, _ in spans)
    busy = 0.0
    for start, end in sorted(spans):
        busy += max(0.0, (end - max(start, until)).total_seconds())
        until = max(until, end)
    total = (until - first).total_seconds()
    return 1 - busy / total if total else 0.0
