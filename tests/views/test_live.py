import io
import itertools
import time

import pytest
from rich.console import Console
from rich.text import Text
from snapshots import LONG, MARKUP, joined, shown, snapshot_of, trial_of

from studyloom.views import live
from studyloom.views.live import Display
from studyloom.views.snapshot import WorkerStatus
from studyloom.views.terminal import (
    answers_table,
    headline,
)


@pytest.fixture
def nothing_stored(monkeypatch):
    """Displays show a fixed snapshot, and read no study."""
    monkeypatch.setattr(live, "take_snapshot", lambda stored: snapshot_of())


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("name", ["toy", "n" * 200])
def test_the_live_display_fits_the_terminal_and_keeps_the_numbers(nothing_stored, name, width):
    display = Display(lambda: None, Console(file=io.StringIO(), width=width))
    snapshot = snapshot_of(
        name, [WorkerStatus(f"{LONG}:1", 3, 2, 0.25)], best=trial_of(0.98765), free=35, done=5
    )
    text = shown(display.render(snapshot), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert all(word in text for word in ("5/40", "best 0.9877 trial -1", "ETA –", "0.2500"))
    assert "…" not in text
    assert joined(f"{LONG}:1") in joined(text) or width > 72
    assert name in joined(text)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("name", MARKUP)
def test_names_and_values_are_shown_as_text_and_not_as_markup(nothing_stored, name, terminal):
    best = trial_of(0.9, params={f"model.{name}": name})
    snapshot = snapshot_of(name, [WorkerStatus(name, 1)], best=best, baseline=trial_of(0.8))
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal, color_system=None)
    console.print(Text(headline(snapshot)))
    console.print(answers_table(snapshot, 100))
    display = Display(lambda: None, console)
    console.print(display.render(snapshot))
    text = console.file.getvalue()
    assert f"{name}: 5 of 8 trials" in text
    assert f"model.{name}={name}" in text
    assert (
        text.count(name) == 5
    )  # headline, both sides of the parameter; name and worker while it runs


@pytest.mark.parametrize("terminal", [False, True])
def test_a_study_is_watched_while_it_is_worked_on(half_done, monkeypatch, terminal):
    monkeypatch.setattr(live, "LINE_INTERVAL", 0.01)
    monkeypatch.setattr(live, "REFRESH", 0.01)
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal, color_system=None)
    with Display(lambda: half_done, console):
        half_done.optuna.tell(4, 0.95)
        for _ in range(200):
            if "0.9500" in console.file.getvalue():
                break
            time.sleep(0.01)
    assert "best 0.9500" in console.file.getvalue()
    assert "4/8" in console.file.getvalue()


@pytest.mark.parametrize(
    ("name", "result"), [("[red]x[bold]", "  no result yet"), ("[red]x[/red][/]", "")]
)
def test_plain_lines_show_a_name_as_it_is(monkeypatch, name, result):
    monkeypatch.setattr(live, "LINE_INTERVAL", 0.01)
    monkeypatch.setattr(live, "take_snapshot", lambda stored: snapshot_of(name))
    console = Console(file=io.StringIO(), width=40)
    with Display(lambda: None, console):
        for _ in range(200):
            if console.file.getvalue():
                break
            time.sleep(0.01)
    line = console.file.getvalue().splitlines()[0]
    assert line == f"{name}  5/8{result}  0 running  ETA –"


def test_a_database_that_is_busy_now_is_looked_at_again(nothing_stored, monkeypatch):
    display = Display(lambda: None, Console(file=io.StringIO()))
    answers = itertools.chain([RuntimeError("database is locked")], itertools.repeat(snapshot_of()))

    def busy(stored):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(live, "take_snapshot", busy)
    assert display._take() is None
    assert display._take() == snapshot_of()


def test_the_remaining_time_is_that_of_the_open_slots_at_the_pace_of_this_run(monkeypatch):
    monkeypatch.setattr(live, "take_snapshot", lambda stored: snapshot_of(free=4, done=4))
    display = Display(lambda: None, Console(file=io.StringIO()))
    monkeypatch.setattr(time, "monotonic", lambda: display.started + 20)
    assert display.time_left(snapshot_of(free=4, done=4)) == "ETA –"
    assert display.time_left(snapshot_of(free=2, held=1, done=6)) == "ETA 30 s"
    assert display.time_left(snapshot_of(free=0, done=8)) == "ETA 0 s"


@pytest.mark.parametrize(("name", "seen"), [("toy", True), ("toy/retraining", False)])
def test_no_best_is_told_of_the_trainings_of_what_was_found(nothing_stored, name, seen):
    snapshot = snapshot_of(name, best=trial_of(1.0))
    display = Display(lambda: None, Console(file=io.StringIO()))
    assert ("best" in display.line(snapshot)) == seen
    assert ("best" in shown(display.render(snapshot))) == seen


def test_a_display_goes_along_from_one_study_to_the_next(monkeypatch):
    studies = iter(
        [
            snapshot_of(name="search"),
            snapshot_of(name="search"),
            snapshot_of(name="search/re-evaluation"),
        ]
    )
    monkeypatch.setattr(live, "take_snapshot", lambda stored: next(studies))
    display = Display(lambda: None, Console(file=io.StringIO()))
    began = display.started
    assert display._take().name == "search"
    assert display.started == began
    assert display._take().name == "search/re-evaluation"
    assert display.started > began
