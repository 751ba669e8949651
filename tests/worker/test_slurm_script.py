"""The array script, against the one in array.sh and with shells for workers; and a task's command.

chaos/ has a real SLURM.
"""

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import QUICK, study
from live_processes import until

from studyloom.errors import LaunchError
from studyloom.extras.slurm import Slurm
from studyloom.storage.attributes import HALTED
from studyloom.storage.command_record import StoredCommand, begin_command
from studyloom.storage.failures import Limits
from studyloom.storage.opening import open_study
from studyloom.worker import task
from studyloom.worker.stopping import read_control, set_control
from studyloom.worker.task import Command, Task

GOLDEN = Path(__file__).with_name("array.sh")
STORAGE = "storage.url=${oc.env:STUDYLOOM_STORAGE}"
JOIN = ("launcher=join", "launcher.begins=false")
COMMAND = ["/venv/bin/python", "-m", "studies.mnist", STORAGE, *JOIN]


def script_of(slurm, command=COMMAND, folder="/projects/my study", logs="/scratch/100% mine/logs"):
    return slurm.script("my study", slurm.workers, command, Path(folder), Path(logs))


def test_the_script_is_the_one_in_the_file():
    lines = ["#SBATCH --account=mine", "module load cuda"]
    slurm = Slurm(workers=3, partition="long", time="2:30:00", memory="16G", lines=lines)
    assert script_of(slurm) == GOLDEN.read_text()


def test_settings_that_sbatch_would_not_take_are_refused_by_name():
    for name, value in (
        *(("workers", "auto"), ("time", 9000), ("gres", "gpu:1 --wrap=x"), ("lines", [1])),
    ):
        with pytest.raises(ValueError, match=rf"launcher\.{name} must be .*; got "):
            Slurm(**{name: value})


