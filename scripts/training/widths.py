"""Search small, train large: where the best learning rate lies by width, and what it gains."""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from search.simulator import compose
from search.statistics import interval

from studyloom.data.training_data import TrainingData
from studyloom.errors import Diverged
from studyloom.question.objective import Stopping
from studyloom.question.question import Question
from studyloom.space.tree import Point

from .commands import ROOT, run


@dataclass(frozen=True)
class Sweep:
    """Learning rates, as powers of 2, of one network at several widths.

    Args:
        widths: the base first, as values of `key`.
    """

    page: str
    overrides: tuple[str, ...]
    key: str
    widths: tuple[object, ...]
    rate: str
    powers: tuple[int, ...]


SWEEPS = {
    "MLP, MNIST": Sweep(
        "mnist",
        (
            *("data=mnist", "model=mlp", "space=none", "optimizer=adam", "pruner=none"),
            *("train.epochs=2", "train.samples_per_epoch=10000"),
        ),
        "model.hidden",
        ([64] * 3, [256] * 3, [1024] * 3),
        "optimizer.lr",
        (-13, -12, -11, -10, -9, -8, -7, -6, -5),
    ),
    "Transformer, the book": Sweep(
        "language",
        ("~space.params", "params.epochs=3", "params.layers=1"),
        "params.width",
        (32, 64, 128),
        "params.lr",
        (-12, -11, -10, -9, -8, -7, -6, -5, -4),
    ),
}


class Never(Stopping):
    """Stops nothing."""


def value_of(question: Question, data: TrainingData, point: Point, seed: int) -> float:
    """Returns the loss of the last epoch, or what a loop reports; infinite if it diverges."""
    objective = question.make_objective(point, seed, data)
    try:
        value = objective.run(lambda step: None, Never())
    except Diverged:
        return float("inf")
    losses = objective.curves().get("valid_loss")
    return value if losses is None else float(losses[-1])


def sweep(name: str, plan: Sweep, rule: str, seeds: Sequence[int]) -> None:
    """Prints the loss of each width and rate, and where each width has its best."""
    sys.path.append(str(ROOT))  # where studies.characters is
    base = json.dumps(plan.widths[0]).replace(" ", "")
    scale = f"scale={{{plan.key}:{base},rule:{rule}}}"
    question = compose(plan.page, (*plan.overrides, scale))[0]
    data = question.gather(question.config)
    for width in plan.widths[int(rule != "none") :]:  # at the base the rule changes nothing
        points = [
            Point({}, {plan.key: width, plan.rate: 2.0**power}, {}, {}) for power in plan.powers
        ]
        values = np.array([[value_of(question, data, p, seed) for p in points] for seed in seeds])
        best = [plan.powers[int(at)] for at in values.argmin(1)]
        losses = " ".join(f"{value:7.4f}" for value in values.mean(0))
        shown = width[0] if isinstance(width, list) else width
        print(f"  {name:22} {rule:5} {shown:5} {losses}  best 2^{fmean(best):.1f}", flush=True)


SEARCH = (
    *("data=mnist", "model=mlp", "space=lr", "optimizer=adam", "study.from=null"),
    *("train.epochs=4", "train.samples_per_epoch=5000", "winner.seeds=1"),
)
SMALL, TARGET = [32, 32], [256, 256]


def tested(run_dir: Path, seed: int, trials: int, *overrides: str) -> tuple[float, float | None]:
    """Returns the test accuracy of a search's winner, and the share of operations that it took."""
    given = (*SEARCH, *overrides, f"study.seed={seed}", f"study.trials={trials}")
    run("-m", "studies.mnist", f"run_dir={run_dir}", *given, cwd=ROOT)
    answer = json.loads((run_dir / "winner.json").read_text())
    transfer = answer.get("transfer") or {}
    return answer["test"]["winner"]["mean"], transfer.get("share")


def scale_up(seeds: int) -> None:
    """Learning rates at three widths, and searches of a small network for a large one."""
    for name, plan in SWEEPS.items():
        for rule in ("none", "mup"):
            sweep(name, plan, rule, range(min(seeds, 3)))
    small, target = (json.dumps(sizes).replace(" ", "") for sizes in (SMALL, TARGET))
    ways = {
        "40 trials, small": (40, f"scale={{model.hidden:[{small},{target}]}}"),
        "40 trials, small, by mup": (40, f"scale={{model.hidden:[{small},{target}],rule:mup}}"),
        "40 trials at the target": (40, f"model.hidden={target}"),
        "5 trials at the target": (5, f"model.hidden={target}"),
    }
    found: dict[str, list[tuple[float, float | None]]] = {way: [] for way in ways}
    for seed in range(seeds):
        for way, (trials, asked) in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                found[way].append(tested(Path(folder, "run"), seed, trials, asked))
            print(f"  seed {seed}: {way:26} tested {found[way][-1][0]:.4f}", flush=True)
    ours = found["40 trials, small"]
    for way, all_of in found.items():
        gains = np.array([[a - b for (a, _), (b, _) in zip(ours, all_of, strict=True)]])
        low, high = interval(gains)
        shares = [share for _, share in all_of if share is not None]
        cost = f"; {fmean(shares):.0%} of the operations" if shares else ""
        print(
            f"  {way:26} tested {fmean(value for value, _ in all_of):.4f}; ours less this "
            f"{gains.mean():+.4f} [{low:+.4f}, {high:+.4f}]{cost}"
        )
