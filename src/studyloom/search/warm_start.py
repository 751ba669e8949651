"""Warm starts: the points that a study tries first, named by its user or taken from another study.

`study.enqueue` lists known good points, and `study.from` takes the best trials of an earlier study.
Each becomes a waiting trial with fixed parameters before any worker starts. The question of the
study is the same with them and without.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """A point to begin with.

    Attributes:
        point: in the space of the study.
        source: where it comes from, for people: "study.enqueue[0]", "runs/earlier, trial 7".
    """

    point: Point
    source: str


@dataclass(frozen=True)
class WarmStarts:
    """All points to begin with.

    Attributes:
        points: in the order in which they are tried.
        source: the earlier study of `study.from`, without its password.
        notes: lines for the user about the trials of the earlier study.
    """

    points: Sequence[WarmStart] = ()
    source: str | None = None
    notes: Sequence[str] = ()


@dataclass
class PlacedPoint:
    """Parameters placed in a space.

    Attributes:
        point: the point; a wrong value is replaced by the low end of its range.
        wrong: messages about the values that the space cannot give.
        unasked: messages about parameters that the space does not have at this point, by name.
        composed: the names of the parameters that were not given and have their composed value.
    """

    point: Point = field(default_factory=Point)
    wrong: list[str] = field(default_factory=list)
    unasked: dict[str, str] = field(default_factory=dict)
    composed: list[str] = field(default_factory=list)


def place_point(question: Question, parameters: Mapping[str, Any]) -> PlacedPoint:
    """Finds the point of a space at which given parameters lie.

    A trial of another space, with other options or fewer of them, is placed by the config keys
    that both spaces search. Parameters that are not given have their composed value.

    Args:
        question: its space and its config.
        parameters: values by parameter name in this space, or by config key; possibly nested.
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
        return question.stand(question.composer.choices, parameter)

    choices = question.space.walk(choose).choices
    composed = question.composer.compose(choices)
    placed = PlacedPoint()

    def decide(parameter: Parameter) -> Any:
        value, name = look_up(parameter), parameter.name
        subject = f"{name}={as_yaml(value)}"
        if value is ABSENT:
            value = _composed_value(parameter, choices, composed)
            placed.composed.append(name)
            subject = f"{name} is not given, and its composed value {as_yaml(value)}"
        if problem := why_not(parameter.distribution, value):
            placed.wrong.append(f"{subject} {problem}")
            return end_of(parameter.distribution, 0)
        return float(value) if isinstance(parameter.distribution, FloatDistribution) else value

    placed.point = question.space.walk(decide)
    for name in flat.keys() - used:
        _check_unasked(question, placed, name, key_of[name], flat[name], composed)
    return placed


def _check_unasked(
    question: Question,
    placed: PlacedPoint,
    name: str,
    key: str,
    value: Any,
    composed: Any,
) -> None:
    """Checks a given parameter that the space lacks at the point: it may agree with the config."""
    subject, group = f"{name}={as_yaml(value)}", group_of(key)
    if group_options(group):
        option = {**question.composer.choices, **placed.point.choices}.get(group)
        if option != value:
            placed.wrong.append(f"{subject}, but here it is {option}")
        return
    parent, _, last = key.rpartition(".")
    items = placed.point.values.get(parent, value_at(composed, parent) if parent else None)
    if isinstance(items, list) and (last == "length" or last.isdigit()):
        same = value == len(items) if last == "length" else [value] == items[int(last) :][:1]
    else:
        same = has_key(composed, key) and value_at(composed, key) == value
    if not same:
        hint = nearest(name, [*placed.point.params])
        placed.unasked[name] = f"{subject} is not a parameter of this point{hint}"


