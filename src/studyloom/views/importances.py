"""Which parameters matter: how much of the differences in value each explains, and how surely.

A forest of random trees is fitted to the trials, and asked over the whole space, each setting as
likely as the space says. Samplers crowd the trials around the best: a share that is told from where
they crowd names another parameter for each seed of the same search, and hardly ever the choice of a
group, which was decided early.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from studyloom.storage.attributes import FAILURE
from studyloom.study.failures import DIVERGED

Array = NDArray[np.float64]

RESAMPLES = 24  # of the trials; the interval is over them
TREES = 8  # for each
POINTS = 256  # of the space, at which a resample's trees are asked
MOST_READ = 4000  # trials, at even distances: of 100 000, all of them took 10 s
MOST_TRIALS = 120  # in a resample: so a thousand trials take no longer
LEAF = 2  # trials, at least, on each side of a split
INTERVAL = (5, 95)  # percentiles
SEED = 0  # the same trials give the same shares


@dataclass(frozen=True)
class Importance:
    """How much a parameter matters.

    Args:
        name: the parameter.
        share: its part of what all parameters explain, from 0 to 1.
        low: the lower end of a 90 % interval of the share, over resamples of the trials.
        high: its upper end.
    """

    name: str
    share: float
    low: float
    high: float


def varied_parameters(trials: Sequence[FrozenTrial], least: int = 2) -> list[str]:
    """Returns the parameters that had different values in complete trials, in alphabetical order.

    Args:
        trials: the trials of a study; those that are not complete are skipped.
        least: the number of complete trials that must have a parameter.
    """
    values: dict[str, list[Any]] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            for name, value in trial.params.items():
                values.setdefault(name, []).append(value)
    return sorted(name for name, seen in values.items() if len(seen) >= least and len({*seen}) > 1)


def importances(
    trials: Sequence[FrozenTrial], names: Sequence[str], sign: int, goal: int = 0
) -> list[Importance]:
    """Estimates how much each parameter matters, over the whole space.

    On each resample of the trials, extremely randomized trees (Geurts et al. 2006, Machine Learning
    63) are fitted to the ranks of the trials. Their total-effect indices, by the estimator of
    Jansen (1999, Computer Physics Communications 117), say how much the rank changes on average
    if one parameter alone is drawn anew; to ask a forest, and not the trials, is the idea of
    fANOVA (Hutter et al., ICML 2014). A parameter that a trial lacks is drawn at random for it, so
    that it explains nothing where it is absent: the choice that opens a branch gets what the branch
    as a whole does. Over ten seeds of a search of 40 trials whose choice of a network mattered
    most, that choice came first in all ten; by PED-ANOVA in none.

    Args:
        trials: the trials of a study. The complete ones count, those that diverged as the worst,
            and for the metric the pruned ones too, by their last value among those of that step.
        names: the parameters to compare, from `varied_parameters`.
        sign: 1 if more of the value is better, -1 if less is.
        goal: the position of the value.

    Returns:
        A share for each parameter, in all 1, the largest first; empty without names, or if no two
        trials differ in rank.
    """
    known, merits = _merits(trials[:: math.ceil(len(trials) / MOST_READ) or 1], sign, goal)
    if not names or len(known) < 2 or np.ptp(merits) == 0:
        return []
    shares = np.array([*_shares(_settings(known, names), _ranks(merits))])
    if not len(shares):
        return []
    low, high = np.percentile(shares, INTERVAL, axis=0)
    found = [
        Importance(name, *map(float, numbers))
        for name, *numbers in zip(names, shares.mean(axis=0), low, high, strict=True)
    ]
    return sorted(found, key=lambda each: (-each.share, each.name))


def _merits(trials: Sequence[FrozenTrial], sign: int, goal: int) -> tuple[list[FrozenTrial], Array]:
    """Returns the trials that say something of the parameters, and how good each is.

    A pruned trial counts as the complete trial that stood where it did at its last step.
    """
    complete = [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE
        and FAILURE not in trial.user_attrs
        and math.isfinite((trial.values or [math.nan])[goal])
    ]
    if not complete:
        return [], np.empty(0)
    values = np.array([sign * (trial.values or [0.0])[goal] for trial in complete])
    known, merits = [*complete], [*map(float, values)]
    at_step = _sorted_by_step(complete, sign)
    shares: list[tuple[FrozenTrial, float]] = []  # of complete trials that a pruned one was above
    for trial in trials:
        if trial.user_attrs.get(FAILURE) == DIVERGED:
            known.append(trial)
            merits.append(-math.inf)
        elif goal == 0 and trial.state == TrialState.PRUNED and trial.last_step is not None:
            same = at_step.get(trial.last_step)
            last = trial.intermediate_values[trial.last_step]
            if FAILURE not in trial.user_attrs and same is not None and math.isfinite(last):
                shares.append((trial, float(np.searchsorted(same, sign * last) / len(same))))
    known += [trial for trial, _ in shares]
    merits += map(float, np.quantile(values, [share for _, share in shares]))
    return known, np.maximum(np.array(merits), values.min() - 1.0)


def _sorted_by_step(complete: Sequence[FrozenTrial], sign: int) -> dict[int, Array]:
    """Returns what complete trials had after each step, the worst first."""
    values: dict[int, list[float]] = {}
    for trial in complete:
        for step, value in trial.intermediate_values.items():
            values.setdefault(step, []).append(sign * value)
    return {step: np.sort(column) for step, column in values.items()}


def _ranks(values: Array) -> Array:
    """Returns the ranks of values from 0 to 1, the mean rank for equal ones."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Array = ((ends - counts + ends - 1) / 2)[inverse] / max(1, len(values) - 1)
    return ranks


