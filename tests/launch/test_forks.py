"""Forks of a command, as real processes: the child that it watches, and its workers."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from commands import FORKS
from live_processes import gone, until

from studyloom.launch.forks import ForkServer, can_fork, watch
from studyloom.launch.line import Listener
from studyloom.processes import LINUX
from studyloom.study.stopping import Stop

pytestmark = pytest.mark.skipif(not LINUX, reason="forks are a way of Linux")


def run_apart(work, *arguments):
    """Runs a function in a process of its own, and returns its exit code."""
    process = FORKS.Process(target=work, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


# Workers


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


def test_an_interrupt_ends_a_fork_server_without_a_traceback(tmp_path):
    assert run_apart(serve_until_interrupted, tmp_path) == 100 - signal.SIGINT
    assert (tmp_path / "printed").read_text() == ""


# The child that is watched


def watched(deed, folder):
    def work(line, death):
        with (folder / "lives").open("a") as file:
            file.write(f"{death and death.words}\n")
        if "claimed" in deed and death is None:
            line.say_claimed()
        match deed:
            case "exit 0" | "claimed, exit 3":
                with line.ending():
                    sys.exit(int(deed[-1]))
            case "claimed, SIGKILL" if death is None:
                os.kill(os.getpid(), signal.SIGKILL)
            case "claimed, released":
                with line.ending():
                    sys.exit(143 if len((folder / "lives").read_text().split()) == 1 else 0)
            case "_exit 0":
                os._exit(0)
            case "SIGTERM":
                os.kill(os.getpid(), signal.SIGTERM)
            case "session":
                sleep = subprocess.Popen(["sleep", "600"], start_new_session=True)
                (folder / "sleep").write_text(str(sleep.pid))
        with line.ending():
            sys.exit(0)

    watch(work)


@pytest.mark.parametrize(
    ("deed", "code", "lives"),
    [
        ("exit 0", 0, ["None"]),
        ("claimed, exit 3", 3, ["None"]),
        ("_exit 0", 1, ["None"]),
        ("SIGTERM", -signal.SIGTERM, ["None"]),
        ("claimed, SIGKILL", 0, ["None", "the worker ended with signal SIGKILL"]),
        ("claimed, released", 0, ["None", "None"]),  # the signal came to the child alone
    ],
)
def test_a_command_ends_with_0_only_if_its_child_says_so(tmp_path, deed, code, lives):
    assert run_apart(watched, deed, tmp_path) == code
    assert (tmp_path / "lives").read_text().splitlines() == lives


def watched_without_sigchld(folder):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as after `trap '' CHLD` in a shell
    watched("exit 0", folder)


def test_a_parent_that_ignores_the_ends_of_children_changes_nothing(tmp_path):
    assert run_apart(watched_without_sigchld, tmp_path) == 0


def test_what_a_child_leaves_in_another_session_ends_with_its_command(tmp_path):
    assert run_apart(watched, "session", tmp_path) == 0
    assert gone(int((tmp_path / "sleep").read_text()))
