"""What the tree needs of Optuna's distributions: counting, indexing and checking their values."""

import math
from decimal import Decimal
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from studyloom.text import as_yaml, kind_of, nearest


def count_values(distribution: BaseDistribution) -> float:
    """Returns the number of values of a distribution; infinity if it is continuous."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            return len(choices)
        case IntDistribution(low=low, high=high, step=step):
            return (high - low) // step + 1
        case FloatDistribution(low=low, high=high, step=step):
            if step is not None:
                return round((high - low) / step) + 1
            return 1 if low == high else math.inf
    raise AssertionError(distribution)


def nth_value(distribution: BaseDistribution, index: int) -> Any:
    """Returns a value of a finite distribution as one would write it: 0.3, and not 3 × 0.1.

    Args:
        distribution: has finitely many values.
        index: the position of the value, from 0 to `count_values(distribution)` - 1.
    """
    match distribution:
        case CategoricalDistribution(choices=choices):
            return choices[index]
        case IntDistribution(low=low, step=step):
            return low + index * step
        case FloatDistribution(low=low, step=step):
            return low if step is None else float(Decimal(str(low)) + index * Decimal(str(step)))
    raise AssertionError(distribution)


def why_not(distribution: BaseDistribution, value: Any) -> str | None:
    """Explains why a distribution cannot give a value.

    Returns:
        The rest of a sentence that begins with the value, such as "is outside its range [1, 8]";
        None if the distribution can give it.
    """
    match distribution:
        case CategoricalDistribution(choices=choices):
            if any(value == choice and type(value) is type(choice) for choice in choices):
                return None
            return f"is not among [{', '.join(map(as_yaml, choices))}]{nearest(value, choices)}"
        case IntDistribution(low=low, high=high, step=step):
            if type(value) is not int:
                return f"is {kind_of(value)}, but must be a whole number"
            if not low <= value <= high:
                return f"is outside its range [{low}, {high}]"
            if (value - low) % step == 0:
                return None
            return f"is not one of {low}, {low + step}, … {high}"
        case FloatDistribution(low=low, high=high, step=step):
            if type(value) not in (int, float):
                return f"is {kind_of(value)}, but must be a number"
            if not low <= value <= high:
                return f"is outside its range [{low:g}, {high:g}]"
            steps = (value - low) / step if step is not None else 0.0
            if abs(steps - round(steps)) < 1e-8:
                return None
            return f"is not one of {low:g}, {low + (step or 0):g}, …"
    raise AssertionError(distribution)


def is_ordered(distribution: BaseDistribution) -> bool:
    """Whether the values of a distribution are numbers, of which near ones are alike.

    Choices are if they are numbers that rise, such as [16, 32, 64].
    """
    if not isinstance(distribution, CategoricalDistribution):
        return True
    choices = distribution.choices
    numbers = all(type(choice) in (int, float) for choice in choices)
    return numbers and list(choices) == sorted(choices)  # type: ignore[type-var]


def place_in(distribution: BaseDistribution, value: Any) -> float:
    """Returns where a value lies in a distribution that can give it.

    Returns:
        From 0 to 1 for ordered values, on the scale on which they are drawn; of choices that are
        not ordered, the index.
    """
    match distribution:
        case CategoricalDistribution(choices=choices):
            index = float(choices.index(value))
            return index / max(1, len(choices) - 1) if is_ordered(distribution) else index
        case (
            IntDistribution(low=low, high=high, log=log)
            | FloatDistribution(low=low, high=high, log=log)
        ):
            scale = math.log if log else float
            width = scale(high) - scale(low)
            return (scale(value) - scale(low)) / width if width else 0.0
    raise AssertionError(distribution)
