"""Workers: the processes that run trials, and the launchers that start and stop them.

A worker claims a slot, makes its trial and runs it; its Reporter stores each epoch, and renews the
claim. A worker is the same command with `launcher=join`, or a fork of that command. Workers
coordinate only through the database. A launcher keeps workers alive on the right device.
"""

from typing import Any

__all__ = [
    "Join",
    "Launcher",
    "Local",
    "begin_search",
    "callbacks",
    "driver",
    "failure_causes",
    "forks",
    "held_trial",
    "line",
    "local",
    "open_study",
    "prepare_search",
    "process",
    "provenance",
    "reporter",
    "slots",
    "stage",
    "stop_trial",
    "stopping",
    "supervisor",
    "task",
    "worker",
]


def __getattr__(name: str) -> Any:
    """Imports a launcher that a config names when it is used, since it needs torch."""
    if name not in ("Join", "Launcher", "Local"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from studyloom.worker.local import Join, Local
    from studyloom.worker.task import Launcher

    return {"Join": Join, "Launcher": Launcher, "Local": Local}[name]
