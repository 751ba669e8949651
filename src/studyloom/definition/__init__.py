"""The study definition: from a config to objectives that can be evaluated.

A definition is validated as a whole before trial 0. An objective runs epoch by epoch and returns a
value: it trains networks, or calls a custom training loop.
"""

__all__ = [
    "custom_loop",
    "defaults",
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
    "sources",
    "user_functions",
    "validation",
]
