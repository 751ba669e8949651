"""The values that identify a study definition, its baseline and its budget."""

import shutil

import pytest
from toys import ask

from studies import CONF
from studyloom.decisions.strategy import Strategy

pytestmark = pytest.mark.usefixtures("composing")
NONE = ("space=none",)  # and then what a test searches, with +space.…


# The identity of a definition


@pytest.fixture
def identity(define_with):
    return define_with().identity("digest")


def test_another_value_makes_another_definition(define_with, identity):
    for change in ({"model.hidden": [64]}, {"loss.label_smoothing": 0.1}, {"study.seed": 1}):
        assert define_with(**change).identity("digest") != identity, change


def test_the_search_and_the_folders_are_no_part_of_a_definition(identity):
    other_search = (
        *("sampler=random", "pruner=hyperband", "launcher=join", "storage=postgres"),
        *("study.trials=7", "study.name=other", "run_dir=elsewhere", "winner.rule='max accuracy'"),
    )
    assert ask(*NONE, *other_search).identity("digest") == identity
    assert ask(*NONE, "data.transform=null").identity("digest") == identity  # only for predict
    roots = [ask(*NONE, "data=mnist", f"data.root=/{name}") for name in "ab"]
    assert roots[0].identity("digest") == roots[1].identity("digest")


def test_rounds_of_a_deterministic_search_are_part_of_the_definition(identity):
    rounds = [
        ask(*NONE, "study.deterministic=true", f"study.round_size={width}").identity("digest")
        for width in (4, 5)
    ]
    assert rounds[0] == identity | {"study.deterministic": True, "study.round_size": 4}
    assert rounds[1] == rounds[0] | {"study.round_size": 5}


def test_defaults_of_searched_options_are_part_of_the_definition(tmp_path, main):
    """The trials of a study whose CNN has another number of blocks cannot be compared either."""
    folder = tmp_path / "conf"
    shutil.copytree(CONF, folder)
    cnn = folder / "model" / "cnn.yaml"
    identity = main.identity("digest")
    cnn.write_text(cnn.read_text().replace("blocks: 2", "blocks: 3"))
    changed = ask(folder=folder).identity("digest")
    assert {key for key in identity if identity[key] != changed[key]} == {"model=cnn.blocks"}


# The baseline and the budget


def test_the_baseline_is_the_default_configuration(main):
    assert main.baseline.choices == {"model": "mlp", "optimizer": "adamw"}
    assert main.compose_config(main.baseline) == main.config
    assert ask("study.baseline=false", *NONE).baseline is None


def test_composing_a_configuration_leaves_the_definition_unchanged(main):
    configuration = main.space.walk(
        lambda parameter: {"model": "cnn", "optimizer": "sgd", "model.cnn.channels": 32}.get(
            parameter.name, getattr(parameter.distribution, "high", 256)
        )
    )
    cfg = main.compose_config(configuration)
    assert cfg["model"]["_target_"] == "studyloom.models.CNN"
    assert (cfg["model"]["channels"], cfg["optimizer"]["momentum"]) == (32, 0.99)
    assert cfg.train.batch_size == 256
    assert main.config.train.batch_size == 64
    assert main.compose_config(main.baseline)["model"] == main.config["model"]


def test_the_budget_is_no_larger_than_the_number_of_configurations():
    sizes = "+space.train.batch_size.choice=[32,64,128]"
    for overrides, trials in (((), 1), ((sizes,), 7), ((sizes, "sampler=grid"), 3)):
        assert Strategy(ask(*NONE, "study.trials=7", *overrides)).trials == trials
