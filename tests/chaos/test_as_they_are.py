"""A command, and a Hydra application, tuned as they are by real commands of ours.

Their files are those of people: none has a line of ours, and none is changed.
"""

import os
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from commands import environment
from harness import until
from optuna.trial import TrialState
from projects import APPLICATION, COMMAND, SCRIPT, write_project

from studyloom.processes import is_alive
from studyloom.study.opening import open_study

pytestmark = pytest.mark.chaos

STUDY = """
defaults:
  [studyloom, sampler: random, pruner: none, storage: sqlite, launcher: local, space: none, _self_,
   override hydra/job_logging: none, override hydra/hydra_logging: none]
study: {name: own, trials: 3}
run_dir: run
winner: {enabled: false}
launcher: {workers: 2}
"""
HYDRA = """
objective:
  _target_: studyloom.extras.integrations.Hydra
  config: ../configs/train.yaml
  call: src.train.main
  metric: acc
  direction: maximize
space:
  optimizer.lr: {float: [0.01, 1.0]}
  model.width: {int: [4, 32]}
"""


class Project:
    """A project in a folder, and commands of studyloom in it."""

    def __init__(self, folder: Path, files: dict[str, str], study: str) -> None:
        self.files = files
        self.url = f"sqlite:///{folder}/run/study.db"
        self.folder = write_project(folder, files | {"conf/own.yaml": STUDY + study})
        self.contents = self.read()
        self.mark = uuid.uuid4().hex  # in the environment of all processes

    def read(self) -> dict[str, bytes]:
        return {name: (self.folder / name).read_bytes() for name in self.files}

    def start(self, *overrides: str, **extra: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "studyloom", "run", "conf/own.yaml"]
        return subprocess.Popen(
            [*command, *overrides],
            cwd=self.folder,
            env=environment(STUDYLOOM_TEST=self.mark, **extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, process: subprocess.Popen, code: int = 0) -> str:
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, (out, err, self.log("*"))
        until(lambda: not self.processes(), 10)
        assert self.read() == self.contents
        return out + err

    def run(self, *overrides: str, code: int = 0) -> str:
        return self.end(self.start(*overrides), code)

    def processes(self, first: bytes = b"") -> list[int]:
        """All processes of its commands, or those whose command line begins so."""
        pids = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                mine = f"STUDYLOOM_TEST={self.mark}".encode() in (process / "environ").read_bytes()
                if mine and (process / "cmdline").read_bytes().startswith(first):
                    pids.append(int(process.name))
            except OSError:
                continue
        return pids

    def log(self, name: str) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob(f"run/logs/{name}")))

    def trials(self):
        stored = open_study(self.url, "own", deadline=30.0)
        try:
            return stored.trials()
        finally:
            stored.close()

    def outcomes(self):
        return [(t.number, t.params, t.value, t.intermediate_values) for t in self.trials()]


@pytest.fixture
def make(tmp_path):
    made = []

    def make(study=COMMAND, files=None, name="project"):
        made.append(Project(tmp_path / name, files or {"main.py": SCRIPT}, study))
        return made[-1]

    yield make
    for project in made:
        for pid in project.processes():
            os.kill(pid, signal.SIGKILL)


def test_a_command_is_tuned_as_it_is_up_to_the_winner(make):
    project = make()
    printed = project.run("winner.enabled=true", "winner.top=1", "winner.seeds=2")
    assert "3 of 3 trials" in printed
    for trial in project.trials():
        assert sorted(trial.intermediate_values) == [1, 2, 3, 4, 5, 6]
        assert trial.value == trial.intermediate_values[6]
    assert "winner" in printed
    assert (project.folder / "run/winner.yaml").exists()
    assert re.search(r"^\$ python main.py --lr 0.1 --seed \d+", project.log("trial-0.log"))


