"""The points that a study begins with: known-good ones that its user names, and the best of an earlier study.

Each becomes a trial before any worker starts, with its parameters set, in a slot of the ledger that is free again: from
there it is like a trial that was handed back, so that it has one owner, and the budget stays what it is. The study's
question is the same with them and without.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial

from studyloom.config.overrides import group_options
from studyloom.config.values import has_key, value_at
from studyloom.errors import ConfigError
from studyloom.question.preflight import end_of
from studyloom.question.question import Question
from studyloom.space.distributions import why_not
from studyloom.space.tree import Parameter, Point, group_of
from studyloom.storage.urls import parse_url, without_password
from studyloom.text import as_yaml, nearest

ABSENT = object()
RankedTrials = Callable[[str], Sequence[FrozenTrial]]


@dataclass(frozen=True)
class WarmStart:
    """A point to begin with, and where it is from."""

    point: Point
    source: str


@dataclass
class PlacedPoint:
    """Where given parameters lie in a space: what it cannot take, what it does not ask, by name, and what it lacks."""

    point: Point = field(default_factory=Point)
    wrong: list[str] = field(default_factory=list)
    unasked: dict[str, str] = field(default_factory=dict)
    composed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class WarmStarts:
    """All of them, in the order in which they are tried, with the earlier study and what is to be said of it."""

    points: Sequence[WarmStart] = ()
    source: str | None = None
    notes: Sequence[str] = ()


def place_point(question: Question, given: Mapping[str, Any]) -> PlacedPoint:
    """The point at which parameters stand, by the names of this space or by config keys; others stand as composed.

    So a point of a space with other options, or with fewer of them, is found again where both search the same key.
    """
    flat = dict(_items(given))
    key_of = _keys(flat)
    name_of = {key: name for name, key in key_of.items()}
    used = set[str]()

    def look(parameter: Parameter) -> Any:
        key = parameter.key + {"length": ".length", "item": f".{parameter.index}"}.get(
            parameter.role, ""
        )
        name = parameter.name if parameter.name in flat else name_of.get(key)
        if name is None:
            return ABSENT
        used.add(name)
        return flat[name]

    def choose(parameter: Parameter) -> Any:
        option = look(parameter) if parameter.role == "option" else ABSENT
        if option is not ABSENT and why_not(parameter.distribution, option) is None:
            return option
        return question.stand(question.composer.choices, parameter)

    choices = question.space.walk(choose).choices
    composed = question.composer.compose(choices)
    placed = PlacedPoint()

    def decide(parameter: Parameter) -> Any:
        value, name = look(parameter), parameter.name
        told = f"{name}={as_yaml(value)}"
        if value is ABSENT:
            value = _composed(parameter, choices, composed)
            placed.composed.append(name)
            told = f"{name} is not given, and as composed it is {as_yaml(value)}, which"
        if problem := why_not(parameter.distribution, value):
            placed.wrong.append(f"{told} {problem}")
            return end_of(parameter.distribution, 0)
        return float(value) if isinstance(parameter.distribution, FloatDistribution) else value

    placed.point = question.space.walk(decide)
    for name in flat.keys() - used:
        _judge_unasked(question, placed, name, key_of[name], flat[name], composed)
    return placed


def _judge_unasked(
    question: Question, placed: PlacedPoint, name: str, key: str, value: Any, composed: Any
) -> None:
    """A parameter that the space does not ask at that point may say what stands there all the same."""
    told, group = f"{name}={as_yaml(value)}", group_of(key)
    if group_options(group):
        option = {**question.composer.choices, **placed.point.choices}.get(group)
        if option != value:
            placed.wrong.append(f"{told}, and there it is {option}")
        return
    above, _, last = key.rpartition(".")
    items = placed.point.values.get(above, value_at(composed, above) if above else None)
    if isinstance(items, list) and (last == "length" or last.isdigit()):
        same = value == len(items) if last == "length" else [value] == items[int(last) :][:1]
    else:
        same = has_key(composed, key) and value_at(composed, key) == value
    if not same:
        placed.unasked[name] = f"{told} is not asked there{nearest(name, [*placed.point.params])}"


def _items(given: Mapping[str, Any], above: str = "") -> Any:
    """Parameters by name: those of nested mappings, and each item of a list, which has a length too."""
    for key, value in given.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            yield from _items(value, f"{name}.")
        elif isinstance(value, list | tuple):
            yield f"{name}.length", len(value)
            yield from ((f"{name}.{index}", item) for index, item in enumerate(value))
        else:
            yield name, value


def _keys(given: Mapping[str, Any]) -> dict[str, str]:
    """The config key of each name: the name without the options that the others choose."""
    found = {}
    for name in given:
        key = name
        for group in sorted(given, key=len, reverse=True):
            within = f"{group}.{given[group]}."
            if key.startswith(within):
                key = f"{group}.{key.removeprefix(within)}"
        found[name] = key
    return found


def _composed(parameter: Parameter, choices: Mapping[str, str], composed: Any) -> Any:
    """What the configuration says of a parameter."""
    if parameter.role == "option":
        return choices[group_of(parameter.key)]
    value = value_at(composed, parameter.key)
    if isinstance(value, list):
        if parameter.role == "length":
            return len(value)
        if parameter.role == "item" and value:
            return value[min(parameter.index, len(value) - 1)]
    return value


def find_warm_starts(
    question: Question, known: Sequence[str], ranked_trials: RankedTrials
) -> WarmStarts:
    """Finds the points that `study.enqueue` and `study.from` name.

    Args:
        known: the earlier studies whose points were taken before.
        ranked_trials: gives the best trials of the study that `study.from` names, the best first.

    Raises:
        ConfigError: all points that the space cannot give, and an earlier study that is missing.
    """
    study = question.config.study
    given, source = value_at(question.config, "study.enqueue"), study["from"]
    if not given and source is None:
        return WarmStarts()
    mistakes: list[str] = []
    points = list(_named(question, given, mistakes))
    if study.top < 1:
        mistakes.append(f"study.top: {study.top} is below 1")
    if getattr(question.sampler(0), "points", None) is not None:
        mistakes.append(
            "sampler=grid: tries each point of the space once, so that study.enqueue and study.from add none"
        )
    room = question.trials() - (question.baseline is not None) - len(points)
    if room < 0:
        beside = " beside the baseline" if question.baseline is not None else ""
        mistakes.append(
            f"study.enqueue: {len(points)} points{beside} are more than study.trials={study.trials}"
        )
    notes: list[str] = []
    if source is not None and not isinstance(source, str):
        mistakes.append(
            f"study.from: {source!r} is neither a run directory nor the URL of a database"
        )
    label = None
    if isinstance(source, str):
        try:
            label = source_label(source)
            if label not in known and not mistakes:
                best = ranked_trials(source)
                points += _best(question, best, label, min(study.top, room), notes)
        except ValueError as error:
            mistakes += [f"study.from: {line}" for line in getattr(error, "mistakes", [str(error)])]
    if mistakes:
        raise ConfigError(mistakes)
    return WarmStarts(points, label, notes)


def _named(question: Question, given: Any, mistakes: list[str]) -> Any:
    if not isinstance(given, list) or not all(isinstance(point, Mapping) for point in given):
        mistakes.append(
            f"study.enqueue: {as_yaml(given)} is no list of points; write [{{model: cnn, …}}, …]"
        )
        return
    for place_, values in enumerate(given):
        placed = place_point(question, values)
        mistakes += [
            f"study.enqueue[{place_}]: {problem}"
            for problem in (*placed.wrong, *placed.unasked.values())
        ]
        yield WarmStart(placed.point, f"study.enqueue[{place_}]")


def source_label(source: str) -> str:
    """A source without its password."""
    if "://" not in source:
        return str(Path(source))
    url, _, name = source.partition("#")
    return f"{without_password(parse_url(url))}#{name}".removesuffix("#")


def _best(
    question: Question, ranked: Sequence[FrozenTrial], label: str, top: int, notes: list[str]
) -> list[WarmStart]:
    """The best trials of an earlier study that are points of this one's space too."""
    found: list[WarmStart] = []
    loose: dict[str, None] = {}
    for trial in ranked:
        if len(found) == top:
            break
        placed = place_point(question, trial.params)
        if placed.wrong:
            notes.append(f"{label}: trial {trial.number} does not fit: {'; '.join(placed.wrong)}")
            continue
        loose |= dict.fromkeys(f"{name} stands as composed" for name in placed.composed)
        loose |= dict.fromkeys(f"{name} is not asked here" for name in placed.unasked)
        found.append(WarmStart(placed.point, f"{label}, trial {trial.number}"))
    if found:
        numbers = ", ".join(start.source.rpartition(" ")[2] for start in found)
        notes.insert(
            0, f"{label}: begins with its trials {numbers}" + "".join(f"; {what}" for what in loose)
        )
    else:
        notes.append(f"{label}: no trial of it fits this space")
    return found
