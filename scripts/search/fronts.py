"""Replays `studies.pareto` with and without ASHA: the hypervolume and the epochs of each.

    python scripts/bench.py pareto           # 20 seeds; 5 minutes

The curves are of 200 random trials of the study, 5 epochs each, recorded by

    python -m studies.pareto sampler=random pruner=none winner.enabled=false study.trials=200 \\
        study.seed=0 study.name=pareto5 run_dir=runs/curves/pareto

and `write_curves(Path("runs/curves/pareto"), "pareto5", CURVES / "pareto.npz")`. A configuration
that a sampler draws has the curve and the size of the nearest that was recorded.
"""

import json
import math
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from studyloom.data.training_data import TrainingData
from studyloom.space.rule import Cost
from studyloom.space.tree import Configuration

from .simulator import Clock, ReplayedDefinition, Tape, define, folder, run_workers
from .statistics import describe
from .tables import CURVES, Task

TRIALS = 48  # of the study
NONE, PROMOTION = ("pruner=none",), ("pruner=asha",)
SAMPLERS = ("nsga2", "tpe", "random")
FEWEST, MOST = 2_000.0, 250_000.0  # about what networks of its space have
WORST = (0.1, 0.8)  # reference accuracies: chance, and one that any recorded network exceeds


def load() -> tuple[Task, list[float]]:
    """Returns the recorded study, and the size of the network of each configuration."""
    with np.load(CURVES / "pareto.npz", allow_pickle=False) as file:
        configurations = tuple(json.loads(text) for text in file["params"])
        values, costs = file["values"][:, None, :], file["costs"].tolist()
    return Task("pareto", "curves", "pareto", (), None, configurations, values), costs


def hypervolume(points: Iterable[tuple[float, float]], worst: float) -> float:
    """Returns the share of the plane of accuracy and log parameters that a front dominates.

    Args:
        points: accuracies and parameters.
        worst: the accuracy of the reference point; its parameters are MOST.
    """
    area, height, end = 0.0, worst, 0.0
    for accuracy, parameters in sorted(points, key=lambda point: point[1]):
        place = math.log(parameters / FEWEST) / math.log(MOST / FEWEST)
        area += (place - end) * (height - worst)
        height, end = max(height, accuracy), place
    return (area + (1.0 - end) * (height - worst)) / (1.0 - worst)


@dataclass(frozen=True)
class Sized(ReplayedDefinition):
    """A study definition whose networks cost what was recorded."""

    costs: list[float]

    def measure_costs(self, configuration: Configuration, data: TrainingData) -> list[Cost]:
        return [Cost("parameters", self.costs[self.results.find(configuration)])]


def replay(overrides: tuple[str, ...], seed: int) -> tuple[int, list[float]]:
    """Searches with one simulated worker until the trials are done.

    Args:
        overrides: of the study.
        seed: of the study.

    Returns:
        the epochs that were trained, and the hypervolume for each of WORST.
    """
    task, costs = load()
    defined, results = define(task, overrides, seed), task.begin(seed)
    definition = Sized(defined, results, Tape(10**6), Clock(1), costs)
    with folder() as place, closing(run_workers(definition, TRIALS, place)) as stored:
        points = [(trial.values[0], trial.values[1]) for trial in stored.front()]
    return len(definition.tape.epochs), [hypervolume(points, worst) for worst in WORST]


def compare_fronts(seeds: int) -> None:
    """Prints what promotion costs and gains, in the mean over seeds, in pairs.

    Args:
        seeds: of studies.
    """
    print(f"{'sampler':8} {'epochs':>14} {'share':>6}  hypervolume above {WORST}, and its change")
    for sampler in SAMPLERS:
        rows = []
        for overrides in (NONE, PROMOTION):
            for seed in range(seeds):
                rows.append(replay((f"sampler={sampler}", *overrides), seed))
        plain, promoted = rows[:seeds], rows[seeds:]
        spent = [fmean(epochs for epochs, _ in part) for part in (plain, promoted)]
        words = [f"{sampler:8} {spent[0]:6.0f} {spent[1]:7.0f} {spent[1] / spent[0]:6.2f}"]
        for k in range(len(WORST)):
            before, after = ([volumes[k] for _, volumes in part] for part in (plain, promoted))
            change = 100 * (np.array(after) / np.array(before) - 1)
            words.append(f"{fmean(before):.4f} {fmean(after):.4f} {describe(change[None], 2)} %")
        print("  ".join(words), flush=True)
