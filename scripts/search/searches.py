"""Searches of tables by TPE as shipped, for answers and early ends.

One set of searches serves both, each of 100 trials, of which shorter ones are the first. They
have the space and the sampler of a real question, seeded for the trial, but no worker, since a
trial of a table has one epoch. Trial 0 is in the middle of the space, where a page's own
configuration would be.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import optuna

from studyloom.study.strategy import Strategy

from .methods import Run
from .simulator import Tape, ask
from .tables import SPACES, Recorded, Task, load, size

TRIALS = 100
SAMPLER = ("sampler=tpe",)


@dataclass(frozen=True)
class Searches:
    """Searches that a process runs one after the other.

    Args:
        family: of the task.
        task: its name.
        seeds: of the studies.
    """

    family: str
    task: str
    seeds: tuple[int, ...]


def search(results: Recorded, seed: int) -> list[int]:
    """Searches a table with TPE as shipped, and returns the configurations of the trials.

    Args:
        seed: of the study.
    """
    task, tried = results.task, list[int]()
    definition, study = ask(task, SAMPLER, seed), optuna.create_study(direction="maximize")
    middle = {f"params.{name}": size(node) // 2 for name, node in SPACES[task.family].items()}
    study.enqueue_trial(middle)
    for number in range(TRIALS):
        study.sampler = Strategy(definition).sampler(number)
        trial = study.ask()
        tried.append(results.find(definition.space.suggest(trial)))
        study.tell(trial, float(results.curve(tried[-1])[-1]))
    return tried


def run_searches(job: Searches) -> tuple[Searches, list[list[int]]]:
    """Runs searches, in a process of its own."""
    task = load(job.family, job.task)
    assert isinstance(task, Task)
    return job, [search(task.begin(seed), seed) for seed in job.seeds]


def as_run(results: Recorded, tried: Sequence[int]) -> Run:
    """Returns a search that tried some configurations, in trials of one epoch."""
    trials = len(tried)
    values = [float(results.curve(one)[-1]) for one in tried]
    return Run(results, Tape(trials, [*range(trials)], [*tried], [1] * trials, values))
