"""Runs the parts of `bench.py search`, in as many processes as there are cores."""

import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import optuna
import torch

from .answers import SEVERAL_SEEDS, judge_answers, plan_answers, show_answers
from .comparison import BLOCK, compare
from .early_end import show_early_ends
from .methods import METHODS, Run
from .searches import TRIALS, Searches, as_run, run_searches
from .simulator import folder
from .tables import FAMILIES, load, names

SCHEDULES = ("lcbench", "curves")  # the second for tuning
TABLES = ("hpobench", "nasbench201")  # HPOLib is for tuning
PARTS = ("schedules", "answers", "ends")
NAMES = tuple(method.name for method in METHODS)

Runs = list[list[Run]]  # of a family: for each task, for each seed


def measure(
    parts: Sequence[str],
    families: Sequence[str] | None,
    methods: Sequence[str],
    seeds: int,
    workers: int,
    epochs: int | None = None,
) -> None:
    """Measures some parts on some families of tasks, and prints what it finds.

    Args:
        parts: of `PARTS`.
        families: of tasks; None for those on which no choice was made, and our own curves.
        methods: of the schedules, by name.
        seeds: searches of each task, in pairs.
        workers: simulated, of the schedules.
        epochs: of a training of LCBench; None for 27.
    """
    began = time.monotonic()
    wanted = families or (*SCHEDULES, *TABLES)
    there = [family for family in wanted if names(family)]
    for family in wanted:
        if family not in there:
            print(f"{family}: skipped, as {FAMILIES[family]}")
    with processes() as (pool, place):
        if "schedules" in parts:
            scheduled = [family for family in there if load(family, names(family)[0]).epochs > 1]
            compare(pool, place, scheduled, methods, seeds, workers, epochs)
        tables = [family for family in there if load(family, names(family)[0]).epochs == 1]
        runs = search_tables(pool, tables, seeds) if {*parts} & {"answers", "ends"} else {}
        if "answers" in parts:
            judged = [family for family in runs if family in SEVERAL_SEEDS]
            show_answers(list(pool.imap(judge_answers, plan_answers(runs, judged))))
        if "ends" in parts:
            recorded = {"curves": at_random(seeds)} if "curves" in there else {}
            show_early_ends(recorded | runs)
    print(f"{time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}")


def search_tables(pool: Pool, families: Sequence[str], seeds: int) -> dict[str, Runs]:
    """Searches all tasks of families with TPE as shipped; in the order of tasks and seeds."""
    blocks = [tuple(range(begin, min(seeds, begin + BLOCK))) for begin in range(0, seeds, BLOCK)]
    jobs = [Searches(f, name, block) for f in families for name in names(f) for block in blocks]
    runs: dict[str, Runs] = {family: [[] for _ in names(family)] for family in families}
    for job, searches in pool.imap(run_searches, jobs):
        task, place = load(job.family, job.task), names(job.family).index(job.task)
        for seed, tried in zip(job.seeds, searches, strict=True):
            runs[job.family][place].append(as_run(task.begin(seed), tried))
    return runs


def at_random(seeds: int) -> Runs:
    """Returns searches that visit recorded trainings in random orders."""
    runs = []
    for task in (load("curves", name) for name in names("curves")):
        orders = (np.random.default_rng(s).permutation(len(task.values)) for s in range(seeds))
        runs.append([as_run(task.begin(s), one[:TRIALS].tolist()) for s, one in enumerate(orders)])
    return runs


@contextmanager
def processes() -> Iterator[tuple[Pool, Path]]:
    """Starts processes that end with the block, also when this one is told to by SIGTERM.

    Returns:
        them, and a folder for what they write, which this process removes.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    before = signal.signal(signal.SIGTERM, _end)
    try:
        with (
            folder() as place,
            multiprocessing.get_context("spawn").Pool(os.cpu_count(), _begin) as pool,
        ):
            yield pool, place
            pool.close()
            pool.join()
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _begin() -> None:
    """Prepares a process of the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; the first process ends the pool
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
