"""The definition of a study whose trials train networks in PyTorch."""

from collections.abc import Iterable
from dataclasses import dataclass

from omegaconf import DictConfig

from studyloom.data.split import Fold, Folds
from studyloom.data.training_data import TrainingData
from studyloom.definition.costs import measure_costs
from studyloom.definition.definition import FIRST, Definition
from studyloom.definition.jobs import build_jobs, network_goals
from studyloom.definition.objective import Attempt, NetworkObjective
from studyloom.definition.preflight import try_networks
from studyloom.definition.rule import Cost
from studyloom.space.tree import Point
from studyloom.training.job import Job
from studyloom.training.trainer import Training


@dataclass(frozen=True)
class NetworkDefinition(Definition):
    """The definition of a study whose trials train networks; see `Definition`."""

    trains_networks = True
    build_goals = staticmethod(network_goals)

    @staticmethod
    def is_tested(cfg: DictConfig) -> bool:
        return True

    @staticmethod
    def build_job(cfg: DictConfig, fold: Fold, seed: int) -> Job:
        return build_jobs(cfg, [fold], seed)[0]

    def jobs(self, point: Point, folds: Folds, number: int) -> list[Job]:
        """Returns the jobs of a trial, whose number and the study's seed decide their seeds."""
        return build_jobs(self.at(point), folds, self.trial_seed(number))

    def make_objective(
        self,
        point: Point,
        number: int,
        data: TrainingData,
        attempt: Attempt = FIRST,
        seed: int | None = None,
        fold: Fold | None = None,
    ) -> NetworkObjective:
        assert data.split is not None
        if seed is None:
            jobs = self.jobs(point, data.folds, number)
        else:
            assert fold is not None
            jobs = [self.job(point, fold, seed)]
        in_turn = self.in_turn and seed is None
        training = Training(jobs, data.split, in_turn=in_turn, ranks=self.ranks)
        return NetworkObjective(training, self.recipe(point, number, attempt, seed, fold))

    def measure_costs(self, point: Point, data: TrainingData) -> list[Cost]:
        """Measures the costs of a point's network that are limited or minimized."""
        costs = [goal.name for goal in self.goals[1:]]
        if not self.limits and not costs:
            return []
        assert data.split is not None
        jobs = self.jobs(point, data.folds, 0)
        together = 1 if self.in_turn else len(jobs)
        return measure_costs(costs, self.limits, jobs[0], data.split, together)

    def try_out(self, data: TrainingData) -> Iterable[str]:
        return try_networks(self, data)
