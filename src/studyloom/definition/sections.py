"""The sections of a study's config: the data that they name, and the values that they lack."""

import inspect
import json
from collections.abc import Collection, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from studyloom.config.build import argument, build
from studyloom.config.values import has_key, plain_sections, value_at, with_values
from studyloom.data.datasets import NO_TEST, location_keys
from studyloom.data.training_data import Part, TrainingData, load_shared
from studyloom.definition.sources import digest_of_source
from studyloom.errors import DataError
from studyloom.seeds import derive
from studyloom.space.tree import Space, default_of


def load_data(cfg: DictConfig, *, tested: bool) -> TrainingData:
    """Loads the training set of the section `data`, and divides it into folds.

    Args:
        tested: whether the winner will be tested, for which the source must have a test set.
    """
    source = build(cfg.data)
    if cfg.winner.enabled and tested and not getattr(source, "has_test", True):
        raise DataError(NO_TEST)
    split: Part = load_shared(source.train, data_key(cfg))
    split.check()
    seed = derive(max(0, cfg.study.seed))  # `validate` reports a negative seed
    return TrainingData(source, split, split.folds(cfg.objective.folds, source.validation, seed))


def data_key(cfg: DictConfig) -> str:
    """Returns the digest of the section `data`, from which the training set follows."""
    return digest_of_source(json.dumps(plain_sections(cfg, "data"), default=str).encode())


def without_location_keys(sections: dict[str, Any]) -> dict[str, Any]:
    """Leaves out where the data lie and how they are loaded, which change no result."""
    data = sections.get("data")
    if isinstance(data, dict):
        for path in location_keys(data):
            inner = data
            for name in path[:-1]:
                inner = inner[name]
            del inner[path[-1]]
    return sections


def names_data(cfg: DictConfig) -> bool:
    """Whether the section `data` names a source, and is no section of the loop's own."""
    section = OmegaConf.select(cfg, "data")  # None if it is missing, as in a provenance
    return isinstance(section, DictConfig) and "_target_" in section


def with_starts(
    space: Space,
    typed: Collection[str],
    sizes: Mapping[str, Any],
    config: DictConfig,
    choices: Mapping[str, str],
) -> DictConfig:
    """Returns a config with the values of the baseline that it lacks, or that the space gives.

    A key is added where the target of its section has such a parameter, whose default counts.

    Args:
        typed: the keys that the command line sets.
        sizes: of the search, where it is smaller than its winner.
    """
    values: dict[str, Any] = {key: size for key, size in sizes.items() if takes(config, key)}

    def length_of(key: str) -> int:
        value = values.get(key, value_at(config, key))
        return len(value) if isinstance(value, list) else 1

    has_params = bool(value_at(config, "params"))
    for node in space.leaves(choices):
        key, section = node.key, node.key.partition(".")[0]
        parameter = None
        if not has_key(config, key):
            parameter = _argument(config, key)
            # A name beside other params, which nothing says more of, may be a misspelt one.
            free = section == "params" and (node.default is not None or not has_params)
            if parameter is None and not free:
                continue
        elif node.default is None or key in typed:
            continue
        default = getattr(parameter, "default", None)
        values[key] = default_of(node, default, length_of)
    return with_values(config, values) if values else config


def takes(config: DictConfig, key: str) -> bool:
    """Whether a config has a key, or the target of its section such a parameter."""
    return has_key(config, key) or _argument(config, key) is not None


def _argument(config: DictConfig, key: str) -> inspect.Parameter | None:
    """Returns the parameter that a key sets of its section's target; for `params` of the loop."""
    section, _, name = key.partition(".")
    return argument(config, f"objective.{name}" if section == "params" else key)
