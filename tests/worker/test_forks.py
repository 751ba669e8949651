"""Workers that are forks of a command, as real processes."""

import os
import signal
import sys
import threading
import time
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from commands import FORKS
from live_processes import gone, until

from studyloom.processes import LINUX
from studyloom.worker import forks
from studyloom.worker.forks import ForkServer, can_fork
from studyloom.worker.line import Listener
from studyloom.worker.stopping import Stop

pytestmark = pytest.mark.skipif(not LINUX, reason="forks are a way of Linux")


def run_apart(work, *arguments):
    """Runs a function in a process of its own, and returns its exit code."""
    process = FORKS.Process(target=work, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def serve_four(folder):
    """Four workers that end as their environment says, or wait for their line to close."""

    def work(line):
        print(os.environ["CODE"], os.getsid(0) == os.getpid(), torch.get_num_threads(), flush=True)
        if os.environ["CODE"] == "wait":
            line.follow()
            time.sleep(600)
        sys.exit(int(os.environ["CODE"]))

    server = ForkServer(work)
    environments = [{"OMP_NUM_THREADS": "1", "CODE": code} for code in ("0", "3", "wait", "wait")]
    listeners = [Listener() for _ in environments]
    clean, halted, killed, waiting = (
        server.start(each, folder / each["CODE"], listener.detach())
        for each, listener in zip(environments, listeners, strict=True)
    )
    os.kill(killed.pid, signal.SIGKILL)
    assert [worker.wait() for worker in (clean, halted, killed)] == [0, 3, -signal.SIGKILL]
    assert waiting.poll() is None
    os.kill(server._pid, signal.SIGKILL)
    with pytest.raises(OSError):  # noqa: PT011
        server.start(environments[0], folder / "0", Listener().detach())
    assert waiting.poll() is None  # its end is seen here, whoever forked it
    (folder / "waits").write_text(str(waiting.pid))
    threading.Thread(target=time.sleep, args=(0.2,)).start()
    assert not can_fork()  # a fork beside threads may never wake
    os._exit(7)  # closes nothing in order


def test_forked_workers_report_how_they_ended_and_end_with_their_command(tmp_path):
    assert run_apart(serve_four, tmp_path) == 7
    until(lambda: gone(int((tmp_path / "waits").read_text())), 10)
    assert [(tmp_path / code).read_text() for code in ("0", "3")] == ["0 True 1\n", "3 True 1\n"]


def serve_until_interrupted(folder):
    os.dup2(os.open(folder / "printed", os.O_WRONLY | os.O_CREAT), 2)
    with Stop():  # as in a command
        server = ForkServer(lambda line: None)
        os.kill(server._pid, signal.SIGINT)
        _, status = os.waitpid(server._pid, 0)
    os._exit(os.waitstatus_to_exitcode(status) + 100)


def start_where_the_parent_of_the_worker_is_killed(folder):
    killed = SimpleNamespace(Process=lambda **_: os.kill(os.getpid(), signal.SIGKILL))
    with patch.object(forks, "FORK", killed):
        server = ForkServer(lambda line: None)
    signal.alarm(20)  # without an answer it would wait for ever
    with pytest.raises(ChildProcessError):
        server.start({"OMP_NUM_THREADS": "1"}, folder / "0", Listener().detach())
    os._exit(7)


def test_a_worker_is_not_waited_for_if_its_parent_was_killed(tmp_path):
    assert run_apart(start_where_the_parent_of_the_worker_is_killed, tmp_path) == 7


def test_an_interrupt_ends_a_fork_server_without_a_traceback(tmp_path):
    assert run_apart(serve_until_interrupted, tmp_path) == 100 - signal.SIGINT
    assert (tmp_path / "printed").read_text() == ""
