from pathlib import Path

from toys import compose

from studies import CONF
from studyloom.config.overrides import group_options
from studyloom.config.registration import GROUPS


def test_any_config_takes_options_of_studyloom_and_its_own_come_first(tmp_path):
    assert Path(CONF) == GROUPS
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "cnn.yaml").write_text("_target_: mine.CNN\n")
    (tmp_path / "own.yaml").write_text(
        "defaults: [studyloom, model: mlp, optimizer: sgd, sampler: tpe, _self_]\n"
    )
    cfg, _ = compose(name="own", folder=tmp_path)
    assert cfg.optimizer["_target_"] == "torch.optim.SGD"
    assert cfg.model["_target_"] == "studyloom.models.MLP"
    assert group_options("model") == ["cnn", "gru", "lstm", "mlp", "rnn", "transformer"]
    assert compose("model=cnn", name="own", folder=tmp_path)[0].model["_target_"] == "mine.CNN"


def test_a_config_that_is_edited_is_read_anew_and_what_one_changes_no_other_sees(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("defaults: [mnist, _self_]\nstudy: {trials: 3}\n")
    first, _ = compose(name="own", folder=tmp_path)
    first.model.hidden.append(7)
    first.study.seed = 9
    second, _ = compose(name="own", folder=tmp_path)
    assert (second.model.hidden, second.study.seed, second.study.trials) == ([128], 0, 3)
    own.write_text("defaults: [mnist, _self_]\nstudy: {trials: 40}\n")
    assert compose(name="own", folder=tmp_path)[0].study.trials == 40


def test_a_defaults_list_may_refer_to_another_choice(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mlp.yaml").write_text("_target_: chosen.by.the.network\n")
    (tmp_path / "own.yaml").write_text(
        "defaults: [studyloom, model: mlp, data: '${model}', optimizer: adam, scheduler: constant,"
        " loss: cross_entropy, space: none, _self_]\nstudy: {name: own}\n"
    )
    assert compose(name="own", folder=tmp_path)[0].data["_target_"] == "chosen.by.the.network"
