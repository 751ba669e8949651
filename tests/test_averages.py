"""Means and standard deviations of values of any size."""

import math
from statistics import fmean, stdev

import pytest

from studyloom.averages import mean, standard_deviation

VALUES = [1.5, 2.25, 4.0]


@pytest.mark.parametrize("exponent", [0, 300, 1000, -1000])
def test_mean_and_deviation_scale_exactly_with_a_power_of_two(exponent):
    values = [math.ldexp(value, exponent) for value in VALUES]
    assert mean(values) == math.ldexp(fmean(VALUES), exponent)
    assert standard_deviation(values) == math.ldexp(stdev(VALUES), exponent)


def test_the_mean_of_the_largest_floats_is_finite():
    assert mean([1.7e308] * 3) == pytest.approx(1.7e308)
    assert standard_deviation([1.7e308] * 3) == 0
    assert standard_deviation([1.7e308, -1.7e308]) == math.inf
