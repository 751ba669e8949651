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
