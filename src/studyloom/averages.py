"""Means and standard deviations of finite values, however large they are.

The perplexity of a diverged network may be 1e217, and its square is larger than any float. Large
values are divided by a power of two first, which changes none of their digits.
"""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

Interval = tuple[float, float]
LARGE = 1e75  # the square of a variance, its fourth power, is still a float


def scale_of(values: Sequence[float]) -> float:
    """Returns the power of two by which to divide values before they are squared.

    It is 1 unless their squares might exceed the largest float.
    """
    largest = max(abs(value) for value in values)
    if largest < LARGE:
        return 1.0
    _, exponent = math.frexp(largest)  # largest = mantissa × 2**exponent, mantissa from 0.5 to 1
    return math.ldexp(1.0, exponent - 1)


def mean(values: Sequence[float]) -> float:
    """Returns the arithmetic mean."""
    scale = scale_of(values)
    return scale * fmean(value / scale for value in values)


def standard_deviation(values: Sequence[float]) -> float:
    """Returns the standard deviation of a sample; infinity if that is larger than any float."""
    scale = scale_of(values)
    return scale * stdev(value / scale for value in values)
