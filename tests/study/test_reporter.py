"""Reports of a trial: its curve, its limits, and a database that is away for a while."""

from typing import ClassVar

import pytest
from optuna.pruners import BasePruner
from optuna.trial import TrialState
from toy_worker import RANDOM, SPLIT, Killed, LockedDatabase, fresh, outcomes, work
from toys import ask, toy_folds

from studyloom.question import objective
from studyloom.storage.attributes import (
    EPOCHS,
    FAILURE,
    REASON,
)
from studyloom.training.job import Epoch


def test_a_trial_that_takes_too_long_ends_after_its_epoch(sqlite_url, question):
    stored = fresh(sqlite_url, question, 1)
    work(question, stored, 1, trial_timeout=1e-9)
    (trial,) = stored.trials()
    assert (trial.state, trial.user_attrs[FAILURE]) == (TrialState.FAIL, "timeout")
    assert "study.trial_timeout=1e-09" in trial.user_attrs[REASON]
    assert list(trial.intermediate_values) == [1]


@pytest.mark.usefixtures("impatient")
def test_training_goes_on_while_the_database_is_away(sqlite_url):
    question = ask(*RANDOM, "train.epochs=4")
    stored = fresh(sqlite_url, question, 1)
    locked = LockedDatabase(stored)
    work(question, stored, 1, locked)
    assert locked.reported == [1]
    (trial,) = stored.trials()
    assert list(trial.intermediate_values) == [1, 2, 3, 4]
    clean = fresh(sqlite_url, question, 1, name="clean")
    work(question, clean, 1)
    assert outcomes(stored) == outcomes(clean)


@pytest.mark.usefixtures("impatient")
def test_a_trial_that_was_to_be_pruned_while_the_database_was_away_is_pruned_there(sqlite_url):
    pruner = (
        "pruner._target_=optuna.pruners.ThresholdPruner",
        "+pruner.lower=1.1",
        "+pruner.n_warmup_steps=2",
    )
    question = ask(*RANDOM, *pruner, "train.epochs=6", "study.baseline=false")
    stored = fresh(sqlite_url, question, 1)
    locked = LockedDatabase(stored)
    work(question, stored, 1, locked)
    assert locked.epoch >= 4
    (trial,) = stored.trials()
    assert trial.state == TrialState.PRUNED
    assert list(trial.intermediate_values) == trial.user_attrs[EPOCHS]["number"] == [1, 2]


@pytest.mark.usefixtures("impatient")
def test_what_a_checkpoint_knows_and_the_database_does_not_is_reported_when_the_trial_goes_on(
    sqlite_url,
):
    question = ask(*RANDOM, "train.epochs=6")
    stored = fresh(sqlite_url, question, 1)

    def die():
        raise Killed

    locked = LockedDatabase(stored, die)
    with pytest.raises(Killed):
        work(question, stored, 1, locked)
    assert locked.reported == [1]
    work(question, stored, 1)
    (trial,) = stored.trials()
    assert list(trial.intermediate_values) == [1, 2, 3, 4, 5, 6]
    clean = fresh(sqlite_url, question, 1, name="clean")
    work(question, clean, 1)
    assert outcomes(stored) == outcomes(clean)


class Witness(BasePruner):
    """A pruner that records what it is shown, and prunes where it is told to."""

    shown: ClassVar[list[dict[int, float]]] = []

    def __init__(self, prunes=(), dies=()):
        self.prunes, self.dies = prunes, dies

    def prune(self, study, trial):
        Witness.shown.append(dict(trial.intermediate_values))
        if len(Witness.shown) in self.dies:
            raise Killed
        return trial.last_step in self.prunes


WITNESS = "pruner._target_=test_reporter.Witness"


@pytest.mark.parametrize(("steps", "reports"), [("epochs", 4), ("jobs", 3)])
def test_a_pruner_is_asked_at_each_report_but_the_last_and_never_about_the_baseline(
    sqlite_url, monkeypatch, steps, reports
):
    """A report is an epoch of all jobs, or the end of one job if they are trained in turn."""
    monkeypatch.setattr(Witness, "shown", [])
    folds = toy_folds(SPLIT, 3)
    question = ask(*RANDOM, WITNESS, f"+pruner.steps={steps}", "train.epochs=4")
    stored = fresh(sqlite_url, question, 2)
    work(question, stored, 2, folds=folds)
    baseline, trial = stored.trials()
    values = sorted(trial.intermediate_values.items())
    assert len(baseline.intermediate_values) == len(values) == reports
    assert Witness.shown == [dict(values[:count]) for count in range(1, reports)]


def test_a_pruner_ends_a_trial_at_a_report_and_not_after_its_last(sqlite_url):
    for url, prunes, state, steps in (
        (sqlite_url, 2, TrialState.PRUNED, [1, 2]),
        (f"{sqlite_url}2", 4, TrialState.COMPLETE, [1, 2, 3, 4]),
    ):
        overrides = (WITNESS, f"+pruner.prunes=[{prunes}]", "train.epochs=4")
        question = ask(*RANDOM, *overrides, "study.baseline=false")
        stored = fresh(url, question, 1)
        work(question, stored, 1)
        (trial,) = stored.trials()
        assert (trial.state, list(trial.intermediate_values)) == (state, steps)


def test_a_trial_is_judged_again_where_its_worker_died_before_it_was(sqlite_url, monkeypatch):
    monkeypatch.setattr(Witness, "shown", [])
    dies = (WITNESS, "+pruner.prunes=[2]", "+pruner.dies=[2]", "train.epochs=4")
    question = ask(*RANDOM, *dies, "study.baseline=false")
    stored = fresh(sqlite_url, question, 1)
    with pytest.raises(Killed):
        work(question, stored, 1)
    work(question, stored, 1)
    (trial,) = stored.trials()
    assert (trial.state, list(trial.intermediate_values)) == (TrialState.PRUNED, [1, 2])
    assert [list(shown) for shown in Witness.shown] == [[1], [1, 2], [1, 2]]


@pytest.mark.parametrize("question", ["network"], indirect=True)
def test_a_value_is_the_last_epochs_and_not_the_luckiest(sqlite_url, question, monkeypatch):
    def measure(training, _):
        for number, accuracy in ((1, 0.9), (2, 0.7)):
            training.history.append([Epoch(number, 1.0, 1.0, accuracy, 0.1, 1.0)])
            training.numbers.append(number)
            yield training.history[-1][0]

    monkeypatch.setattr(objective, "run_epochs", measure)
    stored = fresh(sqlite_url, question, 1)
    work(question, stored, 1)
    assert [trial.value for trial in stored.trials()] == [0.7]
