"""Learning rates in training: by a function of progress, or by a scheduler of PyTorch."""

import inspect
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from studyloom.metrics import Metric

INTERVALS = ("epoch", "step")
EVERY_STEP = (OneCycleLR, CyclicLR)  # which PyTorch documents for each step, and not each epoch


@dataclass(frozen=True)
class TorchSchedule:
    """A scheduler of PyTorch, waiting for the optimizer.

    Args:
        kind: the class.
        settings: its arguments. `schedulers`, of schedulers that are made of others, holds
            TorchSchedules. What is missing and known here is filled in: `total_steps` and `T_max`
            are the length of the training, in steps or epochs as `interval` says, and `mode` is
            that of the metric.
        interval: how often it steps: after each `epoch`, or each `step` of the optimizer; None for
            what PyTorch documents, which is `step` for OneCycleLR and CyclicLR, else `epoch`.
            ReduceLROnPlateau steps on the validation value, after each epoch.

    Raises:
        ValueError: the interval is unknown, or is `step` for ReduceLROnPlateau.
    """

    kind: type[LRScheduler]
    settings: dict[str, Any]
    interval: str | None = None

    def __post_init__(self) -> None:
        if self.interval not in (None, *INTERVALS):
            raise ValueError(
                f"scheduler.interval must be {' or '.join(INTERVALS)}, or be left out; "
                f"got {self.interval!r}"
            )
        if self.interval == "step" and issubclass(self.kind, ReduceLROnPlateau):
            raise ValueError(
                "scheduler.interval must be epoch for ReduceLROnPlateau, since there is a "
                "validation value after each epoch only; got 'step'"
            )

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
        """Makes the scheduler of an optimizer.

        Args:
            optimizer: whose rates it sets.
            epochs: of the training.
            steps_per_epoch: of the optimizer.
            metric: whose value ReduceLROnPlateau steps on.
            outer: steps this one, if it is one of several.

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
        if issubclass(self.kind, ReduceLROnPlateau):
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


class Rates(Protocol):
    """Sets the learning rates of one training's optimizer."""

    def before_step(self, progress: float) -> None:
        """Sets the rates of a step, at a share of the training's steps in [0, 1)."""
        ...

    def after_step(self) -> None: ...

    def after_epoch(self, value: float) -> None:
        """Learns the validation value of an epoch that has ended."""
        ...

    def state(self) -> dict[str, Any] | None:
        """Returns what `restore` needs beside the state of the optimizer; None if nothing."""
        ...

    def restore(self, state: dict[str, Any] | None) -> None: ...


class FunctionRates:
    """Multiplies the base rates with a function of progress.

    Args:
        optimizer: whose rates it sets; those it has now are the base rates.
        schedule: maps progress to a factor.
    """

    def __init__(self, optimizer: Optimizer, schedule: Callable[[float], float]) -> None:
        self._optimizer, self._schedule = optimizer, schedule
        self._base = [group["lr"] for group in optimizer.param_groups]

    def before_step(self, progress: float) -> None:
        # A float, since NumPy's scalars cannot be saved.
        factor = float(self._schedule(progress))
        for group, rate in zip(self._optimizer.param_groups, self._base, strict=True):
            group["lr"] = rate * factor

    def after_step(self) -> None:
        pass

    def after_epoch(self, value: float) -> None:
        pass

    def state(self) -> None:
        return None

    def restore(self, state: dict[str, Any] | None) -> None:
        pass


class SchedulerRates:
    """Has a scheduler of PyTorch set the rates.

    Args:
        scheduler: of the optimizer.
        every_step: whether it steps with the optimizer, and not after each epoch.
    """

    def __init__(self, scheduler: LRScheduler, every_step: bool) -> None:
        self._scheduler, self._every_step = scheduler, every_step

    def before_step(self, progress: float) -> None:
        pass

    def after_step(self) -> None:
        if self._every_step:
            self._step()

    def after_epoch(self, value: float) -> None:
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(value)
        elif not self._every_step:
            self._step()

    def _step(self) -> None:
        # The steps of the optimizer pass by the method that PyTorch watches, and without this it
        # would warn that there were none.
        self._scheduler.optimizer._opt_called = True  # type: ignore[attr-defined]
        self._scheduler.step()

    def state(self) -> dict[str, Any]:
        return dict(self._scheduler.state_dict())

    def restore(self, state: dict[str, Any] | None) -> None:
        if state is None:
            raise ValueError("it holds no state of a scheduler")
        self._scheduler.load_state_dict(deepcopy(state))


def make_rates(
    schedule: Callable[[float], float] | TorchSchedule,
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    metric: Metric,
) -> Rates:
    """Makes what sets the rates of an optimizer; see `TorchSchedule.make` for the arguments."""
    if isinstance(schedule, TorchSchedule):
        scheduler = schedule.make(optimizer, epochs, steps_per_epoch, metric)
        return SchedulerRates(scheduler, schedule.every_step)
    return FunctionRates(optimizer, schedule)


def check_schedule(schedule: Callable[[float], float] | TorchSchedule) -> None:
    """Checks that a function maps progress to a factor, at the start of training.

    Raises:
        ValueError: it does not.
    """
    if isinstance(schedule, TorchSchedule):
        return
    way_out = (
        "a schedule is a function of progress from 0 to 1 to a factor on the rate, with "
        "_partial_: true, or a class of torch.optim.lr_scheduler"
    )
    try:
        factor: Any = schedule(0.0)
    except ValueError:  # which says what is wrong
        raise
    except Exception as error:
        raise ValueError(f"scheduler: {type(error).__name__}: {error}; {way_out}") from error
    try:
        usable = math.isfinite(float(factor)) and float(factor) >= 0
    except (TypeError, ValueError):
        usable = False
    if not usable:
        raise ValueError(f"scheduler: got {factor!r} for progress 0; {way_out}")
