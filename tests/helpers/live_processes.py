"""Looks at real processes, and waits for them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

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
