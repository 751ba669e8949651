"""The default configuration: a config with the defaults of the search space filled in."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from studyloom.config.build import find_parameter
from studyloom.config.study_config import StudyConfig
from studyloom.config.values import has_key, value_at
from studyloom.space.tree import ListNode, Space, ValueNode, find_default


def with_defaults(
    space: Space, typed_keys: Collection[str], config: StudyConfig, choices: Mapping[str, str]
) -> StudyConfig:
    """Returns a config with the values of the baseline that it lacks, or that the space gives.

    A key that the config lacks is added if the target of its section has a parameter of that name.
    The parameter's default is the value, even outside the range: validation refuses it then.

    Args:
        space: the search space around the config.
        typed_keys: the keys that the command line sets.
        config: the study's own, or with other options of groups.
        choices: the option of each group.
    """
    values: dict[str, Any] = {}
    has_params = bool(value_at(config, "params"))
    for node in space.opened_nodes(choices):
        declared_default: object = inspect.Parameter.empty
        if has_key(config, node.key):
            is_set_by_space = node.default is not None and node.key not in typed_keys
            if not is_set_by_space:
                continue
        else:
            parameter = find_parameter(config, node.key)
            if parameter is not None:
                declared_default = parameter.default
            elif not node.key.startswith("params."):
                continue
            elif node.default is None and has_params:
                continue  # next to other params, a name that nothing declares may be misspelt
        shared_length = find_shared_length(node, config, values)
        values[node.key] = find_default(node, declared_default, shared_length)
    if not values:
        return config
    return config.with_values(values)


def find_shared_length(
    node: ValueNode | ListNode, config: StudyConfig, values: Mapping[str, object]
) -> int:
    """Returns the length of the list that a node is as long as; 1 if there is no such list.

    Args:
        values: values by key that come before those of the config.
    """
    if not isinstance(node, ListNode) or not isinstance(node.length, str):
        return 1
    other_list = values.get(node.length)
    if other_list is None:
        other_list = value_at(config, node.length)
    if not isinstance(other_list, list):
        return 1
    return len(other_list)
