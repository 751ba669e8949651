"""The search space: a tree in which nesting is the condition.

    model:                     a config group: the chosen option opens what is nested in it
      mlp:
        hidden: {list: {int: [16, 512], log: true}, length: {int: [1, 3]}}
        dropout: {list: {float: [0.0, 0.5]}, length: hidden}      as long as `hidden`
      cnn: {channels: {choice: [8, 16, 32]}}
    optimizer:
      lr: {float: [1.0e-4, 1.0], log: true}       next to the options: searched with each of them
      sgd: {momentum: {float: [0.0, 0.99]}}

A hyperparameter's name is its path in this tree (`optimizer.sgd.momentum`). Its config key is that
path without the options (`optimizer.momentum`). A group with a single option is fixed.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, Protocol

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial

from studyloom.errors import refuse
from studyloom.text import as_yaml, is_scalar, kind_of, nearest

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
LARGEST_GRID = 100_000  # configurations that are enumerated


@dataclass(frozen=True)
class Leaf:
    """A node with one value, which is written to the config at `key`.

    `optimizer: {sgd: {momentum: {float: [0.0, 0.99]}}}` has one hyperparameter:
    `optimizer.sgd.momentum` with the key `optimizer.momentum`.

    `name` is the path in the tree; `key` is the path without the options.

    Attributes:
        default: the value of the baseline; None for that of the config.
    """

    name: str
    key: str
    distribution: Distribution
    default: Any = None


@dataclass(frozen=True)
class ListLeaf:
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
        return group_of(self.key)


Node = Leaf | ListLeaf | Group


@dataclass(frozen=True)
class Parameter:
    """A hyperparameter that a walk through the tree has to decide.

    Attributes:
        key: the config key at which it decides what `role` says.
        index: the position of an item in its list, from 0.
    """

    name: str
    distribution: Distribution
    key: str
    role: Literal["option", "value", "length", "item"]
    index: int = 0

    def composed(self, choices: Mapping[str, str], lookup: Callable[[str], Any]) -> Any:
        """Returns the value in a config, see `Space.default`.

        A scalar at the key of a list stands for each of its items, and the last item of a shorter
        list for those that it lacks.
        """
        if self.role == "option":
            return choices[group_of(self.key)]
        value = lookup(self.key)
        if self.role == "length" and isinstance(value, list):
            return len(value)
        if self.role == "item" and isinstance(value, list) and value:
            value = value[min(self.index, len(value) - 1)]
        return self.own(value)

    def own(self, value: Any) -> Any:
        """Returns the choice that a value is, such as 0 for 0.0; else the value."""
        choices = getattr(self.distribution, "choices", ())
        return next((choice for choice in choices if _is_same(choice, value)), value)

    def stand_in(self, choices: Mapping[str, str], end: int = 0) -> Any:
        """Returns the value where only groups are chosen, see `Space.stand_in`."""
        option = choices.get(group_of(self.key)) if self.role == "option" else None
        if option is not None and why_not(self.distribution, option) is None:
            return option
        return end_of(self.distribution, end)


@dataclass(frozen=True)
class Point:
    """A configuration of the space: the value of each hyperparameter, and the config keys it sets.

    Attributes:
        choices: the chosen option by Hydra group, such as `model/block`.
        values: the value by config key.
        params: the value by hyperparameter name, as Optuna stores it.
        distributions: the distribution by hyperparameter name.
        trial: Optuna's trial, whose objective suggests the values itself (`Open`); else None.
    """

    choices: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)
    trial: BaseTrial | None = field(default=None, compare=False)


class Where(Protocol):
    """A relation between hyperparameters that must hold, as one of `space.where`."""

    @property
    def names(self) -> frozenset[str]: ...
    def holds(self, params: Mapping[str, Any]) -> bool: ...


@dataclass(frozen=True)
class Space:
    """A search space: the nodes at the root of its tree.

    Attributes:
        nodes: a group comes before the hyperparameters next to its options.
        relations: rules that exclude combinations of values.
    """

    nodes: tuple[Node, ...]
    relations: tuple[Where, ...] = ()

    def breach(self, params: Mapping[str, Any]) -> str | None:
        """Says which relation these hyperparameters break: "breaks …"; None if they break none."""
        for relation in self.relations:
            if not relation.holds(params):
                values = ", ".join(f"{n}={as_yaml(params[n])}" for n in sorted(relation.names))
                return f"breaks space.where '{relation}' with {values}"
        return None

    def at(self, params: Mapping[str, Any]) -> Point:
        """Returns the configuration with these values; raises KeyError if one is missing."""
        return self.walk(lambda parameter: params[parameter.name])

    def walk(self, decide: Callable[[Parameter], Any]) -> Point:
        """Walks the tree from the root, and returns the configuration that was decided.

        Args:
            decide: returns the value of a hyperparameter; called in the order of the tree for each
                one that the earlier values open.
        """
        point = Point()

        def assign(parameter: Parameter) -> Any:
            value = decide(parameter)
            point.params[parameter.name] = value
            point.distributions[parameter.name] = parameter.distribution
            return value

        def visit(nodes: Sequence[Node]) -> None:
            for node in nodes:
                match node:
                    case Group(name, key, options):
                        option = next(iter(options))
                        if len(options) > 1:
                            option = assign(Parameter(name, node.distribution, key, "option"))
                        point.choices[node.config_group] = option
                        visit(options[option])
                    case Leaf(name=name, key=key, distribution=distribution):
                        point.values[key] = assign(Parameter(name, distribution, key, "value"))
                    case ListLeaf(name=name, key=key, item=item, length=length):
                        if isinstance(length, str):
                            count = len(point.values[length])
                        elif length.low == length.high:
                            count = length.low
                        else:
                            count = assign(Parameter(f"{name}.length", length, key, "length"))
                        point.values[key] = [
                            assign(Parameter(f"{name}.{i}", item, key, "item", i))
                            for i in range(count)
                        ]

        visit(self.nodes)
        return point

    def suggest(self, trial: BaseTrial) -> Point:
        """Returns the configuration that a trial's sampler suggests."""
        suggest: Any = trial._suggest  # type: ignore[attr-defined]
        return self.walk(lambda parameter: suggest(parameter.name, parameter.distribution))

    def default(self, choices: Mapping[str, str], lookup: Callable[[str], Any]) -> Point:
        """Returns the configuration in a config, whose value at a key `lookup` returns."""
        return self.walk(lambda parameter: parameter.composed(choices, lookup))

    def stand_in(self, choices: Mapping[str, str], end: int = 0) -> Point:
        """Returns a configuration for which only the options of groups are chosen.

        An option is as chosen if the space has it; other values are ends of ranges, see `end_of`.
        """
        return self.walk(lambda parameter: parameter.stand_in(choices, end))

    def leaves(self, choices: Mapping[str, str]) -> Iterator[Leaf | ListLeaf]:
        """Yields the hyperparameters that certain choices open, in the order of the tree."""
        for chosen, nodes in self.branches():
            if chosen.items() <= choices.items():
                yield from nodes

    def size(self) -> float:
        """Counts the configurations: infinity for a continuous range, or beyond all floats.

        Beyond LARGEST_GRID, those that break relations are counted too.
        """
        try:
            size = _count_points(self.nodes)
        except OverflowError:
            return math.inf
        return len(self.grid) if self.relations and size <= LARGEST_GRID else size

    def points(self) -> Iterator[Point]:
        """Yields every configuration of a finite space that breaks no relation, depth first.

        Raises:
            ConfigError: names every continuous range; a grid needs a `step` or a `choice` there.
        """
        leaves = (node for _, nodes in self.branches() for node in nodes)
        ranges = {n.name: n.distribution if isinstance(n, Leaf) else n.item for n in leaves}
        continuous = [name for name, each in ranges.items() if math.isinf(count_values(each))]
        way_out = "a grid cannot enumerate a continuous range; give it a step, or a choice"
        refuse([f"space.{name}: {way_out}" for name in continuous])
        trail: list[int] = []  # the index of the value at each depth of the current walk
        while True:
            widths: list[int] = []

            def decide(parameter: Parameter, widths: list[int] = widths) -> Any:
                depth = len(widths)
                widths.append(int(count_values(parameter.distribution)))
                if depth == len(trail):
                    trail.append(0)
                return nth_value(parameter.distribution, trail[depth])

            point = self.walk(decide)
            if self.breach(point.params) is None:
                yield point
            while trail and trail[-1] + 1 == widths[len(trail) - 1]:
                trail.pop()
            if not trail:
                return
            trail[-1] += 1

    @functools.cached_property  # each trial makes a sampler, and 10,000 take 0.2 s
    def grid(self) -> tuple[Point, ...]:
        """All configurations of a finite space."""
        return tuple(self.points())

    def branches(self) -> Iterator[tuple[dict[str, str], tuple[Leaf | ListLeaf, ...]]]:
        """Yields each branch, from the root on: its choices, and its hyperparameters."""
        yield {}, tuple(node for node in self.nodes if not isinstance(node, Group))
        for node in self.nodes:
            if isinstance(node, Group):
                for option, opened in node.options.items():
                    for choices, leaves in Space(opened).branches():
                        yield {node.config_group: option, **choices}, leaves

    def groups(self) -> Iterator[Group]:
        """Yields every group of the tree, outer before inner."""
        for node in self.nodes:
            if isinstance(node, Group):
                yield node
                for opened in node.options.values():
                    yield from Space(opened).groups()