@pytest.mark.nightly
@pytest.mark.parametrize("killed", ["command", "worker", "worker of a session", "all"])
def test_killed_at_a_random_moment_it_goes_on_to_the_values_of_the_undisturbed_run(
    make, killed, tmp_path
):
    """From its own checkpoint, or from its start."""
    session = "setsid --wait " if "session" in killed else ""  # as torchrun starts its ranks
    words = f"{session}python main.py --lr {{lr}} --seed {{seed}} --gate {tmp_path}/gate"
    gate = (f"objective.run='{words}'",)
    Path(tmp_path, "gate").touch()
    clean = make(name="clean")
    clean.run(*gate)
    Path(tmp_path, "gate").unlink()
    project = make()
    process = project.start(*gate)
    until(lambda: project.log("trial-*.log").count("Epoch: 4") == 2, 120)
    scripts = project.processes(b"python\0main.py")
    assert len(scripts) >= 2
    if killed.startswith("worker"):
        worker = parent(parent(scripts[0])) if session else parent(scripts[0])
        os.kill(worker, signal.SIGKILL)
        until(lambda: not is_alive(scripts[0]), 30)
    elif killed == "command":
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        until(lambda: not project.processes(), 30)
    else:
        for pid in project.processes():
            os.kill(pid, signal.SIGKILL)
        process.communicate()
    Path(tmp_path, "gate").touch()
    if killed.startswith("worker"):
        project.end(process)
    else:
        project.run(*gate)
    assert project.outcomes() == clean.outcomes()
    again = re.split(r"^\$ ", project.log("*.log"), flags=re.MULTILINE)
    assert any("Epoch: 4" in text and "Epoch: 1 " not in text for text in again)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_pruned_trial_ends_the_whole_process_group(make):
    """Also where a shell ignores SIGTERM, and has other processes."""
    files = {
        "main.py": SCRIPT,
        "run.sh": "trap '' TERM\nsleep 1000 &\npython main.py $@\nsleep 9\n",
    }
    project = make(files=files)
    project.run(
        "objective.run='sh run.sh --lr {lr} --seed {seed}'",
        "pruner=percentile",
        "pruner._target_=optuna.pruners.ThresholdPruner",
        "~pruner.percentile",
        "~pruner.n_startup_trials",
        "~pruner.n_warmup_steps",
        "+pruner.lower=1e9",
        "study.baseline=false",
        "launcher.workers=1",
        code=1,  # no trial has a result
    )
    trials = project.trials()
    assert [t.state for t in trials] == [TrialState.PRUNED] * 3
    assert [sorted(t.intermediate_values) for t in trials] == [[1]] * 3


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys\nprint('reading')\nsys.exit('no such data set')\n", "no such data set"),
        ("print('loss: 0.5')\n", r"objective.value found nothing, .* loss: 0.5"),
        ("print('Train Epoch: 1')\nprint('Average loss: high, ')\n", "'high', which is no number"),
        ("print('Train Epoch: 1')\nprint('Average loss: nan, ')\n", "expected a finite number"),
    ],
)
def test_a_command_that_gives_no_value_stops_the_study_with_its_last_lines(make, script, words):
    project = make(files={"main.py": script})
    printed = project.run(code=2 if "finite" in words else 1)
    assert re.search(words, printed), printed
    assert "Traceback" not in printed


def test_an_existing_hydra_application_is_tuned_as_it_is(make):
    project = make(HYDRA, APPLICATION)
    printed = project.run("winner.enabled=true", "winner.top=1", "winner.seeds=2")
    assert "3 of 3 trials" in printed
    for trial in project.trials():
        lr, width = trial.params["optimizer.lr"], trial.params["model.width"]
        assert trial.value == pytest.approx(1 - (lr - 0.5) ** 2 - abs(width - 16) / 16)
    best = (project.folder / "run/best.yaml").read_text()
    assert "params:" in best
    assert project.run("study.trials=4")  # the same question, although ${now:…} is another


def test_a_hydra_application_killed_in_the_midst_comes_to_the_same_values(make, tmp_path):
    waiting = APPLICATION["src/train.py"].replace(
        "import argparse\n", "import os, time, argparse\n"
    )
    gate = 'os.environ.get("STUDYLOOM_TEST_GATE", "/")'
    line = f"while not os.path.exists({gate}): time.sleep(0.01)"
    waiting = waiting.replace("argparse.Arg", f"{line}\n            argparse.Arg")
    files = APPLICATION | {"src/train.py": waiting}
    clean = make(HYDRA, files, name="clean")
    clean.run()
    project = make(HYDRA, files)
    process = project.start(STUDYLOOM_TEST_GATE=f"{tmp_path}/never")
    until(lambda: len([*project.folder.glob("run/checkpoints/**/trial-?-*")]) >= 2, 120)
    for pid in project.processes():
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert {trial.state for trial in project.trials()} == {TrialState.RUNNING}
    project.run()
    assert project.outcomes() == clean.outcomes()
