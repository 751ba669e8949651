"""The config of a study: interpolations follow the values of a trial, and options are merged."""

import pickle
from dataclasses import replace

import hydra
import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ReadonlyConfigError, ValidationError
from toys import compose

from studyloom.config.study_config import StudyConfig
from studyloom.config.values import value_at
from studyloom.errors import ConfigError

SECTIONS = {
    "params": {"width": 8, "twice": "${.width}", "lr": 0.1},
    "model": {"width": "${params.width}", "name": "w${params.twice}", "depth": 2},
    "optimizer": {"groups": [{"lr": "${params.lr}"}, {"lr": "${..1.other}", "other": 3}]},
    "loss": {"smoothing": 0.0},
    "kept": "${oc.select:loss,null}",
    "own": "${test_study_config.sum:}",
}


@pytest.fixture(autouse=True)
def resolver():
    """Registers a resolver of a user that reads the config without naming its keys."""
    OmegaConf.register_new_resolver(
        "test_study_config.sum",
        lambda _root_: _root_.model.depth + _root_.params.width,
        replace=True,
    )
    yield
    OmegaConf.clear_resolver("test_study_config.sum")


def resolved(sections):
    """Resolves sections as OmegaConf does."""
    return OmegaConf.to_container(OmegaConf.create(sections), resolve=True)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"params.width": 16},
        {"params.lr": 0.5, "loss.smoothing": 0.1},
        {"model.width": 5},
        {"params": {"width": 1, "twice": 2, "lr": 3}},
        {"model.depth": 7},
    ],
)
def test_interpolations_of_a_trial_resolve_as_in_omegaconf(values):
    config = StudyConfig.of(OmegaConf.create(SECTIONS))
    written = OmegaConf.create(SECTIONS)
    for key, value in values.items():
        OmegaConf.update(written, key, value, merge=False)
    changed = config.with_values(values)
    assert changed == OmegaConf.to_container(written, resolve=True)
    assert changed.for_user() == written
    assert config == resolved(SECTIONS)


def test_a_value_that_looks_like_an_interpolation_is_text():
    config = StudyConfig.of(OmegaConf.create(SECTIONS)).with_values({"params.twice": "${oc.env:X}"})
    assert config["model"]["name"] == "w${oc.env:X}"
    assert config.for_user().params.twice == "${oc.env:X}"


def test_an_interpolation_without_a_value_is_an_error_where_it_is_read():
    config = StudyConfig.of(OmegaConf.create({"a": {"b": "${oc.env:NO_SUCH_VARIABLE}", "c": 1}}))
    assert value_at(config, "a.c") == 1
    with pytest.raises(ConfigError, match=r"a\.b: .*Environment variable 'NO_SUCH_VARIABLE'"):
        value_at(config, "a")


def test_values_of_typed_keys_are_converted_or_refused():
    config, _ = compose()
    assert config.with_values({"train.l1": 1}).train.l1 == 1.0
    assert type(config.with_values({"train.l1": 1}).train.l1) is float
    with pytest.raises(ValidationError):
        config.with_values({"train.epochs": "many"})


def test_the_config_of_the_users_functions_is_read_only():
    config, _ = compose()
    given = config.with_values({"optimizer.lr": 0.5}).for_user(seed=7)
    assert (given.optimizer.lr, given["train"]["epochs"], given.seed) == (0.5, 6, 7)
    with pytest.raises(ReadonlyConfigError):
        given.train.epochs = 3


def test_merged_options_of_several_groups_equal_what_hydra_composes(monkeypatch):
    config, shared = compose("optimizer.lr=0.5", "train.epochs=3", "model.hidden=[64]")
    composer = replace(shared, base=config, _completed={}, _composed={})
    choices = {"model": "cnn", "optimizer": "sgd", "loss": "mse"}
    together = replace(shared, _completed={}, _composed={}).compose(choices)
    for group, option in choices.items():
        composer.compose({group: option})
    monkeypatch.setattr(hydra, "compose", None)
    merged = composer.compose(choices)
    assert merged == together
    assert merged.written == together.written
    assert merged.train.loss == merged["loss"]


def test_a_config_can_be_pickled():
    config, _ = compose()
    assert pickle.loads(pickle.dumps(config)) == config
