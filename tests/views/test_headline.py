from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from made_trials import a_trial
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from results import result_of
from toys import fill, two_sided

from studyloom.metrics import ObjectiveValue
from studyloom.storage.attributes import BASELINE, PROVENANCE
from studyloom.storage.opening import create_study
from studyloom.views.headline import describe_trial, make_headline
from studyloom.views.plain_names import name_plainly, write_plainly
from studyloom.views.snapshot import take_snapshot
from studyloom.views.words import format_metric

CONF = Path(__file__).parents[2] / "conf"
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
    assert make_headline(take_snapshot(stored), changed()) == (
        "A CNN with 16 channels, AdamW, learning rate 0.0033: "
        "97.7% ± 0.4 on 1,000 unseen images, 4.4 points over the baseline"
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
        assert words in make_headline(take_snapshot(stored), result)


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
        assert make_headline(take_snapshot(stored), result).startswith(
            f"{words}, SGD, learning rate 0.1: "
        )


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
    assert make_headline(take_snapshot(stored), result).startswith(
        "learning rate 0.0012, width 64: perplexity 12.5000 ± 0.2500 on 1,000 unseen images, "
        "0.5000 over"
    )


def test_an_accuracy_above_1_is_printed_as_the_loop_returns_it(study_of):
    """A loop may return percent, of which 97.7 is no share."""
    stored = study_of([a_trial(0, accuracy=90.0, **{BASELINE: True}), a_trial(1, accuracy=95.0)])
    sentence = make_headline(take_snapshot(stored))
    assert "accuracy 95.0000 in the search" in sentence
    assert sentence.endswith("the baseline has accuracy 90.0000")
    difference = {"mean": 4.4, "std": 0.3, "interval": [3.0, 6.0]}
    test = {"test__winner": {"mean": 97.7, "std": 0.4}, "test__difference": difference}
    assert make_headline(take_snapshot(stored), changed(**test)).endswith(
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
    sentence = make_headline(take_snapshot(stored))
    assert sentence.startswith("hidden 64-32, dropout 0.3-0.1, learning rate 0.5: ")


def test_the_sentence_of_a_running_search_describes_the_best_so_far(stored, study_of):
    assert make_headline(take_snapshot(stored)) == (
        "A CNN with 16 channels, AdamW, learning rate 0.0033: 95.0% in the search, the best after "
        "2 of 40 trials; the baseline has 90.0%"
    )
    empty = make_headline(take_snapshot(study_of(name="empty")))
    assert empty == "No trial is complete yet, after 0 of 40 trials"
    failed = study_of([a_trial(n, TrialState.FAIL) for n in range(40)], name="failed")
    assert make_headline(take_snapshot(failed)) == "No trial is complete, after 40 of 40 trials"


def test_a_headline_names_each_hyperparameter_by_its_shortest_unique_name():
    equal = name_plainly(["encoder.lr", "decoder.lr", "model.dropout", "lr_decay"])
    assert [*equal.values()] == [
        "encoder learning rate",
        "decoder learning rate",
        "dropout",
        "lr decay",
    ]
    long = "dropout_probability_of_the_output_projection"
    shortened = name_plainly([f"encoder.{long}", f"decoder.{long}"])
    assert [*shortened.values()] == [
        "encoder dropout …tput projection",
        "decoder dropout …tput projection",
    ]
    assert max(map(len, shortened.values())) <= 32


def test_networks_and_optimizers_are_named_as_their_classes():
    names = ["optimizer.sgd.lr", "optimizer.adamw.lr", "X", "mlp_width"]
    plain_names = ["SGD learning rate", "AdamW learning rate", "X", "mlp width"]
    assert [*name_plainly(names).values()] == plain_names
    for option in (CONF / "optimizer").glob("*.yaml"):
        class_name = yaml.safe_load(option.read_text())["_target_"].rpartition(".")[2]
        assert write_plainly(option.stem) == class_name
    for option in (CONF / "model").glob("*.yaml"):
        network = yaml.safe_load(option.read_text())
        trial = a_trial(0, accuracy=0.9, **{PROVENANCE: {"config": {"model": network}}})
        assert write_plainly(option.stem) in describe_trial(trial, {})


def test_names_that_would_be_equal_without_their_middle_keep_it():
    alike = [f"{'x' * 20}{middle}{'y' * 20}" for middle in ("left", "last")]
    assert [*name_plainly(alike).values()] == alike
    ambiguous = ["a_b", "a.b", "b"]
    assert [*name_plainly(ambiguous).values()] == ambiguous


def test_long_names_negative_numbers_and_long_choices_stay_a_sentence(sqlite_url):
    ranges = FloatDistribution(-10.0, 10.0)
    text = "a" * 50
    params = {
        "encoder.lr": (0.034, ranges),
        "decoder.lr": (-4.7, ranges),
        "kind": (text, CategoricalDistribution([text])),
    }
    stored = create_study(sqlite_url, "loop", {"asks": "nothing"}, trials=1)
    fill(stored, a_trial(0, params=params))
    assert make_headline(take_snapshot(stored)).startswith(
        f"encoder learning rate 0.034, decoder learning rate −4.7, kind {'a' * 16}…{'a' * 15}: "
    )


@pytest.mark.parametrize(
    ("share", "percentage"),
    [(0.9725, "97.3%"), (0.9175, "91.8%"), (0.97249, "97.2%"), (1.0, "100.0%")],
)
def test_half_a_digit_is_rounded_up_and_never_to_the_even_digit(share, percentage):
    assert format_metric(share, "accuracy") == percentage


def test_the_headline_of_two_objectives_names_both(sqlite_url):
    stored = two_sided(sqlite_url, (0.9, 101_770), (0.95, 18_940))
    snapshot = take_snapshot(stored)
    assert make_headline(snapshot) == (
        "width 2: 95.0% with 18,940 parameters in the search, the best after 2 of 2 trials; "
        "the baseline has 90.0% with 101,770 parameters"
    )
    baseline = {"trial": 0, "baseline": True, "costs": {"parameters": 101_770}}
    tested = changed(winner__costs={"parameters": 18_940}, candidates=[baseline])
    sentence = make_headline(snapshot, tested)
    assert sentence.endswith(
        "4.4 points over the baseline, with 18,940 instead of 101,770 parameters"
    )
    equal = changed(winner__costs={"parameters": 101_770}, candidates=[baseline])
    assert make_headline(snapshot, equal).endswith("over the baseline, with 101,770 parameters")
    measured = changed(winner__costs={"latency": 3.25}, test=None)
    assert make_headline(snapshot, measured).endswith(
        "on 5 new seeds, with latency 3.25 in the search, untested"
    )
