from copy import deepcopy

import pytest
from made_trials import a_trial
from optuna.distributions import FloatDistribution, IntDistribution
from results import result_of
from toys import fill

from studyloom.metrics import ObjectiveValue
from studyloom.storage.attributes import BASELINE, PROVENANCE
from studyloom.storage.opening import create_study
from studyloom.views.snapshot import take_snapshot
from studyloom.views.words import describe_best, describe_result

CNN = {
    "model": {"_target_": "studyloom.models.CNN", "channels": 16, "blocks": 2, "dropout": 0.0},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.0033, "weight_decay": 0.01},
}
RESULT = {
    "winner": {
        "trial": 1,
        "params": {"model.cnn.channels": 16},
        "values": [0.968, 0.97, 0.972, 0.97, 0.97],
        "mean": 0.97,
        "std": 0.002,
    },
    "test": {
        "winner": {"mean": 0.977, "std": 0.004},
        "baseline": {"mean": 0.933, "std": 0.003},
        "difference": {"mean": 0.044, "std": 0.003, "interval": [0.03, 0.06]},
        "examples": 1000,
    },
    "data": {"transform": {"_target_": "studyloom.data.Image"}},
}


@pytest.fixture
def stored(study_of):
    return study_of(
        [
            a_trial(0, accuracy=0.9, **{BASELINE: True}),
            a_trial(1, accuracy=0.95, **{PROVENANCE: {"config": CNN}}),
        ]
    )


def changed(**keys):
    result = deepcopy(RESULT)
    for path, value in keys.items():
        above, _, last = path.rpartition("__")
        (result[above] if above else result)[last] = value
    return result_of(**result)


def test_the_sentence_can_be_quoted_and_claims_only_what_was_measured(stored):
    assert describe_result(changed(), stored) == (
        "A CNN with 16 channels, AdamW at 0.0033: 97.7% ± 0.4 on 1,000 unseen images, "
        "4.4 points over the baseline"
    )
    precise = changed(test__winner={"mean": 0.977, "std": 0.00021})
    for result, words in (
        (changed(data={"columns": ["a"]}), "on 1,000 unseen rows"),
        (changed(data=None, test__examples=None), "on unseen examples"),
        (changed(test__difference={"mean": -0.012}), "1.2 points under the baseline"),
        (precise, "97.70% ± 0.02"),
        (changed(test__winner={"mean": 0.977}), "97.7% on 1,000"),
        (
            changed(test__difference={"mean": 0.044, "interval": [-0.1, 0.1]}),
            "over the baseline (the 95% interval includes 0)",
        ),
        (changed(test=None), ": 97.0% ± 0.2 on 5 new seeds, untested"),
    ):
        assert words in describe_result(result, stored)


def test_a_network_is_described_by_its_class_and_what_was_searched(study_of):
    ours = "studyloom.models."
    mlp = {"_target_": f"{ours}MLP", "hidden": [128, 64]}
    lstm = {"_target_": f"{ours}Recurrent", "cell": "lstm", "hidden": 64, "layers": 1}
    told = (
        (mlp, {}, "An MLP with hidden 128-64"),
        (lstm, {"model.lstm.layers": 1}, "An LSTM with layers 1"),
        ({"_target_": "mine.Net", "width": 8}, {}, "A Net with width 8"),
        ({"_target_": "mine.UNet", "slope": 0.1}, {}, "A UNet"),
        ({"_target_": "mine.Upsampler"}, {}, "An Upsampler"),
        ({"_target_": "a.\x1b[31mNet\nwinner"}, {}, "A ␛[31mNet winner"),
    )
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.1}
    made = [{PROVENANCE: {"config": {"model": model, "optimizer": sgd}}} for model, *_ in told]
    stored = study_of([a_trial(number, **one) for number, one in enumerate(made)])
    for number, (_, params, words) in enumerate(told):
        result = changed(winner__trial=number, winner__params=params)
        assert describe_result(result, stored).startswith(f"{words}, SGD at 0.1: ")


def test_a_loop_is_described_by_its_hyperparameters_and_metric(sqlite_url):
    objectives = (ObjectiveValue("perplexity", "minimize"),)
    stored = create_study(sqlite_url, "loop", {"asks": "nothing"}, 3, objectives=objectives)
    fill(stored, a_trial(0, accuracy=12.5, params={}))
    result = changed(
        winner__params={"params.lr": 0.00123, "params.width": 64},
        winner__trial=0,
        test__winner={"mean": 12.5, "std": 0.25},
        test__difference={"mean": 0.5},
    )
    assert describe_result(result, stored).startswith(
        "lr 0.0012, width 64: perplexity 12.5000 ± 0.2500 on 1,000 unseen images, 0.5000 over"
    )


def test_an_accuracy_above_1_is_printed_as_the_loop_returns_it(study_of):
    """A loop may return percent, of which 97.7 is no share."""
    stored = study_of([a_trial(0, accuracy=90.0, **{BASELINE: True}), a_trial(1, accuracy=95.0)])
    sentence = describe_best(take_snapshot(stored))
    assert "accuracy 95.0000 in the search" in sentence
    assert sentence.endswith("the baseline has accuracy 90.0000")
    difference = {"mean": 4.4, "std": 0.3, "interval": [3.0, 6.0]}
    test = {"test__winner": {"mean": 97.7, "std": 0.4}, "test__difference": difference}
    assert describe_result(changed(**test), stored).endswith(
        "accuracy 97.7000 ± 0.4000 on 1,000 unseen images, 4.4000 over the baseline"
    )


def test_a_list_of_the_search_space_is_one_value(sqlite_url):
    widths, rates = IntDistribution(1, 512), FloatDistribution(0.0, 1.0)
    params = {
        "hidden.length": (2, IntDistribution(1, 3)),
        "hidden.0": (64, widths),
        "hidden.1": (32, widths),
        "dropout.0": (0.3, rates),
        "dropout.1": (0.1, rates),
        "lr": (0.5, rates),
        "momentum": (0.9, rates),
    }
    stored = create_study(sqlite_url, "loop", {"asks": "nothing"}, trials=1)
    fill(stored, a_trial(0, params=params))
    sentence = describe_best(take_snapshot(stored))
    assert sentence.startswith("hidden 64-32, dropout 0.3-0.1, lr 0.5: ")


def test_the_sentence_of_a_running_search_describes_the_best_so_far(stored, study_of):
    assert describe_best(take_snapshot(stored)) == (
        "A CNN with 16 channels, AdamW at 0.0033: 95.0% in the search, the best after "
        "2 of 40 trials; the baseline has 90.0%"
    )
    empty = describe_best(take_snapshot(study_of(name="empty")))
    assert empty == "No trial is complete yet, after 0 of 40 trials"
