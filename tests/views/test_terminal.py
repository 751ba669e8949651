import io
from dataclasses import replace
from datetime import datetime, timedelta

from optuna.trial import create_trial
from results import result_of
from rich.text import Text
from snapshots import MARKUP, shown, snapshot_of, trial_of

from studyloom.storage.attributes import STANDARD_ERROR, TIMES, WORKER
from studyloom.views.terminal import (
    LiveLines,
    compare_with_baseline,
    describe_winner,
    format_times,
    make_console,
    say,
)


def test_a_cross_validated_value_is_shown_with_its_standard_error():
    best = trial_of(0.97254, **{STANDARD_ERROR: 0.00312})
    text = shown(compare_with_baseline(snapshot_of(best=best, baseline=trial_of(0.5)), 80))
    assert "best      value 0.9725 ± 0.0031  trial" in text
    assert text.count("±") == 2
    assert "± is the standard error of the mean over folds and seeds" in text


def lines_of(examples, covers, values):
    """The lines of a tested winner."""
    summary = {"mean": 0.17, "values": values, "interval": (0.159, 0.181)}
    test = {"winner": summary, "examples": examples, "covers": covers}
    winner = {"mean": 0.16, "values": [0.15, 0.17], "gap": 0.0}
    return "\n".join(describe_winner(result_of(test=test, winner=winner, seeds=[1, 2])))


def test_an_interval_over_examples_names_the_number_of_seeds():
    """The values of two seeds may lie outside of it."""
    few = lines_of(1000, "examples", [0.221, 0.119])
    assert "0.1700 (0.2210 and 0.1190)" in few
    mean = "95% interval of the winner's mean 0.1590 to 0.1810 over"
    assert f"{mean} examples, for the mean of these 2 seeds only" in few
    assert f"{mean} examples\n" in lines_of(1000, "examples", [0.17]) + "\n"
    assert f"{mean} seeds and examples" in lines_of(1000, "seeds and examples", [0.1, 0.2, 0.21])


def test_new_validation_splits_are_mentioned_only_if_there_are_some():
    assert "on new seeds and validation splits" in lines_of(1000, "examples", [0.17])
    own = lines_of(None, "seeds", [0.16, 0.17, 0.18])
    assert "on new seeds" in own
    assert "validation parts" not in own


def test_a_console_prints_markup_verbatim(capsys):
    for name in MARKUP:
        make_console().print(name, soft_wrap=True)
        assert capsys.readouterr().out == f"{name}\n"


def test_best_trial_and_winner_are_printed_with_why_they_differ():
    two = [{"trial": 1, "search_value": 0.98, "mean": 0.95, "values": [0.95] * 3}]
    two += [{"trial": 2, "search_value": 0.97, "mean": 0.96, "values": [0.96] * 3}]
    won = result_of(winner=two[1], candidates=two, seeds=[1, 2, 3])
    why = "since it had the best mean on 3 new seeds"
    assert next(describe_winner(won, 1)) == f"best of the search: trial 1; winner: trial 2, {why}"
    ruled = replace(
        result_of(winner=two[0], candidates=two, seeds=[1]), rule="max accuracy where …"
    )
    assert (
        next(describe_winner(ruled)) == "winner: trial 1, by max accuracy where …, on 3 new seeds"
    )
    kept = result_of(winner=two[0] | {"baseline": True}, candidates=two, seeds=[1])
    assert "beats the baseline by no more than chance" in next(describe_winner(kept))
    alone = result_of(test={"winner": {"mean": 0.5}}, seeds=[1])
    assert next(describe_winner(alone)) == "winner: trial 0, the only candidate"


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
