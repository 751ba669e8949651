"""The Ray launcher and its actors, as far as they can be tested without Ray.

chaos/ has a cluster.
"""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from commands import QUICK, study_here
from live_processes import gone, imitate_killpg_of_macos, linux, until, wait_for_zombie

from studyloom.errors import LaunchError
from studyloom.extras import ray
from studyloom.extras.ray import Ray
from studyloom.extras.ray_actor import Actor
from studyloom.installation import pip_install


def test_resources_that_ray_cannot_give_are_refused_by_name():
    wrong = {"workers": (0,), "num_gpus": (-1, 1.5, "one"), "num_cpus": (0,), "address": (6379, "")}
    for name, value in [(name, value) for name, values in wrong.items() for value in values]:
        with pytest.raises(ValueError, match=rf"launcher\.{name} must be .*; got {value!r}"):
            Ray(**{name: value})


def test_a_node_has_room_for_the_workers_that_all_its_resources_allow():
    for settings, cpus, gpus, workers in (
        ({}, 8, 0, 8),
        ({"num_cpus": 3}, 8, 0, 2),
        ({}, 8, 2, 2),
        ({"num_gpus": 0.3}, 8, 2, 6),  # no worker has a part of two GPUs
        *(({"num_gpus": 1 / count}, 64, 1, count) for count in range(1, 50)),
        *(({"num_gpus": share}, 64, 2, 2 * count) for share, count in ((0.2, 5), (0.1, 10))),
        ({"num_gpus": 2}, 8, 3, 1),
        ({"num_gpus": 1}, 8, 0, 0),
    ):
        launcher, resources = Ray(**settings), {"CPU": float(cpus), "GPU": float(gpus)}
        assert launcher.count_fitting(resources, launcher.gpus_of_worker([resources])) == workers


def test_only_a_cluster_with_an_address_leaves_the_host(monkeypatch):
    monkeypatch.setattr(ray, "count_cores", lambda: 8)
    monkeypatch.setattr(ray, "visible_gpus", lambda: ["0", "1"])
    assert Ray(address="auto").leaves_host
    assert not Ray().leaves_host
    assert (
        Ray().count_workers(100),
        Ray(num_gpus=0.5).count_workers(100),
        Ray().count_workers(1),
    ) == (2, 4, 1)
    assert Ray(workers=5, address="auto").count_workers(100) == 5


def test_a_missing_ray_is_reported_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LaunchError, match=re.escape(pip_install("ray"))):
        Ray(address="auto").count_workers(1)


def test_a_cluster_that_does_not_start_fails_before_the_study_is_made(monkeypatch, tmp_path):
    def init(*_, **__):
        raise Exception("The current node timed out during startup.")

    fake = SimpleNamespace(init=init, is_initialized=lambda: False, shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", fake)
    for more in ((), ("launcher.address=auto", "storage.url=postgresql://127.0.0.1:1/none")):
        done = study_here(*QUICK, "launcher=ray", f"run_dir={tmp_path}", *more)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert line.startswith("error: launcher")
        assert line.endswith("The current node timed out during startup.")
        assert not (tmp_path / "study.db").exists()


# Actors


ACTOR = """
import sys, time
from studyloom.extras.ray_actor import Actor
actor = Actor()
actor.start(["-c", sys.argv[1]], {}, ".", ".", ".")
print(actor.process.pid, flush=True)
time.sleep(600)
"""
WORKER = """
import signal, subprocess, sys, time
from studyloom.worker import line
line.GRACE = 0.0
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # before the actor can be killed
line.Line.to_launcher().follow()
child = subprocess.Popen(["sleep", "600"])
with open({file!r}, "w") as file:
    file.write(str(child.pid))
time.sleep(600)
"""


@linux
def test_a_worker_and_its_children_do_not_outlive_a_killed_actor(tmp_path):
    file = tmp_path / "child"
    command = [sys.executable, "-c", ACTOR, WORKER.format(file=str(file))]
    actor = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    pid = int(actor.stdout.readline())
    child = int(until(lambda: file.exists() and file.read_text()))
    actor.kill()
    actor.communicate()
    until(lambda: gone(pid) and gone(child), 10)


def test_a_zombie_is_a_killed_worker_of_an_actor_as_on_macos(tmp_path, monkeypatch):
    imitate_killpg_of_macos(monkeypatch)
    actor = Actor()
    actor.start(["-c", ""], {}, str(tmp_path), ".", ".")
    wait_for_zombie(actor.process.pid)
    actor.kill()
    assert actor.process is None
