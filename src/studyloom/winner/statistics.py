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
# Values of networks with several seeds on test examples: float64 (rows, seeds). A row is a resample
# of the test examples, or a single example, whose values are divided by the square root of the
# number of examples. So the covariance of two columns over the rows is the covariance of two
# networks' values over draws of test examples.
Sampled = NDArray[np.float64]
# A metric of scikit-learn takes some milliseconds for each network and resample.
RESAMPLES = 99
ROUNDING = 1e-12  # the largest share of a value by which only rounding changes it
LEAST_SEEDS = (
    3  # seeds for a spread: with two, Student's interval is 13 standard errors to each side
)
NORMAL = 1.959964  # standard deviations from the mean to the ends of a 95% interval
TAIL = 0.025  # probability beyond each end of a 95% interval
MOST_FREEDOM = 1e9  # degrees of freedom above which Student's distribution is the normal one
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
class Noise:
    """The noise of a training: the part of its value that neither configuration nor seed explains.

    Args:
        deviation: the standard deviation of the noise.
        freedom: the degrees of freedom of this estimate.
    """

    deviation: float
    freedom: int


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

    def get_measured(key: Key) -> Measured:
        if sampled is None:
            return Measured(values[key], None)
        return Measured(values[key], sampled[key])

    measured_winner = get_measured(winner)
    scores = Scores(
        winner=_summarize_measured(values[winner], [measured_winner], bounds),
        intervals_cover=_find_covered_chance(values[winner], has_examples=sampled is not None),
    )
    if baseline is None or baseline == winner:
        return scores
    measured_baseline = get_measured(baseline)
    differences = []
    for value, value_of_baseline in zip(values[winner], values[baseline], strict=True):
        differences.append(difference(value, value_of_baseline))
    low, high = bounds
    bounds_of_difference = (low - high, high - low)
    return replace(
        scores,
        baseline=_summarize_measured(values[baseline], [measured_baseline], bounds),
        difference=_summarize_measured(
            differences, [measured_winner, measured_baseline], bounds_of_difference
        ),
    )


def _find_covered_chance(values: Sequence[float], *, has_examples: bool) -> Covers:
    """Returns which sources of chance the intervals of a comparison cover.

    Args:
        values: the winner's value for each seed.
        has_examples: whether values on single examples are known.
    """
    if not has_examples:
        return "seeds"
    differs_by_seed = len(set(values)) > 1
    if len(values) >= LEAST_SEEDS and differs_by_seed:
        return "seeds and examples"
    return "examples"


def _summarize_measured(
    values: Sequence[float], measured: Sequence[Measured], bounds: Interval
) -> Summary:
    """Summarizes a candidate's values on the test set, or the differences of two candidates.

    The interval of the mean covers the chance of the test examples too, if values on single
    examples are known.

    Args:
        values: the values for each seed, or their differences.
        measured: the candidate, or the two whose values differ.
        bounds: the lowest and the highest value.
    """
    summary = summarize(values, bounds)
    values_of_candidates = []
    sampled_of_candidates = []
    for candidate in measured:
        if candidate.sampled is None:
            return summary
        values_of_candidates.append(candidate.values)
        sampled_of_candidates.append(candidate.sampled)
    interval = _estimate_interval(summary.mean, values_of_candidates, sampled_of_candidates, bounds)
    return replace(summary, interval=interval)


def estimate_noise(series: Sequence[Sequence[float]]) -> Noise | None:
    """Estimates the noise of a training from configurations that were trained with the same seeds.

    It is pooled over all series, because three seeds of a single one are too few to estimate it.

    Args:
        series: for each configuration, a value for each seed.

    Returns:
        None for a single configuration or seed.
    """
    unscaled = np.array(series)  # (configurations, seeds)
    configurations, seeds = unscaled.shape
    freedom = (configurations - 1) * (seeds - 1)
    if freedom == 0:
        return None
    scale = scale_of(unscaled.ravel().tolist())  # so that squares do not overflow
    values = unscaled / scale
    # Without the mean of each configuration and of each seed only the noise remains.
    noise = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    noise[np.abs(noise) <= ROUNDING * np.abs(values).max()] = 0.0
    variance = float((noise**2).sum()) / freedom
    return Noise(scale * math.sqrt(variance), freedom)


def estimate_difference_error(series: Sequence[Sequence[float]]) -> DifferenceError | None:
    """Estimates the error of the difference between the means of the first series and any other.

    The interval is Student's, with Bonferroni's correction for the number of differences.

    Args:
        series: for each configuration, a value for each seed.

    Returns:
        None for a single seed.
    """
    noise = estimate_noise(series)
    if noise is None:
        return None
    differences = len(series) - 1
    seeds = len(series[0])
    standard_error = math.sqrt(2 / seeds) * noise.deviation
    quantile = student_quantile(noise.freedom, TAIL / differences)
    return DifferenceError(standard_error, half_interval=standard_error * quantile)


def difference(one: float, other: float) -> float:
    """Returns one minus the other; 0 if they differ only by rounding."""
    if math.isclose(one, other, rel_tol=ROUNDING):
        return 0.0
    return one - other


