"""How the winner is compressed: `compress` of a config, or words KEY=VALUE, and what is wrong."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import yaml  # type: ignore[import-untyped]

from studyloom.config.values import value_at
from studyloom.data.training_data import TrainingData
from studyloom.definition.definition import Definition
from studyloom.definition.rule import Rule
from studyloom.errors import CompressError, ConfigError, UserError
from studyloom.extras.export.onnx import check_installed
from studyloom.metrics import METRICS, Goal, Metric
from studyloom.text import no_such_key

SECTION = "compress"  # of the config
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
    def of(cls, section: Any) -> "Settings | None":
        """Reads `compress` of a config, in plain values; None if nothing is to be compressed.

        Raises:
            ConfigError: all errors found.
        """
        if section is None or section is False:
            return None
        if section is True:
            return cls()
        if not isinstance(section, Mapping):
            example = "{margin: 0.01, ratios: [0.5]}"
            raise ConfigError(
                [f"{SECTION} must be true, null, or settings such as {example}; got {section!r}"]
            )
        return cls()._changed(section, [], f"{SECTION}.")

    @classmethod
    def parse(cls, words: Sequence[str], section: Any = None) -> "Settings":
        """Parses the settings of a command line.

        Args:
            words: such as `ratios=[0.5]`; a value is read as YAML is.
            section: `compress` of the config, which holds of all that the words do not name.

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
        return (cls.of(section) or cls())._changed(given, errors, "")

    def _changed(self, given: Mapping[str, object], errors: list[str], prefix: str) -> "Settings":
        known = [field.name for field in fields(self)]
        for key, value in given.items():
            if key not in known:
                errors.append(no_such_key(f"{prefix}{key}", known))
            elif (wanted := _wanted(key, value)) is not None:
                errors.append(f"{prefix}{key} must be {wanted}; got {value!r}")
        if errors:
            raise ConfigError(errors)
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        return replace(self, **plain)  # type: ignore[arg-type]

    def parse_rule(self, metric: Metric, key: str = "rule") -> Rule | None:
        """Parses the rule; None if no rule is set.

        Args:
            key: names it in errors.

        Raises:
            ConfigError: it is invalid.
        """
        if self.rule is None:
            return None
        known = [metric, *(Goal(name, "minimize") for name in COSTS)]
        return Rule.parse(self.rule, known, key, "")

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


def find_errors(definition: Definition, data: TrainingData | None) -> Iterator[str]:
    """Yields the errors in how a config compresses the winner, before trial 0.

    Args:
        data: None if they cannot be loaded.
    """
    config, settings = definition.config, Settings()
    try:
        settings = Settings.of(value_at(config, SECTION)) or settings
    except ConfigError as error:
        yield from error.errors
    try:
        check_installed()
    except CompressError as error:
        yield str(error)
    if not config.winner.enabled:
        yield (
            f"{SECTION} compresses the winner, and winner.enabled=false chooses no winner; set "
            f"winner.enabled=true, or leave {SECTION} out"
        )
    yield from (f"{SECTION}: {line}" for line in loop_errors(definition))
    if not definition.trains_networks and data is not None and data.split is None:
        yield f"{SECTION}: the loop loads its data itself; name the data in the section data"
    metric = None
    with suppress(UserError, ImportError, AttributeError):  # which is reported with the objective
        metric = metric_of(definition)
    try:
        if metric is not None:
            settings.parse_rule(metric, f"{SECTION}.rule")
    except ConfigError as error:
        yield from error.errors
    split = None if data is None else data.split
    if split is not None and (split.shape is None or split.input_at(0) is None):
        yield (
            f"{SECTION} writes a network of one input, and an input of the data is not one tensor; "
            f"deploy winner.pt, and leave {SECTION} out"
        )
