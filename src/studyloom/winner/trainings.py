"""The trainings of a later stage: each candidate with each fresh seed.

A training is known by its candidate, which is a trial of the search, and by the number of its seed.
So a budget that grows from 40 to 60 trials, which makes new stages of often the same candidates,
takes over what earlier stages have trained and tested, unless the user's own code has changed.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from optuna.pruners import BasePruner, NopPruner
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor, nn

from studyloom.data.split import Fold, Split
from studyloom.data.training_data import Part, TrainingData
from studyloom.definition.definition import FIRST, Definition
from studyloom.definition.objective import Attempt, Objective, StoredObjective
from studyloom.definition.rule import Cost
from studyloom.definition.sources import code_of
from studyloom.metrics import Metric
from studyloom.seeds import derive
from studyloom.space.language import parse_space
from studyloom.space.samplers import GridSampler
from studyloom.space.tree import Point, Space
from studyloom.storage.attributes import (
    EPOCHS,
    JOBS,
    KEPT,
    QUESTION,
    REUSED,
    STANDARD_ERROR,
    TESTED,
)
from studyloom.study.stored_study import RETRAINING, StoredStudy
from studyloom.training.batches import batch_dtype
from studyloom.training.checkpoint import load_weights
from studyloom.training.job import Job
from studyloom.training.trainer import evaluate_network
from studyloom.winner.result import DtypeName, Tested, from_document

COMPLETE = (TrialState.COMPLETE,)

Training = tuple[int, int]  # the numbers of a candidate and of a seed


# Makes the objective of a training that another stage has done; None if another host keeps it.
Earlier = Callable[[], StoredObjective | None]


def earlier_objective(
    trial: FrozenTrial, source: str, weights: Path | None
) -> StoredObjective | None:
    """Returns an objective that has the result of a trial; None if another host keeps its network.

    Args:
        weights: None if no network was kept.
    """
    try:
        kept = None if weights is None else load_weights(weights)
    except (OSError, ValueError):
        return None
    columns, error = trial.user_attrs.get(EPOCHS, {}), trial.user_attrs.get(STANDARD_ERROR)
    return StoredObjective(trial.values[0], columns, error, kept, source)


@dataclass(frozen=True)
class CandidateTrainings:
    """Each candidate with each seed, posed to workers as if it were a question.

    All candidates get the same seeds and the same folds, so that luck is not what they differ by.

    Attributes:
        seeds: how many seeds each candidate is trained with.
    """

    definition: Definition
    candidates: Mapping[int, Point]
    seeds: int
    fold: Callable[[int], Fold]
    known: Mapping[Training, Earlier] = field(default_factory=dict)
    baseline: Point | None = None
    in_turn: bool = False

    @cached_property
    def space(self) -> Space:
        tree = {"candidate": {"choice": [*self.candidates]}, "seed": {"int": [0, self.seeds - 1]}}
        return parse_space(tree, lambda group: ())

    @property
    def seed(self) -> int:
        return self.definition.seed

    @property
    def trainings(self) -> Sequence[Training]:
        """The candidate and the seed of each training."""
        return [*itertools.product(self.candidates, range(self.seeds))]

    def fresh_seed(self, seed: int) -> int:
        """Derives a seed that nothing in the search has used: no other path has its length."""
        return derive(self.seed, seed, 0, 0)

    def job(self, candidate: int, seed: int) -> Job:
        """Builds the training of a candidate with a seed, both by their number."""
        return self.definition.job(
            self.candidates[candidate], self.fold(seed), self.fresh_seed(seed)
        )

    def make_objective(
        self, point: Point, number: int, data: TrainingData, attempt: Attempt = FIRST
    ) -> Objective:
        """Makes the objective that trains the candidate of a point with the seed of the point.

        If an earlier stage has done that, its result is taken as it is.
        """
        candidate, seed = point.values["candidate"], point.values["seed"]
        earlier = self.known.get((candidate, seed))
        if earlier is not None and (stored := earlier()) is not None:
            return stored
        return self.train_again(candidate, seed, data, number, attempt)

    def train_again(
        self, candidate: int, seed: int, data: TrainingData, number: int, attempt: Attempt
    ) -> Objective:
        return self.definition.make_objective(
            self.candidates[candidate],
            number,
            data,
            attempt,
            self.fresh_seed(seed),
            None if data.split is None else self.fold(seed),
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


def by_training(trials: Iterable[FrozenTrial]) -> dict[Training, FrozenTrial]:
    """Returns trials of later stages by their candidate and seed; of several the last."""
    return {
        (trial.params["candidate"], trial.params["seed"]): trial
        for trial in trials
        if {"candidate", "seed"} <= {*trial.params}
    }


def make_network(job: Job, weights: Mapping[str, Tensor], part: Part) -> nn.Module:
    """Makes the network of a job for the examples of a part, with weights."""
    network = job.model(shape=part.shape, outputs=part.outputs)
    network.load_state_dict(weights)
    return network


def judge_network(job: Job, weights: Mapping[str, Tensor], part: Part) -> tuple[Tensor, Tensor]:
    """Returns outputs and targets of the network of a job, both (n, …), on the CPU."""
    outputs, targets = evaluate_network(job, make_network(job, weights, part), part)
    return outputs.cpu(), targets.cpu()


def input_dtype(job: Job, part: Part) -> DtypeName:
    """Returns the type in which the network of a job takes inputs."""
    if not isinstance(part, Split) or part.inputs.is_floating_point():
        return "float32"
    network = job.model(shape=part.shape, outputs=part.outputs)
    name: Any = str(batch_dtype(job, network, part)).removeprefix("torch.")
    return name  # type: ignore[no-any-return]


def kept_epoch(curves: Mapping[str, Sequence[float]], keep: str, metric: Metric) -> int | None:
    """Returns the epoch, from 1, that was kept of a trial by its mean curve; None without one."""
    values = curves.get("value", ())
    if not values or keep == "last":
        return len(values) or None
    jobs = curves.get(JOBS, [1] * len(values))  # in turn, fewer come to the later epochs
    complete = [at for at, count in enumerate(jobs) if count == jobs[0]]
    return 1 + max(complete, key=lambda at: metric.sign * values[at])


def earlier_stages(
    search: StoredStudy, title: str, name: str
) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Yields this stage under other budgets and rules, if the present code made its trainings."""
    code = search.code()
    for study, parsed in search.later_stages():
        same = parsed is not None and parsed.title == title and study.study_name != name
        if same and code_of(study.user_attrs.get(QUESTION) or {}) == code:
            yield study.study_name, study._study_id, study.user_attrs


