"""The guard of a process group, with real processes."""

import os
import signal
import subprocess
import sys
import time

import pytest
from live_processes import gone, linux, until

from studyloom.launch.process_group import GroupGuard

LAUNCHER = """
import sys, time
from studyloom.launch.process_group import GroupGuard
guard = GroupGuard(int(sys.argv[1]), float(sys.argv[2]))
print(guard.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def group():
    """The leader of a process group, with a child."""
    leader = subprocess.Popen(["sh", "-c", "sleep 600 & wait"], start_new_session=True)
    yield leader
    leader.kill()
    leader.wait()


@pytest.fixture
def launcher(group):
    """A function that starts a process with a guard for the group, and returns both."""
    started = []

    def start(grace: float):
        command = [sys.executable, "-c", LAUNCHER, str(group.pid), str(grace)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process, int(process.stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


@linux
def test_a_guard_kills_a_workers_group_when_the_launcher_is_gone(group, launcher):
    """Also if launcher and worker were killed together, and only a child of the worker is left."""
    process, guard = launcher(0)
    assert group.poll() is None
    process.kill()
    process.wait()
    assert group.wait(10) == -signal.SIGKILL
    until(lambda: gone(guard), 10)


@linux
def test_a_guard_waits_for_the_grace_period_and_holds_no_output_open(group, launcher):
    process, guard = launcher(1.5)
    process.kill()
    process.communicate()  # returns once nobody has the output open any more
    time.sleep(0.3)
    assert group.poll() is None
    assert not gone(guard)
    assert group.wait(10) == -signal.SIGKILL


@linux
def test_a_guard_that_stands_down_goes_away_and_kills_nothing(group):
    guard = GroupGuard(group.pid)
    guard.stand_down()
    until(lambda: gone(guard.pid), 10)
    assert group.poll() is None


@linux
def test_a_guard_is_not_a_child_of_this_process(group):
    """Ray kills the children of an actor together with the actor."""
    guard = GroupGuard(group.pid)
    with pytest.raises(ChildProcessError):
        os.waitpid(guard.pid, os.WNOHANG)
    guard.stand_down()


@linux
def test_a_guard_that_was_killed_itself_can_still_stand_down(group):
    guard = GroupGuard(group.pid)
    os.kill(guard.pid, signal.SIGKILL)
    until(lambda: gone(guard.pid), 10)
    guard.stand_down()
    assert group.poll() is None
