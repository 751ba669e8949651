"""The candidates for the winner: chosen from a search, and trained with new seeds.

Every choice is a pure function of the stored trials, so that each process comes to the same one.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from optuna.pruners import BasePruner, NopPruner
from optuna.trial import FrozenTrial

from studyloom.data.split import Fold
from studyloom.data.training_data import TrainingData
from studyloom.decisions.samplers import GridSampler, SamplerContext
from studyloom.definition.definition import FIRST_ATTEMPT, Definition
from studyloom.objectives.objective import Attempt, Objective, StoredObjective
from studyloom.seeds import derive
from studyloom.space.language import parse_space
from studyloom.space.rule import Cost, Rule
from studyloom.space.tree import Point, Space
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.training.checkpoint import load_weights
from studyloom.training.job import Job


@dataclass(frozen=True, order=True)
class Origin:
    """The trial that a candidate comes from, and what is changed.

    Args:
        defaults: the names of hyperparameters that are put back to their defaults.
    """

    trial: int
    defaults: tuple[str, ...] = ()

    @property
    def columns(self) -> dict[str, int | str]:
        """The candidate as hyperparameters of a stored training."""
        columns: dict[str, int | str] = {"trial": self.trial}
        if self.defaults:
            columns["defaults"] = ", ".join(self.defaults)
        return columns

    @classmethod
    def read(cls, columns: Mapping[str, Any]) -> "Origin":
        """Reads the candidate from the hyperparameters of a stored training."""
        defaults = columns.get("defaults")
        if not defaults:
            return cls(columns["trial"])
        return cls(columns["trial"], tuple(defaults.split(", ")))


@dataclass(frozen=True)
class CandidateSource:
    """Holds a candidate for the winner: its trial, and the configuration to train.

    Args:
        point: the configuration.
        contends: whether it may win; the baseline may only be compared with.
    """

    trial: FrozenTrial
    point: Point
    is_baseline: bool = False
    contends: bool = True

    @property
    def recorded_values(self) -> Sequence[float]:
        """The values of the trial's epochs in the search."""
        return TrialRecord(self.trial).columns.get("value", [])


Candidates = Mapping[Origin, CandidateSource]


def choose_candidates(
    definition: Definition, search: StoredStudy, rule: Rule, trials: int, top: int
) -> Candidates:
    """Chooses the best trials of a search, and the baseline even if it cannot win.

    Args:
        trials: the budget of this command; the study may have trials of a larger one.
        top: how many of the best trials are chosen.
    """
    ranked = [t for t in search.ranked(rule) if (TrialRecord(t).slot or 0) < trials]
    if not ranked:
        return {}
    contenders = {trial.number for trial in ranked}
    baselines = [trial for trial in search.feasible() if TrialRecord(trial).is_baseline]
    chosen = {trial.number: trial for trial in (*ranked[:top], *baselines)}
    return {
        Origin(number): CandidateSource(
            chosen[number],
            _point_of(chosen[number], definition),
            is_baseline=bool(baselines) and number == baselines[0].number,
            contends=number in contenders,
        )
        for number in sorted(chosen)
    }


def _point_of(trial: FrozenTrial, definition: Definition) -> Point:
    """Returns the configuration of a trial, with the epochs that early stopping chose, if it did.

    With patience or weights=best the number of epochs is a choice like a hyperparameter:
    re-evaluation and final training, which has no validation set, keep it. The learning rate
    schedule remains that of all epochs.
    """
    point = definition.space.make_point(trial.params)
    train = definition.compose_config(point).train if definition.trains_networks else None
    if train is None or (train.patience, train.weights) == (None, "last"):
        return point
    until = kept_epoch(TrialRecord(trial).columns, train.weights, definition.metric.sign)
    pinned = {"train.until": until, "train.patience": None, "train.weights": "last"}
    return replace(point, values=point.values | pinned)


def kept_epoch(curves: Mapping[str, Sequence[float]], keep: str, sign: int) -> int | None:
    """Returns the epoch, from 1, whose weights a trial kept, by its mean curve; None without."""
    values = curves.get("value", ())
    if not values or keep == "last":
        return len(values) or None
    return 1 + max(range(len(values)), key=lambda at: sign * values[at])


Training = tuple[Origin, int]  # a candidate, and the number of a seed


@dataclass(frozen=True)
class EarlierTraining:
    """Holds a training of an earlier stage that this stage reuses.

    Args:
        source: the name of that stage and the number of the trial, as shown to users.
        file: the network; None if it was not kept.
    """

    trial: FrozenTrial
    source: str
    file: Path | None

    def objective(self) -> StoredObjective | None:
        """Returns an objective with the result of the trial; None if another host has its file."""
        try:
            kept = None if self.file is None else load_weights(self.file)
        except (OSError, ValueError):
            return None
        record, value = TrialRecord(self.trial), self.trial.values[0]
        return StoredObjective(value, record.columns, record.standard_error, kept, self.source)


