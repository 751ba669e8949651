import random
import subprocess
import sys

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState, create_trial
from snapshots import shown
from toys import two_sided

from studyloom import Study
from studyloom.storage.attributes import PAUSED
from studyloom.views.advice import explain_no_importances
from studyloom.views.importances import (
    BEST_SHARE,
    ENOUGH,
    MOST_COMPARED,
    compare_values,
    compute_importances,
    find_varied_parameters,
    rate_hyperparameters,
)
from studyloom.views.progress_reader import ProgressReader
from studyloom.views.report import read_report
from studyloom.views.status import MOST_IMPORTANT

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


def test_importances_of_complete_trials_are_those_of_optuna(made, study_of):
    space = {"a": FRACTION, "b": FRACTION, "c": IntDistribution(1, 9), "d": CHOICE}
    plain = made(40, lambda p: 3 * p["a"] + p["b"], **space)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
    for stored in (plain, conditional(study_of)):
        shares = compute_importances(stored).shares
        assert shares == compute_importances(stored).shares
        assert [*shares.values()] == sorted(shares.values(), reverse=True)
        assert sum(shares.values()) == pytest.approx(1)
        expected = get_param_importances(stored.optuna, evaluator=evaluator)
        assert shares == pytest.approx(expected)


def test_every_view_shows_the_same_importances(searched):
    shares = compute_importances(searched).shares
    assert shares
    report = read_report(searched)
    blocks = {section.key: section.blocks for section in report.sections}
    (bars,) = blocks["importances"]
    assert dict(bars.items) == shares
    (first_screen,) = next(iter(blocks.values()))[-1].blocks
    largest = [*shares.values()]
    assert [share for _, share in first_screen.items] == largest[: len(first_screen.items)]
    status = ProgressReader(searched).status()
    assert status.list_largest_shares() == dict([*shares.items()][:MOST_IMPORTANT])
    assert f"{100 * largest[0]:.0f}%" in shown(status)
    assert Study(searched).importances == shares


@pytest.mark.filterwarnings("ignore:PedAnova:UserWarning")
def test_each_objective_has_its_importances(sqlite_url):
    values = [(0.5 + number % 7 / 20, 100.0 + 50 * (number % 5)) for number in range(ENOUGH)]
    stored = two_sided(sqlite_url, *values, None)
    for position, sign in ((0, 1), (1, -1)):
        importances = compute_importances(stored, position)
        assert importances.compared == ENOUGH
        expected = get_param_importances(
            stored.optuna,
            evaluator=PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE),
            target=lambda trial, at=position, sign=sign: -sign * trial.values[at],
        )
        assert importances.shares == pytest.approx(expected)


def a_reporting_trial(number, state, reports, **attributes):
    """A trial with a value after each of some epochs; a complete one has the last as its value."""
    value = None
    if state == TrialState.COMPLETE:
        value = reports[max(reports)]
    trial = create_trial(
        state=state,
        value=value,
        params={"lr": number / 100},
        distributions={"lr": FRACTION},
        intermediate_values=reports,
        user_attrs=attributes,
    )
    trial.number = number
    return trial


COMPLETE, PRUNED, RUNNING, FAIL = (
    TrialState.COMPLETE,
    TrialState.PRUNED,
    TrialState.RUNNING,
    TrialState.FAIL,
)


def test_pruned_trials_are_compared_at_the_first_rung():
    """The default demo has 7 complete trials of 40, and its importances are of all 40."""
    complete = [a_reporting_trial(n, COMPLETE, {1: 0.1, 3: 0.5, 6: 0.9}) for n in range(7)]
    pruned = [a_reporting_trial(n, PRUNED, {1: 0.2}) for n in range(7, 38)]
    promoted = [a_reporting_trial(n, PRUNED, {1: 0.3, 3: 0.4}) for n in range(38, 40)]
    compared = compare_values([*complete, *pruned, *promoted])
    assert compared.epoch == 1
    assert {*compared.values.values()} == {0.1, 0.2, 0.3}
    importances = rate_hyperparameters([*complete, *pruned, *promoted], compared, 1)
    assert importances.compared == 40
    assert importances.shares == {"lr": 1}


