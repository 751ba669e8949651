from dataclasses import replace

import pytest
from omegaconf import OmegaConf
from toys import compose

from studyloom.config.values import has_key, resolved_as_yaml, value_at


def test_values_are_set_on_a_copy():
    cfg, shared = compose()
    composer = replace(
        shared, _completed={}, _composed={}
    )  # what other tests have kept there may be changed
    base = composer.compose({})
    changed = base.with_values({"optimizer.lr": 0.5, "model.hidden": [1, 2], "train.batch_size": 8})
    assert (changed["optimizer"]["lr"], changed["model"]["hidden"]) == (0.5, [1, 2])
    assert changed.train.batch_size == 8
    assert base == cfg
    assert composer.compose({}) is base
    again = base.with_values({"model.dropout": [0.1, 0.2]})
    assert again["model"]["hidden"] == [128]
    value_at(again, "model.hidden").append(3)
    assert base["model"]["hidden"] == [128]


@pytest.mark.parametrize("text", ["${HOME}", "${{HOME}}", r"\${a}", r"a\\${b} ${c}", "$HOME {lr}"])
def test_a_text_with_a_dollar_and_a_brace_is_read_as_it_was_written(text):
    sections = {"objective": {"run": text, "words": [text, 1]}}
    config = OmegaConf.create(resolved_as_yaml(sections))
    assert OmegaConf.to_container(config, resolve=True) == sections


def test_a_config_has_a_null_key_but_no_key_within_a_list():
    cfg, _ = compose()
    for key in ("train", "train.clip_norm", "model.hidden"):
        assert has_key(cfg, key)
    for key in ("train.epoch", "nowhere.at.all", "model.hidden.0", "model.hidden.deep.down"):
        assert not has_key(cfg, key)
    for key in ("train.clip_norm", "train.epoch", "nowhere.at.all", "model.hidden.deep.down"):
        assert value_at(cfg, key) is None
    assert value_at(cfg, "model.hidden") == [128]
