"""The candidates for the winner: chosen from a search, trained with new seeds, and compared.

Every choice is a pure function of the stored trials, so that each process comes to the same one.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean

import torch
from optuna.pruners import BasePruner, NopPruner
from optuna.trial import FrozenTrial

from studyloom.data.split import Fold
from studyloom.data.training_data import TrainingData
from studyloom.definition.definition import FIRST, Definition
from studyloom.definition.objective import Attempt, Objective, StoredObjective
from studyloom.definition.rule import Cost, Rule
from studyloom.definition.scale import FACTORS, learning_rates
from studyloom.seeds import derive
from studyloom.space.language import parse_space
from studyloom.space.samplers import GridSampler
from studyloom.space.tree import Point, Space
from studyloom.storage.attributes import JOBS
from studyloom.study.stored_study import StoredStudy
from studyloom.study.trial_record import TrialRecord
from studyloom.training.checkpoint import load_weights
from studyloom.training.job import Job


@dataclass(frozen=True, order=True)
class Origin:
    """The trial that a candidate comes from, and the factor on its learning rate."""

    trial: int
    factor: float = 1.0

    @property
    def number(self) -> int:
        """The candidate in stored rows: its trial, or below 0 at another learning rate."""
        if self.factor == 1:
            return self.trial
        return -1 - len(FACTORS) * self.trial - FACTORS.index(self.factor)

    @classmethod
    def of(cls, number: int) -> "Origin":
        """Reads the number of a candidate in stored rows."""
        if number >= 0:
            return cls(number)
        trial, place = divmod(-number - 1, len(FACTORS))
        return cls(trial, FACTORS[place])


@dataclass(frozen=True)
class CandidateSource:
    """Holds a candidate for the winner: its trial, and the configuration that is trained.

    Args:
        point: at the size of the winner.
        contends: whether it may win; else it is there to compare with.
    """

    trial: FrozenTrial
    point: Point
    is_baseline: bool = False
    contends: bool = True


Candidates = Mapping[Origin, CandidateSource]


def choose_candidates(
    definition: Definition, search: StoredStudy, rule: Rule, trials: int, top: int
) -> Candidates:
    """Chooses the best trials of a search, and the baseline even if it cannot win.

    At the target size of a `scale`, the best trial has neighbors at other learning rates.

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
    candidates = {
        Origin(number): CandidateSource(
            chosen[number],
            _point_of(chosen[number], definition),
            is_baseline=bool(baselines) and number == baselines[0].number,
            contends=number in contenders,
        )
        for number in sorted(chosen)
    }
    best = candidates[Origin(ranked[0].number)]
    for factor, point in _neighbors(definition, best.point).items():
        origin = Origin(best.trial.number, factor)
        candidates[origin] = replace(best, point=point, is_baseline=False)
    return candidates


def _point_of(trial: FrozenTrial, definition: Definition) -> Point:
    """Returns the point of a trial; if patience or weights=best chose its epochs, with so many.

    The number of epochs counts as chosen, as a hyperparameter does: the re-evaluation makes no
    other choice, and the final training, which has no validation set of its own, is as long. The
    schedule remains that of all epochs.
    """
    point = at_target(definition, definition.space.at(trial.params))
    train = definition.at(point).train if definition.trains_networks else None
    if train is None or (train.patience, train.weights) == (None, "last"):
        return point
    until = kept_epoch(TrialRecord(trial).columns, train.weights, definition.metric.sign)
    pinned = {"train.until": until, "train.patience": None, "train.weights": "last"}
    return replace(point, values=point.values | pinned)


def at_target(definition: Definition, point: Point) -> Point:
    """Returns a point of the search at the size of the winner."""
    if (scale := definition.scale) is None:
        return point
    sizes = scale.present(scale.target, definition.at(point))
    return replace(point, values=point.values | sizes)


def _neighbors(definition: Definition, point: Point) -> dict[float, Point]:
    """Returns a point at other learning rates, by their factors; none without a target size."""
    if (scale := definition.scale) is None or not scale.target:
        return {}
    rates = learning_rates(definition.at(point))
    return {
        factor: replace(
            point, values=point.values | {key: rate * factor for key, rate in rates.items()}
        )
        for factor in (FACTORS if rates else ())
    }


def kept_epoch(curves: Mapping[str, Sequence[float]], keep: str, sign: int) -> int | None:
    """Returns the epoch, from 1, that was kept of a trial by its mean curve; None without one."""
    values = curves.get("value", ())
    if not values or keep == "last":
        return len(values) or None
    jobs = curves.get(JOBS, [1] * len(values))  # in turn, fewer come to the later epochs
    complete = [at for at, count in enumerate(jobs) if count == jobs[0]]
    return 1 + max(complete, key=lambda at: sign * values[at])


Training = tuple[Origin, int]  # a candidate, and the number of a seed


