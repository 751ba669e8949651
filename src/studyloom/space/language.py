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
from typing import Any, Literal, TypeVar

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from studyloom.errors import ConfigError, raise_if_any
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
KEYS_BY_KIND: dict[str, tuple[str, ...]] = {
    "int": ("log", "step"),
    "float": ("log", "step"),
    "choice": (),
    "list": ("length",),
}
KINDS_OF_ITEMS = ("int", "float", "choice")
DEFAULT = "default"  # the key of the baseline's value
LONGEST_NAME = 500  # with `.length` a name has 512 in Optuna's tables on PostgreSQL
LARGEST = sys.float_info.max  # the largest number of a database column, also for integers


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
    raise_if_any([*parser.errors, *_find_long_names(space), *_find_conflicts(space)])
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
        """Parses a mapping in the tree of a space: ranges, options of a group, nested mappings.

        In this mapping, at the key of the group `optimizer`, `lr` is a range and `sgd` an option:

            lr: {float: [1.0e-4, 1.0]}
            sgd: {momentum: {float: [0.0, 0.99]}}

        An option opens what is nested in it: `momentum` is searched only if `sgd` is chosen. So its
        node belongs to the node of the group. That of `lr` stands next to the group in the list
        that is returned, and so do nodes in mappings that are neither ranges nor options.

        Args:
            tree: the mapping.
            place: where it is in the tree.
        """
        group_options: Sequence[str] = ()  # empty if the mapping is not at the key of a group
        if place.key:
            group_options = self.options(config_group(place.key))
        nodes_by_option: dict[str, tuple[Node, ...]] = {}
        nodes: list[Node] = []
        lists: dict[str, Spec] = {}  # the lists so far, whose lengths later ones may share
        for key, spec in tree.items():
            child = str(key)
            kind = _classify_child(child, spec, group_options)
            if kind == "option":
                option_place = place.append_option(child)
                nodes_by_option[child] = tuple(self.parse_nodes(spec or {}, option_place))
            elif kind == "range":
                node = self._try_parsing(self._parse_range, spec, place.append(child), lists)
                if node is not None:  # it has no errors
                    nodes.append(node)
                if "list" in spec:
                    lists[child] = spec
            elif kind == "mapping":
                nodes += self.parse_nodes(spec, place.append(child))
            else:
                self.errors.append(_explain_non_range(spec, child, place, group_options))
        if nodes_by_option:
            return [Group(place.name, place.key, nodes_by_option), *nodes]
        return nodes

    def _try_parsing(self, parse: Callable[..., T], *arguments: Any) -> T | None:
        """Calls a function that parses a part of the tree.

        Returns:
            Its result; None if it raises errors, which are added to those of the tree.
        """
        try:
            return parse(*arguments)
        except ConfigError as error:
            self.errors += error.errors
            return None

    def _parse_range(
        self, spec: Spec, place: _Place, lists: Mapping[str, Spec]
    ) -> ValueNode | ListNode | None:
        """Parses a range such as {int: [1, 9]}.

        Args:
            place: where it is in the tree.
            lists: the lists above it, by their keys.

        Returns:
            None for a list with errors in several parts, which were collected.

        Raises:
            ConfigError: it is invalid, or at the key of a config group.
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
        distribution = _parse_distribution(spec, place.name, allows_default=True)
        return ValueNode(place.name, place.key, distribution, spec.get(DEFAULT))

    def _parse_list(self, spec: Spec, place: _Place, lists: Mapping[str, Spec]) -> ListNode | None:
        """Parses a list such as {list: {int: [16, 512]}, length: {int: [1, 3]}}.

        Returns:
            None if the range of its items or its length is invalid; their errors were collected.
        """
        _check_keys(spec, place.name, allows_default=True)
        item = spec["list"]
        if not isinstance(item, Mapping) or not any(kind in item for kind in KINDS_OF_ITEMS):
            raise ConfigError(
                f"space.{place.name}.list must be a mapping with int, float or choice, such as "
                f"{{int: [low, high]}}; got {item!r}"
            )
        distribution = self._try_parsing(_parse_distribution, item, f"{place.name}.list")
        length = self._try_parsing(_parse_length, spec.get("length"), place.name, lists)
        if distribution is None or length is None:  # one of them has errors
            return None
        if isinstance(length, str):
            # The tree has the name of a list next to this one, such as `hidden`. A node has the
            # config key of that list, such as `model.hidden`.
            parent_key = place.key.rpartition(".")[0]
            length = _join(parent_key, length)
        return ListNode(place.name, place.key, distribution, length, spec.get(DEFAULT))


def _classify_child(
    child: str, spec: object, group_options: Sequence[str]
) -> Literal["option", "range", "mapping", "invalid"]:
    """Returns what a child of a mapping in the tree is: an option, a range, or a nested mapping.

    Args:
        spec: the value of the child.
        group_options: the options that the mapping may have; empty if it is not at a group's key.
    """
    if child in group_options and (spec is None or isinstance(spec, Mapping)):
        return "option"
    if not isinstance(spec, Mapping):
        return "invalid"
    if not spec and group_options:
        return "invalid"  # only an option may be empty, so that this is a misspelled one
    if any(kind in spec for kind in KEYS_BY_KIND):  # such as {int: [1, 9]}
        return "range"
    return "mapping"


def _explain_non_range(
    spec: object, child: str, place: _Place, group_options: Sequence[str]
) -> str:
    """Returns the error of a child that is neither a range nor an option with its own subtree.

    Args:
        spec: the value of the child.
        place: where the mapping that has the child is in the tree.
        group_options: the options that the mapping may have; empty if it is not at a group's key.
    """
    name = place.append(child).name
    options_text = ""
    if group_options:
        options_text = f", or what an option of {place.key} opens: {', '.join(group_options)}"
    suggestion = ""
    if child not in group_options:
        suggestion = nearest(child, group_options)
    return (
        f"space.{name} must be a range: {{int: [low, high]}}, {{float: [low, high]}}, "
        "{choice: [a, b]} or {list: …, length: …}"
        f"{options_text}; got {spec!r}{suggestion}"
    )


def _parse_length(length: Any, name: str, lists: Mapping[str, Spec]) -> IntDistribution | str:
    """Parses the length of a list: an integer, a range, or the key of a list above it.

    Args:
        name: the name of the list.
        lists: the lists above it, by their keys.

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


