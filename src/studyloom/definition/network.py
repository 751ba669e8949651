"""The definition of a study whose trials train networks in PyTorch, and what a network costs.

Its parameters and operations are counted before it is trained.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from studyloom.data.examples import Part
from studyloom.data.split import Fold, Folds
from studyloom.data.training_data import TrainingData
from studyloom.definition.definition import FIRST_ATTEMPT, Definition
from studyloom.definition.preflight import try_networks
from studyloom.objectives.jobs import RECORDED, build_jobs, read_network_objectives, steps_on_value
from studyloom.objectives.objective import Attempt, NetworkObjective
from studyloom.space.rule import Condition, Cost
from studyloom.space.tree import Configuration
from studyloom.training.batches import make_batches
from studyloom.training.device import describe_unused_accelerator
from studyloom.training.job import Job
from studyloom.training.optimizer import freeze
from studyloom.training.steps import BatchContent, apply_network
from studyloom.training.trainer import Training


@dataclass(frozen=True)
class NetworkDefinition(Definition):
    """The definition of a study whose trials train networks; see `Definition`."""

    trains_networks = True
    read_objectives = staticmethod(read_network_objectives)

    def build_job(self, configuration: Configuration, fold: Fold, seed: int) -> Job:
        """Builds the job of a single training, with the first seed that is derived from `seed`."""
        return build_jobs(self.compose_config(configuration), [fold], seed)[0]

    def build_jobs(self, configuration: Configuration, folds: Folds, number: int) -> list[Job]:
        """Builds the jobs of a trial, one for each fold and seed.

        Args:
            number: the number of the trial, from which the seeds of the jobs are derived.
        """
        return build_jobs(self.compose_config(configuration), folds, self.trial_seed(number))

    def make_objective(
        self,
        configuration: Configuration,
        number: int,
        data: TrainingData,
        attempt: Attempt = FIRST_ATTEMPT,
        seed: int | None = None,
        fold: Fold | None = None,
    ) -> NetworkObjective:
        """Makes the objective of a trial: with all seeds and folds, or with a single one of each.

        Args:
            number: the number of the trial in its stage; without a `seed`, the seeds are derived
                from it.
            attempt: not used, since every network can resume.
            seed: the seed of a single training, as in the re-evaluation; None for all seeds.
            fold: the fold of a single training, which a `seed` requires.
        """
        assert data.split is not None
        if seed is None:
            jobs = self.build_jobs(configuration, data.folds, number)
        else:
            assert fold is not None
            jobs = [self.build_job(configuration, fold, seed)]
        return NetworkObjective(Training(jobs, data.split))

    def with_recorded_values(
        self, configuration: Configuration, values: Sequence[float]
    ) -> Configuration:
        """Records the values in the configuration's scheduler, if that steps on values."""
        if not values or not steps_on_value(self.compose_config(configuration)):
            return configuration
        values_with_record = {**configuration.values, f"scheduler.{RECORDED}": [*values]}
        return replace(configuration, values=values_with_record)

    def measure_costs(self, configuration: Configuration, data: TrainingData) -> list[Cost]:
        """Measures the costs of a configuration's network that have a limit or are minimized."""
        objectives_after_metric = self.objectives[1:]
        minimized_costs = [objective.name for objective in objectives_after_metric]
        if not self.limits and not minimized_costs:
            return []
        assert data.split is not None
        # A trial's number, folds and seeds do not change the network, so that any job will do.
        jobs = self.build_jobs(configuration, data.folds, number=0)
        return measure_network(minimized_costs, self.limits, jobs[0], data.split)

    def notes(self, data: TrainingData) -> list[str]:
        unused_accelerator = describe_unused_accelerator()
        if unused_accelerator is None:
            return []
        return [unused_accelerator]

    def try_out(self, data: TrainingData) -> Iterable[str]:
        return try_networks(self, data)


def count_parameters(model: nn.Module, example: BatchContent) -> float:
    """Counts the numbers that are trained; the example is not used."""
    count = 0
    for weight in model.parameters():
        if weight.requires_grad:
            count += weight.numel()
    return float(count)


def count_flops(model: nn.Module, example: BatchContent) -> float:
    """Counts the floating-point operations of one forward pass, with PyTorch's FlopCounterMode.

    A multiplication and its addition are two operations.
    """
    from torch.utils.flop_counter import FlopCounterMode  # it imports PyTorch's compiler

    with FlopCounterMode(display=False) as counter:
        apply_network(model, example)
    return float(counter.get_total_flops())


# Called with a network in eval mode, and a batch of one example on its device.
MEASURES: dict[str, Callable[[nn.Module, BatchContent], float]] = {
    "parameters": count_parameters,
    "flops": count_flops,
}


@torch.inference_mode()
def measure_network(
    quantities: Collection[str], limits: Sequence[Condition], job: Job, split: Part
) -> list[Cost]:
    """Measures what a job's network costs on the first example of a set.

    The random state is not changed.

    Args:
        quantities: the costs to measure next to those that have a limit, by their names in
            MEASURES.
        limits: the limits of costs.

    Returns:
        The costs, each once: first those with a limit.
    """
    limits_by_name = {limit.name: limit for limit in limits}
    names = dict.fromkeys([*limits_by_name, *quantities])  # each once
    with torch.random.fork_rng(devices=[]):
        model = job.model(shape=split.shape, outputs=split.outputs).to(split.device).eval()
        freeze(model, job.groups)  # frozen weights are not counted as parameters
        batches = make_batches(job, split)
        batches.choose_input_dtype(model)
        first_index = torch.zeros(1, dtype=torch.int64, device=split.device)
        batch = next(batches.load_batches(first_index))
        costs = []
        for name in names:
            value = MEASURES[name](model, batch.content)
            costs.append(Cost(name, value, limits_by_name.get(name)))
        return costs