def _flatten(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields nested parameters by name; a list as its length and its items."""
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


def _composed_value(parameter: Parameter, choices: Mapping[str, str], composed: Any) -> Any:
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
    question: Question, used_sources: Sequence[str], ranked_trials: RankedTrials
) -> WarmStarts:
    """Finds the points that `study.enqueue` and `study.from` name.

    Args:
        question: what the study asks; its config names the points.
        used_sources: the earlier studies whose trials this study has taken already; they are not
            read again.
        ranked_trials: returns the trials of the study that `study.from` names, best first.

    Raises:
        ConfigError: every point that the space cannot give, and an earlier study that is missing.
    """
    study = question.config.study
    enqueued, source = value_at(question.config, "study.enqueue"), study["from"]
    if not enqueued and source is None:
        return WarmStarts()
    mistakes: list[str] = []
    points = list(_enqueued_points(question, enqueued, mistakes))
    if study.top < 1:
        mistakes.append(f"study.top must be at least 1; got {study.top}")
    if getattr(question.sampler(0), "points", None) is not None:
        mistakes.append(
            "sampler=grid: tries each point of the space once, so study.enqueue and study.from "
            "add nothing; remove them, or choose another sampler"
        )
    room = question.trials() - (question.baseline is not None) - len(points)
    if room < 0:
        beside = " beside the baseline" if question.baseline is not None else ""
        mistakes.append(
            f"study.enqueue: {len(points)} points{beside} are more than "
            f"study.trials={study.trials}; raise study.trials, or remove points"
        )
    notes: list[str] = []
    if source is not None and not isinstance(source, str):
        mistakes.append(
            f"study.from must be a run directory or the URL of a database; got {source!r}"
        )
    label = None
    if isinstance(source, str):
        try:
            label = source_label(source)
            if label not in used_sources and not mistakes:
                ranked = ranked_trials(source)
                points += _best_points(question, ranked, label, min(study.top, room), notes)
        except ValueError as error:
            mistakes += [f"study.from: {line}" for line in getattr(error, "mistakes", [str(error)])]
    if mistakes:
        raise ConfigError(mistakes)
    return WarmStarts(points, label, notes)


def _enqueued_points(question: Question, enqueued: Any, mistakes: list[str]) -> Iterator[WarmStart]:
    if not isinstance(enqueued, list) or not all(isinstance(item, Mapping) for item in enqueued):
        mistakes.append(
            "study.enqueue must be a list of points, such as [{model: cnn, …}, …]; "
            f"got {as_yaml(enqueued)}"
        )
        return
    for index, parameters in enumerate(enqueued):
        source = f"study.enqueue[{index}]"
        placed = place_point(question, parameters)
        problems = (*placed.wrong, *placed.unasked.values())
        mistakes += [f"{source}: {problem}" for problem in problems]
        yield WarmStart(placed.point, source)


def source_label(source: str) -> str:
    """Returns a source of `study.from`, a run directory or a URL, without its password."""
    if "://" not in source:
        return str(Path(source))
    url, _, name = source.partition("#")
    return f"{without_password(parse_url(url))}#{name}".removesuffix("#")


def _best_points(
    question: Question, ranked: Sequence[FrozenTrial], label: str, top: int, notes: list[str]
) -> list[WarmStart]:
    """Returns the best trials of an earlier study that are points of this study's space too."""
    starts: list[WarmStart] = []
    differences: dict[str, None] = {}
    for trial in ranked:
        if len(starts) == top:
            break
        placed = place_point(question, trial.params)
        if placed.wrong:
            notes.append(f"{label}: trial {trial.number} does not fit: {'; '.join(placed.wrong)}")
            continue
        differences |= dict.fromkeys(f"{name} has its composed value" for name in placed.composed)
        differences |= dict.fromkeys(f"{name} is not searched here" for name in placed.unasked)
        starts.append(WarmStart(placed.point, f"{label}, trial {trial.number}"))
    if starts:
        numbers = ", ".join(start.source.rpartition(" ")[2] for start in starts)
        note = "; ".join([f"{label}: begins with its trials {numbers}", *differences])
        notes.insert(0, note)
    else:
        notes.append(f"{label}: none of its trials fits this space")
    return starts
