"""Values of trials over one and over two hyperparameters."""

from made_trials import AXIS, a_trial, numbered, over, points_of
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from studyloom.storage.attributes import PAUSED
from studyloom.views import drawn_trials
from studyloom.views.pair_figure import draw_pair
from studyloom.views.slice_figures import draw_slices, summarize_settings
from studyloom.views.trial_values import complete_trials


def test_pruned_and_paused_trials_are_squares_or_strokes_at_the_edge():
    rate = FloatDistribution(0.0, 1.0)
    ends = [(TrialState.COMPLETE, 0.9), (TrialState.COMPLETE, 0.95), (TrialState.PRUNED, 0.88)]
    ends += [(TrialState.PRUNED, 0.1), (TrialState.FAIL, 0.9), (TrialState.COMPLETE, 0.92)]
    trials = numbered(
        *(
            a_trial(n, state, value, 1, {"lr": (n / 10, rate), "x": (n / 20, rate)})
            for n, (state, value) in enumerate(ends)
        )
    )
    trials.append(a_trial(6, TrialState.RUNNING, 0.89, 1, {"lr": (0.6, rate), "x": (0.3, rate)}))
    trials[6].number, trials[6].user_attrs[PAUSED] = 6, 2
    chart = draw_slices(trials, ["lr"], trials[1], AXIS).charts["lr"]
    shapes = {(m.color, m.shape): [*m.trials] for m in chart.marks if "ramp" not in m.color}
    assert shapes == {
        ("best", "ring"): [1],
        ("pruned", "square"): [2],
        ("pruned", "rug"): [3],
        ("paused", "square"): [6],
    }
    square = next(mark for mark in chart.marks if mark.color == "pruned")
    assert points_of(square) == [(0.2, AXIS.coordinate(0.88))]
    heights = [y for mark in chart.marks for _, y in points_of(mark)]
    assert all(chart.y.low <= height <= chart.y.high for height in heights)
    drawn = {n for mark in draw_pair(trials, ["lr", "x"], AXIS).marks for n in mark.trials}
    assert drawn == {0, 1, 2, 3, 5, 6}


def test_the_table_behind_a_parameter_has_its_choices_or_ranges():
    trials = over(CategoricalDistribution(["a", "b"]), "a", "b", "a")
    assert [row[:2] for row in summarize_settings(trials, "p", 1).rows] == [("a", 2), ("b", 1)]
    many = over(FloatDistribution(0, 1), *(n / 20 for n in range(20)))
    for trial in many:
        trial.values = [trial.params["p"]]
    rows = summarize_settings(many, "p", -1).rows
    assert [row[1] for row in rows] == [5, 5, 5, 5]
    assert rows[0] == ("0 to 0.2", 5, "0.0000", "0.1000")


def test_a_slice_of_a_weak_option_has_its_own_best_and_latest_trials(monkeypatch):
    rates = FloatDistribution(1e-4, 1.0, log=True)
    many = []
    for number in range(20):
        name = "weak.lr" if number < 10 else "strong.lr"
        is_pruned = number % 2 == 0
        state = TrialState.PRUNED if is_pruned else TrialState.COMPLETE
        params = {name: (0.1, rates)}
        many.append(a_trial(number, state, 0.5 + number / 100, params=params))
    monkeypatch.setattr(drawn_trials, "MOST_BEST", 2)
    monkeypatch.setattr(drawn_trials, "MOST_LATEST", 3)
    charts = draw_slices(numbered(*many), ["weak.lr", "strong.lr"], None, AXIS).charts
    drawn = {}
    for name, chart in charts.items():
        drawn[name] = {number for mark in chart.marks for number in mark.trials}
    assert drawn == {"weak.lr": {7, 8, 9}, "strong.lr": {17, 18, 19}}


def test_the_best_and_the_latest_of_many_trials_are_drawn_in_slices(monkeypatch):
    """The axes and the table are those of all trials."""
    rates = FloatDistribution(1e-4, 1.0, log=True)
    many = []
    for number in range(20):
        params = {"lr": (10.0 ** -(number % 4), rates)}
        many.append(a_trial(number, accuracy=0.9 - number / 100, params=params))
    trials = numbered(*many)
    all_drawn = draw_slices(trials, ["lr"], trials[7], AXIS).charts["lr"]
    monkeypatch.setattr(drawn_trials, "MOST_BEST", 2)
    monkeypatch.setattr(drawn_trials, "MOST_LATEST", 3)
    chart = draw_slices(trials, ["lr"], trials[7], AXIS).charts["lr"]
    assert {number for mark in chart.marks for number in mark.trials} == {0, 1, 7, 17, 18, 19}
    assert (chart.x, chart.y, chart.table) == (all_drawn.x, all_drawn.y, all_drawn.table)


def test_complete_trials_are_points_over_one_and_two_hyperparameters(
    searched,
):
    trials = complete_trials(searched.trials())
    charts = draw_slices(trials, ["model", "lr", "cnn.channels"], trials[-1], AXIS).charts
    for name, chart in charts.items():
        own = [trial.number for trial in trials if name in trial.params]
        dots = sorted(n for mark in chart.marks if mark.shape == "dot" for n in mark.trials)
        assert dots == own
    assert charts["lr"].x.kind == "tens"
    assert isinstance(draw_pair(trials, ["cnn.channels", "mlp.momentum"], AXIS), str)
    figure = draw_pair(trials, ["cnn.channels", "model", "mlp.momentum", "lr"], AXIS)
    titles = {figure.x.title, figure.y.title}
    assert titles == {"mlp.momentum", "lr, log"}, "two numbers, if there are"