def summarize(values: Sequence[float], bounds: Interval = ANYTHING) -> Summary:
    """Summarizes values that differ only by their seed: their mean, spread and Student's interval.

    Fewer than three values have no spread, and equal values have no interval.

    Args:
        bounds: the lowest and the highest value of the metric.
    """
    summary = Summary(mean(values), values=tuple(values))
    if len(values) < LEAST_SEEDS:
        return summary
    spread = standard_deviation(values)
    if not math.isfinite(spread):
        return summary
    summary = replace(summary, std=spread)
    if spread == 0:
        return summary
    half_interval = student_quantile(len(values) - 1) * spread / math.sqrt(len(values))
    interval = (summary.mean - half_interval, summary.mean + half_interval)
    if not _is_finite(interval):
        return summary
    return replace(summary, interval=_cut_at_bounds(interval, summary.mean, bounds))


def _is_finite(interval: Interval) -> bool:
    """Returns whether both ends of an interval are finite."""
    low, high = interval
    return math.isfinite(low) and math.isfinite(high)


def _cut_at_bounds(interval: Interval, mean: float, bounds: Interval) -> Interval:
    """Cuts an interval at the bounds of the metric, which costs no coverage.

    A loop may give the name of a known metric to another quantity, such as an accuracy in
    percent. So bounds that exclude the mean are ignored.
    """
    lowest, highest = bounds
    if not lowest <= mean <= highest:
        return interval
    low, high = interval
    return max(lowest, low), min(highest, high)


def student_quantile(freedom: float, tail: float = TAIL) -> float:
    """Returns how many standard errors a Student's interval has to each side of the mean.

    Args:
        freedom: the degrees of freedom.
        tail: the probability that the true mean lies above the interval; that it lies below is as
            large.
    """
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # 0.4 s to import

    return float(stdtrit(min(freedom, MOST_FREEDOM), 1 - tail))


def _estimate_interval(
    middle: float,
    values: Sequence[Sequence[float]],
    sampled: Sequence[Sampled],
    bounds: Interval,
) -> Interval | None:
    """Estimates a 95% interval of a mean, or of the difference of two, over seeds and examples.

    Each network was measured on each example. The variance over examples is the covariance of
    networks with different seeds on the same examples, so that the chance of single networks
    counts once, as part of the variance over seeds (Obuchowski & Rockette 1995, Communications in
    Statistics 24; degrees of freedom: Hillis 2007, Statistics in Medicine 26). Between two bounds
    the interval is symmetric in the logarithm of the odds. With one or two seeds it covers only the
    examples.

    Args:
        middle: the mean, or the difference.
        values: a value for each seed, of a candidate, or of each of the two that differ.
        sampled: the values of the same candidates on examples, see `resample`.
        bounds: the lowest and the highest value of the mean or difference.

    Returns:
        None if all values are equal, or the mean is at a bound.
    """
    # All values are divided by a power of two, which is exact: squares of huge ones would overflow.
    scale = scale_of([middle, *itertools.chain(*values)])
    scaled_values = []
    for values_by_seed in values:
        scaled_values.append([value / scale for value in values_by_seed])
    scaled_rows = [rows / scale for rows in sampled]
    low, high = bounds
    scaled_bounds = (low / scale, high / scale)
    scaled_interval = _estimate_scaled_interval(
        middle / scale, scaled_values, scaled_rows, scaled_bounds
    )
    if scaled_interval is None:
        return None
    interval = (scale * scaled_interval[0], scale * scaled_interval[1])
    if not _is_finite(interval):
        return None
    return interval


def _estimate_scaled_interval(
    middle: float,
    values: Sequence[Sequence[float]],
    sampled: Sequence[Sampled],
    bounds: Interval,
) -> Interval | None:
    """Estimates an interval as `_estimate_interval` does, of values whose squares are finite."""
    seeds = len(values[0])
    if seeds >= LEAST_SEEDS:
        variances_over_seeds = [standard_deviation(series) ** 2 / seeds for series in values]
    else:
        variances_over_seeds = [0.0]
    variance_over_examples = max(0.0, _estimate_variance_over_examples(sampled, seeds))
    variance = sum(variances_over_seeds) + variance_over_examples
    if variance == 0 or middle in bounds:  # such as the accuracy if all examples are right
        return None

    # The degrees of freedom, of Satterthwaite: only the variances over seeds are estimated from few
    # values, each from `seeds`.
    squares = sum(over_seeds**2 for over_seeds in variances_over_seeds) / max(1, seeds - 1)
    if squares > 0:
        freedom = variance**2 / squares
    else:
        freedom = math.inf
    half_interval = student_quantile(freedom) * math.sqrt(variance)

    low, high = bounds
    is_between_bounds = math.isfinite(high - low) and low < middle < high
    if not is_between_bounds:
        return middle - half_interval, middle + half_interval
    return _make_interval_of_odds(middle, half_interval, bounds)


