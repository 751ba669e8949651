"""A custom training loop as the objective, from its call to the winner, on real storages."""

import functools
import math
import random
import sys
from contextlib import contextmanager, suppress

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState
from reevaluated import SPLIT
from toys import Never, Signal, define_own_loop, validate_search

from studyloom.config.study_config import StudyConfig
from studyloom.data import Embedded
from studyloom.data.training_data import TrainingData
from studyloom.decisions.strategy import Strategy
from studyloom.definition.prepare import names_data
from studyloom.errors import ConfigError, Halted, NoWinner, UndefinedMetric
from studyloom.objectives.loop import Loop, LoopObjective
from studyloom.objectives.loop_run import LoopJob
from studyloom.seeds import derive
from studyloom.storage.attributes import EPOCHS, FAILURE
from studyloom.storage.failures import Limits
from studyloom.storage.opening import create_study
from studyloom.worker.stage import Stage
from studyloom.worker.worker import Worker

CONFIG = """
defaults:
  [studyloom, sampler: random, pruner: none, storage: sqlite, launcher: local, space: none, _self_]
study: {name: own}
objective: {_target_: test_function.parabola, metric: height, direction: maximize}
params: {x: 0.0, curve: 1.0}
space: {params: {x: {float: [-2, 2]}}}
"""


def parabola(config, report):
    """A parabola that is highest at x = 1, with noise from the trial's own seed."""
    height = -config.params.curve * (config.params.x - 1) ** 2
    for step in range(3):
        report(height - 3 + step, step)
    return height + 1e-3 * random.Random(config.seed).random()


def returns(value):
    return lambda config, report: value


def no_function(config):
    return 0.0


def curved(curve, config):
    return curve + config.params.x


@pytest.fixture
def define(tmp_path):
    (tmp_path / "own.yaml").write_text(CONFIG)
    return functools.partial(define_own_loop, tmp_path)


@pytest.fixture
def replace_loop(monkeypatch):
    """Replaces the function that the config names."""
    return lambda function: monkeypatch.setattr(sys.modules[__name__], "parabola", function)


def run_search(definition, url, folder, trials, stopping=None, **limits):
    stored = create_study(
        url, "own", definition.identity(""), trials, objectives=definition.objectives
    )
    stage = Stage("search", stored, definition, Strategy(definition), trials)
    Worker(stage, TrainingData(), stopping or Never(), folder, Limits(**limits)).run()
    return stored


def test_a_trial_has_the_value_of_the_loop_for_its_configuration_and_seed(
    define, sqlite_url, tmp_path
):
    definition = define()
    stored = run_search(definition, sqlite_url, tmp_path, 4)
    for trial in stored.trials():
        noise = 1e-3 * random.Random(derive(0, trial.number)).random()
        assert trial.value == -((trial.params["params.x"] - 1) ** 2) + noise
        assert list(trial.intermediate_values) == [0, 1, 2]
        assert trial.user_attrs[EPOCHS]["number"] == [0, 1, 2]


def test_a_loop_is_seeded_and_leaves_the_callers_random_state(define, replace_loop):
    def draw(config, report):
        return random.random() + float(np.random.rand()) + float(torch.rand(()))

    replace_loop(draw)
    definition = define()
    before = random.getstate()
    values = [
        definition.make_objective(definition.baseline, number, TrainingData()).run(print, Never())
        for number in (0, 1, 0)
    ]
    assert values[0] == values[2] != values[1]
    assert random.getstate() == before


def test_a_value_that_is_not_finite_stops_the_study(define, replace_loop, sqlite_url, tmp_path):
    definition = define()
    for value in (-math.inf, "0.5", None, [1.0]):
        replace_loop(returns(value))
        with pytest.raises(UndefinedMetric, match="expected a finite number"):
            definition.make_objective(definition.baseline, 0, TrainingData()).run(print, Never())
    replace_loop(returns(math.nan))
    with pytest.raises(Halted, match="the objective returned nan: expected a finite number"):
        run_search(definition, sqlite_url, tmp_path, 3)
    (trial,) = create_study(sqlite_url, "own", definition.identity(""), 3).trials()
    assert (trial.state, trial.user_attrs[FAILURE]) == (TrialState.FAIL, "undefined")


def test_a_key_that_the_config_lacks_is_named_in_trial_0(
    define, replace_loop, sqlite_url, tmp_path
):
    replace_loop(lambda config, run: config.params.curv)
    with pytest.raises(Halted, match=r"params\.curv: no such key; .*did you mean curve\?"):
        run_search(define(), sqlite_url, tmp_path, 3)


class Guarded(Never):
    """Records whether it may be interrupted."""

    within = False

    @contextmanager
    def interruptible(self):
        self.within = True
        try:
            yield
        finally:
            self.within = False


def test_a_signal_interrupts_a_loop_but_not_the_storing_of_a_report(define):
    stopping, calls = Guarded(), []

    def function(config, report):
        calls.append(("function", stopping.within))
        report(1.0, 1)
        calls.append(("function", stopping.within))
        return 1.0

    loop = Loop(function, define().config, define().objectives)
    LoopObjective(loop, [LoopJob(0, 0)]).run(
        lambda step: calls.append(("report", stopping.within)), stopping
    )
    assert calls == [("function", True), ("report", False), ("function", True)]
    assert not stopping.within


