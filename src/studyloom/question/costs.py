"""What a network may cost: parameters, operations and time, which are known before it is trained."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn

from studyloom.data.split import Split
from studyloom.errors import ConfigError
from studyloom.text import nearest
from studyloom.training.job import Job

EXPRESSION = re.compile(r"\s*(<=|>=)\s*([-+.\w]+)\s*")
WARM_UP, TIMED = (
    5,
    30,
)  # calls of a network before its latency is measured, and the calls whose median that is


@dataclass(frozen=True)
class Limit:
    """A quantity and its bound. upper: whether more than that is too much; else less is too little."""

    quantity: str
    bound: float
    upper: bool

    def excess(self, value: float) -> float:
        """How far a value is beyond the bound, as a share of it; at most 0 where it keeps to it."""
        beyond = value - self.bound if self.upper else self.bound - value
        return beyond / (abs(self.bound) or 1.0)

    def __str__(self) -> str:
        return f"{self.quantity} {'<=' if self.upper else '>='} {self.bound:,.15g}"


@dataclass(frozen=True)
class Cost:
    """A quantity of one network, and its limit if it has one."""

    quantity: str
    value: float
    limit: Limit | None = None

    @property
    def excess(self) -> float:
        return -1.0 if self.limit is None else self.limit.excess(self.value)

    def __str__(self) -> str:
        return f"{self.quantity} is {self.value:,.6g}, and objective.constraints has {self.limit}"


def count_parameters(model: nn.Module, example: torch.Tensor) -> float:
    """How many numbers are trained."""
    return float(
        sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    )


def count_flops(model: nn.Module, example: torch.Tensor) -> float:
    """Floating-point operations of one example; a multiplication and its addition are two. PyTorch counts them."""
    from torch.utils.flop_counter import FlopCounterMode  # it takes PyTorch's compiler along

    with FlopCounterMode(display=False) as counter:
        model(example)
    return float(counter.get_total_flops())


def measure_latency(model: nn.Module, example: torch.Tensor) -> float:
    """Milliseconds of one example alone, the median of 30, on the device and with the threads of this worker."""

    def call() -> float:
        began = perf_counter()
        model(example)
        if example.is_cuda:
            torch.cuda.synchronize()
        return perf_counter() - began

    for _ in range(WARM_UP):
        call()
    return 1e3 * median(call() for _ in range(TIMED))


MEASURES: dict[str, Callable[[nn.Module, torch.Tensor], float]] = {
    "parameters": count_parameters,
    "flops": count_flops,
    "latency_ms": measure_latency,
}


def parse_limits(section: Any, known: Mapping[str, object] = MEASURES) -> list[Limit]:
    """The limits of `objective.constraints`, such as {parameters: "<= 100_000", latency_ms: "<= 2"}.

    Args:
        known: the quantities that there are.

    Raises:
        ConfigError: all that is no limit, or of a quantity that does not exist.
    """
    if section is None:
        return []
    if not isinstance(section, Mapping):
        raise ConfigError(
            [
                f"objective.constraints: {section!r} is no mapping; write {{parameters: '<= 100_000'}}"
            ]
        )
    mistakes, limits = [], []
    for quantity, expression in section.items():
        where = f"objective.constraints.{quantity}"
        if quantity not in known:
            has = (
                f"there are {', '.join(known)}"
                if known
                else "a function of your own has none that is known"
            )
            mistakes.append(f"{where}: no such quantity; {has}{nearest(quantity, [*known])}")
            continue
        found = EXPRESSION.fullmatch(expression) if isinstance(expression, str) else None
        try:
            limits.append(Limit(str(quantity), float(found[2]), found[1] == "<="))  # type: ignore[index]
        except (TypeError, ValueError):
            mistakes.append(f"{where}: {expression!r} is no limit; write '<= 100_000' or '>= 1'")
    if mistakes:
        raise ConfigError(mistakes)
    return limits


@torch.inference_mode()
def measure_costs(
    quantities: Collection[str], limits: Sequence[Limit], job: Job, split: Split
) -> list[Cost]:
    """What a job's network costs, before it is trained; random numbers of the caller's stay as they are.

    quantities: what is to be known beside what has a limit.
    """
    limit_of = {limit.quantity: limit for limit in limits}
    with torch.random.fork_rng(devices=[]):
        model = job.model(shape=split.shape, outputs=split.outputs).to(split.inputs.device).eval()
        costs = {
            name: MEASURES[name](model, split.inputs[:1])
            for name in dict.fromkeys([*limit_of, *quantities])
        }
    return [Cost(name, cost, limit_of.get(name)) for name, cost in costs.items()]