def test_trials_that_all_complete_are_compared_by_their_final_values():
    trials = [a_reporting_trial(n, COMPLETE, {1: 0.1, 2: n / 10}) for n in range(10)]
    trials.append(a_reporting_trial(10, PRUNED, {1: 0.2}))  # one of eleven
    compared = compare_values(trials)
    assert compared.epoch is None
    assert compared.values == {n: n / 10 for n in range(10)}


def test_a_trial_is_compared_by_its_last_value_before_the_epoch():
    trials = [a_reporting_trial(n, PRUNED, {2: 0.5, 4: 0.7}) for n in range(9)]
    trials.append(a_reporting_trial(9, COMPLETE, {3: 0.6, 6: 0.8}))
    compared = compare_values(trials)
    assert compared.epoch == 4
    assert compared.values[9] == 0.6


def test_paused_trials_are_compared_and_failed_or_running_ones_are_not():
    trials = [
        a_reporting_trial(0, RUNNING, {1: 0.5}, **{PAUSED: 1}),
        a_reporting_trial(1, RUNNING, {1: 0.5}),
        a_reporting_trial(2, FAIL, {1: 0.5}),
        a_reporting_trial(3, PRUNED, {1: float("nan")}),
        a_reporting_trial(4, PRUNED, {}),
    ]
    assert compare_values(trials).values == {0: 0.5}
    assert compare_values([]).values == {}


def test_a_hyperparameter_without_effect_seldom_stands_out(made):
    space = dict.fromkeys("abcdef", FRACTION)
    for seed in range(5):
        noise = optuna.samplers.RandomSampler(seed=seed)._rng.rng
        stored = made(40, lambda p, noise=noise: noise.normal(), seed, **space)
        assert compute_importances(stored).outstanding == set()
    decided = made(40, lambda p: (p["a"] - 0.3) ** 2, 9, **space)
    assert compute_importances(decided).outstanding == {"a"}


def test_chance_stands_out_no_more_often_among_many_trials():
    draw = random.Random(0)
    trials = []
    for number in range(5 * MOST_COMPARED):
        trial = create_trial(
            value=draw.random(),
            params={"a": draw.random(), "b": draw.random()},
            distributions={"a": FRACTION, "b": FRACTION},
        )
        trial.number = number
        trials.append(trial)
    importances = rate_hyperparameters(trials, compare_values(trials), 1)
    assert importances.compared == 5 * MOST_COMPARED
    assert not importances.outstanding


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
        shares = compute_importances(made(40, value, seed, **space)).shares
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
    few = "Which hyperparameters matter shows from 20 trials with a value on; "
    alike = "No hyperparameter sets the best trials apart."
    assert reason(study_of((), "none")) == f"{few}none has one yet."
    assert reason(study("one", [1.0], **varied)) == f"{few}1 has one."
    assert reason(study("few", range(19), **varied)) == f"{few}19 have one."
    assert reason(study("infinite", [*range(19), float("inf")], **varied)) == f"{few}19 have one."
    assert reason(study("constant", [0.5] * 20, **varied)) == alike
    assert reason(study("one value", range(20), lr=(0.1,))) == alike
    assert reason(study("no hyperparameter", range(20))) == alike


def test_a_hyperparameter_is_varied_if_enough_trials_differ_in_it(made):
    trials = made(5, lambda p: p["a"], a=FRACTION, b=IntDistribution(3, 3)).trials()
    assert find_varied_parameters(trials) == find_varied_parameters(trials, 5) == ["a"]
    assert find_varied_parameters(trials, 6) == find_varied_parameters([]) == []


@pytest.mark.chaos
def test_the_evaluator_needs_no_scikit_learn_and_leaves_its_package_whole():
    look = """
import sys
from studyloom.storage.optuna_internals import _ped_anova
known = type(_ped_anova(0.25))
assert "sklearn" not in sys.modules
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
assert known is PedAnovaImportanceEvaluator
FanovaImportanceEvaluator()
"""
    subprocess.run([sys.executable, "-c", look], check=True)
