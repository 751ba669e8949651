"""Builds the jobs of a trial's networks from the sections of its config.

The functions here take plain sections. If one cannot be built, they raise ConfigError, which lists
every error in it.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LRScheduler

from studyloom.config.build import build, find_target, plain
from studyloom.config.study_config import StudyConfig
from studyloom.data.split import Fold
from studyloom.errors import ConfigError, refuse
from studyloom.metrics import COSTS, DIRECTIONS, METRICS, Metric, ObjectiveValue
from studyloom.seeds import derive
from studyloom.text import format_scalar, nearest
from studyloom.training.job import Job
from studyloom.training.optimizer import ParameterGroup, TorchSchedule

# Our own keys in the sections optimizer and scheduler
GROUPS = "groups"
INTERVAL = "interval"
RECORDED = "recorded"
# PyTorch's losses of numbers, which also take classes if these are made one-hot.
OF_NUMBERS = (nn.BCELoss, nn.BCEWithLogitsLoss, nn.MSELoss, nn.MultiLabelSoftMarginLoss)
NEUTRAL = {"weights": "none", "label_smoothing": 0.0}  # what our own losses are without


def build_jobs(config: StudyConfig, folds: Sequence[Fold], seed: int) -> list[Job]:
    """Builds the jobs of a trial, one for each fold and seed, grouped by fold.

    The seeds of the jobs descend from that of the trial.
    """
    train = plain(config["train"], "train")
    optimizer = plain(config["optimizer"], "optimizer")
    if not isinstance(train["loss"], dict):
        name = train["loss"]
        raise ConfigError(f"train.loss: {name!r} cannot be set here; choose it with loss={name}")
    parts: dict[str, Any] = {
        "model": network_builder(config),
        "optimizer": build_optimizer(optimizer),
        "groups": build_groups(optimizer.get(GROUPS)),
        "schedule": build_schedule(plain(config["scheduler"], "scheduler")),
        "metric": build_metric(config["objective"]),
    }
    # The keys of the section `train` are fields of a job.
    parts |= train | {"loss": build_loss(train["loss"])}
    parts |= {name: build_step(name, train[name]) for name in ("step", "evaluate")}
    return [
        Job(train=training, valid=validation, seed=derive(seed, fold, repeat), **parts)
        for fold, (training, validation) in enumerate(folds)
        for repeat in range(config.objective.seeds)
    ]


def network_builder(config: StudyConfig) -> Callable[..., Any]:
    """Returns what builds the network of a config, given its shape and outputs."""
    return functools.partial(build_network, plain(config["model"], "model"))


def build_network(
    section: Mapping[str, Any], shape: Sequence[int] | None, outputs: int | None
) -> Any:
    """Builds the network of a section, which may have no parameters for shape and outputs.

    Args:
        section: its target's parameter for the number of outputs may be `outputs` or `classes`.
        shape: of one input, without the batch; None if it is not one tensor.
        outputs: how many numbers the network gives for an input; None if that is not known.
    """
    known: dict[str, Any] = {"shape": None if shape is None else tuple(shape)}
    known |= {"outputs": outputs, "classes": outputs}
    wanted = inspect.signature(find_target(section, "model")).parameters
    for name, value in known.items():
        asked = name in wanted and wanted[name].default is inspect.Parameter.empty
        if value is None and asked and name not in section:
            key = "shape" if name == "shape" else "outputs"
            raise ConfigError(
                f"data.{key} must be given: {section['_target_']} takes {name}, and the first "
                "item of the Dataset does not say it"
            )
    offered = {name: value for name, value in known.items() if value is not None}
    return build(section, "model", **offered)


class OneHot(nn.Module):
    """A loss of numbers that takes classes (n,) too, one-hot in the shape of the outputs."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not targets.is_floating_point():
            targets = functional.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
        result: Tensor = self.loss(outputs, targets)
        return result


