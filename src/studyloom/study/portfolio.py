"""Portfolios: a few points of earlier studies that are good together, to begin another with.

A point was tried in one earlier study, and its rank in the others is not known. There it is
estimated, from the ranks of the points that were tried nearby.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BANDWIDTH = 0.25  # of nearness, as a root mean square over parameters whose ranges are [0, 1]


@dataclass(frozen=True)
class EarlierStudy:
    """What an earlier study found out, in the space of the study that begins.

    Args:
        points: (trials, parameters); a number in [0, 1] for each parameter, or the index of its
            choice if it is categorical; NaN where the trial does not have the parameter.
        scores: (trials,) the rank of each trial in its study: near 1 for the best, 0 for the worst.
        eligible: (trials,) whether the point of a trial may be chosen.
    """

    points: NDArray[np.float64]
    scores: NDArray[np.float64]
    eligible: NDArray[np.bool_]


def rank_scores(ranked: int, behind: int) -> NDArray[np.float64]:
    """Scores the trials of a study by rank, so that studies of different scales can be compared.

    A trial of n has the share of the others, and half of itself, that it beats. So the best of
    forty has 0.99, and one that was alone has 0.5: it shows little.

    Args:
        ranked: the number of trials that have a rank, the best first.
        behind: the number of trials after these, all equally bad, such as pruned ones.

    Returns:
        (ranked + behind,) scores in (0, 1).
    """
    places = np.concatenate([np.arange(ranked) + 0.5, np.full(behind, ranked + behind / 2)])
    return np.asarray(1.0 - places / max(1, ranked + behind))


def choose_points(
    studies: Sequence[EarlierStudy], categorical: NDArray[np.bool_], count: int
) -> list[tuple[int, int]]:
    """Chooses points of earlier studies, each adding most to those before it.

    The greedy choice maximises the mean over studies of the best score that a chosen point has
    there. What score a point has in a study is known as a distribution only, `ScoresNearby`; so it
    is the expected best score. That is submodular, so the greedy choice comes within 1 - 1/e of the
    best set (Nemhauser, Wolsey and Fisher, 1978). Auto-sklearn 2.0 makes portfolios of
    configurations so, from a matrix of all of them on all tasks (Feurer et al., 2022,
    arXiv:2007.04074).

    Args:
        studies: the earlier studies.
        categorical: (parameters,) which parameters are categorical.
        count: the most points that are chosen.

    Returns:
        The study and the trial of each point, in the order in which they are to be tried; none
        twice, and fewer than `count` if there are no more.
    """
    candidates = [
        (number, int(trial))
        for number, study in enumerate(studies)
        for trial in np.flatnonzero(study.eligible)
    ]
    if not candidates:
        return []
    points = np.stack([studies[number].points[trial] for number, trial in candidates])
    nearby = [ScoresNearby.of(points, study, categorical) for study in studies]
    below = [np.ones(len(each.steps)) for each in nearby]  # that no chosen point is as good
    left = np.ones(len(candidates), dtype=bool)
    chosen: list[tuple[int, int]] = []
    while left.any() and len(chosen) < count:
        gains = sum(
            each.at_least @ (each.steps * rest) for each, rest in zip(nearby, below, strict=True)
        )
        place = int(np.where(left, gains, -np.inf).argmax())
        chosen.append(candidates[place])
        below = [
            rest * (1 - each.at_least[place]) for each, rest in zip(nearby, below, strict=True)
        ]
        left &= squared_distances(points, points[[place]], categorical)[:, 0] > 0
    return chosen


@dataclass(frozen=True)
class ScoresNearby:
    """What scores points may have in a study: those of its trials, weighted by their nearness.

    The weights are those of Nadaraya and Watson (1964), also at points that the study has tried: a
    trial's own rank owes much to the luck of its seed.

    Args:
        at_least: (points, trials) the probability that a point is as good as a trial, for the
            trials in the order of their scores, the best first.
        steps: (trials,) by how much the score of a trial is above the next one's.
    """

    at_least: NDArray[np.float64]
    steps: NDArray[np.float64]

    @classmethod
    def of(
        cls, points: NDArray[np.float64], study: EarlierStudy, categorical: NDArray[np.bool_]
    ) -> "ScoresNearby":
        """Estimates the scores of points in a study; see `EarlierStudy` for the arguments."""
        order = np.argsort(-study.scores, kind="stable")
        scores = study.scores[order]
        distances = squared_distances(points, study.points[order], categorical)
        nearest = distances.min(axis=1, keepdims=True, initial=np.inf)
        weights = np.exp((nearest - distances) / (2 * BANDWIDTH**2))
        weights /= weights.sum(axis=1, keepdims=True)
        return cls(weights.cumsum(axis=1), scores - np.append(scores[1:], 0.0))


def squared_distances(
    one: NDArray[np.float64], other: NDArray[np.float64], categorical: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Measures how far points are from others.

    Args:
        one: (a, parameters).
        other: (b, parameters).
        categorical: (parameters,) which parameters are categorical.

    Returns:
        (a, b) means of the squared differences over the parameters that either point has. It is 1
        where only one has the parameter, and where the choices differ.
    """
    sums, counts = np.zeros((len(one), len(other))), np.zeros((len(one), len(other)))
    for column, choice in enumerate(categorical):
        a, b = one[:, column, None], other[None, :, column]
        lacks_a, lacks_b = np.isnan(a), np.isnan(b)
        difference = (a != b).astype(float) if choice else (a - b) ** 2
        sums += np.where(lacks_a & lacks_b, 0.0, np.where(lacks_a | lacks_b, 1.0, difference))
        counts += ~(lacks_a & lacks_b)
    return np.asarray(sums / np.maximum(counts, 1.0))
