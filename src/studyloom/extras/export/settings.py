"""What one may say of how the winner is made small: `compress` of a config, or words KEY=VALUE."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import yaml  # type: ignore[import-untyped]

from studyloom.errors import ConfigError
from studyloom.metrics import Goal, Metric
from studyloom.question.rule import Rule, parse_rule
from studyloom.text import nearest, no_such_key

SECTION = "compress"  # of the config
WINNER, COMMITTEE = "winner", "committee"  # who teaches
# What is known of a variant beside the metric: how much worse it is than the original, the upper
# end of the interval of that, and what it costs.
COSTS = ("drop", "drop_high", "bytes", "latency_ms", "latency_64_ms", "parameters")


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
        teacher: whose outputs pruned networks and students learn from: winner, or committee for
            the mean of the networks of `winner.committee`.
        calibration: how many training examples set the ranges of int8.
        threads: of PyTorch and onnxruntime while latencies are measured.
        repeats: how often each latency is measured.
    """

    rule: str | None = None
    margin: float = 0.005
    ratios: tuple[float, ...] = (0.25, 0.5, 0.75)
    widths: tuple[float, ...] = (0.5, 0.25)
    teacher: str = WINNER
    calibration: int = 256
    threads: int = 1
    repeats: int = 200

    def document(self) -> dict[str, Any]:
        """Returns the settings as JSON has them."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return document


def settings_of(section: Any) -> Settings | None:
    """Reads `compress` of a config.

    Args:
        section: as plain Python.

    Returns:
        None if the winner is not to be made small.

    Raises:
        ConfigError: every mistake found.
    """
    if section is None or section is False:
        return None
    if section is True:
        return Settings()
    if not isinstance(section, Mapping):
        example = "{margin: 0.01, ratios: [0.5]}"
        raise ConfigError(
            [f"{SECTION} must be true, null, or settings such as {example}; got {section!r}"]
        )
    known = [field.name for field in fields(Settings)]
    mistakes = [no_such_key(f"{SECTION}.{key}", known) for key in section if key not in known]
    given = {key: value for key, value in section.items() if key in known}
    return _settings(Settings(), given, mistakes, f"{SECTION}.")


def parse_settings(words: Sequence[str], others: Settings | None = None) -> Settings:
    """Parses the settings of a command line.

    Args:
        words: such as `ratios=[0.5]`; a value is read as YAML is.
        others: what holds of all that the words do not name; None for the defaults.

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
    return _settings(others or Settings(), given, mistakes, "")


def parse_own_rule(metric: Metric, settings: Settings, key: str = "rule") -> Rule | None:
    """Parses the rule of the settings; None if there is none.

    Args:
        metric: of the study.
        settings: whose rule it is.
        key: names it in errors.

    Raises:
        ConfigError: it has a mistake.
    """
    if settings.rule is None:
        return None
    known = [metric, *(Goal(name, "minimize") for name in COSTS)]
    return parse_rule(settings.rule, known, key, "")


def _settings(
    others: Settings, given: Mapping[str, object], mistakes: list[str], prefix: str
) -> Settings:
    for key, value in given.items():
        if (mistake := _mistake(key, value)) is not None:
            mistakes.append(f"{prefix}{key} must be {mistake}; got {value!r}")
    if mistakes:
        raise ConfigError(mistakes)
    lists = {k: tuple(v) for k, v in given.items() if isinstance(v, list)}
    return replace(others, **{**given, **lists})  # type: ignore[arg-type]  # checked above


def _mistake(key: str, value: object) -> str | None:
    """Returns what the value of a key must be; None if it is that."""
    if key == "rule":
        return None if isinstance(value, str | None) else "a rule, or null"
    if key == "teacher":
        return None if value in (WINNER, COMMITTEE) else f"{WINNER} or {COMMITTEE}"
    if key == "margin":
        return None if _is_number(value) and value >= 0 else "a number of at least 0"  # type: ignore[operator]
    if key in ("ratios", "widths"):
        fits = isinstance(value, list) and all(_is_number(v) and 0 < v < 1 for v in value)
        return None if fits else "a list of numbers above 0 and below 1, such as [0.5]"
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return None if whole else "a whole number of at least 1"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