@dataclass(frozen=True)
class Open(Space):
    """The space of an objective that suggests its hyperparameters itself: no tree describes it."""

    nodes: tuple[Node, ...] = ()

    def at(self, params: Mapping[str, Any]) -> Point:
        return Point(params={**params})

    def suggest(self, trial: BaseTrial) -> Point:
        return Point(trial=trial)

    def size(self) -> float:
        return math.inf


def group_of(key: str) -> str:
    """Returns the Hydra group of a config key: `model.block` is of the group `model/block`."""
    return key.replace(".", "/")


def _count_points(nodes: Sequence[Node]) -> float:
    total = 1.0
    for node in nodes:
        match node:
            case Group(options=options):
                total *= sum(_count_points(children) for children in options.values())
            case Leaf(distribution=distribution):
                total *= count_values(distribution)
            case ListLeaf(key=key, length=length) if not isinstance(length, str):
                shared = [
                    count_values(other.item)
                    for other in nodes
                    if isinstance(other, ListLeaf) and other.length == key
                ]
                each = math.prod([count_values(node.item), *shared])
                total *= sum(each**n for n in range(length.low, length.high + 1, length.step))
    return total


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
            return 1 if low == high else math.inf


def middle_of(distribution: Distribution) -> Any:
    """Returns the value in the middle of a range, on the scale on which it is drawn.

    Of choices that are not ordered it is the first.
    """
    match distribution:
        case CategoricalDistribution(choices=choices):
            return choices[len(choices) // 2 if is_ordered(distribution) else 0]
        case IntDistribution(low=low, high=high, log=log, step=step):
            middle = math.sqrt(low) * math.sqrt(high) if log else (low + high) / 2
            return low + round((middle - low) / step) * step
        case FloatDistribution(low=low, high=high, log=log, step=step):
            if step is not None:
                return nth_value(distribution, int(count_values(distribution)) // 2)
            middle = math.sqrt(low) * math.sqrt(high) if log else low / 2 + high / 2
            return min(max(low, float(f"{middle:.4g}")), high)


def default_of(node: Leaf | ListLeaf, declared: Any, length_of: Callable[[str], int]) -> Any:
    """Returns the default value of a node: its own, else the declared one, else the middle.

    A declared value outside the range is returned too, so that it can be refused.

    Args:
        declared: the default of the argument that the node sets; empty of `inspect` without.
        length_of: returns the length of another list by its key.
    """
    if node.default is not None:
        return node.default
    if declared is not inspect.Parameter.empty:
        return _in_config(declared)
    if isinstance(node, Leaf):
        return middle_of(node.distribution)
    length = node.length
    if isinstance(length, str):
        length = IntDistribution(length_of(length), length_of(length))
    return [middle_of(node.item)] * middle_of(length)


def _in_config(value: Any) -> Any:
    """Returns a value as a config can hold it; of an object, its text."""
    if isinstance(value, list | tuple):
        return [_in_config(item) for item in value]
    return value if is_scalar(value) else str(value)


def nth_value(distribution: Distribution, index: int) -> Any:
    """Returns the value at a position of a finite distribution as written: 0.3, not 3 × 0.1."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            return choices[index]
        case IntDistribution(low=low, step=step):
            return low + index * step
        case FloatDistribution(low=low, step=step):
            return low if step is None else float(Decimal(str(low)) + index * Decimal(str(step)))


def _is_same(choice: Any, value: Any) -> bool:
    """Whether a value is a choice: 0.0 is 0, but false is not."""
    return bool(choice == value) and isinstance(choice, bool) == isinstance(value, bool)


def why_not(distribution: Distribution, value: Any) -> str | None:
    """Explains why a distribution cannot give a value: "is outside …"; None if it can."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            if any(_is_same(choice, value) for choice in choices):
                return None
            return f"is not among [{', '.join(map(as_yaml, choices))}]{nearest(value, choices)}"
        case (
            IntDistribution(low=low, high=high, step=step)
            | FloatDistribution(low=low, high=high, step=step)
        ):
            whole = isinstance(distribution, IntDistribution)
            if type(value) is not int and (whole or type(value) is not float):
                return f"is {kind_of(value)}, but must be {'an integer' if whole else 'a number'}"
            if not low <= value <= high:
                return f"is outside its range [{low:.15g}, {high:.15g}]"
            steps = (value - low) / step if step else 0.0
            if abs(steps - round(steps)) < 1e-8:
                return None
            return f"is not one of {low:.15g}, {low + (step or 0):.15g}, … {high:.15g}"


def describe(distribution: Distribution) -> str:
    """Describes the values of a distribution in a few words: "1 … 9 step 4", "relu | tanh"."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            return " | ".join(map(as_yaml, choices))
        case IntDistribution(low=low, high=high, step=step, log=log):
            if low == high:
                return str(low)
            return f"{low} … {high}" + (" log" if log else f" step {step}" if step > 1 else "")
        case FloatDistribution(low=low, high=high, step=step, log=log):
            if low == high:
                return f"{low:g}"
            return f"{low:g} … {high:g}" + (" log" if log else f" step {step:g}" if step else "")


def is_numeric(distribution: BaseDistribution) -> bool:
    """Whether all values of a distribution are numbers."""
    return all(type(choice) in (int, float) for choice in getattr(distribution, "choices", ()))


def end_of(distribution: Distribution, end: int) -> Any:
    """Returns the low end or first choice of a distribution for 0, the high or last for -1."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[end]
    return (distribution.low, distribution.high)[end]


def is_ordered(distribution: BaseDistribution) -> bool:
    """Whether near values of a distribution are alike: numbers, or choices of rising numbers."""
    choices = list(getattr(distribution, "choices", ()))
    return is_numeric(distribution) and choices == sorted(choices)
