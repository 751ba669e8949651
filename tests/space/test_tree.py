import itertools
import random

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.samplers import RandomSampler
from spaces import GROUPS, LR, space_of

from studyloom.space.tree import find_default, find_misfit


def answers(distribution):
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    if isinstance(distribution, IntDistribution):
        return range(distribution.low, distribution.high + 1, distribution.step)
    return (distribution.low, distribution.high)


def test_groups_nest_to_any_depth_and_open_only_the_chosen_option():
    space = space_of(
        {
            "model": {
                "mlp": {"width": {"int": [1, 9]}},
                "cnn": {
                    "block": {
                        "plain": None,
                        "residual": {
                            "gate": {"soft": {"slope": {"float": [0.0, 1.0]}}, "hard": None}
                        },
                    }
                },
            }
        }
    )
    chosen = {
        "model": "cnn",
        "model.cnn.block": "residual",
        "model.cnn.block.residual.gate": "soft",
    }
    deep = space.walk(lambda parameter: chosen.get(parameter.name, 0.5))
    assert deep.choices == {"model": "cnn", "model/block": "residual", "model/block/gate": "soft"}
    assert deep.params == {**chosen, "model.cnn.block.residual.gate.soft.slope": 0.5}
    assert deep.values == {"model.block.gate.slope": 0.5}
    shallow = space.walk(lambda parameter: {"model": "mlp"}.get(parameter.name, 7))
    assert shallow.choices == {"model": "mlp"}
    assert shallow.params == {"model": "mlp", "model.mlp.width": 7}
    assert [group.name for group in space.groups()] == list(chosen)
    assert [choices for choices, _ in space.branches()] == [
        {},
        {"model": "mlp"},
        {"model": "cnn"},
        {"model": "cnn", "model/block": "plain"},
        {"model": "cnn", "model/block": "residual"},
        {"model": "cnn", "model/block": "residual", "model/block/gate": "soft"},
        {"model": "cnn", "model/block": "residual", "model/block/gate": "hard"},
    ]


def test_hyperparameters_next_to_options_are_searched_with_each_option():
    space = space_of(
        {"optimizer": {"lr": LR, "sgd": {"momentum": {"float": [0.0, 0.9]}}, "adam": None}}
    )
    for option, params in (("sgd", {"optimizer.sgd.momentum": 0.5}), ("adam", {})):
        configuration = space.walk(
            lambda parameter, option=option: {"optimizer": option}.get(parameter.name, 0.5)
        )
        assert configuration.params == {"optimizer": option, **params, "optimizer.lr": 0.5}
        assert configuration.values["optimizer.lr"] == 0.5


def test_a_group_with_one_option_is_fixed():
    space = space_of({"model": {"cnn": {"channels": {"choice": [8, 16]}}}})
    configuration = space.walk(lambda parameter: answers(parameter.distribution)[0])
    assert configuration.choices == {"model": "cnn"}
    assert configuration.params == {"model.cnn.channels": 8}
    assert space.size() == 2


HIDDEN = {
    "hidden": {"list": {"int": [4, 128]}, "length": {"int": [1, 3]}},
    "dropout": {"list": {"float": [0.2, 0.5]}, "length": "hidden"},
}


def test_a_list_as_long_as_another_has_its_length():
    length = 3
    space = space_of({"model": {"mlp": HIDDEN}})
    decided = {"model.mlp.hidden.length": length}
    configuration = space.walk(
        lambda parameter: decided.get(parameter.name, parameter.distribution.low)
    )
    assert configuration.values == {"model.hidden": [4] * length, "model.dropout": [0.2] * length}
    assert list(configuration.params) == [
        "model.mlp.hidden.length",
        *(f"model.mlp.hidden.{i}" for i in range(length)),
        *(f"model.mlp.dropout.{i}" for i in range(length)),
    ]


MIXED = {
    "model": {
        "mlp": HIDDEN,
        "cnn": {"block": {"plain": None, "residual": {"depth": {"int": [1, 7], "step": 2}}}},
    },
    "optimizer": {"lr": LR, "sgd": {"momentum": {"float": [0.0, 0.9], "step": 0.1}}, "adam": None},
    "train": {"batch_size": {"choice": [32, 64]}, "clip_norm": {"choice": [None, 1.0]}},
}


