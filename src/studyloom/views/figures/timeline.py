"""The timeline of the workers: when each was training, and how long it was idle."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

import plotly.graph_objects as go  # type: ignore[import-untyped]
from optuna.trial import FrozenTrial

from studyloom.storage.attributes import RUNGS, TIMES, WORKER
from studyloom.study.trials.failures import outcome
from studyloom.text import shorten
from studyloom.views.figures.plot_study import literal
from studyloom.views.figures.style import BAR, COLOURS, ROW, apply_style, label_rows

Span = tuple[FrozenTrial, datetime, datetime]  # a trial, its start and its end


def timeline(trials: Sequence[FrozenTrial], alive: Collection[int]) -> go.Figure | str:
    """Draws a row for each worker, with a bar for each trial that began there.

    Args:
        trials: all trials of the study.
        alive: the ids of the trials that a worker trains now. Their bars end now; those of other
            unfinished trials end at the last moment that any trial stored.
    """
    rows = _spans_by_worker(trials, alive)
    if not rows:
        return "No trial has begun yet."
    names = sorted(rows, reverse=True)  # bars are drawn from the bottom up
    figure = go.Figure()
    for kind in ("complete", "pruned", "failed", "paused", "running"):
        _add_bars(figure, kind, names, rows)
    labels = []
    for name in names:
        idle = idle_share([(start, end) for _, start, end in rows[name]])
        labels.append(f"{literal(shorten(name, 32))} · {100 * idle:.1f} % idle")
    label_rows(figure, labels)
    first = min(start for row in rows.values() for _, start, _ in row)
    last = max(end for row in rows.values() for *_, end in row)
    xaxis = {"type": "date", "nticks": 5, "tickangle": 0, "range": [first, last]}
    return apply_style(figure, ROW * len(names) + 36, barmode="overlay", xaxis=xaxis)


def _spans_by_worker(
    trials: Sequence[FrozenTrial], alive: Collection[int]
) -> dict[str, list[Span]]:
    started = [trial for trial in trials if trial.datetime_start is not None]
    moments = [moment for t in started for moment in (t.datetime_start, t.datetime_complete)]
    latest = max((moment for moment in moments if moment is not None), default=datetime.min)
    rows: dict[str, list[Span]] = {}
    for trial in started:
        start = trial.datetime_start or latest
        now = max(datetime.now(), start) if trial._trial_id in alive else latest
        worker = str(trial.user_attrs.get(WORKER, "unknown worker"))
        end = trial.datetime_complete or now
        if RUNGS in trial.user_attrs:  # without its pauses
            worked = timedelta(seconds=sum(trial.user_attrs.get(TIMES, {}).values()))
            end = min(end, start + worked) if worked else end
        rows.setdefault(worker, []).append((trial, start, end))
    return rows


def _add_bars(
    figure: go.Figure, kind: str, names: Sequence[str], rows: Mapping[str, Sequence[Span]]
) -> None:
    """Adds the trials of one outcome as one trace."""
    bars = [
        (names.index(name), trial.number, start, end)
        for name, row in rows.items()
        for trial, start, end in row
        if outcome(trial) == kind
    ]
    if not bars:
        return
    text = [
        f"trial {number}: {kind}, {(end - start).total_seconds():.1f} s"
        for _, number, start, end in bars
    ]
    figure.add_bar(
        base=[start for _, _, start, _ in bars],
        x=[1000 * (end - start).total_seconds() for _, _, start, end in bars],
        y=[row for row, *_ in bars],
        text=text,
        hoverinfo="text",
        textposition="none",
        orientation="h",
        width=BAR,
        name=kind,
        showlegend=True,
        marker={"color": COLOURS[kind], "line": {"width": 0}},
    )


def idle_share(spans: Sequence[tuple[datetime, datetime]]) -> float:
    """Computes the share of time without a trial, between the first start and the last end.

    Args:
        spans: start and end of each trial; they may overlap.

    Returns:
        A number from 0 to 1.
    """
    first = until = min(start for start, _ in spans)
    busy = 0.0
    for start, end in sorted(spans):
        busy += max(0.0, (end - max(start, until)).total_seconds())
        until = max(until, end)
    total = (until - first).total_seconds()
    return 1 - busy / total if total else 0.0
