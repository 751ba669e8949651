"""Portfolios of points: against brute force, and on studies whose best points are known."""

import itertools

import numpy as np
import pytest

from studyloom.study.placement import (
    BANDWIDTH,
    RankedPoints,
    choose_points,
    rank_scores,
    squared_distances,
)

NUMBERS = np.zeros(1, dtype=bool)  # a space of one number


def earlier(points, eligible=None):
    """A study that tried these points, the best first."""
    array = np.asarray(points, dtype=float).reshape(len(points), -1)
    allowed = np.ones(len(points), dtype=bool) if eligible is None else np.asarray(eligible)
    return RankedPoints(array, rank_scores(len(points), 0), allowed)


def drawn(seed, trials=12, parameters=2):
    rng = np.random.default_rng(seed)
    return earlier(rng.random((trials, parameters)))


def expected_best(studies, points, categorical):
    """The objective, written out: every way in which the scores of a set may come out."""
    total = 0.0
    for study in studies:
        distances = squared_distances(points, study.points, categorical)
        weights = np.exp(-distances / (2 * BANDWIDTH**2))
        weights /= weights.sum(axis=1, keepdims=True)
        for trials in itertools.product(range(len(study.scores)), repeat=len(points)):
            chance = np.prod([weights[point, trial] for point, trial in enumerate(trials)])
            total += chance * study.scores[[*trials]].max() / len(studies)
    return total


def test_ranks_compare_studies_of_any_size():
    assert rank_scores(4, 0) == pytest.approx([0.875, 0.625, 0.375, 0.125])
    assert rank_scores(2, 2) == pytest.approx([0.875, 0.625, 0.25, 0.25])
    assert rank_scores(1, 0) == pytest.approx([0.5])
    assert rank_scores(40, 0)[0] > 0.98
    assert rank_scores(0, 0).shape == (0,)


def test_each_point_adds_as_much_as_any_would():
    """Greedy against brute force, with the objective written out."""
    categorical = np.zeros(2, dtype=bool)
    studies = [drawn(seed, trials=6) for seed in range(3)]
    chosen = choose_points(studies, categorical, 3)
    every = [(study, trial) for study in range(3) for trial in range(6)]
    at = {place: studies[place[0]].points[place[1]] for place in every}
    for length in range(1, 4):
        *before, last = chosen[:length]
        taken = [at[place] for place in before]
        values = {
            place: expected_best(studies, np.array([*taken, at[place]]), categorical)
            for place in every
            if place not in before
        }
        assert values[last] == pytest.approx(max(values.values()))


@pytest.mark.parametrize("count", [0, 5, 23, 24, 50])
def test_no_point_is_chosen_twice_and_all_are_if_there_is_room(count):
    studies = [drawn(0), drawn(1), drawn(0)]  # the last tried what the first did
    chosen = choose_points(studies, np.zeros(2, dtype=bool), count)
    points = {tuple(studies[study].points[trial]) for study, trial in chosen}
    assert len(points) == len(chosen) == min(count, 24)


def test_only_eligible_points_are_chosen_and_none_of_nothing():
    study = earlier([0.1, 0.5, 0.9], [False, True, False])
    assert choose_points([study], NUMBERS, 5) == [(0, 1)]
    assert choose_points([], NUMBERS, 5) == []
    assert choose_points([earlier([0.1], [False])], NUMBERS, 5) == []


def test_distances_are_of_what_either_point_has():
    nan, categorical = np.nan, np.array([False, True, False])
    one = np.array([[0.2, 1.0, nan]])
    others = np.array([[0.2, 1.0, nan], [0.7, 1.0, nan], [0.2, 2.0, nan], [0.2, 1.0, 0.4]])
    distances = squared_distances(one, others, categorical)[0]
    assert distances == pytest.approx([0.0, 0.125, 0.5, 1 / 3])
    assert squared_distances(others, one, categorical)[:, 0] == pytest.approx(distances)
