"""`pruner=auto` of a custom training loop: ASHA once a trial has shown that trials can resume."""

import functools

import optuna
import pytest
import torch
from optuna.trial import TrialState
from toys import Never, define_own_loop

from studyloom.data.training_data import TrainingData
from studyloom.decisions.asha import AshaPruner
from studyloom.decisions.auto_pruner import choose_lowest_rung
from studyloom.decisions.strategy import Strategy
from studyloom.objectives.objective import Objective
from studyloom.storage.attributes import FAILURE, PAUSED, RUNG, RUNGS
from studyloom.storage.failures import OUT_OF_MEMORY, Limits
from studyloom.storage.opening import create_study, open_study
from studyloom.worker.begin_search import match_stored_study
from studyloom.worker.slots import SlotQueue
from studyloom.worker.stage import Stage
from studyloom.worker.worker import Worker

CONFIG = """
defaults:
  [studyloom, sampler: random, pruner: auto, storage: sqlite, launcher: local, space: none, _self_]
study: {name: own}
objective: {_target_: test_loop_pruner.kept, metric: height, direction: maximize}
params: {x: 0.0}
space: {params: {x: {float: [-2, 2]}}}
"""
TRIALS = 12


def kept(run, *, x=0.0):
    run.keep(net=torch.nn.Linear(1, 1))
    for epoch in run.epochs(9):
        run.report(height=x + epoch / 9)
    return run.value


def short(run, *, x=0.0):
    run.keep(net=torch.nn.Linear(1, 1))
    for epoch in run.epochs(2):
        run.report(height=x + epoch / 9)
    return run.value


def lost(run, *, x=0.0):
    for epoch in run.epochs(9):
        run.report(height=x + epoch / 9)
    return run.value


def counted(run, *, x=0.0):
    run.keep(net=torch.nn.Linear(1, 1))
    for epoch in range(9):
        run(x + epoch / 9, epoch)
    return x + 1


def kept_at_end(run, *, x=0.0):
    run.keep_at_end(net=torch.nn.Linear(1, 1))
    for epoch in run.epochs(9):
        run.report(height=x + epoch / 9)
    return run.value


def kept_in_files(run, *, x=0.0):
    run.keep_at_end(net=torch.nn.Linear(1, 1))
    first_epoch = 1
    if run.checkpoint is not None:
        first_epoch = int(run.checkpoint.name) + 1
    for epoch in run.epochs(9):
        assert epoch >= first_epoch
        path = run.dir / str(epoch)
        path.touch()
        run.keep_files(path)
        run.report(height=x + epoch / 9)
    return run.value


def fails_first(run, *, x=0.0):
    if run.trial == 0:
        raise torch.cuda.OutOfMemoryError  # such an error does not halt the study
    return kept(run, x=x)


def kept_by_some(run, *, x=0.0):
    if x <= 0:  # as in trial 0
        run.keep(net=torch.nn.Linear(1, 1))
    for epoch in run.epochs(9):
        run.report(height=x + epoch / 9)
    return run.value


@pytest.fixture
def define(tmp_path):
    (tmp_path / "own.yaml").write_text(CONFIG)
    return functools.partial(define_own_loop, tmp_path)


def begin(definition, url):
    # As `begin_search` does for a pruner that is not decided.
    return create_study(
        url,
        "own",
        definition.identity(""),
        TRIALS,
        objectives=definition.objectives,
        lowest_rung=None,
    )


def work(definition, stored, folder, stopping=None):
    stage = Stage("search", stored, definition, Strategy(definition), TRIALS)
    Worker(stage, TrainingData(), stopping or Never(), folder, Limits()).run()


def find_note(definition, stored):
    (note,) = match_stored_study(Strategy(definition), stored).notes()
    return note


