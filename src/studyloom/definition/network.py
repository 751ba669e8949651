"""The definition of a study whose trials train networks in PyTorch, and what a network costs.

Its parameters, operations, milliseconds and memory are measured before it is trained.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn

from studyloom.data.split import Fold, Folds
from studyloom.data.training_data import Part, TrainingData
from studyloom.definition.definition import FIRST, Definition
from studyloom.definition.jobs import RECORDED, build_jobs, network_goals, steps_on_value
from studyloom.definition.objective import Attempt, NetworkObjective
from studyloom.definition.preflight import try_networks
from studyloom.definition.rule import Condition, Cost
from studyloom.metrics import MEMORY
from studyloom.space.tree import Point
from studyloom.training.batches import make_batches
from studyloom.training.job import Job
from studyloom.training.memory import predict_memory
from studyloom.training.optimizer import freeze
from studyloom.training.steps import apply_network
from studyloom.training.trainer import Training

WARM_UP = 5  # calls of a network before its latency is measured
TIMED = 30  # calls whose median is the latency


@dataclass(frozen=True)
class NetworkDefinition(Definition):
    """The definition of a study whose trials train networks; see `Definition`."""

    trains_networks = True
    read_goals = staticmethod(network_goals)

    def job(self, point: Point, fold: Fold, seed: int) -> Job:
        return build_jobs(self.at(point), [fold], seed)[0]

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
        return NetworkObjective(Training(jobs, data.split, in_turn=in_turn))

    def with_recorded_values(self, point: Point, values: Sequence[float]) -> Point:
        if not values or not steps_on_value(self.at(point)):
            return point
        return replace(point, values={**point.values, f"scheduler.{RECORDED}": [*values]})

    def measure_costs(self, point: Point, data: TrainingData) -> list[Cost]:
        """Measures the limited and minimized costs of a configuration's network."""
        costs = [goal.name for goal in self.goals[1:]]
        if not self.limits and not costs:
            return []
        assert data.split is not None
        jobs = self.jobs(point, data.folds, 0)
        together = 1 if self.in_turn else len(jobs)
        return measure_costs(costs, self.limits, jobs[0], data.split, together)

    def try_out(self, data: TrainingData) -> Iterable[str]:
        return try_networks(self, data)


def count_parameters(model: nn.Module, example: Any) -> float:
    """Counts the numbers that are trained; the example is not used."""
    return float(sum(weight.numel() for weight in model.parameters() if weight.requires_grad))


def count_flops(model: nn.Module, example: Any) -> float:
    """Counts the floating-point operations of one forward pass, with PyTorch's FlopCounterMode.

    A multiplication and its addition are two operations.
    """
    from torch.utils.flop_counter import FlopCounterMode  # it imports PyTorch's compiler

    with FlopCounterMode(display=False) as counter:
        apply_network(model, example)
    return float(counter.get_total_flops())


def measure_latency(model: nn.Module, example: Any) -> float:
    """Measures the milliseconds of one forward pass: the median of 30, on this worker's device."""
    on_gpu = any(parameter.device.type != "cpu" for parameter in model.parameters())

    def call() -> float:
        began = perf_counter()
        apply_network(model, example)
        if on_gpu:
            torch.accelerator.synchronize()
        return perf_counter() - began

    for _ in range(WARM_UP):
        call()
    return 1e3 * median(call() for _ in range(TIMED))


# Called with a network in eval mode, and a batch of one example on its device. MEMORY is that of a
# training, and not of a call.
MEASURES: dict[str, Callable[[nn.Module, Any], float]] = {
    "parameters": count_parameters,
    "flops": count_flops,
    "latency_ms": measure_latency,
}


@torch.inference_mode()
def measure_costs(
    quantities: Collection[str],
    limits: Sequence[Condition],
    job: Job,
    split: Part,
    together: int = 1,
) -> list[Cost]:
    """Measures what a job's network costs on the first example of a set, limited costs first.

    The random state is not changed. A network beyond its limit of memory is not moved to its
    device, and its other costs stay unknown.

    Args:
        quantities: those of COSTS to measure in addition to the limited ones.
        together: how many such jobs are trained in lockstep.
    """
    limit_of = {limit.name: limit for limit in limits}
    names = dict.fromkeys([*limit_of, *quantities])
    costs = []
    if MEMORY in names:
        costs = [Cost(MEMORY, predict_memory(job, split, together), limit_of.get(MEMORY))]
        if costs[0].excess > 0:
            return costs
    with torch.random.fork_rng(devices=[]):
        model = job.model(shape=split.shape, outputs=split.outputs).to(split.device).eval()
        freeze(model, job.groups)
        batches = make_batches(job, split)
        batches.fit(model)
        example = next(batches.part(torch.zeros(1, dtype=torch.int64, device=split.device)))[0]
        measured = {name: MEASURES[name](model, example) for name in names if name != MEMORY}
    return [*costs, *(Cost(name, cost, limit_of.get(name)) for name, cost in measured.items())]
