"""Places configurations of earlier studies, or of the user, in the space of a new study.

Of several earlier studies a portfolio is taken: a few configurations that are good together. Each
was tried in one study only; its rank in the others is estimated from those of nearby trials.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution

from studyloom.config.values import has_key, value_at
from studyloom.space.tree import Parameter, Point, group_of, is_ordered, place_in, why_not
from studyloom.study.earlier_studies import EarlierStudy
from studyloom.text import as_yaml, nearest

if TYPE_CHECKING:  # torch takes two seconds, which a proposer need not wait for
    from studyloom.definition.definition import Definition

BANDWIDTH = 0.25  # of nearness, as a root mean square over parameters whose ranges are [0, 1]
# Trials of a study that may be chosen for a portfolio. With all 40, portfolios were worse by .01 on
# HPOBench: an estimate may be wrong about a configuration that did badly in its own study.
CANDIDATES = 10
MOST_PLACED = 2000  # trials of all studies that are placed in the space, at 1 ms each
ABSENT = object()


@dataclass
class PlacedPoint:
    """Hyperparameters placed in a space; a wrong value is replaced by the low end of its range.

    Attributes:
        unasked: messages about names that this configuration has no hyperparameter for, by name.
        composed: the names of hyperparameters that were not given and have their default value.
        breaks: whether all values are possible, but together break a relation, as `wrong` says.
    """

    point: Point = field(default_factory=Point)
    wrong: list[str] = field(default_factory=list)
    unasked: dict[str, str] = field(default_factory=dict)
    composed: list[str] = field(default_factory=list)
    breaks: bool = False


def place_point(definition: Any, parameters: Mapping[str, Any]) -> PlacedPoint:
    """Makes a configuration of a space from given hyperparameters.

    A trial of another space, with other options or fewer of them, is placed by the config keys
    that both spaces search. Hyperparameters that are not given have their default value.

    Args:
        definition: has the `space`, and the `composer` of its configurations.
        parameters: values by hyperparameter name in this space, or by config key; may be nested.
    """
    flat = dict(_flatten(parameters))
    key_of = _config_keys(flat)
    name_of = {key: name for name, key in key_of.items()}
    used = set[str]()

    def look_up(parameter: Parameter) -> Any:
        suffix = {"length": ".length", "item": f".{parameter.index}"}.get(parameter.role, "")
        name = parameter.name if parameter.name in flat else name_of.get(parameter.key + suffix)
        if name is None:
            return ABSENT
        used.add(name)
        return flat[name]

    def choose(parameter: Parameter) -> Any:
        option = look_up(parameter) if parameter.role == "option" else ABSENT
        if option is not ABSENT and why_not(parameter.distribution, option) is None:
            return option
        return parameter.stand_in(definition.composer.choices)

    choices = definition.space.walk(choose).choices
    composed = definition.composer.compose(choices)
    placed = PlacedPoint()

    def decide(parameter: Parameter) -> Any:
        value, name = look_up(parameter), parameter.name
        subject = f"{name}={as_yaml(value)}"
        if value is ABSENT:
            value = parameter.composed(choices, partial(value_at, composed))
            placed.composed.append(name)
            subject = f"{name} is not given, and its default value {as_yaml(value)}"
        if problem := why_not(parameter.distribution, value):
            placed.wrong.append(f"{subject} {problem}")
            return parameter.stand_in({})  # its low end
        is_float = isinstance(parameter.distribution, FloatDistribution)
        return float(value) if is_float else parameter.own(value)

    placed.point = definition.space.walk(decide)
    for name in [name for name in flat if name not in used]:
        _check_unasked(definition, placed, name, key_of[name], flat[name], composed)
    if not placed.wrong and (words := definition.space.breach(placed.point.params)) is not None:
        placed.breaks, placed.wrong = True, [words]
    return placed


def _check_unasked(
    definition: Any, placed: PlacedPoint, name: str, key: str, value: Any, composed: Any
) -> None:
    """Checks a name that the configuration lacks: its value may agree with the config."""
    subject = f"{name}={as_yaml(value)}"
    keys = {leaf.name: leaf.key for leaf in definition.space.leaves(placed.point.choices)}
    above = (each.removesuffix(".length") for each in (name, key))
    lists = [placed.point.values.get(keys.get(each, each)) for each in above]
    if any(isinstance(each, list) and len(each) == value for each in lists):
        return  # of a length that is not searched
    choices = {**definition.composer.choices, **placed.point.choices}
    if (option := choices.get(group_of(key))) is not None:
        if option != value:
            placed.wrong.append(f"{subject}, but here it is {option}")
        return
    if not has_key(composed, key) or value_at(composed, key) != value:
        hint = nearest(name, [*placed.point.params])
        placed.unasked[name] = f"{subject} is not a hyperparameter of this configuration{hint}"


def _flatten(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields nested values by name; a list as its length and its items."""
    for key, value in parameters.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{name}.")
        elif isinstance(value, list | tuple):
            yield f"{name}.length", len(value)
            yield from ((f"{name}.{index}", item) for index, item in enumerate(value))
        else:
            yield name, value


