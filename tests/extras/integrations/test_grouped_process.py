"""A command of the user's: nothing is left of it."""

import os
import time
from pathlib import Path

import pytest

from studyloom.extras.integrations.grouped_process import GroupedProcess
from studyloom.processes import is_alive


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="processes are read in /proc")
@pytest.mark.parametrize("pidfd", ["there", "absent"])
def test_nothing_is_left_of_a_command_that_began_a_session(pidfd, tmp_path, monkeypatch):
    """Also where Python was built without os.pidfd_open, as conda's 3.11."""
    if pidfd == "absent":
        monkeypatch.delattr(os, "pidfd_open")
    told = tmp_path / "pid"
    script = f"setsid sh -c 'echo $$ >{told}.part; mv {told}.part {told}; exec sleep 60' & wait"
    with GroupedProcess(["sh", "-c", script], os.environ, tmp_path / "output") as process:
        while not told.exists():
            time.sleep(0.01)
    pid = int(Path(told).read_text())
    end = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_alive(pid)
    assert process.code is not None
