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
    """Returns a config with the default values of the search space.

    A key of the space gets a default in three cases:
    - The config has the key, and the space gives a default. It replaces the value of the config,
      unless the command line sets the key.
    - The config lacks the key, and the class or function of its section has a parameter of that
      name. The parameter's default is the value, even outside the range: validation refuses it.
    - The config lacks the key, which may be one of the values that a loop gets by name (`params`).

    Args:
        space: the search space around the config.
        typed_keys: the keys that the command line sets.
        config: the config of the study, or one with other options of groups.
        choices: the option of each group in the config.
    """
    values: dict[str, Any] = {}
    for node in space.opened_nodes(choices):
        parameter = None
        if has_key(config, node.key):
            gets_default = node.default is not None and node.key not in typed_keys
        else:
            parameter = find_parameter(config, node.key)
            gets_default = parameter is not None or _is_new_param(node, config)
        if not gets_default:
            continue
        declared_default: object = inspect.Parameter.empty
        if parameter is not None:
            declared_default = parameter.default
        shared_length = find_shared_length(node, config, values)
        values[node.key] = find_default(node, declared_default, shared_length)
    if not values:
        return config
    return config.with_values(values)


def _is_new_param(node: ValueNode | ListNode, config: StudyConfig) -> bool:
    """Returns whether a key of the space that no signature declares may be added to `params`.

    If `params` has other keys, and the space gives no default, the key may be a misspelled one.
    """
    is_in_params = node.key.startswith("params.")
    has_other_params = bool(value_at(config, "params"))
    return is_in_params and (node.default is not None or not has_other_params)


def find_shared_length(
    node: ValueNode | ListNode, config: StudyConfig, values: Mapping[str, object]
) -> int:
    """Returns the length of another list, if a node is a list that must be equally long; else 1.

    Such a node has the key of the other list, such as `model.widths`, as its `length`.

    Args:
        values: values by key; those of the config count only where these lack the list.
    """
    if not isinstance(node, ListNode) or not isinstance(node.length, str):
        return 1
    other_key = node.length
    other_list = values.get(other_key)
    if other_list is None:
        other_list = value_at(config, other_key)
    if not isinstance(other_list, list):
        return 1
    return len(other_list)
