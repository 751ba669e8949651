"""The ranges of a search space in Python: each returns what YAML holds in its place."""

from collections.abc import Sequence
from typing import Any

Range = dict[str, Any]


def Int(
    low: int, high: int, *, log: bool = False, step: int | None = None, default: int | None = None
) -> Range:
    """Returns a range of integers, both ends included: `Int(4, 256, log=True)`.

    Args:
        default: the value of the baseline.
    """
    return _range("int", [low, high], log, step, default)


def Float(
    low: float,
    high: float,
    *,
    log: bool = False,
    step: float | None = None,
    default: float | None = None,
) -> Range:
    """Returns a range of numbers: `Float(1e-4, 1e-1, log=True)`.

    Args:
        default: the value of the baseline.
    """
    return _range("float", [low, high], log, step, default)


def Choice(*choices: Any, default: Any = None) -> Range:
    """Returns a choice among strings, numbers, True, False and None: `Choice("relu", "tanh")`.

    Args:
        choices: the values, or one list of them as in Optuna.
        default: the value of the baseline.
    """
    if len(choices) == 1 and isinstance(choices[0], list | tuple):
        choices = (*choices[0],)
    return {"choice": [*choices]} | ({} if default is None else {"default": default})


def List(item: Range, length: int | str | Range, *, default: Sequence[Any] | None = None) -> Range:
    """Returns a list of values: `List(Int(16, 512, log=True), length=Int(1, 3))`.

    Args:
        length: a number, a range, or the name of another list that is as long.
        default: the list of the baseline.
    """
    return {"list": item, "length": length} | ({} if default is None else {"default": default})


def _range(kind: str, ends: list[Any], log: bool, step: Any, default: Any) -> Range:
    further = {"log": log or None, "step": step, "default": default}
    return {kind: ends} | {key: value for key, value in further.items() if value is not None}
