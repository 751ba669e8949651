"""The optimizer of a training: its groups of parameters, its learning rates and its steps."""

import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim import optimizer as module
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from studyloom.errors import refuse
from studyloom.metrics import Metric
from studyloom.text import name_error, nearest, shorten

INTERVALS = ("epoch", "step")
EVERY_STEP = (OneCycleLR, CyclicLR)  # which PyTorch documents for each step, and not each epoch


@dataclass(frozen=True)
class ParameterGroup:
    """Some parameters of a network, and how they are trained.

    Args:
        match: patterns of names with *, ? and [abc]: of parameters, or of modules, which stand for
            all parameters in them.
        frozen: whether they keep their initial values: they get no gradient, and the optimizer does
            not see them. Buffers in these modules, such as the means of a BatchNorm, still move.
        settings: of the optimizer, such as lr and weight_decay; what is missing is as for all
            others.
    """

    name: str
    match: tuple[str, ...]
    frozen: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, parameter: str) -> bool:
        return any(_matches(parameter, pattern) for pattern in self.match)


def _matches(parameter: str, pattern: str) -> bool:
    return fnmatchcase(parameter, pattern) or fnmatchcase(parameter, f"{pattern}.*")


def freeze(network: nn.Module, groups: Sequence[ParameterGroup]) -> None:
    """Disables the gradients of parameters in frozen groups."""
    for name, parameter in network.named_parameters():
        if any(group.frozen and group.matches(name) for group in groups):
            parameter.requires_grad_(False)


def make_optimizer(
    make: Callable[[Iterable[Any]], Optimizer],
    network: nn.Module,
    groups: Sequence[ParameterGroup],
) -> Optimizer:
    """Freezes what groups freeze, and makes the optimizer of the other parameters.

    An optimizer with an argument `network`, such as Muon, gets the network.

    Raises:
        ConfigError: all errors: a pattern that matches nothing, a parameter in two groups, a
            setting that the optimizer does not have, or nothing left to train.
    """
    _avoid_compiler_import()
    bound: Any = make
    if "network" in inspect.signature(make).parameters:
        bound = partial(bound, network=network)
    return _make(bound, network, groups)


def _make(
    make: Callable[[Iterable[Any]], Optimizer], network: nn.Module, groups: Sequence[ParameterGroup]
) -> Optimizer:
    if not groups:
        return make(network.parameters())
    freeze(network, groups)
    parameters = dict(network.named_parameters())
    errors = [*_wrong_patterns([*parameters], groups)]
    others = [p for name, p in parameters.items() if not any(g.matches(name) for g in groups)]
    sections = [
        {"params": [p for name, p in parameters.items() if group.matches(name)], **group.settings}
        for group in groups
        if not group.frozen
    ]
    if not errors and not others and not sections:
        errors.append("optimizer.groups freezes all parameters of the network: nothing is left")
    refuse(errors)
    # PyTorch refuses an empty list of parameters, and takes unknown settings without a word.
    optimizer = make([*([{"params": others}] if others else []), *sections])
    refuse(
        [
            f"optimizer.groups.{group.name}.{setting}: {type(optimizer).__name__} has no such "
            f"setting; it has {', '.join(optimizer.defaults)}"
            f"{nearest(setting, [*optimizer.defaults])}"
            for group in groups
            for setting in group.settings
            if setting not in optimizer.defaults
        ]
    )
    return optimizer


def _wrong_patterns(names: Sequence[str], groups: Sequence[ParameterGroup]) -> Iterable[str]:
    """Yields patterns that match no parameter, and parameters that several groups match."""
    listed = shorten(", ".join(names), 300)
    for group in groups:
        for pattern in group.match:
            if not any(_matches(name, pattern) for name in names):
                yield (
                    f"optimizer.groups.{group.name}.match: {pattern!r} matches no parameter of the "
                    f"network, which has {listed}{nearest(pattern, names)}"
                )
    for name in names:
        owners = [group.name for group in groups if group.matches(name)]
        if len(owners) > 1:
            yield (
                f"optimizer.groups: the parameter {name} is in {' and in '.join(owners)}; "
                "narrow the pattern of one of them"
            )


