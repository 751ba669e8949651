import itertools
import math
import random

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler

from studyloom.errors import ConfigError
from studyloom.space.distributions import count_values, why_not
from studyloom.space.language import parse_space
from studyloom.space.tree import Group, Leaf, Space

GROUPS = {
    "model": ["mlp", "cnn"],
    "model/block": ["plain", "residual"],
    "model/block/gate": ["soft", "hard"],
    "optimizer": ["sgd", "adam"],
}
LR = {"float": [1e-4, 1.0], "log": True}


def options(group: str) -> list[str]:
    return GROUPS.get(group, [])


def space_of(tree: dict) -> Space:
    return parse_space(tree, options)


def mistakes_of(tree: dict) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        space_of(tree)
    assert str(caught.value) == "\n".join(caught.value.mistakes)
    return caught.value.mistakes


def names(space: Space) -> list[str]:
    """All parameters of a space at its last options and longest lists."""
    return list(space.walk(lambda parameter: list(answers(parameter.distribution))[-1]).params)


def answers(distribution):
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    if isinstance(distribution, IntDistribution):
        return range(distribution.low, distribution.high + 1, distribution.step)
    return (distribution.low, distribution.high)


# What is wrong in a tree: the tree, and what the line about it must name.
WRONG = {
    "a misspelt key of a leaf": (
        {"train": {"epochs": {"int": [1, 5], "lgo": True}}},
        ["space.train.epochs.lgo", "no key", "int, log, step", "did you mean log?"],
    ),
    "a key that its kind does not have": (
        {"train": {"loss": {"choice": [1, 2], "log": True}}},
        ["space.train.loss.log", "no key of a range by choice"],
    ),
    "two kinds at once": (
        {"train": {"l1": {"int": [1, 5], "float": [0, 1]}}},
        ["space.train.l1.float", "int"],
    ),
    "low above high": (
        {"train": {"l1": {"float": [1.0, 0.5]}}},
        ["space.train.l1.float", "1.0", "above", "0.5"],
    ),
    "a log range from 0": (
        {"train": {"l1": {"float": [0.0, 0.5], "log": True}}},
        ["space.train.l1.float", "0.0", "start above 0, or drop log"],
    ),
    "a log range of whole numbers from 0": (
        {"a": {"int": [0, 5], "log": True}},
        ["space.a.int", "start above 0"],
    ),
    "log with a step": (
        {"train": {"l1": {"float": [0.1, 0.5], "log": True, "step": 0.1}}},
        ["space.train.l1.step", "0.1", "drop one of them"],
    ),
    "a step wider than the range": (
        {"a": {"int": [1, 4], "step": 5}},
        ["space.a.step", "5", "wider", "[1, 4]"],
    ),
    "a step of 0": ({"a": {"float": [1, 4], "step": 0}}, ["space.a.step", "0 is not above 0"]),
    "a step below 0": ({"a": {"int": [1, 4], "step": -1}}, ["space.a.step", "-1 is not above 0"]),
    "a step of the wrong type": ({"a": {"int": [1, 4], "step": 0.5}}, ["space.a", "0.5", "int"]),
    "no choices": ({"a": {"choice": []}}, ["space.a.choice", "[]", "write [a, b, …]"]),
    "choices that are no list": (
        {"a": {"choice": "relu"}},
        ["space.a.choice", "'relu'", "write [a, b, …]"],
    ),
    "a choice named twice": (
        {"a": {"choice": ["x", "y", "x"]}},
        ["space.a.choice", "'x', 'y', 'x'", "twice"],
    ),
    "a choice that is a list": (
        {"a": {"choice": [[1, 2], 3]}},
        ["space.a.choice", "[1, 2]", "finite numbers"],
    ),
    "a choice that is a mapping": (
        {"a": {"choice": [{"b": 1}]}},
        ["space.a.choice", "{'b': 1}", "finite numbers"],
    ),
    "a choice that is no number": ({"a": {"choice": [0.5, math.nan]}}, ["space.a.choice", "nan"]),
    "choices that Optuna cannot tell apart": (
        {"a": {"choice": [1, True]}},
        ["space.a.choice", "True", "twice"],
    ),
    "an infinite end": ({"a": {"float": [0.0, math.inf]}}, ["space.a.float", "inf", "finite"]),
    "an end that is no number": (
        {"a": {"float": [math.nan, 1.0]}},
        ["space.a.float", "nan", "finite"],
    ),
    "an end beyond all floats": ({"a": {"int": [1, 10**400]}}, ["space.a.int", "1000", "finite"]),
    "a fraction for a whole number": ({"a": {"int": [1, 2.5]}}, ["space.a.int", "2.5"]),
    "true for a number": ({"a": {"int": [True, 5]}}, ["space.a.int", "True", "true or false"]),
    "a text for a number": ({"a": {"float": ["low", 1.0]}}, ["space.a.float", "'low'", "a text"]),
    "log that is no truth": (
        {"a": {"float": [0.1, 1.0], "log": "yes"}},
        ["space.a.log", "'yes'", "true nor false"],
    ),
    "one end only": ({"a": {"float": [0.1]}}, ["space.a.float", "[0.1]", "write [low, high]"]),
    "a number instead of ends": ({"a": {"int": 5}}, ["space.a.int", "5", "write [low, high]"]),
    "a list of nothing": (
        {"a": {"list": None, "length": 2}},
        ["space.a.list", "None", "int, float or choice"],
    ),
    "a list of a bare value": (
        {"a": {"list": 5, "length": 2}},
        ["space.a.list", "5", "int, float or choice"],
    ),
    "a wrong item of a list": (
        {"a": {"list": {"int": [5, 1]}, "length": 2}},
        ["space.a.list.int", "5", "above"],
    ),
    "a misspelt key of an item": (
        {"a": {"list": {"int": [1, 5], "lgo": True}, "length": 2}},
        ["space.a.list.lgo", "did you mean log?"],
    ),
    "a list without a length": (
        {"a": {"list": {"int": [1, 5]}}},
        ["space.a.length", "None", "{int: [low, high]}"],
    ),
    "a length of 0": ({"a": {"list": {"int": [1, 5]}, "length": 0}}, ["space.a.length", "0"]),
    "a length from 0": (
        {"a": {"list": {"int": [1, 5]}, "length": {"int": [0, 2]}}},
        ["space.a.length", "below 1"],
    ),
    "a length that is a fraction": (
        {"a": {"list": {"int": [1, 5]}, "length": {"float": [1, 2]}}},
        ["space.a.length", "{int: [low, high]}"],
    ),
    "a misspelt key of a length": (
        {"a": {"list": {"int": [1, 5]}, "length": {"int": [1, 2], "lgo": True}}},
        ["space.a.length.lgo", "did you mean log?"],
    ),
    "a length that names no list": (
        {
            "hidden": {"list": {"int": [1, 5]}, "length": 2},
            "b": {"list": {"int": [1, 5]}, "length": "hiden"},
        },
        ["space.b.length", "'hiden'", "hidden", "did you mean hidden?"],
    ),
    "a length that names a list below": (
        {
            "b": {"list": {"int": [1, 5]}, "length": "a"},
            "a": {"list": {"int": [1, 5]}, "length": 2},
        },
        ["space.b.length", "'a'", "there is none"],
    ),
    "a length that names itself": (
        {"a": {"list": {"int": [1, 5]}, "length": "a"}},
        ["space.a.length", "'a'"],
    ),
    "a length of a list whose name YAML reads as a number": (
        {1: {"list": {"int": [1, 5]}, "length": "x"}},
        ["space.1.length", "'x'", "there is none"],
    ),
    "a misspelt option": (
        {"model": {"mpl": None}},
        ["space.model.mpl", "mlp, cnn", "did you mean mlp?"],
    ),
    "a misspelt option that opens nothing": (
        {"model": {"mpl": {}}},
        ["space.model.mpl", "did you mean mlp?"],
    ),
    "an option that is a value": ({"model": {"mlp": 3}}, ["space.model.mlp", "3", "no range"]),
    "an option switched off": ({"model": {"mlp": False}}, ["space.model.mlp", "False", "no range"]),
    "a bare value": ({"train": {"epochs": 5}}, ["space.train.epochs", "5", "{int: [low, high]}"]),
    "a bare list": (
        {"train": {"epochs": [1, 2]}},
        ["space.train.epochs", "[1, 2]", "{choice: [a, b]}"],
    ),
    "nothing at all": ({"train": {"epochs": None}}, ["space.train.epochs", "None", "no range"]),
    "an empty mapping": ({"train": {}}, ["space.train", "{}"]),
    "a config group as a plain choice": (
        {"model": {"choice": ["mlp", "cnn"]}},
        ["space.model", "group", "{mlp: …"],
    ),
    "a key asked for twice": (
        {"optimizer": {"lr": LR, "sgd": {"lr": LR}}},
        ["space.optimizer.sgd.lr", "space.optimizer.lr", "optimizer.lr"],
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_each_mistake_is_told_with_its_path_its_value_and_the_way_out(mistake):
    tree, parts = WRONG[mistake]
    (line,) = mistakes_of(tree)
    assert all(part in line for part in parts), line
    assert "\n" not in line


def test_all_mistakes_are_told_at_once():
    merged = {
        f"part{i}": tree
        for i, (tree, _) in enumerate(WRONG.values())
        if not {"model", "optimizer"} & {*tree}
    }
    told = mistakes_of(merged)
    assert len(told) == len(merged) > 30
    for i in (int(name.removeprefix("part")) for name in merged):
        assert any(line.startswith(f"space.part{i}.") for line in told)


def test_several_mistakes_of_one_leaf_are_told_at_once():
    told = mistakes_of({"a": {"float": [0.0, -1.0], "log": True, "step": -0.5}})
    assert len(told) == 4
    assert len(mistakes_of({"a": {"int": [1.5, "b"]}})) == 2


def test_a_step_that_misses_the_high_end_ends_below_it():
    space = space_of({"a": {"int": [1, 10], "step": 4}, "b": {"float": [0.0, 1.0], "step": 0.3}})
    ints, floats = (node.distribution for node in space.nodes)
    assert (ints.low, ints.high) == (1, 9)
    assert (floats.low, floats.high) == (0.0, 0.9)
    assert space.size() == 12


def test_names_are_paths_and_keys_are_paths_without_options():
    space = space_of(
        {
            "model": {
                "cnn": {"block": {"residual": {"depth": {"int": [1, 3]}}, "plain": None}},
                "mlp": None,
            },
            "train": {"epochs": {"int": [1, 2]}},
        }
    )
    asked = {}
    space.walk(
        lambda parameter: (
            asked.setdefault(parameter.name, parameter) and answers(parameter.distribution)[0]
        )
    )
    assert {name: parameter.key for name, parameter in asked.items()} == {
        "model": "model",
        "model.cnn.block": "model.block",
        "model.cnn.block.residual.depth": "model.block.depth",
        "train.epochs": "train.epochs",
    }
    point = space.walk(lambda parameter: answers(parameter.distribution)[0])
    assert point.choices == {"model": "cnn", "model/block": "residual"}
    assert point.values == {"model.block.depth": 1, "train.epochs": 1}


def test_groups_nest_to_any_depth_and_open_only_what_was_chosen():
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


def test_a_group_with_one_option_is_fixed_and_no_parameter():
    space = space_of({"model": {"cnn": {"channels": {"choice": [8, 16]}}}})
    point = space.walk(lambda parameter: answers(parameter.distribution)[0])
    assert point.choices == {"model": "cnn"}
    assert point.params == {"model.cnn.channels": 8}
    assert space.size() == 2


def test_what_stands_beside_the_options_is_asked_whatever_is_chosen():
    space = space_of(
        {"optimizer": {"lr": LR, "sgd": {"momentum": {"float": [0.0, 0.9]}}, "adam": None}}
    )
    for option, params in (("sgd", {"optimizer.sgd.momentum": 0.5}), ("adam", {})):
        point = space.walk(
            lambda parameter, option=option: {"optimizer": option}.get(parameter.name, 0.5)
        )
        assert point.params == {"optimizer": option, **params, "optimizer.lr": 0.5}
        assert point.values["optimizer.lr"] == 0.5


def test_one_key_may_be_asked_for_in_every_option():
    space = space_of({"optimizer": {"sgd": {"lr": LR}, "adam": {"lr": LR}}})
    assert len(list(space.groups())) == 1


HIDDEN = {
    "hidden": {"list": {"int": [4, 128]}, "length": {"int": [1, 3]}},
    "dropout": {"list": {"float": [0.2, 0.5]}, "length": "hidden"},
}


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_list_as_long_as_another_has_its_length(length):
    space = space_of({"model": {"mlp": HIDDEN}})
    decided = {"model.mlp.hidden.length": length}
    point = space.walk(lambda parameter: decided.get(parameter.name, parameter.distribution.low))
    assert point.values == {"model.hidden": [4] * length, "model.dropout": [0.2] * length}
    assert list(point.params) == [
        "model.mlp.hidden.length",
        *(f"model.mlp.hidden.{i}" for i in range(length)),
        *(f"model.mlp.dropout.{i}" for i in range(length)),
    ]


def test_a_list_of_fixed_length_has_no_parameter_for_it():
    for length in (2, {"int": [2, 2]}):
        space = space_of({"a": {"list": {"choice": ["x", "y"]}, "length": length}})
        assert names(space) == ["a.0", "a.1"]


MIXED = {
    "model": {
        "mlp": HIDDEN,
        "cnn": {"block": {"plain": None, "residual": {"depth": {"int": [1, 7], "step": 2}}}},
    },
    "optimizer": {"lr": LR, "sgd": {"momentum": {"float": [0.0, 0.9], "step": 0.1}}, "adam": None},
    "train": {"batch_size": {"choice": [32, 64]}, "clip": {"choice": [None, 1.0]}},
}


@pytest.fixture(scope="module")
def mixed():
    return space_of(MIXED)


def test_what_a_trial_suggests_is_what_optuna_stores(mixed):
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    seen = set()
    for _ in range(40):
        trial = study.ask()
        point = mixed.suggest(trial)
        assert trial.params == point.params
        assert trial.distributions == point.distributions
        study.tell(trial, 0.0)
        seen.add(tuple(point.choices.values()))
    assert len(seen) == 6


def test_a_point_is_walked_again_by_its_own_parameters(mixed):
    study = optuna.create_study(sampler=RandomSampler(seed=1))
    for _ in range(20):
        point = mixed.suggest(study.ask())
        assert mixed.walk(lambda parameter, point=point: point.params[parameter.name]) == point


def test_the_default_of_a_config_at_a_point_is_that_point(mixed):
    study = optuna.create_study(sampler=RandomSampler(seed=2))
    for _ in range(20):
        point = mixed.suggest(study.ask())
        assert mixed.default(point.choices, point.values.__getitem__) == point


def test_the_default_takes_one_number_for_every_item_of_a_list_as_long_as_another():
    space = space_of({"model": {"mlp": HIDDEN}})
    config = {"model.hidden": [8, 16], "model.dropout": 0.3}
    assert space.default({"model": "mlp"}, config.__getitem__).values == {
        "model.hidden": [8, 16],
        "model.dropout": [0.3, 0.3],
    }


def test_the_empty_space_has_one_point():
    space = space_of({})
    assert space.size() == 1
    assert [point.params for point in space.points()] == [{}]


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
    """A small finite tree: leaves, lists in pairs, and options that open trees of their own."""
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


@pytest.mark.parametrize("seed", range(40))
def test_a_finite_space_has_as_many_points_as_its_size_and_each_once(seed):
    space = space_of(random_tree(random.Random(seed)))
    points = list(itertools.islice(space.points(), 800))
    assert len(points) == min(space.size(), 800)
    assert len({tuple(sorted(point.params.items(), key=str)) for point in points}) == len(points)
    for point in points[:50]:
        assert space.walk(lambda parameter, point=point: point.params[parameter.name]) == point
        for name, distribution in point.distributions.items():
            assert why_not(distribution, point.params[name]) is None
            assert distribution._contains(distribution.to_internal_repr(point.params[name]))


def test_the_size_of_a_continuous_space_is_infinite(mixed):
    assert mixed.size() == math.inf


def test_the_size_of_a_space_beyond_all_floats_is_infinite():
    space = space_of({"a": {"list": {"int": [1, 10**6]}, "length": 60}})
    assert space.size() == math.inf
    assert (
        space_of(
            {"a": {"list": {"int": [1, 10**6]}, "length": 50}, "b": {"int": [1, 10**9]}}
        ).size()
        == math.inf
    )


def test_a_continuous_range_is_not_enumerated():
    with pytest.raises(
        ConfigError,
        match=r"optimizer\.lr: a grid cannot enumerate a continuous range; give it a step",
    ):
        next(space_of({"optimizer": {"lr": LR}}).points())


def test_the_values_of_a_stepped_range_are_those_that_one_writes():
    space = space_of({"a": {"float": [0.0, 0.3], "step": 0.1}})
    assert [point.values["a"] for point in space.points()] == [0.0, 0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("distribution", "number"),
    [
        (CategoricalDistribution((1, 2, 3)), 3),
        (IntDistribution(1, 10), 10),
        (IntDistribution(1, 9, step=4), 3),
        (FloatDistribution(0.0, 0.3, step=0.1), 4),
        (FloatDistribution(0.5, 0.5), 1),
        (FloatDistribution(0.0, 1.0), math.inf),
    ],
)
def test_a_distribution_is_counted(distribution, number):
    assert count_values(distribution) == number


@pytest.mark.parametrize(
    ("distribution", "right", "wrong"),
    [
        (
            CategoricalDistribution(("relu", "tanh", 1, None, True)),
            ["relu", 1, None, True],
            [
                ("rely", "not among [relu, tanh, 1, null, true]; did you mean relu?"),
                (1.0, "not among"),
                (False, "not among"),
            ],
        ),
        (
            IntDistribution(2, 8, step=3),
            [2, 5, 8],
            [
                (1, "outside its range [2, 8]"),
                (9, "outside"),
                (4, "not one of 2, 5, … 8"),
                (5.0, "a number"),
                (True, "true or"),
            ],
        ),
        (
            IntDistribution(1, 8, log=True),
            [1, 3, 8],
            [(0, "outside its range [1, 8]"), ("3", "a text"), (None, "null")],
        ),
        (
            FloatDistribution(0.0, 0.9, step=0.1),
            [0.0, 0.3, 0.9, 0],
            [(0.25, "not one of 0, 0.1, …"), (1.0, "outside its range [0, 0.9]"), ("x", "a text")],
        ),
        (
            FloatDistribution(1e-4, 1.0, log=True),
            [1e-4, 1, 0.5],
            [
                (0.0, "outside its range [0.0001, 1]"),
                (math.nan, "outside"),
                (math.inf, "outside"),
                (False, "true or false"),
            ],
        ),
    ],
)
def test_a_value_that_a_distribution_cannot_give_is_told_why(distribution, right, wrong):
    assert [why_not(distribution, value) for value in right] == [None] * len(right)
    for value, words in wrong:
        assert words in str(why_not(distribution, value))


@pytest.mark.parametrize(("value", "word"), [([1, 2], "a list"), ({"a": 1}, "a mapping")])
def test_a_container_is_called_what_it_is(value, word):
    assert word in str(why_not(FloatDistribution(0.0, 1.0), value))


def test_a_tree_of_leaves_and_groups_is_what_was_written(mixed):
    model, optimizer, lr, batch_size, clip = mixed.nodes
    assert isinstance(model, Group)
    assert list(model.options) == ["mlp", "cnn"]
    assert isinstance(optimizer, Group)
    assert lr == Leaf("optimizer.lr", "optimizer.lr", FloatDistribution(1e-4, 1.0, log=True))
    assert batch_size.distribution == CategoricalDistribution((32, 64))
    assert clip.distribution == CategoricalDistribution((None, 1.0))