@dataclass(frozen=True)
class IsCandidate:
    """A relation of `Space`: leaves out combinations of columns that are no candidate."""

    candidates: frozenset[Origin]
    names = frozenset({"trial", "defaults"})

    def holds(self, params: Mapping[str, Any]) -> bool:
        return Origin.read(params) in self.candidates


@dataclass(frozen=True)
class CandidateTrainings:
    """Gives workers each candidate with each seed to train, as a search gives them trials.

    All candidates get the same seeds and folds, so that they do not differ by luck.

    Args:
        seeds: the number of seeds for each candidate.
        whole: whether to train on all training data, as final trainings do.
        find_earlier: finds the trainings of other stages that this one reuses.
    """

    definition: Definition
    data: TrainingData
    candidates: Mapping[Origin, Point]
    seeds: int
    whole: bool = False
    find_earlier: Callable[[], Mapping[Training, EarlierTraining]] = dict
    baseline: Point | None = None

    @cached_property
    def space(self) -> Space:
        """The trainings as a grid: trial, hyperparameters at their defaults, and seed."""
        rows = [origin.columns for origin in self.candidates]
        relations: tuple[IsCandidate, ...] = ()
        tree: dict[str, Any] = {"trial": {"choice": _distinct(rows, "trial")}}
        if any("defaults" in row for row in rows):
            tree["defaults"] = {"choice": _distinct(rows, "defaults")}
            relations = (IsCandidate(frozenset(self.candidates)),)
        tree["seed"] = {"int": [0, self.seeds - 1]}
        return replace(parse_space(tree, lambda group: ()), relations=relations)

    @cached_property
    def earlier(self) -> Mapping[Training, EarlierTraining]:
        """The trainings of other stages that this one reuses."""
        return self.find_earlier()

    @property
    def seed(self) -> int:
        return self.definition.seed

    @property
    def trainings(self) -> Sequence[Training]:
        return [*itertools.product(self.candidates, range(self.seeds))]

    def new_seed(self, seed: int) -> int:
        """Derives a seed that the search has not used: no other path has its length."""
        return derive(self.seed, seed, 0, 0)

    @property
    def new_seeds(self) -> tuple[int, ...]:
        return tuple(map(self.new_seed, range(self.seeds)))

    def fold(self, seed: int) -> Fold | None:
        """Returns the examples of a training; None where a loop loads its data itself.

        A training on all data is validated on one fifth of them, which only shows that it works.
        A separate validation set, `data.valid`, is used unchanged.
        """
        if self.whole and self.data.split is not None:
            return self.data.split.whole_fold()
        return self.new_fold(seed)

    def new_fold(self, seed: int) -> Fold | None:
        """Returns a new training and validation split; see `Definition.make_new_fold`."""
        return self.definition.make_new_fold(self.data, seed)

    @property
    def repeats(self) -> bool:
        """Whether final trainings would repeat the seeds and examples of the re-evaluation.

        They would if a loop loads its data itself, or there is a separate validation set.
        """
        split, fold = self.data.split, self.new_fold(0)
        return split is None or fold is None or len(fold[0]) == len(split)

    def job(self, candidate: Origin, seed: int) -> Job:
        """Builds the training of a candidate with a seed, by its number."""
        fold = self.fold(seed)
        assert fold is not None
        return self.definition.build_job(self.candidates[candidate], fold, self.new_seed(seed))

    def make_objective(
        self, point: Point, number: int, data: TrainingData, attempt: Attempt = FIRST_ATTEMPT
    ) -> Objective:
        """Makes the objective that trains the candidate and seed that `point` names.

        Reuses the result of an earlier stage that has trained it.
        """
        training = Origin.read(point.values), point.values["seed"]
        earlier = self.earlier.get(training)
        if earlier is not None and (stored := earlier.objective()) is not None:
            return stored
        return self.train_again(*training, number, attempt)

    def train_again(self, candidate: Origin, seed: int, number: int, attempt: Attempt) -> Objective:
        """Makes the objective that trains a candidate, even if an earlier stage has trained it.

        Args:
            seed: the number of the seed.
            number: the number of the trial.
        """
        return self.definition.make_objective(
            self.candidates[candidate],
            number,
            self.data,
            attempt,
            seed=self.new_seed(seed),
            fold=self.fold(seed),
        )

    def measure_costs(self, point: Point, data: TrainingData) -> list[Cost]:
        """Returns nothing: the search has checked the constraints of a candidate."""
        return []

    def provenance_sections(self, point: Point) -> None:
        """Returns nothing: the candidate's trial in the search has its provenance."""

    def trains_on(self, data: TrainingData) -> torch.device:
        return self.definition.trains_on(data)

    @property
    def keeps_state(self) -> tuple[str, ...]:
        """Returns nothing: the grid is the same in every process."""
        return ()

    def sampler(self, number: int, *, redraws: bool = False) -> GridSampler:
        return GridSampler(SamplerContext(self.space))

    def pruner(self) -> BasePruner:
        return NopPruner()


def _distinct(rows: Sequence[Mapping[str, Any]], column: str) -> list[Any]:
    """Returns the distinct values of a column; "" where a row lacks it."""
    return list(dict.fromkeys(row.get(column, "") for row in rows))
