"""When a search has ended: a pure function of its trials and bounds."""

import random
from dataclasses import replace

import numpy as np
import pytest

from studyloom.search.ending import Bounds, Outcome, find_ending, gain_of
from studyloom.search.regret import gains

VALUES = [float(value) for value in np.random.default_rng(0).normal(0.9, 0.02, 40)]
BOUNDS = Bounds(regret=0.01, trials=40)


def outcomes(values, ended=True, epochs=3):
    return [Outcome(slot, ended, value, epochs) for slot, value in enumerate(values)]


def end_of(bounds, values=VALUES):
    """The number of trials after which a single worker ends."""
    counts = range(len(values) + 1)
    return next((n for n in counts if find_ending(bounds, outcomes(values[:n]))), None)


def test_it_ends_at_the_first_estimate_below_the_regret():
    asked = gains(VALUES, 40)
    end = end_of(BOUNDS)
    assert 10 < end < 40
    assert asked[end - 1] < 0.01
    assert all(gain is None or gain >= 0.01 for gain in asked[: end - 1])
    assert find_ending(BOUNDS, outcomes(VALUES[:end])).gain == asked[end - 1]


@pytest.mark.parametrize("seed", range(5))
def test_in_whatever_order_trials_end_every_worker_decides_the_same_and_for_good(seed):
    """Four workers: which of the slots under way ends next is drawn."""
    fate, state, decided = random.Random(seed), {}, None
    end = end_of(BOUNDS)
    while True:
        known = [
            Outcome(slot, ended, VALUES[slot] if ended else None, 3)
            for slot, ended in state.items()
        ]
        fate.shuffle(known)
        found = find_ending(BOUNDS, known)
        settled = next((n for n in range(len(state)) if not state[n]), len(state))
        assert (found is not None) == (settled >= end)
        assert decided is None or found.gain == decided.gain
        decided = found
        under_way = [slot for slot, ended in state.items() if not ended]
        if decided is None and len(under_way) < 4 and len(state) < 40:
            state[len(state)] = False
        elif under_way:
            state[fate.choice(under_way)] = True
        else:
            break
    assert decided.gain == gains(VALUES, 40)[end - 1]
    assert end <= len(state) == decided.begun < 40


def test_a_lower_regret_or_more_trials_never_end_it_earlier():
    assert end_of(BOUNDS) <= (end_of(replace(BOUNDS, regret=0.007)) or 40)
    for trials in (41, 60, 200):
        assert end_of(BOUNDS) <= (end_of(replace(BOUNDS, trials=trials)) or 40)


def test_a_higher_regret_is_asked_from_the_trials_on_that_have_ended_before():
    end = end_of(BOUNDS)
    assert end_of(replace(BOUNDS, since=end + 3)) >= end + 3
    spoilt = [*VALUES[:end], 2.0]  # the estimate is high again
    assert find_ending(replace(BOUNDS, since=end), outcomes(spoilt)) is not None
    assert find_ending(replace(BOUNDS, since=end + 1), outcomes(spoilt)) is None


def test_a_spent_budget_is_no_early_end():
    assert find_ending(BOUNDS, outcomes(VALUES)) is None
    assert find_ending(Bounds(epochs=5, trials=40), outcomes(VALUES)) is None


def test_it_ends_when_its_trials_have_reported_the_epochs_those_under_way_too():
    bounds = Bounds(epochs=12, trials=40)
    three = outcomes([0.5, None, 0.7])
    assert find_ending(bounds, three) is None
    found = find_ending(bounds, [*three, Outcome(3, False, None, 3)])
    assert (found.begun, found.gain, found.epochs) == (4, None, 12)
    assert found.words == "ended after 4 of 40 trials: 12 epochs of study.epochs=12 are spent"


def test_a_trial_that_waits_to_be_promoted_counts_as_one_that_has_ended():
    """Its slot is not done, and no prefix of slots would ever be without `ended`."""
    some = [None if n % 3 == 1 else value for n, value in enumerate(VALUES)]
    end = end_of(BOUNDS, some)
    paused = [o._replace(ended=True) for o in outcomes(some[:end])]
    assert find_ending(BOUNDS, paused) is not None
    assert find_ending(BOUNDS, [o._replace(ended=o.slot != 1) for o in paused]) is None


def test_slots_beyond_the_budget_and_out_of_order_do_not_count():
    beyond = [*outcomes(VALUES[:5]), Outcome(50, True, 9.0, 100)]
    assert find_ending(Bounds(epochs=50, trials=40), beyond) is None
    assert gain_of(BOUNDS, beyond) is None
    assert gain_of(BOUNDS, reversed(outcomes(VALUES))) == 0.0


def test_without_bounds_nothing_ends_it():
    assert find_ending(Bounds(trials=40), outcomes([0.7] * 30)) is None
    assert find_ending(Bounds(), []) is None


@pytest.mark.parametrize(
    ("stored", "bounds"),
    [
        (None, Bounds()),
        ("regret", Bounds()),
        ({"regret": "x", "epochs": True, "since": None, "further": 1}, Bounds()),
        ({"regret": 1, "epochs": 5, "since": 2, "trials": 8}, Bounds(1, 5, 2, 8)),
    ],
)
def test_what_another_program_stores_is_no_bound(stored, bounds):
    assert Bounds.parse(stored) == bounds


def test_its_words_say_how_many_trials_are_spared():
    found = find_ending(BOUNDS, outcomes(VALUES[: end_of(BOUNDS)]))
    assert found.words == (
        f"ended after {found.begun} of 40 trials: the {40 - found.begun} further trials are "
        "expected to gain less than study.regret=0.01"
    )
    assert "a further trial is expected" in replace(found, begun=39).words
