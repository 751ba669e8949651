"""Search spaces over some groups, for the tests of their language and its meaning."""

from studyloom.space.language import parse_space
from studyloom.space.tree import Space

GROUPS = {
    "model": ["mlp", "cnn"],
    "model/block": ["plain", "residual"],
    "model/block/gate": ["soft", "hard"],
    "optimizer": ["sgd", "adam"],
}
LR = {"float": [1e-4, 1.0], "log": True}


def space_of(tree: dict) -> Space:
    return parse_space(tree, lambda group: GROUPS.get(group, []))
