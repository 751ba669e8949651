"""The rows of "How do I …" hold: each is run as it stands in the guide."""

import csv
import io
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import optuna.cli
import pytest
import torch
from commands import QUICK, ROOT, environment, study, study_here, studyloom
from scripts_to_tune import copy_scripts

import studyloom as sl
from studyloom.commands.parser import make_parser
from studyloom.extras.tune.command_line import parse_search
from studyloom.extras.tune.sweep_file import parse_sweep

GUIDE = ROOT / ".github/site/docs/guides/index.md"
ANSWERS = re.findall(r"^\| (\w.+?) \| (.+) \|$", GUIDE.read_text(), re.M)
FILE = """
def f2(outputs, targets):
    assert len(outputs) == len(targets)
    return 0.25
"""


def code_for(task: str) -> list[str]:
    """The pieces of code in a row, as a shell passes them."""
    return [word.removeprefix("'").removesuffix("'") for word in pieces_of(task)]


def pieces_of(task: str) -> list[str]:
    """The pieces of code in a row, as they stand."""
    return re.findall(r"`([^`]+)`", dict(ANSWERS)[task])


def call(code: str, folder: Path, **names: object) -> sl.Study:
    """Evaluates a call of `studyloom.search`; it trains two trials if it names no number."""
    few = {"trials": 2, "workers": 1, "quiet": True, "winner": {"enabled": False}}
    search = partial(sl.search, run_dir=folder / "called", **few)
    return eval(code, {"studyloom": SimpleNamespace(search=search)}, names)


def test_tune_a_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text("import argparse")
    _studyloom, *line = code_for("tune a script as it is")[0].split()
    arguments = make_parser().parse_args(line)
    search = parse_search(arguments.program, metric=arguments.maximize, direction="maximize").search
    assert search.command == ["python", "train.py", "--lr", "{lr}"]


def test_fix_change_limit_and_stop():
    asked = ("fix one hyperparameter", "change the search space", "stop early")
    overrides = [override for task in asked for override in code_for(task)]
    limits = code_for("limit the size of a model")
    sharing = code_for("share a GPU between trials")[:-1]
    done = study_here(*overrides, *limits, *sharing, "--dry-run")
    assert done.returncode == 0, done.stderr
    tree, config = done.stdout.split("one configuration")
    assert "train.batch_size" not in tree
    assert "lr: 0.0001 … 0.1 log" in tree
    assert "batch_size: 64" in config


@pytest.mark.chaos
def test_a_custom_metric_a_long_run_more_workers_csv_and_the_end(tmp_path):
    """One study from its first command to its end."""
    (tmp_path / "mine.py").write_text(FILE)
    env = environment(PYTHONPATH=str(tmp_path))
    metric = [part for part in code_for("use a custom metric") if part.startswith("objective")]
    overrides = [*QUICK[1:], *metric, "winner.top=1", "winner.seeds=1"]
    few = " ".join(f"'{override}'" for override in overrides)
    (line,) = code_for("run overnight")
    shell = line.replace("mnist", f"mnist study.trials=2 {few}").removesuffix("&")
    subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=env, check=True)
    log = (tmp_path / "log.txt").read_text()
    assert re.search(r"^winner, .* 0\.25", log, re.MULTILINE)

    more = code_for("add workers later")
    studyloom("run", "mnist", "study.trials=3", *overrides, *more, cwd=tmp_path)
    shown = studyloom(*code_for("get the trials as CSV")[0].split()[1:], cwd=tmp_path).stdout
    rows = [*csv.DictReader(io.StringIO(shown))]
    assert [float(row["value"]) for row in rows] == [0.25] * 3

    (load,) = (part for part in code_for("export for production") if "load" in part)
    winner = eval(load.replace("runs", f"{tmp_path}/runs"), {"studyloom": sl})
    assert winner.predict(torch.zeros(2, 1, 28, 28)).classes.shape == (2,)

    subprocess.run(code_for("delete a study")[0].split(), cwd=tmp_path, check=True)
    assert not (tmp_path / "runs/mnist").exists()


@pytest.mark.chaos
def test_a_shared_database_and_its_end(postgres_url, tmp_path, monkeypatch):
    override, variable = code_for("share a database")
    shared = (*QUICK, "study.trials=1", "launcher.workers=1", override)
    for host in ("a", "b"):
        done = study(*shared, f"run_dir={tmp_path}/{host}", **{variable: postgres_url})
        assert done.returncode == 0, done.stderr
    assert optuna.get_all_study_names(postgres_url) == ["mnist"]
    delete = code_for("delete a study")[1].replace("URL", postgres_url)
    monkeypatch.setattr(sys, "argv", delete.split())
    assert optuna.cli.main() == 0
    assert optuna.get_all_study_names(postgres_url) == []


class Net(torch.nn.Linear):
    def __init__(self, shape, outputs):
        super().__init__(*shape, outputs)


def test_without_yaml(tmp_path):
    inputs, targets = torch.rand(200, 4), torch.arange(200) % 3
    parts = {"train": (inputs, targets), "test": (inputs, targets)}
    code = code_for("do without YAML")[0]
    found = call(code, tmp_path, Net=Net, Float=sl.Float, **parts)
    assert found.trials["params.optimizer.lr"].between(1e-4, 1e-1).all()


def objective(trial):
    return trial.suggest_float("x", 0, 1)


def test_from_optuna(tmp_path):
    found = call(code_for("come from Optuna")[0], tmp_path, objective=objective)
    assert len(found.trials) == 20


def test_from_wandb_sweeps(tmp_path, monkeypatch):
    monkeypatch.chdir(copy_scripts(tmp_path / "project"))
    _studyloom, *line = code_for("come from W&B sweeps")[0].split()
    arguments = make_parser().parse_args(line)
    shutil.copy("sweeps/random.yaml", arguments.sweep)
    assert parse_sweep(Path(arguments.sweep)).search.trials == 6


def train(run, *, x=1.0):
    _, report, end, *_ = code_for("come from Ray Tune")
    exec(report, {"run": run, "x": x})
    return eval(end.removeprefix("return "), {"run": run})


def test_from_ray_tune(tmp_path):
    space = {"x": sl.Float(0.0, 1.0)}
    code = "studyloom.search(train, space=space, minimize='loss')"
    found = call(code, tmp_path, train=train, space=space)
    assert [found.best.value] == [*found.best.params.values()]
