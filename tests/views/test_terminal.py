from datetime import datetime, timedelta

from optuna.trial import create_trial
from results import result_of
from snapshots import MARKUP, shown, snapshot_of, trial_of

from studyloom.storage.attributes import STANDARD_ERROR, TIMES, WORKER
from studyloom.views.snapshot import WorkerStatus
from studyloom.views.terminal import (
    compare_with_baseline,
    format_times,
    make_console,
    winner_lines,
    workers_table,
)


def test_a_cross_validated_value_is_shown_with_its_standard_error():
    best = trial_of(0.97254, **{STANDARD_ERROR: 0.00312})
    text = shown(compare_with_baseline(snapshot_of(best=best, baseline=trial_of(0.5)), 80))
    assert "best      value 0.9725 ± 0.0031  trial" in text
    assert text.count("±") == 2
    assert "± is the standard error of the mean over folds and seeds" in text


def test_a_worker_shows_its_trial_epoch_and_value():
    workers = [
        WorkerStatus("a:1", 0, 0, value=0.0, lease=48.2, held=200.0),
        WorkerStatus("b:2", 17, lease=-3.0, held=63.0),
    ]
    snapshot = snapshot_of(workers=workers)
    lines = shown(workers_table(snapshot, 80)).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "worker trial epoch value for",
        "a:1 0 0 0.0000 3 min 20 s expires in 48 s",
        "b:2 17 – – 1 min 3 s expired",
    ]
    assert shown(workers_table(snapshot, 40), width=40).splitlines()[3:] == [
        "trial 17  epoch –  –",
        "  b:2",
        "  for 1 min 3 s, expired",
    ]


def lines_of(examples, covers, values):
    """The lines of a tested winner."""
    summary = {"mean": 0.17, "values": values, "interval": (0.159, 0.181)}
    test = {"winner": summary, "examples": examples, "covers": covers}
    winner = {"mean": 0.16, "values": [0.15, 0.17], "gap": 0.0}
    return "\n".join(winner_lines(result_of(test=test, winner=winner, seeds=[1, 2])))


def test_an_interval_over_examples_says_of_how_many_seeds_it_has_the_mean():
    """The values of two seeds may lie outside of it."""
    few = lines_of(1000, "examples", [0.221, 0.119])
    assert "0.1700 (0.2210 and 0.1190)" in few
    mean = "95% interval of the winner's mean 0.1590 to 0.1810 over"
    assert f"{mean} examples, for the mean of these 2 seeds only" in few
    assert f"{mean} examples\n" in lines_of(1000, "examples", [0.17]) + "\n"
    assert f"{mean} seeds and examples" in lines_of(1000, "seeds and examples", [0.1, 0.2, 0.21])


def test_validation_parts_are_fresh_only_where_the_data_are_divided_for_the_study():
    assert "on new seeds and validation splits" in lines_of(1000, "examples", [0.17])
    own = lines_of(None, "seeds", [0.16, 0.17, 0.18])
    assert "on new seeds" in own
    assert "validation parts" not in own


def test_the_console_of_studies_takes_no_text_for_markup(capsys):
    for name in MARKUP:
        make_console().print(name, soft_wrap=True)
        assert capsys.readouterr().out == f"{name}\n"


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
    assert format_times(trials, began) == ["training 60.0%", "start-up 30.0%", "idle 10.0%"]
    assert format_times([], began) == []
