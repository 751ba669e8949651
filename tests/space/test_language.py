import math

import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from spaces import LR, space_of

from studyloom.errors import ConfigError


def errors_of(tree: dict) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        space_of(tree)
    assert str(caught.value) == "\n".join(caught.value.errors)
    return caught.value.errors


LIST = {"int": [1, 5]}
# Trees with one error each, and what its message must contain.
WRONG = [
    ({"a": {"int": [1, 5], "lgo": True}}, ["space.a.lgo: no such key", "did you mean log?"]),
    ({"a": {"choice": [1, 2], "log": True}}, ["space.a.log", "a range of kind choice has choice"]),
    ({"a": {"float": [1.0, 0.5]}}, ["space.a.float", "`low <= high` must hold"]),
    ({"a": {"int": [1, 4], "step": 5}}, ["space.a.step must not be wider", "[1, 4]; got 5"]),
    ({"a": {"choice": []}}, ["space.a.choice", "got []", "[a, b, …]"]),
    ({"a": {"choice": [1, True]}}, ["space.a.choice", "True", "twice"]),
    ({"a": {"choice": [[1, 2], 3]}}, ["space.a.choice", "[1, 2]", "finite numbers"]),
    ({"a": {"float": [0.0, math.inf]}}, ["space.a.float", "inf", "finite"]),
    ({"a": {"int": [1, 10**400]}}, ["space.a.int", "1000", "finite"]),
    ({"a": {"float": ["low", 1.0]}}, ["space.a.float", "'low'", "finite numbers"]),
    ({"a": {"float": [0.1, 1.0], "log": "yes"}}, ["space.a.log", "'yes'", "true or false"]),
    ({"a": {"int": 5}}, ["space.a.int", "5", "must be a range [low, high]"]),
    ({"a": {"list": 5, "length": 2}}, ["space.a.list", "5", "int, float or choice"]),
    ({"a": {"list": LIST}}, ["space.a.length", "None", "{int: [low, high]}"]),
    ({"a": {"list": LIST, "length": {"int": [0, 2]}}}, ["space.a.length", "at least 1; got 0"]),
    (
        {"hidden": {"list": LIST, "length": 2}, "b": {"list": LIST, "length": "hiden"}},
        ["space.b.length", "'hiden'", "did you mean hidden?"],
    ),
    ({"model": {"mpl": None}}, ["space.model.mpl", "mlp, cnn", "did you mean mlp?"]),
    ({"model": {"mlp": False}}, ["space.model.mlp", "got False", "what an option of model opens"]),
    ({"a": {"epochs": 5}}, ["space.a.epochs", "5", "{int: [low, high]}"]),
    ({"model": {"choice": ["mlp", "cnn"]}}, ["space.model", "group", "{mlp: …"]),
    ({"optimizer": {"lr": LR, "sgd": {"lr": LR}}}, ["space.optimizer.sgd.lr", "decides optimizer"]),
    ({"optimizer": {"lr": LR}, "optimizer.lr": LR}, ["space.optimizer.lr is given twice"]),
    ({"x" * 513: LR}, ["space.xxx", "at most 500 characters, and has 513"]),
    ({"x" * 501: {"list": LIST, "length": 2}}, ["at most 500 characters, and has 501"]),
]


def test_each_error_names_the_path_the_value_and_a_fix():
    for tree, parts in WRONG:
        (line,) = errors_of(tree)
        assert all(part in line for part in parts), line
        assert "\n" not in line


def test_all_errors_of_a_tree_are_listed_at_once():
    merged = {
        f"part{i}": tree
        for i, (tree, _) in enumerate(WRONG)
        if not {"model", "optimizer"} & {*tree}
    }
    errors = errors_of(merged)
    assert len(errors) == len(merged) > 12
    for i in (int(name.removeprefix("part")) for name in merged):
        assert any(line.startswith(f"space.part{i}.") for line in errors)


def test_several_errors_of_one_range_are_listed_at_once():
    assert len(errors_of({"a": {"int": [1.5, "b"]}})) == 2


def test_a_section_without_ranges_opens_nothing():
    assert space_of({"train": {}, "a": {"int": [1, 2]}}) == space_of({"a": {"int": [1, 2]}})


def test_steps_that_miss_the_high_end_stop_below_it():
    for written, distribution, size in (
        ({"int": [1, 10], "step": 4}, IntDistribution(1, 9, step=4), 3),
        ({"float": [0.0, 1.0], "step": 0.3}, FloatDistribution(0.0, 0.9, step=0.3), 4),
        ({"float": [0, 1], "step": 0.3}, FloatDistribution(0.0, 0.9, step=0.3), 4),
        ({"float": [1, 5], "step": 0.3}, FloatDistribution(1.0, 4.9, step=0.3), 14),
    ):
        space = space_of({"a": written})
        assert (space.nodes[0].distribution, space.size()) == (distribution, size)


def test_a_step_may_be_as_wide_as_the_range_as_written():
    """0.3 - 0.1 is 0.19999999999999998 in binary."""
    space = space_of({"a": {"float": [0.1, 0.3], "step": 0.2}})
    assert space.nodes[0].distribution == FloatDistribution(0.1, 0.3, step=0.2)
