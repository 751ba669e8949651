"""Searches of tables by TPE as shipped, for answers, earlier studies and early ends.

One set of searches serves all three, each of 100 trials, of which shorter ones are the first. They
have the space and the sampler of a real question, seeded for the trial, but no worker, since a
trial of a table has one epoch. Trial 0 is in the middle of the space, where a page's own
configuration would be.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna

from .methods import Run
from .simulator import Tape, ask, seed_order
from .tables import SPACES, Task, load, size

TRIALS = 100
SAMPLER = ("sampler=tpe",)


@dataclass(frozen=True)
class Searches:
    """Searches that a process runs one after the other.

    Args:
        family: of the task.
        task: its name.
        seeds: of the studies.
        first: by seed: configurations to begin with, after the middle.
        trials: of each.
    """

    family: str
    task: str
    seeds: tuple[int, ...]
    first: Mapping[int, Sequence[int]]
    trials: int = TRIALS


def middle(task: Task) -> int:
    """Returns the configuration in the middle of the space of a table."""
    sizes = [size(node) for node in SPACES[task.family].values()]
    return int(np.ravel_multi_index([each // 2 for each in sizes], sizes))


def digits(task: Task, configurations: Sequence[int]) -> np.ndarray:
    """Returns the values of the parameters of configurations, int (configurations, parameters)."""
    sizes = [size(node) for node in SPACES[task.family].values()]
    return np.stack(np.unravel_index(np.asarray(configurations), sizes), axis=1)


def search(task: Task, seed: int, trials: int, first: Sequence[int] = ()) -> list[int]:
    """Searches a table, and returns the configurations of the trials.

    Args:
        task: of a table.
        seed: of the study, and of the order in which the seeds of the task are used.
        trials: how many.
        first: configurations to begin with, after the middle.
    """
    question, order = ask(task, SAMPLER, seed), seed_order(task, seed)
    study = optuna.create_study(direction="maximize")
    for point in digits(task, [middle(task), *first]).tolist():
        names = (f"params.{name}" for name in SPACES[task.family])
        study.enqueue_trial(dict(zip(names, point, strict=True)))
    tried = []
    for number in range(trials):
        study.sampler = question.sampler(number)
        trial = study.ask()
        tried.append(task.find(question.space.suggest(trial)))
        study.tell(trial, float(task.values[tried[-1], order[tried[-1], 0], -1]))
    return tried


def run_searches(job: Searches) -> tuple[Searches, list[list[int]]]:
    """Runs searches, in a process of its own."""
    task = load(job.family, job.task)
    found = [search(task, seed, job.trials, job.first.get(seed, ())) for seed in job.seeds]
    return job, found


def as_run(task: Task, seed: int, configurations: Sequence[int], *, shared: bool = False) -> Run:
    """Returns a search as a run, whose trials have one epoch each.

    Args:
        task: that was searched.
        seed: of the study.
        configurations: of the trials.
        shared: see `seed_order`.
    """
    trials = len(configurations)
    tape = Tape(trials, [*range(trials)], [*configurations], [1] * trials)
    return Run(task, tape, seed_order(task, seed, shared=shared))