@dataclass(frozen=True)
class EarlierTraining:
    """Holds a training that another stage has done, as the objective of this one.

    Args:
        source: the name of that stage and the number of the trial, for the reader.
        file: with its network; None if none was kept.
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
class CandidateTrainings:
    """Gives workers each candidate with each seed, as a search gives them its trials.

    All candidates get the same seeds and the same folds, so that luck is not what they differ by.

    Args:
        seeds: how many seeds each candidate is trained with.
        whole: whether a training has all training data, as a final training has.
    """

    definition: Definition
    data: TrainingData
    candidates: Mapping[Origin, Point]
    seeds: int
    whole: bool = False
    earlier: Mapping[Training, EarlierTraining] = field(default_factory=dict)
    baseline: Point | None = None
    in_turn: bool = False

    @cached_property
    def space(self) -> Space:
        numbers = [origin.number for origin in self.candidates]
        tree = {"candidate": {"choice": numbers}, "seed": {"int": [0, self.seeds - 1]}}
        return parse_space(tree, lambda group: ())

    @property
    def seed(self) -> int:
        return self.definition.seed

    @property
    def trainings(self) -> Sequence[Training]:
        return [*itertools.product(self.candidates, range(self.seeds))]

    def fresh_seed(self, seed: int) -> int:
        """Derives a seed that nothing in the search has used: no other path has its length."""
        return derive(self.seed, seed, 0, 0)

    @property
    def fresh_seeds(self) -> tuple[int, ...]:
        return tuple(map(self.fresh_seed, range(self.seeds)))

    def fold(self, seed: int) -> Fold | None:
        """Returns the examples of a training; None where the data are the loop's own.

        A training with all data is validated on one fifth of them, which only shows that it works.
        A validation set of its own, `data.valid`, stays what it is.
        """
        if self.whole and self.data.split is not None:
            return self.data.split.whole()
        return self.new_fold(seed)

    def new_fold(self, seed: int) -> Fold | None:
        """Returns a division of the data that the search has not used, as large as one of its.

        In time order only the last part comes after all the others, so that it is always that one.
        """
        if self.data.split is None:
            return None
        count, fresh = self.definition.config.objective.folds, derive(self.seed, seed, 0, 1)
        return self.data.split.folds(count, self.data.source.validation, fresh)[-1]

    @property
    def repeats(self) -> bool:
        """Whether a final training has the seeds and the examples of a re-evaluation.

        So it is if the data are a loop's own, or have a validation set of their own.
        """
        split, fold = self.data.split, self.new_fold(0)
        return split is None or fold is None or len(fold[0]) == len(split)

    def job(self, candidate: Origin, seed: int) -> Job:
        """Builds the training of a candidate with a seed, by its number."""
        fold = self.fold(seed)
        assert fold is not None
        return self.definition.job(self.candidates[candidate], fold, self.fresh_seed(seed))

    def make_objective(
        self, point: Point, number: int, data: TrainingData, attempt: Attempt = FIRST
    ) -> Objective:
        """Makes the objective that trains the candidate of a point with the seed of the point.

        If an earlier stage has done that, its result is reused.
        """
        training = Origin.of(point.values["candidate"]), point.values["seed"]
        earlier = self.earlier.get(training)
        if earlier is not None and (stored := earlier.objective()) is not None:
            return stored
        return self.train_again(*training, number, attempt)

    def train_again(self, candidate: Origin, seed: int, number: int, attempt: Attempt) -> Objective:
        """Makes the objective that trains a candidate, whatever earlier stages have done.

        Args:
            seed: by its number.
            number: of the trial.
        """
        return self.definition.make_objective(
            self.candidates[candidate],
            number,
            self.data,
            attempt,
            seed=self.fresh_seed(seed),
            fold=self.fold(seed),
        )

    def measure_costs(self, point: Point, data: TrainingData) -> list[Cost]:
        """Returns nothing: a candidate has met the limits in the search already."""
        return []

    def provenance_sections(self, point: Point) -> None:
        """Returns nothing: the candidate's trial in the search has its provenance."""

    def trains_on(self, data: TrainingData) -> torch.device:
        return self.definition.trains_on(data)

    @property
    def keeps_state(self) -> tuple[str, ...]:
        """Nothing does: the grid is the same in every process."""
        return ()

    def sampler(self, number: int) -> GridSampler:
        return GridSampler(self.space)

    def pruner(self) -> BasePruner:
        return NopPruner()


@dataclass(frozen=True)
class Reevaluated:
    """Holds the candidates of a search with their values on new seeds, and chooses the winner.

    Args:
        values: one for each seed, of each candidate of which no training failed; None if there is
            no re-evaluation, since a single candidate that will be tested needs none.
    """

    search: StoredStudy
    rule: Rule
    candidates: Candidates
    values: Mapping[Origin, Sequence[float]] | None

    @property
    def eligible(self) -> list[Origin]:
        """The candidates that may win, after a re-evaluation only of those it has values of."""
        known = self.candidates if self.values is None else self.values
        return [o for o in self.candidates if self.candidates[o].contends and o in known]

    @property
    def baseline(self) -> Origin | None:
        return next((o for o, each in self.candidates.items() if each.is_baseline), None)

    @cached_property
    def winner(self) -> Origin:
        """The eligible candidate that is best on new seeds; of equal ones that of lower number.

        If no candidate satisfies the rule on new seeds, the one with the best mean wins.
        """
        known = {origin: self.known(origin) for origin in self.eligible}
        satisfying = [origin for origin in known if self.rule.holds(known[origin])]
        metric, sign = self.search.metric, self.search.sign

        def rank(origin: Origin) -> tuple[float, ...]:
            values = known[origin]
            by_rule = self.rule.rank(values) if satisfying else 0.0
            return by_rule, -sign * values[metric], origin.number

        return min(satisfying or known, key=rank)

    def known(self, origin: Origin) -> dict[str, float]:
        """Returns the values of a candidate by name, for the rule.

        The mean on new seeds, if there is one, takes the place of the value in the search.
        """
        values = self.search.values_by_name(self.candidates[origin].trial)
        fresh = (self.values or {}).get(origin)
        return values | ({} if fresh is None else {self.search.metric: fmean(fresh)})

    @property
    def keeps_to_rule(self) -> bool:
        """Whether the winner satisfies the rule on new seeds."""
        return self.rule.holds(self.known(self.winner))
