"""Local workers as real processes, with real signals."""

import itertools
import os
import signal
import subprocess

import pytest
import torch
from commands import BARE, QUICK, ROOT, start, study, study_here
from live_processes import command_of, linux, processes_of, until
from optuna.trial import TrialState
from toys import LOOP, ask

from studyloom.config.study_config import StudyConfig
from studyloom.data.training_data import TrainingData
from studyloom.errors import ConfigError
from studyloom.extras.ray import Ray
from studyloom.extras.slurm import Slurm
from studyloom.storage.failures import Limits
from studyloom.storage.opening import open_study
from studyloom.training.device import (
    check_device,
    describe_missing_gpu,
    describe_unused_accelerator,
    training_device,
)
from studyloom.views.doctor import list_devices
from studyloom.worker import local
from studyloom.worker.local import Local, build_launcher, visible_gpus
from studyloom.worker.process import find_launcher_class
from studyloom.worker.stopping import Stop
from studyloom.worker.task import Task

# Trials of four epochs, whose workers can be met in the second.
TWO = (*QUICK, "model._target_=gate.Net", "train.epochs=4", "launcher.workers=2", "study.trials=4")
HERE = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'helpers'}"}


def stored_study(run_dir):
    return open_study(f"sqlite:///{run_dir}/study.db", "mnist")


def pids(worker_ids):
    return [int(worker_id.rpartition(":")[2]) for worker_id in worker_ids]


def at_work(run_dir, **extra):
    """Starts a command with two workers, which wait in the midst of a trial for a gate file.

    Returns the process, and the ids of the workers in the ledger.
    """
    extra |= {"STUDYLOOM_TEST_GATE": str(run_dir / "gate"), **HERE}
    process = start(*TWO, f"run_dir={run_dir}", **extra)

    def working():
        assert process.poll() is None, process.communicate()
        if not (run_dir / "study.db").exists():
            return None
        try:
            stored = stored_study(run_dir)
        except ValueError:
            return None  # it is being created
        begun = {trial._trial_id for trial in stored.trials() if trial.intermediate_values}
        ids = [slot.owner for slot in stored.ledger.held() if slot.trial_id in begun]
        return ids if len(ids) == 2 else None

    return process, until(working)


def finish(run_dir):
    done = study(*TWO, "launcher.workers=1", f"run_dir={run_dir}", **HERE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_complete(run_dir, trials=4):
    stored = stored_study(run_dir)
    assert [trial.number for trial in stored.trials()] == list(range(trials))
    assert {trial.state for trial in stored.trials()} == {TrialState.COMPLETE}
    assert stored.ledger.counts() == {"free": 0, "held": 0, "done": trials}


@pytest.mark.chaos
@linux
def test_a_stop_hands_all_trials_back_and_the_same_command_resumes(tmp_path):
    """tests/chaos has the other signals."""
    process, _ = at_work(tmp_path)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped; the same command resumes here" in out
    assert "Traceback" not in err
    assert processes_of(tmp_path) == []
    assert stored_study(tmp_path).ledger.counts()["held"] == 0
    assert "resumes" in finish(tmp_path)
    assert_complete(tmp_path)


@linux
@pytest.mark.chaos
def test_a_second_stop_ends_at_once(tmp_path):
    process, worker_ids = at_work(tmp_path)
    os.kill(pids(worker_ids)[0], signal.SIGSTOP)  # it will not follow the first
    process.send_signal(signal.SIGINT)
    assert "stopping" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)
    assert process.returncode == 130
    until(lambda: processes_of(tmp_path) == [], 10)
    assert stored_study(tmp_path).ledger.counts()["held"] == 0


# Each trial writes the id of its process to a file, whose name is an argument of the network.
NOTED = """
import os, torch

class Net(torch.nn.Linear):
    def __init__(self, shape, classes, file):
        super().__init__(784, classes)
        self.file = file

    def train(self, mode=True):
        if mode and not hasattr(self, "noted"):
            self.noted = True
            with open(self.file, "a") as file:
                print(os.getpid(), file=file)
        return super().train(mode)

    def forward(self, images):
        return super().forward(images.flatten(1))
"""