def _check_other_list(other_key: str, name: str, lists: Mapping[str, Spec]) -> None:
    """Raises ConfigError unless a list can be as long as another one.

    The other list must be above it, and its length must not be that of a third one.

    Args:
        other_key: the key of the other list, which is the length of this one.
        name: the name of this list.
        lists: the lists above this one, by their keys.
    """
    if other_key in lists:
        other_length = lists[other_key].get("length")
        is_length_of_third_list = isinstance(other_length, str)  # the name of that list
        if not is_length_of_third_list:
            return
    list_keys = ", ".join(lists) or "there is no such list"
    raise ConfigError(
        f"space.{name}.length must name a list above it that has its own length ({list_keys}); "
        f"got {other_key!r}{nearest(other_key, [*lists])}"
    )


def _parse_length_range(length: Spec, name: str) -> IntDistribution:
    """Parses a length that is a range of integers, from 1 on."""
    distribution = _parse_distribution(length, f"{name}.length")
    assert isinstance(distribution, IntDistribution)
    if distribution.low < 1:
        raise ConfigError(f"space.{name}.length must be at least 1; got {distribution.low}")
    return distribution


def _check_keys(spec: Spec, name: str, *, allows_default: bool) -> None:
    """Raises ConfigError if a range has keys that a range of its kind does not have.

    The range {int: [1, 9], choice: [a, b], step: 2} has the keys of two kinds. The first one is its
    kind, and only `choice` is reported: whether `step` fits depends on which kind is meant.

    Args:
        name: the name of the hyperparameter.
        allows_default: whether the range may have the key `default`.
    """
    kinds = [kind for kind in KEYS_BY_KIND if kind in spec]
    kind = kinds[0]
    allowed_keys = [kind, *KEYS_BY_KIND[kind]]
    if allows_default:
        allowed_keys.append(DEFAULT)
    wrong_keys = kinds[1:]
    if not wrong_keys:
        wrong_keys = [key for key in spec if key not in allowed_keys]
    errors = []
    for key in wrong_keys:
        errors.append(
            f"space.{name}.{key}: no such key; a range of kind {kind} has "
            f"{', '.join(allowed_keys)}{nearest(key, allowed_keys)}"
        )
    raise_if_any(errors)


def _parse_distribution(spec: Spec, name: str, *, allows_default: bool = False) -> Distribution:
    """Parses a range of kind int, float or choice.

    Args:
        name: the name of the hyperparameter.
        allows_default: whether it may have the key `default`, which is not parsed here.
    """
    _check_keys(spec, name, allows_default=allows_default)
    if "choice" in spec:
        return _parse_choice(spec["choice"], f"space.{name}.choice")
    if "int" in spec:
        return _parse_numbers(spec, name, "int")
    return _parse_numbers(spec, name, "float")


