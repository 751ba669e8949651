"""Means over seeds, their intervals, and differences."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from studyloom.errors import UndefinedMetric
from studyloom.metrics import ANYTHING, Metric, example_scores
from studyloom.winner.result import Covered, Interval, Scores, Summary

if TYPE_CHECKING:
    from torch import Tensor

Key = TypeVar("Key")  # of a network or candidate
Resampled = NDArray[np.float64]  # the value of each seed on each resample, (resamples, seeds)
# Resamples for a mean over examples, and for a metric that is recomputed on each. A metric of
# scikit-learn takes some milliseconds for each network, and there are ten.
MEANS, OTHERS = 1999, 99
ENOUGH = 3  # seeds for a spread: of two, Student's interval is 13 standard errors to each side
TAILS = (2.5, 97.5)  # percentiles of a 95% interval
NORMAL = 1.959964  # their distance from the mean, in standard deviations
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
    resampled: Mapping[Key, Resampled] | None = None,
    seed: int = 0,
    bounds: Interval = ANYTHING,
) -> Scores:
    """Summarizes winner and baseline, and the difference between them seed by seed.

    Args:
        resampled: the values on the same resamples of the test examples; None if intervals shall
            cover only seeds.
        bounds: the lowest and the highest value of the metric.
    """

    def summary(series: Sequence[float], on: Resampled | None, ends: Interval) -> Summary:
        known = summarize(series, ends)
        if on is None:
            return known
        low, high = _interval(series, on, seed)
        if low == high:  # of examples that are all right, no resample has another value
            return replace(known, interval=None)
        return replace(known, interval=_within((low, high), known.mean, ends))

    on = resampled or {}
    won = values[winner]
    spread = len(won) >= ENOUGH and len({*won}) > 1
    covers = SEEDS if not on else BOTH if spread else EXAMPLES
    covered = Covered(covers, len(on[winner]) if on else None)
    scores = Scores(summary(won, on.get(winner), bounds), covered)
    if baseline is None or baseline == winner:
        return scores
    other = values[baseline]
    differences = [difference(*pair) for pair in zip(won, other, strict=True)]
    both = on[winner] - on[baseline] if on else None
    low, high = bounds
    return replace(
        scores,
        baseline=summary(other, on.get(baseline), bounds),
        difference=summary(differences, both, (low - high, high - low)),
    )


def difference(one: float, other: float) -> float:
    """Returns one minus the other; 0 if they differ only by rounding."""
    return 0.0 if math.isclose(one, other, rel_tol=1e-12) else one - other


def summarize(values: Sequence[float], bounds: Interval = ANYTHING) -> Summary:
    """Summarizes values that differ only by their seed; the interval is Student's.

    Fewer than three have no spread, and equal values have no interval.

    Args:
        bounds: the lowest and the highest value of the metric.
    """
    mean, known = fmean(values), tuple(values)
    if len(values) < ENOUGH:
        return Summary(mean, values=known)
    if (spread := stdev(values)) == 0:
        return Summary(mean, spread, values=known)
    half = _student(len(values)) * spread / math.sqrt(len(values))
    return Summary(mean, spread, _within((mean - half, mean + half), mean, bounds), known)


def rank_correlation(
    pairs: Sequence[tuple[float, float]],
) -> tuple[float | None, Interval | None]:
    """Returns Spearman's rank correlation, and its 95% interval by Bonett & Wright (2000).

    Both are None for fewer than three pairs or equal values; the interval is None for fewer than
    six pairs, where it would be too wide to say anything.
    """
    if len(pairs) < ENOUGH or any(len({*side}) == 1 for side in zip(*pairs, strict=True)):
        return None, None
    from scipy.stats import rankdata  # type: ignore[import-untyped]  # 1 s to import

    order = float(np.corrcoef(*(rankdata(side) for side in zip(*pairs, strict=True)))[0, 1])
    if len(pairs) < 2 * ENOUGH:
        return order, None
    middle = math.atanh(min(0.999, max(-0.999, order)))
    half = NORMAL * math.sqrt((1 + order**2 / 2) / (len(pairs) - 3))
    return order, (math.tanh(middle - half), math.tanh(middle + half))


def _within(interval: Interval, mean: float, bounds: Interval) -> Interval:
    """Cuts an interval at the bounds of the metric, which costs no coverage.

    A loop may give the name of a known metric to another quantity, such as an accuracy in
    percent: bounds that exclude the mean are ignored.
    """
    low, high = bounds
    if not low <= mean <= high:
        return interval
    return max(low, interval[0]), min(high, interval[1])


def _student(count: int) -> float:
    """Returns Student's quantile for a 95% interval of the mean of so many values."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # 0.4 s to import

    return float(stdtrit(count - 1, 0.975))


