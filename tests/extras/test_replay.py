"""Replays of trials on toy images, and of tampered databases."""

import io
import json
from dataclasses import asdict
from pathlib import Path

import optuna
import pytest
import torch
from rich.console import Console
from toy_worker import FOLDER, RANDOM, SPLIT, fresh
from toy_worker import work as toy_work
from toys import EACH_KIND, KINDS, TINY, Signal, ask, begin, compose, toy_folds

from studyloom.data.sources import Embedded
from studyloom.data.split import make_folds
from studyloom.data.training_data import TrainingData
from studyloom.errors import ConfigError
from studyloom.extras.replay import replay
from studyloom.extras.replay.stored_trial import load_data
from studyloom.seeds import derive
from studyloom.storage.attributes import EPOCHS, FAILURE, PROVENANCE, REASON
from studyloom.storage.opening import open_study
from studyloom.worker.provenance import Provenance

RATES = (*TINY[:-1], "sampler=random", "space=lr", "pruner=none")  # one MLP, and a rate


@pytest.fixture(params=EACH_KIND)
def kind(request):
    """Overrides for a kind of training: networks of studyloom, or a custom loop."""
    return KINDS[request.param]


@pytest.fixture
def work(sqlite_url, tmp_path, monkeypatch):
    """A function that runs the trials of a toy study, and returns the stored study."""

    monkeypatch.setitem(FOLDER, "checkpoints", tmp_path)

    def run_worker(*overrides, trials=2, stopping=None):
        definition = ask(*overrides)
        stored = fresh(sqlite_url, definition, trials)
        folds = toy_folds(SPLIT, definition.config.objective.folds)
        toy_work(definition, stored, trials, stopping, folds)
        return stored

    return run_worker


@pytest.fixture
def again(monkeypatch):
    """A function that replays a trial on the toy images, and returns exit code and output."""
    monkeypatch.setattr(
        replay,
        "load_data",
        lambda cfg, provenance, _: TrainingData(None, SPLIT, toy_folds(SPLIT, cfg.objective.folds)),
    )

    def replay_again(stored, number=0):
        console = Console(file=io.StringIO(), width=100)
        code = replay.replay(stored, Path("nowhere"), number, ("toys",), console)
        return code, console.file.getvalue()

    return replay_again


def tampered(stored, number=0, **attributes):
    """Changes attributes of a trial that has ended, as anybody with the database could."""
    trial_id = stored.trials()[number]._trial_id
    with stored.ledger.storage.engine.begin() as connection:
        for key, value in attributes.items():
            sql = "UPDATE trial_user_attributes SET value_json = ? WHERE trial_id = ? AND key = ?"
            connection.exec_driver_sql(sql, (json.dumps(value), trial_id, key))
    return open_study(f"sqlite:///{stored.ledger.storage.retry.address.database}", "s")


def stored_provenance(stored, number=0):
    return json.loads(json.dumps(stored.trials()[number].user_attrs[PROVENANCE]))


def curve_of(stored, number=0):
    return json.loads(json.dumps(stored.trials()[number].user_attrs[EPOCHS]))


# Replays


def test_replayed_trials_are_equal_bit_for_bit_also_after_a_resume(work, again, kind):
    work(*RANDOM, *kind, stopping=Signal(2))
    stored = work(*RANDOM, *kind)
    assert [stored_provenance(stored, number)["claims"] for number in (0, 1)] == [2, 1]
    assert again(stored, 0)[0] == 0
    code, text = again(stored, 1)
    assert code == 0
    assert "equal bit for bit: 2 epochs of accuracy, train_loss, valid_loss" in text
    assert text.count("=") == 6
    assert "epoch 2/2" in text


def test_a_pruned_trial_is_replayed_up_to_its_last_epoch(work, again, kind, monkeypatch):
    pruner = optuna.pruners.MedianPruner
    monkeypatch.setattr(pruner, "prune", lambda self, study, trial: trial.number == 1)
    stored = work(*TINY, "sampler=random", "pruner=median", *kind, "train.epochs=4")
    assert stored.trials()[1].state == optuna.trial.TrialState.PRUNED
    code, text = again(stored, 1)
    assert (code, "equal bit for bit: 1 epoch of" in text) == (0, True), text
    assert "epoch 2/" not in text