@pytest.fixture
def submission(tmp_path, monkeypatch):
    """A function that submits a task with a `sbatch` of its own, and returns what is printed."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(
        task.sys, "argv", ["x", "study.trials=9", "launcher=slurm", "launcher.gres=null"]
    )

    def submit(body, slots=9, **settings):
        (programs / "sbatch").write_text(f"#!/bin/sh\n{body}\n")
        (programs / "sbatch").chmod(0o755)
        run_dir = tmp_path / "run"
        work = Task(lambda stop: None, lambda: slots, SimpleNamespace(), run_dir, Limits(), "s")
        return Slurm(**settings).launch(work, lambda: False)

    return submit


def test_the_job_is_printed_with_how_to_watch_and_to_cancel_it(submission, tmp_path):
    printed = submission(f'echo "$@" > {tmp_path}/arguments; echo "17;main"', slots=2)
    path = tmp_path / "run" / "slurm.sh"
    assert (tmp_path / "arguments").read_text() == f"--parsable {path}\n"
    watch = ("squeue --job=17", "scancel 17", f"status {tmp_path}/run --watch")
    for words in (f"s: job 17, its script {path}", *watch):
        assert words in printed
    assert "--array=0-1\n" in path.read_text()  # no more tasks than slots
    assert "study.trials=9 launcher=join launcher.begins=false &" in path.read_text()
    assert (tmp_path / "run" / "logs").is_dir()  # SLURM makes no folder for its logs


def test_why_sbatch_refuses_a_job_is_reported(submission, monkeypatch):
    with pytest.raises(
        LaunchError, match=r"slurm: sbatch: error: invalid partition.*script is .*slurm\.sh"
    ):
        submission("echo 'sbatch: error: invalid partition' >&2; exit 1")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LaunchError, match="sbatch cannot be run here"):
        submission("")


# The command of a task, run after it has waited in the queue


class WaitingTask:
    """A task that is queued: its study was begun by another command, and has open trials.

    Attributes:
        stored: the study.
    """

    def __init__(self, run_dir):
        self.overrides = (*QUICK, "study.trials=2", f"run_dir={run_dir}")
        begun = study(*self.overrides, "launcher=join", "study.timeout=0.001")
        assert begun.returncode == 0, begun.stderr
        self.stored = open_study(f"sqlite:///{run_dir}/study.db", "mnist")

    def start(self, *overrides):
        """Starts the task, and waits for its end."""
        command = Command((), (*self.overrides, "launcher=slurm", *overrides))
        return study(*command.worker_arguments())


@pytest.fixture
def waiting_task(tmp_path):
    waiting = WaitingTask(tmp_path / "run")
    yield waiting
    waiting.stored.close()


def test_a_task_that_starts_after_a_stop_or_a_halt_ends_without_a_trial(waiting_task):
    stored = waiting_task.stored
    set_control(stored, "stop")
    stopped = waiting_task.start()
    assert stopped.returncode == 3
    resumption = "the command that began the study resumes here"
    assert f"stopped by studyloom stop; {resumption}" in stopped.stdout
    assert read_control(stored) == "stop"  # for the tasks after it
    stored.optuna.set_user_attr("control", None)
    stored.optuna.set_user_attr(HALTED, "RuntimeError: no kernel")
    halted = waiting_task.start()
    assert halted.returncode == 1
    assert "RuntimeError: no kernel" in halted.stderr
    assert stored.halted() == "RuntimeError: no kernel"
    assert stored.trials() == []


def test_a_task_joins_its_study_unless_its_config_has_changed_in_the_queue(waiting_task):
    changed = waiting_task.start("train.epochs=3")
    assert changed.returncode == 2
    assert "train.epochs: 2 → 3" in changed.stderr
    record = StoredCommand.read(waiting_task.stored).record
    begin_command(waiting_task.stored, replace(record, trials=3), 0.0)
    late = waiting_task.start()
    assert late.returncode == 2
    assert "study.trials=2: another command has raised it to 3" in late.stderr
    assert StoredCommand.read(waiting_task.stored).record.trials == 3, "it still has them to do"
    assert waiting_task.stored.trials() == []
    begin_command(waiting_task.stored, record, 0.0)
    joined = waiting_task.start()
    assert joined.returncode == 0, joined.stderr
    assert len(waiting_task.stored.trials()) == 2
    assert "launcher=join study.trials=4" in joined.stdout  # the command that continues the study


# The script, run


class RunningScript:
    """A script that runs with a shell command for its worker, and a `scontrol` that keeps its call.

    Args:
        tmp_path: where the script lies and its worker runs.
        worker: the shell command.
        usr2_before: the line before which the script gets USR2; None for no signal.
    """

    def __init__(self, tmp_path, worker, usr2_before=None):
        self.folder = tmp_path
        (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/scontrol-call\n')
        (tmp_path / "scontrol").chmod(0o755)
        script = script_of(Slurm(), ["sh", "-c", worker], tmp_path)
        if usr2_before is not None:
            script = script.replace(usr2_before, f"kill -USR2 $$; {usr2_before}", 1)
        (tmp_path / "script").write_text(script)
        variables = ("ARRAY_JOB_ID", "7"), ("ARRAY_TASK_ID", "2"), ("CPUS_PER_TASK", "3")
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        self.process = subprocess.Popen(
            ["bash", tmp_path / "script"],
            env=os.environ | {f"SLURM_{name}": to for name, to in variables} | {"PATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )

    def send_usr2(self):
        """Sends the signal once the worker is up."""
        until((self.folder / "up").exists)
        self.process.send_signal(signal.SIGUSR2)

    def end(self):
        """Waits for the end; returns the exit code, the output, and the call of scontrol."""
        out, _ = self.process.communicate(timeout=120)
        call = self.folder / "scontrol-call"
        return self.process.returncode, out, call.read_text().strip() if call.exists() else None


def test_on_usr2_a_worker_releases_its_trial_and_only_its_task_requeues(tmp_path):
    wait = "touch up; while :; do sleep 0.01; done"
    run = RunningScript(tmp_path, f"trap 'sleep 0.2; touch released; exit 143' TERM; {wait}")
    run.send_usr2()
    assert run.end() == (0, "", "requeue 7_2")
    assert (tmp_path / "released").exists()


def test_on_usr2_a_worker_without_work_is_not_queued_again(tmp_path):
    run = RunningScript(tmp_path, "trap 'exit 0' TERM; touch up; while :; do sleep 0.01; done")
    run.send_usr2()
    assert run.end() == (0, "", None)


@pytest.mark.parametrize("line", ["while [", "worker=$!"])
def test_usr2_before_the_worker_starts_queues_the_task_again(tmp_path, line):
    # exec: a process that outlives its shell would keep the output open.
    run = RunningScript(tmp_path, "exec sleep 600", usr2_before=line)
    assert run.end() == (0, "", "requeue 7_2")


def test_a_worker_that_ends_by_itself_ends_the_task_with_its_exit_code(tmp_path):
    for code in (0, 1, 2, 143):
        run = RunningScript(tmp_path, f"echo $OMP_NUM_THREADS; exit {code}")
        assert run.end() == (code, "3\n", None)


def test_a_worker_whose_gpu_a_trial_has_broken_is_started_again_each_time(tmp_path):
    lives = 7
    worker = f"echo up >> ups; [ $(wc -l < ups) = {lives} ] && exit 0; exit 75"
    assert RunningScript(tmp_path, worker).end() == (0, "", None)
    assert (tmp_path / "ups").read_text() == lives * "up\n"


def test_a_worker_that_is_killed_is_started_again_three_times(tmp_path):
    code, out, call = RunningScript(tmp_path, "echo up; kill -9 $$").end()
    assert (code, call) == (137, None)
    assert out.count("up\n") == 4
    assert out.count("the worker ended with signal 9\n") == 4
