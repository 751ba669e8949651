"""Builds the jobs of a trial's networks from the sections of its config.

A *job* is one training of a network, with one fold and one seed. Each of its parts, such as the
loss, is built from a section of the config: a mapping whose `_target_` names a class or function,
with the arguments as further keys. If a section cannot be built, the functions here raise
ConfigError, which lists every error in it.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from studyloom.config.build import build, find_target, plain
from studyloom.config.study_config import StudyConfig
from studyloom.data.split import Fold
from studyloom.errors import ConfigError, raise_if_any
from studyloom.metrics import COSTS, DIRECTIONS, METRICS, Metric, ObjectiveValue
from studyloom.seeds import derive
from studyloom.text import format_scalar, nearest
from studyloom.training.job import Job
from studyloom.training.optimizer import ParameterGroup, TorchSchedule
from studyloom.training.steps import CustomStep

# Keys that studyloom adds to the sections `optimizer` and `scheduler`
GROUPS = "groups"
INTERVAL = "interval"
RECORDED = "recorded"
SCHEDULERS = "schedulers"  # PyTorch's argument of schedulers that are made of others
# Losses of PyTorch that compare numbers. Classes must be made one-hot for them.
LOSSES_OF_NUMBERS = (nn.BCELoss, nn.BCEWithLogitsLoss, nn.MSELoss, nn.MultiLabelSoftMarginLoss)
# Settings of studyloom's losses at the values that change nothing.
NEUTRAL_SETTINGS = {"weights": "none", "label_smoothing": 0.0}


def build_jobs(config: StudyConfig, folds: Sequence[Fold], seed: int) -> list[Job]:
    """Builds the jobs of a trial, one for each fold and seed, grouped by fold.

    Args:
        seed: the seed of the trial, from which those of the jobs are derived.
    """
    train = plain(config["train"], "train")
    optimizer = plain(config["optimizer"], "optimizer")
    if not isinstance(train["loss"], dict):
        name = train["loss"]
        raise ConfigError(f"train.loss: {name!r} cannot be set here; choose it with loss={name}")
    parts: dict[str, Any] = {
        "model": make_network_builder(config),
        "optimizer": build_optimizer(optimizer),
        "groups": build_groups(optimizer.get(GROUPS)),
        "schedule": build_schedule(plain(config["scheduler"], "scheduler")),
        "metric": build_metric(config["objective"]),
    }
    parts |= train  # the keys of the section `train` are fields of a job
    parts["loss"] = build_loss(train["loss"])
    parts["step"] = build_step("step", train["step"])
    parts["evaluate"] = build_step("evaluate", train["evaluate"])
    jobs = []
    for position, (training_indices, validation_indices) in enumerate(folds):
        for repeat in range(config.objective.seeds):
            job_seed = derive(seed, position, repeat)
            jobs.append(
                Job(train=training_indices, valid=validation_indices, seed=job_seed, **parts)
            )
    return jobs


# The sections of a network's training


def make_network_builder(config: StudyConfig) -> Callable[..., nn.Module]:
    """Returns a function that builds the network of a config, given its shape and outputs."""
    return functools.partial(build_network, plain(config["model"], "model"))


def build_network(
    section: Mapping[str, object], shape: Sequence[int] | None, outputs: int | None
) -> nn.Module:
    """Builds the network of a section.

    The class or function that the section names gets the shape and the number of outputs if it has
    parameters for them, and the section does not set them. The parameter for the number of outputs
    may be `outputs` or `classes`.

    Args:
        shape: the shape of one input, without the batch; None if an input is not one tensor.
        outputs: the number of values that the network gives for an input; None if that is unknown.

    Raises:
        ConfigError: the class or function requires a value that is None.
    """
    arguments: dict[str, object] = {}
    if shape is not None:
        arguments["shape"] = tuple(shape)
    if outputs is not None:
        arguments["outputs"] = outputs
        arguments["classes"] = outputs
    parameters = inspect.signature(find_target(section, "model")).parameters
    for name in ("shape", "outputs", "classes"):
        if name in arguments or name in section or name not in parameters:
            continue
        is_required = parameters[name].default is inspect.Parameter.empty
        if is_required:
            key = "outputs"
            if name == "shape":
                key = "shape"
            raise ConfigError(
                f"data.{key} must be given: {section['_target_']} takes {name}, and the first "
                "item of the Dataset does not say it"
            )
    network: nn.Module = build(section, "model", **arguments)
    return network


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


def build_loss(section: Mapping[str, object]) -> Callable[[Tensor, Tensor], Tensor]:
    """Builds the loss of a section: one of studyloom, of PyTorch, or a custom one.

    For a PyTorch loss, lists of numbers such as `weight` become tensors. The section may still have
    settings of studyloom's losses that the PyTorch loss lacks: they are left out if they have no
    effect, such as label_smoothing=0. A loss that compares numbers gets classes one-hot.
    """
    target = find_target(section, "loss")
    is_loss_of_pytorch = inspect.isclass(target) and target.__module__ == "torch.nn.modules.loss"
    if not is_loss_of_pytorch:
        custom_loss: Callable[[Tensor, Tensor], Tensor] = build(section, "loss")
        return custom_loss
    accepted = inspect.signature(target).parameters
    settings = {}
    for name, value in section.items():
        is_neutral = name in NEUTRAL_SETTINGS and value == NEUTRAL_SETTINGS[name]
        if name in accepted or not is_neutral:
            settings[name] = value
    errors = _find_unknown_settings("loss", str(section["_target_"]), settings, accepted)
    if settings.get("reduction", "mean") != "mean":
        errors.append(
            f"loss.reduction must be mean, since the losses of batches are averaged over examples; "
            f"got {settings['reduction']}"
        )
    raise_if_any(errors)
    for name, value in settings.items():
        if isinstance(value, list):
            settings[name] = torch.tensor(value, dtype=torch.float32)
    loss: nn.Module = build(settings, "loss")
    if isinstance(loss, LOSSES_OF_NUMBERS):
        return OneHot(loss)
    return loss


def _find_unknown_settings(
    key: str, target: str, settings: Iterable[str], accepted: Mapping[str, inspect.Parameter]
) -> list[str]:
    """Returns a line for each setting of a section that its target has no parameter for.

    Args:
        key: the key of the section.
        target: the dotted name of its class or function.
        settings: the names of its settings.
        accepted: the parameters of the target, by name.
    """
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    if takes_any:  # by **kwargs
        return []
    errors = []
    for name in settings:
        if name not in accepted and not name.startswith("_"):
            errors.append(
                f"{key}.{name}: {target} has no parameter {name}; it has "
                f"{', '.join(accepted)}{nearest(name, [*accepted])}; leave it out with "
                f"'~{key}.{name}'"
            )
    return errors


def build_schedule(
    section: Mapping[str, Any], key: str = "scheduler"
) -> Callable[[float], float] | TorchSchedule:
    """Builds the schedule of a section: a function of progress, or a scheduler of PyTorch.

    The section of a scheduler of PyTorch may have three more keys than its class has parameters:
    `interval`, which says when it steps; `recorded`, the values of an earlier training, on which it
    steps in place of the validation value; and `schedulers`, the sections of inner schedulers.
    """
    target = find_target(section, key)
    is_scheduler_of_pytorch = inspect.isclass(target) and issubclass(target, LRScheduler)
    if not is_scheduler_of_pytorch:
        function_of_progress: Callable[[float], float] = build(section, key)
        return function_of_progress
    # PyTorch's schedulers take an optimizer, which does not exist yet. With `_partial_`, `build`
    # checks and resolves the other arguments, and returns them in a functools.partial. A
    # TorchSchedule keeps them until there is an optimizer.
    partial_section = {}
    for name, value in section.items():
        if name not in (INTERVAL, RECORDED, SCHEDULERS):
            partial_section[name] = value
    partial_section["_partial_"] = True
    partial_scheduler: functools.partial[LRScheduler] = build(partial_section, key)
    settings = dict(partial_scheduler.keywords)
    if SCHEDULERS in section:
        settings[SCHEDULERS] = [build_schedule(inner, key) for inner in section[SCHEDULERS]]
    return TorchSchedule(target, settings, section.get(INTERVAL), section.get(RECORDED, ()))


def steps_on_value(config: StudyConfig) -> bool:
    """True if the schedule steps on the validation value, as ReduceLROnPlateau does."""
    schedule = build_schedule(plain(config["scheduler"], "scheduler"))
    return isinstance(schedule, TorchSchedule) and schedule.steps_on_value


def build_step(name: str, section: Mapping[str, object] | None) -> CustomStep | None:
    """Builds a custom step, or returns None if the config names no step.

    If the section names a class, the step is an object of it. If it names a function, the step is
    that function with the arguments of the section.

    Args:
        name: the key in `train`, step or evaluate.
    """
    if section is None:
        return None
    key = f"train.{name}"
    if inspect.isroutine(find_target(section, key)):
        section = {**section, "_partial_": True}  # the function is not called yet
    step: CustomStep = build(section, key)
    return step


def build_optimizer(
    section: Mapping[str, object],
) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Builds the optimizer as a function that makes it from the network's parameters.

    The section has `_partial_: true`, so that its class is not called yet.

    Raises:
        ConfigError: settings that the class has no parameter for.
    """
    settings = plain(section, "optimizer")
    settings.pop(GROUPS, None)  # parameter groups are a part of the job, not arguments of the class
    accepted = inspect.signature(find_target(settings, "optimizer")).parameters
    errors = _find_unknown_settings("optimizer", settings["_target_"], settings, accepted)
    raise_if_any(errors)
    make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = build(settings, "optimizer")
    return make_optimizer


