"""Promotion with several objectives: the first fronts go on, and nobody is told too early."""

import itertools
import math
import random

import pytest
from test_asha import TWO, order_of, standing

from studyloom.decisions.asha import argsort_by_fronts, compute_dominance
from studyloom.metrics import ACCURACY
from studyloom.storage.standings import HELD, OPEN, UNCLAIMED, SlotChoice


def fronts_of(points):
    """The fronts by their definition: positions, front by front."""
    left, fronts = [*range(len(points))], []

    def beats(one, other):
        better = any(a < b for a, b in zip(one, other, strict=True))
        return better and all(a <= b for a, b in zip(one, other, strict=True))

    while left:
        front = [k for k in left if not any(beats(points[j], points[k]) for j in left)]
        fronts.append(front)
        left = [k for k in left if k not in front]
    return fronts


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_no_trial_is_ranked_before_one_of_an_earlier_front(objectives):
    fate = random.Random(objectives)
    points = [tuple(fate.randrange(8) for _ in range(objectives)) for _ in range(30)]
    order = argsort_by_fronts(tuple(points))
    assert sorted(order) == [*range(30)]
    for front in fronts_of(points):
        assert {*order[: len(front)]} == {*front}
        order = order[len(front) :]


def test_a_front_is_ordered_by_its_first_objective_and_then_by_distance():
    line = tuple((k, 10**-k) for k in range(9))
    assert argsort_by_fronts(line)[:5] == (0, 8, 4, 2, 6)
    stretched = tuple((k, 1e6 * 10 ** (-2.0 * k)) for k in range(9))
    assert argsort_by_fronts(stretched) == argsort_by_fronts(line), "distances are of ranks"


def test_the_earlier_of_equal_trials_is_ranked_first():
    assert argsort_by_fronts(((1, 1), (0, 2), (1, 1), (0, 2), (5, 5))) == (1, 0, 2, 3, 4)
    assert not compute_dominance([(1, 1), (1, 1)]).any()


def waiting(*pairs):
    """Trials that wait at the first rung, each with its value and its parameters."""
    return [standing(k, OPEN, value, parameters=cost) for k, (value, cost) in enumerate(pairs)]


@pytest.mark.parametrize("cost", [math.nan, None])
def test_a_trial_with_a_nan_value_or_cost_is_never_promoted(cost):
    costs = {} if cost is None else {"parameters": cost}
    slots = [
        standing(0, OPEN, 0.9, **costs),
        standing(1, OPEN, math.nan, parameters=1),
        *[standing(2 + k, OPEN, 0.1, parameters=100) for k in range(4)],
    ]
    order = order_of(*TWO)
    assert order.find_promotable(slots) == [2, 3]
    fresh = [standing(6 + k, UNCLAIMED) for k in range(30)]
    assert order.find_unpromotable([*slots, *fresh]) == {0, 1}


@pytest.mark.parametrize(("objectives", "factor"), [((ACCURACY,), 3), (TWO, 2), (TWO, 3)])
def test_no_trial_is_pruned_that_could_still_be_promoted(objectives, factor):
    """All that may come to a rung, on a grid; of two objectives a rule by present ranks fails."""
    order = order_of(*objectives, reduction_factor=factor)
    fate, told, wrong = random.Random(factor), 0, 0
    grid = [*itertools.product((0.5, 1.5, 2.5), (1, 2, 3) if len(objectives) > 1 else (1,))]
    for _ in range(12):
        pairs = [(fate.randrange(4), fate.choice((0.5, 1.5, 2.5, 3.5))) for _ in range(6)]
        coming = fate.choice((1, 2))
        hopeless = order.find_unpromotable(
            [*waiting(*pairs), *(standing(6 + k, UNCLAIMED) for k in range(coming))]
        )
        able = set()
        for count in range(coming + 1):
            for further in itertools.product(grid, repeat=count):
                able |= {*order.find_promotable(waiting(*pairs, *further))}
        assert hopeless.isdisjoint(able)
        told += len(hopeless)
        wrong += len(order.find_unpromotable(waiting(*pairs)) & able)
    assert told > 10
    assert wrong > 0 or factor == 3


def test_all_but_the_best_are_pruned_once_no_trial_can_come():
    order = order_of(*TWO)
    line = waiting(*((k / 10, 10**k) for k in range(9)))  # none dominates another
    assert order.find_unpromotable([*line, standing(9, HELD)]) == set()
    best = order.find_promotable(line)
    assert best == [8, 0, 4]
    assert order.find_unpromotable(line) == {*range(9)} - {*best}
    assert order.choose(line) == SlotChoice(1, ends_pruned=True)
