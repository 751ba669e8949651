"""Trainings with Lightning, Hugging Face and accelerate as studies: one body for all three."""

import copy
import json
import os
import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import studyloom
from optuna.trial import TrialState
from runs import Run, kill
from toys import Never

from studyloom import load_winner
from studyloom.config.study_config import StudyConfig
from studyloom.metrics import ObjectiveValue
from studyloom.objectives.loop import Loop, LoopObjective
from studyloom.objectives.loop_run import LoopJob
from studyloom.objectives.objective import Attempt
from studyloom.seeds import derive

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.filterwarnings("default"),  # of these libraries
]
TRAINERS = Path(__file__).parent / "trainers"
EPOCHS = 5
# The part of each user's module that is kept.
LIBRARIES = {"lightning": "module", "transformers": "model", "accelerate": "model"}


@pytest.fixture(params=LIBRARIES)
def library(request):
    if find_spec(request.param) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{request.param} is missing")
    return request.param


@pytest.fixture
def own(library, monkeypatch, tmp_path):
    """The user's module for a library."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.syspath_prepend(str(TRAINERS))
    monkeypatch.chdir(tmp_path)
    return import_module(f"own_{library}")


@pytest.fixture
def change(own, monkeypatch):
    """Changes the arguments of the user's trainer."""

    def change(**settings):
        if hasattr(own, "L"):
            make = own.L.Trainer
            names = {**vars(own.L), "Trainer": lambda **given: make(**given | settings)}
            monkeypatch.setattr(own, "L", SimpleNamespace(**names))
        else:
            make = own.TrainingArguments
            monkeypatch.setattr(own, "TrainingArguments", lambda **given: make(**given | settings))

    return change


class Killed(BaseException):
    """What ends a training in a test as a signal would."""


def objective(own, folder, lr=0.03, seed=7):
    sections = {"params": {"lr": lr, "epochs": EPOCHS}}
    config = StudyConfig(sections, sections, ())
    loop = Loop(own.train, config, [ObjectiveValue("loss", "minimize")])
    attempt = Attempt(1, "search", folder)
    return LoopObjective(loop, [LoopJob(0, seed)], trial=3, attempt=attempt)


def trained(made):
    """Runs an objective to its end."""
    value = made.run(lambda step: None, Never())
    return value, made.curves()["value"], made.weights()


def killed(made, epoch, folder):
    """Runs an objective until an epoch is reported; returns its state and folder of that moment."""
    saved = []

    def report(step):
        if step.number == epoch:
            saved.append(copy.deepcopy(made.state()))
            shutil.copytree(made.attempt.folder, folder)
            raise Killed

    with pytest.raises(Killed):
        made.run(report, Never())
    return saved[0]


@pytest.fixture
def whole(own, tmp_path):
    return trained(objective(own, tmp_path / "whole"))


@pytest.mark.parametrize("epoch", [1, EPOCHS - 1])
def test_a_training_killed_after_an_epoch_resumes_to_the_same_weights(
    own, library, tmp_path, whole, epoch
):
    state = killed(objective(own, tmp_path / "first"), epoch, tmp_path / "after")
    assert state["now"]["epoch"] == epoch
    assert state["now"]["kept"] == {}, "the trainer's own files hold the weights"
    again = objective(own, tmp_path / "after")
    again.restore(state)
    assert len(again.steps()) == epoch
    value, curve, weights = trained(again)
    assert (value, curve) == whole[:2]
    assert len(curve) == EPOCHS
    ((name, kept),) = whole[2].items()
    assert name == LIBRARIES[library]
    assert all(torch.equal(weights[name][key], tensor) for key, tensor in kept.items())


BEST = {
    "save_strategy": "best",
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
}