def _parse_numbers(
    spec: Spec, name: str, kind: Literal["int", "float"]
) -> IntDistribution | FloatDistribution:
    """Parses a range of kind int or float, such as {int: [1, 9], step: 2}."""
    key = f"space.{name}.{kind}"
    bounds = spec[kind]
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        raise ConfigError(f"{key} must be a range [low, high]; got {bounds!r}")
    low, high = bounds
    log = spec.get("log", False)
    step = spec.get("step")

    numbers = [low, high]
    if step is not None:
        numbers.append(step)
    errors = [*_find_wrong_numbers(numbers, key, kind)]
    if type(log) is not bool:
        errors.append(f"space.{name}.log must be true or false; got {log!r}")
    raise_if_any(errors)

    # The highest value that steps from `low` reach: [1, 10] with the step 4 becomes [1, 9]. A step
    # that is not positive is refused by Optuna below.
    if step is not None and step > 0:
        high = _find_highest(low, high, step, name)
    try:
        if kind == "float":
            return FloatDistribution(float(low), float(high), log=log, step=step)
        if step is None:
            step = 1
        return IntDistribution(int(low), int(high), log=log, step=step)
    except ValueError as error:  # the ends, the step and `log` do not go together
        raise ConfigError(f"{key}: {error}") from None


def _find_wrong_numbers(
    numbers: Sequence[Any], key: str, kind: Literal["int", "float"]
) -> Iterator[str]:
    """Yields an error for each end or step that no range of its kind can have.

    Args:
        key: the key of the range in the config, for messages.
    """
    types: tuple[type, ...] = (int, float)
    types_text = "numbers"
    if kind == "int":
        types = (int,)
        types_text = "integers"
    for number in numbers:
        is_valid = type(number) in types and abs(number) <= LARGEST  # False for NaN too
        if not is_valid:
            yield f"{key}: its ends and step must be finite {types_text}; got {number!r}"


def _find_highest(low: float, high: float, step: float, name: str) -> float:
    """Returns the highest value of a range with a step, such as 9 for 1 to 10 with a step of 4.

    It computes with the numbers as written: 0.3 - 0.1 is 0.2.

    Raises:
        ConfigError: the step is wider than the range.
    """
    first = Decimal(str(low))
    step_width = Decimal(str(step))
    range_width = Decimal(str(high)) - first
    if 0 < range_width < step_width:
        raise ConfigError(
            f"space.{name}.step must not be wider than the range [{low}, {high}]; got {step}"
        )
    whole_steps = range_width // step_width
    highest = first + whole_steps * step_width
    if isinstance(low, int) and isinstance(high, int) and isinstance(step, int):
        return int(highest)  # a float would change integers of more than 53 bits
    return float(highest)


def _parse_choice(choices: Any, key: str) -> CategoricalDistribution:
    """Parses the values of a choice.

    Args:
        key: the key of the list in the config, for messages.
    """
    if not isinstance(choices, list | tuple) or not choices:
        raise ConfigError(
            f"{key} must be a list of the values to choose from, [a, b, …]; got {choices!r}"
        )
    errors = []
    for value in choices:
        is_infinite = isinstance(value, float) and not abs(value) <= LARGEST  # or NaN
        if not is_scalar(value) or is_infinite:
            errors.append(
                f"{key} must hold strings, finite numbers, true, false or null; got {value!r}"
            )
    raise_if_any(errors)
    if len(set(choices)) < len(choices):
        raise ConfigError(
            f"{key} must not name a value twice, and 1, 1.0 and true are one value to "
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

    The other one is in the same branch, or in an outer one, whose options the branch has too.
    """
    branches = [*space.branches()]
    for branch in branches:
        counts = Counter(node.key for node in branch.nodes)
        for key, count in counts.items():
            if count > 1:
                yield f"space.{key} is given twice; keep one of them"

        outer_names_by_key: dict[str, str] = {}
        for other in branches:
            is_outer = other.choices.items() < branch.choices.items()  # some of them, not all
            if is_outer:
                for node in other.nodes:
                    outer_names_by_key[node.key] = node.name
        for node in branch.nodes:
            outer_name = outer_names_by_key.get(node.key)
            if outer_name is not None:
                yield (
                    f"space.{node.name}: space.{outer_name} decides {node.key} too, "
                    "whichever option is chosen; keep one of them"
                )
