"""Objectives: what a trial executes.

An objective runs epoch by epoch and returns a value: it trains networks of PyTorch, or calls a
custom training loop or an Optuna objective.
"""

__all__ = [
    "jobs",
    "loop",
    "loop_run",
    "objective",
    "stream",
    "user_functions",
]
