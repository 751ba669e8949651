"""Worker ids, whether a process of this host still runs, and processes that end with their parent.

Each is tested as on Linux and as on other systems.
"""

import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest
from commands import environment
from live_processes import gone, imitate_killpg_of_macos, until, wait_for_zombie

from studyloom import processes
from studyloom.processes import host_id, is_alive, signal_group, worker_id

SYSTEMS = ["linux", "other"] if processes.LINUX else ["other"]


def test_a_zombie_is_not_alive():
    assert is_alive(os.getpid())
    assert is_alive(1)
    process = subprocess.Popen(["sleep", "60"])
    assert is_alive(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(process.pid)
    process.wait()
    assert not is_alive(process.pid)


def test_a_signal_to_a_group_of_zombies_does_nothing_as_on_macos(monkeypatch):
    imitate_killpg_of_macos(monkeypatch)
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    signal_group(process.pid, signal.SIGTERM)
    wait_for_zombie(process.pid)
    signal_group(process.pid, signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM
    signal_group(process.pid, signal.SIGTERM)  # there is no such group any more


@pytest.mark.parametrize("system", SYSTEMS)
def test_processes_of_a_host_have_one_host_id_and_containers_differ(system, monkeypatch):
    monkeypatch.setattr(processes, "LINUX", system == "linux")
    here = host_id.__wrapped__()
    code = "from studyloom.processes import worker_id; print(worker_id(4711))"
    variables = environment(STUDYLOOM_PORTABLE="1" if system == "other" else "")
    other = subprocess.check_output([sys.executable, "-c", code], text=True, env=variables)
    assert other == f"{here}:4711\n"
    monkeypatch.setattr(processes.os, "readlink", lambda path: "pid:[1]")
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: 1.0)
    elsewhere = host_id.__wrapped__()
    assert elsewhere != here
    assert elsewhere.rpartition("-")[0] == here.rpartition("-")[0] == socket.gethostname()
    assert worker_id(4711) == f"{host_id()}:4711"


CLOSED = """
import sys
from studyloom.processes import open_closed_streams
open_closed_streams()
print("printed")
print(sys.stdin.read() == "", file=sys.stderr)
with open("file", "w") as file:
    assert file.fileno() > 2
import subprocess
sys.exit(subprocess.call([sys.executable, "-c", "import sys; assert sys.stdout and sys.stderr"]))
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_an_opened_file_does_not_take_the_number_of_a_closed_stream(closed, tmp_path):
    command = f'exec "$0" -c "$1" {closed}'
    variables = environment()
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, CLOSED], cwd=tmp_path, env=variables
    )
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == ""


CHILD = """
import time
from studyloom.processes import end_with_parent
end_with_parent({parent})
time.sleep(600)
"""
PARENT = """
import os, subprocess, sys, time
from studyloom.processes import running_process_group

child = subprocess.Popen([sys.executable, "-c", sys.argv[1].format(parent=os.getpid())])
with running_process_group(["sleep", "600"]) as ended:
    ended.kill()
    ended.wait()
with running_process_group(["sleep", "600"]) as group:
    print(child.pid, ended.pid, group.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_child_and_a_process_group_end_with_a_killed_parent(system):
    variables = environment(STUDYLOOM_PORTABLE="1" if system == "other" else "")
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as parent:
        child, ended, group = map(int, parent.stdout.readline().split())
        assert (gone(ended), gone(group)) == (True, False)
        children = [process.pid for process in psutil.Process(parent.pid).children()]
        parent.kill()
    assert {child, group} <= {*children}
    until(lambda: all(map(gone, children)), 10)
