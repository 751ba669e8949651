"""Laws of the intervals of a test: they cover its seeds and its examples."""

import numpy as np
import pytest
import torch
from scipy import special, stats

from studyloom.metrics import METRICS, example_scores
from studyloom.winner.result import Summary
from studyloom.winner.statistics import (
    DifferenceError,
    Outputs,
    compare,
    difference,
    estimate_difference_error,
    resample,
    summarize,
)

EXAMPLES = 400


def evaluate(seeds, right, draw=0):
    """Returns outputs and targets of networks of two classes that are right on a share."""
    generator = torch.Generator().manual_seed(draw)
    targets = torch.arange(EXAMPLES) % 2
    pairs = []
    for _ in range(seeds):
        hit = torch.rand(EXAMPLES, generator=generator) < right
        predicted = torch.where(hit, targets, 1 - targets)
        pairs.append(Outputs(torch.nn.functional.one_hot(predicted, 2).float(), targets))
    return pairs


def width(interval):
    return interval[1] - interval[0]


def intervals(evaluated, name="accuracy"):
    metric = METRICS[name]
    values = {}
    for candidate, outputs_by_seed in evaluated.items():
        values[candidate] = [outputs.score(metric) for outputs in outputs_by_seed]
    sampled = resample(metric, evaluated, EXAMPLES, 0)
    return values, compare(values, 4, 0, sampled, bounds=metric.bounds)


def test_equal_networks_are_still_uncertain_by_the_examples():
    one = evaluate(1, 0.9)[0]
    values, test = intervals({4: [one] * 3, 0: evaluate(3, 0.8, 1)})
    assert summarize(values[4]).interval is None
    binomial = 2 * 1.96 * np.sqrt(values[4][0] * (1 - values[4][0]) / EXAMPLES)
    assert width(test.winner.interval) == pytest.approx(binomial, rel=0.15)
    assert test.intervals_cover == "examples"


def test_without_a_spread_over_examples_an_interval_is_student_t():
    values = {4: [0.9, 0.92, 0.95, 0.91, 0.93]}
    same = {4: np.tile(values[4], (100_000, 1))}
    seeds = summarize(values[4]).interval
    both = compare(values, 4, None, same).winner.interval
    assert width(both) == pytest.approx(width(seeds), rel=0.1)


def test_a_single_seed_has_an_interval_over_the_examples():
    _, test = intervals({4: evaluate(1, 0.9), 0: evaluate(1, 0.5, 1)})
    assert test.intervals_cover == "examples"
    assert test.difference.interval[0] > 0


def test_without_values_of_examples_an_interval_covers_only_the_seeds():
    """The difference is the mean of the differences between equal seeds."""
    assert resample(METRICS["accuracy"], {4: evaluate(1, 0.9)}, EXAMPLES // 2, 0) is None
    test = compare({4: [0.9, 0.8, 0.7], 0: [0.7, 0.6, 0.5]}, 4, 0)
    assert test.intervals_cover == "seeds"
    assert test.winner.interval == summarize([0.9, 0.8, 0.7]).interval
    assert test.difference.mean == pytest.approx(0.2)
    assert test.difference.std == pytest.approx(0.0, abs=1e-12)
    assert compare({4: [0.9, 0.8]}, 4, baseline=None).difference is None


def test_an_interval_over_seeds_is_that_of_scipy():
    for count in (3, 200):
        values = np.random.default_rng(0).normal(0.9, 0.01, count)
        error = stats.sem(values)
        expected = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=error)
        assert summarize(values.tolist()).interval == pytest.approx(expected, rel=1e-9)


def test_a_metric_that_is_not_a_mean_is_computed_on_each_resample():
    """The root of a mean is not a mean over examples."""
    numbers = torch.randn(EXAMPLES, 1, generator=torch.Generator().manual_seed(0))
    evaluated = {
        n: [Outputs(numbers + error * torch.cos(seed + 7 * numbers), numbers) for seed in range(3)]
        for n, error in ((4, 0.1), (0, 0.5))
    }
    _, test = intervals(evaluated, "rmse")
    assert test.intervals_cover == "seeds and examples"
    assert test.difference.interval[1] < 0


def test_the_scores_of_examples_have_the_metric_as_their_mean():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(50, 3, generator=generator)
    for name in ("accuracy", "cross_entropy", "mse", "mae"):
        classes = METRICS[name].targets == "classes"
        targets = torch.arange(50) % 3 if classes else torch.randn(50, 3, generator=generator)
        scores = example_scores(METRICS[name], outputs, targets)
        assert scores.shape == (50,)
        assert float(scores.mean()) == pytest.approx(METRICS[name](outputs, targets), rel=1e-6)
    for name in ("mse", "mae"):  # targets of one value each may lack a dimension
        outputs, targets = torch.randn(2, 50, generator=generator)
        scores = example_scores(METRICS[name], outputs[:, None], targets)
        assert torch.equal(scores, example_scores(METRICS[name], outputs, targets))
        assert float(scores.mean()) == pytest.approx(METRICS[name](outputs, targets), rel=1e-6)


