"""The sizes of a search and of its winner, as the section `scale` asks for them."""

from dataclasses import replace

import pytest
import torch
from toys import CONF, TINY, Never, compose, toy_folds, toy_split, validate_search

from studyloom.config.values import with_values
from studyloom.data.training_data import TrainingData
from studyloom.definition.custom_loop import LoopDefinition
from studyloom.definition.jobs import build_jobs
from studyloom.definition.network import NetworkDefinition
from studyloom.errors import ConfigError

RATE = "+space.optimizer.lr={float:[1e-4,1e-1],log:true}"
SMALL = (*TINY[1:-1], "space=none", RATE)


def asked(*overrides):
    return NetworkDefinition.from_config(*compose(*SMALL, *overrides, folder=CONF, name="mnist"))


def test_the_search_has_the_first_size_and_is_the_study_of_that_size():
    scaled = asked("scale={model.hidden:[[8],[32]]}")
    plain = asked("model.hidden=[8]")
    assert scaled.config.model == plain.config.model
    assert scaled.identity("") == plain.identity(""), "the size of the winner is no part of it"
    assert str(scaled.scale) == "model.hidden [8] to [32] by rule none"


@pytest.mark.parametrize(
    ("scale", "mistake"),
    [
        ("{model.hiden:[[8],[32]]}", "model.hiden: no such key.*did you mean hidden"),
        ("{model.hidden:[[8],[12]]}", "second size must be a multiple of the first"),
        ("{model.hidden:[[8],[32],[64]]}", "must be two sizes"),
        ("{model.hidden:[[8],[32]],rule:mu}", "scale.rule must be mup or none; got mu"),
        ("{data.validation:[8,32]}", "data.validation: must be a key of model or params"),
        ("{optimizer.lr:[1,2]}", "optimizer.lr: must be a key of model"),
        ("{rule: mup}", "must name a size"),
        ("8", "must map keys to two sizes"),
    ],
)
def test_sizes_that_cannot_be_are_refused_with_the_way_out(scale, mistake):
    with pytest.raises(ConfigError, match=mistake):
        asked(f"scale={scale}")


def test_what_is_searched_or_typed_has_no_other_size():
    with pytest.raises(ConfigError, match=r"the space searches train.epochs"):
        asked("scale={train.epochs:[2,4]}", "+space.train.epochs={int:[1,4]}")
    with pytest.raises(ConfigError, match=r"the search has \[8\]; leave model.hidden=\[16\] out"):
        asked("scale={model.hidden:[[8],[32]]}", "model.hidden=[16]")


def test_epochs_and_examples_are_sizes_without_a_rule():
    scale = asked("scale={train.epochs:[2,6]}").scale
    assert (scale.rule, dict(scale.rule_sizes), dict(scale.searched)) == (
        *("none", {}),
        {"train.epochs": 2},
    )


def test_a_network_follows_the_rule_at_every_size_but_that_of_the_search():
    definition, folds = asked("scale={model.hidden:[[8],[32]],rule:mup}"), toy_folds(toy_split())
    (small,) = build_jobs(definition.config, folds, seed=0)
    (large,) = build_jobs(with_values(definition.config, {"model.hidden": [32]}), folds, seed=0)
    assert small.scaling is None
    assert large.scaling is not None


@pytest.mark.parametrize(
    ("overrides", "mistake"),
    [
        (("model=transformer", "scale={model.width:[8,20]}"), "multiple"),
        (("model=transformer", "scale={model.layers:[1,2],rule:mup}"), "scale.rule=none"),
        (("model=transformer", "scale={model.width:[8,16],rule:mup}"), "head"),
        (("winner.enabled=false", "scale={model.hidden:[[8],[32]]}"), "winner.enabled is false"),
        (
            ("objective.metric=[accuracy,parameters]", "scale={model.hidden:[[8],[32]]}"),
            "names more than one",
        ),
        (("train.patience=2", "scale={train.epochs:[2,4]}"), "patience"),
    ],
)
def test_what_cannot_be_carried_to_the_target_is_refused_before_the_first_trial(overrides, mistake):
    split = toy_split()
    with pytest.raises(ConfigError, match=mistake):
        validate_search(
            asked("pruner=none", *overrides), TrainingData(None, split, toy_folds(split))
        )


# A loop of one's own


def net(width=8):
    return torch.nn.Sequential(*(torch.nn.Linear(*sides) for sides in ((8, width), (width, 2))))


def train(run, *, width=8, lr=0.01):
    network = net(width)
    optimizer = torch.optim.Adam(network.parameters(), lr)
    run.scaled(network, optimizer)
    run.keep(network=network, optimizer=optimizer)
    with pytest.raises(RuntimeError, match=r"before run\.keep"):
        run.scaled(network, optimizer)
    rates = {group["lr"]: len(group["params"]) for group in optimizer.param_groups}
    assert rates == ({lr: 4} if width == 8 else {lr: 3, lr / 4: 1})
    return float(width)


LOOP = """
defaults: [studyloom, pruner: none]
study: {name: loop}
objective: {_target_: test_scale.train, metric: loss, direction: minimize}
scale: {params.width: [8, 32], rule: mup}
"""


@pytest.fixture
def ask_loop(tmp_path):
    (tmp_path / "loop.yaml").write_text(LOOP)
    return lambda *asks: LoopDefinition.from_config(*compose(*asks, folder=tmp_path, name="loop"))


def test_a_loop_asks_the_run_to_carry_its_network_to_the_target(ask_loop):
    definition = ask_loop("objective.network=test_scale.net")
    validate_search(definition, TrainingData())
    assert definition.baseline.values == {}
    target = replace(definition.baseline, values={"params.width": 32})
    for point, width in ((definition.baseline, 8.0), (target, 32.0)):
        loop = definition.make_objective(point, 0, TrainingData())
        assert loop.run(lambda report: None, Never()) == width


def test_a_loop_whose_network_nothing_makes_has_no_rule(ask_loop):
    definition = ask_loop()
    with pytest.raises(ConfigError, match=r"objective\.network, and call run\.scaled"):
        validate_search(definition, TrainingData())
