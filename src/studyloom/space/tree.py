"""The search space: a tree in which nesting is the condition.

    model:                     a config group: the chosen option opens what is nested in it
      mlp:
        hidden: {list: {int: [16, 512], log: true}, length: {int: [1, 3]}}
        dropout: {list: {float: [0.0, 0.5]}, length: hidden}      as long as `hidden`
      cnn: {channels: {choice: [8, 16, 32]}}
    optimizer:
      lr: {float: [1.0e-4, 1.0], log: true}       next to the options: searched with each of them
      sgd: {momentum: {float: [0.0, 0.99]}}

A hyperparameter's *name* is its path in this tree (`optimizer.sgd.momentum`). Its *config key* is
that path without the options (`optimizer.momentum`). A *branch* is what one combination of options
opens. A group with a single option is fixed. A *relation* is a rule of `space.where` that excludes
combinations of values. The size of a space is the number of its configurations, its grid.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, NamedTuple, Protocol

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial

from studyloom.errors import raise_if_any
from studyloom.text import describe_kind, format_scalar, is_scalar, nearest

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
Scalar = str | int | float | bool | None  # a value of a hyperparameter
Params = Mapping[str, Any]  # the value by hyperparameter name, as Optuna has it
Choices = Mapping[str, str]  # the chosen option by Hydra group, such as `model/block`
Lookup = Callable[[str], Any]  # returns the value of a config at a key
End = Literal["low", "high"]  # an end of a range

LARGEST_GRID = 100_000  # configurations that are enumerated


@dataclass(frozen=True)
class ValueNode:
    """A node with one value, which is written to the config at `key`.

    `optimizer: {sgd: {momentum: {float: [0.0, 0.99]}}}` has one hyperparameter:
    `optimizer.sgd.momentum` with the key `optimizer.momentum`.

    Attributes:
        name: the path in the tree.
        key: the path without the options.
        default: the value of the baseline; None for that of the config.
    """

    name: str
    key: str
    distribution: Distribution
    default: Any = None


@dataclass(frozen=True)
class ListNode:
    """A node with a list of values, which is written to the config at `key`.

    `model: {hidden: {list: {int: [16, 512]}, length: {int: [1, 3]}}}` has the hyperparameter
    `model.hidden.length` and, if that is 2, also `model.hidden.0` and `model.hidden.1`.

    Attributes:
        item: the values that are searched for each item.
        length: the lengths that are searched (a single length is fixed), or the key of
            an earlier list of the same length.
        default: the list of the baseline, or one value for each item; None for that of the config.
    """

    name: str
    key: str
    item: Distribution
    length: IntDistribution | str
    default: Any = None


@dataclass(frozen=True)
class Group:
    """A node that chooses an option of a config group; the option opens the nodes nested in it.

    `model: {mlp: {dropout: …}, cnn: {channels: …}}` is the group `model`. The
    hyperparameter `model` is `mlp` or `cnn`; `model.cnn.channels` is searched only for `cnn`.

    Attributes:
        options: the nodes that each option opens.
    """

    name: str
    key: str
    options: Mapping[str, tuple["Node", ...]]

    @property
    def distribution(self) -> CategoricalDistribution:
        return CategoricalDistribution(tuple(self.options))

    @property
    def config_group(self) -> str:
        return config_group(self.key)


Node = ValueNode | ListNode | Group


class SpaceBranch(NamedTuple):
    """The hyperparameters that one combination of options opens.

    Attributes:
        choices: the options; empty at the root of the tree.
        nodes: the hyperparameters next to or below the last of these options, and no deeper.
    """

    choices: dict[str, str]
    nodes: tuple[ValueNode | ListNode, ...]


@dataclass(frozen=True)
class Hyperparameter:
    """A hyperparameter that a walk through the tree has to decide.

    Attributes:
        key: the config key at which it decides what `role` says.
        role: whether it is a group's option, a value, a list's length, or an item of a list.
        index: the position of an item in its list, from 0.
    """

    name: str
    distribution: Distribution
    key: str
    role: Literal["option", "value", "length", "item"]
    index: int = 0

    def read_default(self, choices: Choices, lookup: Lookup) -> Any:
        """Returns the value that a config has for this hyperparameter.

        For an item of a list, the config may have a scalar, which is the value of every item, or a
        shorter list, whose last item is the value of all further ones.

        Args:
            choices: the option of each group in the config.
            lookup: returns the value of the config at a key.
        """
        if self.role == "option":
            return choices[config_group(self.key)]
        value = lookup(self.key)
        if isinstance(value, list):
            if self.role == "length":
                return len(value)
            if self.role == "item" and value:
                last_index = len(value) - 1
                value = value[min(self.index, last_index)]
        return self.match_choice(value)

    def match_choice(self, value: Any) -> Any:
        """Returns the choice that equals a value, such as 0 for 0.0; without one, the value."""
        if isinstance(self.distribution, CategoricalDistribution):
            for choice in self.distribution.choices:
                if _is_same(choice, value):
                    return choice
        return value

    def make_placeholder(self, choices: Choices, end: End = "low") -> Any:
        """Returns a value for a configuration of which only some options of groups matter.

        Args:
            choices: the options that matter, by group. A group that is missing here, or lacks the
                option, gets its first option, or its last one for the high end.
            end: the end of the range to return for any other hyperparameter.
        """
        if self.role == "option":
            option = choices.get(config_group(self.key))
            if option is not None and find_misfit(self.distribution, option) is None:
                return option
        return find_end(self.distribution, end)


@dataclass(frozen=True)
class Configuration:
    """A value for each hyperparameter of the space, and the config keys that they set.

    Attributes:
        choices: the chosen option by Hydra group, such as `model/block`.
        values: the value by config key.
        params: the value by hyperparameter name, as Optuna stores it.
        distributions: the distribution by hyperparameter name.
        trial: Optuna's trial, if its objective suggests the values itself (`SuggestedSpace`).
    """

    choices: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)
    trial: BaseTrial | None = field(default=None, compare=False)


class SpaceRelation(Protocol):
    """A relation between hyperparameters that must hold, as one of `space.where`."""

    @property
    def names(self) -> frozenset[str]: ...
    def holds(self, params: Params) -> bool: ...


@dataclass(frozen=True)
class Space:
    """A search space: the nodes at the root of its tree.

    Attributes:
        nodes: a group comes before the hyperparameters next to its options.
        relations: rules that exclude combinations of values.
    """

    nodes: tuple[Node, ...]
    relations: tuple[SpaceRelation, ...] = ()

    def find_breach(self, params: Params) -> str | None:
        """Returns the first relation that some values break, as "breaks …" for a message.

        Returns:
            None if they break no relation.
        """
        for relation in self.relations:
            if relation.holds(params):
                continue
            values = []
            for name in sorted(relation.names):
                values.append(f"{name}={format_scalar(params[name])}")
            return f"breaks space.where '{relation}' with {', '.join(values)}"
        return None

    def make_configuration(self, params: Params) -> Configuration:
        """Returns the configuration with these values; raises KeyError if one is missing."""
        return self.walk(lambda hyperparameter: params[hyperparameter.name])

    def walk(self, decide: Callable[[Hyperparameter], Any]) -> Configuration:
        """Walks the tree from the root, and returns the configuration that was decided.

        Args:
            decide: returns the value of a hyperparameter; called in the order of the tree for each
                one that the earlier values open.
        """
        walk = _Walk(decide)
        walk.visit_nodes(self.nodes)
        return walk.configuration

    def suggest(self, trial: BaseTrial) -> Configuration:
        """Returns the configuration that a trial's sampler suggests."""
        # Optuna's public `suggest_float` and the like take ranges, and not distributions.
        suggest: Any = trial._suggest  # type: ignore[attr-defined]
        return self.walk(lambda hyper: suggest(hyper.name, hyper.distribution))

    def read_default(self, choices: Choices, lookup: Lookup) -> Configuration:
        """Returns the configuration that a config has.

        Args:
            choices: the options of the config's groups.
            lookup: returns the value of the config at a key.
        """
        return self.walk(lambda hyperparameter: hyperparameter.read_default(choices, lookup))

    def make_placeholder(self, choices: Choices, end: End = "low") -> Configuration:
        """Returns a configuration of a branch, where only its options matter.

        Args:
            choices: options, which are chosen if the space has them.
            end: the end of their ranges that all other values are at.
        """
        return self.walk(lambda hyperparameter: hyperparameter.make_placeholder(choices, end))

    def opened_nodes(self, choices: Choices) -> Iterator[ValueNode | ListNode]:
        """Yields the hyperparameters that some options open, in the order of the tree."""
        for branch in self.branches():
            if branch.choices.items() <= choices.items():
                yield from branch.nodes

    def size(self) -> float:
        """Returns the number of configurations; infinity if a range is continuous.

        Configurations that break relations are left out only up to LARGEST_GRID, since each one has
        to be checked.
        """
        try:
            size = _count_configurations(self.nodes)
        except OverflowError:  # it is beyond all floats
            return math.inf
        if self.relations and size <= LARGEST_GRID:
            return len(self.grid)
        return size

    def configurations(self) -> Iterator[Configuration]:
        """Yields every configuration of a finite space that breaks no relation.

        Each walk through the tree gives one. The values are decided by an odometer: a counter with
        a digit for each hyperparameter on the walk, which turns by one after the walk.

        Raises:
            ConfigError: names every continuous range; a grid needs a `step` or a `choice` there.
        """
        raise_if_any([*self._find_continuous_ranges()])
        odometer = _Odometer()
        has_next = True
        while has_next:
            odometer.start_walk()
            configuration = self.walk(odometer.decide)
            if self.find_breach(configuration.params) is None:
                yield configuration
            has_next = odometer.advance()

    def _find_continuous_ranges(self) -> Iterator[str]:
        """Yields an error for each range that a grid cannot enumerate."""
        for branch in self.branches():
            for node in branch.nodes:
                if isinstance(node, ListNode):
                    distribution = node.item
                else:
                    distribution = node.distribution
                if math.isinf(count_values(distribution)):
                    yield (
                        f"space.{node.name}: a grid cannot enumerate a continuous range; give it a "
                        "step, or a choice"
                    )

    @functools.cached_property  # each trial makes a sampler, and 10,000 take 0.2 s
    def grid(self) -> tuple[Configuration, ...]:
        """All configurations of a finite space."""
        return tuple(self.configurations())

    def branches(self) -> Iterator[SpaceBranch]:
        """Yields each branch: a combination of options, with the hyperparameters that it opens.

        The root comes first: no options, and the hyperparameters that are always searched. After it
        come the branches below each option of each group at the root.
        """
        groups = []
        root_nodes = []
        for node in self.nodes:
            if isinstance(node, Group):
                groups.append(node)
            else:
                root_nodes.append(node)
        yield SpaceBranch({}, tuple(root_nodes))
        for group in groups:
            for option, opened_nodes in group.options.items():
                for inner_branch in Space(opened_nodes).branches():
                    choices = {group.config_group: option, **inner_branch.choices}
                    yield SpaceBranch(choices, inner_branch.nodes)

    def groups(self) -> Iterator[Group]:
        """Yields every group of the tree, outer before inner."""
        for node in self.nodes:
            if isinstance(node, Group):
                yield node
                for opened_nodes in node.options.values():
                    yield from Space(opened_nodes).groups()


