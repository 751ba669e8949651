import math

import numpy as np
import optuna
import pytest
from made_trials import RATE, a_trial
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from studyloom.storage.attributes import FAILURE
from studyloom.study.failures import DIVERGED
from studyloom.views.importances import importances, varied_parameters

FRACTION = FloatDistribution(0.0, 1.0)


def shares(trials, names=None, sign=1, goal=0):
    found = importances(trials, names or varied_parameters(trials), sign, goal)
    return {each.name: each.share for each in found}


def digits(seed):
    """A search of 40 trials whose choice of a network decides most, half of the worse ones pruned.

    It has the parameters of `studies.mnist`, a rate that matters less, and noise.
    """
    noise = np.random.default_rng(seed)

    def error(trial):
        if trial.suggest_categorical("model", ["mlp", "cnn"]) == "mlp":
            width = trial.suggest_int("model.mlp.width", 16, 512, log=True)
            worse = 0.1 * (64 / width) ** 0.2 + 0.02 * trial.suggest_float(
                "model.mlp.dropout", 0, 0.5
            )
        else:
            channels = trial.suggest_categorical("model.cnn.channels", [8, 16, 32])
            worse = 0.045 - 0.005 * math.log2(channels / 8)
        if trial.suggest_categorical("optimizer", ["sgd", "adamw"]) == "sgd":
            rate = trial.suggest_float("optimizer.sgd.lr", 1e-3, 1, log=True)
            momentum = trial.suggest_float("optimizer.sgd.momentum", 0, 0.99)
            worse += 0.03 * (math.log10(rate / (1 - momentum)) + 0.5) ** 2
        else:
            rate = trial.suggest_float("optimizer.adamw.lr", 1e-4, 1e-2, log=True)
            trial.suggest_float("optimizer.adamw.weight_decay", 1e-6, 0.1, log=True)
            worse += 0.03 * (math.log10(rate) + 2.3) ** 2
        worse += 0.004 * math.log2(trial.suggest_categorical("batch", [32, 64, 128, 256]) / 32)
        return max(0.0, 1 - worse + noise.normal(0, 0.003))

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(error, n_trials=40)
    median = sorted(trial.value for trial in study.trials)[20]
    for trial in study.trials:
        pruned = trial.value < median and trial.number > 4 and trial.number % 3
        yield create_trial(
            state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
            value=None if pruned else trial.value,
            params=trial.params,
            distributions=trial.distributions,
            intermediate_values={1: trial.value - 0.1, 2: trial.value},
        )


def test_a_study_made_twice_names_the_same_question_first():
    first, second = ([*digits(seed)] for seed in (0, 1))
    ours = [shares(trials) for trials in (first, second)]
    assert [next(iter(each)) for each in ours] == ["model", "model"]
    names = {*ours[0], *ours[1]}
    distance = sum(abs(ours[0].get(n, 0.0) - ours[1].get(n, 0.0)) for n in names) / 2
    assert distance < 0.35


def test_the_same_trials_give_the_same_shares_which_add_up_to_1_within_their_intervals():
    trials = [*digits(2)]
    found = importances(trials, names := varied_parameters(trials), 1)
    assert found == importances(trials, names, 1)
    assert sum(each.share for each in found) == pytest.approx(1)
    assert [each.share for each in found] == sorted((e.share for e in found), reverse=True)
    assert all(0 <= each.low <= each.high <= 1 for each in found)
    assert found[0].high > found[0].share > found[0].low


def made(trials, value, **asked):
    """Complete trials whose parameters are drawn, and whose value follows from them."""
    generator = np.random.default_rng(0)
    for number in range(trials):
        params = {}
        for name, distribution in asked.items():
            if isinstance(distribution, CategoricalDistribution):
                params[name] = distribution.choices[generator.integers(len(distribution.choices))]
            elif isinstance(distribution, IntDistribution):
                params[name] = int(generator.integers(distribution.low, distribution.high + 1))
            else:
                params[name] = float(generator.uniform(distribution.low, distribution.high))
        trial = create_trial(value=value(params), params=params, distributions=asked)
        trial.number = number
        yield trial


def test_what_decides_the_value_comes_first_whatever_its_kind():
    letters = CategoricalDistribution(["a", "b", "c"])
    for name, value in (
        ("choice", lambda p: p["choice"] == "b"),
        ("number", lambda p: p["number"]),
        ("count", lambda p: -abs(p["count"] - 50)),
    ):
        trials = [*made(60, value, choice=letters, number=FRACTION, count=IntDistribution(0, 100))]
        found = shares(trials)
        assert next(iter(found)) == name
        assert found[name] > 0.6


def test_a_few_trials_that_learnt_nothing_do_not_decide():
    """By the values themselves, `rare` would explain all."""

    def value(params):
        return -1e9 if params["rare"] > 0.95 else params["usual"]

    found = shares([*made(80, value, rare=FRACTION, usual=FRACTION)])
    assert found["usual"] > found["rare"]


def test_pruned_trials_count_by_where_they_stood_and_diverged_ones_as_the_worst():
    complete = [a_trial(n, accuracy=0.8 + n / 50, params={"lr": (0.5, RATE)}) for n in range(8)]
    assert varied_parameters(complete) == []
    pruned = [a_trial(n, TrialState.PRUNED, 0.5, 1, {"lr": (1e-4, RATE)}) for n in range(8, 16)]
    diverged = [
        a_trial(n, TrialState.PRUNED, 0.9, 1, {"lr": (1e-4, RATE)}, **{FAILURE: DIVERGED})
        for n in range(8, 16)
    ]
    other = {"x": (0.5, FRACTION)}
    for worse in (pruned, diverged):
        for trial in (*complete, *worse):
            trial.params |= {"x": 0.1 * (trial.number % 3)}
            trial.distributions |= {name: each for name, (_, each) in other.items()}
        assert shares([*complete, *worse], ["lr", "x"])["lr"] > 0.5


def test_less_is_better_and_more_is_the_same_question_and_several_values_are_several():
    trials = [
        create_trial(
            values=[n % 7, -(n % 5)],
            params={"a": n % 7, "b": n % 5},
            distributions={"a": IntDistribution(0, 6), "b": IntDistribution(0, 4)},
        )
        for n in range(35)
    ]
    assert shares(trials, sign=1) == pytest.approx(shares(trials, sign=-1), abs=0.02)
    assert next(iter(shares(trials))) == "a"
    assert next(iter(shares(trials, goal=1))) == "b"


def test_what_cannot_be_told_is_not():
    equal = [a_trial(n, accuracy=0.9) for n in range(6)]
    assert importances(equal, ["lr"], 1) == []
    assert importances([], ["lr"], 1) == []
    assert importances([a_trial(0)], [], 1) == []
    nan = [a_trial(n, accuracy=float("inf")) for n in range(3)]
    assert importances(nan, ["lr"], 1) == []
