"""The optimizer of a training: its groups of parameters, its learning rates and its steps.

A *parameter group* is a part of a network that is trained with its own settings, or not at all. A
*schedule* changes the learning rates during training: it is a function of progress, or a scheduler
of PyTorch.
"""

import inspect
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim import optimizer as optimizer_module
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from studyloom.errors import raise_if_any
from studyloom.metrics import Metric
from studyloom.text import name_error, nearest, shorten
from studyloom.training.checkpoint import State

Settings = dict[str, Any]  # arguments of an optimizer or a scheduler, by name

INTERVALS = ("epoch", "step")
# Schedulers that PyTorch documents for each step of the optimizer; all others are for each epoch.
SCHEDULERS_OF_STEPS = (OneCycleLR, CyclicLR)


@dataclass(frozen=True)
class ParameterGroup:
    """Some parameters of a network, and how they are trained.

    Args:
        match: patterns of names with *, ? and [abc]: of parameters, or of modules, which stand for
            all parameters in them.
        frozen: whether they keep their initial values: they get no gradient, and the optimizer does
            not see them. Buffers in these modules, such as the means of a BatchNorm, still move.
        settings: arguments of the optimizer, such as lr and weight_decay, for these parameters.
            Other arguments are those of the optimizer.
    """

    name: str
    match: tuple[str, ...]
    frozen: bool = False
    settings: Settings = field(default_factory=dict)

    def matches(self, parameter: str) -> bool:
        """Returns whether a parameter of this name is in the group."""
        return any(_matches(parameter, pattern) for pattern in self.match)


def _matches(parameter: str, pattern: str) -> bool:
    """Returns whether a pattern is that of a parameter, or of a module that it is in."""
    return fnmatchcase(parameter, pattern) or fnmatchcase(parameter, f"{pattern}.*")


def freeze(network: nn.Module, groups: Sequence[ParameterGroup]) -> None:
    """Disables the gradients of parameters in frozen groups."""
    frozen_groups = [group for group in groups if group.frozen]
    for name, parameter in network.named_parameters():
        if any(group.matches(name) for group in frozen_groups):
            parameter.requires_grad_(False)


def make_optimizer(
    make: Callable[..., Optimizer], network: nn.Module, groups: Sequence[ParameterGroup]
) -> Optimizer:
    """Freezes the parameters of frozen groups, and makes the optimizer of all others.

    Args:
        make: is called with the parameters, or with dicts of parameters and their settings. It gets
            the network too if it has an argument `network`, as Muon does.

    Raises:
        ConfigError: a pattern matches nothing, a parameter is in two groups, or nothing is left to
            train; or, if none of this is so, the optimizer does not have a setting of a group.
    """
    _avoid_compiler_import()  # which takes a second; PyTorch's optimizers would begin it
    if "network" in inspect.signature(make).parameters:
        make = partial(make, network=network)
    if not groups:
        return make(network.parameters())
    freeze(network, groups)
    names = [name for name, _ in network.named_parameters()]
    errors = [*_check_patterns(names, groups)]
    sections = _split_parameters(network, groups)
    if not errors and not sections:
        errors.append("optimizer.groups freezes all parameters of the network: nothing is left")
    raise_if_any(errors)
    optimizer = make(sections)
    # An optimizer of PyTorch ignores settings that it does not have. Only once it is made does it
    # list those that it has.
    raise_if_any([*_check_settings(optimizer, groups)])
    return optimizer


