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

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

KINDS = ("int", "float", "choice", "list")


class SpaceError(ValueError):
    """Every mistake found in a search space, one line each."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = list(mistakes)


@dataclass(frozen=True)
class Leaf:
    """One value, written to the config at `key`."""

    name: str
    key: str
    distribution: BaseDistribution


@dataclass(frozen=True)
class Many:
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


Node = Leaf | Many | Group


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
                    case Many(name, key, item, length):
                        if isinstance(length, str):
                            count = len(point.values[length])
                        elif length.low == length.high:
                            count = length.low
                        else:
                            count = ask(Parameter(f"{name}.length", length, key, "length"))
                        point.values[key] = [ask(Parameter(f"{name}.{i}", item, key, "item", i)) for i in range(count)]

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
            return value[parameter.index] if parameter.role == "item" and not is_scalar(value) else value

        return self.walk(decide)

    def size(self) -> float:
        """The number of points; infinite as soon as one range is continuous."""

        def of(nodes: Sequence[Node]) -> float:
            total = 1.0
            for node in nodes:
                match node:
                    case Group(options=options):
                        total *= sum(of(opened) for opened in options.values())
                    case Leaf(distribution=distribution):
                        total *= count(distribution)
                    case Many(key=key, length=length) if not isinstance(length, str):
                        shared = [
                            count(other.item) for other in nodes if isinstance(other, Many) and other.length == key
                        ]
                        each = math.prod([count(node.item), *shared])
                        total *= sum(each**n for n in range(length.low, length.high + 1, length.step))
            return total

        return of(self.nodes)

    def points(self) -> Iterator[Point]:
        """Every point of a finite space, depth first.

        Raises:
            SpaceError: a continuous range, named; a grid needs a `step` or a `choice` there.
        """
        trail: list[int] = []  # the answer, by index, at each depth of the current walk
        while True:
            widths: list[int] = []

            def decide(parameter: Parameter, widths: list[int] = widths) -> Any:
                answers = enumerate_values(parameter)
                depth = len(widths)
                widths.append(len(answers))
                if depth == len(trail):
                    trail.append(0)
                return answers[trail[depth]]

            yield self.walk(decide)
            while trail and trail[-1] + 1 == widths[len(trail) - 1]:
                trail.pop()
            if not trail:
                return
            trail[-1] += 1

    def branches(self) -> Iterator[tuple[dict[str, str], tuple[Node, ...]]]:
        """The group choices that lead to each part of the tree, with the leaves asked there; the root first."""

        def below(choices: dict[str, str], nodes: Sequence[Node]) -> Iterator[tuple[dict[str, str], tuple[Node, ...]]]:
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


def is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def count(distribution: BaseDistribution) -> float:
    """How many values a distribution holds; infinite where it is continuous."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            return len(choices)
        case IntDistribution(low=low, high=high, step=step):
            return (high - low) // step + 1
        case FloatDistribution(low=low, high=high, step=step):
            if step is not None:
                return round((high - low) / step) + 1
            return 1 if low == high else math.inf
    raise AssertionError(distribution)


def enumerate_values(parameter: Parameter) -> Sequence[Any]:
    match parameter.distribution:
        case CategoricalDistribution(choices=choices):
            return choices
        case IntDistribution(low=low, high=high, step=step):
            return range(low, high + 1, step)
        case FloatDistribution(low=low, high=high, step=step) if step is not None:
            return [low + i * step for i in range(round((high - low) / step) + 1)]
        case FloatDistribution(low=low, high=high) if low == high:
            return [low]
    raise SpaceError([f"{parameter.name}: a grid cannot enumerate a continuous range; give it a step, or a choice"])


