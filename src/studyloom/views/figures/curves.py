"""The plots of a report, as plotly figures; where there is nothing to draw, a line that says why.

Optuna draws what it has a plot for, from a replica of the study. What depends on light and dark, such as the colour of
text and grid, is left to the page.
"""

import math
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import optuna  # optuna.visualization is imported when it is first used; it takes scipy along, where there is one
import plotly.graph_objects as go  # type: ignore[import-untyped]
from optuna.trial import FrozenTrial

from studyloom.storage.attributes import EPOCHS, WORKER
from studyloom.study.stored_study import value_of
from studyloom.text import format_value, shorten
from studyloom.views.figures.axes import Axis, whole
from studyloom.views.figures.plot_study import complete, literal
from studyloom.views.figures.style import BAR, COLOURS, ROW, add_points, dress, label_rows, points
from studyloom.views.snapshot import outcome


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
            y=[*map(scale.height, trace.y)], text=text, hoverinfo="text", name=name, marker=marker
        )
        trace.showlegend = bool(text)
    line = {"color": COLOURS["best"], "width": 2, "shape": "hv"}
    heights = [scale.height(value) if math.isfinite(value) else None for value in so_far.y]
    so_far.update(y=heights, name="best so far", line=line, hoverinfo="skip", showlegend=True)
    for kind in ("pruned", "failed", "running"):
        others = [trial for trial in trials if outcome(trial) == kind]
        text = [f"trial {trial.number}: {kind}" for trial in others]
        add_points(
            figure,
            kind,
            [trial.number for trial in others],
            [rug] * len(others),
            text,
            symbol="line-ns-open",
        )
    if (begun := value_of(baseline)) is not None:
        style = {"color": COLOURS["baseline"], "width": 1.5, "dash": "dot"}
        y = scale.height(begun)
        figure.add_scatter(
            x=[0, max(1, len(trials) - 1)],
            y=[y, y],
            mode="lines",
            line=style,
            hoverinfo="skip",
            name="baseline",
        )
        figure.data[-1].showlegend = True
    if best is not None and (found := value_of(best)) is not None:
        told = f"trial {best.number}: {format_value(found)}"
        add_points(figure, "best", [best.number], [scale.height(found)], [told], 12)
    figure = dress(
        figure,
        340,
        f"validation {literal(scale.metric)}",
        xaxis=whole(len(trials)) | {"title": "trial"},
        yaxis=axis,
    )
    return figure.update_xaxes(range=[-0.03 * len(trials) - 0.3, 1.03 * len(trials) - 0.7])


def curves(
    trials: Sequence[FrozenTrial],
    best: FrozenTrial | None,
    baseline: FrozenTrial | None,
    scale: Axis,
) -> go.Figure | str:
    """The learning curves of all trials, in one trace for each outcome."""
    known = {trial.number: points(trial) for trial in trials}
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
            t
            for t in trials
            if t.number in known and outcome(t) == kind and t.number not in special
        ]
        for kind in ("failed", "pruned", "running", "complete")
    }
    groups |= {
        kind: [trial]
        for kind, trial in marked.items()
        if trial is not None and trial.number in known
    }
    figure = go.Figure()
    for kind, members in groups.items():
        x: list[int | None] = []
        y: list[float | None] = []
        text: list[str] = []
        for trial in members:
            for epoch, value in known[trial.number]:
                x.append(epoch)
                y.append(scale.height(value))
                text.append(f"trial {trial.number}, epoch {epoch}: {format_value(value)}")
            x.append(None)  # the pen is lifted
            y.append(None)
            text.append("")
        if members:
            line = {"color": COLOURS[kind], "width": 3 if kind in marked else 1.3}
            figure.add_scatter(
                x=x, y=y, text=text, hoverinfo="text", mode="lines", name=kind, line=line
            )
            figure.data[-1].update(opacity=1 if kind in marked else 0.6, showlegend=True)
    for kind in ("pruned", "failed"):
        ends = [(trial.number, *known[trial.number][-1]) for trial in groups[kind]]
        text = [
            f"trial {number}: {kind} after epoch {epoch} at {format_value(value)}"
            for number, epoch, value in ends
        ]
        heights = [scale.height(value) for *_, value in ends]
        add_points(figure, kind, [epoch for _, epoch, _ in ends], heights, text, 6, "x-thin-open")
        if ends:
            figure.data[-1].showlegend = False
    values = [value for curve in known.values() for _, value in curve]
    longest = max(epoch for curve in known.values() for epoch, _ in curve)
    xaxis = whole(longest) | {"title": "epoch"}
    return dress(
        figure, 380, f"validation {literal(scale.metric)}", xaxis=xaxis, yaxis=scale.drawn(values)
    )


