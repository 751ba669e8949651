"""The margin: the gain on new seeds that a trial needs to win over the default configuration.

The best of several candidates looks better than the default configuration by chance alone. So it
wins only if its *gain*, the difference of the two means on new seeds, is above the *margin*.

All candidates have the same new seeds and validation splits. What they have in common cancels in a
difference, and the rest, the *noise*, is pooled over the candidates. The values of the search count
as well. The default configuration's is that of one more seed. The candidate's is too high, since
the candidate was chosen by it: it is shrunk towards the mean of the better half of the trials (as
by empirical Bayes; Efron & Morris 1975, Journal of the American Statistical Association 70).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from studyloom.averages import mean, standard_deviation
from studyloom.winner.statistics import (
    LEAST_SEEDS,
    Noise,
    difference,
    estimate_noise,
    student_quantile,
)

# The margin is that of a one-sided test, whose rate of errors falls with the number of trials: the
# better a search, the nearer to each other are its best trials. Both numbers were chosen on
# simulated studies of 6 to 200 trials and on 250 small ones, such that about 3% of the trials that
# win over the default configuration are truly worse (`bench.py honesty`).
LEAST_ERRORS = 0.03
ERRORS_BY_TRIALS = 0.5  # this much is added, divided by the number of trials
FEWEST_TRIALS = 4  # beside the default configuration, for the mean of their better half
# The values of trials differ for two reasons: noise, and true differences. At least this share of
# their variance counts as true.
LEAST_TRUE_SHARE = 1 / 3
# A candidate whose differences to the default configuration spread more than this many times as
# much as those of the best candidate is unstable: its noise is not that of the others.
MOST_SPREAD = 10


@dataclass(frozen=True)
class CandidateValues:
    """The values of a candidate; more is better.

    Args:
        new: a value for each new seed; all candidates have the same seeds.
        searched: the value in the search, at the end of the training.
    """

    new: Sequence[float]
    searched: float


@dataclass(frozen=True)
class Margin:
    """The margin, and the standard error of the gain; of both, 0 if they are unknown."""

    margin: float
    error: float


def estimate_margin(
    best: CandidateValues,
    baseline: CandidateValues,
    others: Sequence[CandidateValues],
    searched_values: Sequence[float],
) -> Margin:
    """Estimates which gain of the best candidate on new seeds chance may explain.

    Args:
        best: the best candidate.
        baseline: the default configuration.
        others: the other candidates.
        searched_values: the values in the search of all trials that may win, but for the default
            configuration; more is better.
    """
    noise = _pool_noise(best, baseline, others)
    if noise is None or noise.deviation == 0:
        return Margin(margin=0.0, error=0.0)
    seeds = len(best.new)
    error = math.sqrt(2 / seeds) * noise.deviation
    margin = _find_margin(best, baseline, searched_values, noise)
    return Margin(margin, error)


def _pool_noise(
    best: CandidateValues, baseline: CandidateValues, others: Sequence[CandidateValues]
) -> Noise | None:
    """Estimates the noise of a training from all candidates but the unstable ones.

    With a single new seed the values of the search stand in for a second one: there is no other way
    to know the noise.
    """
    series = [best.new, baseline.new]
    spread = _spread_of_differences(best, baseline)
    for candidate in others:
        is_unstable = 0 < spread < _spread_of_differences(candidate, baseline) / MOST_SPREAD
        if not is_unstable:
            series.append(candidate.new)
    if len(best.new) == 1:
        series = [[*candidate.new, candidate.searched] for candidate in (best, baseline, *others)]
    return estimate_noise(series)


def _spread_of_differences(candidate: CandidateValues, baseline: CandidateValues) -> float:
    """Returns the standard deviation over seeds of a candidate's gain; 0 if it is unknown."""
    if len(baseline.new) < LEAST_SEEDS:
        return 0.0
    pairs = zip(candidate.new, baseline.new, strict=True)
    return standard_deviation([difference(value, other) for value, other in pairs])


def _find_margin(
    best: CandidateValues,
    baseline: CandidateValues,
    searched_values: Sequence[float],
    noise: Noise,
) -> float:
    """Returns the least gain on new seeds for which the expected gain is above its error.

    The *expected gain* is the mean of two, weighted by their precision (1 / variance): the gain on
    new seeds, and the gain that the search lets expect. All numbers are in units of the noise,
    whose variance is then 1.

    Args:
        noise: the noise of a training.
    """
    seeds = len(best.new)
    precision_of_new = seeds / 2  # a difference of two means has the variance 2 / seeds
    precision_of_search = 0.0
    gain_in_search = 0.0
    if len(searched_values) >= FEWEST_TRIALS:
        expected = _shrink(best.searched, searched_values, noise)
        # The value of the default configuration in the search has the variance 1.
        precision_of_search = 1 / (expected.variance + 1)
        gain_in_search = expected.value - baseline.searched / noise.deviation

    trials = len(searched_values) + 1  # with the default configuration
    error_rate = LEAST_ERRORS + ERRORS_BY_TRIALS / trials
    quantile = student_quantile(noise.freedom, error_rate)
    # The expected gain, (gain * precision_of_new + gain_in_search * precision_of_search) /
    # precision, must be above quantile / sqrt(precision). Solved for the gain on new seeds:
    precision = precision_of_new + precision_of_search
    needed = quantile * math.sqrt(precision) - gain_in_search * precision_of_search
    return max(0.0, needed / precision_of_new * noise.deviation)


@dataclass(frozen=True)
class ExpectedValue:
    """The expected value of a configuration, and its variance, in units of the noise."""

    value: float
    variance: float


def _shrink(value: float, searched_values: Sequence[float], noise: Noise) -> ExpectedValue:
    """Shrinks a value of the search towards the mean of the better half of the trials.

    Args:
        value: that of the best candidate.
        searched_values: those of all trials.
        noise: the noise of a training.
    """
    half = math.ceil(len(searched_values) / 2)
    better_half = sorted(searched_values, reverse=True)[:half]
    middle = mean(better_half) / noise.deviation
    spread = standard_deviation(better_half) / noise.deviation
    variance = spread * spread
    true_variance = max(variance - 1, LEAST_TRUE_SHARE * variance)
    weight = 1.0  # of the candidate's own value
    if math.isfinite(true_variance):
        weight = true_variance / (true_variance + 1)
    expected = middle + weight * (value / noise.deviation - middle)
    return ExpectedValue(expected, variance=weight)
