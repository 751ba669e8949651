"""Importances of parameters: how much of the differences in value each explains, and how surely.

A forest of random trees is fitted to the trials, and asked over the whole space, each setting as
likely as the space says. Samplers crowd the trials around the best: a share that is told from where
they crowd names another parameter for each seed of the same search, and hardly ever the choice of a
group, which was decided early.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution
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
    """A parameter's share of what all explain, from 0 to 1, with a 90 % interval over resamples."""

    name: str
    share: float
    low: float
    high: float


def varied_parameters(trials: Sequence[FrozenTrial], least: int = 2) -> list[str]:
    """Returns the parameters that had different values in at least `least` complete trials."""
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
        trials: the complete ones count, those that diverged as the worst,
            and for the metric the pruned ones too, by their last value among those of that step.
        names: the parameters to compare.
        goal: the position of the value.

    Returns:
        A share for each parameter, in all 1, the largest first; empty without names, or if no two
        trials differ in rank.
    """
    known, merits = _merits(trials[:: math.ceil(len(trials) / MOST_READ) or 1], sign, goal)
    if not names or len(known) < 2 or np.ptp(merits) == 0:
        return []
    settings = [_settings(known, name) for name in names]
    shares = np.array([*_shares(settings, _ranks(merits))])
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
    unbroken = [trial for trial in trials if FAILURE not in trial.user_attrs]
    known = [
        trial
        for trial in unbroken
        if trial.state == TrialState.COMPLETE and math.isfinite((trial.values or [math.nan])[goal])
    ]
    values = np.array([sign * trial.values[goal] for trial in known])
    if not known:
        return [], values
    diverged = [trial for trial in trials if trial.user_attrs.get(FAILURE) == DIVERGED]
    merits = [*map(float, values), *[values.min() - 1.0] * len(diverged)]
    at_step: dict[int, list[float]] = {}
    for trial in known if goal == 0 else ():
        for step, value in trial.intermediate_values.items():
            at_step.setdefault(step, []).append(sign * value)
    pruned = []
    for trial in unbroken:
        end = trial.last_step
        if trial.state == TrialState.PRUNED and end is not None and end in at_step:
            last = sign * trial.intermediate_values[end]
            if math.isfinite(last):
                pruned.append(trial)
                stood = np.mean(np.array(at_step[end]) < last)
                merits.append(float(np.quantile(values, stood)))
    return [*known, *diverged, *pruned], np.array(merits)


def _ranks(values: Array) -> Array:
    """Returns the ranks of values from 0 to 1, the mean rank for equal ones."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Array = ((ends - counts + ends - 1) / 2)[inverse] / max(1, len(values) - 1)
    return ranks


def _settings(trials: Sequence[FrozenTrial], name: str) -> tuple[Array, int]:
    """Returns where the settings of a parameter lie in its space.

    Returns:
        A number from 0 to 1 for each trial, NaN where the trial lacks the parameter; and the number
        of choices, 0 for a number. Choice i of k lies in the middle of the i-th of k equal cells.
    """
    column, choices = np.full(len(trials), np.nan), 0
    for row, trial in enumerate(trials):
        if name not in trial.params:
            continue
        distribution: Any = trial.distributions[name]
        value = distribution.to_internal_repr(trial.params[name])
        if isinstance(distribution, CategoricalDistribution):
            choices = len(distribution.choices)
            low, high, value = 0.0, float(choices), value + 0.5
        else:
            low, high = map(distribution.to_internal_repr, (distribution.low, distribution.high))
            if distribution.log:
                low, high, value = math.log(low), math.log(high), math.log(value)
        column[row] = 0.5 if high <= low else (value - low) / (high - low)
    return column, choices


def _shares(settings: Sequence[tuple[Array, int]], ranks: Array) -> Iterator[Array]:
    """Yields the shares of the parameters on each resample of the trials."""
    generator = np.random.default_rng(SEED)
    for _ in range(RESAMPLES):
        rows = generator.integers(0, len(ranks), min(len(ranks), MOST_TRIALS))
        points, again = (generator.random((POINTS, len(settings))) for _ in range(2))
        asked = np.repeat(points[None], len(settings) + 1, axis=0)
        for column in range(len(settings)):
            asked[column + 1, :, column] = again[:, column]
        told = np.zeros(asked.shape[:2])
        for _ in range(TREES):
            drawn = [
                np.where(np.isnan(own := values[rows]), generator.random(len(rows)), own)
                for values, _ in settings
            ]
            orders = [generator.permutation(choices) for _, choices in settings]
            own, placed = (
                np.stack([_reordered(*each) for each in zip(columns, orders, strict=True)], axis=-1)
                for columns in (drawn, np.moveaxis(asked, -1, 0))
            )
            flat = placed.reshape(-1, len(settings))
            told += _grow_and_ask(own, ranks[rows], flat, generator).reshape(told.shape)
        effects = ((told[1:] - told[0]) ** 2).mean(axis=1)
        if effects.sum() > 0:
            yield effects / effects.sum()


def _reordered(places: Array, order: NDArray[np.int64]) -> Array:
    """Puts choices in another order, since they have none; an empty order is of a number."""
    if not len(order):
        return places
    cells = np.minimum((places * len(order)).astype(int), len(order) - 1)
    placed: Array = (order[cells] + 0.5) / len(order)
    return placed


def _grow_and_ask(
    points: Array, values: Array, asked: Array, generator: np.random.Generator
) -> Array:
    """Grows a tree on points, (n, parameters), and returns what it says of others, (m, parameters).

    Each node tries one threshold for each parameter, drawn between its extremes there, and takes
    the one after which the values vary least; a node whose values are alike is a leaf. These are
    the trees of scikit-learn's ExtraTreesRegressor, whose import would take `status` a second.
    """
    told = np.empty(len(asked))
    nodes = [(np.arange(len(points)), np.arange(len(asked)))]
    while nodes:
        own, others = nodes.pop()
        told[others] = values[own].mean()
        centred = values[own] - values[own].mean()
        if not len(others) or len(own) < 2 * LEAF or not centred.any():
            continue
        low, high = points[own].min(axis=0), points[own].max(axis=0)
        thresholds = low + generator.random(len(low)) * (high - low)
        left = points[own] <= thresholds
        counts = left.sum(axis=0)
        enough = (counts >= LEAF) & (len(own) - counts >= LEAF)
        # The centred values add up to 0, so that both sides have the same sum but for its sign.
        weights = 1 / np.maximum(1, counts) + 1 / np.maximum(1, len(own) - counts)
        gains = np.where(enough, (centred @ left) ** 2 * weights, -1.0)
        best = int(gains.argmax())
        if gains[best] > 0:
            goes_left = asked[others, best] <= thresholds[best]
            nodes.append((own[left[:, best]], others[goes_left]))
            nodes.append((own[~left[:, best]], others[~goes_left]))
    return told
