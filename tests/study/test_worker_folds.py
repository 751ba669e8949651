"""Trials of several folds and seeds, in lockstep and in turn."""

import numpy as np
import pytest
from optuna.trial import TrialState
from toy_worker import SPLIT, fresh, work
from toys import TINY, Signal, ask, toy_folds

from studyloom.config.values import with_values
from studyloom.definition.jobs import build_jobs
from studyloom.seeds import derive
from studyloom.storage.attributes import EPOCHS, STANDARD_ERROR
from studyloom.study.opening import open_study
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
        cfg = with_values(definition.config, trial.params)
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


@pytest.mark.parametrize(("pruner", "after"), [("none", 1), ("wilcoxon", 4)])
def test_a_trial_over_folds_that_was_stopped_equals_one_that_was_not(sqlite_url, pruner, after):
    """It is stopped in the epoch after `after` epochs, of all jobs or, in turn, of each job."""
    definition = ask(*CROSS, "objective.folds=3", "train.epochs=3", f"pruner={pruner}")
    folds, rest = toy_folds(SPLIT, 3), Signal(100)
    stored, clean = (fresh(sqlite_url, definition, 1, name=name) for name in ("s", "clean"))
    work(definition, stored, 1, Signal(after + 1), folds=folds)
    assert stored.ledger.counts()["free"] == 1
    work(definition, open_study(sqlite_url, "s"), 1, rest, folds=folds)
    # No epoch is trained twice; and the worker asks once more whether there is work.
    assert 100 - rest.left == (9 if pruner == "wilcoxon" else 3) - after + 1
    work(definition, clean, 1, folds=folds)
    (resumed,), (never_stopped,) = stored.trials(), clean.trials()
    assert resumed.value == never_stopped.value
    assert resumed.intermediate_values == never_stopped.intermediate_values
    assert resumed.user_attrs[STANDARD_ERROR] == never_stopped.user_attrs[STANDARD_ERROR]
    for name in TIMELESS:
        assert resumed.user_attrs[EPOCHS][name] == never_stopped.user_attrs[EPOCHS][name]


def test_wilcoxon_ends_a_clearly_worse_trial_before_its_last_fold_and_no_better_one(
    sqlite_url, kind
):
    rates = ("+space.optimizer.lr.choice=[1.0e-6,3.0e-3,3.0e-2]", "optimizer.lr=3.0e-3")
    in_turn = ("objective.folds=5", "train.epochs=3", "pruner=wilcoxon", "sampler=grid")
    definition = ask(*TINY[:-1], *in_turn, *kind, "space=none", *rates)
    stored = fresh(sqlite_url, definition, 3)
    work(definition, stored, 3, folds=FIVE)
    trials = {trial.params["optimizer.lr"]: trial for trial in stored.trials()}
    worse, baseline, better = trials[1e-6], trials[3e-3], trials[3e-2]
    assert better.value > baseline.value
    assert {baseline.state, better.state} == {TrialState.COMPLETE}
    assert worse.state == TrialState.PRUNED
    assert list(worse.intermediate_values) == [1, 2, 3]
    assert stored.optuna.best_trial.number == better.number
    seen = np.array(list(worse.intermediate_values.values()))
    curve = worse.user_attrs[EPOCHS]
    assert curve["number"] == [1, 2, 3]
    assert curve["value"][-1] == pytest.approx(seen.mean(), abs=1e-6)
    assert worse.user_attrs[STANDARD_ERROR] == pytest.approx(seen.std(ddof=1) / np.sqrt(3))