def earlier_trainings(
    search: StoredStudy, title: str, name: str, folder: Path | None, *, needed: bool
) -> Mapping[Training, Earlier]:
    """Returns the trainings of other stages, by candidate and seed."""
    known: dict[Training, Earlier] = {}
    for stage, study_id, _ in earlier_stages(search, title, name):
        weights = None if folder is None else folder / folder_name(stage)
        trials = search.storage.get_all_trials(study_id, deepcopy=False, states=COMPLETE)
        for training, trial in by_training(trials).items():
            source = trial.user_attrs.get(REUSED, f"{stage}, trial {trial.number}")
            # A loop may have kept nothing; and a network of before is not marked.
            kept = needed or title == RETRAINING or KEPT in trial.user_attrs
            file = weights / f"trial-{trial.number}.pt" if weights and kept else None
            known.setdefault(training, partial(earlier_objective, trial, source, file))
    return known


def earlier_test(search: StoredStudy, retraining: StoredStudy) -> tuple[Tested, bool] | None:
    """Returns the test of the same networks by an earlier answer, if there was one.

    Returns:
        what it gave, and whether that is of another stage. Else it is of a command that was killed
        before it wrote the answer, or of an answer that the run directory no longer holds.
    """
    own = retraining.optuna.user_attrs
    others = earlier_stages(search, RETRAINING, retraining.name)
    for attributes, elsewhere in ((own, False), *((its, True) for *_, its in others)):
        tested, asked = attributes.get(TESTED), attributes.get(QUESTION) or {}
        if tested and all(asked.get(key) == own[QUESTION][key] for key in ("candidates", "seeds")):
            return from_document(tested, Tested), elsewhere
    return None


def folder_name(stage: str) -> str:
    """Returns the name of the folder with the networks of a stage, by that of its stored study.

    Trials of other budgets and rules have the same numbers.
    """
    return hashlib.sha256(stage.encode()).hexdigest()[:12]
