import itertools
import math
import re
from dataclasses import replace
from datetime import datetime, timedelta

import numpy
import pytest
from made_trials import AXIS, BEGAN, a_trial
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from results import result_of
from toys import fill, two_sided

from studyloom.metrics import ObjectiveValue
from studyloom.storage.attributes import EPOCHS, PAUSED
from studyloom.views import drawn_trials, figures
from studyloom.views.charts import (
    LETTER,
    SIZE,
    Axis,
    ChartScale,
    PageTable,
    Tick,
    choose_log_numbers,
    choose_round_numbers,
    fit_labels,
    make_integer_scale,
    make_linear_scale,
    make_log_scale,
)
from studyloom.views.figures import (
    Span,
    complete_trials,
    draw_curves,
    draw_history,
    draw_losses,
    draw_pair,
    draw_slices,
    draw_timeline,
    idle_share,
    make_setting_axis,
    name_losses_section,
    summarize_settings,
)
from studyloom.views.page import make_section
from studyloom.views.snapshot import take_snapshot


def mark_of(figure, name):
    return next(mark for mark in figure.marks if mark.name == name)


def marked(best=None, baseline=None):
    return {"best": best, "baseline": baseline}


def points_of(mark):
    return [point for part in mark.parts for point in part]


def numbered(*trials):
    for number, trial in enumerate(trials):
        trial.number = number
    return [*trials]


def over(distribution, *settings):
    """A complete trial for each setting of a parameter p."""
    asked = {"p": distribution}
    return numbered(
        *(create_trial(value=0.5, params={"p": each}, distributions=asked) for each in settings)
    )


def test_axes_have_round_marks_in_their_range_and_equal_values_have_one():
    for low, high in ((0.1, 0.97), (0.917, 0.9725), (0.96, 0.961), (0.0, 1.0), (0.999, 0.9999)):
        marks = AXIS.choose_numbers(low, high)
        assert 3 <= len(marks) <= 18
        assert all(low <= mark <= high for mark in marks)
        assert marks == sorted({*marks})
    for low, high in ((1e-6, 1e-1), (0.001, 0.009), (0.0021, 0.0029), (16, 512)):
        marks = choose_log_numbers(low, high)
        assert 1 <= len(marks) <= 4
        assert all(low <= value <= high for value in marks)
    edges = [ChartScale(0, 1).edge_class(Tick(at, "00:48")) for at in (0, 0.5, 1)]
    assert edges == [" first", "", " last"], "a time does not stick out of its figure"
    for scale in (make_linear_scale([0.5]), AXIS.make_scale([1.0], 300), make_integer_scale(3, 3)):
        assert scale.low < scale.high
        assert scale.ticks
        assert all(scale.low <= tick.coordinate <= scale.high for tick in scale.ticks)


@pytest.mark.parametrize("value", [0.9300000012345678, 1e-9 / 3, 123456789.123, 0.5, 1.0])
def test_values_that_differ_in_their_last_bits_are_one_value_of_an_axis(value):
    single = numpy.nextafter(numpy.float32(value), numpy.float32(numpy.inf))
    for other in (math.nextafter(value, math.inf), float(single)):
        values = sorted((value, other))
        scales = [
            make_linear_scale(values),
            make_linear_scale(values, upright=True),
            make_log_scale(values),
        ]
        drawn = [[scale.place(each) for each in values] for scale in scales[:2]]
        drawn.append([scales[2].place(math.log10(each)) for each in values])
        for kind in ("plain", "factors", "unit"):
            axis = Axis("error", kind, -1)
            assert axis.drop_outliers([*9 * [value], other]) == sorted([*9 * [value], other])
            scales.append(axis.make_scale(values, 300))
            drawn.append([scales[-1].place(axis.coordinate(each)) for each in values])
        for scale, places in zip(scales, drawn, strict=True):
            assert max(places) - min(places) < 0.1
            assert all(-1 <= scale.place(tick.coordinate) <= SIZE + 1 for tick in scale.ticks)


