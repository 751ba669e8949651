"""Means over seeds, their intervals, and differences."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from studyloom.averages import Interval, mean, scale_of, standard_deviation
from studyloom.errors import UndefinedMetric
from studyloom.metrics import ANYTHING, Metric, example_scores
from studyloom.winner.result import Scores, Summary

if TYPE_CHECKING:
    from torch import Tensor

Key = TypeVar("Key")  # of a network or candidate
# Rows of values by seed, (rows, seeds), whose covariance over rows is that of the values over test
# examples: the values on resamples, or those of single examples over the root of their number.
Sampled = NDArray[np.float64]
# A metric of scikit-learn takes some milliseconds for each network and resample.
RESAMPLES = 99
ROUNDING = 1e-12  # the largest share of a value by which only rounding changes it
ENOUGH = 3  # seeds for a spread: of two, Student's interval is 13 standard errors to each side
NORMAL = 1.959964  # standard deviations from the mean to the ends of a 95% interval
BOTH, SEEDS, EXAMPLES = "seeds and examples", "seeds", "examples"  # what an interval covers


@dataclass(frozen=True)
class Outputs:
    """The outputs of a network for some examples and their targets, both (n, …), on the CPU."""

    outputs: "Tensor"
    targets: "Tensor"

    def score(self, metric: Metric) -> float:
        return metric(self.outputs, self.targets)


def compare(
    values: Mapping[Key, Sequence[float]],
    winner: Key,
    baseline: Key | None,
    sampled: Mapping[Key, Sampled] | None = None,
    bounds: Interval = ANYTHING,
) -> Scores:
    """Summarizes winner and baseline, and the difference between them.

    Args:
        sampled: by which the variance over test examples is known, see `resample`; None if
            intervals shall cover only seeds, and the difference is that of each seed with itself.
        bounds: the lowest and the highest value of the metric.
    """

    def summary(series: Sequence[float], ends: Interval, one: Key, other: Key | None) -> Summary:
        known = summarize(series, ends)
        if sampled is None:
            return known
        keys = [key for key in (one, other) if key is not None]
        by_seed, on = [values[key] for key in keys], [sampled[key] for key in keys]
        return replace(known, interval=_interval(known.mean, by_seed, on, ends))

    won = values[winner]
    spread = len(won) >= ENOUGH and len({*won}) > 1
    covers = SEEDS if sampled is None else BOTH if spread else EXAMPLES
    scores = Scores(summary(won, bounds, winner, None), covers)
    if baseline is None or baseline == winner:
        return scores
    other = values[baseline]
    differences = [difference(*pair) for pair in zip(won, other, strict=True)]
    low, high = bounds
    return replace(
        scores,
        baseline=summary(other, bounds, baseline, None),
        difference=summary(differences, (low - high, high - low), winner, baseline),
    )


def errors_of_differences(series: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """Returns the error of the difference between the means of the first series and any other.

    Each series has a value for each seed. The noise is what neither series nor seed explains,
    pooled over all series: three seeds of a single one are too few to estimate it.

    Returns:
        The standard error; and half of the 95% interval, which holds for all differences at once
        (Student's, with Bonferroni's correction). None for a single seed.
    """
    unscaled = np.array(series)
    others, seeds = unscaled.shape[0] - 1, unscaled.shape[1]
    if not (freedom := others * (seeds - 1)):
        return None
    scale = scale_of(unscaled.ravel().tolist())
    values = unscaled / scale
    rest = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    rest[np.abs(rest) <= ROUNDING * np.abs(values).max()] = 0.0
    error = scale * math.sqrt(2 * float((rest**2).sum()) / freedom / seeds)
    return error, error * _student(freedom, 0.025 / others)


def difference(one: float, other: float) -> float:
    """Returns one minus the other; 0 if they differ only by rounding."""
    return 0.0 if math.isclose(one, other, rel_tol=ROUNDING) else one - other


def summarize(values: Sequence[float], bounds: Interval = ANYTHING) -> Summary:
    """Summarizes values that differ only by their seed; the interval is Student's.

    Fewer than three have no spread, and equal values have no interval.

    Args:
        bounds: the lowest and the highest value of the metric.
    """
    middle, known = mean(values), tuple(values)
    if len(values) < ENOUGH:
        return Summary(middle, values=known)
    spread = standard_deviation(values)
    if spread == 0:
        return Summary(middle, spread, values=known)
    if not math.isfinite(spread):
        return Summary(middle, values=known)
    half = _student(len(values) - 1) * spread / math.sqrt(len(values))
    interval = _finite((middle - half, middle + half))
    if interval is not None:
        interval = _within(interval, middle, bounds)
    return Summary(middle, spread, interval, known)


def _finite(interval: Interval) -> Interval | None:
    """Returns an interval; None if an end is larger than any float."""
    return interval if all(map(math.isfinite, interval)) else None


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
    """Returns Student's quantile for an interval that misses by `tail` on each side."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # 0.4 s to import

    return float(stdtrit(min(freedom, 1e9), 1 - tail))


