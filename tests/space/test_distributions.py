import math

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from studyloom.space.tree import count_values, find_misfit


def test_the_values_of_a_distribution_are_counted():
    for distribution, number in (
        (CategoricalDistribution((1, 2, 3)), 3),
        (IntDistribution(1, 9, step=4), 3),
        (FloatDistribution(0.0, 0.3, step=0.1), 4),
        (FloatDistribution(0.5, 0.5), 1),
        (FloatDistribution(0.0, 1.0), math.inf),
    ):
        assert count_values(distribution) == number


# Values of a distribution, and others with the words that say why not.
CASES = (
    (
        CategoricalDistribution(("relu", "tanh", 1, None, True)),
        ["relu", 1, 1.0, None, True],
        {"rely": "not among [relu, tanh, 1, null, true]; did you mean relu?", 1.5: "not among"},
    ),
    (
        CategoricalDistribution((0, 0.2, 1.0)),
        [0, 0.0, 0.2, 1],
        {False: "not among [0, 0.2, 1.0]", True: "not among", "0": "not among", None: "not among"},
    ),
    (
        IntDistribution(2, 8, step=3),
        [2, 5, 8],
        {1: "outside its range [2, 8]", 4: "not one of 2, 5, … 8", 5.5: "a number", None: "null"},
    ),
    (
        FloatDistribution(0.0, 0.9, step=0.1),
        [0.0, 0.3, 0.9, 0],
        {0.25: "not one of 0, 0.1, …", 1.0: "outside its range [0, 0.9]", "x": "a string"},
    ),
    (
        FloatDistribution(1e-4, 1.0, log=True),
        [1e-4, 1, 0.5],
        {0.0: "outside its range [0.0001, 1]", math.nan: "outside", math.inf: "outside"},
    ),
)


def test_a_misfit_says_why_a_distribution_cannot_give_a_value():
    for distribution, right, wrong in CASES:
        assert [find_misfit(distribution, value) for value in right] == [None] * len(right)
        for value, words in wrong.items():
            assert words in str(find_misfit(distribution, value))
    assert "true or false" in str(find_misfit(IntDistribution(0, 1), True))
