import io
import time

import pytest
from rich.console import Console
from snapshots import LONG, joined, shown, snapshot_of, trial_of

from studyloom.views import live_display
from studyloom.views.estimate import Work
from studyloom.views.live_display import Display, LinePrinter
from studyloom.views.progress import Progress, StageProgress
from studyloom.views.progress_reader import ProgressReader
from studyloom.worker.stopping import Stop


def progress_of(snapshot, **more):
    stage = StageProgress("search", snapshot.done, snapshot.left, snapshot)
    return Progress(snapshot, (stage,), "search", **more)


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize(("width", "name"), [(40, "n" * 200), (60, "toy"), (80, "toy")])
def test_the_live_display_fits_the_terminal_and_keeps_the_numbers(name, width):
    display = Display(lambda: None, Console(file=io.StringIO(), width=width))
    best = trial_of(0.98765, params={LONG: 0.5, "lr": 0.25})
    snapshot = snapshot_of(name, best=best, free=35, done=5, pruned=4)
    works = [Work(done=30, remaining=[10.0], new_trials=3, new_length=20.0)]
    progress = progress_of(snapshot, eta=7500.0, elapsed=8.0, works=works)
    text = shown(display.render(progress), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "search:5of40trials,4pruned" in joined(text)
    assert all(word in text for word in ("0.9877", "complete", " 30%")), text
    assert ("0.25" in text) is (width > 40)
    assert "elapsed8s,ETA2h5min,at" in joined(text)
    assert name in joined(text)
    assert LONG not in text, "a column that does not fit is left out"


@pytest.mark.parametrize("kind", ["pipe", "terminal", "dumb"])
def test_a_study_is_displayed_while_it_runs(half_done, monkeypatch, kind):
    monkeypatch.setenv("TERM", "dumb" if kind == "dumb" else "xterm")
    monkeypatch.setattr(live_display, "LINE_INTERVAL", 0.01)
    monkeypatch.setattr(live_display, "LIVE_INTERVAL", 0.01)
    terminal = kind != "pipe"
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal, color_system=None)
    read, answers = ProgressReader(half_done).read, iter([RuntimeError("database is locked")])

    def busy():
        if (error := next(answers, None)) is not None:
            raise error
        return read()

    progresses = []
    with Display(busy, console, listeners=[progresses.append]):
        half_done.optuna.tell(4, 0.95)
        until(lambda: "search: 5 of 8 trials" in console.file.getvalue())
    text = console.file.getvalue()
    assert progresses[-1].search.best.value == 0.95
    assert "search: 5 of 8 trials" in text
    assert ("\x1b" in text) is (kind == "terminal")


def test_a_line_is_printed_after_a_change_and_else_once_a_minute(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(live_display.time, "monotonic", lambda: clock[0])
    console = Console(file=io.StringIO(), width=80)
    lines, times = LinePrinter(console, live_display.LINE_INTERVAL), []
    for second in range(200):
        clock[0] = float(second)
        done = 5 if second < 50 else 6
        before = console.file.getvalue()
        progress = progress_of(snapshot_of(done=done), eta=float(second))
        lines.show(progress.line, progress)
        if console.file.getvalue() != before:
            times.append(second)
    assert times == [5, 50, 110, 170]


@pytest.mark.parametrize("interval", [0.01, 60.0])
def test_a_signal_is_reported_even_just_before_the_end(half_done, monkeypatch, interval):
    """It stands above what is drawn anew; in a minute no look comes in between."""
    monkeypatch.setattr(live_display, "LIVE_INTERVAL", interval)
    monkeypatch.setattr(live_display, "TICK", max(interval, live_display.TICK))
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    stop, message = Stop(), "stopping; once more stops at once\n"
    with Display(ProgressReader(half_done).read, console, stop):
        until(lambda: stop.is_shown)  # so that the handler prints nothing into the drawing
        stop.signal = 2
        if interval < 1:
            until(lambda: message in console.file.getvalue())
    assert console.file.getvalue().count(message) >= 1
    assert not stop.is_shown
