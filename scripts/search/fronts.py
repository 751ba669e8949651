"""Replays `studies.pareto` with and without promotion: the hypervolume and the epochs of each.

    python scripts/bench.py pareto           # 20 seeds; 5 minutes

The curves are of 200 random trials of the page, 5 epochs each, recorded by

    python -m studies.pareto sampler=random pruner=none winner.enabled=false study.trials=200 \\
        study.seed=0 study.name=pareto5 run_dir=runs/curves/pareto

and `write(Path("runs/curves/pareto"), "pareto5")`. A point that a sampler gives has the curve and
the parameters of the nearest that was recorded.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

import numpy as np
from optuna.trial import TrialState

from studyloom.data.training_data import TrainingData
from studyloom.definition.rule import Cost
from studyloom.space.tree import Point
from studyloom.study.opening import create_study, open_study
from studyloom.study.stage import Stage
from studyloom.study.strategy import Strategy
from studyloom.study.worker import Worker

from .simulator import LIMITS, Clock, ReplayedDefinition, Stop, Tape, ask, folder, simulated
from .statistics import interval
from .tables import CURVES, Task

TRIALS = 48  # of the page
NONE, PROMOTION = ("pruner=none",), ("pruner=asha",)
SAMPLERS = ("nsga2", "tpe", "random")
FEWEST, MOST = 2_000.0, 250_000.0  # about what networks of the page's space have
WORST = (0.1, 0.8)  # reference accuracies: chance, and one that any recorded network exceeds


def write(run_dir: Path, name: str) -> None:
    """Writes the complete trials of a study of two goals as curves with costs."""
    stored = open_study(f"sqlite:///{run_dir}/study.db", name)
    trials = [trial for trial in stored.trials() if trial.state == TrialState.COMPLETE]
    stored.close()
    curves = [
        [t.intermediate_values[step] for step in sorted(t.intermediate_values)] for t in trials
    ]
    np.savez_compressed(
        CURVES / "pareto.npz",
        params=np.array([json.dumps(trial.params) for trial in trials]),
        values=np.array(curves, np.float32),
        costs=np.array([trial.values[1] for trial in trials]),
    )


def load() -> tuple[Task, list[float]]:
    """Returns the recorded question, and the parameters of each configuration."""
    with np.load(CURVES / "pareto.npz", allow_pickle=False) as file:
        points = tuple(json.loads(text) for text in file["params"])
        values, costs = file["values"][:, None, :], file["costs"].tolist()
    return Task("pareto", "curves", "pareto", (), None, points, values), costs


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


class Sized(ReplayedDefinition):
    """A question whose networks cost what was recorded."""

    costs: list[float]

    def measure_costs(self, point: Point, data: TrainingData) -> list[Cost]:
        return [Cost("parameters", self.costs[self.results.find(point)])]


def replay(overrides: tuple[str, ...], seed: int, place: Path) -> tuple[int, list[float]]:
    """Searches the page's question with one simulated worker until its trials are done.

    Args:
        overrides: of the page.
        seed: of the study.
        place: an empty folder for the database and checkpoints.

    Returns:
        the epochs that were trained, and the hypervolume for each of WORST.
    """
    task, costs = load()
    clock, tape = Clock(1), Tape(10**6)
    definition = Sized(ask(task, overrides, seed), task.begin(seed), tape, clock)
    object.__setattr__(definition, "costs", costs)
    url, goals = f"sqlite:///{place}/study.db", definition.definition.goals
    create_study(url, "pareto", {"asks": "replay"}, TRIALS, goals=goals).close()
    stop = Stop(tape, clock)

    def work() -> None:
        stored = open_study(url, "pareto")
        try:
            stage = Stage("search", stored, definition, Strategy(definition.definition), TRIALS)
            Worker(stage, TrainingData(), stop, place / "kept", LIMITS).run()
        finally:
            stored.close()

    with simulated(clock):
        clock.run(work)
    stored = open_study(url, "pareto")
    points = [(trial.values[0], trial.values[1]) for trial in stored.front()]
    stored.close()
    return len(tape.epochs), [hypervolume(points, worst) for worst in WORST]


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
                with folder() as place:
                    rows.append(replay((f"sampler={sampler}", *overrides), seed, place))
        plain, promoted = rows[:seeds], rows[seeds:]
        spent = [fmean(epochs for epochs, _ in part) for part in (plain, promoted)]
        words = [f"{sampler:8} {spent[0]:6.0f} {spent[1]:7.0f} {spent[1] / spent[0]:6.2f}"]
        for k in range(len(WORST)):
            before, after = ([volumes[k] for _, volumes in part] for part in (plain, promoted))
            change = 100 * (np.array(after) / np.array(before) - 1)
            low, high = interval(change[None])
            words.append(
                f"{fmean(before):.4f} {fmean(after):.4f} {change.mean():+.2f} % "
                f"({low:+.2f} to {high:+.2f})"
            )
        print("  ".join(words), flush=True)