def test_a_loop_that_resumes_in_trial_0_is_paused_at_rungs(define, sqlite_url, tmp_path):
    definition = define()
    stored = begin(definition, sqlite_url)
    before = "pruner=auto: median, and asha if the loop calls run.keep and run.epochs in the first "
    assert find_note(definition, stored) == before + "trial that ends well"
    work(definition, stored, tmp_path)
    assert stored.optuna.user_attrs[RUNG] == 1
    trials = stored.trials()
    assert RUNGS not in trials[0].user_attrs, "it is the baseline"
    assert all(trial.user_attrs[RUNGS][0] == 1 for trial in trials[1:])
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert len(pruned) > TRIALS / 2
    assert {trial.last_step for trial in pruned} <= {1, 3}
    after = "pruner=auto: asha, since the loop called run.keep and run.epochs in the first trial "
    assert find_note(definition, open_study(sqlite_url, "own")) == after + "that ended well"


def test_another_trial_decides_if_trial_0_fails(define, sqlite_url, tmp_path):
    definition = define("objective._target_=test_loop_pruner.fails_first")
    stored = begin(definition, sqlite_url)
    work(definition, stored, tmp_path)
    trials = stored.trials()
    assert trials[0].user_attrs[FAILURE] == OUT_OF_MEMORY
    assert stored.optuna.user_attrs[RUNG] == 1
    assert RUNGS not in trials[1].user_attrs, "it was trained before the decision"
    assert all(trial.user_attrs[RUNGS][0] == 1 for trial in trials[2:])


def test_only_the_first_decision_is_stored(define, sqlite_url):
    definition = define()
    stored = begin(definition, sqlite_url)
    stage = Stage("search", stored, definition, Strategy(definition), TRIALS)
    slots = SlotQueue(stage, "worker", max_failures=5)
    stored.optuna.pruner = Strategy(definition).pruner()
    stored.optuna.set_user_attr(RUNG, 1)  # by another worker
    slots.decide_pruner(Objective())  # it cannot resume
    assert stored.optuna.user_attrs[RUNG] == 1


def test_a_loop_that_keeps_files_is_paused_at_rungs(define, sqlite_url, tmp_path):
    definition = define("objective._target_=test_loop_pruner.kept_in_files")
    stored = begin(definition, sqlite_url)
    work(definition, stored, tmp_path)
    assert stored.optuna.user_attrs[RUNG] == 1
    assert {trial.state for trial in stored.trials()} == {TrialState.COMPLETE, TrialState.PRUNED}


@pytest.mark.parametrize("loop", ["lost", "counted", "short", "kept_at_end"])
def test_another_loop_has_the_median_pruner(define, sqlite_url, tmp_path, loop):
    definition = define(f"objective._target_=test_loop_pruner.{loop}")
    stored = begin(definition, sqlite_url)
    work(definition, stored, tmp_path)
    assert stored.optuna.user_attrs[RUNG] == 0
    assert not any(PAUSED in trial.user_attrs for trial in stored.trials())
    assert find_note(definition, stored).startswith("pruner=auto: median, since the loop did not")
    pruner = match_stored_study(Strategy(definition), stored).pruner()
    assert isinstance(pruner, optuna.pruners.MedianPruner)


def test_a_trial_that_cannot_resume_starts_again(define, sqlite_url, tmp_path):
    definition = define("objective._target_=test_loop_pruner.kept_by_some")
    stored = begin(definition, sqlite_url)
    work(definition, stored, tmp_path)
    assert {trial.state for trial in stored.trials()} == {TrialState.COMPLETE, TrialState.PRUNED}
    best = max(stored.trials(), key=lambda trial: trial.params["params.x"])
    assert best.state == TrialState.COMPLETE
    assert list(best.intermediate_values) == [*range(1, 10)]


def test_objectives_that_never_pause_are_decided_at_once(define):
    for overrides in (
        ("checkpoints.dir=null",),
        ("objective.seeds=2",),
    ):
        strategy = Strategy(define(*overrides))
        assert type(strategy.pruner()) is optuna.pruners.MedianPruner
        assert strategy.notes() == []
    assert isinstance(Strategy(define(), stored_rung=4).pruner(), AshaPruner)


@pytest.mark.parametrize(("epochs", "rung"), [(None, 0), (2, 0), (3, 1), (27, 2), (100, 8)])
def test_the_lowest_rung_of_a_loop_follows_from_its_epochs(epochs, rung):
    assert choose_lowest_rung(epochs) == rung
