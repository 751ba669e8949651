"""The line between a worker and its launcher, and what a worker is started with."""

import os
import signal
import subprocess
import sys

import pytest
from live_processes import gone, linux, until

from studyloom.environment import LINE
from studyloom.worker import line as module
from studyloom.worker import task
from studyloom.worker.line import Line, Listener
from studyloom.worker.task import Command


@pytest.fixture
def pair():
    listener = Listener()
    line = Line(listener.detach())
    yield listener, line
    listener.close()
    line._socket.close()


def test_a_launcher_gets_the_messages_of_its_worker(pair):
    listener, line = pair
    assert listener.listen() == {}
    line.send_claimed()
    line.send_claimed()
    line.send("died", "its loader ended with signal SIGKILL")
    died = {"claimed": "", "died": "its loader ended with signal SIGKILL"}
    assert listener.listen() == died


def test_a_signal_counts_once_for_each_request_of_the_launcher(pair, monkeypatch):
    listener, line = pair
    line.follow()
    monkeypatch.setattr(module, "GRACE", 600.0)
    monkeypatch.setattr(module, "PATIENCE", 60.0)
    listener.request_stop(os.getpid(), 0)
    assert line.is_requested()
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    assert not line.is_requested()  # a Ctrl-C comes from the terminal too
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(line.is_requested()))
    try:
        listener.close()  # the launcher has ended
        until(lambda: heard)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [True]
    assert Line().is_requested()  # without a launcher every signal counts


WORKER = """
import signal, subprocess, sys, threading, time
from studyloom.worker import line as module
from studyloom.worker.line import Line
module.GRACE, module.LINGER = -0.9, 0.1
line = Line.to_launcher()
line.follow()
if sys.argv[1] == "hang":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "600"])
    print(child.pid, flush=True)
    time.sleep(600)
with line.sending_exit_code():
    threading.Thread(target=time.sleep, args=(600,)).start()
    sys.exit(3)
"""


@pytest.fixture
def worker():
    """A function that starts a worker, the leader of its group, with the listener of its line."""
    started = []

    def start(deed):
        listener = Listener()
        line = listener.detach()
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, deed],
            env=os.environ | {LINE.name: str(line)},
            pass_fds=[line],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        os.close(line)
        started.append(process)
        return listener, process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@linux
def test_a_worker_that_hangs_ends_with_its_launcher_and_its_programs(worker):
    listener, process = worker("hang")
    child = int(process.stdout.readline())
    listener.close()
    assert process.wait(10) == -signal.SIGKILL
    until(lambda: gone(child), 10)


def test_a_thread_that_never_ends_does_not_keep_a_worker_from_its_end(worker):
    listener, process = worker("end")
    assert process.wait(10) == 3
    assert listener.listen() == {"ended": "3"}
    listener.close()


def test_a_worker_is_the_command_without_its_launcher_settings(monkeypatch):
    arguments = ["x", "a.b=1", "launcher=local", "launcher.workers=3", "launchers=2"]
    monkeypatch.setattr(task.sys, "argv", arguments)
    worker = Command.of_this_process().worker_arguments()
    assert worker[-4:] == ["a.b=1", "launchers=2", "launcher=join", "launcher.begins=false"]