def test_close_values_have_labels_that_differ():
    for values in ([0.93, 0.93001], [123456.0, 123457.0], [-1e-9, -1.00002e-9]):
        for scale in (
            make_linear_scale(values, upright=True),
            Axis("m", "plain", 1).make_scale(values, 300),
        ):
            labels = [tick.label for tick in scale.ticks]
            assert len({*labels}) == len(labels) >= 2
            assert all(0 <= scale.place(float(label.replace("−", "-"))) <= SIZE for label in labels)


def test_integers_have_integer_labels_and_accuracies_a_logarithmic_axis():
    for count in (1, 7, 40, 12345):
        labels = [tick.label for tick in make_integer_scale(0, count).ticks]
        assert all(label.isdigit() for label in labels)
        assert 1 <= len(labels) <= 14
    trials = over(IntDistribution(1, 3), 1, 2, 3)
    for pixels in (None, 124):
        assert [t.label for t in make_setting_axis(trials, "p", pixels).scale.ticks] == [
            "1",
            "2",
            "3",
        ]
    assert [AXIS.coordinate(value) for value in (0.0, 0.9, 0.99)] == pytest.approx([0, 1, 2])
    assert AXIS.coordinate(-0.01) < 0
    assert AXIS.coordinate(1.0) == AXIS.coordinate(1.1) < 5


def test_a_logarithmic_axis_says_so_and_has_a_number_near_the_best_value():
    scale = Axis("loss", "factors", -1).make_scale((1.0645, 37.0, 5.0), 320)
    assert scale.title == "loss, less is better, log"
    assert [tick.label for tick in scale.ticks] == ["1", "3", "10", "30"]
    assert Axis("accuracy", "plain", 1).make_scale((1, 2), 320).title == "accuracy, more is better"


def test_an_unknown_loss_that_differs_by_factors_has_a_logarithmic_axis():
    def scale(*values, metric="distance", sign=-1):
        return Axis.choose(metric, sign, values).scale

    assert scale(57.0, 1.2, 1.0, 0.9) == "factors"
    for plain in ((), (2.0, 1.0), (57.0, 0.0), (57.0, -1.0)):
        assert scale(*plain) == "plain"
    assert scale(57.0, 1.2, sign=1) == "plain", "there the best are far from 0"
    assert scale(0.5, 0.9, metric="accuracy", sign=1) == "unit"
    assert scale(0.5, 90.0, metric="accuracy", sign=1) == "plain", "a loop may return percent"
    assert scale(0.5, -90.0, metric="mse") == "plain"


@pytest.mark.parametrize("least", [1.0, -0.1])
def test_a_few_far_worse_trials_are_strokes_at_the_edge_of_the_history(least):
    values = [57.0, *(least + 0.3 - n / 100 for n in range(30))]
    for sign in (-1, 1):
        trials = numbered(*(a_trial(n, accuracy=-sign * v) for n, v in enumerate(values)))
        axis = Axis.choose("distance", sign, [trial.value for trial in trials])
        figure = draw_history(trials, marked(trials[-1], trials[0]), axis)
        (line,) = mark_of(figure, "best so far").parts
        places = [figure.y.place(y) for _, y in line]
        assert max(places) - min(places) > SIZE / 2
        (far,) = (mark for mark in figure.marks if mark.shape == "rug")
        assert (far.color, far.trials) == ("complete", [0])
        assert points_of(far) == [(0, figure.y.high if sign < 0 else figure.y.low)]
        assert "baseline" not in figure.names()
        value = f"{-sign * 57:.4f}".replace("-", "−")
        assert figure.table.note == f"The baseline has {value}."


def test_the_history_has_the_values_of_the_baseline_on_new_seeds(searched):
    trials = searched.trials()
    baseline = {"trial": 0, "baseline": True, "mean": 0.91, "values": [0.91]}
    won = {"trial": 37, "mean": 0.95, "values": [0.95]}
    test = {"winner": {"mean": 0.96}, "baseline": {"mean": 0.93}}
    result = result_of(winner=won, candidates=[baseline, won], test=test)
    figure = draw_history(trials, marked(trials[37], trials[0]), AXIS, result)
    baselines = [mark for mark in figure.marks if mark.color == "baseline"]
    assert [mark.hint for mark in baselines] == ["", "baseline, re-evaluation", "baseline, test"]
    lines = [mark.parts[0] for mark in baselines]
    search, reevaluation, final = [(ends[0][0], ends[1][0], ends[0][1]) for ends in lines]
    assert [y for _, _, y in (search, reevaluation, final)] == [
        AXIS.coordinate(value) for value in (0.9, 0.91, 0.93)
    ]
    assert search[1] <= reevaluation[1] <= final[0] < final[1] <= figure.x.high
    without_winner = draw_history(
        trials, marked(trials[37], trials[0]), AXIS, result_of(winner=baseline, test=test)
    )
    assert sum(mark.color == "baseline" for mark in without_winner.marks) == 1


