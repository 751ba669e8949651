import tracemalloc

import numpy as np
import optuna
import pytest
from made_trials import RATE, a_trial
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from studyloom.storage.attributes import FAILURE
from studyloom.study.failures import DIVERGED
from studyloom.views import importances as module
from studyloom.views.importances import importances, varied_parameters

FRACTION = FloatDistribution(0.0, 1.0)


@pytest.fixture
def quick(monkeypatch):
    """Few resamples, where the order alone is looked at."""
    monkeypatch.setattr(module, "RESAMPLES", 6)


def shares(trials, names=None, sign=1, goal=0):
    found = importances(trials, names or varied_parameters(trials), sign, goal)
    return {each.name: each.share for each in found}


def test_the_same_trials_give_the_same_shares_which_add_up_to_1_within_their_intervals(quick):
    asked = {"a": FRACTION, "b": FRACTION, "c": FRACTION}
    trials = made(30, lambda p: 3 * p["a"] + p["b"], **asked)
    found = importances(trials, [*asked], 1)
    assert found == importances(trials, [*asked], 1)
    assert sum(each.share for each in found) == pytest.approx(1)
    assert [each.share for each in found] == sorted((e.share for e in found), reverse=True)
    assert all(0 <= each.low <= each.high <= 1 for each in found)
    assert found[0].high > found[0].share > found[0].low


def made(trials, value, seed=0, **asked):
    """Complete trials whose parameters are drawn, and whose value follows from them."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(trials):
        trial = study.ask(asked)
        study.tell(trial, float(value(trial.params)))
    return study.trials


def test_a_study_made_twice_names_the_same_question_first():
    """The choice of a network decides most; one of them has a parameter of its own."""
    choice = CategoricalDistribution(["mlp", "cnn"])
    asked = {"model": choice, "mlp.width": FRACTION, "lr": FRACTION, "batch": FRACTION}
    found = []
    for seed in (0, 1):
        noise = np.random.default_rng(seed)

        def value(p, noise=noise):
            own = 0.05 * p["mlp.width"] if p["model"] == "mlp" else 0.1
            return own + 0.03 * p["lr"] + 0.01 * p["batch"] + noise.normal(0, 0.003)

        trials = made(40, value, seed, **asked)
        for trial in trials:
            if trial.params["model"] == "cnn":
                del trial.params["mlp.width"], trial.distributions["mlp.width"]
        found.append(shares(trials))
    assert [next(iter(each)) for each in found] == ["model", "model"]
    assert sum(abs(found[0][name] - found[1][name]) for name in asked) / 2 < 0.35


def test_what_decides_the_value_comes_first_whatever_its_kind(quick):
    letters = CategoricalDistribution(["a", "b", "c"])
    for name, value in (
        ("choice", lambda p: p["choice"] == "b"),
        ("number", lambda p: p["number"]),
        ("count", lambda p: -abs(p["count"] - 50)),
    ):
        trials = made(40, value, choice=letters, number=FRACTION, count=IntDistribution(0, 100))
        found = shares(trials)
        assert next(iter(found)) == name
        assert found[name] > 0.6


def test_pruned_trials_count_by_where_they_stood_and_diverged_ones_as_the_worst(quick):
    complete = [a_trial(n, accuracy=0.8 + n / 50, params={"lr": (0.5, RATE)}) for n in range(8)]
    for accuracy, failure in ((0.5, {}), (0.9, {FAILURE: DIVERGED})):
        worse = [
            a_trial(n, TrialState.PRUNED, accuracy, 1, {"lr": (1e-4, RATE)}, **failure)
            for n in range(8, 16)
        ]
        for trial in (*complete, *worse):
            trial.params |= {"x": 0.1 * (trial.number % 3)}
            trial.distributions |= {"x": FRACTION}
        assert shares([*complete, *worse], ["lr", "x"])["lr"] > 0.5


def test_less_is_better_and_more_is_the_same_question_and_several_values_are_several(quick):
    asked = {"a": IntDistribution(0, 6), "b": IntDistribution(0, 4)}
    trials = []
    for n in range(35):
        values, params = [n % 7, -(n % 5)], {"a": n % 7, "b": n % 5}
        trials.append(create_trial(values=values, params=params, distributions=asked))
    assert shares(trials, sign=1) == pytest.approx(shares(trials, sign=-1), abs=0.02)
    assert next(iter(shares(trials))) == "a"
    assert next(iter(shares(trials, goal=1))) == "b"


def test_memory_is_linear_in_parameters(monkeypatch):
    """2 000 parameters once took 8 GB, whose square is the number of points that were asked."""
    monkeypatch.setattr(module, "RESAMPLES", 1)
    trials = made(20, lambda p: p["p7"], **{f"p{n}": FRACTION for n in range(400)})
    tracemalloc.start()
    try:
        found = shares(trials)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 400
    assert peak < 400 * 50_000


def test_what_cannot_be_told_is_not():
    assert varied_parameters([a_trial(n, params={"lr": (0.5, RATE)}) for n in range(8)]) == []
    equal = [a_trial(n, accuracy=0.9) for n in range(6)]
    infinite = [a_trial(n, accuracy=float("inf")) for n in range(3)]
    for trials in (equal, infinite, []):
        assert importances(trials, ["lr"], 1) == []
    assert importances([a_trial(0)], [], 1) == []
