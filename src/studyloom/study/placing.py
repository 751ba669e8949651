"""Places parameters in a space: those of a trial of another study, or those that a person typed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import FloatDistribution

from studyloom.config.overrides import group_options
from studyloom.config.values import has_key, value_at
from studyloom.question.question import Question, end_of, stand_in
from studyloom.space.tree import Parameter, Point, group_of, why_not
from studyloom.text import as_yaml, nearest

ABSENT = object()


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
        return stand_in(question.composer.choices, parameter)

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
