"""Surrogates of LCBench, which give a learning curve for every configuration of a space.

LCBench are trainings of networks on 35 data sets of OpenML (Zimmer, Lindauer and Hutter 2021,
arXiv:2006.13799); YAHPO Gym (Pfisterer et al. 2022, arXiv:2109.03670) fits a network to them that
predicts the validation accuracy of a configuration after an epoch. It is read, as ONNX, from the
folder `hpo/lcbench` of `STUDYLOOM_DATA`, and is not part of this project.

A joined task is conditional: `network` chooses one of two data sets, each with all hyperparameters
for itself. Its values are standardized (1 is the best of the first, 0 its median).

An exploding task is a data set on which trainings explode if their learning rate is in the highest
fifth of its range: their value is a loss of 1e2 to 1e5, with a minus. On a noisy task the luck of a
seed is five times as large as on the others.
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

from studyloom.space.tree import Configuration

TEST = (34539, 126029, 146212, 167104, 167161, 167190, 189862, 189906)  # no choice was made on them
TUNE = (3945, 167152, 167184, 168330, 7593, 126025, 167149, 167181, 168335, 168868, 189354, 189909)
TASKS = {"test": TEST, "tune": TUNE}
FAMILIES = ("lcbench", "joined", "noisy", "exploding")

SPACE: dict[str, dict[str, Any]] = {  # in the order of the surrogate's inputs, after the epoch
    "batch_size": {"int": [16, 512], "log": True},
    "learning_rate": {"float": [1e-4, 1e-1], "log": True},
    "momentum": {"float": [0.1, 0.99]},
    "weight_decay": {"float": [1e-5, 1e-1]},
    "num_layers": {"int": [1, 5]},
    "max_units": {"int": [64, 1024], "log": True},
    "max_dropout": {"float": [0.0, 1.0]},
}
FIRST, LAST = 3, 52  # epochs of LCBench at the first and the last epoch of ours
BRANCHES = ("first", "second")
BEHIND = 0.1  # what the best of the second branch is worse than that of the first
SEED_NOISE = EPOCH_NOISE = 0.004  # standard deviations of accuracy
LARGE_SEED_NOISE = 0.02  # of a noisy task
HIGHEST_LEARNING_RATE = 10**-1.6  # at which trainings of an exploding task do not explode
LEARNING_RATE = list(SPACE).index("learning_rate")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Surrogate:
    """A data set of LCBench, or two that are joined.

    Args:
        numbers: of the tasks in OpenML.
        epochs: of a training, which always covers LCBench's from `FIRST` to `LAST`.
        seed_noise: the standard deviation of the accuracy over seeds.
        explodes: whether trainings with a high learning rate explode.
    """

    numbers: tuple[int, ...]
    epochs: int = 27
    seed_noise: float = SEED_NOISE
    explodes: bool = False

    module = "mnist"
    overrides = ("space=none", "model=mlp")

    @property
    def name(self) -> str:
        return "+".join(map(str, self.numbers))

    @property
    def joined(self) -> bool:
        return len(self.numbers) > 1

    @property
    def space(self) -> dict[str, Any]:
        return {"network": dict.fromkeys(BRANCHES, SPACE)} if self.joined else SPACE

    def standardize(self, accuracies: Floats, branch: int) -> Floats:
        """Returns the values of a branch on the scale that both share."""
        best, median = ends(self.numbers[branch])
        return np.asarray((accuracies - median) / (best - median) - BEHIND * branch)

    def means(
        self, rows: Floats, epochs: Sequence[float] | Floats = (LAST,), branch: int = 0
    ) -> Floats:
        """Returns accuracies without noise, (configurations, epochs).

        Args:
            rows: values of the hyperparameters in the order of SPACE, (configurations, values).
            epochs: of LCBench.
            branch: the data set, from 0.
        """
        session, encoding = model()
        count = len(rows) * len(epochs)
        inputs = np.empty((count, 1 + len(SPACE)), np.float32)
        inputs[:, 0] = np.tile(np.asarray(epochs), len(rows))
        inputs[:, 1:] = np.repeat(rows, len(epochs), 0)
        task = np.full((count, 1), encoding[str(self.numbers[branch])], np.int32)
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
    _configurations: dict[tuple[Any, ...], int] = field(default_factory=dict)
    _means: list[tuple[int, Floats]] = field(default_factory=list)  # branch, accuracies
    _exploded: set[int] = field(default_factory=set)  # configurations

    def find(self, configuration: Configuration) -> int:
        network = configuration.params.get("params.network")
        branch = 0 if network is None else BRANCHES.index(network)
        above = "params" if network is None else f"params.network.{network}"
        values = tuple(configuration.params[f"{above}.{name}"] for name in SPACE)
        if (branch, *values) not in self._configurations:
            self._configurations[branch, *values] = len(self._means)
            epochs = np.linspace(FIRST, LAST, self.task.epochs).round()
            means = self.task.means(np.array([values], float), epochs, branch)[0]
            if self.task.explodes and values[LEARNING_RATE] > HIGHEST_LEARNING_RATE:
                self._exploded.add(len(self._means))
            self._means.append((branch, means))
        return self._configurations[branch, *values]

    def curve(self, configuration: int) -> Floats:
        generator = np.random.default_rng([self.seed, configuration])
        seed_noise = self.task.seed_noise * generator.normal()
        noise = seed_noise + EPOCH_NOISE * generator.normal(size=self.task.epochs)
        branch, means = self._means[configuration]
        if configuration in self._exploded:
            return np.full(self.task.epochs, -(10 ** generator.uniform(2, 5)))
        found = np.asarray(means + noise)
        return self.task.standardize(found, branch) if self.task.joined else found

    def regret(self, configuration: int) -> float:
        branch, means = self._means[configuration]
        if configuration in self._exploded:
            means = np.zeros(1)
        return 1.0 - float(self.task.standardize(means[-1:], branch)[0])


def make_task(family: str, name: str, epochs: int) -> Surrogate:
    """Returns a task of one of `FAMILIES`.

    Args:
        name: the numbers of its data sets.
        epochs: of a training.
    """
    numbers = tuple(int(number) for number in name.split("+"))
    if family == "noisy":
        return Surrogate(numbers, epochs, seed_noise=LARGE_SEED_NOISE)
    return Surrogate(numbers, epochs, explodes=family == "exploding")


def joined(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the pairs of data sets that are joined."""
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def folder() -> Path:
    """Returns the folder of the surrogate, which may not be there."""
    return Path(os.environ.get("STUDYLOOM_DATA", "data"), "hpo", "lcbench")


@functools.cache
def ends(number: int) -> tuple[float, float]:
    """Returns the final accuracy of the best configuration of a data set, and of the median."""
    best, median, *_ = np.load(folder() / f"best{number}.npy", allow_pickle=False)
    return float(best), float(median)


@functools.cache
def model() -> tuple[Any, dict[str, int]]:
    """Returns the surrogate, and the number under which it knows each data set."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    encoding = json.loads((folder() / "encoding.json").read_text())["OpenML_task_id"]
    return onnxruntime.InferenceSession(str(folder() / "model.onnx"), options), encoding
