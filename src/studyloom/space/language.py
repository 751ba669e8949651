"""The language of `conf/space/*.yaml`: parses a tree of plain mappings into a Space.

A mapping in the tree is one of three things. A *range* gives a hyperparameter: it has one of the
keys int, float, choice or list, its kind. A mapping at the key of a config group holds options of
that group, each with what it opens. Any other mapping only leads to what is nested in it.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from studyloom.errors import ConfigError, refuse
from studyloom.space.tree import (
    Distribution,
    Group,
    ListNode,
    Node,
    Space,
    ValueNode,
    config_group,
)
from studyloom.text import is_scalar, nearest, shorten

T = TypeVar("T")
Spec = Mapping[str, Any]  # the mapping of a range in the tree
Options = Callable[[str], Sequence[str]]  # returns the options of a Hydra group; none for no group

# The kinds of ranges, and the keys that each may have besides its own and `default`.
KEYS: dict[str, tuple[str, ...]] = {
    "int": ("log", "step"),
    "float": ("log", "step"),
    "choice": (),
    "list": ("length",),
}
KINDS_OF_ITEMS = ("int", "float", "choice")
DEFAULT = "default"  # the key of the baseline's value
LONGEST_NAME = 500  # with `.length` a name has 512 in Optuna's tables on PostgreSQL
LARGEST = sys.float_info.max  # of a database column, also for integers


def parse_space(tree: Mapping[str, Any], options: Options, parent_key: str = "") -> Space:
    """Parses the tree of a search space.

    Args:
        options: returns the options of a Hydra group such as `model/block`; none for no group.
        parent_key: the config key below which the keys of the tree lie; empty for the root.

    Raises:
        ConfigError: lists all errors in the tree; its keys are not looked up in the config.
    """
    parser = _Parser(options)
    space = Space(tuple(parser.parse_nodes(tree, _Place("", parent_key))))
    refuse([*parser.errors, *_find_long_names(space), *_find_conflicts(space)])
    return space


@dataclass(frozen=True)
class _Place:
    """The place of a mapping in the tree.

    Attributes:
        name: its path in the tree; empty for the root.
        key: its config key.
    """

    name: str
    key: str

    def append(self, child: str) -> "_Place":
        """Returns the place of a child that is a part of the config too."""
        return _Place(_join(self.name, child), _join(self.key, child))

    def append_option(self, option: str) -> "_Place":
        """Returns the place of an option, below which config keys are those of its group."""
        return _Place(_join(self.name, option), self.key)


def _join(path: str, part: str) -> str:
    if not path:
        return part
    return f"{path}.{part}"


class _Parser:
    """Parses one tree, and collects the errors of its nodes."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.errors: list[str] = []

    def parse_nodes(self, tree: Mapping[Any, Any], place: _Place) -> list[Node]:
        """Parses a mapping: the options of a group, hyperparameters, and nested mappings."""
        tree = {str(child): spec for child, spec in tree.items()}
        group_options: Sequence[str] = ()  # empty if the mapping is not at the key of a group
        if place.key:
            group_options = self.options(config_group(place.key))
        opened: dict[str, tuple[Node, ...]] = {}  # the nodes that each option opens
        nodes: list[Node] = []
        lists: dict[str, Spec] = {}  # the lists so far, whose lengths later ones may share
        for child, spec in tree.items():
            child_place = place.append(child)
            is_mapping = isinstance(spec, Mapping)
            # Only an option may open nothing: next to options an empty mapping is a misspelled one.
            is_misspelled_option = is_mapping and not spec and bool(group_options)
            if child in group_options and (spec is None or is_mapping):
                option_place = place.append_option(child)
                opened[child] = tuple(self.parse_nodes(spec or {}, option_place))
            elif not is_mapping or is_misspelled_option:
                self.errors.append(_explain_non_range(spec, child, place, group_options))
            elif _is_range(spec):
                node = self._collect(self._parse_range, spec, child_place, lists)
                if node is not None:
                    nodes.append(node)
                if "list" in spec:
                    lists[child] = spec
            else:
                nodes += self.parse_nodes(spec, child_place)
        if opened:
            return [Group(place.name, place.key, opened), *nodes]
        return nodes

    def _collect(self, parse: Callable[..., T], *arguments: Any) -> T | None:
        """Calls a function that parses a part; collects its errors and returns None if it fails."""
        try:
            return parse(*arguments)
        except ConfigError as error:
            self.errors += error.errors
            return None

    def _parse_range(
        self, spec: Spec, place: _Place, lists: Mapping[str, Spec]
    ) -> ValueNode | ListNode | None:
        """Parses a range; None if it is a list of which errors were collected.

        Args:
            lists: the lists above it, by their keys.

        Raises:
            ConfigError: it is another range, which is invalid, or it is at the key of a group.
        """
        group = config_group(place.key)
        group_options = self.options(group)
        if group_options:
            example = ", ".join(f"{option}: …" for option in group_options)
            raise ConfigError(
                f"space.{place.name} must hold options of the config group {group}, each with "
                f"what it opens: {{{example}}}; got {dict(spec)!r}"
            )
        if "list" in spec:
            return self._parse_list(spec, place, lists)
        distribution = _parse_distribution(spec, place.name, DEFAULT)
        return ValueNode(place.name, place.key, distribution, spec.get(DEFAULT))

    def _parse_list(self, spec: Spec, place: _Place, lists: Mapping[str, Spec]) -> ListNode | None:
        _check_keys(spec, place.name, DEFAULT)
        item = spec["list"]
        if not isinstance(item, Mapping) or not any(kind in item for kind in KINDS_OF_ITEMS):
            raise ConfigError(
                f"space.{place.name}.list must be a mapping with int, float or choice, such as "
                f"{{int: [low, high]}}; got {item!r}"
            )
        distribution = self._collect(_parse_distribution, item, f"{place.name}.list")
        length = self._collect(_parse_length, spec.get("length"), place.name, lists)
        if distribution is None or length is None:
            return None
        if isinstance(length, str):
            # The other list is next to this one, so that it has the same parents in the config.
            *parents, _ = place.key.split(".")
            length = ".".join([*parents, length])
        return ListNode(place.name, place.key, distribution, length, spec.get(DEFAULT))


