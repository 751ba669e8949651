from pathlib import Path

import hydra
import pytest
from toys import compose

from studies import CONF
from studyloom.config.compose import Composer
from studyloom.config.config_sources import GROUPS
from studyloom.config.overrides import group_options
from studyloom.errors import ConfigError


def test_another_option_keeps_the_overrides_whose_keys_it_has(composing):
    _, composer = compose("optimizer.lr=0.5", "train.epochs=3", "model.hidden=[64]")
    cfg = composer.compose({"model": "cnn", "optimizer": "sgd"})
    assert cfg["model"]["_target_"] == "studyloom.models.CNN"
    assert (cfg["optimizer"]["lr"], cfg.train.epochs) == (0.5, 3)
    assert "hidden" not in cfg["model"]
    assert composer.compose({"model": "mlp"})["model"]["hidden"] == [64]


def test_keys_that_overrides_add_to_one_option_are_not_added_to_another():
    _, composer = compose("+model.bias=3", "++model.gain=4", "~model.hidden", "~model.dropout")
    other = composer.compose({"model": "cnn"})["model"]
    assert {"bias", "gain", "dropout", "hidden"} & {*other} == set()
    assert "blocks" in other
    own = composer.compose({"model": "mlp"})["model"]
    assert (own["bias"], own["gain"]) == (3, 4)
    assert "hidden" not in own


def test_every_optimizer_keeps_parameter_groups():
    groups = {"head": {"match": "4.*", "lr": 0.5}}
    for added, set_after in (
        ("+optimizer.groups={head: {match: '4.*', lr: 0.5}}", "train.epochs=3"),
        ("++optimizer.groups.head.match='4.*'", "+optimizer.groups.head.lr=0.5"),
        ("+optimizer.groups={head: {match: '4.*', lr: 0.01}}", "optimizer.groups.head.lr=0.5"),
    ):
        _, composer = compose(added, set_after, "+optimizer.amsgrad=true")
        for name, amsgrad in (("adamw", True), ("sgd", None)):
            chosen = composer.compose({"optimizer": name})["optimizer"]
            assert (chosen["groups"], chosen.get("amsgrad")) == (groups, amsgrad), name


def test_a_composer_composes_each_choice_of_options_once(monkeypatch):
    _, composer = compose("model.hidden=[64]")
    first = composer.compose({"model": "cnn", "optimizer": "sgd"})
    monkeypatch.setattr(hydra, "compose", None)
    assert composer.compose({"optimizer": "sgd", "model": "cnn"}) is first


def test_a_composer_searches_the_config_folders_of_the_command(command, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: studyloom.models.MLP\n")
    composed = []
    for way in (f"--config-dir={tmp_path}", f"hydra.searchpath=[file://{tmp_path}]"):
        command(
            way,
            "model=mine",
            task=lambda cfg: composed.append(Composer.from_hydra().compose({"model": "cnn"})),
        )
    assert [cfg["model"]["blocks"] for cfg in composed] == [2, 2]


def test_an_error_names_an_option_that_does_not_compose():
    _, composer = compose("train.epochs=3")
    with pytest.raises(ConfigError, match=r"model=ran: .*Could not find 'model/ran'"):
        composer.compose({"model": "ran"})


def test_an_option_in_the_users_folder_hides_one_of_studyloom(tmp_path):
    assert Path(CONF) == GROUPS
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "cnn.yaml").write_text("_target_: mine.CNN\n")
    (tmp_path / "own.yaml").write_text(
        "defaults: [studyloom, model: mlp, optimizer: sgd, sampler: tpe, _self_]\n"
    )
    cfg, _ = compose(name="own", folder=tmp_path)
    assert cfg["optimizer"]["_target_"] == "torch.optim.SGD"
    assert cfg["model"]["_target_"] == "studyloom.models.MLP"
    assert group_options("model") == ["cnn", "gru", "lstm", "mlp", "rnn", "transformer"]
    assert compose("model=cnn", name="own", folder=tmp_path)[0]["model"]["_target_"] == "mine.CNN"


def test_a_config_file_is_read_again_after_an_edit_and_never_shared(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("defaults: [mnist, _self_]\nstudy: {trials: 3}\n")
    first, _ = compose(name="own", folder=tmp_path)
    first["model"]["hidden"].append(7)
    second, _ = compose(name="own", folder=tmp_path)
    assert second["model"]["hidden"] == [128]
    assert (second.study.seed, second.study.trials) == (0, 3)
    own.write_text("defaults: [mnist, _self_]\nstudy: {trials: 40}\n")
    assert compose(name="own", folder=tmp_path)[0].study.trials == 40
