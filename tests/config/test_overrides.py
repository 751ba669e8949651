from studies import CONF
from studyloom.config.overrides import find_override_mistakes

WRONG = {
    "model=mpl": [
        "model=mpl: no such option; model has cnn, gru, lstm, mlp, rnn, transformer; "
        "did you mean mlp?"
    ],
    "sampler=tpee": ["sampler=tpee: no such option", "did you mean tpe?"],
    "modle.hidden=[3]": ["modle: no such key", "did you mean model.hidden?"],
    "study.trails=3": ["study.trails: no such key; study has name, trials", "did you mean trials?"],
    "++train.epoch=3": ["train.epoch: no such key", "did you mean epochs?"],
    "optimizer.lrr=1": ["optimizer.lrr: no such key; optimizer has", "lr, ", "did you mean lr?"],
    "model.hidden.deep=1": ["model.hidden.deep"],
    "~train.epoch": ["train.epoch", "did you mean epochs?"],
    "study.trials=many": ["study.trials=many", "'many'", "could not be converted to Integer"],
    "model.hidden=[16": ["model.hidden=[16"],
    "=3": ["=3"],
    "train.epochs": ["train.epochs"],
    "compress.margin=1": ["compress is null", "+compress.margin=…"],
    "model=mlp,cnn": ["model=mlp,cnn"],
}


def test_all_overrides_that_do_not_compose_are_told_at_once_each_on_a_line_with_its_neighbour():
    mistakes = find_override_mistakes(CONF, "mnist", [*WRONG, "train.epochs=3", "model=mlp"])
    assert len(mistakes) == len(WRONG)
    for parts in WRONG.values():
        assert any(all(part in line for part in parts) for line in mistakes), parts
    assert not [
        line for line in mistakes if "\n" in line or "hydra" in line.lower() or "struct" in line
    ]


def test_right_overrides_are_no_mistakes():
    right = [
        "model=cnn",
        "train.epochs=3",
        "model.blocks=1",
        "+model.activation=relu",
        "~space.model",
        "hydra.verbose=true",
    ]
    assert find_override_mistakes(CONF, "mnist", right[:3] + right[4:]) == []


def test_a_key_is_judged_in_the_option_that_was_chosen_wherever_it_was_written():
    assert find_override_mistakes(CONF, "mnist", ["model.blocks=1", "model=cnn"]) == []
    (line,) = find_override_mistakes(CONF, "mnist", ["model.hidden=[3]", "model=cnn"])
    assert line.startswith("model.hidden: no such key; model has")
    assert "channels" in line


def test_options_in_a_folder_of_ones_own_are_known_wherever_it_is_named(tmp_path):
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "mine.yaml").write_text("train:\n  batch_size: {choice: [32, 64]}\n")
    for argv in (
        [f"--config-dir={tmp_path}", "space=mine", "study.trails=3"],
        ["space=mine", "-cd", str(tmp_path), "study.trails=3"],
    ):
        (line,) = find_override_mistakes(CONF, "mnist", argv)
        assert line.startswith("study.trails: no such key")