def _interval(values: Sequence[float], resampled: Resampled, seed: int) -> Interval:
    """Returns a 95% interval of the mean that covers seeds and examples.

    Seeds and examples are resampled independently, since each seed was measured on each example
    (the pigeonhole bootstrap: Owen 2007, Annals of Applied Statistics 1). The variance over five
    seeds drawn from five is four fifths of the true one, and percentiles ignore Student's
    correction: the contribution of the seeds is stretched by both factors. Without spread over
    examples the interval is Student's; with one or two seeds it covers only the examples. SciPy's
    bootstrap resamples along one axis only.
    """
    count = len(values)
    drawn = np.random.default_rng(seed).integers(0, count, resampled.shape)
    means = resampled.mean(axis=1)
    stretch = 0.0
    if count >= ENOUGH:
        stretch = _student(count) / NORMAL * math.sqrt(count / (count - 1))
    picked = np.take_along_axis(resampled, drawn, axis=1).mean(axis=1)
    low, high = np.percentile(means + stretch * (picked - means), TAILS)
    return float(low), float(high)


def resample(
    metric: Metric,
    found: Mapping[Key, Sequence[Outputs]],
    examples: int,
    seed: int,
) -> dict[Key, Resampled] | None:
    """Measures networks on resamples of the test examples, the same for all of them.

    Each resample has as many examples of each class as the test set, so that metrics over classes
    are defined. A metric that is a mean over examples is not computed again.

    Returns:
        The values by candidate; None if outputs do not belong to single examples, as with several
        predicted steps of a sequence, or if the metric is undefined on a resample.
    """
    networks = [each for by_seed in found.values() for each in by_seed]
    if any(len(each.outputs) != examples or len(each.targets) != examples for each in networks):
        return None
    measures = {n: [_measure(metric, each) for each in by_seed] for n, by_seed in found.items()}
    means = all(example_scores(metric, e.outputs, e.targets) is not None for e in networks)
    targets, generator = networks[0].targets.cpu().numpy(), np.random.default_rng(seed)
    labels = targets if targets.ndim == 1 and targets.dtype.kind in "iu" else np.zeros(examples)
    strata = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    resampled = {n: np.zeros((MEANS if means else OTHERS, len(each))) for n, each in found.items()}
    for row in range(MEANS if means else OTHERS):
        # As `generator.choice` draws, in half of its time.
        drawn = np.concatenate([s[generator.integers(0, len(s), len(s))] for s in strata])
        for n, each in measures.items():
            try:
                resampled[n][row] = [measure(drawn) for measure in each]
            except UndefinedMetric:
                return None
    return resampled


def _measure(metric: Metric, found: Outputs) -> Callable[[NDArray[np.int64]], float]:
    """Returns a function that computes the metric on the examples with the given indices."""
    outputs, targets = found.outputs, found.targets
    scores = example_scores(metric, outputs, targets)
    if scores is None:
        return lambda drawn: metric(outputs[drawn], targets[drawn])
    known = scores.cpu().numpy()
    return lambda drawn: float(known[drawn].mean())