def test_no_two_labels_of_an_axis_overlap_on_a_phone_or_a_wide_screen():
    for low, high in ((0, 1), (0.1, 0.97), (1e-9, 3e-9), (-12345, 98765), (0.123, 0.1231)):
        ticks = [Tick(mark, f"{mark:.10g}") for mark in choose_round_numbers(low, high, 40)]
        shown = fit_labels(ticks, low, high)
        for screen, pixels in (("narrow", 280), ("roomy", 860)):
            own = [tick for tick in shown if tick.when in ("", screen)]
            assert own
            for left, right in itertools.pairwise(own):
                width = LETTER * (len(left.label) + len(right.label)) / 2
                assert (right.coordinate - left.coordinate) / (high - low) * pixels >= width


def test_a_curve_of_one_epoch_is_a_point_within_its_axis():
    figure = draw_curves(numbered(a_trial(0, epochs=0), a_trial(1, epochs=0)), marked(), AXIS)
    assert [(mark.name, mark.shape) for mark in figure.marks] == [("complete", "dot")]
    figure = draw_curves(numbered(a_trial(0, epochs=2), a_trial(1, epochs=0)), marked(), AXIS)
    path = figure.path(mark_of(figure, "complete"))
    assert path.count("M") == 2
    assert path.endswith("h.01")  # a line of no length, with round ends
    for steps in ([0], [0, 1, 2]):
        trial = a_trial(0, accuracy=0.5)
        trial.user_attrs.pop(EPOCHS)
        trial.intermediate_values = dict.fromkeys(steps, 0.5)
        figure = draw_curves([trial], marked(trial), AXIS)
        assert figure.x.low < min(steps) <= max(steps) < figure.x.high


def test_the_history_marks_each_trial_once_and_the_best_so_far(searched):
    valueless = create_trial(state=TrialState.FAIL)
    unbounded = create_trial(value=float("inf"))
    diverged = a_trial(0, TrialState.PRUNED, 0.85, 2)
    diverged.user_attrs[EPOCHS]["value"][-1] = float("nan")
    waiting = create_trial(state=TrialState.WAITING)
    trials = numbered(*searched.trials(), valueless, unbounded, diverged, waiting)
    figure = draw_history(trials, marked(trials[37], trials[0]), AXIS)
    drawn = [mark for mark in figure.marks if mark.name != "best" and mark.trials]
    assert sorted(n for mark in drawn for n in mark.trials) == [*range(43)]
    at = {n: y for mark in drawn for n, (_, y) in zip(mark.trials, points_of(mark), strict=True)}
    assert at[37] == AXIS.coordinate(0.937)
    assert [at[number] for number in (3, 39)] == [AXIS.coordinate(value) for value in (0.7, 0.8)]
    assert at[42] == pytest.approx(AXIS.coordinate(0.8)), "its last finite value"
    strokes = {n for mark in drawn if mark.shape == "rug" for n in mark.trials}
    assert strokes == {40, 41} == {n for n, y in at.items() if y < min(at[n] for n in range(40))}
    shapes = {mark.name: mark.shape for mark in figure.marks if mark.name in ("pruned", "running")}
    assert shapes == {"pruned": "square", "running": "dot"}
    assert not any("faint" in mark.style for mark in figure.marks), "small ones are pale enough"
    (steps,) = mark_of(figure, "best so far").parts
    assert [x for x, _ in steps][:3] == [0, 1, 2]
    assert [y for _, y in steps] == sorted(y for _, y in steps)
    assert figure.table.rows[-1] == (37, "0.9370")
    paths = "".join(figure.path(mark) for mark in figure.marks)
    places = [float(number) for number in re.findall(r"-?[\d.]+", paths)]
    assert all(-20 <= place <= 1020 for place in places), "they stay within it"
    assert isinstance(draw_history([valueless], marked(), AXIS), str)
    assert draw_history([trials[39]], marked(), AXIS).names() == ["running"], (
        "before one is complete"
    )


