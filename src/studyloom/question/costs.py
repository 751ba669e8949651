"""The costs of a network or a loop and their limits: parameters, operations, latency, any other.

They are known before the network is trained, so that a trial beyond a limit is not trained at all.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn

from studyloom.data.training_data import Part
from studyloom.errors import ConfigError
from studyloom.text import nearest
from studyloom.training.batches import make_batches
from studyloom.training.job import Job
from studyloom.training.parameter_groups import freeze
from studyloom.training.steps import apply_network

EXPRESSION = re.compile(r"\s*(<=|>=)\s*([-+.\w]+)\s*")
WARM_UP = 5  # calls of a network before its latency is measured
TIMED = 30  # calls whose median is the latency


@dataclass(frozen=True)
class Limit:
    """A bound on a quantity that a network costs.

    Args:
        quantity: one of MEASURES.
        bound: the largest value that is allowed, or the smallest.
        upper: whether the bound is the largest value.
    """

    quantity: str
    bound: float
    upper: bool

    def excess(self, value: float) -> float:
        """Returns how far a value is beyond the bound, as a share of the bound.

        It is at most 0 for a value that satisfies the limit, which is how Optuna reads constraints.
        """
        beyond = value - self.bound if self.upper else self.bound - value
        return beyond / (abs(self.bound) or 1.0)

    def __str__(self) -> str:
        return f"{self.quantity} {'<=' if self.upper else '>='} {self.bound:,.15g}"


@dataclass(frozen=True)
class Cost:
    """What one network costs.

    Args:
        quantity: one of MEASURES.
        value: parameters, operations or milliseconds.
        limit: of the quantity; None if it has none.
    """

    quantity: str
    value: float
    limit: Limit | None = None

    @property
    def excess(self) -> float:
        """How far the value is beyond the limit, as a share of it; -1 without a limit."""
        return -1.0 if self.limit is None else self.limit.excess(self.value)

    def __str__(self) -> str:
        return f"{self.quantity} is {self.value:,.6g}, and objective.constraints has {self.limit}"


def count_parameters(model: nn.Module, example: Any) -> float:
    """Counts the numbers that are trained; the example is not used."""
    return float(
        sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    )


def count_flops(model: nn.Module, example: Any) -> float:
    """Counts the floating-point operations of one forward pass, with PyTorch's FlopCounterMode.

    A multiplication and its addition are two operations.

    Args:
        model: in eval mode.
        example: a batch of one example, on the device of the model.
    """
    from torch.utils.flop_counter import FlopCounterMode  # it imports PyTorch's compiler

    with FlopCounterMode(display=False) as counter:
        apply_network(model, example)
    return float(counter.get_total_flops())


def measure_latency(model: nn.Module, example: Any) -> float:
    """Measures the milliseconds of one forward pass, on the device and threads of this worker.

    Args:
        model: in eval mode.
        example: a batch of one example, on the device of the model.

    Returns:
        The median of 30 calls.
    """

    on_gpu = any(parameter.is_cuda for parameter in model.parameters())

    def call() -> float:
        began = perf_counter()
        apply_network(model, example)
        if on_gpu:
            torch.cuda.synchronize()
        return perf_counter() - began

    for _ in range(WARM_UP):
        call()
    return 1e3 * median(call() for _ in range(TIMED))


MEASURES: dict[str, Callable[[nn.Module, Any], float]] = {
    "parameters": count_parameters,
    "flops": count_flops,
    "latency_ms": measure_latency,
}


def parse_limits(section: Any, known: Mapping[str, object] | None = MEASURES) -> list[Limit]:
    """Parses `objective.constraints`, such as {parameters: "<= 100_000", latency_ms: "<= 2"}.

    Args:
        section: the mapping of the config; None for no limits.
        known: the quantities that can have a limit; None for any.

    Raises:
        ConfigError: every value that is not a limit, and every unknown quantity.
    """
    if section is None:
        return []
    if not isinstance(section, Mapping):
        raise ConfigError(
            [
                "objective.constraints must be a mapping of quantities to limits, such as "
                f"{{parameters: '<= 100_000'}}; got {section!r}"
            ]
        )
    mistakes, limits = [], []
    for quantity, expression in section.items():
        where = f"objective.constraints.{quantity}"
        if known is not None and quantity not in known:
            options = f"there are {', '.join(known)}"
            mistakes.append(f"{where}: unknown quantity; {options}{nearest(quantity, [*known])}")
            continue
        limit = _parse_limit(str(quantity), expression)
        if limit is None:
            mistakes.append(
                f"{where} must be a limit such as '<= 100_000' or '>= 1'; got {expression!r}"
            )
        else:
            limits.append(limit)
    if mistakes:
        raise ConfigError(mistakes)
    return limits


def _parse_limit(quantity: str, expression: Any) -> Limit | None:
    """The limit that an expression means, or None if it does not mean one."""
    match = EXPRESSION.fullmatch(expression) if isinstance(expression, str) else None
    if match is None:
        return None
    try:
        return Limit(quantity, float(match[2]), match[1] == "<=")
    except ValueError:
        return None


@torch.inference_mode()
def measure_costs(
    quantities: Collection[str], limits: Sequence[Limit], job: Job, split: Part
) -> list[Cost]:
    """Builds the network of a job and measures what it costs.

    The caller's random state stays as it is.

    Args:
        quantities: what to measure beside the quantities that have a limit; of MEASURES.
        limits: of the costs.
        job: whose network it is.
        split: whose first example is measured on.

    Returns:
        A cost for each quantity, those with a limit first.
    """
    limit_of = {limit.quantity: limit for limit in limits}
    with torch.random.fork_rng(devices=[]):
        model = job.model(shape=split.shape, outputs=split.outputs).to(split.device).eval()
        freeze(model, job.groups)
        batches = make_batches(job, split)
        batches.fit(model)
        example = next(batches.part(torch.zeros(1, dtype=torch.int64, device=split.device)))[0]
        costs = {
            name: MEASURES[name](model, example) for name in dict.fromkeys([*limit_of, *quantities])
        }
    return [Cost(name, cost, limit_of.get(name)) for name, cost in costs.items()]
