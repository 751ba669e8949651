"""Workers as real processes, with real signals."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import BARE, FORKS, QUICK, ROOT, start, study
from optuna.trial import TrialState

from studyloom.errors import LaunchError
from studyloom.launch import local, ray, task
from studyloom.launch.fork_server import ForkServer
from studyloom.launch.local import Local, LocalWorker, gpus
from studyloom.launch.ray import Ray
from studyloom.launch.ray_actor import Actor
from studyloom.launch.supervisor import Supervisor
from studyloom.launch.task import Task, worker_arguments
from studyloom.processes import worker_id
from studyloom.study.reporter import Limits
from studyloom.study.stored_study import open_study

# Trials of four epochs, in the second of which they can be met.
TWO = (*QUICK, "model._target_=gate.Net", "train.epochs=4", "launcher.workers=2", "study.trials=4")
HERE = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}


def until(condition, seconds=120.0):
    """Waits for a condition and gives what it gave."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def record_of(run_dir):
    return open_study(f"sqlite:///{run_dir}/study.db", "mnist")


def processes_of(run_dir) -> list[int]:
    """The processes of a run: its command, the nursery, and the workers."""
    pids = (int(process.name) for process in Path("/proc").glob("[0-9]*"))
    return [pid for pid in pids if f"run_dir={run_dir}".encode() in command_of(pid)]


def command_of(pid) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def pids(owners):
    return [int(owner.rpartition(":")[2]) for owner in owners]


def at_work(run_dir):
    """A command, and the ledger's owners, both of which are in the midst of a trial until the gate is there."""
    process = start(*TWO, f"run_dir={run_dir}", STUDYLOOM_TEST_GATE=str(run_dir / "gate"), **HERE)

    def look():
        assert process.poll() is None, process.communicate()
        if not (run_dir / "study.db").exists():
            return None
        try:
            stored = record_of(run_dir)
        except ValueError:
            return None  # its maker is at it
        held = stored.ledger.held()
        by_id = {trial._trial_id: trial for trial in stored.trials()}
        working = [h for h in held if h.trial_id in by_id and by_id[h.trial_id].intermediate_values]
        return [h.owner for h in working] if len(working) == 2 else None

    return process, until(look)


def finish(run_dir):
    done = study(*TWO, "launcher.workers=1", f"run_dir={run_dir}", **HERE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_complete(run_dir, trials=4):
    stored = record_of(run_dir)
    assert [trial.number for trial in stored.trials()] == list(range(trials))
    assert {trial.state for trial in stored.trials()} == {TrialState.COMPLETE}
    assert stored.ledger.counts() == {"free": 0, "held": 0, "done": trials}


linux = pytest.mark.skipif(
    not Path("/proc/self/cmdline").exists(), reason="processes are looked up in /proc"
)


@linux
def test_a_stop_hands_all_trials_back_and_the_same_command_goes_on(tmp_path):
    """tests/chaos has the other signals."""
    process, _ = at_work(tmp_path)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped; the same command goes on from here" in out
    assert "Traceback" not in err
    assert processes_of(tmp_path) == []
    assert record_of(tmp_path).ledger.counts()["held"] == 0
    assert "goes on" in finish(tmp_path)
    assert_complete(tmp_path)


@linux
@pytest.mark.chaos
def test_a_second_stop_ends_at_once(tmp_path):
    process, owners = at_work(tmp_path)
    os.kill(pids(owners)[0], signal.SIGSTOP)  # it will not follow the first
    process.send_signal(signal.SIGINT)
    assert "stopping" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)
    assert process.returncode == 130
    until(lambda: processes_of(tmp_path) == [], 10)
    assert record_of(tmp_path).ledger.counts()["held"] == 0


@linux
def test_a_worker_that_dies_is_started_again_and_its_trial_gone_on_with(tmp_path):
    process, owners = at_work(tmp_path)
    os.kill(pids(owners)[0], signal.SIGKILL)
    (tmp_path / "gate").touch()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "a worker ended with signal SIGKILL" in err
    assert_complete(tmp_path)