@pytest.mark.chaos
@pytest.mark.parametrize("portable", ["", "1"])
def test_a_worker_is_replaced_after_as_many_trials_as_recycle_says(tmp_path, portable):
    (tmp_path / "noted.py").write_text(NOTED)
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "STUDYLOOM_PORTABLE": portable}
    network = ["model._target_=noted.Net", f"+model.file={tmp_path / 'pids'}", *BARE]
    quick = [override for override in QUICK if not override.startswith("model.")]
    recycled = ("launcher.workers=1", "launcher.recycle=2", "study.trials=5")
    done = study(*quick, *network, *recycled, f"run_dir={tmp_path / 'run'}", **environment)
    assert done.returncode == 0, done.stderr
    assert "a worker ended" not in done.stderr
    assert_complete(tmp_path / "run", trials=5)
    processes = (tmp_path / "pids").read_text().split()
    # The command itself tries the network before trial 0.
    _, *trials_of_workers = [len([*group]) for _, group in itertools.groupby(processes)]
    assert trials_of_workers == [2, 2, 1]


# Without forks, as on other systems than Linux


@pytest.mark.chaos
@linux
def test_workers_without_forks_do_not_outlive_a_killed_launcher(tmp_path):
    process, worker_ids = at_work(tmp_path, STUDYLOOM_PORTABLE="1")
    assert all(b"launcher=join" in command_of(pid) for pid in pids(worker_ids))
    process.kill()
    process.communicate()
    until(lambda: processes_of(tmp_path) == [], 10)
    finish(tmp_path)
    assert_complete(tmp_path)


@pytest.mark.chaos
def test_a_study_comes_to_the_same_values_without_forks_bit_for_bit(tmp_path):
    found = []
    for portable in ("", "1"):
        run_dir = tmp_path / f"portable{portable}" / "run"
        # What takes a key of the launcher away is not for its workers, which have another one.
        overrides = (*TWO, "~launcher.per_gpu", f"run_dir={run_dir}")
        process = start(*overrides, STUDYLOOM_PORTABLE=portable, **HERE)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        trials = stored_study(run_dir).trials()
        found.append([(trial.params, trial.intermediate_values, trial.value) for trial in trials])
    assert found[0] == found[1]


# Trials that end their workers

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
    """A function that runs a command whose every trial does a deed to its worker."""
    (tmp_path / "deadly.py").write_text(DEADLY)
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    network = ["model._target_=deadly.Net", *BARE]
    quick = [override for override in QUICK if not override.startswith("model.")]

    def run(deed, *overrides):
        own = (*quick, *network, f"+model.deed={deed}", *overrides, f"run_dir={tmp_path / 'run'}")
        done = study(*own, **environment)
        return done.returncode, done.stdout, done.stderr, stored_study(tmp_path / "run")

    return run


@pytest.mark.chaos
def test_a_trial_that_always_kills_its_worker_fails(deadly):
    """With a time limit a single worker has a process too."""
    two = ("study.max_attempts=2", "study.trial_timeout=300")
    code, out, err, stored = deadly("die", "study.trials=1", "launcher.workers=1", *two)
    assert code == 1  # no trial has a value
    assert "crashed  1 × such as: 2 workers crashed in this trial" in out
    assert "Traceback" not in err
    (trial,) = stored.trials()
    assert (trial.state, trial.user_attrs["failure"]) == (TrialState.FAIL, "crashed")
    assert stored.ledger.counts() == {"free": 0, "held": 0, "done": 1}