def _split_parameters(network: nn.Module, groups: Sequence[ParameterGroup]) -> list[Settings]:
    """Returns the parameters that an optimizer trains, as PyTorch takes them.

    A parameter that is in several groups is an error, which `make_optimizer` raises.

    Returns:
        Dicts of parameters and their settings: first one of the parameters that are in no group,
        and then one of each group that is not frozen.
    """
    ungrouped: list[Parameter] = []
    members: dict[str, list[Parameter]] = {group.name: [] for group in groups}
    for name, parameter in network.named_parameters():
        matching_groups = [group for group in groups if group.matches(name)]
        for group in matching_groups:
            members[group.name].append(parameter)
        if not matching_groups:
            ungrouped.append(parameter)
    sections: list[Settings] = []
    if ungrouped:  # PyTorch refuses an empty list
        sections.append({"params": ungrouped})
    for group in groups:
        if not group.frozen:
            sections.append({"params": members[group.name], **group.settings})
    return sections


def _check_patterns(names: Sequence[str], groups: Sequence[ParameterGroup]) -> Iterator[str]:
    """Yields an error for each pattern without a parameter, and each parameter in several groups.

    Args:
        names: of all parameters.
    """
    names_text = shorten(", ".join(names), 300)
    for group in groups:
        for pattern in group.match:
            if not any(_matches(name, pattern) for name in names):
                yield (
                    f"optimizer.groups.{group.name}.match: {pattern!r} matches no parameter of the "
                    f"network, which has {names_text}{nearest(pattern, names)}"
                )
    for name in names:
        owners = [group.name for group in groups if group.matches(name)]
        if len(owners) > 1:
            yield (
                f"optimizer.groups: the parameter {name} is in {' and in '.join(owners)}; "
                "narrow the pattern of one of them"
            )


def _check_settings(optimizer: Optimizer, groups: Sequence[ParameterGroup]) -> Iterator[str]:
    """Yields an error for each setting of a group that an optimizer does not have."""
    optimizer_settings = [*optimizer.defaults]
    for group in groups:
        for setting in group.settings:
            if setting not in optimizer_settings:
                yield (
                    f"optimizer.groups.{group.name}.{setting}: {type(optimizer).__name__} has no "
                    f"such setting; it has {', '.join(optimizer_settings)}"
                    f"{nearest(setting, optimizer_settings)}"
                )


def _avoid_compiler_import() -> None:
    """Keeps PyTorch from importing its compiler: 1.0 s in each process that makes an optimizer.

    PyTorch wraps some methods of optimizers: their first call imports the compiler, only to mark
    the wrapped method as one that is not compiled. A method that has the mark already is called
    without the import. So the mark is set here, unless the compiler is imported already, or a
    release of PyTorch wraps the methods no more.
    """
    if "torch._dynamo" in sys.modules:
        return
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = getattr(Optimizer, name)
        if hasattr(method, "__wrapped__"):
            method.__wrapped__.__dynamo_disable = method.__wrapped__


def find_step(optimizer: Optimizer) -> Callable[[], object]:
    """Returns the function that makes one step of an optimizer, without PyTorch's wrapper.

    PyTorch wraps the step of every optimizer. The wrapper calls hooks, imports the compiler, and
    takes 0.02 ms of 0.09 ms for Adam. It stays if there are hooks, and for a custom class, which
    may rely on it.
    """
    kind = type(optimizer)
    is_custom = not kind.__module__.startswith(("torch.optim.", "studyloom.optimizers"))
    # A differentiable step is itself part of a computation with gradients, which are off below.
    is_differentiable = bool(optimizer.defaults.get("differentiable"))
    if is_custom or is_differentiable or _has_hooks(optimizer):
        return optimizer.step
    unwrapped_step = inspect.unwrap(kind.step)

    def step_without_gradients() -> None:
        with torch.no_grad():
            unwrapped_step(optimizer)

    return step_without_gradients


def _has_hooks(optimizer: Optimizer) -> bool:
    """Returns whether functions are to be called with each step of this or of any optimizer."""
    own_hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    global_hooks = (
        optimizer_module._global_optimizer_pre_hooks
        or optimizer_module._global_optimizer_post_hooks
    )
    return bool(own_hooks or global_hooks)


