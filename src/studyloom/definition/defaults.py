"""The default configuration: a config with the defaults of the search space filled in."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from studyloom.config.build import find_parameter
from studyloom.config.study_config import StudyConfig
from studyloom.config.values import has_key, value_at
from studyloom.space.tree import Space, find_default


def with_defaults(
    space: Space, typed: Collection[str], config: StudyConfig, choices: Mapping[str, str]
) -> StudyConfig:
    """Returns a config with the values of the baseline that it lacks, or that the space gives.

    A key is added where the target of its section has such a parameter, whose default counts, also
    one outside the range: validation refuses it.

    Args:
        typed: the keys that the command line sets.
        choices: the option of each group.
    """
    values: dict[str, Any] = {}

    def length_of(key: str) -> int:
        value = values.get(key, value_at(config, key))
        return len(value) if isinstance(value, list) else 1

    has_params = bool(value_at(config, "params"))
    for node in space.opened_nodes(choices):
        key = node.key
        section = key.partition(".")[0]
        parameter = None
        if not has_key(config, key):
            parameter = find_parameter(config, key)
            # Without a declaration, a name next to other params may be a misspelt one.
            free = section == "params" and (node.default is not None or not has_params)
            if parameter is None and not free:
                continue
        elif node.default is None or key in typed:
            continue
        declared = inspect.Parameter.empty if parameter is None else parameter.default
        values[key] = find_default(node, declared, length_of)
    if not values:
        return config
    return config.with_values(values)