class _Walk:
    """A walk through a tree, which decides the hyperparameters that the earlier values open.

    Attributes:
        decide: returns the value of a hyperparameter.
        configuration: the values so far.
    """

    def __init__(self, decide: Callable[[Hyperparameter], Any]) -> None:
        self.decide = decide
        self.configuration = Configuration()

    def visit_nodes(self, nodes: Sequence[Node]) -> None:
        """Decides nodes in their order, and all that their options open."""
        for node in nodes:
            match node:
                case Group():
                    self._visit_group(node)
                case ListNode():
                    self._visit_list(node)
                case ValueNode(name=name, key=key, distribution=distribution):
                    hyperparameter = Hyperparameter(name, distribution, key, role="value")
                    self.configuration.values[key] = self._assign(hyperparameter)

    def _visit_group(self, group: Group) -> None:
        """Decides the option of a group, unless it has only one, and all that the option opens."""
        option = next(iter(group.options))
        if len(group.options) > 1:
            hyperparameter = Hyperparameter(
                group.name, group.distribution, group.key, role="option"
            )
            option = self._assign(hyperparameter)
        self.configuration.choices[group.config_group] = option
        self.visit_nodes(group.options[option])

    def _visit_list(self, node: ListNode) -> None:
        """Decides the length of a list, and then its items.

        The length of a node is a range, or the key of an earlier list of the same length.
        """
        if isinstance(node.length, str):
            length = len(self.configuration.values[node.length])
        elif node.length.low == node.length.high:  # the length is fixed
            length = node.length.low
        else:
            name = f"{node.name}.length"
            length = self._assign(Hyperparameter(name, node.length, node.key, role="length"))
        items = []
        for index in range(length):
            name = f"{node.name}.{index}"
            hyperparameter = Hyperparameter(name, node.item, node.key, role="item", index=index)
            items.append(self._assign(hyperparameter))
        self.configuration.values[node.key] = items

    def _assign(self, hyperparameter: Hyperparameter) -> Any:
        """Decides a hyperparameter, notes its value in the configuration, and returns the value."""
        value = self.decide(hyperparameter)
        self.configuration.params[hyperparameter.name] = value
        self.configuration.distributions[hyperparameter.name] = hyperparameter.distribution
        return value


