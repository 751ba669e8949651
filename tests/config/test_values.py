from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from toys import compose

from studyloom.config.values import (
    has_key,
    value_at,
    with_values,
    write_yaml,
)


def test_values_are_set_on_a_copy():
    cfg, shared = compose()
    composer = replace(shared, _cache={})  # what other tests have kept there may be changed
    base = composer.compose({})
    changed = with_values(
        base, {"optimizer.lr": 0.5, "model.hidden": [1, 2], "train.batch_size": 8}
    )
    assert (changed.optimizer.lr, changed.model.hidden, changed.train.batch_size) == (
        0.5,
        [1, 2],
        8,
    )
    assert base == cfg
    assert composer.compose({}) is base
    again = with_values(base, {"model.dropout": [0.1, 0.2]})
    assert again.model.hidden == [128]
    again.model.hidden.append(3)
    assert base.model.hidden == [128]


def test_a_value_of_the_wrong_type_is_not_set():
    cfg, _ = compose()
    with pytest.raises(OmegaConfBaseException):
        with_values(cfg, {"train.epochs": "many"})


def test_a_key_is_there_or_not_be_it_null_or_below_a_list():
    cfg, _ = compose()
    for key in ("train", "train.clip", "model.hidden"):
        assert has_key(cfg, key)
    for key in (
        "train.epoch",
        "nowhere.at.all",
        "model.hidden.0",
        "model.hidden.deep.down",
        "train.epochs.x",
    ):
        assert not has_key(cfg, key)
    for key in (
        "train.clip",
        "train.epoch",
        "nowhere.at.all",
        "model.hidden.deep",
        "model.hidden.deep.down",
    ):
        assert value_at(cfg, key) is None
    assert value_at(cfg, "model.hidden") == [128]


def test_yaml_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "best.yaml"
    write_yaml(path, {"train": {"epochs": 3}, "name": "ä"}, "# trial 7\n")
    assert path.read_text() == "# trial 7\ntrain:\n  epochs: 3\nname: ä\n"
    assert OmegaConf.load(path) == {"train": {"epochs": 3}, "name": "ä"}

    def torn(self, mode):
        with open(self, mode) as file:
            file.write(b"# tr")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "open", torn)
    with pytest.raises(OSError, match="disk full"):
        write_yaml(path, {"train": {"epochs": 4}}, "# trial 8\n")
    monkeypatch.undo()
    assert path.read_text().startswith("# trial 7\ntrain:")


def test_two_writers_of_one_yaml_do_not_meet(tmp_path):
    path = tmp_path / "best.yaml"
    write_yaml(path, {"a": 1}, "")
    write_yaml(path, {"a": 2}, "")
    assert [p.name for p in tmp_path.iterdir()] == ["best.yaml"]