def test_the_functions_of_a_loop_are_checked_before_trial_0(define):
    for override, words in {
        "objective.metric=[height,epochs]": "objective.direction must be maximize or minimize, for",
        "objective.constraints={failure: '<= 1'}": "failure is reserved; choose another name",
        "objective._target_=test_function.no_function": "it is called as (config, run) -> value",
        "objective.folds=2": "objective.folds=2: the function loads its data itself",
        "objective.network=test_function.returns": (
            "objective.network: TypeError: returns() missing 1"
        ),
        "objective.network=test_function.curved": "must give a torch.nn.Module; got float",
        "objective.network=test_function.nowhere": "nowhere",
    }.items():
        with pytest.raises(ConfigError) as caught:
            validate_search(define(override), TrainingData())
        assert words in str(caught.value)


def test_settings_that_a_loop_does_not_read_are_refused(define):
    other = "objective._target_=looped.train"
    for override, words in (
        (
            "train.epochs=1",
            "train.epochs=1: the loop reads nothing of the section train; .* x, cur",
        ),
        ("++train.epochs=1", "train.epochs=1: the loop reads nothing of the section train"),
        ("pruner=hyperband", "pruner=hyperband: needs pruner.max_resource"),
    ):
        with pytest.raises(ConfigError, match=words):
            validate_search(define(other, override), TrainingData())
        definition = define(override)  # this module names train.epochs
        assert definition.reads_train
    assert not define(other).reads_train


def test_a_note_names_a_test_set_that_no_function_uses(define):
    data = TrainingData(Embedded(), SPLIT)
    (words,) = define().notes(data)
    assert words.startswith("data: the test set is not used; name a function")
    assert define().notes(TrainingData()) == []
    for override in ("winner.enabled=false", "objective.test=test_function.parabola"):
        assert define(override).notes(data) == []


def test_a_config_without_data_names_no_data():
    """As that of a trial to be replayed."""
    config = StudyConfig.of_trial({"objective": {"_target_": "x"}})
    assert not names_data(config)


def test_the_folder_of_a_trial_lasts_until_the_trial_ends(
    define, replace_loop, sqlite_url, tmp_path
):
    seen = []

    def function(config, run):
        seen.append([path.name for path in run.dir.iterdir()])
        (run.dir / "weights").touch()
        run(1.0, run.attempt)
        return 1.0

    replace_loop(function)
    stored = run_search(define(), sqlite_url, tmp_path / "c", 1, Signal(2))
    assert stored.ledger.counts()["free"] == 1
    run_search(define(), f"sqlite:///{tmp_path}/another.db", tmp_path / "c", 1)
    run_search(define(), sqlite_url, tmp_path / "c", 2)
    assert seen == [[], [], ["weights"], []], "each study of this name has its own"
    assert [*(tmp_path / "c").iterdir()] == []


def test_a_loop_with_two_objectives_may_prune_itself(define, replace_loop, sqlite_url, tmp_path):
    def function(config, run):
        run.cost(size=3)
        for epoch in run.epochs(3):
            run.report(height=epoch)
            if run.trial == 1 and epoch == 2:
                raise optuna.TrialPruned
        return {"height": run.value, "size": 4}

    replace_loop(function)
    two_objectives = ("objective.metric=[height,size]", "objective.direction=[maximize,minimize]")
    stored = run_search(define(*two_objectives), sqlite_url, tmp_path, 3)
    assert [trial.state.name for trial in stored.trials()] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert stored.trials()[0].values == [3.0, 4.0]
    assert stored.trials()[1].intermediate_values == {1: 1.0, 2: 2.0}


def test_a_cost_above_its_limit_ends_the_trial_which_never_wins(
    define, replace_loop, sqlite_url, tmp_path
):
    """Also if the loop catches what ends it."""

    def function(config, run):
        with suppress(Exception):
            run.cost(size=10 if run.trial == 1 else 1)
        return 5.0 if run.trial == 1 else 1.0

    replace_loop(function)
    stored = run_search(define("objective.constraints={size: '<= 3'}"), sqlite_url, tmp_path, 3)
    beyond = stored.trials()[1]
    assert (beyond.state, beyond.user_attrs[FAILURE]) == (TrialState.PRUNED, "infeasible")
    assert beyond.constraints["size"] > 0
    assert 1 not in [trial.number for trial in stored.feasible()]


def test_hyperband_counts_the_epochs_of_the_loop(define, replace_loop, sqlite_url, tmp_path):
    def function(config, run):
        for epoch in run.epochs(4):
            run.report(height=epoch)
        return run.value

    replace_loop(function)
    three = ("pruner=hyperband", "train.epochs=3")
    with pytest.raises(Halted, match=r"has 4; set pruner\.max_resource=4"):
        run_search(define(*three), sqlite_url, tmp_path, 1)
    stored = run_search(define(*three, "pruner.max_resource=4"), sqlite_url, tmp_path, 2)
    assert stored.trials()[1].state == TrialState.COMPLETE


def divides(config, run, part):
    return 1 / 0


def names_another(config, run, part):
    return {"depth": 1.0}


def test_a_failed_test_of_the_winner_is_reported_with_its_place_and_a_fix(define, monkeypatch):
    for test, words in (
        (divides, f"ZeroDivisionError: division by zero ({__file__}:"),
        (names_another, "must return a number, or a dict with height; got depth; fix it"),
    ):
        monkeypatch.setattr(f"{__name__}.divides", test)
        definition = define("objective.test=test_function.divides")
        with pytest.raises(NoWinner) as caught:
            definition.test(definition.baseline, 0, {}, None)
        assert f"objective.test=test_function.divides: {words}" in str(caught.value)
        assert "study.accept_code_change=true, which keeps the search" in str(caught.value)
