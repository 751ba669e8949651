"""Axes of charts: round numbers, and labels that do not overlap."""

import itertools
import math

import numpy
import pytest
from made_trials import AXIS, over
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from studyloom.views.axes import (
    LETTER,
    SIZE,
    Axis,
    ChartScale,
    Tick,
    choose_log_numbers,
    choose_round_numbers,
    fit_labels,
    make_integer_scale,
    make_linear_scale,
    make_log_scale,
)
from studyloom.views.drawn_settings import make_setting_axis


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
