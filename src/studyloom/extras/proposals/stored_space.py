"""The search space as a study stores it for proposers, and its description in JSON Schema."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
from optuna.distributions import CategoricalDistribution, IntDistribution

from studyloom.config.values import with_values
from studyloom.errors import ConfigError
from studyloom.space.rule import read_space as read_tree
from studyloom.space.tree import Distribution, Group, ListNode, Node, Space, ValueNode, describe
from studyloom.storage.attributes import SPACE
from studyloom.storage.stored_study import StoredStudy

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ROUNDING = 1e-9  # added before a share is cut: 0.29 * 100 is 28.999… as a float
Schema = dict[str, Any]  # a description in JSON Schema


@dataclass(frozen=True)
class StoredSpace:
    """The space that `warm_start.store_space` stored, against which proposals are checked.

    Proposals are placed in it like configurations in a study definition
    (`placement.place_configuration`), which reads `space` and `composer`.

    Args:
        tree: the space as configs write it.
        options: which options of each group are searched.
        choices: the default option of each group.
        starts: the default value of each hyperparameter, by its name.
        baseline: whether trial 0 is the default configuration.
        share: the share of the budget that may be proposed.
    """

    tree: dict[str, Any]
    options: dict[str, list[str]]
    choices: dict[str, str | None]
    starts: dict[str, Any]
    baseline: bool
    share: float

    @cached_property
    def space(self) -> Space:
        return read_tree(self.tree, lambda group: self.options.get(group, []))

    @property
    def composer(self) -> "StoredSpace":
        """The composer of default configurations, which is this object."""
        return self

    def compose(self, choices: Mapping[str, str]) -> dict[str, Any]:
        """Returns the default values of the hyperparameters that some choices open."""
        nodes = self.space.opened_nodes(choices)
        return with_values({}, {node.key: self.starts[node.name] for node in nodes})

    def most_proposals(self, budget: int) -> int:
        """Returns how many trials of a budget may be proposed."""
        allowed = int(self.share * budget + ROUNDING)
        return min(budget, allowed)


def read_space(stored: StoredStudy) -> StoredSpace:
    """Returns what is stored of the space of a study; raises ConfigError if there is nothing."""
    (attribute,) = stored.attributes(SPACE)
    try:
        return msgspec.convert(attribute, StoredSpace)
    except msgspec.ValidationError:
        raise ConfigError(
            f"{stored.name}: its space is not stored, so proposals cannot be checked; the "
            "command that runs a study stores it, except with sampler=grid, which tries each "
            "configuration itself, and with an objective that suggests its own values"
        ) from None


def json_schema(stored_space: StoredSpace) -> Schema:
    """Describes the configurations of a space in JSON Schema.

    A hyperparameter is a property with its name; if a proposal leaves it out, it has its default. A
    group is a `oneOf` with a schema for each option and the hyperparameters that the option opens.
    A list is an array.
    """
    space = stored_space.space
    schema = {"$schema": DIALECT, "type": "object", **_describe_nodes(space.nodes, stored_space)}
    if space.relations:
        schema["description"] = f"where {' and '.join(map(str, space.relations))}"
    schema["unevaluatedProperties"] = False  # a proposal has no other keys
    return schema


def _describe_nodes(
    nodes: Sequence[Node], stored_space: StoredSpace, group: str = "", option: str = ""
) -> Schema:
    """Describes the hyperparameters at the root of a space, or those that an option opens.

    Args:
        nodes: the nodes at the root, or below the option.
        group: the name of the option's group; empty for the root.
        option: the name of the option; empty for the root.
    """
    properties: Schema = {}
    if group:
        properties[group] = {"const": option}
    groups: list[Schema] = []
    for node in nodes:
        match node:
            case Group():
                groups.append({"oneOf": _describe_options(node, stored_space)})
            case ValueNode():
                default = stored_space.starts.get(node.name)
                properties[node.name] = {**_describe_values(node.distribution), "default": default}
            case ListNode():
                default = stored_space.starts.get(node.name)
                properties[node.name] = {**_describe_list(node), "default": default}
    schema: Schema = {"properties": properties}
    if groups:
        schema["allOf"] = groups
    return schema


def _describe_options(group: Group, stored_space: StoredSpace) -> list[Schema]:
    """Describes each option of a group with the hyperparameters that it opens.

    A proposal must name the option that it chooses, unless that is the default: the option in the
    config, or else the first.
    """
    default_option = stored_space.choices.get(group.config_group)
    if default_option not in group.options:
        default_option = next(iter(group.options))
    schemas = []
    for option, nodes in group.options.items():
        schema = _describe_nodes(nodes, stored_space, group.name, option)
        if option != default_option:
            schema["required"] = [group.name]
        schemas.append(schema)
    return schemas


def _describe_list(node: ListNode) -> Schema:
    """Describes a list of values: its length is searched, or is the length of another list."""
    array: Schema = {
        "type": "array",
        "items": _describe_values(node.item),
        "minItems": 1,
    }
    if isinstance(node.length, IntDistribution):
        array["minItems"] = node.length.low
        array["maxItems"] = node.length.high
    else:
        array["description"] = f"as long as {node.length}"
    return array


def _describe_values(distribution: Distribution) -> Schema:
    """Describes the values of a distribution, with its step and whether it is logarithmic."""
    if isinstance(distribution, CategoricalDistribution):
        return {"enum": [*distribution.choices]}
    kind = "number"
    if isinstance(distribution, IntDistribution):
        kind = "integer"
    return {
        "type": kind,
        "minimum": distribution.low,
        "maximum": distribution.high,
        "description": describe(distribution),
    }
