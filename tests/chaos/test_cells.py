"""Studies of a notebook's own network and loop: workers and kernels that die cost nothing."""

import json
import os
import re
import subprocess
import sys

import pytest
from commands import ROOT, environment, studyloom
from live_processes import linux, until
from runs import Run, holder, kill
from test_readme import blocks

from studyloom.processes import is_alive
from studyloom.storage.opening import open_study

pytestmark = [pytest.mark.chaos, linux]

MODULE = """\
import math
import os
import time

import torch
from torch import nn


def wait(step):
    gate = os.environ.get("STUDYLOOM_TEST_GATE")
    while gate and step == 4 and not os.path.exists(gate):
        time.sleep(0.01)


class Net(nn.Sequential):
    steps = 0

    def __init__(self, shape, outputs, width=16, dropout=0.0):
        layers = nn.Linear(math.prod(shape), width), nn.ReLU(), nn.Linear(width, outputs)
        super().__init__(nn.Flatten(), *layers, nn.Dropout(dropout))

    def forward(self, inputs):
        self.steps += self.training
        wait(self.steps)
        return super().forward(inputs)


def load(part):
    count = {"train": 200, "test": 40}[part]
    inputs = torch.randn(count, 2, generator=torch.Generator().manual_seed(count))
    return inputs, (inputs.sum(1) > 0).long()


def make_net(width):
    return nn.Linear(2, width)


def train_one_epoch(net, optimizer):
    net.steps = getattr(net, "steps", 0) + 1
    wait(net.steps)
    optimizer.zero_grad()
    net(torch.ones(2)).square().sum().backward()
    optimizer.step()


def evaluate(net):
    return 1 / (1 + net(torch.ones(2)).square().sum().item())


def objective(trial):
    lr = trial.suggest_float("lr", 0.01, 1, log=True)
    value = 0.0
    for depth in range(trial.suggest_int("depth", 1, 3)):
        value += trial.suggest_float(f"width_{depth}", 0, 1)
    for step in range(1, 7):
        wait(step)
        trial.report(value - abs(lr - 0.1), step)
    return value
"""
DATA = "train, test = load('train'), load('test')\ninputs = test[0]\n"
FEW = 'trials=4, sampler="random", pruner="none", study={"lease": 5.0}, '
BLOCKS = blocks((ROOT / "README.md").read_text(), "python")  # a network, and a loop
SEARCHES = (
    """\
study = sl.search(
    Net, data=(train, test), workers=2,
    space={"model": {"width": sl.Int(4, 256, log=True), "dropout": sl.Float(0, 0.5)},
           "optimizer": {"adamw": {"lr": sl.Float(1e-4, 1e-1, log=True)},
                         "sgd": {"lr": sl.Float(1e-3, 1, log=True),
                                 "momentum": sl.Float(0, 0.99)}}})
study.winner.predict(inputs)
""",
    BLOCKS[1],
    'sl.search(objective, maximize="accuracy", workers=2)\n',
)
HEAD = """\
defaults: [studyloom, sampler: random, pruner: none]
study: {name: mine, trials: 4}
launcher: {workers: 2}
"""
NETWORK = """\
data:
  _target_: studyloom.data.Loaded
  load: {_target_: mine.load, _partial_: true}
  validation: 40
model: {_target_: mine.Net}
train: {epochs: 3}
winner: {top: 1, seeds: 2}
space:
  model: {width: {int: [4, 256], log: true}, dropout: {float: [0, 0.5]}}
  optimizer:
    adamw: {lr: {float: [0.0001, 0.1], log: true}}
    sgd: {lr: {float: [0.001, 1], log: true}, momentum: {float: [0, 0.99]}}
"""
LOOP = """\
objective: {_target_: mine.train, metric: accuracy, direction: maximize}
space: {params: {width: {int: [4, 256], log: true}}}
"""
OBJECTIVE = "objective: {_target_: mine.objective, metric: accuracy, direction: maximize}\n"