def test_the_history_rings_the_winner_and_has_its_comparable_new_values(searched):
    won = {"trial": 36, "values": (0.92, 0.93, 0.94), "mean": 0.93, "std": 0.012}
    result = result_of(winner=won, test={"winner": {"values": [0.91], "mean": 0.91}})
    best = searched.trials()[37]
    figure = draw_history(searched.trials(), marked(best), AXIS, result)
    assert mark_of(figure, "winner").trials == [36]
    (again,), (test,) = (points_of(mark_of(figure, name)) for name in ("re-evaluation", "test"))
    assert (again[1], test[1]) == (AXIS.coordinate(0.93), AXIS.coordinate(0.91))
    assert 39 < again[0] < test[0] < figure.x.high, "to the right of all trials"
    across = draw_history(searched.trials(), marked(best, best), AXIS, result)
    ends = [x for x, _ in points_of(mark_of(across, "baseline"))]
    assert ends == [across.x.low, again[0]], "across the search, and not to the new values"
    bars = [m for m in figure.marks if (m.color, m.shape) == ("winner", "line")]
    ends = [0.93 - 0.012 / 3**0.5, 0.93 + 0.012 / 3**0.5]
    assert [y for _, y in points_of(bars[0])] == pytest.approx([*map(AXIS.coordinate, ends)])
    other = replace(result, metric=ObjectiveValue("loss", "minimize"))
    assert not {"re-evaluation", "test"} & {*draw_history([best], marked(), AXIS, other).names()}


def test_ticks_stand_where_choices_are_and_an_axis_has_two_or_more():
    batches = [32, 64, 128, 256]
    for distribution, settings, labels in (
        (CategoricalDistribution([32, 8, 16]), (16, 8, 32, 8), ["8", "16", "32"]),
        (CategoricalDistribution(batches), batches[::-1], [*map(str, batches)]),
        (IntDistribution(8, 32, step=8), (8, 32, 16), ["8", "16", "32"]),
        (IntDistribution(16, 64, log=True), (16, 64), ["16", "64"]),
        (FloatDistribution(0.0, 0.5, step=0.25), (0.5, 0.0, 0.25), ["0", "0.25", "0.5"]),
    ):
        for pixels in (None, 124):
            axis = make_setting_axis(over(distribution, *settings), "p", pixels)
            assert [tick.label for tick in axis.scale.ticks] == labels
            assert {*axis.coordinates} == {tick.coordinate for tick in axis.scale.ticks}
    for low, high in ((0.08, 0.2), (2e-4, 3e-4), (0.21, 0.59), (1e-5, 7e-1), (5, 1234), (3, 4)):
        for log in (False, True):
            trials = over(FloatDistribution(low, high, log=log), low, high)
            for pixels in (None, 124):
                assert len(make_setting_axis(trials, "p", pixels).scale.ticks) >= 2


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


def test_further_quantities_of_a_loop_are_drawn_with_gaps():
    trial, as_we_do = a_trial(3), a_trial(4)
    told = {"number": [1, 2, 3], "value": [0.5, 0.6, 0.7], "valid_loss": [2, 1, 1]}
    trial.user_attrs[EPOCHS] = told | {"loss": [3.0, None, 1.0], "recall": [0.1, 0.2, 0.3]}
    figure = draw_losses(trial)
    drawn = {mark.name: points_of(mark) for mark in figure.marks}
    assert drawn == {
        "loss": [(1, 3.0), (3, 1.0)],
        "recall": [(1, 0.1), (2, 0.2), (3, 0.3)],
        "validation loss": [(1, 2), (2, 1), (3, 1)],
    }
    assert len({mark.color for mark in figure.marks}) == 3
    assert figure.table.rows[1] == (2, "1.0000", "", "0.2000")
    assert make_section(name_losses_section(trial), [], which="").title == "Further quantities"
    as_we_do.user_attrs[EPOCHS] = told | {"train_loss": [3, 2, 1], "valid_loss": [3, 2, 4]}
    assert make_section(name_losses_section(as_we_do), [], which="").title == "Overfitting"
    assert "lowest at epoch 2" in str(draw_losses(as_we_do))


