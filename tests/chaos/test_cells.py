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

from studyloom.processes import is_alive

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

    def __init__(self, shape, outputs, width=16):
        layers = nn.Linear(math.prod(shape), width), nn.ReLU(), nn.Linear(width, outputs)
        super().__init__(nn.Flatten(), *layers)

    def forward(self, inputs):
        self.steps += self.training
        wait(self.steps)
        return super().forward(inputs)


def load(part):
    count = {"train": 100, "test": 40}[part]
    inputs = torch.randn(count, 2, generator=torch.Generator().manual_seed(count))
    return inputs, (inputs.sum(1) > 0).long()


def train(run, *, lr=0.1):
    weight = torch.nn.Linear(1, 1)
    run.keep(weight=weight)
    for epoch in run.epochs(6):
        wait(epoch)
        with torch.no_grad():
            weight.weight -= lr
        run.report(loss=abs(weight.weight.item() - epoch))
    return run.value
"""
NETWORK = """\
import studyloom as sl
study = sl.search(
    Net, data=(load("train"), load("test")), name="mine", trials=4, workers=2, seed=7,
    train={"epochs": 3, "batch_size": 32}, winner={"top": 1, "seeds": 2},
    space={"model": {"width": sl.Int(4, 64, log=True)},
           "optimizer": {"adamw": {"lr": sl.Float(1e-3, 0.1, log=True)},
                         "sgd": {"lr": sl.Float(0.01, 1)}}},
    sampler="random", pruner="none", study={"lease": 5.0})
print("predicted", len(study.winner.predict(load("test")[0]).classes))
"""
NETWORK_YAML = """\
defaults: [studyloom, sampler: random, pruner: none]
study: {name: mine, trials: 4, seed: 7}
launcher: {workers: 2}
data:
  _target_: studyloom.data.Loaded
  load: {_target_: mine.load, _partial_: true}
  validation: 20
model: {_target_: mine.Net}
train: {epochs: 3, batch_size: 32}
winner: {top: 1, seeds: 2}
space:
  model: {width: {int: [4, 64], log: true}}
  optimizer:
    adamw: {lr: {float: [0.001, 0.1], log: true}}
    sgd: {lr: {float: [0.01, 1]}}
"""
LOOP = """\
import studyloom as sl
study = sl.search(train, space={"lr": sl.Float(1e-3, 0.5, log=True)}, minimize="loss", name="mine",
                  trials=4, workers=2, sampler="random", pruner="none", study={"lease": 5.0})
print(study.winner)
"""
LOOP_YAML = """\
defaults: [studyloom, sampler: random, pruner: none]
study: {name: mine, trials: 4}
launcher: {workers: 2}
objective: {_target_: mine.train, metric: loss, direction: minimize}
space: {params: {lr: {float: [0.001, 0.5], log: true}}}
"""


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
        paths = {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}"}
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


@pytest.mark.parametrize(("cell", "yaml"), [(NETWORK, NETWORK_YAML), (LOOP, LOOP_YAML)])
def test_a_notebook_comes_to_the_trials_of_the_yaml_through_dead_workers_and_kernels(
    cell, yaml, tmp_path
):
    for name in ("notebook", "yaml"):
        (tmp_path / name).mkdir()
    (tmp_path / "yaml" / "mine.py").write_text(MODULE)
    (tmp_path / "yaml" / "mine.yaml").write_text(yaml)
    done = studyloom("run", "mine.yaml", cwd=tmp_path / "yaml", PYTHONPATH=str(ROOT / "src"))
    assert done.returncode == 0, done.stdout + done.stderr
    notebook = Notebook(tmp_path / "notebook", MODULE, cell)

    def kill_a_worker_and_the_kernel():
        first, *_ = (holder(slot) for slot in notebook.stored().ledger.held())
        kill([first])
        until(lambda: not is_alive(first), 20)
        kill([notebook.latest.pid])
        notebook.until_gone(20)

    notebook.at_work(meanwhile=kill_a_worker_and_the_kernel).communicate()
    printed = notebook.end(notebook.start(), 0)
    assert "goes on after epoch" in notebook.logs() + printed
    yaml_run = Run(
        tmp_path / "yaml" / "runs" / "mine",
        f"sqlite:///{tmp_path}/yaml/runs/mine/study.db",
        (),
        name="mine",
    )
    assert results(notebook.stored()) == results(yaml_run.stored())
    edited = Notebook(
        tmp_path / "notebook", MODULE.replace("nn.ReLU", "nn.Tanh").replace("abs(", "-abs("), cell
    )
    _, err = edited.start().communicate(timeout=60)
    assert re.search(r"QuestionError(.|\n)*code\.__main__\.", err)
