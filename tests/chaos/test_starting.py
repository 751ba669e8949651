"""What a command waits for before it begins: which libraries are imported, and which are not."""

import subprocess
import sys

import pytest
from commands import BARE, QUICK, ROOT, environment, study

pytestmark = pytest.mark.chaos

# Each takes from a tenth of a second to several seconds.
HEAVY = {"alembic", "hydra", "joblib", "pandas", "plotly", "ray", "scipy", "sklearn", "torch"}
LATER = {  # what a search does without, or its first trial does
    *("alembic", "optuna_dashboard", "pandas", "plotly", "ray", "scipy", "sklearn", "sympy"),
    *("torch._dynamo", "torch._inductor", "torchvision", "PIL"),
}
LOOK = """
import sys
from studyloom.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""
SPY = """
import os, sys
from pathlib import Path
from torch import nn

class Net(nn.Sequential):
    def __init__(self, shape, outputs):
        super().__init__(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], outputs))
        with open(os.environ["SPIED"], "a") as file:
            print(*sys.modules, file=file)
"""


def run(*command, **extra):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment(**{"PYTHONPATH": str(ROOT)} | extra),
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A study with so many trials that its parameters have importances."""
    folder = tmp_path_factory.mktemp("looked") / "run"
    done = study(*QUICK, "study.trials=12", "launcher.workers=1", f"run_dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def imported(*arguments):
    """What a command prints, and the modules that it has imported by its end."""
    done = run("-c", LOOK, *arguments)
    assert done.returncode == 0, done.stderr
    *messages, modules = done.stderr.splitlines()
    assert messages == []
    return done.stdout, {*modules.split()}


def test_a_command_that_reads_a_study_imports_nothing_slow(run_dir):
    for command, option in (("status", "--json"), ("trials", "--csv")):
        printed, modules = imported(command, run_dir, option)
        assert "optuna" in modules
        assert modules & HEAVY == set()
        assert "optimizer.lr" in printed  # which matters most, by its importance


def test_help_imports_nothing_slow():
    light = {"numpy", "omegaconf", "optuna", "rich", "sqlalchemy", "yaml"}
    for arguments in (("--help",), ("status", "--help")):
        _, modules = imported(*arguments)
        assert modules & (HEAVY | light) == set()


def test_a_search_begins_before_imports_that_it_does_not_need(tmp_path):
    (tmp_path / "spy.py").write_text(SPY)
    command = ("-m", "studies.mnist", *QUICK, "model._target_=spy.Net", *BARE)
    command = tuple(item for item in command if not item.startswith("model.hidden"))
    path = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "SPIED": str(tmp_path / "modules.txt")}
    done = run(*command, "study.trials=1", f"run_dir={tmp_path / 'run'}", **path)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, modules = (tmp_path / "modules.txt").read_text().splitlines()  # of the trial, the last
    assert {"torch", "optuna", "hydra", "sqlalchemy"} <= {*modules.split()}
    assert {*modules.split()} & LATER == set()
