"""Looks at real processes, and waits for them."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from studyloom.processes import is_alive

Value = TypeVar("Value")
linux = pytest.mark.skipif(
    not Path("/proc/self/cmdline").exists(), reason="processes are looked up in /proc"
)


def until(condition: Callable[[], Value], seconds: float = 120.0, pause: float = 0.02) -> Value:
    """Waits until a condition returns something true, and returns that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(pause)
    raise AssertionError("it did not happen in time")


def gone(pid: int) -> bool:
    return not is_alive(pid)


def processes_of(run_dir: Path) -> list[int]:
    """The processes of a run: its command, the fork server, and the workers."""
    pids = (int(process.name) for process in Path("/proc").glob("[0-9]*"))
    return [pid for pid in pids if f"run_dir={run_dir}".encode() in command_of(pid)]


def command_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def wait_for_zombie(pid: int) -> None:
    """Waits until a child of this process has ended, and leaves it as a zombie."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def imitate_killpg_of_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `os.killpg` raise PermissionError for a group of zombies, as XNU's `killpg1` does."""
    killpg = os.killpg

    def killpg_of_macos(group: int, number: int) -> None:
        members = [pid for pid in psutil.pids() if is_in_group(pid, group)]
        if members and all(map(gone, members)):
            raise PermissionError(1, "Operation not permitted")
        killpg(group, number)

    monkeypatch.setattr(os, "killpg", killpg_of_macos)


def is_in_group(pid: int, group: int) -> bool:
    try:
        return os.getpgid(pid) == group
    except ProcessLookupError:
        return False
