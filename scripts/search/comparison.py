"""Compares the methods on all tasks, with seeds in pairs, and prints what it finds."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np

from .methods import BEFORE, METHODS, Method, Run
from .simulator import folder, replay
from .statistics import Floats, interval, until
from .surrogates import TASKS
from .tables import load, names

MARKS = (2, 4, 8, 16)  # budgets, in whole trainings
BLOCK = 5  # seeds that share a database


@dataclass(frozen=True)
class Job:
    """Searches that a process runs one after the other.

    Args:
        family: of the task.
        task: its name.
        method: with which it is searched.
        epochs: of a whole training; None for those that were recorded.
        seeds: of the studies.
        workers: simulated.
        place: a folder for databases.
    """

    family: str
    task: str
    method: Method
    epochs: int | None
    seeds: tuple[int, ...]
    workers: int
    place: Path


def work(job: Job) -> tuple[Job, Floats]:
    """Returns the regrets of a job after each epoch, (seeds, budget), in a process of its own.

    They are of the configuration whose last value is the best.
    """
    task = load(job.family, job.task, job.epochs)
    budget = MARKS[-1] * task.epochs
    regrets = np.empty((len(job.seeds), budget))
    with folder(job.place) as place:
        for row, seed in enumerate(job.seeds):
            results, first = task.begin(seed), job.method.first
            begin = () if first is None else first(seed)
            given = (job.method.overrides, seed, budget, job.workers, place, begin)
            run = Run(results, replay(results, *given))
            answers = run.answers()[:budget]  # other workers end the epochs they have begun
            named = [results.regret(one) for one in answers]
            regrets[row] = named + [named[-1]] * (budget - len(named))  # it ended before
    return job, regrets


def compare(
    pool: Pool,
    place: Path,
    families: Sequence[str],
    methods: Sequence[str],
    seeds: int,
    workers: int,
    epochs: int | None,
) -> None:
    """Runs methods on all tasks of some families, and prints a table for each family.

    Args:
        pool: of processes.
        place: a folder for their databases.
        families: of tasks.
        methods: their names.
        seeds: of each method on each task.
        workers: simulated.
        epochs: of a whole training; None for those that were recorded.
    """
    blocks = [tuple(range(first, min(seeds, first + BLOCK))) for first in range(0, seeds, BLOCK)]
    jobs = [
        Job(family, task, method, epochs, block, workers, place)
        for block in blocks
        for family in families
        for method in METHODS
        if method.name in methods and (method.first is None or family in TASKS)
        for task in names(family)
    ]
    found = defaultdict[tuple[str, str, str], list[Floats]](list)
    for job, regrets in pool.imap(work, jobs):
        found[job.family, job.method.name, job.task].append(regrets)
    for family in families:
        curves = {
            method: np.stack(
                [np.concatenate(found[family, method, task]) for task in names(family)]
            )
            for method in dict.fromkeys(job.method.name for job in jobs if job.family == family)
        }
        print(f"\n{family}: {', '.join(names(family))}; {seeds} seeds, {workers} simulated workers")
        show(curves)


def show(curves: dict[str, Floats]) -> None:
    """Prints the table of a family.

    Args:
        curves: by method: regrets after each epoch, (tasks, seeds, budget).
    """
    before = curves[BEFORE]
    budget = before.shape[-1]
    marks = [budget * mark // MARKS[-1] for mark in MARKS]
    columns = "".join(f"{mark:>8}" for mark in marks)
    print(f"mean regret after epochs{columns}   less than {BEFORE} by    epochs until its last")
    for name, regrets in curves.items():
        means = "".join(f"{regrets[..., mark - 1].mean():8.4f}" for mark in marks)
        gain = before[..., -1] - regrets[..., -1]
        low, high = interval(gain)
        reached = [f">{budget}" if one > budget else f"{one:.0f}" for one in until(regrets, before)]
        print(
            f"{name:24}{means}   {gain.mean():+.4f} [{low:+.4f}, {high:+.4f}]    "
            f"{reached[0]} [{reached[1]}, {reached[2]}]",
            flush=True,
        )
