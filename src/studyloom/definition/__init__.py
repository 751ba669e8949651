"""The study definition: model, data, search space and objective, made from a config.

A definition is validated as a whole before trial 0, and makes the objective of each trial.
"""

__all__ = [
    "custom_loop",
    "defaults",
    "definition",
    "network",
    "preflight",
    "prepare",
    "python_study",
    "validation",
]
