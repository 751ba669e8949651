"""Search small, train large: the sizes of the section `scale`.

    scale: {model.width: [64, 1024], rule: mup}

The search trains at the first size of each key; re-evaluation and final training use the second.
A single size, as in winner.yaml, is that at which the rule changes nothing: the search trains at
the size of the config.
"""

import inspect
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from studyloom.config.build import argument
from studyloom.config.overrides import explain_key
from studyloom.config.values import has_key, value_at, with_values
from studyloom.errors import ConfigError
from studyloom.space.tree import Space, default_of
from studyloom.text import as_yaml, nearest
from studyloom.training.scaling import Scaling

RULES, CHECKS = ("mup", "none"), ("verify", "end")
OWN = {"rule": RULES, "check": CHECKS}  # keys of the section that are no sizes
MODEL, PARAMS = "model.", "params."
PLAIN = ("train.epochs", "train.samples_per_epoch")  # sizes that no rule is of
FACTORS = (0.5, 2.0)  # of the best candidate's learning rate: it is also re-evaluated with these
RATES = ("optimizer.lr", "params.lr")  # keys that it may have


def learning_rates(config: DictConfig) -> dict[str, float]:
    """Returns the learning rates of a config, by key."""
    rates = {key: value_at(config, key) for key in RATES}
    return {key: rate for key, rate in rates.items() if isinstance(rate, float)}