@dataclass(frozen=True)
class TorchSchedule:
    """A scheduler of PyTorch, waiting for the optimizer.

    Args:
        settings: the scheduler's arguments. `schedulers`, an argument of schedulers that are made
            of others, holds TorchSchedules. Three arguments are filled in if they are missing:
            `total_steps` and `T_max` are the length of the training, in steps or epochs as
            `interval` says, and `mode` is that of the metric.
        interval: how often the scheduler steps: after each `epoch`, or each `step` of the
            optimizer; None for what PyTorch documents, which is `step` for OneCycleLR and CyclicLR,
            else `epoch`. ReduceLROnPlateau steps on the validation value, after each epoch.
        recorded: the values that ReduceLROnPlateau steps on, one for each epoch, instead of those
            of the training, as in a final training, which has no validation set.

    Raises:
        ValueError: the interval is unknown, or is `step` for ReduceLROnPlateau.
    """

    kind: type[LRScheduler]
    settings: Settings
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
        """True if the scheduler steps on the validation value."""
        return issubclass(self.kind, ReduceLROnPlateau)

    @property
    def steps_with_optimizer(self) -> bool:
        """True if the scheduler steps with the optimizer, and not after each epoch."""
        if self.interval is None:
            return issubclass(self.kind, SCHEDULERS_OF_STEPS)
        return self.interval == "step"

    def make(
        self, optimizer: Optimizer, epochs: int, steps_per_epoch: int, metric: Metric
    ) -> LRScheduler:
        """Makes the scheduler of an optimizer.

        Raises:
            ValueError: `mode` contradicts the metric. Or this scheduler is made of others, as a
                SequentialLR is, and the `interval` of one of these differs. Or PyTorch refuses a
                setting.
        """
        if self.steps_with_optimizer:
            interval = "step"
            length = epochs * steps_per_epoch
        else:
            interval = "epoch"
            length = epochs
        return self._make_with_interval(optimizer, interval, length, metric)

    def _make_with_interval(
        self, optimizer: Optimizer, interval: str, length: int, metric: Metric
    ) -> LRScheduler:
        """Makes the scheduler, and before it those that it is made of.

        A SequentialLR, for example, is made of other schedulers, its setting `schedulers`. It steps
        them itself.

        Args:
            interval: how often the outermost scheduler steps, and with it all that it is made of.
            length: of the training, in these intervals.
        """
        if self.interval not in (None, interval):
            raise ValueError(
                f"scheduler.schedulers: interval must be {interval}, as that of the "
                f"scheduler that steps them, or be left out; got {self.interval}"
            )
        settings = self._make_defaults(length, metric) | deepcopy(self.settings)
        if "schedulers" in settings:
            inner_schedules: list[TorchSchedule] = settings["schedulers"]
            schedulers = []
            for schedule in inner_schedules:
                scheduler = schedule._make_with_interval(optimizer, interval, length, metric)
                schedulers.append(scheduler)
            settings["schedulers"] = schedulers
        return self.kind(optimizer=optimizer, **settings)

    def _make_defaults(self, length: int, metric: Metric) -> Settings:
        """Returns arguments of the scheduler that follow from the training, by name."""
        defaults: Settings = {"total_steps": length, "T_max": length}
        if "epochs" in self.settings:  # of OneCycleLR, which computes its total_steps from them
            del defaults["total_steps"]
        if self.steps_on_value:
            defaults["mode"] = self._find_mode(metric)
        accepted = inspect.signature(self.kind).parameters
        return {name: value for name, value in defaults.items() if name in accepted}

    def _find_mode(self, metric: Metric) -> str:
        """Returns min or max for ReduceLROnPlateau; ValueError if the settings say otherwise."""
        mode = "min"
        better = "less"
        if metric.direction == "maximize":
            mode = "max"
            better = "more"
        if self.settings.get("mode", mode) != mode:
            raise ValueError(
                f"scheduler.mode must be {mode}, since {better} {metric.name} is better, or be "
                f"left out; got {self.settings['mode']}"
            )
        return mode


Schedule = Callable[[float], float] | TorchSchedule


