import math

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from studyloom.space.tree import count_values, why_not


@pytest.mark.parametrize(
    ("distribution", "number"),
    [
        (CategoricalDistribution((1, 2, 3)), 3),
        (IntDistribution(1, 10), 10),
        (IntDistribution(1, 9, step=4), 3),
        (FloatDistribution(0.0, 0.3, step=0.1), 4),
        (FloatDistribution(0.5, 0.5), 1),
        (FloatDistribution(0.0, 1.0), math.inf),
    ],
)
def test_a_distribution_is_counted(distribution, number):
    assert count_values(distribution) == number


@pytest.mark.parametrize(
    ("distribution", "right", "wrong"),
    [
        (
            CategoricalDistribution(("relu", "tanh", 1, None, True)),
            ["relu", 1, None, True],
            [
                ("rely", "not among [relu, tanh, 1, null, true]; did you mean relu?"),
                (1.0, "not among"),
                (False, "not among"),
            ],
        ),
        (
            IntDistribution(2, 8, step=3),
            [2, 5, 8],
            [
                (1, "outside its range [2, 8]"),
                (9, "outside"),
                (4, "not one of 2, 5, … 8"),
                (5.0, "a number"),
                (True, "true or"),
            ],
        ),
        (
            IntDistribution(1, 8, log=True),
            [1, 3, 8],
            [(0, "outside its range [1, 8]"), ("3", "a string"), (None, "null")],
        ),
        (
            FloatDistribution(0.0, 0.9, step=0.1),
            [0.0, 0.3, 0.9, 0],
            [
                (0.25, "not one of 0, 0.1, …"),
                (1.0, "outside its range [0, 0.9]"),
                ("x", "a string"),
            ],
        ),
        (
            FloatDistribution(1e-4, 1.0, log=True),
            [1e-4, 1, 0.5],
            [
                (0.0, "outside its range [0.0001, 1]"),
                (math.nan, "outside"),
                (math.inf, "outside"),
                (False, "true or false"),
            ],
        ),
    ],
)
def test_a_value_that_a_distribution_cannot_give_is_told_why(distribution, right, wrong):
    assert [why_not(distribution, value) for value in right] == [None] * len(right)
    for value, words in wrong:
        assert words in str(why_not(distribution, value))
