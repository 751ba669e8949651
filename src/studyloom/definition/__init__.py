"""The study definition: from a config to objectives that can be evaluated.

It is validated as a whole before trial 0. An objective runs epoch by epoch and comes to a value;
the training of networks is one kind, and a loop of the user's own is another.
"""

__all__ = [
    "custom_loop",
    "definition",
    "jobs",
    "loop",
    "network",
    "objective",
    "preflight",
    "prepare",
    "python_study",
    "rule",
    "run",
    "scale",
    "sources",
    "user_functions",
    "validation",
]
