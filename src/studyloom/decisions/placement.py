"""Places configurations of earlier studies, or of the user, in the space of a new study."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from optuna.distributions import FloatDistribution

from studyloom.config.values import has_key, value_at
from studyloom.space.tree import Hyperparameter, Point, config_group, find_misfit
from studyloom.text import as_yaml, nearest

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

    def look_up(parameter: Hyperparameter) -> Any:
        suffix = {"length": ".length", "item": f".{parameter.index}"}.get(parameter.role, "")
        name = parameter.name if parameter.name in flat else name_of.get(parameter.key + suffix)
        if name is None:
            return ABSENT
        used.add(name)
        return flat[name]

    def choose(parameter: Hyperparameter) -> Any:
        option = look_up(parameter) if parameter.role == "option" else ABSENT
        if option is not ABSENT and find_misfit(parameter.distribution, option) is None:
            return option
        return parameter.make_placeholder(definition.composer.choices)

    choices = definition.space.walk(choose).choices
    composed = definition.composer.compose(choices)
    placed = PlacedPoint()

    def decide(parameter: Hyperparameter) -> Any:
        value, name = look_up(parameter), parameter.name
        subject = f"{name}={as_yaml(value)}"
        if value is ABSENT:
            value = parameter.read_default(choices, partial(value_at, composed))
            placed.composed.append(name)
            subject = f"{name} is not given, and its default value {as_yaml(value)}"
        if problem := find_misfit(parameter.distribution, value):
            placed.wrong.append(f"{subject} {problem}")
            return parameter.make_placeholder({})  # its low end
        is_float = isinstance(parameter.distribution, FloatDistribution)
        return float(value) if is_float else parameter.match_choice(value)

    placed.point = definition.space.walk(decide)
    for name in [name for name in flat if name not in used]:
        _check_unasked(definition, placed, name, key_of[name], flat[name], composed)
    if not placed.wrong:
        breach = definition.space.find_breach(placed.point.params)
        if breach is not None:
            placed.breaks = True
            placed.wrong = [breach]
    return placed


def _check_unasked(
    definition: Any, placed: PlacedPoint, name: str, key: str, value: Any, composed: Any
) -> None:
    """Checks a name that the configuration lacks: its value may agree with the config."""
    subject = f"{name}={as_yaml(value)}"
    keys = {leaf.name: leaf.key for leaf in definition.space.opened_nodes(placed.point.choices)}
    above = (each.removesuffix(".length") for each in (name, key))
    lists = [placed.point.values.get(keys.get(each, each)) for each in above]
    if any(isinstance(each, list) and len(each) == value for each in lists):
        return  # of a length that is not searched
    choices = {**definition.composer.choices, **placed.point.choices}
    if (option := choices.get(config_group(key))) is not None:
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