def test_idle_is_the_share_of_gaps_and_a_running_trial_lasts_until_now():
    for spans, share in (
        ([(5, 5)], 0),
        ([(5, 10), (0, 4)], 0.1),
        ([(0, 10), (2, 4), (8, 20), (30, 40)], 0.25),
    ):
        times = [Span(*(BEGAN + timedelta(seconds=end) for end in ends)) for ends in spans]
        assert idle_share(times) == pytest.approx(share)
    trials = numbered(a_trial(0), a_trial(1, TrialState.RUNNING))
    left, worked = (
        points_of(mark_of(draw_timeline(trials, alive), state))[-1][0]
        for alive, state in (((), "interrupted"), ((1,), "running"))
    )
    assert left == 11
    since = (datetime.now() - trials[1].datetime_start).total_seconds()
    assert worked - 11 == pytest.approx(since, abs=60)


def test_pruned_curves_end_where_they_were_pruned():
    trials = numbered(a_trial(0, accuracy=0.9), a_trial(1, TrialState.PRUNED, 0.5, 1))
    figure = draw_curves(trials, marked(trials[0]), AXIS)
    assert [x for x, _ in points_of(mark_of(figure, "pruned"))] == [1, 2]
    assert [x for x, _ in points_of(mark_of(figure, "best"))] == [1, 2, 3, 4]
    (end,) = (mark for mark in figure.marks if mark.shape == "square")
    assert (points_of(end)[0][0], end.trials) == (2, [1])


def test_the_best_and_the_latest_of_many_curves_are_drawn(monkeypatch):
    monkeypatch.setattr(drawn_trials, "MOST_BEST", 10)
    monkeypatch.setattr(drawn_trials, "MOST_LATEST", 20)
    many = numbered(*(a_trial(n, accuracy=0.5 + (n * 7 % 90) / 200) for n in range(90)))
    figure = draw_curves(many, marked(many[0]), AXIS)
    drawn = {number for mark in figure.marks for number in mark.trials}
    best = sorted(range(90), key=lambda n: -many[n].value)[:10]
    assert drawn == {*best, *range(70, 90), 0}
    assert len(figure.marks) <= 9
    assert figure.table.note == "30 further trials are left out."


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


def test_each_complete_trial_is_a_point_on_the_front_beaten_or_infeasible(sqlite_url):
    stored = two_sided(
        sqlite_url, (0.90, 3000), (0.95, 3000), (0.80, 100), (0.85, 200), (0.84, 900), None
    )
    fill(stored, create_trial(values=[0.99, 50], constraints={"flops": 1.0}))
    snapshot = take_snapshot(stored)
    marked = {"baseline": snapshot.baseline, "best": snapshot.best, "winner": stored.trials()[3]}
    table = PageTable(("trial",), [])
    figure = figures.draw_front(stored, marked, Axis("accuracy", "plain", 1), table)
    assert figure.x.kind == "tens", "costs that differ by more than ten times"
    assert [tick.label for tick in figure.x.ticks] == ["100", "300", "1,000", "3,000"]
    points = {m.name: {(round(10**x), y) for x, y in points_of(m)} for m in figure.marks}
    front = "front: not beaten in both"
    assert points[front] == {(trial.values[1], trial.values[0]) for trial in stored.front()}
    assert points[front] == {(100, 0.80), (200, 0.85), (3000, 0.95)}
    assert points["beaten"] == {(3000, 0.90), (900, 0.84)}
    assert points["infeasible"] == {(50, 0.99)}
    assert points["baseline"] == {(3000, 0.90)}
    assert points["best"] == {(3000, 0.95)}
    assert points["winner"] == {(200, 0.85)}
    assert [y for _, y in points_of(mark_of(figure, ""))] == [0.80, 0.85, 0.95]
    assert "stepped" in mark_of(figure, "").style
    assert figure.y.title == "accuracy, more is better, over parameters"
    assert figure.x.title == "parameters, less is better, log"
    assert figure.table == table