def build_loss(section: Mapping[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """Builds the loss of a section: one of studyloom, of PyTorch, or a custom one.

    For a PyTorch loss, lists of numbers such as `weight` become tensors, and settings of the option
    of group `loss` that have no effect are left out. Losses of numbers take classes one-hot.
    """
    target = find_target(section, "loss")
    if not (inspect.isclass(target) and target.__module__ == "torch.nn.modules.loss"):
        loss: Callable[[Tensor, Tensor], Tensor] = build(section, "loss")
        return loss
    without_effect = {key for key, value in NEUTRAL.items() if section.get(key) == value}
    accepted = inspect.signature(target).parameters
    settings = {k: v for k, v in section.items() if k in accepted or k not in without_effect}
    errors = _unknown_settings("loss", section["_target_"], settings, accepted)
    if settings.get("reduction", "mean") != "mean":
        errors.append(
            f"loss.reduction must be mean, since the losses of batches are averaged over examples; "
            f"got {settings['reduction']}"
        )
    refuse(errors)
    lists = {key: value for key, value in settings.items() if isinstance(value, list)}
    tensors = {key: torch.tensor(value, dtype=torch.float32) for key, value in lists.items()}
    made = build(settings | tensors, "loss")
    return OneHot(made) if isinstance(made, OF_NUMBERS) else made


def _unknown_settings(
    key: str, target: str, settings: Iterable[str], accepted: Mapping[str, inspect.Parameter]
) -> list[str]:
    """Returns a line for each setting of a section that its target has no parameter for."""
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        return []
    return [
        f"{key}.{name}: {target} has no parameter {name}; it has "
        f"{', '.join(accepted)}{nearest(name, [*accepted])}; leave it out with '~{key}.{name}'"
        for name in settings
        if name not in accepted and not name.startswith("_")
    ]


def build_schedule(
    section: Mapping[str, Any], key: str = "scheduler"
) -> Callable[[float], float] | TorchSchedule:
    """Builds the schedule of a section: a function of progress, or a scheduler of PyTorch."""
    target = find_target(section, key)
    if not (inspect.isclass(target) and issubclass(target, LRScheduler)):
        schedule: Callable[[float], float] = build(section, key)
        return schedule
    ours = (INTERVAL, RECORDED, "schedulers")
    own = {name: value for name, value in section.items() if name not in ours}
    settings = dict(build(own | {"_partial_": True}, key).keywords)
    if "schedulers" in section:
        settings["schedulers"] = [build_schedule(inner, key) for inner in section["schedulers"]]
    return TorchSchedule(target, settings, section.get(INTERVAL), section.get(RECORDED, ()))


def steps_on_value(config: StudyConfig) -> bool:
    """Whether the schedule of a config steps on the validation value, as ReduceLROnPlateau does."""
    schedule = build_schedule(plain(config["scheduler"], "scheduler"))
    return isinstance(schedule, TorchSchedule) and schedule.steps_on_value


def build_step(name: str, section: Any) -> Callable[..., Any] | None:
    """Builds a custom step, or returns None if the config names no step.

    Args:
        name: the key in `train`, step or evaluate.
    """
    if section is None:
        return None
    key = f"train.{name}"
    if inspect.isroutine(find_target(section, key)):
        section = section | {"_partial_": True}
    step: Callable[..., Any] = build(section, key)
    return step


def build_optimizer(section: Mapping[str, Any]) -> Callable[..., Any]:
    """Builds the optimizer, which waits for the parameters."""
    own = {name: value for name, value in plain(section, "optimizer").items() if name != GROUPS}
    accepted = inspect.signature(find_target(own, "optimizer")).parameters
    refuse(_unknown_settings("optimizer", own["_target_"], own, accepted))
    make: Callable[..., Any] = build(own, "optimizer")
    return make


def build_groups(groups: Any) -> tuple[ParameterGroup, ...]:
    """Builds `optimizer.groups`, such as {head: {match: head, lr: 0.01}, body: {match: 'b*'}}."""
    example = "{head: {match: 'head.*', lr: 0.01}, body: {match: 'body.*', frozen: true}}"
    if groups is None:
        return ()
    if not isinstance(groups, Mapping):
        raise ConfigError(
            f"optimizer.groups must be a mapping of groups, such as {example}; got {groups!r}"
        )
    errors, built = [], []
    for name, group in groups.items():
        settings = dict(group) if isinstance(group, Mapping) else {}
        match, frozen = settings.pop("match", None), bool(settings.pop("frozen", False))
        patterns = match if isinstance(match, list) and match else [match]
        if all(isinstance(pattern, str) for pattern in patterns):
            built.append(ParameterGroup(str(name), tuple(patterns), frozen, settings))
        else:
            errors.append(
                f"optimizer.groups.{name}: must have match, a pattern of parameter names or a "
                f"list, as in {example}; got {group!r}"
            )
    refuse(errors)
    return tuple(built)


# The section `objective`


def network_objectives(cfg: StudyConfig) -> tuple[Metric, *tuple[ObjectiveValue, ...]]:
    """Returns the metric of a network, and a cost of it that is minimized too."""
    objective = cfg["objective"]
    costs = split_metric(objective)[1]
    return build_metric(objective), *(ObjectiveValue(cost, "minimize") for cost in costs)


def build_metric(objective: Mapping[str, Any]) -> Metric:
    """Builds the metric of the section `objective`: one of METRICS, or a custom one."""
    objective = plain(objective, "objective")
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
    """Splits `objective.metric` into the metric and at most one of COSTS to minimize."""
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
    """Builds a custom metric; its direction is its attribute, or else the argument."""
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
    # Of a user's class or function; a partial function lacks the attributes of its function.
    direction = getattr(score, "direction", None) or getattr(target, "direction", None) or given
    if direction not in DIRECTIONS:
        raise ConfigError(
            f"objective.direction must be {' or '.join(DIRECTIONS)}, since {name} does not say "
            f"which is better; got {format_scalar(direction)}"
        )
    return Metric(name, direction, score)
