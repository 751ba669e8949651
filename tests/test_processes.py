"""Worker ids, and whether a process of this host still runs."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from studyloom import processes
from studyloom.processes import GroupedProcess, Sightings, host_id, is_alive, worker_id


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


def test_what_is_seen_again_is_remembered_with_the_time_that_it_was_seen():
    now = [10.0]
    sightings = Sightings(lambda: now[0])
    assert sightings.look({"a": 1}) == {"a": (1, 0.0)}
    now[0] = 15.0
    assert sightings.look({"a": 2, "b": 3}) == {"a": (1, 5.0), "b": (3, 0.0)}
    now[0] = 25.0
    assert sightings.look({"a": 1, "b": 3}, most=4.0) == {"a": (1, 9.0), "b": (3, 4.0)}
    assert sightings.look({"b": 3}) == {"b": (3, 4.0)}
    assert sightings.look({"a": 1}) == {"a": (1, 0.0)}


@pytest.mark.parametrize(("body", "closed"), [("os.closerange(3, 1000)", True), ("pass", False)])
def test_descriptors_that_were_closed_by_others_are_noticed(body, closed):
    code = (
        "import os, studyloom.processes as processes\n"
        f"try:\n    with processes.descriptors_kept():\n        {body}\n"
        "except processes.DescriptorsClosed:\n    print(True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ("True\n" if closed else "")


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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk that is full")
@pytest.mark.parametrize(
    ("failing", "other", "told"),
    [
        ("stderr", "stdout", ""),
        (
            "stdout",
            "stderr",
            "standard output: No space left on device; the study goes on without it\n",
        ),
    ],
)
def test_a_standard_stream_that_fails_silences_itself_and_not_the_other(failing, other, told):
    """With --json the result is on standard output, and all else on standard error."""
    code = (
        "import sys\nfrom studyloom.processes import LastingOutput\n"
        f"output = LastingOutput(sys.{failing})\n"
        "print('a table', file=output, flush=True)\nprint('another', file=output, flush=True)\n"
        f"print('result', file=sys.{other})\n"
    )
    with open("/dev/full", "w") as full:
        streams = {failing: full, other: subprocess.PIPE}
        done = subprocess.run([sys.executable, "-c", code], text=True, check=True, **streams)
    assert getattr(done, other) == f"{told}result\n"
