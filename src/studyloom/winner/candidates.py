"""The candidates for the winner: chosen from a search, and trained with new seeds.

A *candidate* is one of the best trials of the search, or the baseline. Under ASHA few trials train
to the end. So a trial that ASHA has ended at a rung may be a candidate too, by the value that it
would probably have had at the end: the re-evaluation trains it with all epochs.

An ablation adds copies of the winner with some hyperparameters put back to their defaults. A
`CandidateId` identifies each of them, also in the database. A *training* is a candidate with the
number of a new seed; the trials of the stages after the search are such trainings.

Every choice is a pure function of the stored trials, so that each process comes to the same one.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from optuna.pruners import BasePruner, NopPruner
from optuna.trial import FrozenTrial, TrialState

from studyloom.data.split import Fold
from studyloom.data.training_data import TrainingData
from studyloom.decisions.extrapolation import extrapolate
from studyloom.decisions.samplers import GridSampler, SamplerContext
from studyloom.definition.definition import FIRST_ATTEMPT, Definition
from studyloom.objectives.objective import Attempt, Objective, StoredObjective
from studyloom.seeds import derive
from studyloom.space.language import parse_space
from studyloom.space.rule import Cost, Rule
from studyloom.space.tree import Configuration, Params, Space
from studyloom.storage.stored_study import StoredStudy, keeps_constraints
from studyloom.storage.trial_record import TrialRecord
from studyloom.training.checkpoint import load_weights
from studyloom.training.job import Job


@dataclass(frozen=True, order=True)
class CandidateId:
    """Identifies a candidate: by the trial that it comes from, and what is changed in it.

    Args:
        trial: the number of the trial in the search.
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
    def read(cls, columns: Params) -> "CandidateId":
        """Reads the candidate from the hyperparameters of a stored training.

        Args:
            columns: such as {"trial": 17, "defaults": "lr, width", "seed": 0}.
        """
        defaults = columns.get("defaults")
        if not defaults:
            return cls(columns["trial"])
        return cls(columns["trial"], tuple(defaults.split(", ")))


@dataclass(frozen=True)
class CandidateSource:
    """A candidate for the winner: its trial, and the configuration to train.

    Args:
        trial: the trial as it is stored.
        configuration: its hyperparameters.
        may_win: whether it may win; a baseline that is not may still be compared with the winner.
        final_value: its value in the search at the end of its training, see `rank_trials`.
    """

    trial: FrozenTrial
    configuration: Configuration
    is_baseline: bool = False
    may_win: bool = True
    final_value: float = math.nan

    @property
    def stopped(self) -> int | None:
        """The epoch at which the search has stopped the trial; None for a complete one."""
        if self.trial.state == TrialState.COMPLETE:
            return None
        return self.trial.last_step

    @property
    def recorded_values(self) -> Sequence[float]:
        """The values of the trial's epochs in the search; empty if it was stopped."""
        if self.stopped is not None:
            return []
        return TrialRecord(self.trial).columns.get("value", [])


Candidates = Mapping[CandidateId, CandidateSource]


def rank_trials(search: StoredStudy, rule: Rule, budget: int) -> list[FrozenTrial]:
    """Returns the trials that may win, the best first, each with its value at the end of training.

    A trial that ASHA has ended at a rung gets the value that samplers see, see `extrapolate`. With
    several objectives only complete trials are returned.

    Args:
        rule: the rule that a trial must satisfy to win.
        budget: the number of trials of this command; the study may have a larger one.
    """
    trials = search.feasible()
    ended_at_rung = {trial.number for trial in search.trials() if _is_ended_at_rung(trial)}
    has_one_objective = len(search.objectives) == 1
    if ended_at_rung and has_one_objective:
        for trial in extrapolate(search.trials(), search.optuna.directions):
            if trial.number in ended_at_rung and trial.state == TrialState.COMPLETE:
                trials.append(trial)
    trials_within_budget = [trial for trial in trials if _is_within_budget(trial, budget)]
    return search.ranked(rule, trials_within_budget)


def _is_ended_at_rung(trial: FrozenTrial) -> bool:
    """Returns whether ASHA has ended a trial at a rung, and the trial breaks no constraint."""
    record = TrialRecord(trial)
    return record.outcome == "pruned" and bool(record.rungs) and keeps_constraints(trial)