def complaint(distribution: BaseDistribution, value: Any) -> str | None:
    """Why a value is not one that the distribution can give, or None."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            if any(value == choice and type(value) is type(choice) for choice in choices):
                return None
            return f"is not among [{', '.join(map(str, choices))}]{nearest(value, choices)}"
        case IntDistribution(low=low, high=high, step=step):
            if type(value) is not int:
                return f"is {kind(value)}, and the space searches whole numbers there"
            if not low <= value <= high:
                return f"is outside its range [{low}, {high}]"
            return None if (value - low) % step == 0 else f"is not one of {low}, {low + step}, … {high}"
        case FloatDistribution(low=low, high=high, step=step):
            if type(value) not in (int, float):
                return f"is {kind(value)}, and the space searches numbers there"
            if not low <= value <= high:
                return f"is outside its range [{low:g}, {high:g}]"
            steps = (value - low) / step if step is not None else 0.0
            return None if abs(steps - round(steps)) < 1e-8 else f"is not one of {low:g}, {low + (step or 0):g}, …"
    raise AssertionError(distribution)


def kind(value: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
    return names.get(type(value), "a list" if isinstance(value, Sequence) else "a mapping")


def nearest(name: Any, names: Sequence[Any]) -> str:
    """`; did you mean x?` where one of the names is close to the one given, else nothing."""
    close = get_close_matches(str(name), [str(other) for other in names], n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def parse(tree: Mapping[str, Any], options: Callable[[str], Sequence[str]]) -> Space:
    """The space that a tree describes.

    Args:
        tree: plain mappings, as YAML gives them.
        options: the options of a Hydra group (`model/block`), empty where there is no such group.

    Raises:
        SpaceError: all mistakes of the tree itself; whether its keys exist in the config is checked elsewhere.
    """
    mistakes: list[str] = []

    def leaf(spec: Mapping[str, Any], name: str, key: str, siblings: Mapping[str, Any]) -> list[Node]:
        kinds = [k for k in KINDS if k in spec]
        allowed = {"choice": (), "list": ("length",), "int": ("log", "step"), "float": ("log", "step")}[kinds[0]]
        unknown = [k for k in spec if k not in (*allowed, kinds[0])]
        if len(kinds) > 1 or unknown:
            for other in unknown or kinds[1:]:
                mistakes.append(
                    f"space.{name}.{other}: not a key of a {kinds[0]}, which has {', '.join((kinds[0], *allowed))}"
                    + nearest(other, allowed)
                )
            return []
        if kinds[0] != "list":
            distribution = parse_distribution(spec, name, mistakes)
            return [Leaf(name, key, distribution)] if distribution is not None else []
        item = spec["list"]
        if not (isinstance(item, Mapping) and any(k in item for k in KINDS[:3])):
            mistakes.append(f"space.{name}.list: {item!r} is no int, float or choice")
            return []
        distribution = parse_distribution(item, f"{name}.list", mistakes)
        length = parse_length(spec.get("length"), name, siblings)
        if distribution is None or length is None:
            return []
        return [Many(name, key, distribution, f"{parent(key)}{length}" if isinstance(length, str) else length)]

    def parse_length(length: Any, name: str, siblings: Mapping[str, Any]) -> IntDistribution | str | None:
        if isinstance(length, str):
            earlier = list(siblings)[: list(siblings).index(name.rpartition(".")[2])]
            lists = [k for k in earlier if isinstance(siblings[k], Mapping) and "list" in siblings[k]]
            if length in lists and not isinstance(siblings[length].get("length"), str):
                return length
            mistakes.append(
                f"space.{name}.length: {length!r} is no list of its own length above it"
                f" ({', '.join(lists) or 'there is none'}){nearest(length, lists)}"
            )
            return None
        if type(length) is int and length >= 1:
            return IntDistribution(length, length)
        if isinstance(length, Mapping) and "int" in length:
            distribution = parse_distribution(length, f"{name}.length", mistakes)
            if isinstance(distribution, IntDistribution) and distribution.low < 1:
                mistakes.append(f"space.{name}.length: {distribution.low} is below 1")
            return distribution if isinstance(distribution, IntDistribution) else None
        mistakes.append(f"space.{name}.length: {length!r} is no whole number, {{int: [low, high]}} or name of a list")
        return None

    def nodes(tree: Any, name: str, key: str) -> list[Node]:
        if not isinstance(tree, Mapping):
            mistakes.append(
                f"space.{name}: {tree!r} is no range; write {{int: [low, high]}}, {{float: [low, high]}}, "
                f"{{choice: [a, b]}} or {{list: …, length: …}}"
            )
            return []
        found: list[Node] = []
        known = options(group_of(key)) if key else []
        chosen: dict[str, tuple[Node, ...]] = {}
        for child, spec in tree.items():
            child = str(child)
            child_name = f"{name}.{child}" if name else child
            child_key = f"{key}.{child}" if key else child
            if child in known:
                chosen[child] = tuple(nodes(spec or {}, child_name, key))
            elif isinstance(spec, Mapping) and any(k in spec for k in KINDS):
                found += leaf(spec, child_name, child_key, tree)
            elif known and not isinstance(spec, Mapping):
                mistakes.append(
                    f"space.{child_name}: no option of {group_of(key)}, which has {', '.join(known)}"
                    f"{nearest(child, known)}"
                )
            else:
                found += nodes(spec, child_name, child_key)
        return [Group(name, key, chosen), *found] if chosen else found

    space = Space(tuple(nodes(tree, "", "")))
    if mistakes:
        raise SpaceError(mistakes)
    return space


def parent(key: str) -> str:
    """`model.` for `model.hidden`, empty at the root."""
    return key[: key.rfind(".") + 1]


def parse_distribution(spec: Mapping[str, Any], name: str, mistakes: list[str]) -> BaseDistribution | None:
    """The distribution of a leaf, or None with its mistakes appended."""
    before = len(mistakes)
    if "choice" in spec:
        choices = spec["choice"]
        if not isinstance(choices, list | tuple) or not choices:
            mistakes.append(f"space.{name}.choice: {choices!r} holds nothing to choose from; write [a, b, …]")
            return None
        for value in choices:
            if not is_scalar(value):
                mistakes.append(f"space.{name}.choice: {value!r} is {kind(value)}; choices are plain values")
        if len({(type(value), value) for value in choices if is_scalar(value)}) < len(choices) and before == len(
            mistakes
        ):
            mistakes.append(f"space.{name}.choice: {choices!r} names a value twice")
        return CategoricalDistribution(tuple(choices)) if before == len(mistakes) else None

    number = "int" if "int" in spec else "float"
    bounds, log, step = spec[number], spec.get("log", False), spec.get("step")
    types = (int,) if number == "int" else (int, float)
    where = f"space.{name}.{number}"
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        mistakes.append(f"{where}: {bounds!r} is no range; write [low, high]")
        return None
    low, high = bounds
    for value in (*bounds, *([] if step is None else [step])):
        if type(value) not in types or not math.isfinite(value):
            mistakes.append(f"{where}: {value!r} is {kind(value)}; {number} wants finite numbers of its kind")
    if type(log) is not bool:
        mistakes.append(f"space.{name}.log: {log!r} is neither true nor false")
    if before < len(mistakes):
        return None
    if low > high:
        mistakes.append(f"{where}: the low end {low} is above the high end {high}")
    if log and low <= 0:
        mistakes.append(f"{where}: a log range cannot start at {low}; start above 0, or drop log")
    if log and step is not None:
        mistakes.append(f"space.{name}.step: {step} does not go with log: true; drop one of them")
    if step is not None and step <= 0:
        mistakes.append(f"space.{name}.step: {step} is not above 0")
    elif step is not None and low <= high and step > high - low > 0:
        mistakes.append(f"space.{name}.step: {step} is wider than the range [{low}, {high}]")
    if before < len(mistakes):
        return None
    if number == "int":
        return IntDistribution(low, high, log=log, step=1 if step is None else step)
    return FloatDistribution(float(low), float(high), log=log, step=step)