@dataclass(frozen=True)
class SuggestedSpace(Space):
    """The space of an objective that suggests its hyperparameters itself: no tree describes it."""

    nodes: tuple[Node, ...] = ()

    def make_configuration(self, params: Params) -> Configuration:
        return Configuration(params={**params})

    def suggest(self, trial: BaseTrial) -> Configuration:
        return Configuration(trial=trial)

    def size(self) -> float:
        return math.inf


class _Odometer:
    """Decides a walk through the tree so that each walk gives the next configuration.

    It works like the counter of a car: a digit for each hyperparameter, in the order of a walk,
    which counts through the values of that hyperparameter. The last digit turns first. When an
    earlier digit turns, the later ones are dropped and not set to 0: another option or length opens
    other hyperparameters, and the next walk finds out which.
    """

    def __init__(self) -> None:
        self._digits: list[int] = []  # the index of the value of each hyperparameter
        self._sizes: list[int] = []  # the number of values of each in the current walk

    def start_walk(self) -> None:
        self._sizes = []

    def decide(self, hyperparameter: Hyperparameter) -> Any:
        """Returns the value of the next hyperparameter of the current walk.

        Its digit is the index of that value. A hyperparameter without a digit, which the options
        before it have just opened, gets the digit 0.
        """
        position = len(self._sizes)  # how many hyperparameters this walk has decided so far
        self._sizes.append(int(count_values(hyperparameter.distribution)))
        if position == len(self._digits):
            self._digits.append(0)
        return nth_value(hyperparameter.distribution, self._digits[position])

    def advance(self) -> bool:
        """Turns the digits to the next configuration; returns False if this was the last one.

        The last digit turns by one. If it has shown all values, it is dropped, and the digit before
        it turns. With the new value of that one, the next walk may come to other hyperparameters,
        for which it adds digits.
        """
        while self._digits:
            last = len(self._digits) - 1
            if self._digits[last] + 1 < self._sizes[last]:
                self._digits[last] += 1
                return True
            self._digits.pop()
        return False


