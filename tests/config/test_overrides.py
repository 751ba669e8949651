import pytest

from studies import CONF
from studyloom.config.overrides import Override, find_override_errors
from studyloom.config.scaffold import write_study

WRONG = {
    "model=mpl": [
        "model=mpl: no such option; model has cnn, gru, lstm, mlp, rnn, transformer; "
        "did you mean mlp?"
    ],
    "modle.hidden=[3]": ["modle: no such key", "did you mean model.hidden?"],
    "study.trails=3": ["study.trails: no such key; study has name, trials", "did you mean trials?"],
    "++train.epoch=3": ["train.epoch: no such key", "did you mean epochs?"],
    "model.hidden.deep=1": ["model.hidden.deep"],
    "~train.epoch": ["train.epoch", "did you mean epochs?"],
    "study.trials=many": ["study.trials=many", "'many'", "could not be converted to Integer"],
    "model.hidden=[16": ["model.hidden=[16"],
    "train.epochs": ["train.epochs"],
    "winner.rule.metric=1": ["winner.rule is null", "+winner.rule.metric=…"],
    "model=mlp,cnn": ["model=mlp,cnn"],
}


@pytest.mark.parametrize("prefix", ["", "+", "++", "~"])
@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        ("model.hidden=[8]", "model.hidden", "[8]"),
        ("model/block=gated", "model.block", "gated"),
        ("model='a=b'", "model", "'a=b'"),
        ("model.hidden=", "model.hidden", ""),
        ("model", "model", None),
    ],
)
def test_an_override_has_a_prefix_a_key_and_a_value(prefix, typed, key, value):
    override = Override.parse(prefix + typed)
    assert (override.prefix, override.key, override.value) == (prefix, key, value)
    assert override.text == prefix + typed
    assert override.is_within("study", "model")
    assert not override.is_within("mod", "model.hidden.deep")


def test_every_wrong_override_gets_a_line_with_the_nearest_name():
    errors = find_override_errors(CONF, "mnist", [*WRONG, "train.epochs=3", "model=mlp"])
    assert len(errors) == len(WRONG)
    for parts in WRONG.values():
        assert any(all(part in line for part in parts) for line in errors), parts
    assert not [
        line for line in errors if "\n" in line or "hydra" in line.lower() or "struct" in line
    ]


def test_an_unknown_param_is_explained_with_the_file_and_line_to_add(tmp_path):
    write_study("mine", tmp_path, kind="loop")
    folder = tmp_path / "conf"
    (line,) = find_override_errors(str(folder), "mine", ["params.depth=2"])
    assert line.startswith("params.depth: no such key; params has epochs")
    assert f"; to have it, add `depth: 2` to params in {folder}/mine.yaml, with" in line


def test_a_key_is_checked_in_the_chosen_option_in_any_order_of_overrides(tmp_path):
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "mine.yaml").write_text("train:\n  batch_size: {choice: [32, 64]}\n")
    right = ["model.blocks=1", "model=cnn", "hydra.verbose=true"]
    argv = ["space=mine", "-cd", str(tmp_path), *right, "model.hidden=[3]"]
    (line,) = find_override_errors(CONF, "mnist", argv)
    assert line.startswith("model.hidden: no such key; model has")
    assert "channels" in line
