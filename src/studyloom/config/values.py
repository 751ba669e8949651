"""Reads and sets values of a config by key, and writes a config as YAML."""

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, ConfigTypeError

from studyloom.errors import ConfigError
from studyloom.text import error_text, name_error, no_such_key


def has_key(config: DictConfig, key: str) -> bool:
    """Whether a config has a key, even if its value is null."""
    parent, _, name = key.rpartition(".")
    node = _node_at(config, parent)
    return isinstance(node, DictConfig) and name in node


def value_at(config: DictConfig, key: str) -> Any:
    """Returns the value at a key as plain Python; None if there is no such key."""
    node = _node_at(config, key)
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _node_at(config: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(config, key) if key else config
    except ConfigTypeError:  # the key continues below a list
        return None


def with_values(config: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """Copies a config and sets values by key: about 2 ms, against 70 ms for Hydra."""
    copy: DictConfig = pickle.loads(pickle.dumps(config))  # config.copy() takes 7 ms
    for key, value in values.items():
        OmegaConf.update(copy, key, value, merge=False, force_add=True)
    return copy


def plain_sections(config: DictConfig, *sections: str) -> dict[str, Any]:
    """Returns sections of a config as plain values, except missing ones and null.

    `objective.network`, which changes no trial's result, is left out too.
    """
    values = {section: value_at(config, section) for section in sections}
    if isinstance(objective := values.get("objective"), dict):
        objective.pop("network", None)
        # Left out if null: a config that is read again must not have a null target.
        for name in ("_target_", "test", "constraints"):
            if objective.get(name) is None:
                objective.pop(name, None)
    return {section: value for section, value in values.items() if value is not None}


def describe_error(error: BaseException) -> str:
    """Puts an exception on one line; Hydra's wrapping of a constructor's error is removed."""
    from hydra.errors import HydraException  # here: who only looks at a study does not wait for it

    while isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(error_text(error).split()) if isinstance(error, ValueError) else ""
    return text or name_error(error)


@contextmanager
def keys_explained() -> Iterator[None]:
    """Raises ConfigError if the user's code reads a key that the config lacks."""
    try:
        yield
    except (ConfigAttributeError, ConfigKeyError) as error:
        if not error.full_key or not isinstance(error.parent_node, DictConfig):
            raise
        words = no_such_key(error.full_key, [str(name) for name in error.parent_node])
        raise ConfigError(
            f"{words}; your function reads this key from its config, which is the study's "
            "with the values of the trial; add your own keys to the section params"
        ) from error


def as_yaml(config: Mapping[str, Any]) -> str:
    """Returns a config as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))


def without_transform(sections: dict[str, Any]) -> dict[str, Any]:
    """Removes `data.transform` of studyloom's own sources, which only `predict` uses."""
    data = sections.get("data")
    if isinstance(data, dict) and str(data.get("_target_", "")).startswith("studyloom."):
        data.pop("transform", None)
    return sections


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the innermost values of nested mappings with their paths; {} counts as a value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
