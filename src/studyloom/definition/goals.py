"""The objective of a study in values: the metric, what else is optimized, and the limits."""

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from studyloom.config.build import Section, build, find_target, plain
from studyloom.config.values import value_at
from studyloom.definition.rule import Condition, parse_limits
from studyloom.errors import ConfigError, refuse
from studyloom.metrics import ANYTHING, COSTS, DIRECTIONS, METRICS, Goal, Metric
from studyloom.storage.attributes import OF_TRIALS
from studyloom.text import as_yaml, nearest

# Networks


def network_goals(cfg: DictConfig) -> tuple[Metric, tuple[Goal, ...]]:
    """Returns the metric of a network, and a cost of it that is minimized too."""
    costs = split_metric(plain(cfg.objective))[1]
    return build_metric(cfg.objective), tuple(Goal(cost, "minimize") for cost in costs)


def network_limits(cfg: DictConfig) -> list[Condition]:
    """Returns the limits of what a network may cost, from `objective.constraints`."""
    return parse_limits(value_at(cfg, "objective.constraints"))


def build_metric(objective: Section) -> Metric:
    """Builds the metric of the section `objective`: one of METRICS, or the user's own."""
    objective = plain(objective)
    named, direction = split_metric(objective)[0], objective["direction"]
    if isinstance(named, Mapping):
        metric = _own_metric(named, direction)
    elif named in METRICS:
        metric = METRICS[named]
    else:
        options = f"there are {', '.join(METRICS)}, and any _target_"
        near = nearest(str(named), [*METRICS])
        raise ConfigError(f"objective.metric={named}: unknown metric; {options}{near}")
    if direction not in (None, metric.direction):
        raise ConfigError(
            f"objective.direction must be {metric.direction} for {metric.name}; got {direction}; "
            "leave the direction out, or choose another metric"
        )
    return metric


def split_metric(objective: Mapping[str, Any]) -> tuple[Any, Sequence[str]]:
    """Splits `objective.metric` into the metric, and at most one of COSTS to minimize beside it."""
    named = objective["metric"]
    if not isinstance(named, list):
        return named, ()
    if len(named) != 2 or named[0] in COSTS or named[1] not in COSTS:
        near = nearest(str(named[1]), COSTS) if len(named) == 2 else ""
        raise ConfigError(
            f"objective.metric={named}: must be one name, or for two objectives a metric and "
            f"then a cost of the network, {', '.join(COSTS)}{near}"
        )
    return named[0], named[1:]


def _own_metric(section: Mapping[str, Any], given: Any) -> Metric:
    """Builds a metric of the user's own; its direction is an attribute of it, or the one given."""
    key, name = "objective.metric", section["_target_"].rpartition(".")[2]
    target = find_target(section, key)
    try:
        score = build(section, key)
        if not callable(score):
            raise TypeError(f"{name} returned {score!r}")
        with contextlib.suppress(ValueError):  # a function written in C has no signature
            inspect.signature(score).bind(None, None)
    except TypeError as error:
        raise ConfigError(
            f"{key}={name}: {error}; a metric is called as (outputs, targets) -> number, so that "
            "a function needs _partial_: true"
        ) from error
    direction = getattr(score, "direction", None) or getattr(target, "direction", None) or given
    if direction not in DIRECTIONS:
        raise ConfigError(
            f"objective.direction must be {' or '.join(DIRECTIONS)}, since {name} does not say "
            f"which is better; got {as_yaml(direction)}"
        )
    return Metric(name, direction, score)


# Custom training loops


def loop_goals(cfg: DictConfig) -> tuple[Metric, tuple[Goal, ...]]:
    """Returns the values that a loop returns, under the names that `objective.metric` gives."""
    (name, direction), *further = named_goals(cfg.objective)
    bounds = METRICS[name].bounds if name in METRICS else ANYTHING
    return Metric(name, direction, _no_score, bounds=bounds), tuple(
        Goal(name, direction) for name, direction in further
    )


def loop_limits(cfg: DictConfig) -> list[Condition]:
    """Returns the limits of what a loop may report by `run.cost`, from `objective.constraints`."""
    limits = parse_limits(value_at(cfg, "objective.constraints"), None)
    _check_names("objective.constraints", [limit.name for limit in limits])
    return limits


def named_goals(objective: Section) -> list[tuple[str, Any]]:
    """Returns the names and directions of what a loop returns, the metric first."""
    objective = plain(objective)
    names, directions = (
        value if isinstance(value, list) else [value]
        for value in (objective["metric"], objective["direction"])
    )
    if not names or not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
        raise ConfigError(
            "objective.metric must be a name for the value, or a list of different names, since "
            f"the function returns the values themselves; got {objective['metric']}"
        )
    if len(directions) != len(names) or any(value not in DIRECTIONS for value in directions):
        each = f", for each of {', '.join(names)}" if len(names) > 1 else ""
        raise ConfigError(
            f"objective.direction must be {' or '.join(DIRECTIONS)}{each}, since a function "
            f"does not say which is better; got {as_yaml(objective['direction'])}"
        )
    _check_names("objective.metric", names[1:])
    return [*zip(names, directions, strict=True)]


def _check_names(key: str, names: Sequence[str]) -> None:
    """Raises ConfigError if a cost has the name of something else that is stored with a trial."""
    taken = [name for name in names if name in OF_TRIALS]
    refuse([f"{key}: {name} is a name of ours; choose another" for name in taken])


def _no_score(outputs: object, targets: object) -> None:
    raise AssertionError("a function of the user's own returns the value itself")
