"""The search space: a tree in which nesting is the condition, its language, and its grid.

A hyperparameter's name is its path in the tree. `rule` has the language of relations between
hyperparameters, limits of costs and the rule of the winner. Optuna's distributions are used here;
whether the keys of a space exist in the config is checked in `definition`.
"""

__all__ = ["drawing_configurations", "language", "outline", "ranges", "rule", "tree"]
