import io
import itertools
import time
from datetime import datetime, timedelta

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from rich.console import Console
from rich.text import Text

from studyloom.storage.attributes import BASELINE, FAILURE, STANDARD_ERROR, TIMES, WORKER
from studyloom.study.stored_study import create_study, open_study
from studyloom.text import format_duration
from studyloom.views import live
from studyloom.views.live import Display
from studyloom.views.snapshot import Snapshot, WorkerStatus, take_snapshot
from studyloom.views.terminal import (
    answers_table,
    format_parameters,
    format_times,
    headline,
    make_console,
    workers_table,
)

LONG = "a-host-name-that-is-as-long-as-those-of-a-cluster-in-which-somebody-named-every-single-thing.example.org"


def shown(*renderables, width: int = 80, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    for renderable in renderables:
        console.print(renderable)
    return console.file.getvalue()


def joined(text: str) -> str:
    """What a table says, whatever was folded."""
    return "".join(text.split())


def trial_of(value=None, state=TrialState.COMPLETE, params=None, **attrs):
    params = params or {}
    distributions = {
        name: optuna.distributions.CategoricalDistribution([given])
        for name, given in params.items()
    }
    return create_trial(
        state=state, value=value, params=params, distributions=distributions, user_attrs=attrs
    )


def snapshot_of(name="toy", workers=(), best=None, baseline=None, free=3, held=0, done=5, **trials):
    return Snapshot(
        name, {"free": free, "held": held, "done": done}, trials, best, baseline, tuple(workers)
    )


@pytest.fixture
def stored(sqlite_url):
    return create_study(sqlite_url, "toy", {"asks": "nothing"}, trials=8)


@pytest.fixture
def nothing_stored(monkeypatch):
    """Displays show what they are given, and read no study."""
    monkeypatch.setattr(live, "take_snapshot", lambda stored: snapshot_of())


@pytest.fixture
def half_done(stored):
    """Eight slots: complete (the baseline), complete, pruned and failed; two running, one of them new; two free."""
    study, ledger = stored.optuna, stored.ledger
    for number, (value, state) in enumerate(
        [(0.8, "COMPLETE"), (0.9, "COMPLETE"), (None, "PRUNED"), (None, "FAIL"), (None, None)]
    ):
        trial = study.ask()
        claim = ledger.claim(f"host:{number}", 8, 60, lambda *_, trial=trial: trial._trial_id)
        trial.suggest_float("lr", 0.0, 1.0)
        if number == 0:
            trial.set_user_attr(BASELINE, True)
        if state != "FAIL":
            for step in (1, 2):
                trial.report(0.1 * step, step)
        if state is not None:
            study.tell(trial, value, TrialState[state] if value is None else None)
            ledger.finish(claim)
    ledger.claim("host:9", 8, lease=60)  # its worker has not begun a trial yet
    return stored


def test_a_study_is_taken_with_all_its_slots_trials_and_workers(half_done):
    snapshot = take_snapshot(half_done)
    assert snapshot.slots == {"free": 2, "held": 2, "done": 4}
    assert (snapshot.budget, snapshot.done) == (8, 4)
    assert snapshot.outcomes == {"complete": 2, "pruned": 1, "failed": 1, "running": 1}
    assert (snapshot.best.number, snapshot.best.value) == (1, 0.9)
    assert (snapshot.baseline.number, snapshot.baseline.value) == (0, 0.8)
    assert snapshot.workers == (WorkerStatus("host:4", 4, 2, 0.2), WorkerStatus("host:9"))


def test_a_new_study_has_neither_best_nor_baseline(stored):
    snapshot = take_snapshot(stored)
    assert (snapshot.best, snapshot.baseline, snapshot.workers, snapshot.done) == (
        None,
        None,
        (),
        0,
    )


def test_another_process_takes_the_same(half_done, sqlite_url):
    assert take_snapshot(open_study(sqlite_url, "toy")) == take_snapshot(half_done)


def test_a_second_look_sees_what_has_ended_since(half_done):
    take_snapshot(half_done)
    half_done.optuna.tell(4, 0.95)
    assert take_snapshot(half_done).best.number == 4


def test_accuracy_0_is_a_result(stored):
    stored.optuna.tell(stored.optuna.ask(), 0.0)
    assert take_snapshot(stored).best.number == 0


def test_a_pruned_trial_is_never_the_best(stored):
    trial = stored.optuna.ask()
    trial.report(0.99, 1)
    stored.optuna.tell(trial, state=TrialState.PRUNED)
    assert take_snapshot(stored).best is None


def test_a_trial_with_a_failure_has_failed_whatever_the_sampler_is_told_of_it(stored):
    trial = stored.optuna.ask()
    trial.set_user_attr(FAILURE, "diverged")
    stored.optuna.tell(trial, state=TrialState.PRUNED)
    assert take_snapshot(stored).outcomes == {"failed": 1}


def test_the_headline_counts_slots_and_trials(half_done):
    assert (
        headline(take_snapshot(half_done))
        == "toy: 4 of 8 trials – 2 complete, 1 pruned, 1 failed, 2 running"
    )
    assert (
        headline(snapshot_of(complete=5)) == "toy: 5 of 8 trials – 5 complete, 0 pruned, 0 failed"
    )


def test_a_cross_validated_value_is_shown_with_its_standard_error():
    best = trial_of(0.97254, **{STANDARD_ERROR: 0.00312})
    text = shown(answers_table(snapshot_of(best=best, baseline=trial_of(0.5)), 80))
    assert "best      value 0.9725 ± 0.0031  trial" in text
    assert text.count("±") == 1


def test_a_worker_shows_its_trial_epoch_and_value():
    workers = [
        WorkerStatus("a:1", 0, 0, 0.0, left=48.2, age=200.0),
        WorkerStatus("b:2", 17, left=-3.0, age=63.0),
    ]
    lines = shown(workers_table(snapshot_of(workers=workers), 80)).splitlines()
    assert [line.split() for line in lines] == [
        ["worker", "trial", "epoch", "value", "held", "lease"],
        ["a:1", "0", "0", "0.0000", "3", "min", "20", "s", "48", "s"],
        ["b:2", "17", "–", "–", "1", "min", "3", "s", "over"],
    ]
    assert shown(workers_table(snapshot_of(workers=workers), 40), width=40).splitlines() == [
        "trial 0  epoch 0  0.0000",
        "  a:1",
        "  held 3 min 20 s, lease 48 s",
        "trial 17  epoch –  –",
        "  b:2",
        "  held 1 min 3 s, lease over",
    ]


@pytest.mark.parametrize("width", [40, 80])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_lost(width):
    params = {f"model.some_network.a_parameter_{i}": f"value-number-{i}" for i in range(12)} | {
        "x": "y" * 300
    }
    workers = [WorkerStatus(f"{LONG}:{i}", 1234, 100, 0.5, 7200.0, 7200.0) for i in range(3)]
    snapshot = snapshot_of(
        workers=workers, best=trial_of(0.98765, params=params), baseline=trial_of(0.5)
    )
    for table in (workers_table(snapshot, width), answers_table(snapshot, width)):
        assert max(map(len, shown(table, width=width).splitlines())) <= width
    workers = shown(workers_table(snapshot, width), width=width)
    assert "…" not in workers
    assert all(word in joined(workers) for word in ("1234", "100", "2h0min"))
    assert workers.count("0.5000") == 3
    # The first column alone, where the others stand beside what is folded.
    first = joined(
        "".join(
            line[: width - 46 if width > 72 else width].rstrip() for line in workers.splitlines()
        )
    )
    assert all(f"{LONG}:{i}" in first for i in range(3)), first
    answers = joined(shown(answers_table(snapshot, width), width=width))
    assert "0.9877" in answers
    assert all(f"{name}={value}" in answers for name, value in params.items())


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


MARKUP = ["[red]x[/red]", "[/]", "a[bold]b", ":bug:", "[link=http://x]y[/link]"]


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


@pytest.mark.parametrize("name", MARKUP)
def test_the_console_of_studies_takes_no_text_for_markup(name, capsys):
    make_console().print(name, soft_wrap=True)
    assert capsys.readouterr().out == f"{name}\n"


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
    ("name", "found"), [("[red]x[bold]", "  no result yet"), ("[red]x[/red][/]", "")]
)
def test_plain_lines_show_a_name_as_it_is(monkeypatch, name, found):
    monkeypatch.setattr(live, "LINE_INTERVAL", 0.01)
    monkeypatch.setattr(live, "take_snapshot", lambda stored: snapshot_of(name))
    console = Console(file=io.StringIO(), width=40)
    with Display(lambda: None, console):
        for _ in range(200):
            if console.file.getvalue():
                break
            time.sleep(0.01)
    line = console.file.getvalue().splitlines()[0]
    assert line == f"{name}  5/8{found}  0 running  ETA –"


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
    assert display.rest(snapshot_of(free=4, done=4)) == "ETA –"
    assert display.rest(snapshot_of(free=2, held=1, done=6)) == "ETA 30 s"
    assert display.rest(snapshot_of(free=0, done=8)) == "ETA 0 s"


@pytest.mark.parametrize(
    ("duration", "words"),
    [
        (0.2, "0 s"),
        (8, "8 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (90000, "25 h 0 min"),
    ],
)
def test_a_duration_is_written_for_people(duration, words):
    assert format_duration(duration) == words


def test_parameters_are_short_and_none_is_the_configuration_as_composed():
    assert format_parameters({"optimizer.lr": 0.00123456, "model": "mlp", "n": 3}) == (
        "optimizer.lr=0.001235  model=mlp  n=3"
    )
    assert format_parameters({}) == "as composed"


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


def test_where_the_time_went_is_told_in_percent_with_the_wait_for_the_last_trial():
    began = datetime(2026, 1, 1)
    ends = {"before": -60, "a": 10, "b": 20}
    trials = []
    for worker, end in ends.items():
        trial = create_trial(
            value=0.5, user_attrs={WORKER: worker, TIMES: {"training": 20.0, "start-up": 10.0}}
        )
        trial.datetime_complete = began + timedelta(seconds=end)
        trials.append(trial)
    assert format_times(trials, began) == "training 60.0 %, start-up 30.0 %, idle 10.0 %"
    assert format_times([], began) == ""
