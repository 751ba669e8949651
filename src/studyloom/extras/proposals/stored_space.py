"""The search space as a study stores it for proposers, and its description in JSON Schema."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from studyloom.errors import ConfigError
from studyloom.space.rule import read_space as read_tree
from studyloom.space.tree import Distribution, Group, Leaf, ListLeaf, Node, Space, describe
from studyloom.storage.attributes import SPACE
from studyloom.storage.stored_study import StoredStudy

DIALECT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True)
class StoredSpace:
    """The space that `warm_start.store_space` stored, against which proposals are checked.

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
        return self

    def compose(self, choices: Mapping[str, str]) -> DictConfig:
        """Returns the default values of the hyperparameters that some choices open."""
        config = OmegaConf.create()
        for leaf in self.space.leaves(choices):
            OmegaConf.update(config, leaf.key, self.starts[leaf.name], merge=False)
        return config

    def most(self, budget: int) -> int:
        """Returns how many trials of a budget may be proposed."""
        return min(budget, int(self.share * budget + 1e-9))  # 0.29 of 100 are 29


def read_space(stored: StoredStudy) -> StoredSpace:
    """Returns what is stored of the space of a study; raises ConfigError if there is nothing."""
    (known,) = stored.attributes(SPACE)
    try:
        return msgspec.convert(known, StoredSpace)
    except msgspec.ValidationError:
        raise ConfigError(
            f"{stored.name}: its space is not stored, so proposals cannot be checked; the "
            "command that runs a study stores it, except with sampler=grid, which tries each one "
            "itself, and with an objective that suggests its own values"
        ) from None


def json_schema(known: StoredSpace) -> dict[str, Any]:
    """Describes the configurations of a space in JSON Schema.

    A hyperparameter is a property of its name. A group is a `oneOf` of its options with what each
    opens; a list is an array. What a proposal leaves out has its default.
    """
    schema = {"$schema": DIALECT, "type": "object", **_open(known.space.nodes, known)}
    if known.space.relations:
        schema["description"] = f"where {' and '.join(map(str, known.space.relations))}"
    return schema | {"unevaluatedProperties": False}


def _open(nodes: Sequence[Node], known: StoredSpace, **chosen: Any) -> dict[str, Any]:
    """Describes the hyperparameters of a chosen option, or of the root."""
    properties, groups = dict[str, Any](chosen), list[Any]()
    for node in nodes:
        match node:
            case Group(name, _, options):
                composed = known.choices.get(node.config_group)
                default = composed if composed in options else next(iter(options))
                branches = []
                for option, inner in options.items():
                    branch = _open(inner, known, **{name: {"const": option}})
                    branches.append(branch | ({} if option == default else {"required": [name]}))
                groups.append({"oneOf": branches})
            case Leaf(name, _, distribution):
                properties[name] = _values(distribution) | {"default": known.starts.get(name)}
            case ListLeaf(name, _, item, length):
                array = {"type": "array", "items": _values(item), "minItems": 1}
                if isinstance(length, IntDistribution):
                    array |= {"minItems": length.low, "maxItems": length.high}
                else:
                    array["description"] = f"as long as {length}"
                properties[name] = array | {"default": known.starts.get(name)}
    return {"properties": properties} | ({"allOf": groups} if groups else {})


def _values(distribution: Distribution) -> dict[str, Any]:
    """Describes the values of a distribution, with its step and whether it is logarithmic."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            return {"enum": [*choices]}
        case IntDistribution(low=low, high=high) | FloatDistribution(low=low, high=high):
            kind = "integer" if isinstance(distribution, IntDistribution) else "number"
            words = describe(distribution)
            return {"type": kind, "minimum": low, "maximum": high, "description": words}
