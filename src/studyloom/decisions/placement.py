"""Places configurations of earlier studies, or of the user, in the space of a new study.

A configuration is given as values by name. A *given name* is the name of a hyperparameter in this
space, or in the space of the earlier study, or a config key. Two spaces may have other options, or
none, and still search the same config key, so names are compared by the config keys they stand for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from optuna.distributions import FloatDistribution

from studyloom.config.values import has_key, value_at
from studyloom.space.tree import Hyperparameter, Point, Space, config_group, find_misfit
from studyloom.text import format_scalar, nearest

ABSENT = object()  # the value of a hyperparameter that is not given; None may be a value


class Composer(Protocol):
    """Composes the configs of a study."""

    @property
    def choices(self) -> Mapping[str, Any]:
        """The option of each config group in the study's config; None where it has none."""
        ...

    def compose(self, choices: Mapping[str, str]) -> Any:
        """Returns the config with these options."""
        ...


class SpaceDefinition(Protocol):
    """The search space of a study, and its default values: a definition, or what is stored."""

    @property
    def space(self) -> Space: ...
    @property
    def composer(self) -> Composer: ...


@dataclass
class PlacedPoint:
    """A configuration placed in a space; a wrong value is replaced by the low end of its range.

    Attributes:
        errors: messages about wrong values, or about the relation that all values break together.
        unknown: messages about given names that the configuration has no hyperparameter for, by
            name.
        defaulted: the names of hyperparameters that were not given and have their default value.
        breaks_relation: whether all values are possible, but together break a relation.
    """

    point: Point = field(default_factory=Point)
    errors: list[str] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    defaulted: list[str] = field(default_factory=list)
    breaks_relation: bool = False


class _GivenValues:
    """The values that are given, which are looked up by name or config key.

    Attributes:
        values: by given name; a list is its length and its items.
        keys: the config key of each given name.
        used_names: those that were looked up.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self.values = dict(_flatten(parameters))
        self.keys = _find_config_keys(self.values)
        self._names = {key: name for name, key in self.keys.items()}
        self.used_names: set[str] = set()

    def look_up(self, hyperparameter: Hyperparameter) -> Any:
        """Returns the value that is given for a hyperparameter, or ABSENT."""
        name: str | None = hyperparameter.name
        if name not in self.values:
            key = hyperparameter.key
            if hyperparameter.role == "length":
                key = f"{key}.length"
            elif hyperparameter.role == "item":
                key = f"{key}.{hyperparameter.index}"
            name = self._names.get(key)
        if name is None:
            return ABSENT
        self.used_names.add(name)
        return self.values[name]


def place_point(definition: SpaceDefinition, parameters: Mapping[str, Any]) -> PlacedPoint:
    """Makes a configuration of a space from given values.

    A trial of another space, with other options or fewer of them, is placed by the config keys
    that both spaces search. Hyperparameters that are not given have their default value, which
    depends on the options: these are placed first.

    Args:
        parameters: values by hyperparameter name in this space, or by config key; may be nested.
    """
    given_values = _GivenValues(parameters)
    choices = _place_options(definition, given_values)
    config = definition.composer.compose(choices)
    placed = PlacedPoint()

    def decide(hyperparameter: Hyperparameter) -> Any:
        name = hyperparameter.name
        distribution = hyperparameter.distribution
        value = given_values.look_up(hyperparameter)
        if value is ABSENT:
            value = hyperparameter.read_default(choices, partial(value_at, config))
            placed.defaulted.append(name)
            subject = f"{name} is not given, and its default value {format_scalar(value)}"
        else:
            subject = f"{name}={format_scalar(value)}"
        misfit = find_misfit(distribution, value)
        if misfit is not None:
            placed.errors.append(f"{subject} {misfit}")
            return hyperparameter.make_placeholder({})  # its low end
        if isinstance(distribution, FloatDistribution):
            return float(value)
        return hyperparameter.match_choice(value)

    placed.point = definition.space.walk(decide)
    for name in given_values.values:
        if name not in given_values.used_names:
            _check_unused(definition, placed, given_values, name, config)
    if not placed.errors:
        breach = definition.space.find_breach(placed.point.params)
        if breach is not None:
            placed.breaks_relation = True
            placed.errors.append(breach)
    return placed


def _place_options(definition: SpaceDefinition, given_values: _GivenValues) -> Mapping[str, str]:
    """Returns the option of each group of the space: the given one, else that of the config."""

    def decide(hyperparameter: Hyperparameter) -> Any:
        if hyperparameter.role == "option":
            option = given_values.look_up(hyperparameter)
            if option is not ABSENT and find_misfit(hyperparameter.distribution, option) is None:
                return option
        return hyperparameter.make_placeholder(definition.composer.choices)

    return definition.space.walk(decide).choices


def _check_unused(
    definition: SpaceDefinition,
    placed: PlacedPoint,
    given_values: _GivenValues,
    name: str,
    config: Any,
) -> None:
    """Checks a given name without a hyperparameter: its value must agree with what is fixed here.

    Args:
        config: the default configuration with the options of the placed one.
    """
    value = given_values.values[name]
    key = given_values.keys[name]
    if _is_fixed_length(definition.space, placed.point, (name, key), value):
        return
    subject = f"{name}={format_scalar(value)}"
    choices = {**definition.composer.choices, **placed.point.choices}
    option = choices.get(config_group(key))
    if option is not None:
        if option != value:
            placed.errors.append(f"{subject}, but here it is {option}")
        return
    if not has_key(config, key) or value_at(config, key) != value:
        hint = nearest(name, [*placed.point.params])
        placed.unknown[name] = f"{subject} is not a hyperparameter of this configuration{hint}"


def _is_fixed_length(space: Space, point: Point, names: tuple[str, str], value: object) -> bool:
    """Returns whether a value is the length of a list whose length is not searched.

    Args:
        names: the name and config key that the value is given for, which end in `.length`.
    """
    keys = {node.name: node.key for node in space.opened_nodes(point.choices)}
    for name in names:
        list_name = name.removesuffix(".length")
        items = point.values.get(keys.get(list_name, list_name))
        if isinstance(items, list) and len(items) == value:
            return True
    return False


def _flatten(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields nested values by name; a list as its length and its items."""
    for key, value in parameters.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{name}.")
        elif isinstance(value, list | tuple):
            yield f"{name}.length", len(value)
            for index, item in enumerate(value):
                yield f"{name}.{index}", item
        else:
            yield name, value


def _find_config_keys(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns the config key of each name: the name without the options that are chosen.

    A name may be below several groups, as `model.cnn.block.wide.size` is. The options of inner
    groups are removed first, since the names of these hold the options of outer groups.

    Args:
        values: by name; a group's name has its option.
    """
    keys = {}
    inner_first = sorted(values, key=len, reverse=True)
    for name in values:
        key = name
        for group in inner_first:
            option_prefix = f"{group}.{values[group]}."
            if key.startswith(option_prefix):
                key = f"{group}.{key.removeprefix(option_prefix)}"
        keys[name] = key
    return keys