@pytest.mark.chaos
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
def test_workers_that_die_before_a_claim_end_the_command_with_their_log(
    tmp_path,
):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, threading\n"
        "threading.active_count = lambda: 2\n"  # so that workers are commands
        "if 'STUDYLOOM_WORKER' in os.environ:\n"
        "    print('no such library', flush=True)\n"
        "    os._exit(1)\n"
    )
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{HERE['PYTHONPATH']}"}
    process = start(*TWO, f"run_dir={tmp_path / 'run'}", **environment)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "workers die before they claim a trial" in err
    assert "no such library" in err
    assert "Traceback" not in err


# Placement


@pytest.fixture
def machine(monkeypatch):
    """A function that sets the GPUs of a machine with eight cores."""

    def with_gpus(*names):
        monkeypatch.setattr(local, "count_cores", lambda: 8)
        monkeypatch.setattr(local, "visible_gpus", lambda: list(names))

    return with_gpus


def test_auto_is_one_worker_per_gpu_or_core_up_to_the_open_slots(machine):
    machine()
    assert Local().count_workers(100) == 8
    assert (Local(workers=5).count_workers(2), Local().count_workers(0)) == (2, 0)
    machine("0", "1", "2")
    assert Local().count_workers(100) == 3
    assert Local(per_gpu=2).count_workers(100) == 6


def test_no_worker_is_started_where_others_have_ended_the_last_trials(machine, tmp_path):
    machine()
    logs = tmp_path / "logs"
    logs.mkdir()
    for launcher in (Local(workers=2), Local()):
        limits = Limits(trial_timeout=9.0)
        task = Task(lambda stop: None, lambda: 0, None, logs, limits, "s")
        launcher.launch(task, Stop())
    assert [*logs.iterdir()] == []


class MyLocal(Local):
    pass


@pytest.mark.parametrize(
    ("target", "may_fork"),
    [
        ("studyloom.worker.Local", True),
        ("studyloom.worker.local.Local", True),
        (f"{__name__}.MyLocal", True),
        ("studyloom.worker.Join", False),
        ("studyloom.extras.slurm.Slurm", False),
        ("studyloom.worker.Lokal", False),  # reported elsewhere
        (None, False),
    ],
)
def test_a_launcher_is_recognized_by_its_class_and_not_its_name(target, may_fork):
    section = target and {"_target_": target}
    found = find_launcher_class(StudyConfig({}, {"launcher": section}, ()))
    assert (found is not None and found.may_fork) == may_fork


def test_a_launcher_is_a_subclass_of_launcher():
    config = StudyConfig({}, {"launcher": {"_target_": "collections.Counter"}}, ())
    with pytest.raises(ConfigError, match=r"collections\.Counter: must be a subclass of study"):
        build_launcher(config)


