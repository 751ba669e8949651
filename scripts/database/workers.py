"""Trials with several workers: how many times as fast, and how many of them can sleep at once."""

import functools
import tempfile
import time
from statistics import median
from typing import Any

import optuna
import torch
from torch import nn
from training.commands import run_search

from database.toy import Bare, Tiny, postgres, show, work
from studyloom.data.training_data import TrainingData
from studyloom.objectives.objective import NetworkObjective
from studyloom.storage.opening import create_study, open_study
from studyloom.storage.stored_study import StoredStudy
from studyloom.training.job import Job
from studyloom.training.trainer import Training


def spans(stored: StoredStudy) -> float:
    """Returns the seconds from the start of the first trial to the end of the last."""
    trials = stored.trials()
    ends = [trial.datetime_complete for trial in trials if trial.datetime_complete]
    return (max(ends) - min(t.datetime_start for t in trials if t.datetime_start)).total_seconds()


def scale(repeats: int, trials: int, sleepers: int) -> None:
    """Trials with 1 and 2 one-thread workers, first start to last end; then 32 sleepers."""
    search = ("sampler=random", "pruner=none", "space=none", "study.seed=0")
    search += (f"study.trials={trials}",)
    search += ("+space.train.batch_size.choice=[64,65,66,67]", "model=mlp", "train.epochs=12")
    times: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            for workers, took in times.items():
                number = f"launcher.workers={workers}"
                _, stored = run_search("mnist", folder, *search, number, OMP_NUM_THREADS="1")
                took.append(spans(stored))
                stored.close()
        for workers, took in times.items():
            show(f"{workers} workers", took)
        print(f"  two are {median(times[1]) / median(times[2]):.2f} times one")
        sleep(folder, sleepers)


NAP, NAPS = 0.5, 12


class Asleep(Bare):
    """Trials that sleep for half a second."""

    def sampler(self, number: int, *, redraws: bool = False) -> optuna.samplers.BaseSampler:
        return optuna.samplers.RandomSampler(seed=number)

    def pruner(self) -> optuna.pruners.BasePruner:
        return optuna.pruners.NopPruner()

    def make_objective(
        self, configuration: Any, number: int, data: TrainingData, attempt: Any
    ) -> NetworkObjective:
        (train, valid) = data.folds[0]
        sgd = functools.partial(torch.optim.SGD, lr=0.1)
        loss = nn.CrossEntropyLoss()

        def net(shape: Any, outputs: int) -> nn.Module:
            time.sleep(NAP)
            return Tiny(shape, outputs)

        job = Job(net, sgd, lambda _: 1.0, loss, train, valid, 1, 4, number)
        return NetworkObjective(Training([job], data.split))


def sleeper(url: str, folder: str, trials: int, barrier: Any) -> None:
    """Works, once all others are ready."""
    torch.set_num_threads(1)
    stored = open_study(url, "bench")
    barrier.wait()
    work(Asleep(), stored, folder, trials)


def sleep(folder: str, sleepers: int) -> None:
    """Measures how much of their time some workers sleep, which is all that their trials do."""
    context = torch.multiprocessing.get_context("spawn")
    barrier, trials = context.Barrier(sleepers), sleepers * NAPS
    with postgres(folder) as new_database:
        url = new_database()
        stored = create_study(url, "bench", {"bench": "sleep"}, trials)
        arguments = (url, folder, trials, barrier)
        workers = [context.Process(target=sleeper, args=arguments) for _ in range(sleepers)]
        for process in workers:
            process.start()
        for process in workers:
            process.join()
            assert process.exitcode == 0
        took = spans(stored)
        stored.close()
    print(
        f"  {sleepers} sleeping workers, {trials} trials of {NAP} s: {took:.2f} s, "
        f"efficiency {NAPS * NAP / took:.2f}"
    )
