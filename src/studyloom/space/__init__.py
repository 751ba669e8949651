"""The search space: a tree in which nesting is the condition, its language, and its grid.

A parameter's name is its path in the tree. Optuna's distributions come from here; what the keys
mean in a config is checked in `question`.
"""

__all__ = ["distributions", "grid", "language", "outline", "tree"]
