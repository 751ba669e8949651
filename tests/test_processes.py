"""Worker ids, and whether a process of this host still runs."""

import os
import socket
import subprocess
import sys

from studyloom import processes
from studyloom.processes import host_id, is_alive, worker_id


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


def test_every_process_of_a_host_knows_it_by_the_same_id_and_containers_differ(monkeypatch):
    assert worker_id(4711) == f"{host_id()}:4711"
    code = "from studyloom.processes import worker_id; print(worker_id(4711))"
    other = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert other == f"{worker_id(4711)}\n"
    here = host_id.__wrapped__()
    monkeypatch.setattr(processes.os, "readlink", lambda path: "pid:[1]")
    elsewhere = host_id.__wrapped__()
    assert elsewhere != here
    assert elsewhere.rpartition("-")[0] == here.rpartition("-")[0] == socket.gethostname()
