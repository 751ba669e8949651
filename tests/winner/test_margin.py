"""The margin by which a trial must beat the default configuration on new seeds."""

import numpy as np
import pytest

from studyloom.winner.margin import CandidateValues, Margin, estimate_margin

BEST = CandidateValues([0.95, 0.93, 0.96], searched=0.96)
BASELINE = CandidateValues([0.93, 0.92, 0.93], searched=0.93)
OTHER = CandidateValues([0.94, 0.93, 0.92], searched=0.94)
SEARCHED = [0.96, 0.94, 0.93, 0.91, 0.88, 0.80]


def shift(candidate, offsets):
    new_values = [value + offset for value, offset in zip(candidate.new, offsets, strict=True)]
    return CandidateValues(new_values, candidate.searched)


def test_what_a_seed_does_to_all_candidates_does_not_count():
    """A validation split may be easy: all candidates are better on it."""
    margin = estimate_margin(BEST, BASELINE, [OTHER], SEARCHED)
    shifted = [shift(candidate, (0.0, 0.5, -0.3)) for candidate in (BEST, BASELINE, OTHER)]
    easy = estimate_margin(shifted[0], shifted[1], [shifted[2]], SEARCHED)
    assert easy.margin == pytest.approx(margin.margin)
    assert easy.error == pytest.approx(margin.error)


def test_the_noise_is_pooled_over_the_candidates():
    alone = estimate_margin(BEST, BASELINE, [], SEARCHED)
    steady = CandidateValues([0.94, 0.93, 0.95], searched=0.94)
    assert estimate_margin(BEST, BASELINE, [steady] * 2, SEARCHED).error < alone.error


def test_the_margin_grows_with_the_number_of_trials():
    few = estimate_margin(BEST, BASELINE, [OTHER], SEARCHED)
    many = estimate_margin(BEST, BASELINE, [OTHER], SEARCHED * 20)
    assert many.error == few.error
    assert many.margin > few.margin


def test_a_trial_that_was_better_in_the_search_too_needs_less():
    margin = estimate_margin(BEST, BASELINE, [OTHER], SEARCHED).margin
    worse_baseline = CandidateValues(BASELINE.new, searched=0.80)
    assert estimate_margin(BEST, worse_baseline, [OTHER], SEARCHED).margin < margin
    better_baseline = CandidateValues(BASELINE.new, searched=0.96)
    assert estimate_margin(BEST, better_baseline, [OTHER], SEARCHED).margin > margin


def test_an_unstable_candidate_does_not_hide_the_gain_of_another():
    without = estimate_margin(BEST, BASELINE, [OTHER], SEARCHED)
    collapsed = CandidateValues([0.97, 0.10, 0.96], searched=0.97)
    assert estimate_margin(BEST, BASELINE, [OTHER, collapsed], SEARCHED) == without


def test_the_search_stands_in_for_a_second_seed():
    best = CandidateValues([0.945], searched=0.96)
    baseline = CandidateValues([0.940], searched=0.94)
    unsure = estimate_margin(best, baseline, [], SEARCHED)  # a gain of 0.005, and of 0.02 there
    assert unsure.margin > 0.005
    baseline_of_same_gain = CandidateValues([0.940], searched=0.955)
    assert estimate_margin(best, baseline_of_same_gain, [], SEARCHED).margin == 0


def test_without_noise_any_gain_is_enough():
    best, baseline = CandidateValues([0.9501] * 3, 0.96), CandidateValues([0.95] * 3, 0.95)
    assert estimate_margin(best, baseline, [], SEARCHED) == Margin(0.0, 0.0)


def test_huge_values_do_not_overflow():
    huge = [CandidateValues([-1e300, -2e300, -1.5e300], searched=-1e300), BASELINE]
    margin = estimate_margin(BEST, huge[0], [huge[1]], [*SEARCHED, -1e308])
    assert np.isfinite([margin.margin, margin.error]).all()


@pytest.mark.parametrize("trials", [12, 40])
def test_few_trials_that_win_are_truly_worse(trials):
    """The default configuration is better than half of the trials, than 90% or than 99%."""
    generator = np.random.default_rng(trials)
    gains = []  # of the trials that win, in truth
    possible_gains = []
    for study in range(600):
        noise = (0.15, 0.5, 1.0)[study % 3]
        default = (0.0, 1.28, 2.33)[study // 3 % 3]
        truths = np.array([default, *generator.normal(size=trials)])
        searched = truths + noise * generator.normal(size=trials + 1)
        best_of_search = 1 + np.argsort(-searched[1:])[:3]
        chosen = np.array([0, *best_of_search])
        luck_of_split = 2 * noise * generator.normal(size=3)
        noise_of_seeds = noise * generator.normal(size=(4, 3))
        values = truths[chosen, None] + luck_of_split + noise_of_seeds  # (candidates, seeds)
        candidates = [
            CandidateValues(new_values.tolist(), searched=float(searched[number]))
            for number, new_values in zip(chosen, values, strict=True)
        ]
        baseline = candidates.pop(0)
        index = int(np.argmax(values[1:].mean(1)))
        best = candidates.pop(index)
        margin = estimate_margin(best, baseline, candidates, searched[1:].tolist()).margin
        true_gain = truths[best_of_search[index]] - default
        possible_gains.append(max(true_gain, 0.0))
        if np.mean(best.new) - np.mean(baseline.new) > margin:
            gains.append(true_gain)
    assert np.mean(np.array(gains) < 0) < 0.05
    assert sum(gains) > 0.85 * sum(possible_gains)
