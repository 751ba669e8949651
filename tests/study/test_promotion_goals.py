"""Promotion with several goals: the first fronts go on, and nobody is told too early."""

import itertools
import math
import random

import pytest
from test_promotion import TWO, Search, order_of, random_costs, random_curves, standing

from studyloom.storage.ledger import DONE, FRESH, HELD, OPEN, Next


def waiting(*pairs, order=None):
    """Trials that wait at the first rung, each with its value and its parameters."""
    return [standing(k, OPEN, value, parameters=cost) for k, (value, cost) in enumerate(pairs)]


def beats(one, other):
    return one != other and one[0] >= other[0] and one[1] <= other[1]


def test_at_each_rung_the_first_fronts_go_on_and_all_others_are_pruned():
    curves = random_curves(30, 5)
    costs = random_costs(curves)
    search = Search(curves, order_of(*TWO), 4, seed=3, costs=costs).run()
    assert {*search.state.values()} == {DONE}
    complete = {slot for slot, epochs in search.epochs.items() if epochs == 27}
    assert complete.isdisjoint(search.pruned)
    assert len(complete) + len(search.pruned) == 30
    for rung in (1, 3, 9):
        there = {k: (curves[k][rung - 1], costs[k]) for k, e in search.epochs.items() if e >= rung}
        on = {slot for slot in there if search.epochs[slot] > rung}
        assert len(on) >= len(there) // 3
        ranks = {}  # the length of the longest chain of trials that each dominate the next
        for slot in sorted(there, key=lambda k: (-there[k][0], there[k][1])):
            above = [ranks[other] for other in ranks if beats(there[other], there[slot])]
            ranks[slot] = max(above, default=0) + 1
        places = len(there) // 3
        for slot, rank in ranks.items():
            if sum(other <= rank for other in ranks.values()) <= places:
                assert slot in on, "its whole front fits"


@pytest.mark.parametrize("cost", [math.nan, None])
def test_a_trial_with_a_value_or_cost_that_is_no_number_is_never_promoted(cost):
    costs = {} if cost is None else {"parameters": cost}
    slots = [
        standing(0, OPEN, 0.9, **costs),
        standing(1, OPEN, math.nan, parameters=1),
        *[standing(2 + k, OPEN, 0.1, parameters=100) for k in range(4)],
    ]
    order = order_of(*TWO)
    assert order.promotable(slots) == [2, 3]
    fresh = [standing(6 + k, FRESH) for k in range(30)]
    assert order.hopeless([*slots, *fresh]) == {0, 1}


@pytest.mark.parametrize("factor", [2, 3])
def test_nobody_is_told_who_could_still_be_promoted_whatever_came(factor):
    """All that may come to a rung, on a grid; with a factor of 2 a rule by present ranks fails."""
    order = order_of(*TWO, reduction_factor=factor)
    fate, told, wrong = random.Random(factor), 0, 0
    grid = [*itertools.product((0.5, 1.5, 2.5), (1, 2, 3))]
    for _ in range(20):
        pairs = [(fate.randrange(4), fate.choice((0.5, 1.5, 2.5, 3.5))) for _ in range(6)]
        coming = fate.choice((1, 2))
        hopeless = order.hopeless(
            [*waiting(*pairs), *(standing(6 + k, FRESH) for k in range(coming))]
        )
        able = set()
        for count in range(coming + 1):
            for further in itertools.product(grid, repeat=count):
                able |= {*order.promotable(waiting(*pairs, *further))}
        assert hopeless.isdisjoint(able)
        now = order_of(*TWO, reduction_factor=factor).hopeless(waiting(*pairs))
        told += len(hopeless)
        wrong += len(now & able)
    assert told > 10
    assert wrong > 0 or factor == 3


def test_when_none_is_to_come_all_who_are_not_among_the_best_are_told():
    order = order_of(*TWO)
    line = waiting(*((k / 10, 10**k) for k in range(9)))  # none dominates another
    assert order.hopeless([*line, standing(9, HELD)]) == set()
    best = order.promotable(line)
    assert best == [8, 0, 4]
    assert order.hopeless(line) == {*range(9)} - {*best}
    assert order.choose(line) == Next(1, over=True)
