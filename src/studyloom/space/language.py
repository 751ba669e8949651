"""The language of `conf/space/*.yaml`: parses a tree of plain mappings into a Space."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeVar

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from studyloom.errors import ConfigError, refuse
from studyloom.space.tree import Distribution, Group, ListNode, Node, Space, ValueNode, config_group
from studyloom.text import is_scalar, nearest, shorten

T = TypeVar("T")
# The kinds of hyperparameters, and the keys that each may have besides its own and `default`.
KEYS: dict[str, tuple[str, ...]] = {
    "int": ("log", "step"),
    "float": ("log", "step"),
    "choice": (),
    "list": ("length",),
}
DEFAULT = "default"  # the key of the baseline's value
LONGEST_NAME = 500  # with `.length` a name has 512 in Optuna's tables on PostgreSQL
LARGEST = sys.float_info.max  # of a database column, also for integers


def parse_space(
    tree: Mapping[str, Any], options: Callable[[str], Sequence[str]], above: str = ""
) -> Space:
    """Parses the tree of a search space.

    Args:
        options: returns the options of a Hydra group such as `model/block`; none for no group.
        above: the config key below which the keys of the tree lie; empty for the root.

    Raises:
        ConfigError: lists all errors in the tree; its keys are not looked up in the config.
    """
    parser = _Parser(options)
    space = Space(tuple(parser.parse_nodes(tree, "", above)))
    nodes = [*space.groups(), *(leaf for _, leaves in space.branches() for leaf in leaves)]
    long_names = [
        f"space.{shorten(node.name, 80)}: its name must have at most {LONGEST_NAME} characters, "
        f"and has {len(node.name)}; shorten its keys"
        for node in nodes
        if len(node.name) > LONGEST_NAME
    ]
    refuse([*parser.errors, *long_names, *_find_conflicts(space)])
    return space


class _Parser:
    """Parses one tree, and collects the errors of its nodes.

    `name` is always the path in the tree, and `key` the config key.
    """

    def __init__(self, options: Callable[[str], Sequence[str]]) -> None:
        self.options = options
        self.errors: list[str] = []

    def parse_nodes(self, tree: Mapping[Any, Any], name: str, key: str) -> list[Node]:
        """Parses a mapping: the options of a group, hyperparameters, and nested mappings."""
        tree = {str(child): spec for child, spec in tree.items()}
        group_options = self.options(config_group(key)) if key else []
        opened: dict[str, tuple[Node, ...]] = {}
        nodes: list[Node] = []
        lists: dict[str, Mapping[str, Any]] = {}
        for child, spec in tree.items():
            child_name = f"{name}.{child}" if name else child
            child_key = f"{key}.{child}" if key else child
            if child in group_options and (spec is None or isinstance(spec, Mapping)):
                opened[child] = tuple(self.parse_nodes(spec or {}, child_name, key))
            elif not isinstance(spec, Mapping) or (group_options and not spec):
                opens = f", or what an option of {key} opens: {', '.join(group_options)}"
                near = "" if child in group_options else nearest(child, group_options)
                self.errors.append(
                    f"space.{child_name} must be a range: {{int: [low, high]}}, {{float: [low, "
                    "high]}, {choice: [a, b]} or {list: …, length: …}"
                    f"{opens if group_options else ''}; got {spec!r}{near}"
                )
            elif any(kind in spec for kind in KEYS):
                if leaf := self._collect(self._parse_leaf, spec, child_name, child_key, lists):
                    nodes.append(leaf)
                if "list" in spec:
                    lists[child] = spec
            else:
                nodes += self.parse_nodes(spec, child_name, child_key)
        return [Group(name, key, opened), *nodes] if opened else nodes

    def _collect(self, parse: Callable[..., T], *arguments: Any) -> T | None:
        """Parses a part; if it is invalid, collects its errors and returns None."""
        try:
            return parse(*arguments)
        except ConfigError as error:
            self.errors += error.errors
            return None

    def _parse_leaf(
        self, spec: Mapping[str, Any], name: str, key: str, lists: Mapping[str, Any]
    ) -> ValueNode | ListNode | None:
        if group_options := self.options(config_group(key)):
            example = ", ".join(f"{option}: …" for option in group_options)
            raise ConfigError(
                f"space.{name} must hold options of the config group {config_group(key)}, each "
                f"with what it opens: {{{example}}}; got {dict(spec)!r}"
            )
        if "list" not in spec:
            return ValueNode(name, key, _parse_distribution(spec, name, DEFAULT), spec.get(DEFAULT))
        _check_keys(spec, name, DEFAULT)
        item = spec["list"]
        if not (isinstance(item, Mapping) and any(kind in item for kind in KEYS if kind != "list")):
            raise ConfigError(
                f"space.{name}.list must be a mapping with int, float or choice, such as "
                f"{{int: [low, high]}}; got {item!r}"
            )
        distribution = self._collect(_parse_distribution, item, f"{name}.list")
        length = self._collect(_parse_length, spec.get("length"), name, lists)
        if distribution is None or length is None:
            return None
        if isinstance(length, str):
            length = ".".join([*key.split(".")[:-1], length])
        return ListNode(name, key, distribution, length, spec.get(DEFAULT))


def _parse_length(length: Any, name: str, lists: Mapping[str, Any]) -> IntDistribution | str:
    """Parses a length: a number, a range, or the name of one of the `lists` above it."""
    where = f"space.{name}.length"
    if isinstance(length, str):
        if length in lists and not isinstance(lists[length].get("length"), str):
            return length
        raise ConfigError(
            f"{where} must name a list above it that has its own length "
            f"({', '.join(lists) or 'there is no such list'}); "
            f"got {length!r}{nearest(length, [*lists])}"
        )
    if type(length) is int and length >= 1:
        return IntDistribution(length, length)
    if isinstance(length, Mapping) and "int" in length:
        distribution = _parse_distribution(length, f"{name}.length")
        assert isinstance(distribution, IntDistribution)
        if distribution.low < 1:
            raise ConfigError(f"{where} must be at least 1; got {distribution.low}")
        return distribution
    raise ConfigError(
        f"{where} must be an integer from 1, {{int: [low, high]}}, or the name of a list "
        f"above it; got {length!r}"
    )


def _check_keys(spec: Mapping[str, Any], name: str, *more: str) -> None:
    """Raises ConfigError if a hyperparameter has other keys than those of its kind and `more`."""
    kind, *others = [kind for kind in KEYS if kind in spec]
    allowed = (kind, *KEYS[kind], *more)
    refuse(
        [
            f"space.{name}.{key}: no such key; a range of kind {kind} has "
            f"{', '.join(allowed)}{nearest(key, allowed)}"
            for key in others or [key for key in spec if key not in allowed]
        ]
    )


def _parse_distribution(spec: Mapping[str, Any], name: str, *more: str) -> Distribution:
    """Parses an int, a float or a choice, which may have more keys."""
    _check_keys(spec, name, *more)
    if "choice" in spec:
        return _parse_choice(spec["choice"], f"space.{name}.choice")
    kind = "int" if "int" in spec else "float"
    bounds, log, step = spec[kind], spec.get("log", False), spec.get("step")
    where = f"space.{name}.{kind}"
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        raise ConfigError(f"{where} must be a range [low, high]; got {bounds!r}")
    types, numbers = ((int,), "integers") if kind == "int" else ((int, float), "numbers")
    errors = [
        f"{where}: its ends and step must be finite {numbers}; got {value!r}"
        for value in (*bounds, *([] if step is None else [step]))
        if type(value) not in types or not abs(value) <= LARGEST
    ]
    if type(log) is not bool:
        errors.append(f"space.{name}.log must be true or false; got {log!r}")
    refuse(errors)
    low, high = bounds
    if step is not None and step > 0:
        # As written: 0.3 - 0.1 is 0.2.
        first, last, width = (Decimal(str(each)) for each in (low, high, step))
        if 0 < last - first < width:
            raise ConfigError(
                f"space.{name}.step must not be wider than the range [{low}, {high}]; got {step}"
            )
        # The highest value is the last step that is not above the high end.
        high = (int if kind == "int" else float)(first + (last - first) // width * width)
    try:
        if kind == "int":
            return IntDistribution(low, high, log=log, step=1 if step is None else step)
        return FloatDistribution(float(low), float(high), log=log, step=step)
    except ValueError as error:  # the ends, the step and `log` do not go together
        raise ConfigError(f"{where}: {error}") from None


def _parse_choice(choices: Any, where: str) -> CategoricalDistribution:
    if not isinstance(choices, list | tuple) or not choices:
        raise ConfigError(
            f"{where} must be a list of the values to choose from, [a, b, …]; got {choices!r}"
        )
    refuse(
        [
            f"{where} must hold strings, finite numbers, true, false or null; got {value!r}"
            for value in choices
            if not is_scalar(value) or (isinstance(value, float) and not abs(value) <= LARGEST)
        ]
    )
    if len(set(choices)) < len(choices):
        raise ConfigError(
            f"{where} must not name a value twice, and 1, 1.0 and true are one value to "
            f"Optuna; got {choices!r}"
        )
    return CategoricalDistribution(tuple(choices))


def _find_conflicts(space: Space) -> Iterator[str]:
    """Finds hyperparameters whose config key another one, in or outside their option, sets too."""
    branches = [*space.branches()]
    for choices, leaves in branches:
        above = [others for chosen, others in branches if chosen.items() < choices.items()]
        outer = {leaf.key: leaf.name for others in above for leaf in others}
        for key, count in Counter(leaf.key for leaf in leaves).items():
            if count > 1:
                yield f"space.{key} is given twice; keep one of them"
        for leaf in leaves:
            if leaf.key in outer:
                yield (
                    f"space.{leaf.name}: space.{outer[leaf.key]} decides {leaf.key} too, whichever "
                    "option is chosen; keep one of them"
                )
