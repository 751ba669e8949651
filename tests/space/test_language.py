import math

import pytest
from optuna.distributions import FloatDistribution

from studyloom.errors import ConfigError
from studyloom.space.language import parse_space
from studyloom.space.tree import Space

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


# Each kind of mistake: a tree that has it, and what its message must contain.
WRONG = {
    "a misspelt key of a leaf": (
        {"train": {"epochs": {"int": [1, 5], "lgo": True}}},
        ["space.train.epochs.lgo", "no such key", "int, log, step", "did you mean log?"],
    ),
    "a key that its kind does not have": (
        {"train": {"loss": {"choice": [1, 2], "log": True}}},
        ["space.train.loss.log", "no such key; a range of kind choice has choice"],
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
    "a leaf twice, in two ways to write it": (
        {"optimizer": {"lr": {"float": [0.1, 1]}}, "optimizer.lr": {"float": [0.2, 1]}},
        ["space.optimizer.lr is given twice"],
    ),
    "a step of 0": (
        {"a": {"float": [1, 4], "step": 0}},
        ["space.a.step", "must be above 0; got 0"],
    ),
    "a step below 0": (
        {"a": {"int": [1, 4], "step": -1}},
        ["space.a.step", "must be above 0; got -1"],
    ),
    "a step of the wrong type": ({"a": {"int": [1, 4], "step": 0.5}}, ["space.a", "0.5", "int"]),
    "no choices": ({"a": {"choice": []}}, ["space.a.choice", "got []", "[a, b, …]"]),
    "choices that are no list": (
        {"a": {"choice": "relu"}},
        ["space.a.choice", "'relu'", "[a, b, …]"],
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
    "a text for a number": ({"a": {"float": ["low", 1.0]}}, ["space.a.float", "'low'", "a string"]),
    "log that is no truth": (
        {"a": {"float": [0.1, 1.0], "log": "yes"}},
        ["space.a.log", "'yes'", "true or false"],
    ),
    "one end only": (
        {"a": {"float": [0.1]}},
        ["space.a.float", "[0.1]", "must be a range [low, high]"],
    ),
    "a number instead of ends": (
        {"a": {"int": 5}},
        ["space.a.int", "5", "must be a range [low, high]"],
    ),
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
        ["space.a.length", "at least 1; got 0"],
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
    "an option that is a value": (
        {"model": {"mlp": 3}},
        ["space.model.mlp", "got 3", "what the option mlp of model opens"],
    ),
    "an option switched off": (
        {"model": {"mlp": False}},
        ["space.model.mlp", "got False", "what the option mlp of model opens"],
    ),
    "a bare value": ({"train": {"epochs": 5}}, ["space.train.epochs", "5", "{int: [low, high]}"]),
    "a bare list": (
        {"train": {"epochs": [1, 2]}},
        ["space.train.epochs", "[1, 2]", "{choice: [a, b]}"],
    ),
    "nothing at all": (
        {"train": {"epochs": None}},
        ["space.train.epochs", "None", "must be a range"],
    ),
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
    mistakes = mistakes_of(merged)
    assert len(mistakes) == len(merged) > 30
    for i in (int(name.removeprefix("part")) for name in merged):
        assert any(line.startswith(f"space.part{i}.") for line in mistakes)


def test_several_mistakes_of_one_leaf_are_told_at_once():
    mistakes = mistakes_of({"a": {"float": [0.0, -1.0], "log": True, "step": -0.5}})
    assert len(mistakes) == 4
    assert len(mistakes_of({"a": {"int": [1.5, "b"]}})) == 2


def test_a_step_that_misses_the_high_end_ends_below_it():
    space = space_of({"a": {"int": [1, 10], "step": 4}, "b": {"float": [0.0, 1.0], "step": 0.3}})
    ints, floats = (node.distribution for node in space.nodes)
    assert (ints.low, ints.high) == (1, 9)
    assert (floats.low, floats.high) == (0.0, 0.9)
    assert space.size() == 12


def test_a_step_may_be_as_wide_as_the_range_in_the_numbers_as_written():
    """0.3 - 0.1 is 0.19999999999999998 in binary."""
    space = space_of({"a": {"float": [0.1, 0.3], "step": 0.2}})
    assert space.nodes[0].distribution == FloatDistribution(0.1, 0.3, step=0.2)
