"""How long the rest of a job takes."""

import random

import pytest

from studyloom.views.progress import Estimate, Running, Work, estimate


def seconds(works, workers=1):
    found = estimate(works, workers)
    return None if found is None else round(found.seconds, 6)


def test_a_trial_takes_what_those_took_that_have_ended_also_in_later_stages():
    took = [10.0] * 4
    assert estimate([Work(took, [Running(0.0)], 4)], 1) == Estimate(50.0, 50.0, 50.0)
    assert seconds([Work(took, [Running(5.0)], 4)]) == 45.0
    assert seconds([Work(took, [Running(12.0)], 0)]) == 0.0
    assert seconds([Work(took, [Running(0.0)], 0), Work(left=4), Work([20.0] * 2, left=2)]) == 90.0
    longer = Running(30.0, 3, 10, 10.0)  # than all others: its own curve counts
    assert seconds([Work([5.0, 6.0], [longer], 0)]) == 70.0


def test_before_a_trial_has_ended_its_curve_says_how_long_it_takes_and_the_interval_is_wide():
    found = estimate([Work([], [Running(4.0, 2, 10, 2.0)], 3)], 1)
    assert found.seconds == pytest.approx(16 + 3 * 20)
    assert found.low < 0.6 * found.seconds
    assert found.high > 1.4 * found.seconds
    assert estimate([Work([], [Running(5.0)], 4)], 1) is None, "nothing is known"
    assert estimate([Work([10.0] * 4, [], 4)], 0) is None, "nobody works"


def test_four_of_five_times_the_end_lies_in_the_interval():
    """Of searches with half of the trials pruned early, simulated from some moment on."""
    drawn = random.Random(1)

    def duration():
        return drawn.uniform(8, 12) if drawn.random() < 0.5 else drawn.uniform(1, 4)

    for workers in (1, 3):
        within = 0
        for _ in range(400):
            found = estimate([Work([duration() for _ in range(12)], [], 40)], workers)
            ends = [0.0] * workers
            for _ in range(40):
                ends[ends.index(min(ends))] += duration()
            within += found.low <= max(ends) <= found.high
        assert 0.7 <= within / 400 <= 0.92
