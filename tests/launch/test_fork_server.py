"""Forked workers, as real processes."""

import os
import signal
import sys
import threading
import time

import pytest
import torch
from commands import FORKS
from live_processes import gone, linux, until

from studyloom.launch import fork_server
from studyloom.launch.fork_server import ForkServer, can_fork
from studyloom.launch.line import open_line


def run_apart(work, folder):
    """Runs a function in a process of its own, which ends in order."""
    process = FORKS.Process(target=work, args=(folder,))
    process.start()
    process.join(60)
    assert process.exitcode == 0


def serve_four(folder):
    """Runs in a process of its own: four workers that end as their environment says, or wait."""

    def work(line):
        print(os.environ["CODE"], os.getsid(0) == os.getpid(), torch.get_num_threads(), flush=True)
        if os.environ["CODE"] == "wait":
            os.read(0, 1)
        else:
            sys.exit(int(os.environ["CODE"]))

    server = ForkServer.open(work)
    environments = [{"OMP_NUM_THREADS": "1", "CODE": code} for code in ("0", "3", "wait", "wait")]
    clean, halted, killed, waiting = (
        server.start(each, folder / each["CODE"], open_line()[1]) for each in environments
    )
    os.kill(killed.pid, signal.SIGKILL)
    assert [worker.wait() for worker in (clean, halted, killed)] == [0, 3, -signal.SIGKILL]
    assert waiting.poll() is None
    (folder / "waits").write_text(str(waiting.pid))
    thread = threading.Thread(target=time.sleep, args=(0.2,))
    thread.start()
    assert ForkServer.open(work) is None  # a fork beside threads may never wake
    os._exit(0)  # closes nothing in order


@linux
def test_forked_workers_report_how_they_ended_and_their_input_ends_with_their_command(tmp_path):
    run_apart(serve_four, tmp_path)
    until(lambda: gone(int((tmp_path / "waits").read_text())), 10)
    assert [(tmp_path / code).read_text() for code in ("0", "3")] == ["0 True 1\n", "3 True 1\n"]


def close_all_files(folder):
    server = ForkServer.open(lambda line: None)
    os.closerange(3, 1000)  # as the user's code may, in a worker that is this process
    server.close()
    (folder / "closed").touch()


@linux
def test_a_server_whose_files_are_closed_ends_without_an_error(tmp_path):
    run_apart(close_all_files, tmp_path)
    assert (tmp_path / "closed").exists()


@linux
@pytest.mark.parametrize("absent", [False, True])
def test_no_process_is_forked_where_python_or_linux_cannot_open_a_pidfd(absent, monkeypatch):
    """As conda's Python 3.11, and any on a Linux before 5.3."""

    def refuse(pid, flags=0):
        raise OSError("Function not implemented")

    monkeypatch.setattr(fork_server.threading, "active_count", lambda: 1)
    assert can_fork()
    if absent:
        monkeypatch.delattr(os, "pidfd_open")
    else:
        monkeypatch.setattr(os, "pidfd_open", refuse)
    assert not can_fork()