def _config_keys(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Returns the config key of each name: the name without the options that are chosen."""
    keys = {}
    groups = sorted(parameters, key=len, reverse=True)
    for name in parameters:
        key = name
        for group in groups:
            inside = f"{group}.{parameters[group]}."
            if key.startswith(inside):
                key = f"{group}.{key.removeprefix(inside)}"
        keys[name] = key
    return keys


@dataclass(frozen=True)
class RankedPoints:
    """The results of an earlier study, in the space of the new study.

    Args:
        points: (trials, hyperparameters); a number in [0, 1], or the index of a choice if the
            hyperparameter is categorical; NaN where the trial does not have it.
        scores: (trials,) the rank of each trial in its study: near 1 for the best, 0 for the worst.
        eligible: (trials,) whether the configuration of a trial may be chosen.
    """

    points: NDArray[np.float64]
    scores: NDArray[np.float64]
    eligible: NDArray[np.bool_]


def rank_scores(ranked: int, behind: int) -> NDArray[np.float64]:
    """Scores the trials of a study by rank, so that studies of different scales can be compared.

    A trial's score is the share of trials that it beats, itself counted as half. So the best of
    forty has 0.99, and a single trial, which shows little, has 0.5.

    The trials `behind` those with a rank are all equally bad, such as pruned ones.
    """
    places = np.concatenate([np.arange(ranked) + 0.5, np.full(behind, ranked + behind / 2)])
    return np.asarray(1.0 - places / max(1, ranked + behind))


def choose_points(
    studies: Sequence[RankedPoints], categorical: NDArray[np.bool_], count: int
) -> list[tuple[int, int]]:
    """Chooses configurations of earlier studies greedily, each adding most to those before it.

    The choice maximizes the best score among the chosen in each study, averaged over the studies.
    The score of a configuration in a study is only known as a distribution, `scores_nearby`, so
    this is an expected best score. It is submodular: the greedy choice reaches at least 1 - 1/e of
    the best set's (Nemhauser, Wolsey and Fisher, 1978). Auto-sklearn 2.0 makes portfolios so, from
    a matrix of all configurations on all tasks (Feurer et al., 2022, arXiv:2007.04074).

    Returns:
        The study and the trial of each configuration, in the order in which they are to be tried,
        without repeats; fewer than `count` if there are no more.
    """
    candidates = [
        (number, int(trial))
        for number, study in enumerate(studies)
        for trial in np.flatnonzero(study.eligible)
    ]
    if not candidates:
        return []
    points = np.stack([studies[number].points[trial] for number, trial in candidates])
    nearby = [scores_nearby(points, study, categorical) for study in studies]
    below = [np.ones(len(steps)) for _, steps in nearby]  # that nothing chosen is as good
    left = np.ones(len(candidates), dtype=bool)
    chosen: list[tuple[int, int]] = []
    while left.any() and len(chosen) < count:
        gains = sum(
            at_least @ (steps * rest) for (at_least, steps), rest in zip(nearby, below, strict=True)
        )
        place = int(np.where(left, gains, -np.inf).argmax())
        chosen.append(candidates[place])
        below = [
            rest * (1 - at_least[place]) for (at_least, _), rest in zip(nearby, below, strict=True)
        ]
        left &= squared_distances(points, points[[place]], categorical)[:, 0] > 0
    return chosen


def scores_nearby(
    points: NDArray[np.float64], study: RankedPoints, categorical: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Estimates the scores of configurations in a study from those of nearby trials.

    The weights are those of Nadaraya and Watson (1964), even for configurations that the study has
    tried: a trial's own rank owes much to the luck of its seed.

    Returns:
        (configurations, trials) the probability that a configuration is as good as a trial, the
        trials sorted by score, the best first; (trials,) by how much the score of a trial is above
        the next one's.
    """
    order = np.argsort(-study.scores, kind="stable")
    scores = study.scores[order]
    distances = squared_distances(points, study.points[order], categorical)
    nearest = distances.min(axis=1, keepdims=True, initial=np.inf)
    weights = np.exp((nearest - distances) / (2 * BANDWIDTH**2))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights.cumsum(axis=1), scores - np.append(scores[1:], 0.0)


def squared_distances(
    one: NDArray[np.float64], other: NDArray[np.float64], categorical: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Measures distances from configurations (a, hyperparameters) to others (b, hyperparameters).

    Returns:
        (a, b) means of the squared differences over the hyperparameters that either has. It is 1
        where only one has the hyperparameter, and where the choices differ.
    """
    sums, counts = np.zeros((len(one), len(other))), np.zeros((len(one), len(other)))
    for column, choice in enumerate(categorical):
        a, b = one[:, column, None], other[None, :, column]
        lacks_a, lacks_b = np.isnan(a), np.isnan(b)
        difference = (a != b).astype(float) if choice else (a - b) ** 2
        sums += np.where(lacks_a & lacks_b, 0.0, np.where(lacks_a | lacks_b, 1.0, difference))
        counts += ~(lacks_a & lacks_b)
    return np.asarray(sums / np.maximum(counts, 1.0))


def choose_trials(
    definition: "Definition", studies: Sequence[EarlierStudy], top: int, *, alone: bool
) -> Iterator[tuple[int, "PlacedTrial"]]:
    """Yields the trials to take, each with the position of its study."""
    if alone and len(studies) == 1:
        best = (trial for trial in _place_trials(definition, studies[0], top) if trial.eligible)
        yield from ((0, trial) for trial in itertools.islice(best, top))
        return
    most = max(2 * CANDIDATES, MOST_PLACED // max(1, len(studies)))
    placed = [[*_place_trials(definition, earlier, top, most)] for earlier in studies]
    names: dict[str, BaseDistribution] = {}
    for trial in itertools.chain.from_iterable(placed):
        names |= trial.placed.point.distributions
    tables = [_coordinates(trials, names) for trials in placed]
    categorical = np.array([not is_ordered(each) for each in names.values()], dtype=bool)
    for number, row in choose_points(tables, categorical, top):
        yield number, placed[number][row]


@dataclass(frozen=True)
class PlacedTrial:
    """A trial of an earlier study in the space, with the score of its rank, from 0 to 1."""

    number: int
    placed: PlacedPoint
    score: float
    eligible: bool


def _place_trials(
    definition: "Definition", earlier: EarlierStudy, top: int, most: int = MOST_PLACED
) -> Iterator[PlacedTrial]:
    """Places trials of an earlier study: of more than `most`, the best, and others evenly."""
    trials = [*earlier.ranked, *earlier.behind]
    scores = rank_scores(len(earlier.ranked), len(earlier.behind))
    baseline = None if definition.baseline is None else definition.baseline.params
    rows = [*range(len(trials))]
    if len(rows) > most:
        rest = np.linspace(CANDIDATES, len(trials) - 1, most - CANDIDATES)
        rows = [*rows[:CANDIDATES], *rest.round().astype(int).tolist()]
    few = max(CANDIDATES, top)
    for row in rows:
        try:
            at = place_point(definition, trials[row].params)
        except Exception:  # a name that no key can have, in untrusted content
            continue
        if not at.wrong and len(at.composed) < len(at.point.params):
            eligible = few > 0 and row < len(earlier.ranked) and at.point.params != baseline
            few -= eligible
            yield PlacedTrial(trials[row].number, at, float(scores[row]), eligible)


def _coordinates(
    trials: Sequence[PlacedTrial], names: Mapping[str, BaseDistribution]
) -> RankedPoints:
    """Turns placed trials into rows of numbers, a column for each hyperparameter."""
    points = np.full((len(trials), len(names)), np.nan)
    columns = {name: column for column, name in enumerate(names)}
    for row, trial in enumerate(trials):
        for name, value in trial.placed.point.params.items():
            points[row, columns[name]] = place_in(names[name], value)
    scores = np.array([trial.score for trial in trials])
    return RankedPoints(points, scores, np.array([t.eligible for t in trials], dtype=bool))
