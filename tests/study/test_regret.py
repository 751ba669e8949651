"""What the rest of a search is expected to gain: the laws of the estimate."""

import numpy as np
import pytest

from studyloom.study.early_end import FIRST, gains


def last(values, trials):
    return gains(values, trials)[-1]


def test_of_exponential_values_the_expected_gain_is_what_is_gained():
    """Over 4000 draws: the mean estimate after 40 of 80 trials against the mean of what came."""
    drawn = np.random.default_rng(0).exponential(0.02, (4000, 80))
    expected = np.mean([last(values[:40].tolist(), 80) for values in drawn])
    gained = np.mean(drawn.max(1) - drawn[:, :40].max(1))
    assert expected == pytest.approx(gained, rel=0.05)


def test_of_values_with_an_upper_bound_it_is_never_below_what_is_gained_in_the_mean():
    drawn = np.random.default_rng(1).uniform(0, 1, (2000, 80))
    expected = np.mean([last(values[:40].tolist(), 80) for values in drawn])
    assert expected > np.mean(drawn.max(1) - drawn[:, :40].max(1))


def test_a_trial_without_a_value_counts_as_one_that_is_not_among_the_best():
    values = sorted(np.random.default_rng(5).normal(size=30).tolist())
    pruned = [None] * 20 + values[20:]
    assert last(pruned, 60) == last(values, 60)


def test_too_few_values_tell_nothing():
    three = [0.1, 0.2, 0.3] + [None] * 20
    for values in ([], [0.5] * (FIRST - 1), [None] * 30, three, [float("inf")] * 30):
        assert gains(values, 100) == [None] * len(values)


def test_each_estimate_is_that_of_the_trials_until_then():
    values = [None if n % 7 == 3 else n % 11 / 10 for n in range(40)]
    assert gains(values, 80) == [last(values[:count], 80) for count in range(1, 41)]