def test_a_spread_needs_three_different_seeds():
    assert summarize([0.9]) == Summary(0.9, values=(0.9,))
    assert summarize([0.9, 0.8]) == Summary(pytest.approx(0.85), values=(0.9, 0.8))
    fixed = summarize([0.635] * 3)
    assert (fixed.std, fixed.interval, fixed.is_same_for_all_seeds) == (0.0, None, True)
    one = evaluate(1, 0.9)
    two = evaluate(2, 0.9)
    baselines = evaluate(3, 0.8, 1)
    for winner, baseline in ((two, baselines[:2]), (one * 3, baselines)):
        assert intervals({4: winner, 0: baseline})[1].intervals_cover == "examples"


def test_values_that_differ_only_by_rounding_have_no_difference():
    assert difference(0.1 + 0.2, 0.3) == 0.0
    assert difference(0.5, 0.3) == 0.5 - 0.3
    assert compare({0: [0.1 + 0.2], 1: [0.3]}, 0, 1).difference.mean == 0.0


def test_an_interval_ends_at_the_bounds_of_the_metric():
    near = summarize([0.97, 1.0, 0.99], METRICS["accuracy"].bounds)
    assert near.interval[1] == 1.0
    assert near.interval[0] == summarize([0.97, 1.0, 0.99]).interval[0]
    _, test = intervals({4: evaluate(3, 0.996), 0: evaluate(3, 0.5, 1)})
    assert test.winner.interval[1] <= 1.0
    assert test.difference.interval[1] <= 1.0
    percent = [97.0, 99.0, 98.0]
    assert summarize(percent, (0.0, 1.0)).interval == summarize(percent).interval
    right = Outputs(torch.eye(2).repeat(EXAMPLES // 2, 1), torch.arange(EXAMPLES) % 2)
    assert intervals({4: [right] * 3, 0: evaluate(3, 0.5)})[1].winner.interval is None


@pytest.mark.parametrize("ease", [1.0, 4.0])
def test_ninety_five_percent_of_intervals_contain_the_truth(ease):
    """Networks err on the same hard examples, by chance, and by their seed."""
    generator = np.random.default_rng(0)
    shifts = {4: 0.3, 0: 0.0}
    many = 2 * generator.normal(size=100_000)
    truth = {key: special.expit(ease + shift - many).mean() for key, shift in shifts.items()}
    gain = truth[4] - truth[0]
    covered = []
    errors = []
    widths = []
    for _ in range(1000):
        difficulty = 2 * generator.normal(size=EXAMPLES)
        values = {}
        rows = {}
        for key, shift in shifts.items():
            seeds = generator.normal(ease + shift, 0.06, size=(3, 1))
            right = generator.random((3, EXAMPLES)) < special.expit(seeds - difficulty)
            values[key] = right.mean(1)
            rows[key] = right.T / np.sqrt(EXAMPLES)
        test = compare(values, 4, 0, rows, bounds=METRICS["accuracy"].bounds)
        ends = (test.winner.interval, truth[4]), (test.difference.interval, gain)
        covered.append([low <= true <= high for (low, high), true in ends])
        errors.append(test.difference.mean - gain)
        widths.append(width(test.difference.interval))
    assert np.mean(covered, axis=0) == pytest.approx([0.95, 0.95], abs=0.025)
    assert np.mean(widths) < 1.6 * 2 * 1.96 * np.std(errors), "paired by the examples"


HUGE = [7.9, 8.1, 1.4e217]  # a perplexity of exp(500) is a finite number


def test_a_value_whose_square_overflows_is_summarized():
    summary = summarize(HUGE)
    assert summary.mean == pytest.approx(1.4e217 / 3)
    assert summary.std == pytest.approx(1.4e217 / np.sqrt(3))
    largest = (1.7e308, -1.7e308, 1.7e308, -1.7e308)
    assert summarize(largest) == Summary(0.0, values=largest)


def test_an_interval_of_huge_values_is_a_scaled_one_of_small_values():
    small = {4: [1.0, 2.0, 4.0], 0: [3.0, 5.0, 6.0]}
    rows = {n: np.random.default_rng(n).normal(size=(50, 3)) for n in small}
    scale = 2.0**700
    huge = {n: [value * scale for value in values] for n, values in small.items()}
    expected = compare(small, 4, 0, rows)
    scores = compare(huge, 4, 0, {n: scale * series for n, series in rows.items()})
    for role in ("winner", "baseline", "difference"):
        interval = getattr(expected, role).interval
        assert getattr(scores, role).interval == tuple(scale * end for end in interval)


def test_the_error_of_differences_ignores_rounding_and_does_not_overflow():
    equal = estimate_difference_error([[0.3, 0.3, 0.3], [0.1 + 0.2, 0.3, 0.3]])
    assert equal == DifferenceError(0.0, 0.0)
    error = estimate_difference_error([HUGE, [7.8, 8.0, 9.0]])
    assert error.standard_error == pytest.approx(1.4e217 / 3, rel=1e-3)
