"""Means over seeds, their 95% intervals, and the differences between candidates.

A mean over seeds is uncertain for two reasons: another seed would have trained another network, and
another draw of test examples would have measured it differently. Without values of single examples
an interval covers only the first reason: it is Student's. With them it covers both, see `compare`.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from studyloom.averages import Interval, mean, scale_of, standard_deviation
from studyloom.errors import UndefinedMetric
from studyloom.metrics import ANYTHING, Metric, example_scores
from studyloom.winner.result import Scores, Summary

if TYPE_CHECKING:
    from torch import Tensor

Key = TypeVar("Key")  # identifies a network or candidate
# Values of networks with several seeds on test examples: float64 (rows, seeds). Their covariance
# over the rows is the covariance of the networks' values over draws of test examples. Each row is a
# resample, or a single example, divided by the square root of the number of examples.
Sampled = NDArray[np.float64]
# A metric of scikit-learn takes some milliseconds for each network and resample.
RESAMPLES = 99
ROUNDING = 1e-12  # the largest share of a value by which only rounding changes it
ENOUGH = 3  # seeds for a spread: with two, Student's interval is 13 standard errors to each side
NORMAL = 1.959964  # standard deviations from the mean to the ends of a 95% interval
# The sources of chance that an interval covers.
Covers = Literal["seeds and examples", "seeds", "examples"]


@dataclass(frozen=True)
class Outputs:
    """The outputs of a network for some examples and their targets, both (n, …), on the CPU."""

    outputs: "Tensor"
    targets: "Tensor"

    def score(self, metric: Metric) -> float:
        """Returns the metric of these outputs."""
        return metric(self.outputs, self.targets)


@dataclass(frozen=True)
class Measured:
    """The values of one candidate on the test set.

    Args:
        values: a value for each seed.
        sampled: its values on single examples or resamples; None if they are not known.
    """

    values: Sequence[float]
    sampled: Sampled | None


@dataclass(frozen=True)
class DifferenceError:
    """The error of the difference between two means over the same seeds.

    Args:
        half_interval: half of the 95% interval, which holds for all differences at once.
    """

    standard_error: float
    half_interval: float


def compare(
    values: Mapping[Key, Sequence[float]],
    winner: Key,
    baseline: Key | None,
    sampled: Mapping[Key, Sampled] | None = None,
    bounds: Interval = ANYTHING,
) -> Scores:
    """Summarizes winner and baseline, and the difference between them.

    Args:
        values: a value for each seed of each candidate.
        sampled: the values on single examples or resamples, see `resample`. If None, intervals
            cover only the seeds, and each seed of the winner is compared with the same seed of the
            baseline.
        bounds: the lowest and the highest value of the metric.
    """

    def find_measured(key: Key) -> Measured:
        if sampled is None:
            return Measured(values[key], None)
        return Measured(values[key], sampled[key])

    scores = Scores(
        winner=_summarize_measured(values[winner], [find_measured(winner)], bounds),
        covers=_find_cover(values[winner], has_examples=sampled is not None),
    )
    if baseline is None or baseline == winner:
        return scores
    differences = []
    for value, value_of_baseline in zip(values[winner], values[baseline], strict=True):
        differences.append(difference(value, value_of_baseline))
    low, high = bounds
    return replace(
        scores,
        baseline=_summarize_measured(values[baseline], [find_measured(baseline)], bounds),
        difference=_summarize_measured(
            differences, [find_measured(winner), find_measured(baseline)], (low - high, high - low)
        ),
    )


def _find_cover(values: Sequence[float], *, has_examples: bool) -> Covers:
    """Returns which sources of chance the intervals of a comparison cover.

    Args:
        values: the winner's value for each seed.
        has_examples: whether values on single examples are known.
    """
    if not has_examples:
        return "seeds"
    if len(values) >= ENOUGH and len({*values}) > 1:
        return "seeds and examples"
    return "examples"


def _summarize_measured(
    values: Sequence[float], measured: Sequence[Measured], bounds: Interval
) -> Summary:
    """Summarizes values over seeds, or differences; the interval covers examples if it can.

    Args:
        values: the values of a candidate, or the differences of two.
        measured: the candidate, or the two that differ.
    """
    summary = summarize(values, bounds)
    by_seed = []
    sampled = []
    for candidate in measured:
        if candidate.sampled is None:
            return summary
        by_seed.append(candidate.values)
        sampled.append(candidate.sampled)
    return replace(
        summary, interval=_interval_over_examples(summary.mean, by_seed, sampled, bounds)
    )


def error_of_differences(series: Sequence[Sequence[float]]) -> DifferenceError | None:
    """Returns the error of the difference between the means of the first series and any other.

    Each series has a value for each seed. The noise is what neither series nor seed explains,
    pooled over all series: three seeds of a single one are too few to estimate it. The interval is
    Student's, with Bonferroni's correction for the number of differences. None for a single seed.
    """
    unscaled = np.array(series)
    differences = unscaled.shape[0] - 1
    seeds = unscaled.shape[1]
    freedom = differences * (seeds - 1)
    if not freedom:
        return None
    scale = scale_of(unscaled.ravel().tolist())
    values = unscaled / scale
    # Without the mean of each series and of each seed only the noise is left.
    noise = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    noise[np.abs(noise) <= ROUNDING * np.abs(values).max()] = 0.0
    variance = float((noise**2).sum()) / freedom
    standard_error = scale * math.sqrt(2 * variance / seeds)
    return DifferenceError(standard_error, standard_error * _student(freedom, 0.025 / differences))


def difference(one: float, other: float) -> float:
    """Returns one minus the other; 0 if they differ only by rounding."""
    if math.isclose(one, other, rel_tol=ROUNDING):
        return 0.0
    return one - other


def summarize(values: Sequence[float], bounds: Interval = ANYTHING) -> Summary:
    """Summarizes values that differ only by their seed; the interval is Student's.

    Fewer than three have no spread, and equal values have no interval.

    Args:
        bounds: the lowest and the highest value of the metric.
    """
    summary = Summary(mean(values), values=tuple(values))
    if len(values) < ENOUGH:
        return summary
    spread = standard_deviation(values)
    if not math.isfinite(spread):
        return summary
    summary = replace(summary, std=spread)
    if spread == 0:
        return summary
    half = _student(len(values) - 1) * spread / math.sqrt(len(values))
    interval = (summary.mean - half, summary.mean + half)
    if not _is_finite(interval):
        return summary
    return replace(summary, interval=_within(interval, summary.mean, bounds))


def _is_finite(interval: Interval) -> bool:
    """Returns whether both ends of an interval can be written as floats."""
    return all(map(math.isfinite, interval))


def _within(interval: Interval, mean: float, bounds: Interval) -> Interval:
    """Cuts an interval at the bounds of the metric, which costs no coverage.

    A loop may give the name of a known metric to another quantity, such as an accuracy in
    percent: bounds that exclude the mean are ignored.
    """
    low, high = bounds
    if not low <= mean <= high:
        return interval
    return max(low, interval[0]), min(high, interval[1])


def _student(freedom: float, tail: float = 0.025) -> float:
    """Returns Student's quantile for an interval that misses by `tail` on each side.

    Args:
        freedom: the degrees of freedom.
    """
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # 0.4 s to import

    return float(stdtrit(min(freedom, 1e9), 1 - tail))


def _interval_over_examples(
    middle: float,
    values: Sequence[Sequence[float]],
    sampled: Sequence[Sampled],
    bounds: Interval,
) -> Interval | None:
    """Returns a 95% interval of a mean, or of the difference of two, over seeds and examples.

    Each network was measured on each example. The variance over examples is the covariance of
    networks with different seeds on the same examples, so that the chance of single networks
    counts once, as part of the variance over seeds (Obuchowski & Rockette 1995, Communications in
    Statistics 24; degrees of freedom: Hillis 2007, Statistics in Medicine 26). Between two bounds
    the interval is symmetric in the logarithm of the odds. With one or two seeds it covers only the
    examples. It is None if all values are equal, or the mean is at a bound.

    Args:
        middle: the mean, or the difference.
        values: a value for each seed, of a candidate, or of each of the two that differ.
        sampled: the values of the same candidates on examples, see `resample`.
        bounds: the lowest and the highest value of the mean or difference.
    """
    low, high = bounds
    scale = scale_of([middle, *itertools.chain(*values)])
    if scale != 1:
        # The square of a huge value would overflow: the interval is that of values divided by a
        # power of two, multiplied by it.
        scaled_values = []
        for series in values:
            scaled_values.append([value / scale for value in series])
        scaled_rows = [rows / scale for rows in sampled]
        scaled_bounds = (low / scale, high / scale)
        scaled = _interval_over_examples(middle / scale, scaled_values, scaled_rows, scaled_bounds)
        if scaled is None:
            return None
        interval = (scale * scaled[0], scale * scaled[1])
        if not _is_finite(interval):
            return None
        return interval
    seeds = len(values[0])
    variances_over_seeds = [0.0]
    if seeds >= ENOUGH:
        variances_over_seeds = [standard_deviation(series) ** 2 / seeds for series in values]
    variance = sum(variances_over_seeds) + max(0.0, _variance_over_examples(sampled, seeds))
    if variance == 0 or middle in bounds:  # such as the accuracy if all examples are right
        return None
    freedom = math.inf
    squares = sum(over_seeds**2 for over_seeds in variances_over_seeds) / max(1, seeds - 1)
    if squares:
        freedom = variance**2 / squares
    half = _student(freedom) * math.sqrt(variance)
    if not (math.isfinite(high - low) and low < middle < high):
        return middle - half, middle + half
    return _interval_of_odds(middle, half, bounds)


def _variance_over_examples(sampled: Sequence[Sampled], seeds: int) -> float:
    """Returns the variance of a mean over seeds, or of a difference of two, over test examples.

    The variance of a difference is the sum of both variances, minus the covariance in both orders.

    Args:
        sampled: the rows of a candidate, or of the two that differ.
        seeds: the number of seeds.
    """
    variance = 0.0
    for one_index, one in enumerate(sampled):
        for other_index, other in enumerate(sampled):
            covariances = np.cov(one.T, other.T)[:seeds, seeds:]
            total = covariances.sum()
            pairs = seeds * seeds
            is_variance = one_index == other_index
            if is_variance and seeds >= ENOUGH:
                # A network's covariance with itself also has the chance of this network, which
                # the variance over seeds counts already.
                total = total - np.trace(covariances)
                pairs = seeds * (seeds - 1)
            if is_variance:
                variance += total / pairs
            else:
                variance -= total / pairs
    return float(variance)


def _interval_of_odds(middle: float, half: float, bounds: Interval) -> Interval:
    """Returns an interval that is symmetric in the logarithm of the odds, so that it has bounds.

    Args:
        middle: a value between the bounds.
        half: half of the interval that would be symmetric in the value.
    """
    from scipy.special import expit

    low, high = bounds
    log_odds = math.log((middle - low) / (high - middle))
    step = half * (high - low) / ((middle - low) * (high - middle))
    first, last = low + (high - low) * expit(np.array([log_odds - step, log_odds + step]))
    return float(first), float(last)


def resample(
    metric: Metric,
    outputs: Mapping[Key, Sequence[Outputs]],
    examples: int,
    seed: int,
) -> dict[Key, Sampled] | None:
    """Measures networks on resamples of the test examples, the same for all of them.

    Each resample has as many examples of each class as the test set, so that metrics over classes
    are defined. A metric that is a mean over examples needs none: its rows are the examples.

    Args:
        outputs: the outputs of the network of each seed, by candidate.
        examples: the number of test examples.

    Returns:
        The rows by candidate; None if outputs do not belong to single examples, as with several
        predicted steps of a sequence, or if the metric is undefined on a resample.
    """
    networks = [*itertools.chain(*outputs.values())]
    for network in networks:
        if len(network.outputs) != examples or len(network.targets) != examples:
            return None
    by_example = _score_examples(metric, outputs, examples)
    if by_example is not None:
        return by_example
    sampled = {}
    for key, by_seed in outputs.items():
        sampled[key] = np.zeros((RESAMPLES, len(by_seed)))
    strata = _strata(networks[0].targets.cpu().numpy())
    generator = np.random.default_rng(seed)
    for row in range(RESAMPLES):
        # This draws as `generator.choice` does, in half of its time.
        draws = [stratum[generator.integers(0, len(stratum), len(stratum))] for stratum in strata]
        drawn = np.concatenate(draws)
        for key, by_seed in outputs.items():
            try:
                sampled[key][row] = [
                    metric(network.outputs[drawn], network.targets[drawn]) for network in by_seed
                ]
            except UndefinedMetric:
                return None
    return sampled


def _strata(targets: NDArray[np.generic]) -> list[NDArray[np.intp]]:
    """Returns the indices of the examples of each class; all examples if there are no classes."""
    if targets.ndim != 1 or targets.dtype.kind not in "iu":
        return [np.arange(len(targets))]
    return [np.flatnonzero(targets == label) for label in np.unique(targets)]


def _score_examples(
    metric: Metric, outputs: Mapping[Key, Sequence[Outputs]], examples: int
) -> dict[Key, Sampled] | None:
    """Returns the metric of each example; None if the metric is not a mean over examples.

    Args:
        outputs: the outputs of the network of each seed, by candidate.
        examples: the number of test examples.
    """
    sampled = {}
    for key, by_seed in outputs.items():
        columns = []
        for network in by_seed:
            scores = example_scores(metric, network.outputs, network.targets)
            if scores is None:
                return None
            columns.append(scores.cpu().numpy())
        sampled[key] = np.array(columns).T / math.sqrt(examples)
    return sampled