def _settings(trials: Sequence[FrozenTrial], names: Sequence[str]) -> list[tuple[Array, int]]:
    """Returns for each parameter where its settings lie in the space.

    Returns:
        An array of a number from 0 to 1 for each trial, NaN where the trial lacks it; and the
        number of choices, 0 for a number.
    """
    columns = []
    for name in names:
        known: Mapping[int, BaseDistribution] = {
            row: trial.distributions[name]
            for row, trial in enumerate(trials)
            if name in trial.params
        }
        column = np.full(len(trials), np.nan)
        choices = _choices(known.values())
        for row, distribution in known.items():
            value = trials[row].params[name]
            if choices:  # the middle of its cell
                column[row] = (choices.index(value) + 0.5) / len(choices)
            else:
                column[row] = _place(distribution, value)
        columns.append((column, len(choices)))
    return columns


def _choices(distributions: Any) -> list[Any]:
    """Returns the choices of a categorical parameter over all trials; none for a number."""
    found: list[Any] = []
    for distribution in {id(each): each for each in distributions}.values():
        if isinstance(distribution, CategoricalDistribution):
            found += [choice for choice in distribution.choices if choice not in found]
    return found


def _place(distribution: BaseDistribution, value: float) -> float:
    """Returns where a number lies between the bounds of its distribution, from 0 to 1."""
    low, high = float(getattr(distribution, "low", 0)), float(getattr(distribution, "high", 1))
    if getattr(distribution, "log", False) and low > 0 and value > 0:
        low, high, value = np.log(low), np.log(high), np.log(value)
    return 0.5 if high <= low else min(1.0, max(0.0, (value - low) / (high - low)))


def _shares(settings: Sequence[tuple[Array, int]], ranks: Array) -> Iterator[Array]:
    """Yields the shares of the parameters on each resample of the trials."""
    generator = np.random.default_rng(SEED)
    size = min(len(ranks), MOST_TRIALS)
    for _ in range(RESAMPLES):
        rows = generator.integers(0, len(ranks), size)
        points, again = (generator.random((POINTS, len(settings))) for _ in range(2))
        asked = np.repeat(points[None], len(settings) + 1, axis=0)
        for column in range(len(settings)):
            asked[column + 1, :, column] = again[:, column]
        flat, told = asked.reshape(-1, len(settings)), np.zeros(asked.shape[:2])
        for _ in range(TREES):
            drawn = np.column_stack([_drawn(column[rows], generator) for column, _ in settings])
            orders = [generator.permutation(choices) for _, choices in settings]
            placed, points = (_ordered(matrix, orders) for matrix in (drawn, flat))
            told += _grow_and_ask(placed, ranks[rows], points, generator).reshape(told.shape)
        effects = ((told[1:] - told[0]) ** 2).mean(axis=1)
        if effects.sum() > 0:
            yield effects / effects.sum()


def _drawn(column: Array, generator: np.random.Generator) -> Array:
    """Returns settings from 0 to 1, drawn at random where there is none; a choice by its cell."""
    return np.where(np.isnan(column), generator.random(len(column)), column)


def _ordered(points: Array, orders: Sequence[NDArray[np.int64]]) -> Array:
    """Puts the choices of each categorical parameter in another order: they have none.

    Args:
        points: from 0 to 1, (n, parameters); choice i of k lies in the i-th of k equal cells.
        orders: a permutation for each parameter; an empty one for a number, which stays.
    """
    placed = points.copy()
    for column, order in enumerate(orders):
        if len(order):
            cells = np.minimum((points[:, column] * len(order)).astype(int), len(order) - 1)
            placed[:, column] = (order[cells] + 0.5) / len(order)
    return placed


def _grow_and_ask(
    points: Array, values: Array, asked: Array, generator: np.random.Generator
) -> Array:
    """Grows a tree, and returns what it says of other points.

    Each node tries one threshold for each parameter, drawn between its extremes there, and takes
    the one after which the values vary least; a node whose values are alike is a leaf.

    Args:
        points: of the trials, (n, parameters).
        values: of the trials, (n,).
        asked: further points, (m, parameters).

    Returns:
        The mean value of the leaf of each, (m,).
    """
    told = np.empty(len(asked))
    nodes = [(np.arange(len(points)), np.arange(len(asked)))]
    while nodes:
        own, others = nodes.pop()
        if not len(others):
            continue
        mean = values[own].mean()
        split = _split(points[own], values[own] - mean, generator)
        if split is None:
            told[others] = mean
            continue
        column, threshold = split
        for side in (np.less_equal, np.greater):
            nodes.append(
                (
                    own[side(points[own, column], threshold)],
                    others[side(asked[others, column], threshold)],
                )
            )
    return told


def _split(
    points: Array, values: Array, generator: np.random.Generator
) -> tuple[int, float] | None:
    """Returns by which parameter and threshold a node is split; None if it is a leaf.

    Args:
        points: of its trials, (n, parameters).
        values: of its trials less their mean, (n,).
    """
    if len(points) < 2 * LEAF or not values.any():
        return None
    low, high = points.min(axis=0), points.max(axis=0)
    thresholds = low + generator.random(len(low)) * (high - low)
    left = points <= thresholds
    counts = left.sum(axis=0)
    # The values have a mean of 0, so that both sides have the same sum but for its sign.
    sums = values @ left
    enough = (counts >= LEAF) & (len(points) - counts >= LEAF)
    rights = np.maximum(1, len(points) - counts)
    gains = np.where(enough, sums**2 * (1 / np.maximum(1, counts) + 1 / rights), -1.0)
    best = int(gains.argmax())
    return (best, float(thresholds[best])) if gains[best] > 0 else None