def nursed(folder):
    """The life of a process with a nursery; its workers end as their environment says, or wait for its end."""

    def work():
        print(os.environ["CODE"], os.getsid(0) == os.getpid(), torch.get_num_threads(), flush=True)
        if os.environ["CODE"] == "wait":
            os.read(0, 1)
        else:
            sys.exit(int(os.environ["CODE"]))

    fork_server = ForkServer.open(work)
    environments = [{"OMP_NUM_THREADS": "1", "CODE": code} for code in ("0", "3", "wait", "wait")]
    clean, halted, killed, waiting = (
        fork_server.start(each, folder / each["CODE"]) for each in environments
    )
    os.kill(killed.pid, signal.SIGKILL)
    assert [worker.wait() for worker in (clean, halted, killed)] == [0, 3, -signal.SIGKILL]
    assert waiting.poll() is None
    (folder / "waits").write_text(str(waiting.pid))
    thread = threading.Thread(target=time.sleep, args=(0.2,))
    thread.start()
    assert ForkServer.open(work) is None  # a fork beside threads may never wake
    os._exit(0)  # without a farewell


@linux
def test_forked_workers_tell_how_they_ended_and_their_input_ends_with_their_command(tmp_path):
    process = FORKS.Process(target=nursed, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    until(lambda: gone(int((tmp_path / "waits").read_text())), 10)
    assert [(tmp_path / code).read_text() for code in ("0", "3")] == ["0 True 1\n", "3 True 1\n"]


@linux
def test_where_the_nursery_is_gone_workers_are_commands(tmp_path):
    """What works goes on, and what dies is started again."""
    process, owners = at_work(tmp_path)
    (fork_server,) = {*processes_of(tmp_path)} - {process.pid, *pids(owners)}
    os.kill(fork_server, signal.SIGKILL)
    os.kill(pids(owners)[0], signal.SIGKILL)
    until(lambda: [pid for pid in processes_of(tmp_path) if b"launcher=join" in command_of(pid)])
    (tmp_path / "gate").touch()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "a worker ended with exit code 255" in err  # nobody has seen how
    assert_complete(tmp_path)


@linux
def test_workers_do_not_outlive_a_killed_command(tmp_path):
    process, _ = at_work(tmp_path)
    process.kill()
    assert process.communicate()[1] == ""
    until(lambda: processes_of(tmp_path) == [], 10)  # README.md promises it


DEADLY = """
import os, signal, subprocess, time, torch

class Net(torch.nn.Linear):
    def __init__(self, shape, classes, deed):
        super().__init__(784, classes)
        self.deed = deed

    def forward(self, images):
        if len(images) > 2:
            print("last words", flush=True)
            if self.deed == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.deed == "hang":
                subprocess.Popen(["sleep", "600.25"])
                time.sleep(600)
        return super().forward(images.flatten(1))
"""


@pytest.fixture
def deadly(tmp_path):
    """A command whose every trial does a deed to its worker."""
    (tmp_path / "deadly.py").write_text(DEADLY)
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    network = ["model._target_=deadly.Net", *BARE]
    quick = [override for override in QUICK if not override.startswith("model.")]

    def run(deed, *overrides):
        own = (*quick, *network, f"+model.deed={deed}", *overrides, f"run_dir={tmp_path / 'run'}")
        done = study(*own, **environment)
        return done.returncode, done.stdout, done.stderr, record_of(tmp_path / "run")

    return run


def test_a_trial_that_always_kills_its_worker_is_given_up_after_three_lives(deadly):
    """With a limit of time a single worker has a process too."""
    two = ("study.max_attempts=2", "study.trial_timeout=300")
    code, out, err, stored = deadly("die", "study.trials=1", "launcher.workers=1", *two)
    assert code == 1  # no trial has a value
    assert "crashed  1 × such as: 2 workers died of this trial" in out
    assert "signal SIGKILL" in out
    assert "Traceback" not in err
    (trial,) = stored.trials()
    assert (trial.state, trial.user_attrs["failure"]) == (TrialState.FAIL, "crashed")
    assert stored.ledger.counts() == {"free": 0, "held": 0, "done": 1}


@linux
def test_a_trial_that_hangs_is_ended_with_all_that_it_started(deadly):
    code, out, err, stored = deadly(
        "hang", "study.trials=1", "launcher.workers=1", "study.trial_timeout=1"
    )
    assert code == 1
    assert "timeout  1 × such as: the trial took longer than study.trial_timeout=1 s" in out
    assert "Traceback" not in err
    assert stored.ledger.counts() == {"free": 0, "held": 0, "done": 1}
    sleepers = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True).stdout
    assert "sleep 600.25" not in sleepers


