"""How the winner is compressed: words KEY=VALUE, and their errors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import yaml  # type: ignore[import-untyped]

from studyloom.definition.definition import Definition
from studyloom.errors import ConfigError
from studyloom.metrics import METRICS, Metric, ObjectiveValue
from studyloom.space.rule import Rule
from studyloom.text import no_such_key

# What a rule may name besides the metric: how much worse a variant is than the original, the upper
# end of the interval of that, and what it costs.
COSTS = ("drop", "drop_high", "bytes", "latency_ms", "latency_64_ms", "parameters")


@dataclass(frozen=True)
class Settings:
    """The settings of a compression.

    Attributes:
        rule: which variant is chosen, in the language of `winner.rule`; None for the smallest whose
            value is not worse than the original's by more than `margin`, by the 95% interval.
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

    @classmethod
    def parse(cls, words: Sequence[str]) -> "Settings":
        """Parses the settings of a command line.

        Args:
            words: such as `ratios=[0.5]`; a value is read as YAML is.

        Raises:
            ConfigError: all errors found.
        """
        given: dict[str, object] = {}
        errors = []
        for word in words:
            key, equals, text = word.partition("=")
            if not equals:
                errors.append(f"{word}: must be KEY=VALUE, such as margin=0.01")
                continue
            try:
                given[key] = yaml.safe_load(text)
            except yaml.YAMLError:
                errors.append(f"{key}={text}: cannot be read as a YAML value")
        return cls()._changed(given, errors)

    def _changed(self, given: Mapping[str, object], errors: list[str]) -> "Settings":
        known = [field.name for field in fields(self)]
        for key, value in given.items():
            if key not in known:
                errors.append(no_such_key(key, known))
            elif (wanted := _wanted(key, value)) is not None:
                errors.append(f"{key} must be {wanted}; got {value!r}")
        if errors:
            raise ConfigError(errors)
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        return replace(self, **plain)  # type: ignore[arg-type]

    def parse_rule(self, metric: Metric) -> Rule | None:
        """Parses the rule; None if no rule is set.

        Raises:
            ConfigError: it is invalid.
        """
        if self.rule is None:
            return None
        known = [metric, *(ObjectiveValue(name, "minimize") for name in COSTS)]
        return Rule.parse(self.rule, known, "rule", "")

    def document(self) -> dict[str, Any]:
        """Returns the settings as JSON has them."""
        return {
            key: [*value] if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }


def _wanted(key: str, value: Any) -> str | None:
    """Returns the requirement that the value of a key misses; None if it is right."""

    def is_number(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    match key:
        case "rule":
            fits, must_be = isinstance(value, str | None), "a rule, or null"
        case "margin":
            fits, must_be = is_number(value) and value >= 0, "a number of at least 0"
        case "ratios" | "widths":
            fits = isinstance(value, list) and all(is_number(v) and 0 < v < 1 for v in value)
            must_be = "a list of numbers above 0 and below 1, such as [0.5]"
        case _:
            fits, must_be = type(value) is int and value >= 1, "an integer of at least 1"
    return None if fits else must_be


def metric_of(definition: Definition) -> Metric:
    """Returns the metric by which variants are compared: of a loop, ours of that name."""
    return METRICS.get(definition.metric.name, definition.metric)


def loop_errors(definition: Definition) -> Iterator[str]:
    """Yields why the network of a loop cannot be compressed."""
    if definition.trains_networks:
        return
    objective = definition.config.objective
    if objective.network is None:
        yield (
            f"a custom loop trains the winner, objective._target_={objective['_target_']}; name "
            "what makes its network as objective.network"
        )
    if str(objective.metric) not in METRICS:
        yield (
            f"objective.metric={objective.metric} is known only to the loop, so that a smaller "
            f"network cannot be measured; name one of {', '.join(METRICS)}"
        )