def build_groups(groups: object) -> tuple[ParameterGroup, ...]:
    """Builds `optimizer.groups`, such as {head: {match: head, lr: 0.01}, body: {match: 'b*'}}."""
    example = "{head: {match: 'head.*', lr: 0.01}, body: {match: 'body.*', frozen: true}}"
    if groups is None:
        return ()
    if not isinstance(groups, Mapping):
        raise ConfigError(
            f"optimizer.groups must be a mapping of groups, such as {example}; got {groups!r}"
        )
    parameter_groups = []
    errors = []
    for name, group in groups.items():
        settings: dict[str, Any] = {}  # match, frozen, and arguments of the optimizer
        if isinstance(group, Mapping):
            settings = dict(group)
        match = settings.pop("match", None)
        is_frozen = bool(settings.pop("frozen", False))
        patterns = [match]  # match may be one pattern, or a list of them
        if isinstance(match, list) and match:
            patterns = match
        if all(isinstance(pattern, str) for pattern in patterns):
            parameter_groups.append(ParameterGroup(str(name), tuple(patterns), is_frozen, settings))
        else:
            errors.append(
                f"optimizer.groups.{name}: must have match, a pattern of parameter names or a "
                f"list, as in {example}; got {group!r}"
            )
    raise_if_any(errors)
    return tuple(parameter_groups)