def config_group(key: str) -> str:
    """Returns the Hydra group of a config key: `model.block` is of the group `model/block`."""
    return key.replace(".", "/")


def _count_configurations(nodes: Sequence[Node]) -> float:
    """Returns the number of configurations of some nodes; infinity for a continuous range.

    The counts of nodes are multiplied, and those of a group's options are added.
    """
    total = 1.0
    for node in nodes:
        match node:
            case Group(options=options):
                total *= sum(
                    _count_configurations(opened_nodes) for opened_nodes in options.values()
                )
            case ValueNode(distribution=distribution):
                total *= count_values(distribution)
            case ListNode(length=IntDistribution()):
                total *= _count_lists(node, nodes)
            case ListNode():
                pass  # its length is that of another list, with which `_count_lists` counts it
    return total


def _count_lists(node: ListNode, siblings: Sequence[Node]) -> float:
    """Returns the number of configurations of a list and of all lists that are as long as it.

    Such a list has the key of another list as its length. The two are counted together: only the
    items of both are free.

    Args:
        node: a list whose length is not that of another one.
        siblings: the nodes next to it, among which the other lists are.
    """
    assert isinstance(node.length, IntDistribution)
    values_per_position = count_values(node.item)
    for other in siblings:
        if isinstance(other, ListNode) and other.length == node.key:
            values_per_position *= count_values(other.item)
    lengths = range(node.length.low, node.length.high + 1, node.length.step)
    return sum(values_per_position**length for length in lengths)


