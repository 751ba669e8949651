"""Compares the methods on all tasks, with seeds in pairs, and prints what it finds."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np

from .methods import (
    DEFAULT,
    MEDIAN,
    METHODS,
    RANDOM,
    RANDOM_TWICE,
    Method,
    Run,
    finished,
    last_seen,
)
from .simulator import folder, replay, seed_order
from .statistics import Floats, interval, until
from .tables import load, names

MARKS = {"curves": (54, 108, 216, 432)}  # epochs, of which a trial has 27
TRIALS = (10, 20, 34, 40)  # of a table
BLOCK = 5  # seeds that share a database


@dataclass(frozen=True)
class Job:
    """Searches that a process runs one after the other.

    Args:
        family: of the task.
        task: its name.
        method: with which it is searched.
        budget: epochs.
        seeds: of the studies.
        workers: simulated.
        place: a folder for databases.
    """

    family: str
    task: str
    method: Method
    budget: int
    seeds: tuple[int, ...]
    workers: int
    place: Path


@dataclass(frozen=True)
class Found:
    """What the searches of a job have found.

    Args:
        job: that was run.
        regrets: after each epoch, (seeds, 2, budget): of the configuration whose last value is the
            best, and of the best that was trained to the end.
    """

    job: Job
    regrets: Floats


def work(job: Job) -> Found:
    """Runs a job, in a process of its own."""
    task = load(job.family, job.task)
    # Of an answer that is not there: the regret of a configuration in the middle.
    nothing = float(task.best - np.median(task.finals)) / task.scale
    regrets = np.empty((len(job.seeds), 2, job.budget))
    with folder(job.place) as place:
        for row, seed in enumerate(job.seeds):
            given = (task, job.method.overrides, seed, job.budget, job.workers, place)
            run = Run(task, replay(*given), seed_order(task, seed))
            for way, answer in enumerate((last_seen, finished)):
                named = [nothing if one is None else run.regret(one) for one in answer(run)]
                named += [named[-1]] * (job.budget - len(named))  # it ended, or ran out of trials
                regrets[row, way] = named[: job.budget]
    return Found(job, regrets)


def compare(
    pool: Pool,
    place: Path,
    families: Sequence[str],
    seeds: int,
    workers: int,
    budget: int | None = None,
) -> None:
    """Runs all methods on all tasks of some families, and prints a table for each family.

    Args:
        pool: of processes.
        place: a folder for their databases.
        families: of tasks.
        seeds: of each method on each task.
        workers: simulated.
        budget: epochs, or trials of a table; None for the last mark of each family.
    """
    absent = [method.name for method in METHODS if not method.exists]
    jobs = [job for family in families for job in plan(family, seeds, workers, budget, place)]
    regrets: dict[tuple[str, str, str], dict[int, Floats]] = defaultdict(dict)
    for found in pool.imap_unordered(work, jobs):
        job = found.job
        key = (job.family, job.task, job.method.name)
        regrets[key] |= dict(zip(job.seeds, found.regrets, strict=True))
    curves = {
        key: np.stack([rows[seed] for seed in sorted(rows)], 1) for key, rows in regrets.items()
    }
    for family in families:
        tasks = names(family)
        marks = tuple(m for m in MARKS.get(family, TRIALS) if budget is None or m <= budget)
        marks = marks or (budget or 0,)
        of_family = {
            method.name: np.stack([curves[family, task, method.name] for task in tasks])
            for method in METHODS
            if (family, tasks[0], method.name) in curves
        }
        twice = of_family[RANDOM_TWICE]
        of_family = {RANDOM: twice[..., : twice.shape[-1] // 2], **of_family}
        show(family, tasks, of_family, marks, workers)
    if absent:
        print(f"not there yet: {'; '.join(absent)}")


def plan(family: str, seeds: int, workers: int, budget: int | None, place: Path) -> Iterator[Job]:
    """Yields the jobs of a family."""
    spent = budget or MARKS.get(family, TRIALS)[-1]
    for task in names(family):
        for method in METHODS:
            if not method.exists or (method.prunes and family != "curves"):
                continue
            for first in range(0, seeds, BLOCK):
                block = tuple(range(first, min(seeds, first + BLOCK)))
                yield Job(family, task, method, spent * method.times, block, workers, place)


def show(
    family: str,
    tasks: Sequence[str],
    curves: dict[str, Floats],
    marks: Sequence[int],
    workers: int,
) -> None:
    """Prints the tables of a family.

    Args:
        family: of tasks.
        tasks: their names.
        curves: by method: regrets after each epoch, (tasks, 2, seeds, budget).
        marks: the budgets at which regrets are printed.
        workers: simulated.
    """
    unit = "epochs" if family == "curves" else "trials"
    base, end = curves[DEFAULT], marks[-1]
    seeds = base.shape[2]
    print(f"\n{family}: {', '.join(tasks)}; {seeds} seeds, {workers} simulated workers")
    print(f"mean regret after {unit} of")
    columns = "".join(f"{mark:>8}" for mark in marks)
    print(f"{'':24}{columns}{'finished':>10}{'wins':>6}   less than {DEFAULT} by, 95 %")
    for name, values in curves.items():
        at = values.shape[-1] // base.shape[-1]  # a method with twice the budget
        means = [values[:, 0, :, mark * at - 1].mean() for mark in marks]
        last, ours = values[:, :, :, end * at - 1], base[:, :, :, end - 1]
        gain = ours[:, 0] - last[:, 0]
        wins = int((gain.mean(1) > 0).sum())
        low, high = interval(gain)
        print(
            f"{name:24}{''.join(f'{mean:8.4f}' for mean in means)}{last[:, 1].mean():10.4f}"
            f"{wins:3}/{len(tasks)}   {gain.mean():+.4f} [{low:+.4f}, {high:+.4f}]",
            flush=True,
        )
    for level in (DEFAULT, MEDIAN):
        if level in curves:
            show_until(unit, tasks, curves, level, end)


def show_until(
    unit: str, tasks: Sequence[str], curves: dict[str, Floats], level: str, end: int
) -> None:
    """Prints when each method has the mean regret that another one has at its end.

    Args:
        unit: epochs or trials.
        tasks: their names.
        curves: as for `show`.
        level: the other method.
        end: of its search.
    """
    print(f"{unit} until the mean regret is that of {level} after {end}, and 95 %")
    reference, width = curves[level], max(20, *(len(task) + 2 for task in tasks))
    for name, values in curves.items():
        if values.shape[-1] == reference.shape[-1]:
            cells = []
            for task in range(len(tasks)):
                aim = reference[task, 0, :, end - 1]
                reached, low, high = until(values[task, 0, :, :end], aim)
                cells.append(f"{_of(reached, end)} [{_of(low, end)}, {_of(high, end)}]")
            print(f"{name:24}" + "".join(f"{cell:>{width}}" for cell in cells))
    print(f"{'':24}" + "".join(f"{task:>{width}}" for task in tasks), flush=True)


def _of(epochs: float, end: int) -> str:
    return f">{end}" if epochs > end else f"{epochs:.0f}"
