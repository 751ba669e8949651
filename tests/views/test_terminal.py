import io
from datetime import datetime, timedelta

from optuna.trial import create_trial
from rich.text import Text
from snapshots import MARKUP, shown, snapshot_of, trial_of

from studyloom.storage.attributes import STANDARD_ERROR, TIMES, WORKER
from studyloom.views.consoles import make_console
from studyloom.views.live_display import LiveLines
from studyloom.views.run_details import format_times
from studyloom.views.terminal import compare_with_baseline, print_trials
from studyloom.views.terminal_lines import say


def test_a_cross_validated_value_is_shown_with_its_standard_error():
    best = trial_of(0.97254, **{STANDARD_ERROR: 0.00312})
    text = shown(compare_with_baseline(snapshot_of(best=best, baseline=trial_of(0.5)), 80))
    assert "best      value 0.9725 ± 0.0031  trial" in text
    assert text.count("±") == 2
    assert "± is the standard error of the mean over folds and seeds" in text


def test_a_console_prints_markup_verbatim(capsys):
    for name in MARKUP:
        make_console().print(name, soft_wrap=True)
        assert capsys.readouterr().out == f"{name}\n"


def test_a_terminal_gets_whole_words_and_a_pipe_whole_lines():
    words = "a study of several words in /a/path/that/is/longer/than/the/lines/are, and more"
    for terminal in (True, False):
        console = make_console(io.StringIO(), width=30, force_terminal=terminal)
        say(console, f"{words}\n\nlast", indent=4)
        lines = console.file.getvalue().splitlines()
        assert " ".join(console.file.getvalue().split()) == f"{words} last"
        assert lines[-2:] == ["", "last"]
        assert lines[:2] == (
            ["a study of several words in", f"    {words.split()[6]}"] if terminal else [words, ""]
        )


def test_lines_wrapped_by_a_narrower_terminal_are_cleared_entirely():
    console = make_console(io.StringIO(), width=80, force_terminal=True, color_system=None)
    with LiveLines(console=console, auto_refresh=False) as live:
        for width, drawn in ((80, [80, 70, 10]), (40, [40]), (80, [1])):
            console.width, before = width, len(console.file.getvalue())
            live.update(Text("\n".join("x" * cells for cells in drawn)), refresh=True)
            ups = console.file.getvalue()[before:].count("\x1b[1A")
            assert ups == {80: {3: 0, 1: 1}, 40: {1: 2 + 2 + 1}}[width][len(drawn)]


def test_the_time_of_workers_is_in_percent_with_the_wait_at_the_end():
    began = datetime(2026, 1, 1)
    ends = {"before": -60, "a": 10, "b": 20}
    trials = []
    for worker, end in ends.items():
        trial = create_trial(
            value=0.5, user_attrs={WORKER: worker, TIMES: {"training": 20.0, "start-up": 10.0}}
        )
        trial.datetime_complete = began + timedelta(seconds=end)
        trials.append(trial)
    assert format_times(trials, began) == ["training 60.0%", "start-up 30.0%", "idle 10.0%"]
    assert format_times([], began) == []


def test_a_worker_is_idle_from_its_last_end_even_after_a_promotion():
    began = datetime(2026, 1, 1)
    trials = []
    for end in (20, 10):  # the first trial waited at a rung, and was promoted
        trial = create_trial(value=0.5, user_attrs={WORKER: "a", TIMES: {"training": 10.0}})
        trial.datetime_complete = began + timedelta(seconds=end)
        trials.append(trial)
    other = create_trial(value=0.5, user_attrs={WORKER: "b", TIMES: {"training": 20.0}})
    other.datetime_complete = began + timedelta(seconds=20)
    assert format_times([*trials, other], began) == ["training 100.0%"]


def test_a_list_of_trials_breaks_lines_only_between_hyperparameters(searched):
    console = make_console(io.StringIO(), width=70, force_terminal=True, color_system=None)
    print_trials(searched, console)
    _, *lines = console.file.getvalue().splitlines()  # without the head
    assert max(map(len, lines)) <= 70
    starts = [line for line in lines if line[:5].strip()]
    assert len(starts) == 40
    assert len(lines) > 40
    further_words = {word for line in lines if line not in starts for word in line.split()}
    settings = {word for word in further_words if "=" in word}
    assert further_words - settings == {"hyperparameters", "train", "loss", "is", "nan"}
