"""How long the rest of a job takes."""

from studyloom.views.progress import Running, Work, estimate


def seconds(works, workers=1):
    found = estimate(works, workers)
    return None if found is None else round(found, 6)


def test_a_trial_takes_what_those_took_that_have_ended_also_in_later_stages():
    took = [10.0] * 4
    assert seconds([Work(took, [Running(0.0)], 4)]) == 50.0
    assert seconds([Work(took, [Running(5.0)], 4)]) == 45.0
    assert seconds([Work(took, [Running(12.0)], 0)]) == 0.0
    assert seconds([Work(took, [Running(0.0)], 0), Work(left=4), Work([20.0] * 2, left=2)]) == 90.0
    longer = Running(30.0, 3, 10, 10.0)  # than all others: its own curve counts
    assert seconds([Work([5.0, 6.0], [longer], 0)]) == 70.0


def test_before_a_trial_has_ended_its_curve_says_how_long_it_takes():
    assert seconds([Work([], [Running(4.0, 2, 10, 2.0)], 3)]) == 16 + 3 * 20
    assert seconds([Work([], [Running(5.0)], 4)]) is None, "nothing is known"
    assert seconds([Work([10.0] * 4, [], 4)], 0) is None, "nobody works"