def choose_candidates(
    definition: Definition, search: StoredStudy, ranked_trials: Sequence[FrozenTrial], top: int
) -> Candidates:
    """Chooses the best trials of a search, and the baseline even if it cannot win.

    Args:
        ranked_trials: the trials that may win, the best first, see `rank_trials`.
        top: how many trials are chosen beside the baseline; the best complete one is among them.

    Returns:
        The candidates, by the number of their trial.
    """
    if not ranked_trials:
        return {}
    stored_trials = {trial.number: trial for trial in search.trials()}
    final_values = {trial.number: trial.values[0] for trial in ranked_trials}
    baseline_number = None
    for trial in search.feasible():
        if TrialRecord(trial).is_baseline:
            baseline_number = trial.number
            break

    others = [trial.number for trial in ranked_trials if trial.number != baseline_number]
    complete = [number for number in others if stored_trials[number].state == TrialState.COMPLETE]
    # People know the best complete trial as the best of the search, so it comes first. Sorting
    # leaves all others in the order of their values.
    others.sort(key=lambda number: number not in complete[:1])
    chosen_numbers = others[:top]
    if baseline_number is not None:
        chosen_numbers.append(baseline_number)
    candidates = {}
    for number in sorted(chosen_numbers):
        trial = stored_trials[number]
        candidates[CandidateId(number)] = CandidateSource(
            trial,
            _make_configuration(trial, definition),
            is_baseline=number == baseline_number,
            may_win=number in final_values,
            final_value=final_values.get(number, trial.values[0]),
        )
    return candidates


def _is_within_budget(trial: FrozenTrial, budget: int) -> bool:
    """Returns whether a trial is within a budget, by its slot: the trial's place in the budget.

    A trial of an Optuna study has no slot, and is within every budget.
    """
    slot = TrialRecord(trial).slot
    return slot is None or slot < budget


def _make_configuration(trial: FrozenTrial, definition: Definition) -> Configuration:
    """Makes the configuration of a candidate from its trial in the search.

    If early stopping chose the number of epochs, re-evaluation and final training repeat that
    number: it is a choice like a hyperparameter, and a final training has no validation set to
    choose by. The learning rate schedule remains that of all epochs. A trial that the search has
    stopped has not come to choose: it trains all epochs.
    """
    configuration = definition.space.make_configuration(trial.params)
    if not definition.trains_networks:
        return configuration
    train = definition.compose_config(configuration).train
    stops_early = train.patience is not None or train.weights != "last"
    if not stops_early:
        return configuration
    epoch = None
    if trial.state == TrialState.COMPLETE:
        epoch = find_kept_epoch(TrialRecord(trial).columns, train.weights, definition.metric.sign)
    pinned_values = {"train.until": epoch, "train.patience": None, "train.weights": "last"}
    return replace(configuration, values=configuration.values | pinned_values)


def find_kept_epoch(curves: Mapping[str, Sequence[float]], weights: str, sign: int) -> int | None:
    """Returns the epoch, counted from 1, whose weights a trial kept; None without a curve.

    Args:
        curves: the columns of the learning curve.
        weights: `last`, or `best` for the epoch with the best value.
        sign: 1 if more of the metric is better, else -1.
    """
    values = curves.get("value", ())
    if not values:
        return None
    if weights == "last":
        return len(values)
    best_index = max(range(len(values)), key=lambda index: sign * values[index])
    return best_index + 1


class Training(NamedTuple):
    """A training of a stage after the search.

    Attributes:
        seed: the number of the new seed, from 0; see `CandidateTrainings.new_seed`.
    """

    candidate: CandidateId
    seed: int


@dataclass(frozen=True)
class EarlierTraining:
    """A training of an earlier stage that this stage reuses.

    Args:
        source: the name of that stage and the number of the trial, as shown to users.
        file: the network; None if it was not kept.
    """

    trial: FrozenTrial
    source: str
    file: Path | None

    def objective(self) -> StoredObjective | None:
        """Returns an objective that trains nothing and has the result of the stored trial.

        Returns None if the file of its network cannot be read here, but maybe on another host.
        """
        weights = None
        if self.file is not None:
            try:
                weights = load_weights(self.file)
            except (OSError, ValueError):  # each host has the files of the networks that it trained
                return None
        record = TrialRecord(self.trial)
        return StoredObjective(
            value=self.trial.values[0],
            columns=record.columns,
            error=record.standard_error,
            stored_weights=weights,
            source=self.source,
        )


@dataclass(frozen=True)
class IsCandidate:
    """A relation of `Space`, which leaves out combinations of columns that are no candidate.

    The grid of an ablation's trainings would otherwise have each trial with each set of defaults.
    """

    candidates: frozenset[CandidateId]
    names = frozenset({"trial", "defaults"})

    def holds(self, params: Params) -> bool:
        return CandidateId.read(params) in self.candidates


