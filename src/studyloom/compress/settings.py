"""What one may say to `studyloom compress`, as KEY=VALUE."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import yaml  # type: ignore[import-untyped]

from studyloom.errors import ConfigError
from studyloom.text import nearest


@dataclass(frozen=True)
class Settings:
    """How the winner is made small.

    Args:
        rule: which variant is chosen, in the language of `winner.rule`; None for the smallest whose
            value is not worse than the original's by more than `margin`, by the 95 % interval.
        margin: what may be lost: in the unit of a metric that ends at 1, such as accuracy; of
            others as a share of the original's value.
        ratios: the shares of channels and units that are pruned, a variant for each.
        widths: the widths of students as shares of the winner's, a variant for each.
        calibration: how many training examples set the ranges of int8.
        threads: of PyTorch and onnxruntime while latencies are measured.
        repeats: how often each latency is measured.
    """

    rule: str | None = None
    margin: float = 0.005
    ratios: tuple[float, ...] = (0.25, 0.5, 0.75)
    widths: tuple[float, ...] = (0.5, 0.25)
    calibration: int = 256
    threads: int = 1
    repeats: int = 200


def parse_settings(words: Sequence[str]) -> Settings:
    """Parses the settings of a command line.

    Args:
        words: such as `ratios=[0.5]`; a value is read as YAML is.

    Raises:
        ConfigError: every mistake found.
    """
    known = [field.name for field in fields(Settings)]
    given: dict[str, object] = {}
    mistakes = []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            mistakes.append(f"{word}: must be KEY=VALUE, such as margin=0.01")
        elif key not in known:
            options = ", ".join(known)
            mistakes.append(f"{key}: no such key; there are {options}{nearest(key, known)}")
        else:
            try:
                given[key] = yaml.safe_load(text)
            except yaml.YAMLError:
                mistakes.append(f"{key}={text}: cannot be read as a YAML value")
    for key, value in given.items():
        if (mistake := _mistake(key, value)) is not None:
            mistakes.append(f"{key} must be {mistake}; got {value!r}")
    if mistakes:
        raise ConfigError(mistakes)
    lists = {k: tuple(v) for k, v in given.items() if isinstance(v, list)}
    return Settings(**{**given, **lists})  # type: ignore[arg-type]  # checked above


def _mistake(key: str, value: object) -> str | None:
    """Returns what the value of a key must be; None if it is that."""
    if key == "rule":
        return None if isinstance(value, str | None) else "a rule, or null"
    if key == "margin":
        return None if _is_number(value) and value >= 0 else "a number of at least 0"  # type: ignore[operator]
    if key in ("ratios", "widths"):
        fits = isinstance(value, list) and all(_is_number(v) and 0 < v < 1 for v in value)
        return None if fits else "a list of numbers above 0 and below 1, such as [0.5]"
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return None if whole else "a whole number of at least 1"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
