"""What was searched, in one line."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from studyloom.space.language import parse_space
from studyloom.storage.attributes import SPACE
from studyloom.views.searched import (
    MOST_ENTRIES,
    _list_values,
    describe_searched,
    format_number_briefly,
)

TREE = {
    "model": {
        "mlp": {
            "hidden": {"list": {"int": [16, 512], "log": True}, "length": {"int": [1, 3]}},
            "dropout": {"float": [0.0, 0.5]},
        },
        "cnn": {"channels": {"choice": [8, 16, 32]}},
    },
    "optimizer": {
        "sgd": {"lr": {"float": [1e-3, 1.0], "log": True}},
        "adamw": {"lr": {"float": [1e-4, 1e-2], "log": True}},
    },
    "train": {"batch_size": {"choice": [32, 64, 128, 256]}},
}
OPTIONS = {"model": ["mlp", "cnn"], "optimizer": ["sgd", "adamw"]}


def searching(study_of, tree, options):
    stored = study_of()
    stored.optuna.set_user_attr(SPACE, {"tree": tree, "options": options})
    return stored


def test_options_come_first_then_learning_rates_then_what_an_option_opens(study_of):
    assert describe_searched(searching(study_of, TREE, OPTIONS)) == (
        "model MLP or CNN; optimizer SGD or AdamW; SGD learning rate 1e-3 to 1; AdamW learning "
        "rate 1e-4 to 1e-2; batch size 32, 64, 128 or 256; hidden 16 to 512, 1 to 3 of them; "
        "dropout 0 to 0.5; channels 8, 16 or 32"
    )


def test_a_fixed_group_is_not_searched(study_of):
    tree = {"optimizer": {"adamw": {"lr": {"float": [1e-4, 1e-2]}}}}
    stored = searching(study_of, tree, {"optimizer": ["adamw"]})
    assert describe_searched(stored) == "learning rate 1e-4 to 1e-2"


@pytest.mark.parametrize("count", [MOST_ENTRIES, MOST_ENTRIES + 1, 30])
def test_of_many_hyperparameters_only_the_first_are_named(study_of, count):
    tree = {f"p{number}": {"int": [1, 9]} for number in range(count)}
    named = "; ".join(f"p{number} 1 to 9" for number in range(MOST_ENTRIES))
    more = "" if count == MOST_ENTRIES else f"; and {count - MOST_ENTRIES} more"
    assert describe_searched(searching(study_of, tree, {})) == named + more


def test_the_line_of_long_names_is_cut(study_of):
    tree = {f"{'long_' * 5}name_{number}": {"int": [1, 9]} for number in range(20)}
    line = describe_searched(searching(study_of, tree, {}))
    assert len(line) < 300
    assert line.endswith(" more")


def test_an_optuna_objective_is_described_by_its_trials(study_of):
    space = {
        "depth": IntDistribution(1, 4),
        "kind": CategoricalDistribution(["a", "b", "c"]),
        "fixed": FloatDistribution(1.0, 1.0),
    }
    params = {"depth": 1, "kind": "a", "fixed": 1.0}
    trial = create_trial(state=TrialState.RUNNING, params=params, distributions=space)
    assert describe_searched(study_of([trial])) == "depth 1 to 4; kind a, b or c"
    assert describe_searched(study_of((), "new")) == ""


def test_numbers_below_zero_have_a_real_minus_sign(study_of):
    tree = {
        "x": {"float": [-5.0, 5.0]},
        "y": {"float": [-1e-4, 1e-4]},
        "shift": {"choice": [-1, 0, 1]},
        "step": {"choice": [*range(-9, 1)]},
    }
    line = "x −5 to 5; y −1e-4 to 1e-4; shift −1, 0 or 1; step −9 to 0 (10 values)"
    assert describe_searched(searching(study_of, tree, {})) == line


def test_a_space_that_another_program_has_stored_is_ignored(study_of):
    for number, attribute in enumerate(("text", {"tree": 3}, {"tree": {"x": 1}, "options": {}})):
        stored = study_of((), f"odd{number}")
        stored.optuna.set_user_attr(SPACE, attribute)
        assert describe_searched(stored) == ""


def test_a_list_says_how_long_it_is():
    def describe(length):
        (node,) = parse_space(
            {"hidden": {"list": {"int": [8, 64]}, "length": length}}, {}.get
        ).nodes
        return [entry.values for entry in _list_values(node)]

    assert describe({"int": [1, 3]}) == ["8 to 64, 1 to 3 of them"]
    assert describe(2) == ["8 to 64, 2 of them"]
    assert describe(1) == ["8 to 64"]


def test_many_choices_are_counted(study_of):
    tree = {
        "n": {"choice": [*range(10)]},
        "word": {"choice": [f"w{number}" for number in range(9)]},
    }
    line = "n 0 to 9 (10 values); word w0, w1, w2, w3 or 5 others"
    assert describe_searched(searching(study_of, tree, {})) == line


def test_numbers_are_as_people_write_them():
    written = {
        1e-4: "1e-4",
        2.5e-6: "2.5e-6",
        0.01: "1e-2",
        0.1: "0.1",
        0.99: "0.99",
        1.0: "1",
        0.0: "0",
        -0.5: "-0.5",
        512: "512",
        1e6: "1e6",
    }
    for number, text in written.items():
        assert format_number_briefly(number) == text
        assert float(text) == number