@pytest.mark.parametrize(
    ("library", "settings", "epoch"),
    [
        ("lightning", {"reload_dataloaders_every_n_epochs": 1}, 2),
        ("lightning", {"val_check_interval": 0.5}, 4),
        ("lightning", {"max_epochs": -1, "max_steps": 27}, 3),
        ("transformers", {"eval_strategy": "steps", "eval_steps": 4}, 4),
        ("transformers", {"max_steps": 21, "gradient_accumulation_steps": 2}, 3),
        ("transformers", BEST, 1),
    ],
    indirect=["library"],
    ids=str,
)
def test_a_trainer_may_validate_and_end_at_any_time(own, change, tmp_path, settings, epoch):
    change(**settings)
    made = objective(own, tmp_path / "whole")
    value, curve, _ = trained(made)
    state = killed(objective(own, tmp_path / "first"), epoch, tmp_path / "after")
    again = objective(own, tmp_path / "after")
    again.restore(state)
    assert len(again.steps()) == epoch < len(curve)
    assert trained(again)[:2] == (value, curve)


def test_a_study_killed_in_the_midst_ends_with_the_same_loadable_winner(own, library, tmp_path):
    overrides = tuple(
        f"objective.{key}=own_{library}.{name}"
        for key, name in (("_target_", "train"), ("test", "test"), ("network", "build"))
    )
    overrides += ("launcher.workers=1",)
    folder = tmp_path / "run"
    run = Run(folder, f"sqlite:///{folder}/study.db", overrides, name="own", trials=3)
    run.page, run.cwd = str(TRAINERS / "own.yaml"), tmp_path
    run.environment["PYTHONPATH"] += f":{TRAINERS}"
    process = run.start(STUDYLOOM_TEST_GATE=str(tmp_path / "never"))
    run.until_stored(lambda stored: any(len(t.intermediate_values) == 2 for t in stored.trials()))
    kill([process.pid])
    process.communicate()
    assert len(list((folder / "checkpoints").rglob("trial-0.pt"))) == 1
    run.end(run.start(), 0)
    assert [trial.state.name for trial in run.stored().trials()[:2]] == ["COMPLETE", "PRUNED"]
    for trial in run.stored().trials():
        at = {"lr": trial.params["params.lr"], "seed": derive(0, trial.number)}
        _, curve, _ = trained(objective(own, tmp_path / str(trial.number), **at))
        pruned = trial.state == TrialState.PRUNED
        assert [*trial.intermediate_values.values()] == curve[: 1 if pruned else EPOCHS]
        assert trial.value == curve[0 if pruned else -1]
    assert [path.name for path in (folder / "checkpoints").rglob("trial-*")] == []
    check_winner(own, library, run)
    check_predictions(own, library, run, tmp_path)


def check_winner(own, library, run):
    """Checks the test of the winner against the weights that are stored."""
    result = json.loads((run.folder / "winner.json").read_text())
    winner = load_winner(run.folder)
    assert set(winner.states) == {LIBRARIES[library]}

    class Stored:
        dir = run.folder / "out"

        def keep(self, **parts):
            winner.restore(**parts)

    assert own.test(winner.config, Stored(), None)["loss"] == pytest.approx(
        result["test"]["winner"]["mean"], abs=1e-6
    )


def check_predictions(own, library, run, folder):
    """Checks what the winner predicts, in Python and on the command line, by its own network."""
    words = library == "transformers"
    inputs = torch.randint(0, 16, (6, 5)) if words else torch.randn(6, 4)
    winner = load_winner(run.folder)
    network = own.build(winner.config) if library == "lightning" else own.build()
    winner.restore(**{LIBRARIES[library]: network})
    with torch.no_grad():
        outputs = network.eval()(inputs)
    expected = outputs.logits if words else outputs
    told = [winner.predict(inputs).values]
    told.append(load_winner(run.folder, network=own.build).predict(inputs.numpy()).values)
    if words:
        mask = torch.ones_like(inputs)
        told.append(winner.predict({"input_ids": inputs, "attention_mask": mask}).values)
    assert all(torch.allclose(values, expected, atol=1e-6) for values in told)
    np.save(folder / "some.npy", inputs.numpy())
    asked = ("predict", run.folder, folder / "some.npy", "--code", TRAINERS, "--json")
    done = studyloom(*asked, **run.environment)
    values = [result["values"] for result in json.loads(done.stdout)["predictions"]]
    assert np.allclose(values, expected, atol=1e-5), done.stderr