def count_values(distribution: Distribution) -> float:
    """Returns the number of values of a distribution; infinity if it is continuous."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            return len(choices)
        case IntDistribution(low=low, high=high, step=step):
            return (high - low) // step + 1
        case FloatDistribution(low=low, high=high, step=step):
            if step is not None:
                return round((high - low) / step) + 1
            if low == high:
                return 1
            return math.inf


def find_middle(distribution: Distribution) -> Any:
    """Returns the value in the middle of a range, on the scale on which it is drawn.

    Choices without an order have no middle: the first stands for it.
    """
    match distribution:
        case CategoricalDistribution(choices=choices):
            if is_ordered(distribution):
                return choices[len(choices) // 2]
            return choices[0]
        case IntDistribution(low=low, high=high, log=log, step=step):
            middle = (low + high) / 2
            if log:
                middle = math.sqrt(low) * math.sqrt(high)
            steps = round((middle - low) / step)
            return low + steps * step
        case FloatDistribution(low=low, high=high, log=log, step=step):
            if step is not None:  # then Optuna allows no log scale
                value_count = int(count_values(distribution))  # a float only for infinity
                return nth_value(distribution, value_count // 2)
            middle = low / 2 + high / 2  # low + high could be beyond all floats
            if log:
                middle = math.sqrt(low) * math.sqrt(high)
            rounded_middle = float(f"{middle:.4g}")  # easy to read, such as 0.003162
            return min(max(low, rounded_middle), high)


def find_default(node: ValueNode | ListNode, declared: Any, shared_length: int = 1) -> Any:
    """Returns the default value of a node: its own, else the declared one, else the middle.

    A declared value outside the range is returned too, so that it can be refused.

    Args:
        declared: the default of the argument that the node sets; `inspect.Parameter.empty` if the
            argument has none.
        shared_length: the length of another list, if the node has the key of that list as its
            length.
    """
    if node.default is not None:
        return node.default
    if declared is not inspect.Parameter.empty:
        return _to_config_value(declared)
    if isinstance(node, ValueNode):
        return find_middle(node.distribution)
    length = shared_length
    if isinstance(node.length, IntDistribution):
        length = find_middle(node.length)
    return [find_middle(node.item)] * length


def _to_config_value(value: object) -> object:
    """Returns a value as a config can hold it: lists and scalars; the text of another object."""
    if isinstance(value, list | tuple):
        return [_to_config_value(item) for item in value]
    if is_scalar(value):
        return value
    return str(value)


def nth_value(distribution: Distribution, index: int) -> Any:
    """Returns the value at a position of a finite distribution as written: 0.3, not 3 × 0.1."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            return choices[index]
        case IntDistribution(low=low, step=step):
            return low + index * step
        case FloatDistribution(low=low, step=step):
            if step is None:  # it is finite only if low is high
                return low
            return float(Decimal(str(low)) + index * Decimal(str(step)))