@pytest.mark.chaos
def test_workers_that_die_before_they_come_to_work_end_the_command_with_the_end_of_their_log(
    tmp_path,
):
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "def pidfd_open(pid, flags=0):\n"
        "    raise OSError('an old Linux, where workers are commands')\n"
        "os.pidfd_open = pidfd_open\n"
        "if 'STUDYLOOM_WORKER' in os.environ:\n"
        "    print('no such library', flush=True)\n"
        "    os._exit(1)\n"
    )
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{HERE['PYTHONPATH']}"}
    process = start(*TWO, f"run_dir={tmp_path / 'run'}", **environment)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "workers die before they come to work" in err
    assert "no such library" in err
    assert "Traceback" not in err


# Placement


@pytest.fixture
def machine(monkeypatch):
    """A machine of eight cores with some GPUs."""

    def with_gpus(*names):
        for module in (local, ray):
            monkeypatch.setattr(module, "cores", lambda: 8)
            monkeypatch.setattr(module, "gpus", lambda: list(names))

    return with_gpus


def test_auto_is_one_worker_per_gpu_else_one_per_core(machine):
    machine()
    assert Local().count(100) == 8
    machine("0", "1", "2")
    assert Local().count(100) == 3
    assert Local(per_gpu=2).count(100) == 6


def test_there_are_never_more_workers_than_open_slots(machine):
    machine()
    assert Local(workers=5).count(2) == 2
    assert Local().count(0) == 0


def test_each_worker_has_its_device_and_its_share_of_the_cores(machine):
    machine("4", "7")
    environments = Local(workers=4).environments(4)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments] == ["4", "7", "4", "7"]
    assert {e["OMP_NUM_THREADS"] for e in environments} == {"2"}
    machine()
    assert "CUDA_VISIBLE_DEVICES" not in Local(workers=16).environments(16)[0]
    assert Local(workers=16).environments(16)[0]["OMP_NUM_THREADS"] == "1"