@dataclass(frozen=True)
class CandidateTrainings:
    """Gives workers each candidate with each seed to train, as a search gives them trials.

    It is the `TrialSource` and the `TrialStrategy` of a stage after the search. All candidates get
    the same seeds and folds, so that they do not differ by luck.

    Args:
        candidates: the configurations to train.
        seeds: the number of seeds for each candidate.
        trains_on_all: whether to train on all training data, as final trainings do.
        has_final_seeds: whether the new seeds are others than those of the re-evaluation.
        find_earlier: finds the trainings of other stages that this one reuses.
    """

    definition: Definition
    data: TrainingData
    candidates: Mapping[CandidateId, Configuration]
    seeds: int
    trains_on_all: bool = False
    has_final_seeds: bool = False
    find_earlier: Callable[[], Mapping[Training, EarlierTraining]] = dict
    baseline: Configuration | None = None

    @cached_property
    def space(self) -> Space:
        """The trainings as a grid of three hyperparameters, so that workers run them as trials.

        They are the number of the candidate's trial in the search, the hyperparameters that are put
        back to their defaults, if any candidate has some, and the number of the seed.
        """
        rows = [candidate_id.columns for candidate_id in self.candidates]
        tree: dict[str, Any] = {"trial": {"choice": _distinct_values(rows, "trial")}}
        has_defaults = any("defaults" in row for row in rows)
        if has_defaults:
            tree["defaults"] = {"choice": _distinct_values(rows, "defaults")}
        tree["seed"] = {"int": [0, self.seeds - 1]}
        space = parse_space(tree, lambda group: ())
        if not has_defaults:
            return space
        is_candidate = IsCandidate(frozenset(self.candidates))
        return replace(space, relations=(is_candidate,))

    @cached_property
    def earlier(self) -> Mapping[Training, EarlierTraining]:
        """The trainings of other stages that this one reuses."""
        return self.find_earlier()

    @property
    def seed(self) -> int:
        """The seed of the study."""
        return self.definition.seed

    @property
    def trainings(self) -> Sequence[Training]:
        """Each candidate with the number of each seed."""
        pairs = itertools.product(self.candidates, range(self.seeds))
        return [Training(candidate, seed) for candidate, seed in pairs]

    def new_seed(self, number: int) -> int:
        """Derives a new seed, which the search has not used, from its number.

        A seed of the search is derived from fewer numbers, and so is another one.
        """
        if self.has_final_seeds:
            return derive(self.seed, number, 2, 0)  # with 1 instead of 2 it is that of a worker
        return derive(self.seed, number, 0, 0)

    @property
    def new_seeds(self) -> tuple[int, ...]:
        """The new seeds, in the order of their numbers."""
        return tuple(self.new_seed(number) for number in range(self.seeds))

    def fold(self, seed: int) -> Fold | None:
        """Returns the training and validation examples of the trainings with a seed.

        A training on all data is validated on one fifth of them, which only shows that it works.
        A separate validation set, `data.valid`, is used unchanged. Returns None if a loop loads its
        data itself.
        """
        if self.trains_on_all and self.data.split is not None:
            return self.data.split.whole_fold()
        return self.new_fold(seed)

    def new_fold(self, seed: int) -> Fold | None:
        """Returns a new training and validation split; see `Definition.make_new_fold`."""
        return self.definition.make_new_fold(self.data, seed)

    @property
    def has_examples_of_reevaluation(self) -> bool:
        """Returns whether final trainings have the training examples of the re-evaluation.

        This is so if a loop loads its data itself, or if there is a separate validation set.
        """
        training_set = self.data.split
        fold = self.new_fold(0)
        if training_set is None or fold is None:
            return True
        return len(fold.training) == len(training_set)

    def job(self, candidate: CandidateId, seed: int) -> Job:
        """Builds the training of a candidate with the seed of this number."""
        fold = self.fold(seed)
        assert fold is not None
        return self.definition.build_job(self.candidates[candidate], fold, self.new_seed(seed))

    def make_objective(
        self,
        configuration: Configuration,
        number: int,
        data: TrainingData,
        attempt: Attempt = FIRST_ATTEMPT,
    ) -> Objective:
        """Makes the objective that trains a candidate with a seed; the configuration names both.

        If an earlier stage has trained it, its result is reused.
        """
        training = Training(CandidateId.read(configuration.values), configuration.values["seed"])
        earlier_training = self.earlier.get(training)
        if earlier_training is not None:
            stored_objective = earlier_training.objective()
            if stored_objective is not None:
                return stored_objective
        return self.make_new_objective(training, number, attempt)

    def make_new_objective(self, training: Training, number: int, attempt: Attempt) -> Objective:
        """Makes the objective of a training, even if an earlier stage has trained it.

        Args:
            number: the number of the trial.
        """
        return self.definition.make_objective(
            self.candidates[training.candidate],
            number,
            self.data,
            attempt,
            seed=self.new_seed(training.seed),
            fold=self.fold(training.seed),
        )

    def measure_costs(self, configuration: Configuration, data: TrainingData) -> list[Cost]:
        """Returns nothing: the search has checked the constraints of a candidate."""
        return []

    def provenance_sections(self, configuration: Configuration) -> None:
        """Returns nothing: the candidate's trial in the search has its provenance."""

    def trains_on(self, data: TrainingData) -> torch.device:
        return self.definition.trains_on(data)

    @property
    def keeps_state(self) -> tuple[str, ...]:
        """Returns nothing: a grid needs no state, since it is the same in every process."""
        return ()

    def sampler(self, number: int, *, redraws: bool = False) -> GridSampler:
        return GridSampler(SamplerContext(self.space))

    def pruner(self) -> BasePruner:
        return NopPruner()


def _distinct_values(rows: Sequence[Mapping[str, object]], column: str) -> list[object]:
    """Returns the distinct values of a column; "" where a row lacks it."""
    return list(dict.fromkeys(row.get(column, "") for row in rows))
