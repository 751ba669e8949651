"""Launchers: how the workers of a study are started, kept alive on the right device, and stopped.

A worker is the same command with `launcher=join`, or a fork of that command. Workers coordinate
only through the database. The process that started a worker renews the lease of its trial.
"""

from typing import Any

__all__ = [
    "Join",
    "Launcher",
    "Local",
    "forks",
    "line",
    "local",
    "process",
    "search",
    "supervisor",
    "task",
]


def __getattr__(name: str) -> Any:
    """Imports a launcher that a config names when it is used, since it needs torch."""
    if name not in ("Join", "Launcher", "Local"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from studyloom.launch.local import Join, Local
    from studyloom.launch.task import Launcher

    return {"Join": Join, "Launcher": Launcher, "Local": Local}[name]
