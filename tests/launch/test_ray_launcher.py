"""The Ray launcher and its actors, as far as they can be tested without Ray.

chaos/ has a cluster.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from live_processes import gone, linux, until

from studyloom.errors import LaunchError
from studyloom.extras.ray import launcher as ray
from studyloom.extras.ray.actor import Actor
from studyloom.extras.ray.launcher import Ray
from studyloom.processes import CLUSTER_MARK, worker_id


@pytest.mark.parametrize(
    "settings",
    [
        {"workers": 0},
        {"num_gpus": -1},
        {"num_gpus": 1.5},
        {"num_gpus": "one"},
        {"num_cpus": 0},
        {"address": 6379},
        {"address": ""},
    ],
)
def test_what_ray_cannot_give_a_worker_is_refused_by_name(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=rf"launcher\.{name} must be .*; got {value!r}"):
        Ray(**settings)


@pytest.mark.parametrize(
    ("settings", "resources", "workers"),
    [
        ({}, {"CPU": 8.0}, 8),
        ({"num_cpus": 3}, {"CPU": 8.0}, 2),
        ({}, {"CPU": 8.0, "GPU": 2.0}, 2),
        ({"num_gpus": 0.5}, {"CPU": 8.0, "GPU": 2.0}, 4),
        ({"num_gpus": 0.3}, {"CPU": 8.0, "GPU": 2.0}, 6),  # no worker has a part of two GPUs
        ({"num_gpus": 2}, {"CPU": 8.0, "GPU": 3.0}, 1),
        ({"num_gpus": 0}, {"CPU": 8.0, "GPU": 3.0}, 8),
        ({"num_gpus": 1}, {"CPU": 8.0}, 0),
        ({"ranks": 2}, {"CPU": 8.0, "GPU": 4.0}, 2),
        ({"ranks": 2}, {"CPU": 3.0, "GPU": 4.0}, 1),
        ({"ranks": 3}, {"CPU": 8.0}, 2),
    ],
)
def test_a_node_has_room_for_as_many_workers_as_all_it_has_allows(settings, resources, workers):
    launcher = Ray(**settings)
    assert launcher.room(resources, launcher.share([resources])) == workers


@pytest.mark.parametrize("gpus", [0.5, 1, 4])
def test_a_worker_of_two_ranks_has_two_gpus_or_none(gpus):
    with pytest.raises(ValueError, match=rf"num_gpus must be 2, .*ranks=2, 0, or null; got {gpus}"):
        Ray(ranks=2, num_gpus=gpus)


def test_a_cluster_with_an_address_leaves_the_host_and_one_of_our_own_does_not(monkeypatch):
    monkeypatch.setattr(ray, "cores", lambda: 8)
    monkeypatch.setattr(ray, "gpus", lambda: ["0", "1"])
    assert Ray(address="auto").leaves_host
    assert not Ray().leaves_host
    assert (Ray().count(100), Ray(num_gpus=0.5).count(100), Ray().count(1)) == (2, 4, 1)
    assert Ray(workers=5, address="auto").count(100) == 5


def test_a_missing_ray_is_reported_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LaunchError, match=r"pip install 'studyloom\[ray\]'"):
        Ray(address="auto").count(1)


# Actors

PRINT_PATHS = "import os, sys; print(os.getcwd(), *sys.path, flush=True); sys.stdin.read()"


@pytest.mark.parametrize("shared", [True, False])
def test_an_actor_works_in_the_commands_folder_if_it_sees_its_disk_else_in_its_own(
    tmp_path, monkeypatch, shared
):
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there, here):
        folder.mkdir()
    monkeypatch.chdir(here)
    if shared:
        (tmp_path / "log").touch()
    actor = Actor()
    variables = {"PYTHONPATH": "/of/the/command"}
    where = (str(there), "src", str(tmp_path / "log"))
    started, code, first, _ = actor.start(["-c", PRINT_PATHS], variables, *where)
    assert (started, code) == (worker_id(actor.process.pid), None)
    base = there if shared else here
    printed = bytearray(first)  # it comes in pieces if PYTHONUNBUFFERED is set
    while not printed.endswith(b"\n"):
        printed += until(lambda: actor.poll(0.0)[2])
    folder, *paths = printed.decode().split()
    assert folder == str(base)
    assert str(base / "src") in paths
    assert ("/of/the/command" in paths) == shared
    pid, guard = actor.process.pid, actor.guard.pid
    actor.kill()
    assert gone(pid)
    until(lambda: gone(guard), 10)


ACTOR = """
import sys, time
from studyloom.extras.ray.actor import Actor
actor = Actor()
actor.start(["-c", sys.argv[1]], {}, ".", ".", ".")
print(actor.process.pid, flush=True)
time.sleep(600)
"""
WORKER = """
import subprocess, sys, time
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


TITLED = """
import sys, time
file = open(sys.argv[2])
open("/proc/self/comm", "w").write(sys.argv[1])
print(flush=True)
time.sleep(600)
"""


@linux
def test_processes_whose_title_hides_their_mark_end_with_their_cluster(tmp_path):
    """Ray's title of a process overwrites the beginning of its environment."""
    log, other = tmp_path / "cluster" / "agent.log", tmp_path / "other.log"
    log.parent.mkdir()
    log.touch()
    other.touch()
    cases = ("ray::Agent", log), ("ray::Agent", other), ("python", log)
    processes = [
        subprocess.Popen([sys.executable, "-c", TITLED, *case], stdout=subprocess.PIPE)
        for case in cases
    ]
    try:
        for process in processes:
            process.stdout.readline()
        cleanup = [sys.executable, "-I", "-c", ray.CLEANUP, str(log.parent), CLUSTER_MARK]
        subprocess.run(cleanup, stdin=subprocess.DEVNULL, check=True)
        assert processes[0].wait(10) == -9
        assert [process.poll() for process in processes[1:]] == [None, None]
        assert not log.parent.exists()
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@linux
def test_what_a_command_starts_beside_its_cluster_outlives_it(monkeypatch):
    """Such as a command of notify, or a server that others use too."""
    started = {}

    def sleep(what):
        started[what] = subprocess.Popen(["sleep", "600"], start_new_session=True)

    def join(**_):
        sleep("cluster")
        return SimpleNamespace()

    monkeypatch.setattr(ray, "join", join)
    monkeypatch.setattr(ray, "import_ray", lambda: SimpleNamespace(shutdown=lambda: None))
    before = dict(os.environ)
    try:
        with ray.own_cluster(1):
            sleep("command")
            worker = ray.RayWorker(None, None, [], Path("log"))
            assert "STUDYLOOM_RAY" not in worker._call[1]
        assert started["cluster"].wait(10) == -9
        assert started["command"].poll() is None
        assert {**os.environ} == before | {"RAY_USAGE_STATS_ENABLED": "0"}
    finally:
        os.environ.pop("RAY_USAGE_STATS_ENABLED", None)
        for process in started.values():
            process.kill()
            process.wait()
