"""Compares methods on all tasks, with seeds in pairs, and prints what it finds."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np

import studyloom

from . import peer_process, peers, surrogates
from .methods import METHODS, Run
from .simulator import CONF, folder, replay
from .statistics import Floats, describe
from .tables import load, names

MARKS = (2, 4, 8, 16)  # budgets, in whole trainings
ON_TABLES = 100  # trials, where each has one epoch
FACTS = ("epochs", "trials", "seconds")  # of a search; the last of processor time, nan of a peer
EDITION = 1  # of tasks and simulator; the results of another one are not read


@dataclass(frozen=True)
class Setting:
    """What all searches of a comparison share.

    Args:
        workers: simulated.
        trials: of a study, which ends with them; None for as many as `MARKS` have epochs.
        epochs: of a training on LCBench; None for 27.
        split: test or tune, of LCBench's tasks.
    """

    workers: int = 1
    trials: int | None = None
    epochs: int | None = None
    split: str = "test"


@dataclass(frozen=True)
class Search:
    """One search, which a process runs.

    Args:
        method: of `METHODS`, or a peer.
        python: the interpreter of a peer; None for the product.
        place: a folder for its files.
    """

    family: str
    task: str
    method: str
    seed: int
    setting: Setting
    python: Path | None = None
    place: Path | None = None

    def path(self, results: Path) -> Path:
        """Returns the file of its result, whose name has all that the result depends on."""
        setting, code = self.setting, digest(self.method)
        words = f"{self.method} {self.family} {self.task} {self.seed}"
        more = f"{setting.workers} {setting.trials} {setting.epochs}"
        return results / code / f"{words} {more}.npy".replace(" ", "@")

    @property
    def budget(self) -> int:
        epochs = load(self.family, self.task, self.setting.epochs).epochs
        trials = self.setting.trials or (ON_TABLES if epochs == 1 else MARKS[-1])
        return trials * epochs


@cache
def digest(method: str) -> str:
    """Returns a digest of the code that a method runs: a peer's driver, or source and configs."""
    files = [Path(peer_process.__file__)]
    if method in METHODS:
        files = [*Path(studyloom.__path__[0]).rglob("*.py"), *CONF.rglob("*.yaml")]
    found = hashlib.sha256(f"{EDITION} {peers.REQUIRED.get(method)}".encode())
    for path in sorted(files):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:12]


def work(job: Search) -> tuple[Search, Floats | str]:
    """Runs a search in a process of the pool.

    Returns:
        It; its `FACTS`, and the regrets after each epoch of the configuration whose last value is
        the best; or why a peer has failed.
    """
    task, began = load(job.family, job.task, job.setting.epochs), time.process_time()
    results, setting, budget = task.begin(job.seed), job.setting, job.budget
    if job.python is None:
        method = METHODS[job.method]
        tape = replay(
            *(results, method.overrides, job.seed, budget, setting.workers, setting.trials),
            within=job.place,
        )
    else:
        with folder(job.place) as place, peers.Peer(job.method, job.python, place) as peer:
            given = (peer, results, job.seed, budget, setting.workers, setting.trials)
            try:
                tape = peers.search(*given)
            except RuntimeError as error:
                return job, str(error)
    seconds = time.process_time() - began if job.python is None else np.nan
    best = Run(results, tape).best()[:budget]  # other workers end the epochs they have begun
    regrets = [results.regret(one) for one in best]
    facts = [len(best), len(set(tape.trials)), seconds]
    return job, np.array([*facts, *regrets, *regrets[-1:] * (budget - len(best))])


def run_searches(pool: Pool, searches: Sequence[Search], results: Path) -> dict[Search, Floats]:
    """Returns what searches find, from their files or by running them in the order given.

    Args:
        pool: of processes.
        searches: of which those of a peer that fails are left out.
        results: a folder for their files.
    """
    failed = set[str]()
    missing = [search for search in searches if not search.path(results).exists()]
    for search, found in pool.imap(work, missing):
        if isinstance(found, str):
            if found not in failed:
                print(found, flush=True)
            failed.add(found)
            continue
        path = search.path(results)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(temporary := path.with_suffix(".part.npy"), found)
        temporary.replace(path)
    there = [search for search in searches if search.path(results).exists()]
    return {search: np.load(search.path(results), allow_pickle=False) for search in there}


def compare(
    pool: Pool,
    families: Sequence[str],
    methods: Mapping[str, Path | None],
    seeds: int,
    setting: Setting,
    against: str,
    results: Path,
    place: Path,
) -> None:
    """Runs methods on all tasks of some families, and prints two tables for each family.

    Args:
        pool: of processes.
        families: of tasks.
        methods: by name the interpreter of a peer; None of the product.
        seeds: of each method on each task, which are the outermost loop.
        setting: of all searches.
        against: the method that the others are compared with.
        results: the folder of their files.
        place: a folder for what searches write.
    """
    searches = [
        Search(family, task, method, seed, setting, python, place)
        for seed in range(seeds)
        for family in families
        for task in names(family, setting.split)
        for method, python in methods.items()
        if suits(method, family)
    ]
    found = run_searches(pool, searches, results)
    for family in families:
        tasks = names(family, setting.split)
        print(f"\n{family}: {', '.join(tasks)}; {setting.workers} simulated workers")
        size = len(FACTS) + next(one.budget for one in searches if one.family == family)
        tables = {m: np.full((len(tasks), seeds, size), np.nan) for m in methods}
        for search, values in found.items():
            if search.family == family:
                tables[search.method][tasks.index(search.task), search.seed] = values
        show(tables, against)


def suits(method: str, family: str) -> bool:
    """Whether a method can search the tasks of a family.

    Peers have no space of a study module.
    """
    if method in METHODS:
        return True
    return family in surrogates.FAMILIES or (method == "optuna" and family != "curves")


def show(tables: Mapping[str, Floats], against: str) -> None:
    """Prints regrets by method, and how much lower they are than those of one, seeds in pairs.

    Args:
        tables: by method (tasks, seeds, facts and regrets); nan for what is missing. A seed counts
            if all tasks have it.
        against: the method that the others are compared with.
    """
    there = {name: seeds for name, table in tables.items() if (seeds := whole_seeds(table))}
    budget = next(iter(tables.values())).shape[-1] - len(FACTS)
    marks = [budget * mark // MARKS[-1] for mark in MARKS]
    columns = [len(FACTS) + mark - 1 for mark in marks]
    head = "".join(f"{mark:>8}" for mark in marks) + "".join(f"{fact:>9}" for fact in FACTS)
    print(f"regret after epochs {head}   seeds")
    for name, seeds in there.items():
        means = tables[name][:, seeds].mean((0, 1))
        words = "".join(f"{means[column]:8.3f}" for column in columns)
        words += "{:9.0f}{:9.0f}{:9.1f}".format(*means[: len(FACTS)])
        print(f"{name:20}{words}{len(seeds):8}")
    print(f"less than {against}, seeds in pairs, with 95% intervals")
    for name, seeds in there.items():
        pairs = [seed for seed in seeds if seed in there.get(against, ())]
        if pairs and name != against:
            gains = (tables[against] - tables[name])[:, pairs]
            words = "".join(f"{describe(gains[..., column]):>25}" for column in columns)
            print(f"{name:12}{words}", flush=True)


def whole_seeds(table: Floats) -> list[int]:
    """Returns the seeds that all tasks of a table have."""
    missing = np.isnan(table[..., -1]).any(0)
    return [int(seed) for seed in np.flatnonzero(~missing)]
