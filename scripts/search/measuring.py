"""Runs the parts of `bench.py search`, in several processes."""

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

from . import peers
from .comparison import Setting, compare
from .early_end import TRIALS, as_run, search_table, show_early_ends
from .methods import Run
from .simulator import folder
from .tables import FAMILIES, load, names

USUAL = ("lcbench", "curves", "hpobench")
PARTS = ("methods", "ends")

Runs = list[list[Run]]  # of a family: for each task, for each seed


def measure(
    parts: Sequence[str],
    families: Sequence[str] | None,
    methods: Sequence[str],
    seeds: int,
    setting: Setting,
    others: Sequence[str],
    against: str,
    results: Path | None,
    environments: Path,
    count: int | None = None,
) -> None:
    """Measures some parts on some families of tasks, and prints what it finds.

    Args:
        parts: of `PARTS`.
        families: of tasks; None for `USUAL`.
        methods: of the product, by name.
        seeds: searches of each task, in pairs.
        setting: of the comparison of methods.
        others: peers, by name.
        against: the method that the others are compared with.
        results: a folder that keeps what searches find; None for none.
        environments: the folder of those of peers.
        count: of processes; None for one a core.
    """
    began = time.monotonic()
    wanted = families or USUAL
    there = [family for family in wanted if names(family)]
    for family in wanted:
        if family not in there:
            print(f"{family}: skipped, because {FAMILIES[family]}")
    compared: dict[str, Path | None] = dict.fromkeys(methods)
    for peer in others if "methods" in parts else ():
        python, reason = peers.prepare(peer, environments)
        if python is None:
            print(f"{peer}: skipped, because it does not install: {reason}")
        else:
            compared[peer] = python
    with processes(count or os.cpu_count()) as (pool, place):
        if "methods" in parts:
            kept = results or place / "results"
            compare(pool, there, compared, seeds, setting, against, kept, place)
        tables = [family for family in there if load(family, names(family)[0]).epochs == 1]
        if "ends" in parts:
            recorded = {"curves": at_random(seeds)} if "curves" in there else {}
            show_early_ends(recorded | search_tables(pool, tables, seeds))
    print(f"{time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}")


def search_tables(pool: Pool, families: Sequence[str], seeds: int) -> dict[str, Runs]:
    """Searches all tasks of families with TPE as shipped; in the order of tasks and seeds."""
    runs: dict[str, Runs] = {family: [[] for _ in names(family)] for family in families}
    jobs = [(f, name, seed) for f in families for name in names(f) for seed in range(seeds)]
    for (family, name, seed), tried in zip(jobs, pool.imap(search_table, jobs), strict=True):
        results = load(family, name).begin(seed)
        runs[family][names(family).index(name)].append(as_run(results, tried))
    return runs


def at_random(seeds: int) -> Runs:
    """Returns searches that visit recorded trainings in random orders."""
    runs = []
    for task in (load("curves", name) for name in names("curves")):
        orders = (np.random.default_rng(s).permutation(len(task.values)) for s in range(seeds))
        runs.append([as_run(task.begin(s), one[:TRIALS].tolist()) for s, one in enumerate(orders)])
    return runs


@contextmanager
def processes(count: int | None) -> Iterator[tuple[Pool, Path]]:
    """Starts processes that end with the block, also if SIGTERM ends this one.

    Returns:
        them, and a folder for what they write, which this process removes.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    before = signal.signal(signal.SIGTERM, _end)
    try:
        with (
            folder() as place,
            multiprocessing.get_context("spawn").Pool(count, _begin) as pool,
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
