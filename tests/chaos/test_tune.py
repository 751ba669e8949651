"""`studyloom tune` on twelve scripts that nobody has written for it, and under kills."""

import contextlib
import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import yaml
from commands import ROOT, environment, studyloom
from live_processes import until
from optuna.trial import TrialState
from projects import SCRIPT, write_project
from runs import Run, kill
from scripts_to_tune import CONVERTED_SWEEPS, LINES, copy_scripts

from studyloom.extras.adopt.wandb_folder import read_wandb_folder
from studyloom.extras.integrations.script import ScriptOutput

pytestmark = pytest.mark.chaos

TRIALS = 4
INCOMPLETE = {"constant", "listed"}  # these need an edit, or one more option


class Tuned(Run):
    """A folder with scripts, and commands `studyloom tune` in it."""

    def __init__(self, project: Path, name: str, *line: str) -> None:
        folder = project / "runs" / name
        quick = ("winner.enabled=false",)
        super().__init__(folder, f"sqlite:///{folder}/study.db", quick, name=name, trials=TRIALS)
        self.cwd = project
        self.line = line

    def start(self, *options: str, trials: int = TRIALS) -> subprocess.Popen:
        command = [sys.executable, "-m", "studyloom", "tune", "--trials", str(trials)]
        command += ["--workers", "2", "--set", "winner.enabled=false", *options, *self.line]
        self.latest = subprocess.Popen(
            command,
            cwd=self.cwd,
            env=environment(**self.environment | {"PYTHONPATH": str(ROOT)}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self.latest

    def outcomes(self):
        trials = self.stored().trials()
        return [(t.number, t.params, t.value, t.intermediate_values) for t in trials]


@pytest.fixture
def tune(tmp_path):
    runs = []

    def make(name, *options):
        line = LINES[name]
        for package in line.packages:
            if find_spec(package) is None:
                pytest.skip(f"{package} is missing")
        project = copy_scripts(tmp_path / "project")
        metric = (f"--{line.direction}", line.metric)
        runs.append(Tuned(project, name, *metric, *options, *shlex.split(line.words)))
        return runs[-1]

    yield make
    for run in runs:
        kill(run.processes())


@pytest.mark.parametrize("name", [name for name in LINES if name not in INCOMPLETE])
def test_a_script_is_tuned_from_one_line_without_an_edit(tune, name):
    run = tune(name)
    printed = run.end(run.start(), 0)
    assert f"{TRIALS} of {TRIALS} trials" in printed
    assert f"the same as: studyloom run runs/{name}/tune.yaml study.trials={TRIALS}" in printed
    baseline, *others = run.stored().trials()
    for trial in (baseline, others[-1]):
        assert last_value_of(trial) == value_by_hand(run, trial, LINES[name].metric)
    params = {key.removeprefix("params."): value for key, value in baseline.params.items()}
    assert params == LINES[name].baseline


def last_value_of(trial):
    steps = trial.intermediate_values
    return steps[max(steps)]


def value_by_hand(run, trial, metric):
    """Returns the last value of the metric that the command of a trial prints by itself."""
    log = (run.folder / f"logs/trial-{trial.number}.log").read_text()
    command = shlex.split(log.partition("\n")[0].removeprefix("$ "))
    by_hand = subprocess.run(
        command, cwd=run.cwd, env=environment(), capture_output=True, text=True
    )
    output = ScriptOutput("", None, lambda value, step: None, metric=metric)
    for line in by_hand.stdout.splitlines():
        output.read_line(line)
    output.end()
    return output.last_value


@pytest.mark.parametrize("name", CONVERTED_SWEEPS)
def test_a_sweep_file_runs_as_it_stands(name, tmp_path):
    if name == "hydra":
        pytest.importorskip("hydra")
    project = copy_scripts(tmp_path / "project")
    run = Tuned(project, name, "--sweep", f"sweeps/{name}.yaml", "--name", name)
    try:
        printed = run.end(run.start(), 0)
    finally:
        kill(run.processes())
    assert f"{TRIALS} of {TRIALS} trials" in printed
    metric = yaml.safe_load((project / f"sweeps/{name}.yaml").read_text())["metric"]["name"]
    complete = [trial for trial in run.stored().trials() if trial.state == TrialState.COMPLETE]
    trial = complete[-1]
    assert last_value_of(trial) == value_by_hand(run, trial, metric)


@pytest.mark.parametrize(
    ("name", "key"), [("normal", "lr.distribution: log_normal"), ("controller", "controller")]
)
def test_a_sweep_file_with_a_key_without_counterpart_starts_nothing(name, key, tmp_path):
    project = copy_scripts(tmp_path / "project")
    run = Tuned(project, name, "--sweep", f"sweeps/{name}.yaml", "--name", name)
    assert f"{key} has no counterpart" in " ".join(run.end(run.start(), 2).split())
    assert not run.folder.exists()


def test_a_sweep_ends_once_a_trial_has_reached_its_target(tmp_path):
    project = copy_scripts(tmp_path / "project")
    run = TunedToTarget(project, "target", "--sweep", "sweeps/target.yaml", "--name", "target")
    try:
        printed = run.end(run.start(trials=40), 0)
        assert "study.target=null" in printed, "the command that continues"
        before = run.outcomes()
        assert len(before) < 40
        run.end(run.start(trials=40), 0)
        assert run.outcomes() == before, "the same command begins no further trial"
    finally:
        kill(run.processes())


class TunedToTarget(Tuned):
    """A search that a target of 0.9 ends: the law of exit code 0 is then the stated end."""

    def check_success(self, printed: str) -> None:
        shown = studyloom("status", self.folder, "--json", **self.environment)
        reason = json.loads(shown.stdout)["end_reason"]
        assert f"the search {reason}" in printed
        number = int(re.search(r"trial (\d+) has reached study\.target=0\.9 with", reason)[1])
        trials = self.stored().trials()
        assert trials[number].value >= 0.9
        assert all(trial.state.is_finished() for trial in trials)


def test_a_script_without_arguments_says_so_before_any_work(tune):
    run = tune("constant")
    printed = run.end(run.start(), 2)
    assert "constant.py reads no arguments" in printed
    assert "line 3 has LR = 0.1" in printed
    assert not run.folder.exists()


def test_a_script_whose_values_have_no_name_needs_a_pattern(tune):
    run = tune("listed")
    printed = " ".join(run.end(run.start(), 1).split())
    assert "the script printed no value of score; it printed Epoch 3" in printed
    assert "numbers without a name: " in printed
    assert "find it by a regular expression (--value)" in printed
    assert "Epoch 3 of 3 | >> 2." in printed
    printed = run.end(run.start("--value", r">> (\S+) <<"), 0)
    assert "it is now runs/listed-failed" in printed
    assert run.stored().trials()[0].intermediate_values[3] == 2.03


EVALUATION = """
from pathlib import Path

print("accuracy =", float(Path("state.txt").read_text()) / 2)
"""
TRAINING = """
import argparse
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.5)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
for epoch in range(1, 4):
    print(f"epoch {epoch} accuracy={1 - abs(args.lr - 0.1) - 0.1 / epoch:.6f}")
Path("state.txt").write_text(str(args.lr))
"""


def test_another_program_tests_the_winner_in_its_folder(tmp_path):
    write_project(tmp_path / "project", {"train.py": TRAINING, "evaluate.py": EVALUATION})
    line = ("--maximize", "accuracy", "--test", "evaluate.py", "train.py", "--lr", "0.1:1.0@0.5")
    run = Tuned(tmp_path / "project", "train", *line)
    try:
        run.end(run.start("--set", "winner.enabled=true", "--set", "winner.seeds=2"), 0)
    finally:
        kill(run.processes())
    result = json.loads((run.folder / "winner.json").read_text())
    winner = min(trial.params["params.lr"] for trial in run.stored().trials())
    assert result["test"]["winner"]["values"] == [pytest.approx(winner / 2)] * 2


def scripts(run: Tuned) -> list[int]:
    pids = []
    for pid in run.processes():
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"python\0main.py"):
            pids.append(pid)
    return pids


def log_of(run: Tuned) -> str:
    return "\n".join(path.read_text() for path in sorted(run.folder.glob("logs/trial-*.log")))


@pytest.mark.parametrize("killed", ["worker", "all"])
def test_a_tuned_script_gives_the_same_trials_through_kills(killed, tmp_path):
    """The trials resume from the checkpoints that the script itself saves."""
    gate = tmp_path / "gate"
    line = ("--minimize", "Average loss", "--set", "sampler=random", "--set", "pruner=none")
    line += ("main.py", "--lr", "0.01:1.0:log", "--gate", str(gate))
    projects = {}
    for name in ("clean", "killed"):
        project = tmp_path / name / "project"
        write_project(project, {"main.py": SCRIPT})
        projects[name] = Tuned(project, "main", *line)
    clean, run = projects["clean"], projects["killed"]
    gate.touch()
    clean.end(clean.start(), 0)
    gate.unlink()
    try:
        process = run.start()
        until(lambda: log_of(run).count("Epoch: 4") == 2, 120)
        if killed == "all":
            kill(run.processes())
            process.communicate()
            run.until_gone(30)
            gate.touch()
            process = run.start()
        else:
            kill([psutil.Process(scripts(run)[0]).ppid()])
            gate.touch()
        assert f"{TRIALS} of {TRIALS} trials" in run.end(process, 0)
        assert run.outcomes() == clean.outcomes()
        run.trials = TRIALS + 2
        printed = run.end(run.start(trials=TRIALS + 2), 0)
        assert f"{TRIALS + 2} of {TRIALS + 2} trials" in printed, "more trials continue"
    finally:
        kill(run.processes())


LOGGED_TRIALS = 20


def curve_of_wandb(run, trial):
    """Returns the steps and values that W&B's own offline run of a trial's script has."""
    folder = run.cwd / f"by-hand-{trial.number}"
    folder.mkdir()
    layers = json.loads(trial.params["params.layers"])
    parameters = {"lr": {"value": trial.params["params.lr"]}, "layers": {"value": layers}}
    (folder / "parameters.yaml").write_text(yaml.safe_dump({"wandb_version": 1} | parameters))
    variables = {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
        "WANDB_SWEEP_PARAM_PATH": str(folder / "parameters.yaml"),
    }
    command = [sys.executable, "logged.py"]
    subprocess.run(command, cwd=run.cwd, env=environment(**variables), check=True)
    (record,) = read_wandb_folder(folder).records
    return dict(enumerate(record.values["val_loss"], start=1))


@pytest.fixture
def logged(tmp_path):
    """The sweep of a script that uses W&B, whose third epoch waits for `run.gate`."""
    pytest.importorskip("wandb")
    project = copy_scripts(tmp_path / "project")
    run = Tuned(project, "logged", "--sweep", "sweeps/logged.yaml")
    run.trials = LOGGED_TRIALS
    run.gate = tmp_path / "gate"
    waiting = (
        f"    while epoch == 3 and not os.path.exists({str(run.gate)!r}):\n"
        "        time.sleep(0.05)\n"
    )
    script = project / "logged.py"
    text = script.read_text().replace(
        "import wandb\n", "import os\nimport time\n\nimport wandb\n", 1
    )
    script.write_text(text.replace("    loss =", f"{waiting}    loss ="))
    yield run
    kill(run.processes())


def test_a_script_with_wandb_config_has_its_curve_through_kills(logged):
    run = logged
    remote_addresses = set()

    def both_wait():
        for pid in run.processes():
            with contextlib.suppress(psutil.Error):
                for connection in psutil.Process(pid).net_connections("inet"):
                    if connection.raddr:
                        remote_addresses.add(connection.raddr.ip)
        return log_of(run).count("W&B step 1 ") == 2

    process = run.start(trials=LOGGED_TRIALS)
    until(both_wait, 120)
    wrapped = [pid for pid in run.processes() if "sweep_run" in command_line(pid)]
    kill([psutil.Process(wrapped[0]).ppid()])
    run.gate.touch()
    assert f"{LOGGED_TRIALS} of {LOGGED_TRIALS} trials" in run.end(process, 0, 300)
    assert remote_addresses <= {"127.0.0.1", "::1"}
    first, *_, last = run.stored().trials()
    for trial in (first, last):
        assert trial.intermediate_values == curve_of_wandb(run, trial)


@pytest.mark.nightly
def test_a_script_with_wandb_config_has_all_curves_after_all_was_killed(logged):
    run = logged
    process = run.start(trials=LOGGED_TRIALS)
    until(lambda: log_of(run).count("W&B step 1 ") == 2, 120)
    kill([pid for pid in run.processes() if "studyloom tune" in command_line(pid)])
    process.communicate()
    run.until_gone(60)  # the scripts end with the driver and the workers
    run.gate.touch()
    process = run.start(trials=LOGGED_TRIALS)
    run.until_done(8)
    kill(run.processes())
    process.communicate()
    run.until_gone(30)
    process = run.start(trials=LOGGED_TRIALS)
    assert f"{LOGGED_TRIALS} of {LOGGED_TRIALS} trials" in run.end(process, 0, 300)
    trials = run.stored().trials()
    assert sorted(trial.user_attrs["slot"] for trial in trials) == [*range(LOGGED_TRIALS)]
    assert len({str(trial.params) for trial in trials}) == LOGGED_TRIALS
    for trial in trials:
        assert trial.intermediate_values == curve_of_wandb(run, trial)


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