@dataclass(frozen=True)
class Scale:
    """The sizes of a search and of its winner.

    Attributes:
        small: the size of each key at which the rule changes nothing.
        target: the size of each key in re-evaluation and final training; empty in winner.yaml.
        rule: how initial weights and learning rates follow the size, `mup` or `none`: the default,
            since winners by `mup` were no better, +.0003 [-.0009, .0019] (`bench.py transfer`).
        check: what happens to a network that breaks the rule: `verify` searches it all the same,
            `end` ends the command.
    """

    small: Mapping[str, Any]
    target: Mapping[str, Any]
    rule: str
    check: str = "verify"

    @classmethod
    def parse(cls, config: DictConfig) -> "Scale | None":
        """Reads the section `scale`; None without one.

        Raises:
            ConfigError: every error in it.
        """
        section = value_at(config, "scale")
        if section is None:
            return None
        example = "such as {model.width: [64, 1024]}"
        if not isinstance(section, dict):
            raise ConfigError(
                f"scale must map keys to two sizes, {example}; got {as_yaml(section)}"
            )
        errors = [
            f"scale.{name} must be {' or '.join(options)}; got {as_yaml(section[name])}"
            for name, options in OWN.items()
            if name in section and section[name] not in options
        ]
        sizes = {key: size for key, size in section.items() if key not in OWN}
        if not sizes:
            errors.append(f"scale must name a size, {example}")
        for key, size in sizes.items():
            errors += _wrong_sizes(config, key, size)
        if errors:
            raise ConfigError(errors)
        # A list is two sizes, or the single one of a network whose sizes are a list.
        pairs = {key: size for key, size in sizes.items() if _is_pair(size, value_at(config, key))}
        small = {key: pairs[key][0] if key in pairs else size for key, size in sizes.items()}
        return cls(
            small,
            {key: target for key, (_, target) in pairs.items()},
            section.get("rule", "none"),
            section.get("check", "verify"),
        )

    def __str__(self) -> str:
        sizes = (
            f"{key} {as_yaml(self.small[key])} to {as_yaml(target)}"
            for key, target in self.target.items()
        )
        return f"{', '.join(sizes)} by rule {self.rule}"

    @property
    def searched(self) -> Mapping[str, Any]:
        """The sizes of the search, by key; empty if it uses those of the config."""
        return {key: self.small[key] for key in self.target}

    @property
    def rule_sizes(self) -> Mapping[str, Any]:
        """The sizes at which the rule changes nothing; empty without a rule."""
        if self.rule == "none":
            return {}
        return {key: size for key, size in self.small.items() if key not in PLAIN}

    @staticmethod
    def present(sizes: Mapping[str, Any], config: DictConfig) -> dict[str, Any]:
        """Returns the sizes whose keys a config has: another network may lack some."""
        return {key: size for key, size in sizes.items() if has_key(config, key)}

    def errors(self, space: Space, typed: Collection[str], cfg: DictConfig) -> Iterator[str]:
        """Yields why the sizes cannot be those of the search.

        Args:
            typed: the keys that the command line sets.
        """
        searched = {node.key for _, nodes in space.branches() for node in nodes}
        groups = {group.key for group in space.groups()}
        for key, size in self.searched.items():
            if key in searched:
                yield f"scale.{key}: the space searches {key}; leave it out of one of them"
            elif key in typed and value_at(cfg, key) != size:
                given = as_yaml(value_at(cfg, key))
                yield f"scale.{key}: the search has {as_yaml(size)}; leave {key}={given} out"
            elif key.partition(".")[0] not in groups and not takes(cfg, key):
                yield f"scale.{explain_key(key, cfg)}"

    def between(self) -> dict[int, dict[str, Any]]:
        """Returns sizes of the network by how many times the small ones they are: 1, 2, 4 and 8.

        None is beyond the target.
        """
        known = {key: size for key, size in self.rule_sizes.items() if key in self.target}
        pairs = [(_flat(size), _flat(self.target[key])) for key, size in known.items()]
        growth = max(b // a for each in pairs for a, b in zip(*each, strict=True))
        return {
            times: {key: _times(size, times) for key, size in known.items()}
            for times in (1, 2, 4, 8)
            if times <= growth
        }


def scaling_at(
    config: DictConfig, make: Callable[[DictConfig], Callable[..., Any]]
) -> Scaling | None:
    """Returns how the network of a config follows the rule of `scale`; None at its base size.

    Args:
        make: returns what builds the network of a config, for its base size.
    """
    scale = Scale.parse(config)
    sizes = {} if scale is None else scale.present(scale.rule_sizes, config)
    other = {key: size for key, size in sizes.items() if value_at(config, key) != size}
    return Scaling(make(with_values(config, other))) if other else None


def with_starts(
    space: Space,
    typed: Collection[str],
    sizes: Mapping[str, Any],
    config: DictConfig,
    choices: Mapping[str, str],
) -> DictConfig:
    """Returns a config with the values of the baseline that it lacks, or that the space gives.

    A key is added where the target of its section has such a parameter, whose default counts, also
    one outside the range: validation refuses it.

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
            parameter = argument(config, key)
            # Without a declaration, a name next to other params may be a misspelt one.
            free = section == "params" and (node.default is not None or not has_params)
            if parameter is None and not free:
                continue
        elif node.default is None or key in typed:
            continue
        declared = inspect.Parameter.empty if parameter is None else parameter.default
        values[key] = default_of(node, declared, length_of)
    return with_values(config, values) if values else config


def takes(config: DictConfig, key: str) -> bool:
    """Whether a config has a key, or the target of its section such a parameter."""
    return has_key(config, key) or argument(config, key) is not None


def _is_pair(size: Any, own: Any) -> bool:
    """Whether a value is two sizes, and not a single one of a key whose own value is a list."""
    if not isinstance(size, list) or not size:
        return False
    return isinstance(size[0], list) or not isinstance(own, list)


def _wrong_sizes(config: DictConfig, key: str, size: Any) -> list[str]:
    if not (key.startswith((MODEL, PARAMS)) or key in PLAIN):
        known = f"a key of model or params, {' or '.join(PLAIN)}, rule or check"
        return [f"scale.{key}: must be {known}{nearest(key, [*PLAIN, *OWN])}"]
    sizes = size if isinstance(size, list) else [size]
    pair = _is_pair(size, value_at(config, key))
    flat = [each for one in sizes for each in _flat(one)]
    whole = all(isinstance(each, int) and each > 0 for each in flat)
    if not whole or not flat or (pair and len(sizes) != 2):
        return [f"scale.{key} must be two sizes, such as [64, 1024]; got {as_yaml(size)}"]
    if pair and not _grows(*sizes):
        return [
            f"scale.{key}: the second size must be a multiple of the first; got {as_yaml(size)}"
        ]
    return []


def _grows(small: Any, target: Any) -> bool:
    if isinstance(small, list) != isinstance(target, list):
        return False
    pairs = [*itertools.zip_longest(_flat(small), _flat(target), fillvalue=0)]
    return small != target and all(a and b >= a and b % a == 0 for a, b in pairs)


def _flat(size: Any) -> list[Any]:
    return size if isinstance(size, list) else [size]


def _times(size: Any, factor: int) -> Any:
    return [each * factor for each in size] if isinstance(size, list) else size * factor
