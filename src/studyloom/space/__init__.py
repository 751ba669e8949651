"""The search space: a tree in which nesting is the condition, its language, and its grid.

A hyperparameter's name is its path in the tree. Optuna's distributions are used here; whether the
keys of a space exist in the config is checked in `definition`.
"""

__all__ = ["language", "outline", "ranges", "samplers", "tree"]