def _is_range(spec: Spec) -> bool:
    """Returns whether a mapping has the key of a kind of range."""
    return any(kind in spec for kind in KEYS)


def _explain_non_range(
    spec: object, child: str, place: _Place, group_options: Sequence[str]
) -> str:
    """Returns the error of a child that is neither a range nor what an option opens.

    Args:
        place: of the mapping that has the child.
        group_options: the options that the mapping may have; empty if it is not at a group's key.
    """
    options_text = ""
    suggestion = ""
    if group_options:
        options_text = f", or what an option of {place.key} opens: {', '.join(group_options)}"
    if child not in group_options:
        suggestion = nearest(child, group_options)
    return (
        f"space.{place.append(child).name} must be a range: {{int: [low, high]}}, {{float: [low, "
        "high]}, {choice: [a, b]} or {list: …, length: …}"
        f"{options_text}; got {spec!r}{suggestion}"
    )


def _parse_length(length: Any, name: str, lists: Mapping[str, Spec]) -> IntDistribution | str:
    """Parses the length of a list: an integer, a range, or the key of a list above it.

    Args:
        name: of the list.
        lists: those above it, by their keys.

    Returns:
        The lengths that are searched, a single one for an integer; or the key of the other list.
    """
    if isinstance(length, str):
        _check_other_list(length, name, lists)
        return length
    if isinstance(length, Mapping) and "int" in length:
        return _parse_length_range(length, name)
    if type(length) is int and length >= 1:
        return IntDistribution(length, length)
    raise ConfigError(
        f"space.{name}.length must be an integer from 1, {{int: [low, high]}}, or the name of a "
        f"list above it; got {length!r}"
    )


def _check_other_list(other: str, name: str, lists: Mapping[str, Spec]) -> None:
    """Raises ConfigError unless a list can be as long as another one.

    The other list must be above it, and its length must not be that of a third one.

    Args:
        other: the key of the other list, as the length of this one has it.
        name: of this list.
        lists: those above it, by their keys.
    """
    if other in lists and not isinstance(lists[other].get("length"), str):
        return
    raise ConfigError(
        f"space.{name}.length must name a list above it that has its own length "
        f"({', '.join(lists) or 'there is no such list'}); "
        f"got {other!r}{nearest(other, [*lists])}"
    )


def _parse_length_range(length: Spec, name: str) -> IntDistribution:
    """Parses a length that is a range of integers, from 1 on."""
    distribution = _parse_distribution(length, f"{name}.length")
    assert isinstance(distribution, IntDistribution)
    if distribution.low < 1:
        raise ConfigError(f"space.{name}.length must be at least 1; got {distribution.low}")
    return distribution