@pytest.fixture(scope="module")
def mixed():
    return space_of(MIXED)


def test_a_configuration_has_the_values_that_optuna_stores(mixed):
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    seen = set()
    for _ in range(40):
        trial = study.ask()
        configuration = mixed.suggest(trial)
        assert trial.params == configuration.params
        assert trial.distributions == configuration.distributions
        study.tell(trial, 0.0)
        seen.add(tuple(configuration.choices.values()))
    assert len(seen) == 6


def test_the_default_of_a_config_is_the_configuration_in_it(mixed):
    study = optuna.create_study(sampler=RandomSampler(seed=2))
    for _ in range(20):
        configuration = mixed.suggest(study.ask())
        assert (
            mixed.read_default(configuration.choices, configuration.values.__getitem__)
            == configuration
        )


def test_one_number_is_the_default_of_every_item_of_a_list():
    space = space_of({"model": {"mlp": HIDDEN}})
    config = {"model.hidden": [8, 16], "model.dropout": 0.3}
    assert space.read_default({"model": "mlp"}, config.__getitem__).values == {
        "model.hidden": [8, 16],
        "model.dropout": [0.3, 0.3],
    }


def test_a_default_that_equals_a_choice_is_that_choice():
    dropout = {"choice": [0, 0.2, 1.0]}
    space = space_of({"p": {"a": dropout, "b": {"list": dropout, "length": 2}}})
    configuration = space.read_default({}, {"p.a": 0.0, "p.b": [1, 0.2]}.__getitem__)
    assert str([*configuration.params.values()]) == "[0, 1.0, 0.2]"
    leaf, items = space.nodes
    assert find_default(leaf, 0.0) == 0
    assert find_default(items, [1, 0.0]) == [1, 0]


def random_leaf(draw: random.Random) -> dict:
    low = draw.randint(1, 5)
    return draw.choice(
        [
            {"int": [low, low + draw.randint(0, 3)]},
            {"int": [low, low + 6], "step": draw.randint(1, 4)},
            {"int": [1, draw.randint(1, 4)], "log": True},
            {"float": [0.0, 0.3], "step": 0.1},
            {"float": [0.5, 0.5]},
            {"choice": ["a", "b", None][: draw.randint(1, 3)]},
        ]
    )


def random_tree(draw: random.Random, group: str = "") -> dict:
    """Draws a small finite tree: leaves, pairs of lists, and options that open further trees."""
    tree: dict = {f"leaf{i}": random_leaf(draw) for i in range(draw.randint(0, 2))}
    if draw.random() < 0.3:
        tree["hidden"] = {"list": random_leaf(draw), "length": {"int": [1, draw.randint(1, 2)]}}
        if draw.random() < 0.5:
            tree["dropout"] = {"list": {"choice": [0.0, 0.5]}, "length": "hidden"}
    for inner in [name for name in GROUPS if name.rpartition("/")[0] == group]:
        if draw.random() < 0.7:
            chosen = draw.sample(GROUPS[inner], draw.randint(1, 2))
            tree[inner.rpartition("/")[2]] = {option: random_tree(draw, inner) for option in chosen}
    return tree


@pytest.mark.parametrize("seed", range(15))
def test_a_finite_space_has_as_many_configurations_as_its_size(seed):
    space = space_of(random_tree(random.Random(seed)))
    configurations = list(itertools.islice(space.configurations(), 800))
    assert len(configurations) == min(space.size(), 800)
    assert len(
        {tuple(sorted(configuration.params.items(), key=str)) for configuration in configurations}
    ) == len(configurations)
    for configuration in configurations[:50]:
        assert (
            space.walk(
                lambda parameter, configuration=configuration: configuration.params[parameter.name]
            )
            == configuration
        )
        for name, distribution in configuration.distributions.items():
            assert find_misfit(distribution, configuration.params[name]) is None
            assert distribution._contains(distribution.to_internal_repr(configuration.params[name]))
