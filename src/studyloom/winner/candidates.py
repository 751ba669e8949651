"""The candidates for the winner: chosen from a search, trained with new seeds, and compared.

Every choice is a pure function of the stored trials, so that each process comes to the same one.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, variance

import torch
from optuna.pruners import BasePruner, NopPruner
from optuna.trial import FrozenTrial

from studyloom.data.split import Fold
from studyloom.data.training_data import TrainingData
from studyloom.definition.definition import FIRST, Definition
from studyloom.definition.objective import Attempt, Objective, StoredObjective
from studyloom.definition.rule import Cost, Rule
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
    """The trial that a candidate comes from, and what is changed.

    Args:
        defaults: the names of hyperparameters that are put back to their defaults.
    """

    trial: int
    defaults: tuple[str, ...] = ()

    @property
    def number(self) -> int | str:
        """The candidate in stored rows: its trial.

        With hyperparameters at their defaults it is a JSON list of the trial and their names.
        """
        if self.defaults:
            return json.dumps([self.trial, *self.defaults])
        return self.trial

    @classmethod
    def of(cls, number: int | str) -> "Origin":
        """Reads the number of a candidate in stored rows."""
        if isinstance(number, str):
            trial, *names = json.loads(number)
            return cls(trial, tuple(names))
        return cls(number)


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


Candidates = Mapping[Origin, CandidateSource]
# Standard errors of the difference. Without a margin 15% of winners are truly worse than the
# baseline, with it 2%, and a fiftieth of the gain is lost (`bench.py honesty`).
MARGIN = 1.5


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
    point = definition.space.at(trial.params)
    train = definition.at(point).train if definition.trains_networks else None
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
    jobs = curves.get(JOBS, [1] * len(values))  # in turn, fewer come to the later epochs
    complete = [at for at, count in enumerate(jobs) if count == jobs[0]]
    return 1 + max(complete, key=lambda at: sign * values[at])


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
class CandidateTrainings:
    """Gives workers each candidate with each seed to train, as a search gives them trials.

    All candidates get the same seeds and folds, so that they do not differ by luck.

    Args:
        seeds: the number of seeds for each candidate.
        whole: whether to train on all training data, as final trainings do.
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
            return self.data.split.whole()
        return self.new_fold(seed)

    def new_fold(self, seed: int) -> Fold | None:
        """Returns a new training and validation split, as large as those of the search.

        In time order the validation set is always the last part: only there is all training data
        earlier.
        """
        if self.data.split is None:
            return None
        count, seed_of_split = self.definition.config.objective.folds, derive(self.seed, seed, 0, 1)
        return self.data.split.folds(count, self.data.source.validation, seed_of_split)[-1]

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
        return self.definition.job(self.candidates[candidate], fold, self.new_seed(seed))

    def make_objective(
        self, point: Point, number: int, data: TrainingData, attempt: Attempt = FIRST
    ) -> Objective:
        """Makes the objective that trains the candidate and seed that `point` names.

        Reuses the result of an earlier stage that has trained it.
        """
        training = Origin.of(point.values["candidate"]), point.values["seed"]
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

    def sampler(self, number: int, *, again: bool = False) -> GridSampler:
        return GridSampler(self.space)

    def pruner(self) -> BasePruner:
        return NopPruner()


@dataclass(frozen=True)
class Reevaluated:
    """Holds the candidates of a search with their values on new seeds, and chooses the winner.

    Args:
        values: a value for each seed, of each candidate without a failed training; None without a
            re-evaluation, which a single candidate that will be tested does not need.
    """

    search: StoredStudy
    rule: Rule
    candidates: Candidates
    values: Mapping[Origin, Sequence[float]] | None

    @property
    def eligible(self) -> list[Origin]:
        """The candidates that may win; after a re-evaluation only those that have values in it."""
        known = self.candidates if self.values is None else self.values
        return [o for o in self.candidates if self.candidates[o].contends and o in known]

    @property
    def baseline(self) -> Origin | None:
        return next((o for o, each in self.candidates.items() if each.is_baseline), None)

    @cached_property
    def winner(self) -> Origin:
        """The eligible candidate that is best on new seeds; the lower number wins a tie.

        If no candidate satisfies the rule on new seeds, the one with the best mean wins. The
        baseline wins if that one is not better than it by more than `MARGIN`.
        """
        known = {origin: self.known(origin) for origin in self.eligible}
        satisfying = [origin for origin in known if self.rule.holds(known[origin])]
        metric, sign = self.search.metric, self.search.sign

        def rank(origin: Origin) -> tuple[float, ...]:
            values = known[origin]
            by_rule = self.rule.rank(values) if satisfying else 0.0
            return by_rule, -sign * values[metric], int(origin.number)

        chosen, baseline = min(satisfying or known, key=rank), self.baseline
        is_kept = baseline in known and self._is_no_better(chosen, baseline)
        return baseline if baseline is not None and is_kept else chosen

    def _is_no_better(self, origin: Origin, baseline: Origin) -> bool:
        """Whether chance explains that a candidate is better than the baseline, as far as known."""
        if self.values is None or self.rule != Rule(self.search.goals[0]):
            return False
        one, other = self.values[origin], self.values[baseline]
        if origin == baseline or len(one) < 2:
            return False
        error = math.sqrt((variance(one) + variance(other)) / len(one))
        return self.search.sign * (fmean(one) - fmean(other)) <= MARGIN * error

    def known(self, origin: Origin) -> dict[str, float]:
        """Returns the values of a candidate by name, for the rule.

        The mean on new seeds, if there is one, replaces the value in the search.
        """
        values = self.search.values_by_name(self.candidates[origin].trial)
        values_again = (self.values or {}).get(origin)
        return values | ({} if values_again is None else {self.search.metric: fmean(values_again)})

    @property
    def keeps_to_rule(self) -> bool:
        """Whether the winner satisfies the rule on new seeds."""
        return self.rule.holds(self.known(self.winner))
