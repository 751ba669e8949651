"""Runs the parts of `bench.py search`, in as many processes as there are cores."""

import multiprocessing
import os
import signal
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import optuna
import torch

from .answers import judge_answers, plan_answers, show_answers
from .comparison import BLOCK, compare
from .early_end import show_early_ends
from .memory import plan_memory, show_memory
from .methods import Run
from .searches import TRIALS, Searches, as_run, run_searches
from .simulator import folder
from .tables import load, names

FAMILIES = ("curves", "hpobench", "nasbench201", "hpolib")
REPORTED = FAMILIES[:3]  # HPOLib is for tuning
SEVERAL_SEEDS = "hpobench"  # five of each configuration, so that answers can be judged again
PARTS = ("schedules", "answers", "memory", "ends")

Runs = list[list[Run]]  # of a family: for each task, for each seed


def measure(
    parts: Sequence[str],
    families: Sequence[str],
    seeds: int,
    workers: int,
    budget: int | None = None,
) -> None:
    """Measures some parts on some families of tasks, and prints what it finds.

    Args:
        parts: of `PARTS`. Answers and memory need HPOBench.
        families: of tasks.
        seeds: searches of each task, in pairs.
        workers: simulated, of the schedules.
        budget: of the schedules: epochs, or trials of a table; None for the last mark.
    """
    began = time.monotonic()
    for family in families:
        if not names(family):
            print(f"{family}: skipped, pip install -e '.[dev]' brings the tables")
    families = [family for family in families if names(family)]
    with processes() as (pool, place):
        if "schedules" in parts:
            compare(pool, place, families, seeds, workers, budget)
        searched = [family for family in families if "ends" in parts and family != "curves"]
        if SEVERAL_SEEDS in families and {"answers", "memory"} & {*parts}:
            searched = [*dict.fromkeys([SEVERAL_SEEDS, *searched])]
        runs = search_tables(pool, searched, seeds)
        if "answers" in parts and SEVERAL_SEEDS in runs:
            jobs = plan_answers(runs[SEVERAL_SEEDS])
            show_answers(list(pool.imap(judge_answers, jobs)))
        if "memory" in parts and SEVERAL_SEEDS in runs:
            jobs_of_memory = plan_memory(runs[SEVERAL_SEEDS], BLOCK)
            show_memory(runs[SEVERAL_SEEDS], collect(pool, jobs_of_memory)[SEVERAL_SEEDS])
        if "ends" in parts and families:
            recorded = {"curves": at_random(seeds)} if "curves" in families else {}
            show_early_ends(recorded | {family: runs[family] for family in searched})
    print(f"{time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}")


def search_tables(pool: Pool, families: Sequence[str], seeds: int) -> dict[str, Runs]:
    """Searches all tasks of families with TPE as shipped."""
    blocks = [tuple(range(begin, min(seeds, begin + BLOCK))) for begin in range(0, seeds, BLOCK)]
    return collect(
        pool,
        [
            Searches(family, name, block, {})
            for family in families
            for name in names(family)
            for block in blocks
        ],
    )


def collect(pool: Pool, jobs: Iterable[Searches]) -> dict[str, Runs]:
    """Runs searches, and returns them in the order of tasks and seeds."""
    found: dict[str, dict[str, dict[int, list[int]]]] = defaultdict(lambda: defaultdict(dict))
    for job, searches in pool.imap_unordered(run_searches, jobs):
        found[job.family][job.task] |= dict(zip(job.seeds, searches, strict=True))
    runs: dict[str, Runs] = {}
    for family, tasks in found.items():
        loaded = [(load(family, name), searches) for name, searches in sorted(tasks.items())]
        runs[family] = [
            [as_run(task, seed, searches[seed]) for seed in sorted(searches)]
            for task, searches in loaded
        ]
    return runs


def at_random(seeds: int) -> Runs:
    """Returns searches that visit recorded trainings in random orders."""
    runs = []
    for task in (load("curves", name) for name in names("curves")):
        orders = (np.random.default_rng(s).permutation(len(task.values)) for s in range(seeds))
        runs.append([as_run(task, s, one[:TRIALS].tolist()) for s, one in enumerate(orders)])
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
