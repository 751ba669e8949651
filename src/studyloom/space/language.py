"""The language of search spaces: from a tree, as YAML gives it, to a Space, with all mistakes told at once."""

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from studyloom.errors import ConfigError
from studyloom.space.tree import Group, Leaf, ListLeaf, Node, Space, group_of
from studyloom.text import is_scalar, kind_of, nearest

KEYS = {
    "int": ("log", "step"),
    "float": ("log", "step"),
    "choice": (),
    "list": ("length",),
}  # beside the kind itself


def parse_space(tree: Mapping[str, Any], options: Callable[[str], Sequence[str]]) -> Space:
    """The space that a tree describes.

    Args:
        tree: plain mappings, as YAML gives them.
        options: the options of a Hydra group (`model/block`), empty where there is no such group.

    Raises:
        SpaceError: all mistakes of the tree itself; whether its keys exist in the config is checked elsewhere.
    """
    mistakes: list[str] = []

    def nodes(tree: Mapping[Any, Any], name: str, key: str) -> list[Node]:
        tree = {str(child): spec for child, spec in tree.items()}
        known = options(group_of(key)) if key else []
        chosen: dict[str, tuple[Node, ...]] = {}
        found: list[Node] = []
        for child, spec in tree.items():
            child_name, child_key = (
                f"{above}.{child}" if above else child for above in (name, key)
            )
            if child in known and (spec is None or isinstance(spec, Mapping)):
                chosen[child] = tuple(nodes(spec or {}, child_name, key))
            elif known and child not in known and not (isinstance(spec, Mapping) and spec):
                mistakes.append(
                    f"space.{child_name}: {spec!r} is no range, and {child} is no option of {group_of(key)}, which has "
                    f"{', '.join(known)}{nearest(child, known)}"
                )
            elif isinstance(spec, Mapping) and any(kind in spec for kind in KEYS):
                found += leaf(child, spec, child_name, child_key, tree)
            elif isinstance(spec, Mapping) and spec:
                found += nodes(spec, child_name, child_key)
            else:
                mistakes.append(
                    f"space.{child_name}: {spec!r} is no range; write {{int: [low, high]}}, {{float: [low, high]}}, "
                    f"{{choice: [a, b]}} or {{list: …, length: …}}"
                )
        return [Group(name, key, chosen), *found] if chosen else found

    def leaf(
        child: str, spec: Mapping[str, Any], name: str, key: str, siblings: Mapping[str, Any]
    ) -> list[Node]:
        if group := options(group_of(key)):
            written = ", ".join(f"{option}: …" for option in group)
            mistakes.append(
                f"space.{name}: {key} is a config group; its options open what is below: {{{written}}}"
            )
            return []
        if "list" not in spec:
            distribution = parse_distribution(spec, name, mistakes)
            return [Leaf(name, key, distribution)] if distribution is not None else []
        if not check_keys(spec, name, mistakes):
            return []
        item = spec["list"]
        if not (isinstance(item, Mapping) and any(kind in item for kind in KEYS if kind != "list")):
            mistakes.append(f"space.{name}.list: {item!r} is no int, float or choice")
            return []
        distribution = parse_distribution(item, f"{name}.list", mistakes)
        length = parse_length(spec.get("length"), child, name, siblings)
        if distribution is None or length is None:
            return []
        return [
            ListLeaf(
                name,
                key,
                distribution,
                key[: -len(child)] + length if isinstance(length, str) else length,
            )
        ]

    def parse_length(
        length: Any, child: str, name: str, siblings: Mapping[str, Any]
    ) -> IntDistribution | str | None:
        if isinstance(length, str):
            earlier = list(siblings)[: list(siblings).index(child)]
            lists = [
                k for k in earlier if isinstance(siblings[k], Mapping) and "list" in siblings[k]
            ]
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
        mistakes.append(
            f"space.{name}.length: {length!r} is no whole number, {{int: [low, high]}} or name of a list"
        )
        return None

    space = Space(tuple(nodes(tree, "", "")))
    mistakes += asked_twice(space.nodes, {})
    if mistakes:
        raise ConfigError(mistakes)
    return space


def asked_twice(nodes: Sequence[Node], above: Mapping[str, str]) -> list[str]:
    """The leaves whose key a leaf outside their option decides as well; `above` has the names of those by key."""
    leaves = [node for node in nodes if isinstance(node, Leaf | ListLeaf)]
    mistakes = [
        f"space.{leaf.name}: space.{above[leaf.key]} decides {leaf.key} too, whatever is chosen; keep one of them"
        for leaf in leaves
        if leaf.key in above
    ]
    for node in nodes:
        if isinstance(node, Group):
            for opened in node.options.values():
                mistakes += asked_twice(
                    opened, {**above, **{leaf.key: leaf.name for leaf in leaves}}
                )
    return mistakes


def check_keys(spec: Mapping[str, Any], name: str, mistakes: list[str]) -> bool:
    """Whether a leaf has the keys of one kind and no others."""
    kind, *others = [kind for kind in KEYS if kind in spec]
    allowed = (kind, *KEYS[kind])
    unknown = others or [key for key in spec if key not in allowed]
    for key in unknown:
        mistakes.append(
            f"space.{name}.{key}: no key of a range by {kind}, which has {', '.join(allowed)}{nearest(key, allowed)}"
        )
    return not unknown


def parse_distribution(
    spec: Mapping[str, Any], name: str, mistakes: list[str]
) -> BaseDistribution | None:
    """The distribution of an int, a float or a choice, or None with its mistakes appended."""
    if not check_keys(spec, name, mistakes):
        return None
    if "choice" in spec:
        return parse_choice(spec["choice"], f"space.{name}.choice", mistakes)
    before = len(mistakes)
    number = "int" if "int" in spec else "float"
    bounds, log, step = spec[number], spec.get("log", False), spec.get("step")
    types = (int,) if number == "int" else (int, float)
    where = f"space.{name}.{number}"
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        mistakes.append(f"{where}: {bounds!r} is no range; write [low, high]")
        return None
    low, high = bounds
    for value in (*bounds, *([] if step is None else [step])):
        if type(value) not in types or not is_finite(value):
            mistakes.append(
                f"{where}: {value!r} is {kind_of(value)}; {number} wants finite numbers of its kind"
            )
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
    if step is not None:  # the last step below the high end is the highest value
        exact = [Decimal(str(value)) for value in (low, high, step)]
        high = type(high)(exact[0] + (exact[1] - exact[0]) // exact[2] * exact[2])
    if number == "int":
        return IntDistribution(low, high, log=log, step=1 if step is None else step)
    return FloatDistribution(float(low), float(high), log=log, step=step)


def parse_choice(choices: Any, where: str, mistakes: list[str]) -> CategoricalDistribution | None:
    if not isinstance(choices, list | tuple) or not choices:
        mistakes.append(f"{where}: {choices!r} holds nothing to choose from; write [a, b, …]")
        return None
    odd = [
        value
        for value in choices
        if not is_scalar(value) or (isinstance(value, float) and not is_finite(value))
    ]
    for value in odd:
        mistakes.append(
            f"{where}: {value!r} is {kind_of(value)}; choices are texts, finite numbers, true, false and null"
        )
    if not odd and len(set(choices)) < len(choices):  # 1, 1.0 and true are one value to Optuna
        mistakes.append(f"{where}: {choices!r} names a value twice")
    return (
        CategoricalDistribution(tuple(choices))
        if not odd and len(set(choices)) == len(choices)
        else None
    )


def is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds, and no database column
        return False
