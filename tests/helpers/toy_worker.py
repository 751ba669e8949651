"""A worker in this process, on toy studies; and a database that goes away during a trial."""

import sqlite3
import threading
from contextlib import contextmanager
from pathlib import Path

from toys import TINY, Never, toy_folds, toy_split

from studyloom.data.training_data import TrainingData
from studyloom.decisions.strategy import Strategy
from studyloom.definition.definition import Definition
from studyloom.errors import Interrupted
from studyloom.storage.failures import Limits
from studyloom.storage.opening import create_study, open_study
from studyloom.worker.stage import Stage
from studyloom.worker.worker import Worker

SPLIT = toy_split()
FOLDS = toy_folds(SPLIT)
RANDOM = (*TINY, "sampler=random", "pruner=none")
FOLDER: dict[str, Path | None] = {"checkpoints": None}  # set for each test


def work(definition: Definition, stored, trials, stopping=None, folds=FOLDS, **limits):
    """Works on the first `trials` slots of a study, in this process."""
    data, stop = TrainingData(None, SPLIT, folds), stopping or Never()
    stage = Stage("search", stored, definition, Strategy(definition), trials)
    Worker(stage, data, stop, FOLDER["checkpoints"], Limits(**limits)).run()


def work_side_by_side(definition, url, trials, workers, **limits):
    """Works on a study by several threads, each with a connection to the database."""
    threads = [
        threading.Thread(
            target=work, args=(definition, open_study(url, "s"), trials), kwargs=limits
        )
        for _ in range(workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def fresh(url, definition, trials, name="s"):
    """Creates a study of toy data."""
    return create_study(
        url, name, definition.identity("toy"), trials, objectives=definition.objectives
    )


def outcomes(stored):
    return outcomes_of(stored.trials())


def outcomes_of(trials):
    return {(t.number, tuple(sorted(t.params.items())), t.value, t.state) for t in trials}


class LockedDatabase(Never):
    """A stranger locks a SQLite database from the second epoch to the fourth.

    Attributes:
        epoch: the number of epochs that have begun.
        reported: the steps that were in the database at that moment.
    """

    def __init__(self, stored):
        self.epoch = 0
        self.reported = None
        self._path = stored.ledger.storage.retry.address.database

    @contextmanager
    def interruptible(self):
        self.epoch += 1
        if self.epoch == 2:
            self._stranger = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False
            )
            self._stranger.execute("BEGIN IMMEDIATE")
        if self.epoch == 4:
            (trial,) = open_study(f"sqlite:///{self._path}", "s").trials()
            self.reported = list(trial.intermediate_values)
            self._stranger.close()
        yield


class Killed(Interrupted):
    """Ends a worker without ending the process of the tests."""
