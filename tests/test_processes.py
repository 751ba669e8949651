"""Worker ids, whether a process of this host still runs, and processes that end with their parent:
by Linux's ways, and by the plain ones."""

import os
import socket
import subprocess
import sys

import psutil
import pytest
from commands import environment
from live_processes import gone, until

from studyloom import processes
from studyloom.processes import host_id, is_alive, worker_id

WAYS = [*(["Linux's"] if processes.LINUX else []), "plain"]


def test_a_process_is_alive_until_it_has_ended_though_nobody_has_waited_for_it():
    assert is_alive(os.getpid())
    assert is_alive(1)
    process = subprocess.Popen(["sleep", "60"])
    assert is_alive(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(process.pid)
    process.wait()
    assert not is_alive(process.pid)


@pytest.mark.parametrize("way", WAYS)
def test_every_process_of_a_host_knows_it_by_the_same_id_and_containers_differ(way, monkeypatch):
    monkeypatch.setattr(processes, "LINUX", way != "plain")
    here = host_id.__wrapped__()
    code = "from studyloom.processes import worker_id; print(worker_id(4711))"
    variables = environment(STUDYLOOM_PORTABLE="1" if way == "plain" else "")
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
from studyloom.processes import open_streams
open_streams()
print("printed")
print(sys.stdin.read() == "", file=sys.stderr)
with open("file", "w") as file:
    assert file.fileno() > 2
import subprocess
sys.exit(subprocess.call([sys.executable, "-c", "import sys; assert sys.stdout and sys.stderr"]))
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_standard_stream_that_was_closed_is_no_file_that_is_opened_next(closed, tmp_path):
    command = f'exec "$0" -c "$1" {closed}'
    variables = environment()
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, CLOSED], cwd=tmp_path, env=variables
    )
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == ""


CHILD = "import os, time; from studyloom.processes import *; end_with({parent}); time.sleep(600)"
PARENT = """
import os, subprocess, sys, time
from studyloom.processes import leading_group

child = subprocess.Popen([sys.executable, "-c", sys.argv[1].format(parent=os.getpid())])
with leading_group(["sleep", "600"]) as ended:
    ended.kill()
    ended.wait()
with leading_group(["sleep", "600"]) as group:
    print(child.pid, ended.pid, group.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("way", WAYS)
def test_a_child_and_a_group_end_with_a_parent_that_is_killed(way):
    variables = environment(STUDYLOOM_PORTABLE="1" if way == "plain" else "")
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as parent:
        child, ended, group = map(int, parent.stdout.readline().split())
        assert (gone(ended), gone(group)) == (True, False)
        guards = [each.pid for each in psutil.Process(parent.pid).children()]
        parent.kill()
    assert {child, group} <= {*guards}
    until(lambda: all(map(gone, guards)), 10)
