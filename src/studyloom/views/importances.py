"""Importances of parameters: how much of the differences in value each explains, and how surely.

A forest of random trees is fitted to the trials, and asked over the whole space, each setting as
likely as the space says. Samplers crowd the trials around the best: a share that is told from where
they crowd names another parameter for each seed of the same search, and hardly ever the choice of a
group, which was decided early.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from studyloom.storage.attributes import FAILURE
from studyloom.study.failures import DIVERGED

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

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
    if not names or len(known) < 2 or merits.min() == merits.max():
        return []
    shares = np.array([*_shares(*_settings(known, names), _ranks(merits))])
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


def _settings(trials: Sequence[FrozenTrial], names: Sequence[str]) -> tuple[Array, dict[int, int]]:
    """Returns where the settings of parameters lie in their space.

    Returns:
        A row for each parameter, with a number from 0 to 1 for each trial, NaN where the trial
        lacks the parameter; and the number of choices by row, but of numbers. Choice i of k lies in
        the middle of the i-th of k equal cells.
    """
    places = np.full((len(names), len(trials)), np.nan)
    choices: dict[int, int] = {}
    known: dict[int, tuple[Callable[[Any], float], int]] = {}  # trials share their distributions
    for column, trial in enumerate(trials):
        params, distributions = trial.params, trial.distributions
        own = [math.nan] * len(names)
        for row, name in enumerate(names):
            if (distribution := distributions.get(name)) is not None:
                if (entry := known.get(id(distribution))) is None:
                    entry = known[id(distribution)] = _placing(distribution)
                place, count = entry
                own[row] = place(params[name])
                if count:
                    choices[row] = count
        places[:, column] = own
    return places, choices


def _placing(distribution: Any) -> tuple[Callable[[Any], float], int]:
    """Returns a function from a setting to its place, and the number of choices; 0 of numbers."""
    if isinstance(distribution, CategoricalDistribution):
        count = len(distribution.choices)
        return lambda value: (distribution.to_internal_repr(value) + 0.5) / count, count
    scale = math.log if distribution.log else float
    low, high = scale(distribution.low), scale(distribution.high)
    if high <= low:
        return lambda _: 0.5, 0
    return lambda value: (scale(value) - low) / (high - low), 0


def _shares(places: Array, choices: Mapping[int, int], ranks: Array) -> Iterator[Array]:
    """Yields the shares of the parameters on each resample of the trials."""
    generator = np.random.default_rng(SEED)
    for _ in range(RESAMPLES):
        rows = generator.integers(0, len(ranks), min(len(ranks), MOST_TRIALS))
        asked, anew = (generator.random((POINTS, len(places))).T for _ in range(2))
        changes = np.zeros((len(places), POINTS))
        for _ in range(TREES):
            own = places[:, rows]
            own = np.where(np.isnan(own), generator.random(own.shape), own)
            placed = np.concatenate([own, asked, anew], axis=1)
            for row, count in sorted(choices.items()):
                cells = np.minimum((placed[row] * count).astype(int), count - 1)
                placed[row] = (generator.permutation(count)[cells] + 0.5) / count  # in no order
            own, asked_there, anew_there = np.split(placed, [len(rows), len(rows) + POINTS], axis=1)
            changes += _grow_and_ask(own, asked_there, anew_there, ranks[rows], generator)
        effects = (changes**2).mean(axis=1)
        if effects.sum() > 0:
            yield effects / effects.sum()


def _grow_and_ask(
    points: Array, asked: Array, anew: Array, values: Array, generator: np.random.Generator
) -> Array:
    """Grows a tree on points, (parameters, n), and asks it what one parameter drawn anew changes.

    Each node tries one threshold for each parameter, drawn between its extremes there, and takes
    the one after which the values vary least; a node whose values are alike is a leaf. These are
    the trees of scikit-learn's ExtraTreesRegressor, whose import would take `status` a second.

    A point with a parameter drawn anew goes where the point itself goes, but from the first node
    that splits by this parameter: a tree is asked about the few parameters that it splits by.

    Args:
        asked: Other points, (parameters, m).
        anew: Each of their parameters, drawn anew.

    Returns:
        What the tree says with a parameter drawn anew, less what it says of the point itself,
        (parameters, m).
    """
    rows, told, changes = points.T.copy(), np.empty(asked.shape[1]), np.zeros(asked.shape)
    leaves: list[tuple[Indices, Indices, float]] = []
    none = np.empty(0, int)
    # Of each node: the points of the tree; those that are asked; those with one parameter drawn
    # anew, and which; and the parameters by which the nodes above split.
    nodes = [(np.arange(len(rows)), np.arange(len(told)), none, none, frozenset[int]())]
    while nodes:
        own, others, moved, which, above = nodes.pop()
        mean, best = values[own].mean(), -1
        centred = values[own] - mean
        if len(others) + len(moved) and len(own) >= 2 * LEAF and centred.any():
            there = rows[own]
            low, high = there.min(axis=0), there.max(axis=0)
            thresholds = low + generator.random(len(low)) * (high - low)
            left = there <= thresholds
            counts = left.sum(axis=0)
            enough = (counts >= LEAF) & (len(own) - counts >= LEAF)
            # The centred values add up to 0: both sides have the same sum but for its sign.
            weights = 1 / np.maximum(1, counts) + 1 / np.maximum(1, len(own) - counts)
            gains = np.where(enough, (centred @ left) ** 2 * weights, -1.0)
            best = int(gains.argmax()) if gains.max() > 0 else -1
        if best < 0:
            told[others] = mean
            leaves.append((which, moved, mean))
            continue
        if best not in above:
            moved = np.concatenate([moved, others])
            which = np.concatenate([which, np.full(len(others), best)])
        drawn = np.where(which == best, anew[best, moved], asked[best, moved])
        goes_left = (
            left[:, best],
            asked[best, others] <= thresholds[best],
            drawn <= thresholds[best],
        )
        for a, b, c in (goes_left, [~each for each in goes_left]):
            nodes.append((own[a], others[b], moved[c], which[c], above | {best}))
    for which, moved, mean in leaves:
        changes[which, moved] = mean - told[moved]
    return changes