class Notebook(Run):
    """Two cells, which a kernel runs from the start each time."""

    def __init__(self, folder, *cells):
        super().__init__(
            folder / "runs" / "mine",
            f"sqlite:///{folder}/runs/mine/study.db",
            (),
            name="mine",
            trials=4,
        )
        self.cwd = folder
        (folder / "cells.json").write_text(json.dumps(cells))

    def start(self, *_, **extra):
        code = "import kernel; kernel.run_cells('cells.json')"
        paths = {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests' / 'helpers'}"}
        self.latest = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=self.cwd,
            env=environment(STUDYLOOM_TEST=self.mark, **paths, **extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self.latest


def results(stored):
    return sorted((t.number, sorted(t.params.items()), t.values) for t in stored.trials())


@pytest.mark.parametrize(
    ("number", "before", "yaml", "settings"),
    [
        (0, DATA, NETWORK, 'train={"epochs": 3}, winner={"top": 1, "seeds": 2}, '),
        pytest.param(1, "", LOOP, "", marks=pytest.mark.nightly),
        pytest.param(2, "", OBJECTIVE, "", marks=pytest.mark.nightly),
    ],
    ids=["network", "loop", "objective"],
)
def test_python_gives_the_trials_of_the_yaml_although_workers_are_killed(
    number, before, yaml, settings, tmp_path
):
    snippet = SEARCHES[number]
    for name in ("notebook", "yaml"):
        (tmp_path / name).mkdir()
    code = snippet.partition("\nsl.search")[0] if number == 1 else ""
    (tmp_path / "yaml" / "mine.py").write_text(MODULE + code)
    (tmp_path / "yaml" / "mine.yaml").write_text(HEAD + yaml)
    done = studyloom("run", "mine.yaml", cwd=tmp_path / "yaml", PYTHONPATH=str(ROOT / "src"))
    assert done.returncode == 0, done.stdout + done.stderr
    cell = snippet.replace("workers=2", f'name="mine", {FEW}{settings}workers=2')
    notebook = Notebook(tmp_path / "notebook", MODULE + before, f"import studyloom as sl\n{cell}")

    def kill_a_worker_and_the_kernel():
        first, *_ = (holder(slot) for slot in notebook.stored().ledger.held())
        kill([first])
        until(lambda: not is_alive(first), 20)
        kill([notebook.latest.pid])
        notebook.until_gone(20)

    notebook.at_work(meanwhile=kill_a_worker_and_the_kernel).communicate()
    printed = notebook.end(notebook.start(), 0)
    assert "since its worker died" in notebook.logs() + printed
    url = f"sqlite:///{tmp_path}/yaml/runs/mine/study.db"
    assert results(notebook.stored()) == results(open_study(url, "mine", deadline=30.0))
    if number == 0:
        card = (notebook.folder / "model_card.md").read_text()
        assert "was\n\n    class Net(nn.Sequential)" in card
        edited = MODULE.replace("step == 4", "step == 3") + before  # in a function that Net calls
        again = Notebook(tmp_path / "notebook", edited, f"import studyloom as sl\n{cell}")
        _, err = again.start().communicate(timeout=60)
        assert re.search(r"DefinitionError(.|\n)*the code of wait has changed since the study", err)


@pytest.mark.parametrize("way", ["file", "notebook"])
def test_the_first_example_of_the_readme_runs_unchanged(way, tmp_path):
    if way == "file":
        (tmp_path / "pasted.py").write_text(BLOCKS[0])
        command = ["pasted.py"]
    else:
        (tmp_path / "cells.json").write_text(json.dumps([BLOCKS[0]]))
        command = ["-c", "import kernel; kernel.run_cells('cells.json')"]
    paths = {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests' / 'helpers'}"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env=environment(**paths),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    winner = json.loads((tmp_path / "runs/digits/winner.json").read_text())
    assert winner["test"]["winner"]["mean"] > 0.9
    assert "20 of 20 trials" in done.stdout + done.stderr