def _is_same(choice: Scalar, value: object) -> bool:
    """Returns whether a value is a choice: 0.0 is 0, but false is not."""
    return bool(choice == value) and isinstance(choice, bool) == isinstance(value, bool)


def find_misfit(distribution: Distribution, value: object) -> str | None:
    """Returns why a value is not among those of a distribution, such as "is outside its range …".

    Returns:
        None if the distribution has the value.
    """
    if isinstance(distribution, CategoricalDistribution):
        choices = distribution.choices
        if any(_is_same(choice, value) for choice in choices):
            return None
        choices_text = ", ".join(map(format_scalar, choices))
        return f"is not among [{choices_text}]{nearest(value, choices)}"
    if isinstance(distribution, IntDistribution):
        if type(value) is not int:  # a bool is an instance of int too
            return f"is {describe_kind(value)}, but must be an integer"
        return _find_range_misfit(distribution, value)
    if type(value) is not int and type(value) is not float:
        return f"is {describe_kind(value)}, but must be a number"
    return _find_range_misfit(distribution, value)


def _find_range_misfit(
    distribution: IntDistribution | FloatDistribution, value: float
) -> str | None:
    """Returns why a number is not in a range; None if it is."""
    low = distribution.low
    high = distribution.high
    step = distribution.step
    if not low <= value <= high:  # also if it is NaN
        return f"is outside its range [{low:.15g}, {high:.15g}]"
    if not step:
        return None
    steps = (value - low) / step
    is_whole = abs(steps - round(steps)) < 1e-8  # floats are rounded: 0.3 / 0.1 is almost 3
    if is_whole:
        return None
    return f"is not one of {low:.15g}, {low + step:.15g}, … {high:.15g}"


def describe(distribution: Distribution) -> str:
    """Describes the values of a distribution in a few words: "1 … 9 step 4", "relu | tanh"."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            return " | ".join(map(format_scalar, choices))
        case IntDistribution(low=low, high=high, step=step, log=log):
            if low == high:
                return str(low)
            if log:
                return f"{low} … {high} log"
            if step > 1:
                return f"{low} … {high} step {step}"
            return f"{low} … {high}"
        case FloatDistribution(low=low, high=high, step=step, log=log):
            if low == high:
                return f"{low:g}"
            if log:
                return f"{low:g} … {high:g} log"
            if step:
                return f"{low:g} … {high:g} step {step:g}"
            return f"{low:g} … {high:g}"


def find_end(distribution: Distribution, end: End) -> Any:
    """Returns an end of a distribution: of choices, the first is the low end."""
    if isinstance(distribution, CategoricalDistribution):
        if end == "low":
            return distribution.choices[0]
        return distribution.choices[-1]
    if end == "low":
        return distribution.low
    return distribution.high


def is_numeric(distribution: BaseDistribution) -> bool:
    """Returns whether all values of a distribution are numbers."""
    if isinstance(distribution, CategoricalDistribution):
        return all(type(choice) in (int, float) for choice in distribution.choices)
    return True


def is_ordered(distribution: BaseDistribution) -> bool:
    """Returns whether near values are alike: they are numbers, or choices of rising numbers."""
    if not is_numeric(distribution):
        return False
    if isinstance(distribution, CategoricalDistribution):
        choices: list[Any] = [*distribution.choices]
        return choices == sorted(choices)
    return True
