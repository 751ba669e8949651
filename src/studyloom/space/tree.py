"""The search space: a tree in which nesting is the condition.

    model:                       a config group: choosing an option opens what is under it
      mlp:
        hidden: {list: {int: [16, 512], log: true}, length: {int: [1, 3]}}
        dropout: {list: {float: [0.0, 0.5]}, length: hidden}          as long as `hidden`
      cnn: {channels: {choice: [8, 16, 32]}}
    optimizer:
      lr: {float: [1.0e-4, 1.0], log: true}                           not an option: asked whatever is chosen
      sgd: {momentum: {float: [0.0, 0.99]}}

Parameter names are paths in this tree (`optimizer.sgd.momentum`); a config key is that path without the options
(`optimizer.momentum`). A group with a single option is fixed and no parameter.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial

from studyloom.errors import ConfigError
from studyloom.space.distributions import count_values, nth_value
from studyloom.text import is_scalar


@dataclass(frozen=True)
class Leaf:
    """One value, written to the config at `key`."""

    name: str
    key: str
    distribution: BaseDistribution


@dataclass(frozen=True)
class ListLeaf:
    """A list of values; `length` is a distribution, or the key of the list whose length this one shares."""

    name: str
    key: str
    item: BaseDistribution
    length: IntDistribution | str


@dataclass(frozen=True)
class Group:
    """A choice among the options of a config group, each with the nodes that it opens."""

    name: str
    key: str
    options: Mapping[str, tuple["Node", ...]]

    @property
    def distribution(self) -> CategoricalDistribution:
        return CategoricalDistribution(tuple(self.options))


Node = Leaf | ListLeaf | Group


@dataclass(frozen=True)
class Parameter:
    """What a walk asks for: a parameter, its distribution, and the place in the config that it decides."""

    name: str
    distribution: BaseDistribution
    key: str
    role: Literal["option", "value", "length", "item"]
    index: int = 0


@dataclass(frozen=True)
class Point:
    """A place in the space: `choices` by config group, `values` by config key, `params` as Optuna stores them."""

    choices: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    nodes: tuple[Node, ...]

    def walk(self, decide: Callable[[Parameter], Any]) -> Point:
        """Goes from the root to a point; `decide` answers each parameter that the answers before it have opened."""
        point = Point()

        def ask(parameter: Parameter) -> Any:
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
                            option = ask(Parameter(name, node.distribution, key, "option"))
                        point.choices[group_of(key)] = option
                        visit(options[option])
                    case Leaf(name, key, distribution):
                        point.values[key] = ask(Parameter(name, distribution, key, "value"))
                    case ListLeaf(name, key, item, length):
                        if isinstance(length, str):
                            count = len(point.values[length])
                        elif length.low == length.high:
                            count = length.low
                        else:
                            count = ask(Parameter(f"{name}.length", length, key, "length"))
                        point.values[key] = [
                            ask(Parameter(f"{name}.{i}", item, key, "item", i))
                            for i in range(count)
                        ]

        visit(self.nodes)
        return point

    def suggest(self, trial: BaseTrial) -> Point:
        """The point that the trial's sampler chooses; one `suggest_*` call a parameter."""

        def decide(parameter: Parameter) -> Any:
            name, distribution = parameter.name, parameter.distribution
            match distribution:
                case IntDistribution(low=low, high=high, step=step, log=log):
                    return trial.suggest_int(name, low, high, step=step, log=log)
                case FloatDistribution(low=low, high=high, step=step, log=log):
                    return trial.suggest_float(name, low, high, step=step, log=log)
                case CategoricalDistribution(choices=choices):
                    return trial.suggest_categorical(name, choices)
                case _:
                    raise AssertionError(distribution)

        return self.walk(decide)

    def default(self, choices: Mapping[str, str], lookup: Callable[[str], Any]) -> Point:
        """The point at which a composed config stands: its group choices and its values by key."""

        def decide(parameter: Parameter) -> Any:
            if parameter.role == "option":
                return choices[group_of(parameter.key)]
            value = lookup(parameter.key)
            if parameter.role == "length":
                return len(value)
            return (
                value[parameter.index]
                if parameter.role == "item" and not is_scalar(value)
                else value
            )

        return self.walk(decide)

    def size(self) -> float:
        """The number of points; infinite as soon as one range is continuous, or where no float is as large."""

        def of(nodes: Sequence[Node]) -> float:
            total = 1.0
            for node in nodes:
                match node:
                    case Group(options=options):
                        total *= sum(of(opened) for opened in options.values())
                    case Leaf(distribution=distribution):
                        total *= count_values(distribution)
                    case ListLeaf(key=key, length=length) if not isinstance(length, str):
                        shared = [
                            count_values(other.item)
                            for other in nodes
                            if isinstance(other, ListLeaf) and other.length == key
                        ]
                        each = math.prod([count_values(node.item), *shared])
                        total *= sum(
                            each**n for n in range(length.low, length.high + 1, length.step)
                        )
            return total

        try:
            return of(self.nodes)
        except OverflowError:
            return math.inf

    def points(self) -> Iterator[Point]:
        """Every point of a finite space, depth first.

        Raises:
            SpaceError: every continuous range, named; a grid needs a `step` or a `choice` there.
        """
        asked = [node for _, nodes in self.branches() for node in nodes]
        if endless := [
            node.name
            for node in asked
            if isinstance(node, Leaf | ListLeaf)
            and math.isinf(count_values(item_distribution(node)))
        ]:
            way_out = "a grid cannot enumerate a continuous range; give it a step, or a choice"
            raise ConfigError([f"space.{name}: {way_out}" for name in endless])
        trail: list[int] = []  # the answer, by index, at each depth of the current walk
        while True:
            widths: list[int] = []

            def decide(parameter: Parameter, widths: list[int] = widths) -> Any:
                depth = len(widths)
                widths.append(int(count_values(parameter.distribution)))
                if depth == len(trail):
                    trail.append(0)
                return nth_value(parameter.distribution, trail[depth])

            yield self.walk(decide)
            while trail and trail[-1] + 1 == widths[len(trail) - 1]:
                trail.pop()
            if not trail:
                return
            trail[-1] += 1

    @functools.cached_property
    def grid(self) -> tuple[Point, ...]:
        """All points of a finite space, kept, since each trial has a sampler of its own: 10 000 take 0.2 s."""
        return tuple(self.points())

    def branches(self) -> Iterator[tuple[dict[str, str], tuple[Node, ...]]]:
        """The group choices that lead to each part of the tree, with the leaves asked there; the root first."""

        def below(
            choices: dict[str, str], nodes: Sequence[Node]
        ) -> Iterator[tuple[dict[str, str], tuple[Node, ...]]]:
            yield choices, tuple(node for node in nodes if not isinstance(node, Group))
            for node in nodes:
                if isinstance(node, Group):
                    for option, opened in node.options.items():
                        yield from below({**choices, group_of(node.key): option}, opened)

        yield from below({}, self.nodes)

    def groups(self) -> Iterator[Group]:
        """Every group of the tree, outer before inner."""

        def below(nodes: Sequence[Node]) -> Iterator[Group]:
            for node in nodes:
                if isinstance(node, Group):
                    yield node
                    for opened in node.options.values():
                        yield from below(opened)

        yield from below(self.nodes)


def group_of(key: str) -> str:
    """The Hydra group of a config key: `model.block` is composed from `model/block`."""
    return key.replace(".", "/")


def item_distribution(node: Leaf | ListLeaf) -> BaseDistribution:
    """The distribution of a leaf's value, or of each item of a list."""
    return node.distribution if isinstance(node, Leaf) else node.item