def _avoid_compiler_import() -> None:
    """Keeps PyTorch from importing its compiler: 1.0 s in each process that makes an optimizer.

    The first call of an optimizer imports it only to mark these methods as not to be compiled. Does
    nothing if the compiler is imported already, or if a release of PyTorch keeps its mark in
    another place.
    """
    if "torch._dynamo" not in sys.modules:
        for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
            if (method := getattr(getattr(Optimizer, name), "__wrapped__", None)) is not None:
                method.__dynamo_disable = method


def step_of(optimizer: Optimizer) -> Callable[[], object]:
    """Returns the function that makes one step of an optimizer.

    For PyTorch's own classes it is their step without its wrapper, which would import the compiler
    and takes 0.02 ms of 0.09 ms for Adam. With hooks it is `optimizer.step`.
    """
    kind = type(optimizer)
    hooks = [
        *(optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks),
        *(module._global_optimizer_pre_hooks, module._global_optimizer_post_hooks),
    ]
    foreign = not kind.__module__.startswith(("torch.optim.", "studyloom.optimizers"))
    if foreign or optimizer.defaults.get("differentiable") or any(hooks):
        return optimizer.step
    unwrapped = inspect.unwrap(kind.step)

    def step() -> None:
        with torch.no_grad():
            unwrapped(optimizer)

    return step


@dataclass(frozen=True)
class TorchSchedule:
    """A scheduler of PyTorch, waiting for the optimizer.

    Args:
        settings: its arguments. `schedulers`, of schedulers that are made of others, holds
            TorchSchedules. What is missing and known here is filled in: `total_steps` and `T_max`
            are the length of the training, in steps or epochs as `interval` says, and `mode` is
            that of the metric.
        interval: how often it steps: after each `epoch`, or each `step` of the optimizer; None for
            what PyTorch documents, which is `step` for OneCycleLR and CyclicLR, else `epoch`.
            ReduceLROnPlateau steps on the validation value, after each epoch.
        recorded: the values that ReduceLROnPlateau steps on, one for each epoch, instead of those
            of the training, as in a final training, which has no validation set.

    Raises:
        ValueError: the interval is unknown, or is `step` for ReduceLROnPlateau.
    """

    kind: type[LRScheduler]
    settings: dict[str, Any]
    interval: str | None = None
    recorded: Sequence[float] = ()

    def __post_init__(self) -> None:
        if self.interval not in (None, *INTERVALS):
            raise ValueError(
                f"scheduler.interval must be {' or '.join(INTERVALS)}, or be left out; "
                f"got {self.interval!r}"
            )
        if self.interval == "step" and self.steps_on_value:
            raise ValueError(
                "scheduler.interval must be epoch for ReduceLROnPlateau, since there is a "
                "validation value after each epoch only; got 'step'"
            )

    @property
    def steps_on_value(self) -> bool:
        """Whether it steps on the validation value."""
        return issubclass(self.kind, ReduceLROnPlateau)

    @property
    def every_step(self) -> bool:
        """Whether it steps with the optimizer, and not after each epoch."""
        if self.interval is None:
            return issubclass(self.kind, EVERY_STEP)
        return self.interval == "step"

    def make(
        self,
        optimizer: Optimizer,
        epochs: int,
        steps_per_epoch: int,
        metric: Metric,
        outer: "TorchSchedule | None" = None,
    ) -> LRScheduler:
        """Makes the scheduler of an optimizer; `outer` steps it if it is one of several.

        Raises:
            ValueError: `mode` contradicts the metric, `interval` the outer scheduler, or PyTorch
                refuses a setting.
        """
        every_step = self.every_step if outer is None else outer.every_step
        if self.interval not in (None, INTERVALS[every_step]):
            raise ValueError(
                f"scheduler.schedulers: interval must be {INTERVALS[every_step]}, as that of the "
                f"scheduler that steps them, or be left out; got {self.interval}"
            )
        length = epochs * steps_per_epoch if every_step else epochs
        offered: dict[str, Any] = {"total_steps": length, "T_max": length}
        if self.steps_on_value:
            offered["mode"] = mode = metric.direction[:3]
            if self.settings.get("mode", mode) != mode:
                better = "more" if metric.sign > 0 else "less"
                raise ValueError(
                    f"scheduler.mode must be {mode}, since {better} {metric.name} is better, or be "
                    f"left out; got {self.settings['mode']}"
                )
        if "epochs" in self.settings:
            offered.pop("total_steps")
        accepted = inspect.signature(self.kind).parameters
        settings = {k: v for k, v in offered.items() if k in accepted} | deepcopy(self.settings)
        if "schedulers" in settings:
            settings["schedulers"] = [
                inner.make(optimizer, epochs, steps_per_epoch, metric, outer or self)
                for inner in settings["schedulers"]
            ]
        return self.kind(optimizer=optimizer, **settings)


