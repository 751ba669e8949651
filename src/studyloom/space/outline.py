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
    tree = Tree(Text(_describe_size(space), style="bold"))
    _add_nodes(tree, space.nodes, "")
    for relation in space.relations:
        tree.add(Text(f"where {relation}"))
    return tree


def _describe_size(space: Space) -> str:
    """Returns the title of the tree: the number of configurations."""
    if isinstance(space, SuggestedSpace):
        return "space: what the objective suggests"
    size = space.size()
    if math.isinf(size):
        return "space: infinitely many configurations"
    at_most = ""
    # The configurations of a small space are checked one by one. In a large one, those that break
    # relations are counted too.
    if space.relations and size > LARGEST_GRID:
        at_most = "at most "
    noun = "configurations"
    if size == 1:
        noun = "configuration"
    return f"space: {at_most}{size:.0f} {noun}"


def _add_nodes(tree: Tree, nodes: Sequence[Node], parent: str) -> None:
    """Adds nodes to a tree.

    Args:
        parent: the beginning of their names, which is not repeated, such as `model.mlp.`; empty at
            the root.
    """
    for node in nodes:
        name = node.name.removeprefix(parent)
        match node:
            case Group():
                _add_group(tree, node, name)
            case ValueNode(distribution=distribution):
                tree.add(Text(f"{name}: {describe(distribution)}"))
            case ListNode(item=item, length=length):
                tree.add(Text(f"{name}: list {_describe_length(length)}, each {describe(item)}"))


def _add_group(tree: Tree, group: Group, name: str) -> None:
    """Adds a group, its options below it, and below each option the nodes that it opens."""
    title = name
    if len(group.options) == 1:
        title = f"{name} (fixed)"
    group_tree = tree.add(Text(title, style="bold"))
    for option, children in group.options.items():
        option_tree = group_tree.add(Text(option, style="cyan"))
        _add_nodes(option_tree, children, f"{group.name}.{option}.")


def _describe_length(length: IntDistribution | str) -> str:
    """Describes the length of a list: "of length 1 … 3", "as long as hidden"."""
    if isinstance(length, str):
        other_list = length.rpartition(".")[2]
        return f"as long as {other_list}"
    return f"of length {describe(length)}"
