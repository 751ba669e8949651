"""TODO config.values."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigTypeError

from studyloom.files import write_whole


def has_key(config: DictConfig, key: str) -> bool:
    """Whether a key is in a composed config, be its value null."""
    parent, _, name = key.rpartition(".")
    node = _node_at(config, parent)
    return isinstance(node, DictConfig) and name in node


def keys_at(config: DictConfig, key: str) -> list[str]:
    """The keys below a key; at the empty key, those of the config."""
    node = _node_at(config, key)
    return [str(name) for name in node] if isinstance(node, DictConfig) else []


def value_at(config: DictConfig, key: str) -> Any:
    """The value at a key as plain Python, None where there is none."""
    node = _node_at(config, key)
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _node_at(config: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(config, key) if key else config
    except ConfigTypeError:  # the key goes on below a list
        return None


def with_values(config: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """A copy with values set by key (about 2 ms, against 70 ms to compose)."""
    copy: DictConfig = pickle.loads(pickle.dumps(config))  # config.copy() takes 7 ms for the same
    for key, value in values.items():
        OmegaConf.update(copy, key, value, merge=False)
    return copy


def plain_sections(config: DictConfig, *sections: str) -> dict[str, Any]:
    """Sections of a config as plain values, interpolations resolved; without those that are not there."""
    found = {section: value_at(config, section) for section in sections}
    if isinstance(objective := found.get("objective"), dict):
        for name in (
            "_target_",
            "constraints",
        ):  # what is to be read again names no target, rather than none
            if objective.get(name) is None:
                objective.pop(name, None)
    return {section: value for section, value in found.items() if value is not None}


def without_key(section: DictConfig, key: str) -> DictConfig:
    """A copy of a section that lacks a key."""
    copy = section.copy()
    with open_dict(copy):
        copy.pop(key, None)
    return copy


def describe_error(error: BaseException) -> str:
    """An exception as one line; Hydra's wrapping of a constructor's error is taken off."""
    while isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return (
        text
        if isinstance(error, ValueError) and text
        else f"{type(error).__name__}: {text}".removesuffix(": ")
    )


def write_yaml(path: Path, config: Mapping[str, Any], header: str) -> None:
    """Writes a config below a header, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    write_whole(path, header + OmegaConf.to_yaml(OmegaConf.create(dict(config))))
