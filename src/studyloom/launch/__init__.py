"""Launchers: how the workers of a study are started, kept alive on the right device, and stopped.

A worker is the same command with `launcher=join`, or a fork of that command. Workers coordinate
only through the database. The process that started a worker renews the lease of its trial.
"""

from importlib import import_module
from typing import Any

__all__ = [
    "command",
    "fork_server",
    "line",
    "local",
    "prepare",
    "process_group",
    "ranks",
    "ray",
    "slurm",
    "supervisor",
    "task",
    "watch",
]

# What configs name: `_target_: studyloom.launch.Local`. Imported when used, since it takes torch.
LAUNCHERS = {"Join": "local", "Local": "local", "Ray": "ray", "Slurm": "slurm"}


def __getattr__(name: str) -> Any:
    if name not in LAUNCHERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{LAUNCHERS[name]}"), name)
