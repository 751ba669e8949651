"""Reads and sets values of a config by key, and writes a config as YAML.

The values are plain Python: mappings, lists and scalars. A key has dots, such as `model.hidden`.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from studyloom.errors import ConfigError
from studyloom.text import describe_unknown_key, error_text, name_error

ABSENT = object()  # what `node_at` returns for a key that is not there


class Unresolved(str):
    """The text of an interpolation that has no value, such as an unset variable's.

    Attributes:
        reason: why it has none.
    """

    reason = ""


def unresolved(text: str, reason: str) -> Unresolved:
    """Returns the text of an interpolation that has no value, with the reason."""
    value = Unresolved(text)
    value.reason = reason
    return value


def node_at(config: Mapping[str, object], key: str) -> Any:
    """Returns the value at a key, such as `model.hidden`, without a copy.

    Returns:
        The whole config for the key ""; ABSENT if there is no such key.
    """
    node: object = config
    if key == "":
        return node
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            return ABSENT
        node = node[name]
    return node


def has_key(config: Mapping[str, object], key: str) -> bool:
    """Returns whether a config has a key, even if its value is null."""
    node = node_at(config, key)
    return node is not ABSENT and not _is_missing(node)


def value_at(config: Mapping[str, object], key: str) -> Any:
    """Returns a copy of the value at a key; None if there is no such key.

    Raises:
        ConfigError: the value has an interpolation that cannot be resolved.
    """
    node = node_at(config, key)
    if node is ABSENT or _is_missing(node):
        return None
    return copy_value(node, key)


def _is_missing(node: object) -> bool:
    return isinstance(node, str) and node == MISSING


def copy_value(value: object, key: str = "") -> Any:
    """Copies a value of a config, with all mappings and lists in it, as plain Python.

    Args:
        value: plain, or a config of OmegaConf, which the user's code gets.
        key: its key, for errors.

    Raises:
        ConfigError: it has an interpolation that cannot be resolved.
    """
    if isinstance(value, dict):
        return {name: copy_value(inner, f"{key}.{name}") for name, inner in value.items()}
    if isinstance(value, list):
        return [copy_value(inner, key) for inner in value]
    if isinstance(value, Unresolved):
        raise ConfigError(f"{key}: {value.reason}")
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True)
    return value


def written_values(config: object) -> Any:
    """Returns the values of a config of OmegaConf, with interpolations unresolved."""
    return OmegaConf.to_container(config, resolve=False)


def with_values(config: Mapping[str, object], values: Mapping[str, object]) -> dict[str, object]:
    """Returns a config with other values at some keys.

    Only the sections that lead to these keys are copied; all else is shared with the config.
    """
    changed = dict(config)
    for key, value in values.items():
        *section_names, name = key.split(".")
        parent = changed
        for section_name in section_names:
            section = parent.get(section_name)
            section_copy: dict[str, object] = {}
            if isinstance(section, Mapping):
                section_copy.update(section)
            parent[section_name] = section_copy
            parent = section_copy
        parent[name] = copy_value(value, key)
    return changed


def plain_sections(config: Mapping[str, object], *names: str) -> dict[str, Any]:
    """Returns the named sections of a config as plain values, for comparing and storing them.

    Sections that are missing or null are left out. So are `objective.network`, which changes no
    trial's result, and three further keys of the section `objective` if they are null: that means
    the same as no key.
    """
    sections = {}
    for name in names:
        section = value_at(config, name)
        if section is not None:
            sections[name] = section
    objective = sections.get("objective")
    if isinstance(objective, dict):
        objective.pop("network", None)
        for name in ("_target_", "test", "constraints"):
            if objective.get(name) is None:  # `trust.check_targets` would refuse a null `_target_`
                objective.pop(name, None)
    return sections


def describe_error(error: BaseException) -> str:
    """Describes an exception on one line, by its message and, unless it is a ValueError, its type.

    If Hydra has wrapped the error of a constructor, that error is described.
    """
    from hydra.errors import HydraException  # here: who only looks at a study does not wait for it

    while isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ValueError):
        message = " ".join(error_text(error).split())
        if message:
            return message
    return name_error(error)


@contextmanager
def keys_explained() -> Iterator[None]:
    """Raises ConfigError if the user's code, in the body, reads a key that its config lacks.

    OmegaConf's own error does not say where keys can be added.
    """
    try:
        yield
    except (ConfigAttributeError, ConfigKeyError) as error:
        if not error.full_key or not isinstance(error.parent_node, DictConfig):
            raise
        reason = describe_unknown_key(error.full_key, [str(name) for name in error.parent_node])
        raise ConfigError(
            f"{reason}; your function reads this key from its config, which is the study's "
            "with the values of the trial; add your own keys to the section params"
        ) from error


def as_yaml(config: Mapping[str, object]) -> str:
    """Returns a config as YAML; a text such as ${study.seed} is a reference to that key."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))


def resolved_as_yaml(sections: Mapping[str, object]) -> str:
    """Returns sections without references as YAML; a text such as ${HOME} is escaped, so that a
    config that is read from the YAML has it as it stands.
    """
    return as_yaml(escape_interpolations(sections))


def escape_interpolations(value: Any) -> Any:
    """Returns plain values in which OmegaConf reads a text with ${…} as it stands."""
    if isinstance(value, Mapping):
        return {key: escape_interpolations(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [escape_interpolations(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return value


def without_transform(sections: dict[str, Any]) -> dict[str, Any]:
    """Removes `data.transform` of studyloom's own sources, which only `predict` uses."""
    data = sections.get("data")
    if isinstance(data, dict) and str(data.get("_target_", "")).startswith("studyloom."):
        data.pop("transform", None)
    return sections


def flatten(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yields the innermost values of nested mappings, each after its path, such as `model.hidden`.

    An empty mapping counts as a value.

    Args:
        path: the path of the value itself, with which all paths begin; empty for a whole config.
    """
    if not isinstance(value, dict) or not value:
        yield path, value
        return
    for name, inner in value.items():
        inner_path = f"{path}.{name}".removeprefix(".")
        yield from flatten(inner, inner_path)
