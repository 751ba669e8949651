"""The ranges of a search space in Python: each function returns the mapping that YAML has."""

from collections.abc import Sequence
from typing import Any

Range = dict[str, Any]


def Int(
    low: int, high: int, *, log: bool = False, step: int | None = None, default: int | None = None
) -> Range:
    """Returns a range of integers, such as the width of a layer.

    Args:
        low: the least value.
        high: the greatest value, included.
        log: True: drawn on a logarithmic scale, so that 4 to 8 is as likely as 128 to 256.
        step: the distance of neighboring values, from `low` on; None: 1. Not with `log`.
        default: the baseline's value; None: the default of the config or of the function.

    Examples:
        >>> Int(4, 256, log=True)
        {'int': [4, 256], 'log': True}
    """
    return _make_range({"int": [low, high]}, log=log, step=step, default=default)


def Float(
    low: float,
    high: float,
    *,
    log: bool = False,
    step: float | None = None,
    default: float | None = None,
) -> Range:
    """Returns a range of floats, such as a learning rate.

    Args:
        low: the least value; above 0 with `log`.
        high: the greatest value, included.
        log: True: drawn on a logarithmic scale, so that each power of ten is equally likely.
        step: the distance of neighboring values, from `low` on; None: any value. Not with `log`.
        default: the baseline's value; None: the default of the config or of the function.

    Examples:
        >>> Float(0.0, 0.5, default=0.1)
        {'float': [0.0, 0.5], 'default': 0.1}
    """
    return _make_range({"float": [low, high]}, log=log, step=step, default=default)


def Choice(*choices: Any, default: Any = None) -> Range:
    """Returns a choice among strings, numbers, True, False and None.

    Args:
        choices: the values, or one list of them as in Optuna.
        default: the baseline's value; None: the default of the config or of the function.

    Examples:
        >>> Choice("relu", "tanh")
        {'choice': ['relu', 'tanh']}
    """
    if len(choices) == 1 and isinstance(choices[0], list | tuple):
        choices = tuple(choices[0])
    return _make_range({"choice": list(choices)}, default=default)


def List(item: Range, length: int | str | Range, *, default: Sequence[Any] | None = None) -> Range:
    """Returns a list of values, such as the widths of one to three layers.

    Args:
        item: the range of each value.
        length: an integer, a range by `Int`, or the key of an earlier list that is as long.
        default: the baseline's list; None: the default of the config or of the function.

    Examples:
        >>> List(Int(16, 512), length=Int(1, 3))
        {'list': {'int': [16, 512]}, 'length': {'int': [1, 3]}}
    """
    return _make_range({"list": item, "length": length}, default=default)


def _make_range(required: Range, *, log: bool = False, **optional: Any) -> Range:
    """Returns a range with its required keys, `log` if true, and optional keys that are not None.

    A `default` of False is kept: it is a choice.
    """
    mapping = dict(required)
    if log:
        mapping["log"] = True
    for key, value in optional.items():
        if value is not None:
            mapping[key] = value
    return mapping
