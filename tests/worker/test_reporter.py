"""Reports of a trial: its curve, its limits, and a database that is away for a while."""

import threading
from contextlib import nullcontext
from typing import ClassVar

import pytest
from optuna.pruners import BasePruner
from optuna.trial import TrialState
from toy_worker import RANDOM, SPLIT, Killed, LockedDatabase, fresh, outcomes, work
from toys import LOOP, ask, toy_folds

from studyloom.storage.attributes import EPOCHS, FAILURE, REASON
from studyloom.storage.trial_record import TrialRecord
from studyloom.training.job import Epoch
from studyloom.training.trainer import Training
from studyloom.worker import reporter
from studyloom.worker.reporter import Outbox


def test_a_trial_that_takes_too_long_ends_after_its_epoch(sqlite_url, definition):
    stored = fresh(sqlite_url, definition, 1)
    work(definition, stored, 1, trial_timeout=1e-9)
    (trial,) = stored.trials()
    assert (trial.state, trial.user_attrs[FAILURE]) == (TrialState.FAIL, "timeout")
    assert "study.trial_timeout=1e-09" in trial.user_attrs[REASON]
    assert list(trial.intermediate_values) == [1]


@pytest.mark.usefixtures("impatient")
def test_training_continues_while_the_database_is_away(sqlite_url):
    definition = ask(*RANDOM, "train.epochs=4")
    stored = fresh(sqlite_url, definition, 1)
    locked = LockedDatabase(stored)
    work(definition, stored, 1, locked)
    assert locked.reported == [1]
    (trial,) = stored.trials()
    assert list(trial.intermediate_values) == [1, 2, 3, 4]
    clean = fresh(sqlite_url, definition, 1, name="clean")
    work(definition, clean, 1)
    assert outcomes(stored) == outcomes(clean)


@pytest.mark.usefixtures("impatient")
def test_a_trial_is_pruned_at_its_step_although_the_database_was_away(sqlite_url):
    threshold = "pruner._target_=optuna.pruners.ThresholdPruner"
    pruner = (threshold, "+pruner.lower=1.1", "+pruner.n_warmup_steps=2")
    definition = ask(*RANDOM, *pruner, "train.epochs=6", "study.baseline=false")
    stored = fresh(sqlite_url, definition, 1)
    locked = LockedDatabase(stored)
    work(definition, stored, 1, locked)
    assert locked.epoch >= 4
    (trial,) = stored.trials()
    assert trial.state == TrialState.PRUNED
    assert list(trial.intermediate_values) == trial.user_attrs[EPOCHS]["number"] == [1, 2]


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


@pytest.mark.parametrize(("kind", "reports"), [((), 4), (LOOP, 3)])
def test_the_pruner_is_consulted_at_each_report_but_the_last(
    sqlite_url, monkeypatch, kind, reports
):
    """A report is an epoch of all folds, or of a loop the end of its call for a fold."""
    monkeypatch.setattr(Witness, "shown", [])
    folds = toy_folds(SPLIT, 3)
    definition = ask(*RANDOM, *kind, WITNESS, "train.epochs=4", "objective.folds=3")
    stored = fresh(sqlite_url, definition, 2)
    work(definition, stored, 2, folds=folds)
    baseline, trial = stored.trials()
    values = sorted(trial.intermediate_values.items())
    assert len(baseline.intermediate_values) == len(values) == reports
    assert Witness.shown == [dict(values[:count]) for count in range(1, reports)]
    record = TrialRecord(trial)
    assert (record.steps_done, record.steps_planned) == (reports, reports)
    assert record.epoch_count == (12 if kind else 4), "of a loop those of all folds"


@pytest.mark.parametrize(
    ("prunes", "dies", "state", "shown"),
    [
        (2, 0, TrialState.PRUNED, [1, 2]),
        (4, 0, TrialState.COMPLETE, [1, 2, 3]),  # not after the last
        (2, 2, TrialState.PRUNED, [1, 2, 2]),  # again, where its worker died before it was pruned
    ],
)
def test_a_pruner_ends_a_trial_at_a_report(sqlite_url, monkeypatch, prunes, dies, state, shown):
    monkeypatch.setattr(Witness, "shown", [])
    pruner = (WITNESS, f"+pruner.prunes=[{prunes}]", f"+pruner.dies=[{dies}]")
    definition = ask(*RANDOM, *pruner, "train.epochs=4", "study.baseline=false")
    stored = fresh(sqlite_url, definition, 1)
    with pytest.raises(Killed) if dies else nullcontext():
        work(definition, stored, 1)
    work(definition, stored, 1)
    (trial,) = stored.trials()
    assert (trial.state, trial.last_step) == (state, prunes)
    assert [max(values) for values in Witness.shown] == shown


def test_a_value_is_the_last_epochs_and_not_the_luckiest(sqlite_url, monkeypatch):
    definition = ask(*RANDOM)

    def measure(training):
        for number, accuracy in ((1, 0.9), (2, 0.7)):
            training.history.append([Epoch(number, 1.0, 1.0, accuracy, 0.1, 1.0)])
            yield training.history[-1]

    monkeypatch.setattr(Training, "__iter__", measure)
    stored = fresh(sqlite_url, definition, 1)
    work(definition, stored, 1)
    assert [trial.value for trial in stored.trials()] == [0.7]


# Posting in order


class Database:
    """Keeps what is posted; while it is away, posting waits."""

    def __init__(self):
        self.posted = []
        self.here = threading.Event()
        self.here.set()

    def post(self, item):
        assert self.here.wait(10)
        if isinstance(item, BaseException):
            raise item
        self.posted.append(item)

    def is_away(self):
        return not self.here.is_set()


@pytest.fixture
def database():
    return Database()


def test_a_sender_continues_while_the_database_is_away(database):
    with Outbox(database.post, database.is_away) as box:
        database.here.clear()
        for item in range(5):
            box.send(item)
        assert database.posted == []
        database.here.set()
        box.send(5)
        assert database.posted == [*range(6)]


def test_a_sender_continues_when_a_post_takes_long(database, monkeypatch):
    monkeypatch.setattr(reporter, "SEND_TIMEOUT", 0.05)
    database.here.clear()
    with Outbox(database.post, lambda: False) as box:
        box.send(0)
        assert database.posted == []
        database.here.set()
        box.flush()
        assert database.posted == [0]


def test_a_failure_is_raised_again_and_later_items_are_dropped(database):
    with Outbox(database.post, database.is_away) as box:
        database.here.clear()
        for item in (0, KeyError("first"), 1):
            box.send(item)
        database.here.set()
        for call in (box.flush, lambda: box.send(2)):
            with pytest.raises(KeyError):
                call()
    assert database.posted == [0]
