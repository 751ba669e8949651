"""A search space for people: the tree that `--dry-run` prints."""

import math
from collections.abc import Sequence

from optuna.distributions import IntDistribution
from rich.text import Text
from rich.tree import Tree

from studyloom.space.tree import (
    LARGEST_GRID,
    Group,
    ListNode,
    Node,
    Space,
    SuggestedSpace,
    ValueNode,
    describe,
)


def outline(space: Space) -> Tree:
    """Draws a space as a tree: its size, groups with options, hyperparameters with ranges."""
    size = space.size()
    if isinstance(space, SuggestedSpace):
        title = "space: what the objective suggests"
    elif math.isfinite(size):
        most = "at most " if space.relations and size > LARGEST_GRID else ""
        title = f"space: {most}{size:.0f} configuration{'' if size == 1 else 's'}"
    else:
        title = "space: infinitely many configurations"
    tree = Tree(Text(title, style="bold"))
    _add_nodes(tree, space.nodes, "")
    for relation in space.relations:
        tree.add(Text(f"where {relation}"))
    return tree


def _add_nodes(tree: Tree, nodes: Sequence[Node], prefix: str) -> None:
    for node in nodes:
        name = node.name.removeprefix(prefix)
        match node:
            case Group(options=options):
                title = name if len(options) > 1 else f"{name} (fixed)"
                branch = tree.add(Text(title, style="bold"))
                for option, children in options.items():
                    twig = branch.add(Text(option, style="cyan"))
                    _add_nodes(twig, children, f"{node.name}.{option}.")
            case ValueNode(distribution=distribution):
                tree.add(Text(f"{name}: {describe(distribution)}"))
            case ListNode(item=item, length=str(key)):
                other = key.rpartition(".")[2]
                tree.add(Text(f"{name}: list as long as {other}, each {describe(item)}"))
            case ListNode(item=item, length=length):
                assert isinstance(length, IntDistribution)
                long = f"of length {describe(length)}"
                tree.add(Text(f"{name}: list {long}, each {describe(item)}"))
