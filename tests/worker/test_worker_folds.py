"""Trials of several folds and seeds."""

import numpy as np
import pytest
from toy_worker import SPLIT, fresh, work
from toys import TINY, Signal, ask, toy_folds

from studyloom.objectives.jobs import build_jobs
from studyloom.seeds import derive
from studyloom.storage.attributes import EPOCHS, STANDARD_ERROR
from studyloom.storage.opening import open_study
from studyloom.training.trainer import Training

FIVE = toy_folds(SPLIT, 5)
CROSS = (*TINY, "objective.folds=5")
TIMELESS = ("number", "train_loss", "valid_loss", "value", STANDARD_ERROR)


def test_a_grid_over_folds_is_the_textbook_search_with_cross_validation(sqlite_url):
    space = ("space=none", "+space.optimizer.lr.choice=[0.001,0.01]", "optimizer.lr=0.01")
    definition = ask(*TINY[:-1], "objective.folds=5", *space, "sampler=grid", "pruner=none")
    stored = fresh(sqlite_url, definition, 2)
    work(definition, stored, 2, folds=FIVE)
    for trial in stored.trials():
        cfg = definition.config.with_values(trial.params)
        ends = []
        for job in build_jobs(cfg, FIVE, derive(definition.config.study.seed, trial.number)):
            *_, (last,) = Training([job], SPLIT)
            ends.append(last.value)
        assert trial.value == pytest.approx(np.mean(ends), abs=1e-12)
        assert trial.user_attrs[STANDARD_ERROR] == pytest.approx(
            np.std(ends, ddof=1) / np.sqrt(5), abs=1e-12
        )
    assert {trial.params["optimizer.lr"] for trial in stored.trials()} == {0.001, 0.01}
    assert stored.optuna.best_value == max(trial.value for trial in stored.trials())


def test_a_trial_over_folds_that_was_stopped_equals_one_that_was_not(sqlite_url, kind):
    """It is stopped in the second epoch of all folds, and a loop in that of the first fold."""
    definition = ask(*CROSS, "objective.folds=3", "train.epochs=3", "pruner=none", *kind)
    folds, rest = toy_folds(SPLIT, 3), Signal(100)
    stored, clean = (fresh(sqlite_url, definition, 1, name=name) for name in ("s", "clean"))
    work(definition, stored, 1, Signal(2), folds=folds)
    assert stored.ledger.counts()["free"] == 1
    work(definition, open_study(sqlite_url, "s"), 1, rest, folds=folds)
    # No epoch is trained twice. A network is asked once more for an epoch; a loop is called three
    # times, and a signal may end it between its call and its first report too.
    epochs = 8 if kind else 2
    further = 3 if kind else 1
    assert 100 - rest.left == epochs + further
    work(definition, clean, 1, folds=folds)
    (resumed,), (never_stopped,) = stored.trials(), clean.trials()
    assert resumed.value == never_stopped.value
    assert resumed.intermediate_values == never_stopped.intermediate_values
    assert resumed.user_attrs[STANDARD_ERROR] == never_stopped.user_attrs[STANDARD_ERROR]
    for name in TIMELESS:
        assert resumed.user_attrs[EPOCHS][name] == never_stopped.user_attrs[EPOCHS][name]