def _interval(
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
        values: by seed, of a candidate, or of the two that differ.
        sampled: their rows, see `resample`.
    """
    scale = scale_of([middle, *itertools.chain(*values)])
    if scale != 1:
        low, high = bounds
        scaled = [[value / scale for value in series] for series in values]
        rows = [series / scale for series in sampled]
        interval = _interval(middle / scale, scaled, rows, (low / scale, high / scale))
        return None if interval is None else _finite((scale * interval[0], scale * interval[1]))
    count, examples, seeds = len(values[0]), 0.0, [0.0]
    several = count >= ENOUGH
    for n, one in enumerate(sampled):
        for m, other in enumerate(sampled):
            shared = np.cov(one.T, other.T)[:count, count:]
            own = several and n == m  # then without the covariance of a network with itself
            total = shared.sum() - own * np.trace(shared)
            examples += (1 if n == m else -1) * total / (count * (count - own))
    if several:
        seeds = [standard_deviation(each) ** 2 / count for each in values]
    whole = sum(seeds) + max(0.0, float(examples))
    low, high = bounds
    if whole == 0 or middle in bounds:  # as of examples that are all right
        return None
    squares = sum(each**2 for each in seeds) / max(1, count - 1)
    half = _student(whole**2 / squares if squares else math.inf) * math.sqrt(whole)
    if not (math.isfinite(high - low) and low < middle < high):
        return middle - half, middle + half
    from scipy.special import expit

    place = math.log((middle - low) / (high - middle))
    step = half * (high - low) / ((middle - low) * (high - middle))
    first, last = low + (high - low) * expit(np.array([place - step, place + step]))
    return float(first), float(last)


def resample(
    metric: Metric,
    found: Mapping[Key, Sequence[Outputs]],
    examples: int,
    seed: int,
) -> dict[Key, Sampled] | None:
    """Measures networks on resamples of the test examples, the same for all of them.

    Each resample has as many examples of each class as the test set, so that metrics over classes
    are defined. A metric that is a mean over examples needs none: its rows are the examples.

    Returns:
        The rows by candidate; None if outputs do not belong to single examples, as with several
        predicted steps of a sequence, or if the metric is undefined on a resample.
    """
    networks = [each for by_seed in found.values() for each in by_seed]
    if any(len(each.outputs) != examples or len(each.targets) != examples for each in networks):
        return None
    scores = {n: [_scores(metric, each) for each in by] for n, by in found.items()}
    if all(each is not None for by_seed in scores.values() for each in by_seed):
        return {n: np.array(by).T / math.sqrt(examples) for n, by in scores.items()}
    targets, generator = networks[0].targets.cpu().numpy(), np.random.default_rng(seed)
    labels = targets if targets.ndim == 1 and targets.dtype.kind in "iu" else np.zeros(examples)
    strata = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    resampled = {n: np.zeros((RESAMPLES, len(each))) for n, each in found.items()}
    for row in range(RESAMPLES):
        # As `generator.choice` draws, in half of its time.
        drawn = np.concatenate([s[generator.integers(0, len(s), len(s))] for s in strata])
        for n, by_seed in found.items():
            try:
                values = [metric(each.outputs[drawn], each.targets[drawn]) for each in by_seed]
            except UndefinedMetric:
                return None
            resampled[n][row] = values
    return resampled


def _scores(metric: Metric, found: Outputs) -> NDArray[np.float64] | None:
    scores = example_scores(metric, found.outputs, found.targets)
    return None if scores is None else scores.cpu().numpy()
