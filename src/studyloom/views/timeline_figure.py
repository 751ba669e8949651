"""The timeline of a search: a row for each worker, with a bar for each trial that began there."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from optuna.trial import FrozenTrial

from studyloom.storage.trial_record import INTERRUPTED, TrialRecord, shown_state
from studyloom.text import format_duration, shorten
from studyloom.views import axes, charts
from studyloom.views.drawn_trials import color_of_outcome
from studyloom.views.worked_time import Period

BARS = ("complete", "pruned", "failed", "paused", INTERRUPTED, "running")  # order of the timeline
MINUTE = 60  # seconds
DAY = 86_400  # seconds
BAR = 0.32  # the share of a row that a worker's bar takes


def draw_timeline(
    trials: Sequence[FrozenTrial], live_trials: Collection[int | None]
) -> charts.Chart | str:
    """Draws a row for each worker, with a bar for each trial that began there.

    Args:
        live_trials: the numbers of the trials that living workers hold. Their bars end now; those
            of other unfinished trials end at the latest time stored with any trial.
    """
    periods_by_worker = _measure_periods(trials, live_trials)
    if not periods_by_worker:
        return "No trial has begun yet."
    workers = sorted(periods_by_worker, reverse=True)  # rows are drawn from the bottom up
    all_periods: list[Period] = []
    for periods_by_trial in periods_by_worker.values():
        all_periods += periods_by_trial.values()
    start = min(period.start for period in all_periods)
    end = max(period.end for period in all_periods)

    bars: dict[int, charts.Part] = {}  # the lower corners of each trial's bar, by number
    notes = []
    rows: list[tuple[object, ...]] = []
    for row, worker in enumerate(workers):
        periods = [*periods_by_worker[worker].values()]
        for number, period in periods_by_worker[worker].items():
            left = Period(start, period.start).seconds
            right = Period(start, period.end).seconds
            bars[number] = [(left, row), (right, row)]
        idle = f"{100 * idle_share(periods):.1f}%"
        notes.append(
            charts.Note(0, row + BAR + 0.02, f"{shorten(worker, 32)} · {idle} idle", "above")
        )
        trained = format_duration(sum(period.seconds for period in periods))
        rows.append((worker, len(periods), trained, idle))
    rows.reverse()  # the table has the top row first
    outcomes = {trial.number: shown_state(trial, live_trials) for trial in trials}
    marks = _mark_bars(bars, outcomes)
    x = _make_clock_scale(start, max(Period(start, end).seconds, 1.0))
    y = axes.ChartScale(
        -0.12, len(workers) - 0.12, kind="none"
    )  # a little space below the first row
    label = f"when each of {len(workers)} workers trained which trial"
    table = charts.PageTable(("worker", "trials", "trained for", "idle"), rows, text_columns=(0,))
    return charts.Chart(
        label, charts.ROW_HEIGHT * len(workers) + 8, x, y, charts.without_empty(marks), table, notes
    )


def _mark_bars(bars: Mapping[int, charts.Part], outcomes: Mapping[int, str]) -> list[charts.Mark]:
    """Returns the bars of the timeline, a mark for each outcome of trials.

    Args:
        bars: the lower corners of each trial's bar, by number.
    """
    marks = []
    for outcome in BARS:
        numbers = [number for number in bars if outcomes[number] == outcome]
        parts = [bars[number] for number in numbers]
        marks.append(
            charts.Mark(outcome, color_of_outcome(outcome), "bar", parts, numbers, width=BAR)
        )
    return marks


def _make_clock_scale(start: datetime, length: float) -> axes.ChartScale:
    """Returns a horizontal axis of seconds since a moment, with labels of the clock."""
    if length < 10 * MINUTE:
        pattern = "%H:%M:%S"
    elif length < DAY:
        pattern = "%H:%M"
    else:
        pattern = "%d %b %H:%M"
    ticks = []
    for part in range(6):
        seconds = length * part / 5
        moment = start + timedelta(seconds=seconds)
        ticks.append(axes.Tick(seconds, moment.strftime(pattern)))
    return axes.ChartScale(0.0, length, axes.fit_labels(ticks, 0.0, length), kind="none")


def _measure_periods(
    trials: Sequence[FrozenTrial], live_trials: Collection[int | None]
) -> dict[str, dict[int, Period]]:
    """Returns the time that each trial was trained, by the worker that began it and by number.

    The time of other workers that have resumed the trial counts for the one that began it.

    Args:
        live_trials: the numbers of the trials that are trained now.
    """
    latest = _find_latest_moment(trials)
    periods: dict[str, dict[int, Period]] = {}
    for trial in trials:
        start = trial.datetime_start
        if start is None:
            continue
        end = trial.datetime_complete
        if end is None and trial.number in live_trials:
            end = max(datetime.now(), start)
        elif end is None:
            end = latest
        record = TrialRecord(trial)
        if record.rungs:
            # The trial may have paused at a rung, an epoch at which the pruner compares trials. Its
            # bar shows only the time that workers spent on it, with their start-up and waits.
            worked = timedelta(seconds=sum(record.times.values()))
            if worked:
                end = min(end, start + worked)
        worker = str(record.worker or "unknown worker")
        periods.setdefault(worker, {})[trial.number] = Period(start, end)
    return periods


def _find_latest_moment(trials: Sequence[FrozenTrial]) -> datetime:
    """Returns the latest time at which a trial began or ended."""
    latest = datetime.min
    for trial in trials:
        start = trial.datetime_start
        if start is not None:
            latest = max(latest, start, trial.datetime_complete or start)
    return latest


def idle_share(periods: Sequence[Period]) -> float:
    """Computes the share of time without a trial between the first start and the last end.

    Periods may overlap: each adds only its time after the end of all periods before it.
    """
    start = min(period.start for period in periods)
    end = start  # the latest end of the periods so far
    busy = 0.0
    for period in sorted(periods, key=lambda period: (period.start, period.end)):
        not_counted = Period(max(period.start, end), period.end)
        busy += max(0.0, not_counted.seconds)
        end = max(end, period.end)
    total = Period(start, end).seconds
    if total == 0:
        return 0.0
    return 1 - busy / total
