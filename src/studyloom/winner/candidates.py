"""TODO winner.candidates."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from optuna.pruners import BasePruner, NopPruner
from torch import Tensor

from studyloom.data.training_data import TrainingData
from studyloom.question.costs import Cost
from studyloom.question.jobs import build_jobs
from studyloom.question.objective import Objective
from studyloom.question.question import Question
from studyloom.seeds import derive
from studyloom.space.grid import GridSampler
from studyloom.space.language import parse_space
from studyloom.space.tree import Point, Space
from studyloom.training.job import Job


@dataclass(frozen=True)
class CandidateTrainings:
    """Each candidate with each seed: asked for as a question whose points these are.

    candidates: points of the search by the number of their trial. part: the training and validation indices of a seed,
    the same for all candidates, as are the seeds, so that their differences are not those of luck.
    """

    question: Question
    candidates: Mapping[int, Point]
    seeds: int
    part: Callable[[int], tuple[Tensor, Tensor]]
    baseline: Point | None = None
    in_turn: bool = False

    @cached_property
    def space(self) -> Space:
        tree = {"candidate": {"choice": [*self.candidates]}, "seed": {"int": [0, self.seeds - 1]}}
        return parse_space(tree, lambda group: ())

    @property
    def seed(self) -> int:
        return self.question.seed

    @property
    def count(self) -> int:
        return len(self.candidates) * self.seeds

    def fresh(self, seed: int) -> int:
        """A seed by its number; its path is as long as no other's in a study: fresh to all that the search has seen."""
        return derive(self.seed, seed, 0, 0)

    def job(self, candidate: int, seed: int) -> Job:
        return build_jobs(
            self.question.at(self.candidates[candidate]), [self.part(seed)], self.fresh(seed)
        )[0]

    def make_objective(self, point: Point, number: int, data: TrainingData) -> Objective:
        """Trains the candidate of a point with the seed and the fold of the point."""
        candidate, seed = point.values["candidate"], point.values["seed"]
        return self.question.make_single_objective(
            self.candidates[candidate], self.fresh(seed), data, lambda: self.part(seed)
        )

    def measure_costs(self, point: Point, data: TrainingData) -> list[Cost]:
        """Nothing: a candidate has kept to the limits in the search."""
        return []

    def provenance_sections(self, point: Point) -> None:
        """A candidate's own trial says what it is made of."""

    def sampler(self, number: int) -> GridSampler:
        return GridSampler(self.space)

    def pruner(self) -> BasePruner:
        return NopPruner()
