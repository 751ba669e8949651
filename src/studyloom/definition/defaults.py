"""The default configuration: a config with the defaults of the search space filled in."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from studyloom.config.build import find_parameter
from studyloom.config.study_config import StudyConfig
from studyloom.config.values import has_key, value_at
from studyloom.space.tree import Space, find_default


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

    def find_length(key: str) -> int:
        """Returns the length of the list at a key, which decides that of another list."""
        value = values.get(key, value_at(config, key))
        if isinstance(value, list):
            return len(value)
        return 1

    has_params = bool(value_at(config, "params"))
    for node in space.opened_nodes(choices):
        key = node.key
        section = key.partition(".")[0]
        declared_default: object = inspect.Parameter.empty
        if not has_key(config, key):
            parameter = find_parameter(config, key)
            if parameter is not None:
                declared_default = parameter.default
            elif section != "params":
                continue
            elif node.default is None and has_params:
                continue  # next to other params, a name that nothing declares may be misspelt
        elif node.default is None or key in typed_keys:
            continue
        values[key] = find_default(node, declared_default, find_length)
    if not values:
        return config
    return config.with_values(values)