class Rates:
    """Sets the learning rates of one training's optimizer.

    With a function of progress it sets them before each step. With a scheduler of PyTorch it steps
    the scheduler after each step or epoch.
    """

    def __init__(
        self,
        schedule: Schedule,
        optimizer: Optimizer,
        epochs: int,
        steps_per_epoch: int,
        metric: Metric,
    ) -> None:
        self._schedule = schedule
        self._optimizer = optimizer
        self._base_rates = [group["lr"] for group in optimizer.param_groups]
        self._scheduler: LRScheduler | None = None
        self._steps_with_optimizer = False
        if isinstance(schedule, TorchSchedule):
            self._scheduler = schedule.make(optimizer, epochs, steps_per_epoch, metric)
            self._steps_with_optimizer = schedule.steps_with_optimizer

    def before_step(self, progress: float) -> None:
        """Sets the rates of a step by a function of progress, in [0, 1)."""
        if isinstance(self._schedule, TorchSchedule):
            return
        # A float, since NumPy's scalars cannot be saved.
        factor = float(self._schedule(progress))
        for group, base_rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = base_rate * factor

    def after_step(self) -> None:
        """Steps a scheduler that steps with the optimizer."""
        if self._steps_with_optimizer:
            self._step_scheduler()

    def after_epoch(self, value: float) -> None:
        """Steps a scheduler that steps after each epoch.

        A final training has no validation set: its ReduceLROnPlateau gets the validation values
        again that were recorded during the search.

        Args:
            value: the validation value of the epoch that has ended.
        """
        if isinstance(self._scheduler, ReduceLROnPlateau):
            assert isinstance(self._schedule, TorchSchedule)
            recorded_values = self._schedule.recorded
            if recorded_values:
                epoch_index = self._scheduler.last_epoch  # of the ended epoch, until `step` adds 1
                self._scheduler.step(recorded_values[epoch_index])
            else:
                self._scheduler.step(value)
        elif not self._steps_with_optimizer:
            self._step_scheduler()

    def _step_scheduler(self) -> None:
        """Steps the scheduler, if there is one."""
        if self._scheduler is None:
            return
        # PyTorch warns if a scheduler steps before the optimizer has. It notes the optimizer's
        # steps by a wrapper of the method `step`, which `find_step` bypasses.
        self._optimizer._opt_called = True  # type: ignore[attr-defined]
        self._scheduler.step()

    def state(self) -> State | None:
        """Returns the scheduler's state dict; None without a scheduler."""
        if self._scheduler is None:
            return None
        return dict(self._scheduler.state_dict())

    def restore(self, state: State | None) -> None:
        """Resumes from a state; raises ValueError if it lacks that of the scheduler."""
        if self._scheduler is None:
            return
        if state is None:
            raise ValueError("it holds no state of a scheduler")
        self._scheduler.load_state_dict(deepcopy(state))


def check_schedule(schedule: Schedule) -> None:
    """Raises ValueError unless a function maps progress to a factor, at the start of training."""
    if isinstance(schedule, TorchSchedule):
        return
    reason = _explain_no_factor(schedule)
    if reason is not None:
        raise ValueError(
            f"scheduler: {reason}; a schedule is a function of progress from 0 to 1 to a factor "
            "on the rate, with _partial_: true, or a class of torch.optim.lr_scheduler"
        )


def _explain_no_factor(schedule: Callable[[float], Any]) -> str | None:
    """Calls a function of progress with 0, the start of training.

    Returns:
        Why it gives no factor for the learning rate there; None if it gives one.

    Raises:
        ValueError: the function raised it; its message says what is wrong.
    """
    try:
        factor = schedule(0.0)
        is_factor = hasattr(factor, "__float__") and 0 <= float(factor) < math.inf
    except ValueError:
        raise
    except Exception as error:
        return name_error(error)
    if not is_factor:
        return f"got {factor!r} for progress 0"
    return None