def losses(trial: FrozenTrial | None) -> go.Figure | str:
    """The training and validation loss of a trial, epoch by epoch."""
    if trial is None:
        return "No trial is complete yet."
    epochs = trial.user_attrs.get(EPOCHS) or {}
    numbers, train, valid = (
        epochs.get(name) or [] for name in ("number", "train_loss", "valid_loss")
    )
    if not numbers or not len(numbers) == len(train) == len(valid):
        return f"Trial {trial.number} stored no losses."
    figure = go.Figure()
    for name, values, dash in (
        ("training loss", train, "dot"),
        ("validation loss", valid, "solid"),
    ):
        text = [
            f"epoch {number}: {name} {format_value(value)}"
            for number, value in zip(numbers, values, strict=True)
        ]
        line = {"color": COLOURS["best"], "width": 2.5, "dash": dash}
        figure.add_scatter(
            x=numbers,
            y=values,
            text=text,
            hoverinfo="text",
            mode="lines+markers",
            name=name,
            line=line,
        )
        figure.data[-1].update(showlegend=True, marker={"size": 5})
    lowest = min(range(len(valid)), key=valid.__getitem__)
    figure.add_vline(
        x=numbers[lowest], line={"color": COLOURS["pruned"], "width": 1, "dash": "dot"}
    )
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
        pairs = [
            (float(one[0]), float(other[0]))
            for one, other in zip(found["told"], found["came"], strict=True)
        ]
    except (KeyError, IndexError, TypeError, ValueError):
        return "winner.json holds no predictions."
    told, came = ([pair[place] for pair in pairs] for place in (0, 1))
    text = [f"told {format_value(one)}, came {format_value(other)}" for one, other in pairs]
    figure = go.Figure()
    if found.get("ordered"):
        for name, values, kind in (("what came", came, "pruned"), ("told", told, "best")):
            line = {"color": COLOURS[kind], "width": 2}
            figure.add_scatter(
                x=[*range(len(pairs))],
                y=values,
                text=text,
                hoverinfo="text",
                mode="lines",
                name=name,
            )
            figure.data[-1].update(line=line, showlegend=True)
        return dress(figure, 300, xaxis={"title": "example"})
    low, high = min([*told, *came], default=0.0), max([*told, *came], default=1.0)
    line = {"color": COLOURS["pruned"], "width": 1, "dash": "dot"}
    figure.add_scatter(
        x=[low, high],
        y=[low, high],
        mode="lines",
        line=line,
        hoverinfo="skip",
        name="told what came",
    )
    figure.data[-1].showlegend = True
    add_points(figure, "best", came, told, text)
    return dress(figure, 380, "told", xaxis={"title": "what came"})


def timeline(trials: Sequence[FrozenTrial], alive: Collection[int]) -> go.Figure | str:
    """A row for each worker, with a bar for each trial that began there.

    alive holds the ids of the trials that a worker is at now; other unfinished ones end with the last that is known.
    """
    begun = [trial for trial in trials if trial.datetime_start is not None]
    if not begun:
        return "No trial has begun yet."
    latest = max(
        moment
        for t in begun
        for moment in (t.datetime_start, t.datetime_complete)
        if moment is not None
    )
    rows: dict[str, list[tuple[FrozenTrial, datetime, datetime]]] = {}
    for trial in begun:
        start = trial.datetime_start or latest
        end = trial.datetime_complete or (
            max(datetime.now(), start) if trial._trial_id in alive else latest
        )
        rows.setdefault(str(trial.user_attrs.get(WORKER, "unknown worker")), []).append(
            (trial, start, end)
        )
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
                text=[
                    f"trial {n}: {kind}, {(end - start).total_seconds():.1f} s"
                    for _, n, start, end in bars
                ],
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
        labels.append(f"{literal(shorten(name, 32))} · {100 * idle:.1f} % idle")
    label_rows(figure, labels)
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
