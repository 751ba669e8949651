"""Numbers that a user's own code gives: checked, and converted from any library."""

import math
from collections.abc import Sequence
from statistics import stdev
from typing import Any

import numpy as np
from torch import Tensor

from studyloom.errors import UndefinedMetric


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