# The section `objective`


@dataclass(frozen=True)
class MetricSetting:
    """The value of `objective.metric` for a network.

    Args:
        metric: the name of one of METRICS, or the section of a custom one.
        cost: the name of one of COSTS that is minimized too; None for a single objective.
    """

    metric: object
    cost: str | None = None


def read_network_objectives(cfg: StudyConfig) -> tuple[Metric, *tuple[ObjectiveValue, ...]]:
    """Returns the metric of a network, and a cost of it that is minimized too."""
    objective = cfg["objective"]
    cost = read_metric_setting(objective).cost
    metric = build_metric(objective)
    if cost is None:
        return (metric,)
    return metric, ObjectiveValue(cost, "minimize")


def read_metric_setting(objective: Mapping[str, Any]) -> MetricSetting:
    """Reads `objective.metric`: a metric, or a list of a metric and one of COSTS."""
    setting = objective["metric"]
    if not isinstance(setting, list):
        return MetricSetting(setting)
    is_pair = len(setting) == 2
    is_metric_and_cost = is_pair and setting[0] not in COSTS and setting[1] in COSTS
    if not is_metric_and_cost:
        suggestion = ""
        if is_pair:
            suggestion = nearest(str(setting[1]), COSTS)
        raise ConfigError(
            f"objective.metric={setting}: must be one name, or for two objectives a metric and "
            f"then a cost of the network, {', '.join(COSTS)}{suggestion}"
        )
    metric, cost = setting
    return MetricSetting(metric, cost)


def build_metric(objective: Mapping[str, object]) -> Metric:
    """Builds the metric of the section `objective`: one of METRICS, or a custom one."""
    objective = plain(objective, "objective")
    setting = read_metric_setting(objective).metric
    direction = objective["direction"]
    if isinstance(setting, Mapping):
        metric = _build_custom_metric(setting, direction)
    elif isinstance(setting, str) and setting in METRICS:
        metric = METRICS[setting]
    else:
        options = f"there are {', '.join(METRICS)}, and any _target_"
        suggestion = nearest(str(setting), [*METRICS])
        raise ConfigError(f"objective.metric={setting}: unknown metric; {options}{suggestion}")
    if direction not in (None, metric.direction):
        raise ConfigError(
            f"objective.direction must be {metric.direction} for {metric.name}; got {direction}; "
            "leave the direction out, or choose another metric"
        )
    return metric


def _build_custom_metric(section: Mapping[str, Any], direction: Any) -> Metric:
    """Builds a custom metric.

    Args:
        direction: `objective.direction`, for a metric without an attribute `direction`.
    """
    key = "objective.metric"
    name = section["_target_"].rpartition(".")[2]
    target = find_target(section, key)
    try:
        score = build(section, key)
        if not callable(score):
            raise TypeError(f"{name} returned {score!r}")
        with contextlib.suppress(ValueError):  # a function written in C has no signature
            inspect.signature(score).bind(None, None)  # TypeError unless it takes two arguments
    except TypeError as error:
        raise ConfigError(
            f"{key}={name}: {error}; a metric is called as (outputs, targets) -> number, so that "
            "a function needs _partial_: true"
        ) from error
    # A metric may say in its attribute `direction` which is better. A partial function lacks the
    # attributes of its function, so that the target is searched too.
    for owner in (score, target):
        declared_direction = getattr(owner, "direction", None)
        if declared_direction:
            direction = declared_direction
            break
    if direction not in DIRECTIONS:
        raise ConfigError(
            f"objective.direction must be {' or '.join(DIRECTIONS)}, since {name} does not say "
            f"which is better; got {format_scalar(direction)}"
        )
    return Metric(name, direction, score)
