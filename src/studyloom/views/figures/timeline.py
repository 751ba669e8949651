"""The timeline of the workers: when each was training, and how long it was idle."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from optuna.trial import FrozenTrial

from studyloom.storage.attributes import RUNGS, TIMES, WORKER
from studyloom.study.failures import outcome
from studyloom.text import format_duration, shorten
from studyloom.views.figures.chart import Chart, Mark, Note, Scale, Table, Tick, responsive

ROW, BAR = 44, 0.32  # pixels of a bar with its label above it, and the bar's share of them
KINDS = ("complete", "pruned", "failed", "paused", "running")
LABELS = 5  # of the axis

Span = tuple[FrozenTrial, datetime, datetime]  # a trial, its start and its end


def timeline(trials: Sequence[FrozenTrial], alive: Collection[int]) -> Chart | str:
    """Draws a row for each worker, with a bar for each trial that began there.

    Args:
        trials: all trials of the study.
        alive: the ids of the trials that a worker trains now. Their bars end now; those of other
            unfinished trials end at the last moment that any trial stored.

    Returns:
        The chart, or the sentence to show in its place.
    """
    rows = _spans_by_worker(trials, alive)
    if not rows:
        return "No trial has begun yet."
    names = sorted(rows, reverse=True)  # rows are drawn from the bottom up
    first = min(start for row in rows.values() for _, start, _ in row)
    last = max(end for row in rows.values() for *_, end in row)

    def at(moment: datetime) -> float:
        return (moment - first).total_seconds()

    marks = []
    for kind in KINDS:
        bars = [
            (trial.number, [(at(start), row), (at(end), row)])
            for row, name in enumerate(names)
            for trial, start, end in rows[name]
            if outcome(trial) == kind
        ]
        parts, numbers = [part for _, part in bars], [number for number, _ in bars]
        marks.append(Mark(kind, kind, "bar", parts, numbers, BAR))
    idle = {name: idle_share([(start, end) for _, start, end in rows[name]]) for name in names}
    notes = [
        Note(0, row + BAR + 0.02, f"{shorten(name, 32)} · {100 * idle[name]:.1f} % idle", "above")
        for row, name in enumerate(names)
    ]
    table = Table(
        ("worker", "trials", "trained for", "idle"),
        [
            (name, len(rows[name]), _trained(rows[name]), f"{100 * idle[name]:.1f} %")
            for name in reversed(names)
        ],
        words=(0,),
    )
    x = _time_scale(first, last)
    y = Scale(-0.12, len(names) - 0.12, reads="none")
    shown = [mark for mark in marks if mark.parts]
    label = f"when each of {len(names)} workers trained which trial"
    return Chart(label, ROW * len(names) + 8, x, y, shown, table, notes)


def _trained(spans: Sequence[Span]) -> str:
    return format_duration(sum((end - start).total_seconds() for _, start, end in spans))


def _time_scale(first: datetime, last: datetime) -> Scale:
    """Returns the axis of seconds since the first start, labelled with the time of the day."""
    length = max((last - first).total_seconds(), 1.0)
    ends = 0.0, length
    pattern = "%H:%M:%S" if length < 600 else "%H:%M" if length < 86400 else "%d %b %H:%M"
    ticks = []
    for part in range(LABELS + 1):
        at = length * part / LABELS
        ticks.append(Tick(at, (first + timedelta(seconds=at)).strftime(pattern)))
    return Scale(*ends, responsive(ticks, *ends), "", "none")


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
