"""A search space for the eye: the tree that `--dry-run` prints."""

import math
from collections.abc import Sequence

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from rich.text import Text
from rich.tree import Tree

from studyloom.space.tree import Group, Leaf, ListLeaf, Node, Space
from studyloom.text import as_yaml


def outline(space: Space) -> Tree:
    """The space as a tree: groups with their options, leaves with their ranges, under its size."""
    size = space.size()
    many = (
        f"{size:.0f} point{'' if size == 1 else 's'}"
        if math.isfinite(size)
        else "infinitely many points"
    )
    tree = Tree(Text(f"space: {many}", style="bold"))
    _grow(tree, space.nodes, "")
    return tree


def _grow(tree: Tree, nodes: Sequence[Node], above: str) -> None:
    for node in nodes:
        name = node.name.removeprefix(above)
        match node:
            case Group(options=options):
                branch = tree.add(
                    Text(name if len(options) > 1 else f"{name} (fixed)", style="bold")
                )
                for option, opened in options.items():
                    _grow(branch.add(Text(option, style="cyan")), opened, f"{node.name}.{option}.")
            case Leaf(distribution=distribution):
                tree.add(Text(f"{name}: {describe(distribution)}"))
            case ListLeaf(item=item, length=length):
                long = (
                    f"as long as {length.rpartition('.')[2]}"
                    if isinstance(length, str)
                    else f"of length {describe(length)}"
                )
                tree.add(Text(f"{name}: list {long}, each {describe(item)}"))


def describe(distribution: BaseDistribution) -> str:
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
    raise AssertionError(distribution)
