"""Parallel coordinates: each trial is a line through its hyperparameters to its value."""

import pytest
from made_trials import a_trial
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from studyloom.views import drawn_trials
from studyloom.views.axes import Axis
from studyloom.views.drawn_trials import describe_selection
from studyloom.views.parallel_figure import NOT_USED, NOTHING, draw_parallel

RATE = FloatDistribution(1e-4, 1e-1, log=True)
WIDTH = IntDistribution(4, 256)
MODEL = CategoricalDistribution(["mlp", "cnn"])
AXIS = Axis("accuracy", "plain", 1)


def numbered(trials):
    """Gives trials that are in no study their numbers."""
    for number, trial in enumerate(trials):
        trial.number = number
    return trials


def make_trials():
    """Four trials; the value grows with the learning rate, and only one option has a width."""
    trials = []
    for number, rate in enumerate((1e-4, 1e-3, 1e-2, 1e-1)):
        params = {"optimizer.lr": (rate, RATE), "model": ("cnn", MODEL)}
        if number < 2:
            params = params | {
                "model": ("mlp", MODEL),
                "model.mlp.width": (4 + 252 * number, WIDTH),
            }
        state = TrialState.COMPLETE
        if number == 1:
            state = TrialState.PRUNED
        trials.append(a_trial(number, state, 0.5 + number / 10, params=params))
    return numbered(trials)


def lines_of(chart):
    """The line of each trial, by its number."""
    lines = {}
    for mark in chart.marks:
        for number, part in zip(mark.trials, mark.parts, strict=False):
            lines[number] = part
    return lines


def test_a_line_passes_each_axis_at_the_share_of_its_range():
    names = ["optimizer.lr", "model.mlp.width"]
    trials = make_trials()
    chart = draw_parallel(trials, names, trials[3], AXIS)
    lines = lines_of(chart)
    assert lines.keys() == {0, 1, 2, 3}
    rates = [lines[number][0][1] for number in range(4)]
    assert rates == pytest.approx([0, 1 / 3, 2 / 3, 1])  # on a logarithmic axis
    widths = [lines[number][1][1] for number in range(4)]
    assert widths == [0, 1, NOT_USED, NOT_USED]
    values = [lines[number][2][1] for number in range(4)]
    assert values == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert [tick.label for tick in chart.x.ticks] == ["learning rate", "width", "accuracy"]
    labels = {(note.x, note.text) for note in chart.notes}
    assert {(0, "1e-4"), (0, "0.1"), (1, "4"), (1, "256"), (2, "0.5"), (2, "0.8")} == labels


def test_choices_have_places_of_their_own_and_all_are_named():
    trials = make_trials()
    chart = draw_parallel(trials, ["model"], None, AXIS)
    lines = lines_of(chart)
    places = [lines[number][0][1] for number in range(4)]
    assert max(places[2:]) < 0.5 < min(places[:2])
    assert len({*places}) == 4, "those of one choice do not hide each other"
    assert [note.text for note in chart.notes if note.x == 0] == ["cnn", "mlp"]


def test_colors_say_how_good_a_trial_is_and_whether_it_ended_early():
    trials = make_trials()
    chart = draw_parallel(trials, ["optimizer.lr"], trials[3], AXIS)
    colors = [(mark.color, [*mark.trials]) for mark in chart.marks if mark.trials]
    assert colors[0] == ("pruned", [1])
    assert [numbers for color, numbers in colors if color.startswith("ramp")] == [[0], [2], [3]]
    assert colors[-1] == ("best", [3])


def test_of_many_trials_the_best_and_the_latest_are_drawn(monkeypatch):
    monkeypatch.setattr(drawn_trials, "MOST_BEST", 2)
    monkeypatch.setattr(drawn_trials, "MOST_LATEST", 2)
    params = [{"optimizer.lr": (10.0**-exponent, RATE)} for exponent in (1, 2, 3, 4, 1, 2)]
    values = (0.9, 0.8, 0.1, 0.1, 0.2, 0.3)
    trials = numbered([a_trial(n, accuracy=values[n], params=params[n]) for n in range(6)])
    chart = draw_parallel(trials, ["optimizer.lr"], None, AXIS)
    assert lines_of(chart).keys() == {0, 1, 4, 5}
    assert "best 2 and the latest 2 trials" in describe_selection(len(trials))
    assert describe_selection(4) == ""


def test_without_values_or_hyperparameters_a_sentence_says_so():
    trials = make_trials()
    assert draw_parallel(trials[:2], ["optimizer.lr"], None, AXIS) == NOTHING
    assert draw_parallel(trials, [], None, AXIS) == NOTHING
    assert draw_parallel(trials, ["unknown"], None, AXIS) == NOTHING
