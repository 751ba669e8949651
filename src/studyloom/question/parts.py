"""Builds the parts of a training that a config names: loss, schedule, steps, parameter groups."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LRScheduler

from studyloom.config.build import build, find_target
from studyloom.config.values import value_at, without_key
from studyloom.errors import ConfigError
from studyloom.text import as_yaml
from studyloom.training.parameter_groups import ParameterGroup
from studyloom.training.schedule import TorchSchedule
from studyloom.training.steps import give_loss

GROUPS, INTERVAL = "groups", "interval"  # our own keys in the sections optimizer and scheduler
# PyTorch's losses of numbers, which also take classes if these are made one-hot.
OF_NUMBERS = (nn.BCELoss, nn.BCEWithLogitsLoss, nn.MSELoss, nn.MultiLabelSoftMarginLoss)
NEUTRAL = {"weights": "none", "label_smoothing": 0.0}  # what our own losses are without


class OneHot(nn.Module):
    """A loss of numbers that takes classes (n,) too, one-hot in the shape of the outputs.

    Args:
        loss: maps outputs (n, outputs) and targets of that shape to a mean.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not targets.is_floating_point():
            targets = functional.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
        result: Tensor = self.loss(outputs, targets)
        return result


def build_loss(section: DictConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Builds the loss of a section: of ours, of PyTorch as it is, or of the user's own.

    For a loss of PyTorch, lists of numbers such as `weight` become tensors, and what the option of
    the group `loss` brings and has no effect is left out. Losses of numbers take classes one-hot.

    Raises:
        ConfigError: the section cannot be built, or the loss does not return the mean.
    """
    target = find_target(section)
    if not (inspect.isclass(target) and target.__module__ == "torch.nn.modules.loss"):
        loss: Callable[[Tensor, Tensor], Tensor] = build(section)
        return loss
    accepted = inspect.signature(target).parameters
    mistakes, tensors = [], {}
    for key in [str(key) for key in section if str(key) not in ("_target_", "_partial_")]:
        value = value_at(section, key)
        if key not in accepted:
            if NEUTRAL.get(key) != value:
                mistakes.append(
                    f"loss.{key}={as_yaml(value)}: {section['_target_']} has no parameter {key}; "
                    f"it has {', '.join(accepted)}; leave it out with '~loss.{key}'"
                )
        elif isinstance(value, list):
            tensors[key] = torch.tensor(value, dtype=torch.float32)
        else:
            continue
        section = without_key(section, key)
    if section.get("reduction", "mean") != "mean":
        mistakes.append(
            f"loss.reduction must be mean, since the losses of batches are averaged over examples; "
            f"got {section['reduction']}"
        )
    if mistakes:
        raise ConfigError(mistakes)
    made = build(section, **tensors)
    return OneHot(made) if isinstance(made, OF_NUMBERS) else made


def build_schedule(section: DictConfig) -> Callable[[float], float] | TorchSchedule:
    """Builds the schedule of a section: a function of progress, or a scheduler of PyTorch.

    Raises:
        ConfigError: the section cannot be built.
        ValueError: from `TorchSchedule`.
    """
    target = find_target(section)
    if not (inspect.isclass(target) and issubclass(target, LRScheduler)):
        schedule: Callable[[float], float] = build(section)
        if not callable(schedule):
            raise ConfigError(
                [
                    f"scheduler: {section['_target_']} returned {schedule!r}; a schedule is a "
                    "function of progress from 0 to 1 to a factor on the rate, with "
                    "_partial_: true, or a class of torch.optim.lr_scheduler"
                ]
            )
        return schedule
    interval = section.get(INTERVAL)
    section = without_key(section, INTERVAL)
    inner = None
    if "schedulers" in section:
        inner = [build_schedule(scheduler) for scheduler in section["schedulers"]]
        section = without_key(section, "schedulers")
    settings = dict(build(_partial(section)).keywords)
    if inner is not None:
        settings["schedulers"] = inner
    accepted = inspect.signature(target).parameters
    if unknown := [key for key in settings if key not in accepted]:
        names = [name for name in accepted if name not in ("optimizer", "last_epoch", "verbose")]
        raise ConfigError(
            [
                f"scheduler.{key}: {section['_target_']} has no parameter {key}; it has "
                f"{', '.join(names)}; leave it out with '~scheduler.{key}'"
                for key in unknown
            ]
        )
    return TorchSchedule(target, settings, interval)


def build_step(train: DictConfig, name: str) -> Callable[..., Any] | None:
    """Builds a step of the user's own, or returns None if there is none.

    Args:
        train: the section.
        name: step or evaluate.

    Raises:
        ConfigError: it cannot be built, or cannot be called with a network and a batch.
    """
    section = train[name]
    if section is None:
        return None
    key = f"train.{name}"
    if not isinstance(section, DictConfig) or "_target_" not in section:
        shown = OmegaConf.to_container(section) if OmegaConf.is_config(section) else section
        raise ConfigError(
            [f"{key} must be {{_target_: module.function, _partial_: true}}, or null; got {shown}"]
        )
    target = section["_target_"]
    if inspect.isroutine(find_target(section)) and not section.get("_partial_"):
        raise ConfigError([f"{key}: {target} is a function, and needs _partial_: true"])
    step = build(section)
    try:
        if not callable(step):
            raise TypeError(f"it is a {type(step).__name__} that cannot be called")
        inspect.signature(give_loss(step, functional.mse_loss)).bind(None, None)
    except TypeError as error:
        raise ConfigError(
            [
                f"{key}._target_={target}: {error}; it is called as (network, batch), and with "
                "loss= if it has that parameter"
            ]
        ) from None
    except ValueError:  # a function written in C has no signature
        pass
    own: Callable[..., Any] = step
    return own


def build_optimizer(section: DictConfig) -> Callable[..., Any]:
    """Builds the optimizer, which waits for the parameters."""
    make: Callable[..., Any] = build(without_key(section, GROUPS) if GROUPS in section else section)
    return make


def build_groups(section: DictConfig) -> tuple[ParameterGroup, ...]:
    """Builds `optimizer.groups`, such as {head: {match: head, lr: 0.01}, body: {match: 'b*'}}.

    Raises:
        ConfigError: every mistake in them.
    """
    groups = value_at(section, GROUPS)
    example = "{head: {match: 'head.*', lr: 0.01}, body: {match: 'body.*', frozen: true}}"
    if groups is None:
        return ()
    if not isinstance(groups, Mapping):
        raise ConfigError(
            [f"optimizer.groups must be a mapping of groups, such as {example}; got {groups!r}"]
        )
    mistakes, built = [], []
    for name, group in groups.items():
        where = f"optimizer.groups.{name}"
        if not isinstance(group, Mapping) or "match" not in group:
            mistakes.append(f"{where} must be a mapping with match, as in {example}; got {group!r}")
            continue
        settings = dict(group)
        match, frozen = settings.pop("match"), settings.pop("frozen", False)
        patterns = [match] if isinstance(match, str) else match
        if not (isinstance(patterns, list) and patterns) or not all(
            isinstance(pattern, str) for pattern in patterns
        ):
            mistakes.append(
                f"{where}.match must be a pattern of parameter names, or a list of such; "
                f"got {match!r}"
            )
            continue
        if not isinstance(frozen, bool):
            mistakes.append(f"{where}.frozen must be true or false; got {as_yaml(frozen)}")
        elif frozen and settings:
            mistakes.append(
                f"{where}: is frozen, and has {', '.join(settings)}, which would do nothing; "
                "leave out one or the other"
            )
        for setting in ("lr", "weight_decay"):
            value = settings.get(setting, 0.0)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value < math.inf:
                mistakes.append(
                    f"{where}.{setting} must be a number of at least 0; got {as_yaml(value)}"
                )
        built.append(ParameterGroup(str(name), tuple(patterns), frozen is True, settings))
    if mistakes:
        raise ConfigError(mistakes)
    return tuple(built)


def _partial(section: DictConfig) -> DictConfig:
    """Copies a section with `_partial_: true`."""
    copy = without_key(section, "_partial_")
    OmegaConf.update(copy, "_partial_", True, force_add=True)
    return copy