def test_visible_devices_are_the_ones_handed_on(monkeypatch):
    monkeypatch.setattr(local.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert gpus() == ["3", "5"]
    monkeypatch.setattr(local.torch.cuda, "device_count", lambda: 0)
    assert gpus() == []


@pytest.mark.parametrize(
    "settings", [{"workers": 0}, {"workers": "two"}, {"workers": True}, {"per_gpu": 0}]
)
def test_a_number_of_workers_that_is_none_is_refused(settings):
    with pytest.raises(ValueError, match=r"launcher\."):
        Local(**settings)


def test_a_worker_is_the_same_command_without_its_launcher(monkeypatch):
    monkeypatch.setattr(
        task.sys, "argv", ["x", "a.b=1", "launcher=local", "launcher.workers=3", "launchers=2"]
    )
    assert worker_arguments()[-3:] == ["a.b=1", "launchers=2", "launcher=join"]


def test_a_crew_is_dismissed_with_all_that_its_workers_started(tmp_path):
    buried = []
    ledger = SimpleNamespace(record_death=lambda owner, death: buried.append(owner))
    place = LocalWorker(["sh", "-c", "sleep 600 & echo $!; wait"], {}, tmp_path / "log")
    supervisor = Supervisor(
        Task(lambda stop: None, lambda: 1, ledger, tmp_path, Limits(), "s"), [place]
    )
    place.start()
    grandchild = int(until(lambda: place.log.read_text()))
    pid, guard = place.process.pid, place.guard.pid
    supervisor.end_all()
    assert buried == [worker_id(pid)]
    until(lambda: all(gone(one) for one in (pid, grandchild, guard)), 10)


@linux
def test_a_guard_kills_a_workers_group_when_the_launcher_is_gone():
    """Also when launcher and worker were killed together, and only a child of the worker is left."""
    group = subprocess.Popen(["sh", "-c", "sleep 600 & wait"], start_new_session=True)
    script = (
        "import sys, time; from studyloom.launch import local; local.GRACE = -1.0\n"
        "local.guard(int(sys.argv[1])); print('up', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", script, str(group.pid)]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert launcher.stdout.readline() == "up\n"
    assert group.poll() is None
    launcher.kill()
    launcher.communicate()
    assert group.wait(10) == -signal.SIGKILL


def gone(pid):
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    ).stdout.strip()
    return not state or state.startswith("Z")


# Ray, as far as it can be told without it


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
    with pytest.raises(ValueError, match=rf"launcher\.{next(iter(settings))}: "):
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
    ],
)
def test_a_node_has_room_for_as_many_workers_as_all_it_has_allows(settings, resources, workers):
    launcher = Ray(**settings)
    assert launcher.room(resources, launcher.share([resources])) == workers


def test_a_cluster_with_an_address_leaves_the_host_and_one_of_our_own_does_not(machine):
    machine("0", "1")
    assert Ray(address="auto").leaves_host
    assert not Ray().leaves_host
    assert (Ray().count(100), Ray(num_gpus=0.5).count(100), Ray().count(1)) == (2, 4, 1)
    assert Ray(workers=5, address="auto").count(100) == 5


def test_a_missing_ray_is_said_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LaunchError, match=r"pip install 'studyloom\[ray\]'"):
        Ray(address="auto").count(1)


SAY = "import os, sys; print(os.getcwd(), *sys.path, flush=True); sys.stdin.read()"


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
    environment = {"PYTHONPATH": "/of/the/command"}
    owner, code, first = actor.start(
        ["-c", SAY], environment, str(there), "src", str(tmp_path / "log")
    )
    assert (owner, code) == (worker_id(actor.process.pid), None)
    base = there if shared else here
    said = until(lambda: (first or actor.look(0.0)[2]).decode().split())
    assert said[0] == str(base)
    assert str(base / "src") in said
    assert ("/of/the/command" in said) == shared
    pid = actor.process.pid
    actor.clear()
    assert gone(pid)


@linux
def test_a_worker_and_its_children_do_not_outlive_a_killed_actor(tmp_path):
    script = (
        "import sys, time; from studyloom.launch.ray_actor import Actor; actor = Actor()\n"
        "actor.start(['-c', sys.argv[1]], {}, '.', '.', '.'); print(actor.process.pid, flush=True); time.sleep(600)"
    )
    told = str(tmp_path / "child")
    worker = (
        "import subprocess, time; child = subprocess.Popen(['sleep', '600'])\n"
        f"with open({told!r}, 'w') as file: file.write(str(child.pid))\n"
        "time.sleep(600)"
    )
    actor = subprocess.Popen(
        [sys.executable, "-c", script, worker], stdout=subprocess.PIPE, text=True
    )
    pid = int(actor.stdout.readline())
    child = int(until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text()))
    actor.kill()
    actor.communicate()
    until(lambda: gone(pid) and gone(child), 10)
