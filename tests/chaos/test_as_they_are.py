"""A command, and a Hydra application, tuned as they are by real commands of ours.

Their files are those of people: none has a line of ours, and none is changed.
"""

import re
from pathlib import Path

import psutil
import pytest
from commands import studyloom
from live_processes import until
from optuna.trial import TrialState
from projects import APPLICATION, BEGIN, COMMAND, SAVING, SCRIPT, write_project
from runs import Run, kill

from studyloom.processes import is_alive

pytestmark = pytest.mark.chaos

STUDY = """
defaults:
  [studyloom, sampler: random, pruner: none, storage: sqlite, launcher: local, space: none, _self_,
   override hydra/job_logging: none, override hydra/hydra_logging: none]
study: {name: own, trials: 3}
run_dir: run
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


class Project(Run):
    """A project in a folder, and commands of studyloom in it."""

    def __init__(self, folder: Path, files: dict[str, str], study: str) -> None:
        url, quick = f"sqlite:///{folder}/run/study.db", ("winner.enabled=false",)
        super().__init__(folder / "run", url, quick, name="own", trials=3)
        self.page, self.cwd = "conf/own.yaml", folder
        write_project(folder, files | {"conf/own.yaml": STUDY + study})
        self.files = {folder / name: (folder / name).read_text() for name in files}

    def ended(self, *arguments) -> str:
        printed = super().ended(*arguments)
        assert {path: path.read_text() for path in self.files} == self.files, "as they are"
        return printed

    def run(self, *overrides: str) -> str:
        return self.end(self.start(*overrides), 0)

    def scripts(self) -> list[int]:
        """The processes of the command that is tuned."""
        return [
            pid
            for pid in self.processes()
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"python\0main.py")
        ]

    def log(self, name: str) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob(f"logs/{name}")))

    def replay(self) -> str:
        """What the replay of a trial says, in the folder of the project."""
        done = studyloom("replay", self.folder, "--trial", 1, cwd=self.cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def outcomes(self):
        trials = self.stored().trials()
        return [(t.number, t.params, t.value, t.intermediate_values) for t in trials]


@pytest.fixture
def make(tmp_path):
    made = []

    def make(study=COMMAND, files=None, name="project"):
        made.append(Project(tmp_path / name, files or {"main.py": SCRIPT}, study))
        return made[-1]

    yield make
    for project in made:
        kill(project.processes())


def test_a_command_is_tuned_as_it_is_up_to_the_winner(make):
    project = make()
    printed = project.run("winner.enabled=true", "winner.top=1", "winner.seeds=2")
    assert "3 of 3 trials" in printed
    for trial in project.stored().trials():
        assert sorted(trial.intermediate_values) == [1, 2, 3, 4, 5, 6]
        assert trial.value == trial.intermediate_values[6]
    assert "winner" in printed
    assert "objective.test" not in printed
    assert "what it printed on new seeds is the result" in printed
    assert (project.folder / "winner.yaml").exists()
    assert re.search(r"^\$ python main.py --lr 0.1 --seed \d+", project.log("trial-0.log"))
    assert "equal bit for bit: 6 epochs" in project.replay()


@pytest.mark.nightly
@pytest.mark.parametrize("killed", ["worker of a session", "all"])
def test_a_command_killed_in_the_midst_resumes_to_the_undisturbed_values(make, killed, tmp_path):
    """From its own checkpoint, or from its start; in a session, as torchrun starts its ranks."""
    session = "setsid --wait " if killed != "all" else ""
    words = f"{session}python main.py --lr {{lr}} --seed {{seed}} --gate {tmp_path}/gate"
    gate = (f"objective.run='{words}'",)
    Path(tmp_path, "gate").touch()
    clean = make(name="clean")
    clean.run(*gate)
    Path(tmp_path, "gate").unlink()
    project = make()
    process = project.start(*gate)
    until(lambda: project.log("trial-*.log").count("Epoch: 4") == 2, 120)
    script = project.scripts()[0]
    if session:
        kill([parent(parent(script))])
        until(lambda: not is_alive(script), 30)
        Path(tmp_path, "gate").touch()
        project.end(process, 0)
    else:
        kill(project.processes())
        process.communicate()
        project.until_gone(30)
        Path(tmp_path, "gate").touch()
        project.run(*gate)
    assert project.outcomes() == clean.outcomes()
    again = re.split(r"^\$ ", project.log("*.log"), flags=re.MULTILINE)
    assert any("Epoch: 4" in text and "Epoch: 1 " not in text for text in again)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def kill_a_worker(project):
    """Kills a worker that runs a command of a project, and waits until the command is gone."""
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in project.processes()}
    commands = {pid for pid, line in lines.items() if b"main.py" in line.split(b"\0")}
    worker = min({parent(pid) for pid in commands} - commands)
    below = [process.pid for process in psutil.Process(worker).children(recursive=True)]
    kill([worker])
    until(lambda: not any(map(is_alive, below)), 30)


TORCHRUN = "python -m torch.distributed.run --standalone --nproc_per_node=2"


@pytest.mark.parametrize(
    "saved",
    [
        *("checkpoint.pth.tar", "out/ckpt.pt", "model.pt"),
        pytest.param("snapshot.pt", marks=pytest.mark.nightly),
    ],
)
def test_trials_that_save_to_a_relative_path_do_not_see_each_other(make, tmp_path, saved):
    """With two workers, one of which is killed, and next to what an earlier run has left."""
    files = {"main.py": BEGIN + SAVING[saved], "data/input.txt": "text", saved: "an earlier one"}
    study = COMMAND.replace("Average loss: (?P<value>\\S+),", "loss (?P<value>\\S+)")
    project = make(study.replace("Train Epoch:", "epoch"), files)
    program = TORCHRUN if saved == "snapshot.pt" else "python"
    gate = tmp_path / "gate"
    process = project.start(
        f"objective.run='{program} main.py {{lr}} {gate}'",
        *("winner.enabled=true", "winner.top=1", "winner.seeds=2"),
    )
    until(lambda: project.log("trial-*.log").count("epoch 2") == 2, 240)
    kill_a_worker(project)
    gate.touch()
    printed = project.end(process, 0)
    for trial in project.stored().trials():
        assert sorted(trial.intermediate_values) == [1, 2, 3, 4]
        assert trial.value == pytest.approx((1 - trial.params["params.lr"]) ** 4, abs=1e-11)
    rows = [line.split() for line in printed.splitlines()]
    winner = next(row for row in rows if row[:1] == ["winner,"])
    assert winner[-2] == winner[-1], "the re-evaluations have folders of their own"
    assert "runs its command again, in the same folder" in printed
    logs = [path.read_text() for path in project.folder.glob("logs/trial-*.log")]
    (resumed,) = [text for text in logs if text.count("$ ") == 2]
    assert resumed.count("epoch 1 ") == (2 if saved == "model.pt" else 1), "it found its own state"
    written = {path.relative_to(project.cwd).as_posix() for path in project.cwd.rglob("*.*")}
    outside = {path for path in written if not path.startswith("run/")}
    assert outside == {*files, "conf/own.yaml"}, "all is in the folders of the trials"
    assert not [*project.folder.glob("checkpoints/**/.work")]


def test_an_existing_hydra_application_is_tuned_as_it_is(make):
    project = make(HYDRA, APPLICATION)
    printed = project.run("winner.enabled=true", "winner.top=1", "winner.seeds=2")
    assert "3 of 3 trials" in printed
    for trial in project.stored().trials():
        lr, width = trial.params["optimizer.lr"], trial.params["model.width"]
        assert trial.value == pytest.approx(1 - (lr - 0.5) ** 2 - abs(width - 16) / 16)
    best = (project.folder / "best.yaml").read_text()
    assert "params:" in best
    assert project.run("study.trials=4")  # the same question, although ${now:…} is another
    assert "the value at the end" in project.replay()


@pytest.mark.nightly
def test_a_hydra_application_killed_in_the_midst_comes_to_the_same_values(make, tmp_path):
    gate = 'os.environ.get("STUDYLOOM_TEST_GATE", "/")'
    line = f"while not os.path.exists({gate}): time.sleep(0.01)"
    source = APPLICATION["src/train.py"].replace("import argparse", "import os, time, argparse")
    source = source.replace("argparse.Arg", f"{line}\n            argparse.Arg")
    clean, project = (make(HYDRA, APPLICATION | {"src/train.py": source}, n) for n in ("a", "b"))
    clean.run()
    process = project.start(STUDYLOOM_TEST_GATE=f"{tmp_path}/never")
    until(lambda: len([*project.folder.glob("checkpoints/**/trial-?-*")]) >= 2, 120)
    kill(project.processes())
    process.communicate()
    assert {trial.state for trial in project.stored().trials()} == {TrialState.RUNNING}
    project.run()
    assert project.outcomes() == clean.outcomes()
