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
from studyloom.space.tree import Configuration, Hyperparameter, Space, config_group, find_misfit
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
class PlacedConfiguration:
    """A configuration placed in a space; a wrong value is replaced by the low end of its range.

    Attributes:
        configuration: The values, those that were given and the defaults.
        errors: Messages about wrong values; or if none is wrong, one about a relation of the space
            that the values break together.
        unknown: Messages about given names that the configuration has no hyperparameter for, by
            name.
        defaulted: The names of hyperparameters that were not given and have their default value.
        breaks_relation: Whether all values are possible, but together break a relation.
    """

    configuration: Configuration = field(default_factory=Configuration)
    errors: list[str] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    defaulted: list[str] = field(default_factory=list)
    breaks_relation: bool = False


class _GivenValues:
    """The values that are given, which are looked up by name or config key.

    Attributes:
        values: The values by given name. A list has a value for its length and for each item.
        keys: The config key of each given name.
        used_names: The given names whose values were looked up.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self.values = dict(_flatten(parameters))
        self.keys = _find_config_keys(self.values)
        self._names_by_key = {key: name for name, key in self.keys.items()}
        self.used_names: set[str] = set()

    def look_up(self, hyperparameter: Hyperparameter) -> Any:
        """Returns the value that is given for a hyperparameter, or ABSENT.

        It may be given by the hyperparameter's name, or by another name for its config key.
        """
        given_name: str | None = hyperparameter.name
        if given_name not in self.values:
            given_name = self._names_by_key.get(_config_key(hyperparameter))
        if given_name is None:
            return ABSENT
        self.used_names.add(given_name)
        return self.values[given_name]


def _config_key(hyperparameter: Hyperparameter) -> str:
    """Returns the config key of a hyperparameter's value: model.width, model.hidden.length.

    The length and each item of a list, such as model.hidden.0, are hyperparameters.
    """
    if hyperparameter.role == "length":
        return f"{hyperparameter.key}.length"
    if hyperparameter.role == "item":
        return f"{hyperparameter.key}.{hyperparameter.index}"
    return hyperparameter.key


def place_configuration(
    definition: SpaceDefinition, parameters: Mapping[str, Any]
) -> PlacedConfiguration:
    """Makes a configuration of a space from given values.

    A trial of another space, with other options or fewer of them, is placed by the config keys
    that both spaces search. Hyperparameters that are not given have their default value. That
    depends on the options of the groups, such as `model=cnn`, so that these are placed first.

    Args:
        definition: The definition of the study, or what is stored of it.
        parameters: The values by given name; may be nested.
    """
    placement = _Placement(definition, _GivenValues(parameters))
    placement.place_all()
    placement.check_unused()
    placement.check_relations()
    return placement.placed


class _Placement:
    """The steps of `place_configuration`, each of which adds to `placed`.

    Attributes:
        placed: The configuration, and messages about the given values.
    """

    def __init__(self, definition: SpaceDefinition, given_values: _GivenValues) -> None:
        self.placed = PlacedConfiguration()
        self._space = definition.space
        self._study_choices = definition.composer.choices
        self._given_values = given_values
        self._choices = _place_options(definition, given_values)
        # A config with these options, which has the default values of all else.
        self._config = definition.composer.compose(self._choices)

    def place_all(self) -> None:
        """Gives each hyperparameter its given value, or else its default value."""
        self.placed.configuration = self._space.walk(self._place)

    def _place(self, hyperparameter: Hyperparameter) -> Any:
        """Returns the given or default value of a hyperparameter.

        If the hyperparameter cannot have this value, adds an error, and returns the low end of its
        range instead, so that the others are placed and checked too.
        """
        name = hyperparameter.name
        distribution = hyperparameter.distribution
        value = self._given_values.look_up(hyperparameter)
        if value is ABSENT:
            read_value = partial(value_at, self._config)  # of a config key
            value = hyperparameter.read_default(self._choices, read_value)
            self.placed.defaulted.append(name)
            subject = f"{name} is not given, and its default value {format_scalar(value)}"
        else:
            subject = f"{name}={format_scalar(value)}"
        misfit = find_misfit(distribution, value)  # such as "is outside its range …"
        if misfit is not None:
            self.placed.errors.append(f"{subject} {misfit}")
            return hyperparameter.make_placeholder(choices={}, end="low")
        if isinstance(distribution, FloatDistribution):
            return float(value)
        return hyperparameter.match_choice(value)  # 1 for a value of 1.0, if the choice is 1

    def check_unused(self) -> None:
        """Checks the given names that stand for no hyperparameter of the configuration."""
        for name in self._given_values.values:
            if name not in self._given_values.used_names:
                self._check_unsearched(name)

    def _check_unsearched(self, name: str) -> None:
        """Checks a given value that is not searched: whether this study always has this value.

        Take `model=cnn` in a study that does not search `model`. If its config has the option
        `cnn`, all is well; if it has another option, that is an error.

        The value may also be the length of a list, such as `hidden.length=2`, or a value of the
        config, such as `optimizer.lr=0.1`. If the study has another value there, or none, the name
        is noted as unknown.

        Args:
            name: The given name.
        """
        value = self._given_values.values[name]
        key = self._given_values.keys[name]
        configuration = self.placed.configuration
        subject = f"{name}={format_scalar(value)}"
        space = self._space
        # A list may be given by its name or by its config key.
        is_length_of_list = any(
            _has_length(space, configuration, name_or_key, value) for name_or_key in (name, key)
        )
        if is_length_of_list:
            return

        options = {**self._study_choices, **configuration.choices}  # by group
        option = options.get(config_group(key))
        is_group = option is not None
        if is_group:
            if option != value:
                self.placed.errors.append(f"{subject}, but here it is {option}")
            return

        is_config_value = has_key(self._config, key) and value_at(self._config, key) == value
        if not is_config_value:
            hint = nearest(name, [*configuration.params])
            message = f"{subject} is not a hyperparameter of this configuration{hint}"
            self.placed.unknown[name] = message

    def check_relations(self) -> None:
        """Checks that the values together break no relation of the space, if each is possible."""
        if self.placed.errors:
            return
        breach = self._space.find_breach(self.placed.configuration.params)
        if breach is not None:
            self.placed.breaks_relation = True
            self.placed.errors.append(breach)


def _place_options(definition: SpaceDefinition, given_values: _GivenValues) -> Mapping[str, str]:
    """Returns the option of each group of the space: the given one, else that of the config.

    The option of one group decides which further groups there are. So the whole space is walked,
    from the outer groups to the inner ones, though only the options are used.
    """
    study_options = definition.composer.choices
    choose_option = partial(_choose_option, given_values=given_values, study_options=study_options)
    configuration = definition.space.walk(choose_option)
    return configuration.choices


def _choose_option(
    hyperparameter: Hyperparameter,
    given_values: _GivenValues,
    study_options: Mapping[str, Any],
) -> Any:
    """Returns the option of a group: the given one if the space has it, else that of the study.

    For a hyperparameter that is not a group, returns the lowest value of its range.

    Args:
        hyperparameter: The hyperparameter that a walk through the space comes to.
        given_values: The values that are given, by name.
        study_options: The option of each group in the study's config.
    """
    if hyperparameter.role == "option":
        option = given_values.look_up(hyperparameter)
        if option is not ABSENT and find_misfit(hyperparameter.distribution, option) is None:
            return option
    return hyperparameter.make_placeholder(study_options)


def _has_length(space: Space, configuration: Configuration, name: str, length: object) -> bool:
    """Returns whether a configuration has a list of this length, whether that is searched or not.

    Args:
        space: The space of the configuration.
        configuration: The configuration that may have the list.
        name: The name or config key of the list, or that of its length, such as hidden.length.
        length: The length that the list may have.
    """
    keys_by_name = {node.name: node.key for node in space.opened_nodes(configuration.choices)}
    list_name = name.removesuffix(".length")
    key = keys_by_name.get(list_name, list_name)  # a config key stands for itself
    items = configuration.values.get(key)
    return isinstance(items, list) and len(items) == length


def _flatten(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the name and value of each nested value; a list is its length and its items.

    {"model": {"hidden": [32, 64]}} gives model.hidden.length, model.hidden.0 and model.hidden.1.

    Args:
        parameters: The nested values.
        prefix: The name of the section that they are in, and a dot; "" at the top.
    """
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

    Let the values of `model` and `model.cnn.block` be `cnn` and `wide`. Then the name
    `model.cnn.block.wide.size` has the key `model.block.size`. The inner option is removed first:
    once `cnn` is removed, the name would no longer begin with `model.cnn.block`.

    Args:
        values: The values by name, among them the option of each group by the group's name.
    """
    keys = {}
    inner_groups_first = sorted(values, key=len, reverse=True)  # their names are longer
    for name in values:
        key = name
        for group in inner_groups_first:
            option_prefix = f"{group}.{values[group]}."
            if key.startswith(option_prefix):
                key = f"{group}.{key.removeprefix(option_prefix)}"
        keys[name] = key
    return keys