def _estimate_variance_over_examples(sampled: Sequence[Sampled], seeds: int) -> float:
    """Estimates the variance over test examples of a mean over seeds, or of a difference of two.

    The variance of a difference is the sum of both variances, minus the covariance in both orders.

    Args:
        sampled: the values on examples of a candidate, or of the two that differ.
        seeds: the number of seeds.
    """
    variance = 0.0
    for first_index, first in enumerate(sampled):
        for second_index, second in enumerate(sampled):
            # `np.cov` returns the covariances of all columns, first those of `first`, then those
            # of `second`. Only those between the two are used: (seeds, seeds).
            covariances = np.cov(first.T, second.T)[:seeds, seeds:]
            total = covariances.sum()
            if first_index != second_index:
                variance -= total / (seeds * seeds)
            elif seeds < LEAST_SEEDS:
                variance += total / (seeds * seeds)
            else:
                # A network's covariance with itself also has the chance of this network, which
                # the variance over seeds counts already.
                total_between_networks = total - np.trace(covariances)
                variance += total_between_networks / (seeds * (seeds - 1))
    return float(variance)


def _make_interval_of_odds(middle: float, half_interval: float, bounds: Interval) -> Interval:
    """Makes an interval that is symmetric in the logarithm of the odds, so that it has bounds.

    Args:
        middle: a value between the bounds.
        half_interval: half of the interval that would be symmetric in the value.
    """
    from scipy.special import expit

    low, high = bounds
    log_odds = math.log((middle - low) / (high - middle))
    # The step in the log of the odds that is `half_interval` in the value, by the derivative
    step = half_interval * (high - low) / ((middle - low) * (high - middle))
    ends = low + (high - low) * expit(np.array([log_odds - step, log_odds + step]))
    return float(ends[0]), float(ends[1])


def resample(
    metric: Metric,
    outputs: Mapping[Key, Sequence[Outputs]],
    examples: int,
    seed: int,
) -> dict[Key, Sampled] | None:
    """Measures networks on resamples of the test examples, the same for all networks.

    Each resample has as many examples of each class as the test set, so that metrics over classes
    are defined. A metric that is a mean over examples needs no resamples: it is measured on each
    example.

    Args:
        outputs: the outputs of the network of each seed, by candidate.
        examples: the number of test examples.

    Returns:
        The values of each candidate, (resamples or examples, seeds). None if outputs do not belong
        to single examples, as with several predicted steps of a sequence, or if the metric is
        undefined on a resample.
    """
    all_outputs = list(itertools.chain(*outputs.values()))
    for network in all_outputs:
        if len(network.outputs) != examples or len(network.targets) != examples:
            return None
    values_by_example = _score_examples(metric, outputs, examples)
    if values_by_example is not None:
        return values_by_example

    sampled = {}
    for key, outputs_by_seed in outputs.items():
        sampled[key] = np.zeros((RESAMPLES, len(outputs_by_seed)))
    strata = _find_strata(all_outputs[0].targets.cpu().numpy())
    generator = np.random.default_rng(seed)
    for row in range(RESAMPLES):
        drawn = _draw_resample(strata, generator)
        for key, outputs_by_seed in outputs.items():
            try:
                for column, network in enumerate(outputs_by_seed):
                    value = metric(network.outputs[drawn], network.targets[drawn])
                    sampled[key][row, column] = value
            except UndefinedMetric:
                return None
    return sampled


def _draw_resample(
    strata: Sequence[NDArray[np.intp]], generator: np.random.Generator
) -> NDArray[np.intp]:
    """Draws the indices of a resample: from each stratum, with replacement, as many as it has.

    Args:
        strata: the indices of the examples of each class.
    """
    drawn_parts = []
    for stratum in strata:
        # This draws as `generator.choice` does, in half of its time.
        places = generator.integers(0, len(stratum), len(stratum))
        drawn_parts.append(stratum[places])
    return np.concatenate(drawn_parts)


def _find_strata(targets: NDArray[np.generic]) -> list[NDArray[np.intp]]:
    """Returns the indices of the examples of each class; all examples if there are no classes."""
    has_classes = targets.ndim == 1 and targets.dtype.kind in "iu"  # integers
    if not has_classes:
        return [np.arange(len(targets))]
    return [np.flatnonzero(targets == label) for label in np.unique(targets)]


def _score_examples(
    metric: Metric, outputs: Mapping[Key, Sequence[Outputs]], examples: int
) -> dict[Key, Sampled] | None:
    """Returns the metric of each example; None if the metric is not a mean over examples.

    Args:
        outputs: the outputs of the network of each seed, by candidate.
        examples: the number of test examples.

    Returns:
        The values of each candidate, (examples, seeds), as `Sampled` has them.
    """
    sampled = {}
    for key, outputs_by_seed in outputs.items():
        values_by_seed = []
        for network in outputs_by_seed:
            values = example_scores(metric, network.outputs, network.targets)
            if values is None:
                return None
            values_by_seed.append(values.cpu().numpy())
        sampled[key] = np.array(values_by_seed).T / math.sqrt(examples)
    return sampled