def test_each_worker_has_its_devices_and_its_share_of_the_cores(machine):
    machine("4", "7")
    environments = Local(workers=4).make_environments(4)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments] == ["4", "7", "4", "7"]
    assert {e["OMP_NUM_THREADS"] for e in environments} == {"2"}
    machine("0", "1", "2", "3")
    two = Local(gpus=2)
    assert two.count_workers(100) == 2
    seen = [variables["CUDA_VISIBLE_DEVICES"] for variables in two.make_environments(3)]
    assert seen == ["0,1", "2,3", "0,1"]
    three = Local(gpus=3)
    assert three.count_workers(100) == 1
    assert three.make_environments(1)[0]["CUDA_VISIBLE_DEVICES"] == "0,1,2"
    machine()
    (first, *_) = Local(workers=16).make_environments(16)
    assert first["OMP_NUM_THREADS"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in first


def test_workers_get_only_the_devices_that_this_process_sees(monkeypatch):
    monkeypatch.setattr(local.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert visible_gpus() == ["3", "5"]
    monkeypatch.setattr(local.torch.cuda, "device_count", lambda: 0)
    assert visible_gpus() == []


def test_each_mig_slice_is_counted_although_cuda_counts_one(monkeypatch):
    """A process can use one slice only: CUDA shows it the first that it may see."""
    monkeypatch.setattr(local.torch.cuda, "device_count", lambda: 1)
    slices = ["MIG-8f2a", "MIG-GPU-77e1/1/0", "MIG-c9d0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(slices))
    assert visible_gpus() == slices
    assert Local().count_workers(100) == 3
    environments = Local().make_environments(3)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments] == slices
    with pytest.raises(ValueError, match=r"launcher\.gpus=2: a process can use a single MIG slice"):
        Local(gpus=2)
    monkeypatch.setattr(local.torch.cuda, "device_count", lambda: 0)
    assert visible_gpus() == []


@pytest.mark.parametrize("names", ["MIG-8f2a", "GPU-77e1,GPU-c9d0", "7"])
def test_a_gpu_that_the_variable_names_and_cuda_lacks_is_named(monkeypatch, names):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    assert f"CUDA_VISIBLE_DEVICES={names}: PyTorch finds no" in describe_unused_accelerator()
    for none in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert describe_unused_accelerator() is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert describe_missing_gpu() is None


@pytest.mark.parametrize(
    ("accelerator", "words"),
    [
        ("xpu", "studyloom does not support the accelerator xpu of this machine"),
        ("mps", "the GPU of this Mac is not used; STUDYLOOM_DEVICE=mps trains on it"),
    ],
)
def test_an_accelerator_that_is_not_used_is_named(machine, monkeypatch, accelerator, words):
    machine()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(accelerator))
    for definition in (ask(), ask(*LOOP)):
        assert definition.notes(TrainingData())[-1].startswith(words)
    assert list_devices().message.startswith(words)
    monkeypatch.setenv("STUDYLOOM_DEVICE", "mps")
    if accelerator == "mps":
        assert ask().notes(TrainingData()) == []
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        assert list_devices().message == "a Mac's, on which workers train"


def test_the_gpu_of_a_mac_is_used_where_it_is_named_and_is_there(machine, monkeypatch, tmp_path):
    machine()
    monkeypatch.setenv("STUDYLOOM_DEVICE", "mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    done = study_here(*QUICK, f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "STUDYLOOM_DEVICE=mps: PyTorch finds no GPU of a Mac here; unset it" in done.stderr
    assert not (tmp_path / "run" / "study.db").exists()
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    check_device()
    assert training_device() == torch.device("mps")
    assert Local().count_workers(9) == 1
    assert Local(per_gpu=2).count_workers(9) == 2
    monkeypatch.setenv("STUDYLOOM_DEVICE", "tpu")
    with pytest.raises(ConfigError, match="must be mps, or unset; got 'tpu'; unset it"):
        check_device()


def test_invalid_numbers_of_a_launcher_are_refused_by_key(machine):
    machine("0", "1", "2", "3")
    for launcher, name, value in (
        (Local, "workers", "two"),
        (Local, "per_gpu", 0),
        (Local, "gpus", True),
        (Local, "recycle", 0),
        (Slurm, "cpus", 0),
        (Ray, "num_cpus", 0),
    ):
        with pytest.raises(ValueError, match=rf"launcher\.{name} must be .*; got {value!r}"):
            launcher(**{name: value})
    with pytest.raises(ValueError, match=r"launcher\.gpus=5: this process sees 4 GPUs; choose"):
        Local(gpus=5)
    with pytest.raises(ValueError, match=r"got gpus=2 and per_gpu=3; leave one of them at 1"):
        Local(gpus=2, per_gpu=3)


def test_a_single_worker_that_sees_several_gpus_is_a_process(machine, tmp_path):
    machine("0", "1")
    task = Task(lambda stop: None, lambda: 1, None, tmp_path, Limits(), "s")
    assert Local(workers=1).works_here(task, 1)
    assert not Local(workers=1, gpus=2).works_here(task, 1)
    assert not Local(workers=1, recycle=5).works_here(task, 1)