def test_a_trial_that_diverged_diverges_again(work, again):
    diverging = ("optimizer=sgd", "optimizer.lr=1e30", "space.optimizer.lr.float=[1e29,1e31]")
    stored = work(*RATES, *diverging, trials=1)
    (trial,) = stored.trials()
    assert trial.user_attrs[FAILURE] == "diverged"
    code, text = again(stored)
    assert (code, "and the same failure" in text) == (0, True), text
    code, text = again(tampered(stored, **{REASON: "another"}))
    assert code == 1
    words = "different from epoch 1, failure: stored diverged (another), now diverged (train loss"
    assert words in " ".join(text.split())


def test_a_tampered_curve_is_reported_with_the_first_difference(work, again):
    stored = work(*RATES)
    curve = curve_of(stored)
    correct = curve["valid_loss"][1]
    curve["valid_loss"][1] += 1e-12
    code, text = again(tampered(stored, **{EPOCHS: curve}))
    words = " ".join(text.split())
    tampered_loss = curve["valid_loss"][1]
    assert code == 1
    assert f"different from epoch 2, valid_loss: stored {tampered_loss}, now {correct}" in words
    assert "nothing differs in code, versions, device, threads and commit" in words


def test_another_environment_has_a_tolerance_and_is_named(work, again):
    stored = work(*RATES)
    provenance = stored_provenance(stored)
    curve = curve_of(stored)
    provenance["environment"] |= {"torch": "1.0", "commit": "abc"}
    curve["train_loss"][0] *= 1.01
    code, text = again(tampered(stored, **{PROVENANCE: provenance, EPOCHS: curve}))
    assert code == 0
    words = "equal within tolerance: losses within 5%, accuracies within 1 of 40 validation"
    for line in (words, f"torch: 1.0 → {torch.__version__}", "commit: abc →"):
        assert line in text
    curve["value"][1] += 2 / 40
    code, text = again(tampered(stored, **{EPOCHS: curve}))
    assert code == 1
    assert "different from epoch 2, accuracy" in text
    assert "beyond the tolerance" in text


# What cannot be replayed


def test_a_missing_or_empty_trial_is_named_with_those_that_can_be_replayed(work, again):
    stored = work(*RATES, trials=3)
    begin(stored)
    for number, words in ((17, "17 does not exist"), (3, "3 has not stored")):
        with pytest.raises(ValueError, match=f"trial {words}.*; those that can be replayed: 0-2$"):
            again(stored, number)


def test_a_tampered_trial_is_reported_and_calls_nothing(work, again, tmp_path):
    stored = work(*RATES, trials=1)
    provenance = stored_provenance(stored)
    curve = curve_of(stored)
    canary = tmp_path / "canary"
    interpolated = {"model": {"_target_": "torch.nn.Linear", "x": "${oc.env:PATH}"}}
    for change, words in (
        ({"seed": None}, "trial 0 cannot be replayed: .*seed"),
        ({"config": [1]}, "config"),
        ({"config": {"train": {"epochs": "many"}}}, "many"),
        ({"config": interpolated}, "interpolation"),
    ):
        with pytest.raises(ValueError, match=words):
            again(tampered(stored, **{PROVENANCE: provenance | change}))
    evil = {"_target_": "os.system", "command": f"touch {canary}", "_partial_": False}
    for section in ("model", "optimizer", "scheduler", "data", "objective", "loss"):
        config = json.loads(json.dumps(provenance["config"]))
        (config["train"] if section == "loss" else config)[section] = evil
        with pytest.raises(ConfigError, match=r"os\.system .*--trust os"):
            again(tampered(stored, **{PROVENANCE: provenance | {"config": config}}))
    assert not canary.exists()
    tampered(stored, **{PROVENANCE: provenance})
    with pytest.raises(ValueError, match="trial 0 cannot be replayed"):
        again(tampered(stored, **{EPOCHS: {"value": [0.1]}}))
    for wrong in (
        curve | {"value": ["a", "b"]},
        [1, 2],
        {"value": 3},
    ):  # its reported values remain
        code, _ = again(tampered(stored, **{EPOCHS: wrong}))
        assert code == 0


def test_other_data_is_refused_with_both_digests(tmp_path):
    cfg, _ = compose(*TINY)
    split = Embedded().train()
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("data: {root: null}\n")
    provenance = Provenance({}, 1, 7, split.digest, "cpu", 1, {})
    loaded = load_data(cfg, provenance, tmp_path)
    assert loaded.digest == split.digest
    assert torch.equal(loaded.folds[0][1], make_folds(split.targets, 1, 800, derive(7))[0][1])
    with pytest.raises(ValueError, match=f"digest other.*{split.digest}.*data.root"):
        load_data(cfg, Provenance(**asdict(provenance) | {"data": "other"}), tmp_path)
