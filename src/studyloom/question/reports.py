"""What a loop of the user's own is told of where it runs, and the numbers that it reports."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from studyloom.errors import UndefinedMetric
from studyloom.training.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Report:
    """What a loop reported, as a Step.

    Args:
        number: by which it is compared with those of other trials.
        value: that is compared.
        seconds: since the report before, or since the call.
        step: the number that the loop gave.
        further: other quantities, by name.
    """

    number: int
    value: float
    seconds: float
    step: int
    further: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """What a loop may know of where it runs, and as what.

    Args:
        trial: the number of the trial in its stage.
        attempt: how many workers have begun the trial, this one included.
        stage: search, re-evaluation or retraining; or test.
        fold: the number of the fold, from 0.
        seed: of this call; the random numbers of Python, NumPy and PyTorch start from it.
        device: to train on.
        folder: of this trial and fold alone; None for a temporary one.
        train: what to train on, of the fold; None without `data`.
        valid: what to validate on, of the fold; None without `data`.
        ranks: the processes that train the trial together.
    """

    trial: int
    attempt: int
    stage: str
    fold: int
    seed: int
    device: torch.device
    folder: Path | None = None
    train: Dataset[Any] | None = None
    valid: Dataset[Any] | None = None
    ranks: Ranks = ALONE


def finite(value: Any, what: str) -> float:
    """Converts a number of any library to a float.

    Args:
        value: such as a NumPy scalar, or a tensor of one number.
        what: the objective did, for the error: "returned nan".

    Raises:
        UndefinedMetric: the value is not a number, or not finite.
    """
    if isinstance(value, Tensor):
        value = value.detach()  # else torch warns of its gradient
    try:
        number = math.nan if isinstance(value, str | bool | None) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UndefinedMetric(f"the objective {what}: expected a finite number")
    return number


def check_step(step: Any, before: int) -> int:
    """Returns the number of a step as an int.

    Raises:
        UndefinedMetric: it is no whole number larger than `before`.
    """
    if isinstance(step, bool) or not isinstance(step, int | np.integer) or step <= before:
        raise UndefinedMetric(
            f"the objective reported at step {step!r}: expected a whole number of at least "
            f"{before + 1}"
        )
    return int(step)


def standard_error_of(values: Sequence[float]) -> float | None:
    """Returns the standard error of the mean of values, or None for fewer than two."""
    return None if len(values) < 2 else stdev(values) / math.sqrt(len(values))


class Unstopped:
    """A rank that is not rank 0 is stopped by it alone."""

    alone: str | None = None

    def __call__(self) -> bool:
        return False

    def interruptible(self) -> AbstractContextManager[None]:
        return nullcontext()

    def give_way(self) -> None:
        raise AssertionError("rank 0 gives way")
