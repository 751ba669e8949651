"""A study of 100,000 finished trials: its calls and views, a new worker, a worker's memory."""

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import optuna
import torch

from studyloom.storage.ledger import Ledger
from studyloom.storage.opening import create_study, open_study
from studyloom.worker.held_trial import HeldTrial
from studyloom.worker.reporter import Reporter

from .toy import Bare, fill, postgres, show, work

MEASURED = 100  # trials, in the median
LOOKS = {
    "status": (
        "from studyloom.views.progress_reader import ProgressReader; ProgressReader(study).status()"
    ),
    "report": "from studyloom.views.report import write_report; write_report(study, Path(folder))",
}
LOOK = """
import sys, time, resource
from pathlib import Path
url, folder = sys.argv[1:]
began = time.perf_counter()
from studyloom.storage.opening import open_study
study = open_study(url, "bench")
{look}
print(time.perf_counter() - began)
"""


class AtRandom(Bare):
    """The definition of six numbers without what a sampler and a pruner make of other trials."""

    def sampler(self, number: int, *, redraws: bool = False) -> optuna.samplers.BaseSampler:
        return optuna.samplers.RandomSampler(seed=number)

    def pruner(self) -> optuna.pruners.BasePruner:
        return optuna.pruners.NopPruner()


class Clock:
    """Measures the calls of a worker to its study.

    Attributes:
        took: milliseconds of each call, by its kind: claim, report, tell.
    """

    def __init__(self) -> None:
        self.took: dict[str, list[float]] = defaultdict(list)

    def watch(self, owner: type, name: str) -> None:
        """Has each call of a method measured."""
        method = getattr(owner, name)

        def measured(*arguments: object, **named: object) -> object:
            began = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                self.took[name].append(1000 * (time.perf_counter() - began))

        setattr(owner, name, measured)


def growth(few: int, many: int, kept: int) -> None:
    """Compares a study of many finished trials with one of few, on both databases.

    Args:
        few, many: finished trials.
        kept: trials of one worker, whose memory is weighed as it goes.
    """
    torch.set_num_threads(1)
    clock = Clock()
    for owner, name in ((Ledger, "claim"), (Reporter, "post"), (HeldTrial, "end")):
        clock.watch(owner, name)
    with tempfile.TemporaryDirectory() as folder, postgres(folder) as new_database:
        for kind in ("SQLite", "PostgreSQL"):
            medians: dict[str, list[float]] = defaultdict(list)
            for done in (few, many):
                url = new_database() if kind == "PostgreSQL" else f"sqlite:///{folder}/{done}.db"
                print(f"{kind}, {done} finished trials", flush=True)
                for name, took in calls(clock, url, folder, done).items():
                    show(name, took, "ms")
                    medians[name].append(median(took))
            for name, (before, after) in medians.items():
                print(f"  {name}: {after / before:.2f} times as long")
            for name, look in LOOKS.items():
                seconds = in_process(look, url, folder)
                print(f"  {name} of {many} trials: {seconds:.1f} s")
            size = Path(folder, "report.html").stat().st_size / 1e6
            print(f"  the report has {size:.1f} MB", flush=True)
        weigh(f"sqlite:///{folder}/memory.db", folder, kept)


def calls(clock: Clock, url: str, folder: str, done: int) -> dict[str, list[float]]:
    """Returns the milliseconds of the calls of trials after so many finished ones.

    Also those from the opening of the study to the end of the first of them.
    """
    stored = create_study(url, "bench", {"bench": done}, done + MEASURED)
    fill(stored, done)
    stored.close()
    began = time.perf_counter()
    stored = open_study(url, "bench")
    work(AtRandom(), stored, folder, done + 1)
    first = 1000 * (time.perf_counter() - began)
    clock.took.clear()
    work(AtRandom(), stored, folder, done + MEASURED)
    stored.close()
    return {**clock.took, "a new worker's first trial": [first]}


def in_process(look: str, url: str, folder: str) -> float:
    """Returns the seconds that a view takes in a separate process, imports included."""
    command = [sys.executable, "-c", LOOK.format(look=look), url, folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def weigh(url: str, folder: str, trials: int) -> None:
    """Prints the memory of this process as it works on one study, which TPE samples at random."""
    stored = create_study(url, "bench", {"bench": "memory"}, trials)
    sizes = []
    for part in range(1, 11):
        work(AtRandom(), stored, folder, trials * part // 10)
        sizes.append(resident())
    stored.close()
    grown = ", ".join(f"{size - sizes[0]:+.0f}" for size in sizes[1:])
    print(f"{trials} trials of one worker: {sizes[0]:.0f} MB after the first tenth, then {grown}")


def resident() -> float:
    """Returns the megabytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
