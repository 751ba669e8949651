"""The settings of a compression, which a command line gives as KEY=VALUE, and their errors."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeGuard

import yaml  # type: ignore[import-untyped]

from studyloom.definition.definition import Definition
from studyloom.errors import ConfigError
from studyloom.metrics import METRICS, Metric, ObjectiveValue
from studyloom.space.rule import Rule
from studyloom.text import describe_unknown_key

# The values that a rule may name besides the metric: how much worse a variant is than the original,
# the upper end of the 95% interval of that difference, and what the variant costs.
COSTS = ("drop", "drop_high", "bytes", "latency_ms", "latency_64_ms", "parameters")


@dataclass(frozen=True)
class Settings:
    """The settings of a compression.

    Attributes:
        rule: which variant is chosen, in the language of `winner.rule`; None for the smallest whose
            value is not worse than the original's by more than `margin`, by the 95% interval.
        margin: how much of the value may be lost: in the unit of a metric that ends at 1, such as
            accuracy; for other metrics as a share of the original's value.
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
    def parse(cls, assignments: Sequence[str]) -> "Settings":
        """Parses the settings of a command line.

        Args:
            assignments: such as `ratios=[0.5]`; the value is read as YAML.

        Raises:
            ConfigError: all errors found.
        """
        names = [field.name for field in fields(cls)]
        values: dict[str, Any] = {}
        errors = []
        for assignment in assignments:
            key, equals, text = assignment.partition("=")
            if not equals:
                errors.append(f"{assignment}: must be KEY=VALUE, such as margin=0.01")
                continue
            try:
                value = yaml.safe_load(text)
            except yaml.YAMLError:
                errors.append(f"{key}={text}: cannot be read as a YAML value")
                continue
            if key not in names:
                errors.append(describe_unknown_key(key, names))
                continue
            requirement = _find_violated_requirement(key, value)
            if requirement is not None:
                errors.append(f"{key} must be {requirement}; got {value!r}")
            if isinstance(value, list):
                value = tuple(value)
            values[key] = value
        if errors:
            raise ConfigError(errors)
        return cls(**values)

    def parse_rule(self, metric: Metric) -> Rule | None:
        """Parses the rule; None if no rule is set.

        Raises:
            ConfigError: it is invalid.
        """
        if self.rule is None:
            return None
        costs = [ObjectiveValue(name, "minimize") for name in COSTS]
        return Rule.parse(self.rule, [metric, *costs], "rule", "")

    def document(self) -> dict[str, Any]:
        """Returns the settings as JSON has them."""
        document = {}
        for key, value in asdict(self).items():
            if isinstance(value, tuple):
                value = [*value]
            document[key] = value
        return document


def _find_violated_requirement(key: str, value: object) -> str | None:
    """Returns what the value of a key must be, for an error; None if the value is valid."""
    if key == "rule":
        requirement = "a rule, or null"
        is_valid = isinstance(value, str | None)
    elif key == "margin":
        requirement = "a number of at least 0"
        is_valid = _is_number(value) and value >= 0
    elif key in ("ratios", "widths"):
        requirement = "a list of numbers above 0 and below 1, such as [0.5]"
        is_valid = isinstance(value, list) and all(_is_share(number) for number in value)
    else:  # calibration, threads or repeats
        requirement = "an integer of at least 1"
        is_valid = type(value) is int and value >= 1
    if is_valid:
        return None
    return requirement


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_share(value: object) -> bool:
    return _is_number(value) and 0 < value < 1


def metric_of(definition: Definition) -> Metric:
    """Returns the metric by which variants are compared.

    A custom loop computes its metric itself: the built-in metric of that name stands for it.
    """
    return METRICS.get(definition.metric.name, definition.metric)


def loop_errors(definition: Definition) -> Iterator[str]:
    """Yields why the network of a loop cannot be compressed."""
    if definition.trains_networks:
        return
    objective = definition.config.objective
    if objective.network is None:
        yield (
            f"a custom loop trains the winner, objective._target_={objective._target_}; name "
            "what makes its network as objective.network"
        )
    if str(objective.metric) not in METRICS:
        yield (
            f"objective.metric={objective.metric} is known only to the loop, so that a smaller "
            f"network cannot be measured; name one of {', '.join(METRICS)}"
        )