Schedule = Callable[[float], float] | TorchSchedule


class Rates:
    """Sets the learning rates of one training's optimizer."""

    def __init__(
        self,
        schedule: Schedule,
        optimizer: Optimizer,
        epochs: int,
        steps_per_epoch: int,
        metric: Metric,
    ) -> None:
        self._schedule, self._optimizer = schedule, optimizer
        self._base = [group["lr"] for group in optimizer.param_groups]
        self._scheduler: LRScheduler | None = None
        if isinstance(schedule, TorchSchedule):
            self._scheduler = schedule.make(optimizer, epochs, steps_per_epoch, metric)
        self._every_step = isinstance(schedule, TorchSchedule) and schedule.every_step

    def before_step(self, progress: float) -> None:
        """Sets the rates of a step."""
        if not isinstance(self._schedule, TorchSchedule):
            # A float, since NumPy's scalars cannot be saved.
            factor = float(self._schedule(progress))
            for group, rate in zip(self._optimizer.param_groups, self._base, strict=True):
                group["lr"] = rate * factor

    def after_step(self) -> None:
        if self._every_step:
            self._step()

    def after_epoch(self, value: float) -> None:
        """Steps an epoch's scheduler, given the validation value of the epoch that has ended."""
        if isinstance(self._scheduler, ReduceLROnPlateau):
            assert isinstance(self._schedule, TorchSchedule)
            if self._schedule.recorded:
                value = self._schedule.recorded[self._scheduler.last_epoch]
            self._scheduler.step(value)
        elif not self._every_step:
            self._step()

    def _step(self) -> None:
        if self._scheduler is not None:
            # Our steps pass by the method that PyTorch watches, and without this it would warn that
            # there were none.
            self._optimizer._opt_called = True  # type: ignore[attr-defined]
            self._scheduler.step()

    def state(self) -> dict[str, Any] | None:
        return None if self._scheduler is None else dict(self._scheduler.state_dict())

    def restore(self, state: dict[str, Any] | None) -> None:
        if self._scheduler is not None:
            if state is None:
                raise ValueError("it holds no state of a scheduler")
            self._scheduler.load_state_dict(deepcopy(state))


def check_schedule(schedule: Schedule) -> None:
    """Raises ValueError unless a function maps progress to a factor, at the start of training."""
    if isinstance(schedule, TorchSchedule):
        return
    try:
        factor: Any = schedule(0.0)
        usable = hasattr(factor, "__float__") and 0 <= float(factor) < math.inf
        wrong = None if usable else f"got {factor!r} for progress 0"
    except ValueError:  # which says what is wrong
        raise
    except Exception as error:
        wrong = name_error(error)
    if wrong is not None:
        raise ValueError(
            f"scheduler: {wrong}; a schedule is a function of progress from 0 to 1 to a factor on "
            "the rate, with _partial_: true, or a class of torch.optim.lr_scheduler"
        )
