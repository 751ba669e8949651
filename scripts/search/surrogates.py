"""Tasks without an end: surrogates of LCBench, which give a curve at every point of a space.

LCBench are trainings of networks on 35 data sets of OpenML (Zimmer, Lindauer and Hutter 2021,
arXiv:2006.13799); YAHPO Gym (Pfisterer et al. 2022, arXiv:2109.03670) fits a network to them that
tells the validation accuracy of a configuration after an epoch. It is read, as ONNX, from the
folder `hpo/lcbench` of `STUDYLOOM_DATA`, and is no part of this project.
"""

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studyloom.space.tree import Point
from studyloom.study.placement import CANDIDATES, RankedPoints, choose_points, rank_scores

TEST = (34539, 126029, 146212, 167104, 167161, 167190, 189862, 189906)  # no choice was made on them
TUNING = (3945, 167152, 167184, 168330)
TASKS = {"lcbench": TEST, "lcbench-tuning": TUNING}  # by family

SPACE: dict[str, dict[str, Any]] = {  # in the order of the surrogate's inputs, after the epoch
    "batch_size": {"int": [16, 512], "log": True},
    "learning_rate": {"float": [1e-4, 1e-1], "log": True},
    "momentum": {"float": [0.1, 0.99]},
    "weight_decay": {"float": [1e-5, 1e-1]},
    "num_layers": {"int": [1, 5]},
    "max_units": {"int": [64, 1024], "log": True},
    "max_dropout": {"float": [0.0, 1.0]},
}
LAST = 52  # epochs of a training of LCBench
SEED_NOISE = EPOCH_NOISE = 0.004  # standard deviations of accuracy

EARLIER, EARLIER_TRIALS, POINTS = 10, 40, 5  # of a memory: studies, their trials, points taken

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Surrogate:
    """A data set of LCBench.

    Args:
        number: of the task in OpenML.
        family: lcbench or lcbench-tuning.
        epochs: of a training, which always covers all of LCBench's 52.
    """

    number: int
    family: str
    epochs: int = 27

    page = "mnist"
    overrides = ("space=none", "model=mlp")
    space = SPACE

    @property
    def name(self) -> str:
        return str(self.number)

    @functools.cached_property
    def ends(self) -> tuple[float, float]:
        """The final accuracy of the best configuration, and of the median."""
        best, median, *_ = np.load(folder() / f"best{self.number}.npy", allow_pickle=False)
        return float(best), float(median)

    def means(self, rows: Floats, epochs: Sequence[float] | Floats = (LAST,)) -> Floats:
        """Returns accuracies without noise, (configurations, epochs).

        Args:
            rows: values of the parameters in the order of SPACE, (configurations, parameters).
            epochs: of LCBench's 52.
        """
        session, encoding = model()
        count = len(rows) * len(epochs)
        inputs = np.empty((count, 1 + len(SPACE)), np.float32)
        inputs[:, 0] = np.tile(np.asarray(epochs), len(rows))
        inputs[:, 1:] = np.repeat(rows, len(epochs), 0)
        task = np.full((count, 1), encoding[self.name], np.int32)
        (found,) = session.run(None, {"x_cat": task, "x_cont": inputs})
        accuracies = found[:, 1].astype(np.float64) / 100.0  # the second of five metrics
        return np.asarray(accuracies.reshape(len(rows), len(epochs)))

    def begin(self, seed: int) -> "Drawn":
        """Returns the trainings of a study."""
        return Drawn(self, seed)


@dataclass
class Drawn:
    """The trainings of a study on a surrogate; see `tables.Results`."""

    task: Surrogate
    seed: int
    _points: dict[tuple[Any, ...], int] = field(default_factory=dict)
    _means: list[Floats] = field(default_factory=list)

    def find(self, point: Point) -> int:
        values = tuple(point.params[f"params.{name}"] for name in SPACE)
        if values not in self._points:
            self._points[values] = len(self._points)
            epochs = LAST * np.arange(1, self.task.epochs + 1) / self.task.epochs
            self._means.append(self.task.means(np.array([values], float), epochs)[0])
        return self._points[values]

    def curve(self, configuration: int) -> Floats:
        generator = np.random.default_rng([self.seed, configuration])
        noise = SEED_NOISE * generator.normal() + EPOCH_NOISE * generator.normal(
            size=self.task.epochs
        )
        return np.asarray(self._means[configuration] + noise)

    def regret(self, configuration: int) -> float:
        best, median = self.task.ends
        return float(best - self._means[configuration][-1]) / (best - median)


def folder() -> Path:
    """Returns the folder of the surrogate, which may not be there."""
    return Path(os.environ.get("STUDYLOOM_DATA", "data"), "hpo", "lcbench")


@functools.cache
def model() -> tuple[Any, dict[str, int]]:
    """Returns the surrogate, and the number under which it knows each data set."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    encoding = json.loads((folder() / "encoding.json").read_text())["OpenML_task_id"]
    return onnxruntime.InferenceSession(str(folder() / "model.onnx"), options), encoding


def at(places: Floats) -> Floats:
    """Returns the values of parameters at places from 0 to 1, (points, parameters)."""
    values = np.empty_like(places)
    for column, (node, place) in enumerate(zip(SPACE.values(), places.T, strict=True)):
        (kind, (low, high)), *log = node.items()
        found = low * (high / low) ** place if log else low + (high - low) * place
        values[:, column] = found.round() if kind == "int" else found
    return values


@functools.lru_cache(64)
def remembered(seed: int) -> list[dict[str, Any]]:
    """Returns the points that `study.warm_start=auto` takes of earlier studies on other data sets.

    Of ten data sets that are not in TEST, drawn for each seed, there is a study of 40 random
    trials with noise.
    """
    generator = np.random.default_rng([seed, 1])
    others = [int(name) for name in model()[1] if name.isdigit() and int(name) not in TEST]
    others = [number for number in others if (folder() / f"best{number}.npy").exists()]
    noise = float(np.hypot(SEED_NOISE, EPOCH_NOISE))
    studies = []
    for number in generator.choice(sorted(others), EARLIER, replace=False).tolist():
        places = generator.random((EARLIER_TRIALS, len(SPACE)))
        finals = Surrogate(number, "").means(at(places))[:, 0]
        finals = finals + noise * generator.normal(size=EARLIER_TRIALS)
        ranked = np.argsort(-finals)
        eligible = np.arange(EARLIER_TRIALS) < CANDIDATES
        studies.append(RankedPoints(places[ranked], rank_scores(EARLIER_TRIALS, 0), eligible))
    taken = choose_points(studies, np.zeros(len(SPACE), bool), POINTS)
    return points(np.stack([studies[study].points[trial] for study, trial in taken]))


def points(places: Floats) -> list[dict[str, Any]]:
    """Returns points at places from 0 to 1, as `study.enqueue` lists them."""
    kinds = [int if "int" in node else float for node in SPACE.values()]
    return [
        {f"params.{name}": kind(value) for name, kind, value in zip(SPACE, kinds, row, strict=True)}
        for row in at(places).tolist()
    ]
