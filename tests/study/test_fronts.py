"""Ranks of points with several goals: fronts first, and within a front all along it."""

import itertools
import random

from studyloom.study.promotion import dominance, rank_points


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


def some_points(count, goals, seed):
    fate = random.Random(seed)
    return [tuple(fate.randrange(8) for _ in range(goals)) for _ in range(count)]


def test_no_point_is_ranked_before_one_of_an_earlier_front():
    for goals, seed in itertools.product((1, 2, 3), range(3)):
        points = some_points(30, goals, seed)
        order = rank_points(tuple(points))
        assert sorted(order) == [*range(30)]
        for front in fronts_of(points):
            assert {*order[: len(front)]} == {*front}
            order = order[len(front) :]


def test_within_a_front_the_best_by_the_first_goal_leads_and_then_the_farthest():
    line = tuple((k, 10**-k) for k in range(9))
    assert rank_points(line)[:5] == (0, 8, 4, 2, 6)
    stretched = tuple((k, 1e6 * 10 ** (-2.0 * k)) for k in range(9))
    assert rank_points(stretched) == rank_points(line), "distances are of ranks"


def test_of_equal_points_the_earlier_one_comes_first_and_neither_dominates():
    assert rank_points(((1, 1), (0, 2), (1, 1), (0, 2), (5, 5))) == (1, 0, 2, 3, 4)
    assert not dominance([(1, 1), (1, 1)]).any()