def _check_keys(spec: Spec, name: str, *further_keys: str) -> None:
    """Raises ConfigError if a range has other keys than those of its kind and `further_keys`.

    If it has the keys of several kinds, the first one is its kind, and only the others are
    reported: which further keys fit depends on the kind.
    """
    kind, *other_kinds = [kind for kind in KEYS if kind in spec]
    allowed = (kind, *KEYS[kind], *further_keys)
    wrong_keys = other_kinds
    if not other_kinds:
        wrong_keys = [key for key in spec if key not in allowed]
    refuse(
        [
            f"space.{name}.{key}: no such key; a range of kind {kind} has "
            f"{', '.join(allowed)}{nearest(key, allowed)}"
            for key in wrong_keys
        ]
    )


def _parse_distribution(spec: Spec, name: str, *further_keys: str) -> Distribution:
    """Parses an int, a float or a choice, which may have further keys."""
    _check_keys(spec, name, *further_keys)
    if "choice" in spec:
        return _parse_choice(spec["choice"], f"space.{name}.choice")
    if "int" in spec:
        return _parse_numbers(spec, name, "int")
    return _parse_numbers(spec, name, "float")


def _parse_numbers(spec: Spec, name: str, kind: str) -> IntDistribution | FloatDistribution:
    """Parses a range of kind int or float."""
    bounds = spec[kind]
    log = spec.get("log", False)
    step = spec.get("step")
    where = f"space.{name}.{kind}"
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        raise ConfigError(f"{where} must be a range [low, high]; got {bounds!r}")
    low, high = bounds
    numbers = [low, high]
    if step is not None:
        numbers.append(step)
    errors = [*_find_wrong_numbers(numbers, where, kind)]
    if type(log) is not bool:
        errors.append(f"space.{name}.log must be true or false; got {log!r}")
    refuse(errors)
    if step is not None and step > 0:  # other steps are refused below
        high = _find_highest(low, high, step, name)
    try:
        if kind == "int":
            if step is None:
                step = 1
            return IntDistribution(int(low), int(high), log=log, step=step)
        return FloatDistribution(float(low), float(high), log=log, step=step)
    except ValueError as error:  # the ends, the step and `log` do not go together
        raise ConfigError(f"{where}: {error}") from None


def _find_wrong_numbers(numbers: Sequence[Any], where: str, kind: str) -> Iterator[str]:
    """Yields an error for each end or step that no range of kind int or float can have."""
    types: tuple[type, ...] = (int, float)
    types_text = "numbers"
    if kind == "int":
        types = (int,)
        types_text = "integers"
    for number in numbers:
        if type(number) not in types or not abs(number) <= LARGEST:
            yield f"{where}: its ends and step must be finite {types_text}; got {number!r}"


def _find_highest(low: float, high: float, step: float, name: str) -> float:
    """Returns the highest value of a range with a step: the last step that is not above its end.

    It computes with the numbers as written: 0.3 - 0.1 is 0.2.

    Raises:
        ConfigError: the step is wider than the range.
    """
    first = Decimal(str(low))
    last = Decimal(str(high))
    width = Decimal(str(step))
    if 0 < last - first < width:
        raise ConfigError(
            f"space.{name}.step must not be wider than the range [{low}, {high}]; got {step}"
        )
    highest = first + (last - first) // width * width
    if isinstance(low, int) and isinstance(high, int) and isinstance(step, int):
        return int(highest)  # a float would change integers of more than 53 bits
    return float(highest)


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


def _find_long_names(space: Space) -> Iterator[str]:
    """Yields an error for each name that a database cannot hold."""
    names = [group.name for group in space.groups()]
    for branch in space.branches():
        names += [node.name for node in branch.nodes]
    for name in names:
        if len(name) > LONGEST_NAME:
            yield (
                f"space.{shorten(name, 80)}: its name must have at most {LONGEST_NAME} characters, "
                f"and has {len(name)}; shorten its keys"
            )


def _find_conflicts(space: Space) -> Iterator[str]:
    """Yields an error for each hyperparameter whose config key another one sets too.

    The other one is in the same branch, or in one that this branch is nested in.
    """
    branches = [*space.branches()]
    for branch in branches:
        outer_names: dict[str, str] = {}  # in branches that this one is nested in, by config key
        for other in branches:
            is_nested_in_other = other.choices.items() < branch.choices.items()
            if is_nested_in_other:
                for node in other.nodes:
                    outer_names[node.key] = node.name
        for key, count in Counter(node.key for node in branch.nodes).items():
            if count > 1:
                yield f"space.{key} is given twice; keep one of them"
        for node in branch.nodes:
            if node.key in outer_names:
                yield (
                    f"space.{node.name}: space.{outer_names[node.key]} decides {node.key} too, "
                    "whichever option is chosen; keep one of them"
                )
