"""The trainings of a later stage: each candidate with each fresh seed."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from optuna.pruners import BasePruner, NopPruner

from studyloom.data.split import Fold
from studyloom.data.training_data import TrainingData
from studyloom.metrics import Metric
from studyloom.question.jobs import build_jobs
from studyloom.question.objective import Attempt, Objective
from studyloom.question.question import FIRST, Question
from studyloom.question.rule import Cost
from studyloom.seeds import derive
from studyloom.space.language import parse_space
from studyloom.space.samplers import GridSampler
from studyloom.space.tree import Point, Space
from studyloom.storage.attributes import JOBS
from studyloom.study.race import Training
from studyloom.training.job import Job
from studyloom.winner.earlier import EarlierTraining


@dataclass(frozen=True)
class CandidateTrainings:
    """Each candidate with each seed, posed to workers as if it were a question.

    All candidates get the same seeds and the same folds, so that luck is not what they differ by.

    Args:
        question: the question of the search.
        candidates: points of the search, by the number of their trial.
        seeds: how many seeds each candidate is trained with; in a race, at most.
        fold: returns the training and validation indices of a seed.
        known: what earlier stages have trained, by candidate and seed.
        raced: in a race, the candidate and the seed of each slot so far; None for all of each.
    """

    question: Question
    candidates: Mapping[int, Point]
    seeds: int
    fold: Callable[[int], Fold]
    known: Mapping[tuple[int, int], EarlierTraining] = field(default_factory=dict)
    baseline: Point | None = None
    in_turn: bool = False
    raced: tuple[Training, ...] | None = None

    @cached_property
    def space(self) -> Space:
        tree = {"candidate": {"choice": [*self.candidates]}, "seed": {"int": [0, self.seeds - 1]}}
        return parse_space(tree, lambda group: ())

    @property
    def seed(self) -> int:
        return self.question.seed

    @property
    def count(self) -> int:
        """The number of trainings."""
        return len(self.trainings)

    @property
    def trainings(self) -> Sequence[Training]:
        """The candidate and the seed of each training."""
        if self.raced is not None:
            return self.raced
        return [*itertools.product(self.candidates, range(self.seeds))]

    def fresh_seed(self, seed: int) -> int:
        """Derives a seed that nothing in the search has used.

        No other path of a study has its length.

        Args:
            seed: its number, from 0.
        """
        return derive(self.seed, seed, 0, 0)

    def job(self, candidate: int, seed: int) -> Job:
        """Builds the training of a candidate with a seed, both by their number."""
        return build_jobs(
            self.question.at(self.candidates[candidate]), [self.fold(seed)], self.fresh_seed(seed)
        )[0]

    def make_objective(
        self, point: Point, number: int, data: TrainingData, attempt: Attempt = FIRST
    ) -> Objective:
        """Makes the objective that trains the candidate of a point with the seed of the point.

        If an earlier stage has done that, its result is taken as it is.
        """
        candidate, seed = point.values["candidate"], point.values["seed"]
        earlier = self.known.get((candidate, seed))
        if earlier is not None and (stored := earlier.objective()) is not None:
            return stored
        return self.question.make_objective(
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
        return self.question.trains_on(data)

    @property
    def keeps_state(self) -> tuple[str, ...]:
        """Nothing does: the grid is the same in every process."""
        return ()

    def sampler(self, number: int) -> GridSampler:
        sampler = GridSampler(self.space)
        if self.raced is not None:
            points = {(p.values["candidate"], p.values["seed"]): p for p in sampler.points}
            sampler.points = [points[training] for training in self.raced]
        return sampler

    def pruner(self) -> BasePruner:
        return NopPruner()


def kept_epoch(curves: Mapping[str, Sequence[float]], keep: str, metric: Metric) -> int | None:
    """Returns the epoch that was kept of a trial, by its mean curve over folds and seeds.

    Args:
        curves: as an objective stores them.
        keep: last or best.
        metric: of the study.

    Returns:
        the number of the epoch; None if there are no curves.
    """
    values = curves.get("value", ())
    if not values or keep == "last":
        return len(values) or None
    jobs = curves.get(JOBS, [1] * len(values))  # in turn, fewer come to the later epochs
    complete = [at for at, count in enumerate(jobs) if count == jobs[0]]
    return 1 + max(complete, key=lambda at: metric.sign * values[at])
