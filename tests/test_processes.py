"""Worker ids, and whether a process of this host still runs."""

import os
import socket
import subprocess
import sys

import pytest

from studyloom import processes
from studyloom.processes import host_id, is_alive, worker_id


@pytest.fixture
def running():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_process_is_alive_until_it_has_ended(running):
    assert is_alive(running.pid)
    running.kill()
    running.wait()
    assert not is_alive(running.pid)


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="processes are read in /proc")
def test_a_process_that_has_ended_is_not_alive_though_nobody_has_waited_for_it(running):
    running.kill()
    os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(running.pid)


def test_this_process_and_its_parent_are_alive():
    assert is_alive(os.getpid())
    assert is_alive(os.getppid())


def test_a_process_of_another_user_is_alive(monkeypatch):
    def refuse(pid, number):
        raise PermissionError

    monkeypatch.setattr(processes.os, "kill", refuse)
    assert is_alive(1)


def test_asking_sends_no_signal(running, monkeypatch):
    sent = []
    with monkeypatch.context() as patch:  # the fixture needs the real one to end its process
        patch.setattr(processes.os, "kill", lambda pid, number: sent.append((pid, number)))
        assert is_alive(running.pid)
    assert sent == [(running.pid, 0)]


def test_a_worker_id_is_the_host_and_the_process():
    assert worker_id(4711) == f"{host_id()}:4711"
    assert host_id().startswith(socket.gethostname())


def test_every_process_of_a_host_knows_it_by_the_same_id():
    code = "from studyloom.processes import worker_id; print(worker_id(4711))"
    others = [subprocess.check_output([sys.executable, "-c", code], text=True) for _ in range(2)]
    assert others == [f"{worker_id(4711)}\n"] * 2


def test_outside_linux_the_id_is_the_hosts_name(monkeypatch):
    def absent(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(processes.Path, "read_text", absent)
    assert host_id.__wrapped__() == socket.gethostname()


@pytest.mark.skipif(not os.path.exists("/proc/self/ns/pid"), reason="only Linux has namespaces")
def test_containers_that_share_a_name_have_different_ids(monkeypatch):
    here = host_id.__wrapped__()
    monkeypatch.setattr(processes.os, "readlink", lambda path: "pid:[1]")
    elsewhere = host_id.__wrapped__()
    assert elsewhere != here
    assert elsewhere.rpartition("-")[0] == here.rpartition("-")[0] == socket.gethostname()


@pytest.mark.parametrize(("body", "closed"), [("os.closerange(3, 1000)", True), ("pass", False)])
def test_descriptors_that_were_closed_by_others_are_noticed(body, closed):
    code = (
        "import os, studyloom.processes as processes\n"
        f"try:\n    with processes.descriptors_kept():\n        {body}\n"
        "except processes.DescriptorsClosed:\n    print(True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ("True\n" if closed else "")
