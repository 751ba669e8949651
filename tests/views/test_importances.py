import json
import subprocess
import sys

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial
from optuna_dashboard import wsgi
from optuna_dashboard._importance import param_importance_cache
from serving import ask, served
from toys import two_sided

from studyloom.views.progress import MOST_IMPORTANT, ProgressReader
from studyloom.views.report import read_report
from studyloom.views.snapshot import compute_importances, find_varied_parameters
from studyloom.views.words import ALL_ALIKE, TOO_FEW, explain_no_importances

FRACTION = FloatDistribution(0.0, 1.0)
CHOICE = CategoricalDistribution(["mlp", "cnn"])


@pytest.fixture
def made(study_of):
    """Returns a function that makes a study with random hyperparameters and a value of them."""

    def make(trials, value, seed=0, **space):
        drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        for _ in range(trials):
            trial = drawn.ask(space)
            drawn.tell(trial, float(value(trial.params)))
        return study_of(drawn.trials, f"toy{seed}")

    return make


def shown_by_the_dashboard(stored, position=0):
    param_importance_cache.clear()  # which knows a study only by its id, in all databases
    with served(wsgi(stored.storage)) as server:
        path = f"/api/studies/{stored.ledger.study_id}/param_importances"
        entries = json.loads(ask(server.server_port, path)[2])["param_importances"]
    return {entry["name"]: entry["importance"] for entry in entries[position]}


def branching(params):
    """The parameters of a choice, of which one opens a hyperparameter of its own."""
    return {name: params[name] for name in params if params["model"] == "mlp" or "." not in name}


def conditional(study_of, trials=60):
    space = {"model": CHOICE, "mlp.width": FRACTION, "lr": FRACTION}
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    made = []
    for _ in range(trials):
        params = branching(drawn.ask(space).params)
        value = params["lr"] + params.get("mlp.width", 0.9)
        space_of_trial = {name: space[name] for name in params}
        made.append(create_trial(value=value, params=params, distributions=space_of_trial))
    return study_of(made)


def test_importances_are_those_of_optuna_and_of_its_dashboard(made, study_of):
    space = {"a": FRACTION, "b": FRACTION, "c": IntDistribution(1, 9), "d": CHOICE}
    plain = made(40, lambda p: 3 * p["a"] + p["b"], **space)
    for stored in (plain, conditional(study_of)):
        shares = compute_importances(stored).shares
        assert shares == compute_importances(stored).shares
        assert [*shares.values()] == sorted(shares.values(), reverse=True)
        assert sum(shares.values()) == pytest.approx(1)
        assert shares == pytest.approx(optuna.importance.get_param_importances(stored.optuna))
        assert shares == pytest.approx(shown_by_the_dashboard(stored))


def test_report_status_and_dashboard_show_the_same_importances(searched):
    dashboard_shares = shown_by_the_dashboard(searched)
    sections = read_report(searched).sections
    (block,) = next(section.blocks for section in sections if section.key == "importances")
    assert dict(block.items) == pytest.approx(dashboard_shares)
    status = ProgressReader(searched).status().importances
    assert [*status] == sorted(dashboard_shares, key=lambda name: -dashboard_shares[name])[
        :MOST_IMPORTANT
    ]
    assert status == pytest.approx({name: dashboard_shares[name] for name in status})


def test_each_objective_has_its_importances(sqlite_url):
    values = [(0.5 + number % 7 / 20, 100.0 + 50 * (number % 5)) for number in range(14)]
    stored = two_sided(sqlite_url, *values, None)
    for position in (0, 1):
        shares = compute_importances(stored, position).shares
        assert shares == pytest.approx(shown_by_the_dashboard(stored, position))


def test_the_deciding_hyperparameter_comes_first_whatever_its_kind(made):
    letters = CategoricalDistribution(["a", "b", "c"])
    for seed, (name, value) in enumerate(
        (
            ("choice", lambda p: p["choice"] == "b"),
            ("number", lambda p: p["number"]),
            ("count", lambda p: -abs(p["count"] - 50)),
        )
    ):
        space = {"choice": letters, "number": FRACTION, "count": IntDistribution(0, 100)}
        shares = compute_importances(made(100, value, seed, **space)).shares
        assert next(iter(shares)) == name


def test_without_importances_a_sentence_says_why(study_of):
    def study(name, values, **params):
        return study_of(
            [
                create_trial(
                    value=value,
                    params={key: choices[n % len(choices)] for key, choices in params.items()},
                    distributions=dict.fromkeys(params, FRACTION),
                )
                for n, value in enumerate(values)
            ],
            name,
        )

    def reason(stored):
        computed = compute_importances(stored)
        assert computed.shares == {}
        return explain_no_importances(computed)

    varied = {"lr": (0.1, 0.2, 0.3)}
    assert reason(study_of((), "none")) == TOO_FEW
    assert reason(study("few", range(9), **varied)) == TOO_FEW
    assert reason(study("infinite", [*range(9), float("inf")], **varied)) == TOO_FEW
    assert reason(study("constant", [0.5] * 20, **varied)) == ALL_ALIKE
    assert reason(study("one value", range(20), lr=(0.1,))) == ALL_ALIKE
    assert reason(study("no hyperparameter", range(20))) == ALL_ALIKE


def test_a_hyperparameter_is_varied_if_enough_trials_differ_in_it(made):
    trials = made(5, lambda p: p["a"], a=FRACTION, b=IntDistribution(3, 3)).trials()
    assert find_varied_parameters(trials) == find_varied_parameters(trials, 5) == ["a"]
    assert find_varied_parameters(trials, 6) == find_varied_parameters([]) == []


def test_the_evaluator_needs_no_scikit_learn_and_leaves_its_package_whole():
    look = """
import sys
from studyloom.storage.optuna_internals import ped_anova
known = type(ped_anova())
assert "sklearn" not in sys.modules
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
assert known is PedAnovaImportanceEvaluator
FanovaImportanceEvaluator()
"""
    subprocess.run([sys.executable, "-c", look], check=True)
