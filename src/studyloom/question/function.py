"""A function of the user's own as the objective: `(config, report) -> value`.

It is called with the configuration of each trial, so that a study can search whatever has a value.
"""

import functools
import inspect
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from studyloom.config.values import value_at
from studyloom.data.folds import Fold
from studyloom.data.training_data import TrainingData
from studyloom.errors import ConfigError, UndefinedMetric
from studyloom.metrics import DIRECTIONS, Metric
from studyloom.question.costs import Limit, parse_limits
from studyloom.question.jobs import build_function
from studyloom.question.objective import Step, Stopping
from studyloom.question.question import Question
from studyloom.seeds import derive
from studyloom.space.tree import Point

Function = Callable[[DictConfig, Callable[[Any, int], None]], Any]


@dataclass(frozen=True)
class FunctionQuestion(Question):
    """A question whose trials call a function; see `Question` for its parameters and methods.

    We neither train nor test a network for it, and its data are the function's own affair.
    """

    tested: ClassVar[bool] = False

    @staticmethod
    def gather(cfg: DictConfig) -> TrainingData:
        """Returns no data."""
        return TrainingData()

    @functools.cached_property
    def metric(self) -> Metric:
        """The value that the function returns, under the name that `objective.metric` gives it.

        Raises:
            ConfigError: objective.direction is missing or unknown, or the metric is not a name.
        """
        name, direction = self.config.objective.metric, self.config.objective.direction
        if direction not in DIRECTIONS:
            raise ConfigError(
                [
                    f"objective.direction must be {' or '.join(DIRECTIONS)}, since a function does "
                    f"not say which is better; got {'null' if direction is None else direction}"
                ]
            )
        if not isinstance(name, str):
            raise ConfigError(
                [
                    "objective.metric must be a name for the value, since the function returns the "
                    f"value itself; got {name}"
                ]
            )
        return Metric("value" if name == "accuracy" else name, direction, _no_score)

    @functools.cached_property
    def limits(self) -> list[Limit]:
        """None: what a function costs is not known before it is called.

        Raises:
            ConfigError: `objective.constraints` names a quantity.
        """
        return parse_limits(value_at(self.config, "objective.constraints"), {})

    def preflight(self, data: TrainingData) -> list[str]:
        """Returns the mistakes in the function: it does not exist, or takes other arguments."""
        objective = self.config.objective
        try:
            problem = why_not_callable(build_function(objective))
        except ConfigError as error:
            return error.mistakes
        return [f"objective._target_={objective['_target_']}: {problem}"] if problem else []

    def make_objective(self, point: Point, number: int, data: TrainingData) -> "FunctionObjective":
        return self.call(point, derive(self.seed, number))

    def make_single_objective(
        self, point: Point, seed: int, data: TrainingData, fold: Callable[[], Fold]
    ) -> "FunctionObjective":
        return self.call(point, seed)

    def call(self, point: Point, seed: int) -> "FunctionObjective":
        """Returns an objective that will call the function at a point with a seed."""
        config = self.at(point)
        return FunctionObjective(build_function(config.objective), config, seed)


def _no_score(outputs: object, targets: object) -> None:
    raise AssertionError("a function of the user's own returns the value itself")


@dataclass(frozen=True)
class Report:
    """What a function reported, as a Step.

    Args:
        number: the step that the function gave.
        value: at that step.
        seconds: since the report before, or since the call.
    """

    number: int
    value: float
    seconds: float


@dataclass
class FunctionObjective:
    """Calls a function: each of its reports is a step, and the value is what it returns.

    The function cannot be resumed: a trial that was returned begins anew.

    Args:
        function: called as function(config, report), and report as report(value, step).
        config: of the trial; the function gets a read-only copy, with the seed as `config.seed`.
        seed: the random numbers of PyTorch, NumPy and Python start from it too.
        reports: what the function has reported so far.
    """

    function: Function
    config: DictConfig
    seed: int
    reports: list[Report] = field(default_factory=list)
    epochs: None = None
    stride: int = 1
    evaluating: float = 0.0

    def run(self, report: Callable[[Step], None], stopping: Stopping) -> float:
        """Calls the function; between its reports a signal may end it at any moment.

        Raises:
            UndefinedMetric: the value, or one that the function reports, is not a finite number.
            Exception: what `report` raises, even if the function catches it; see `Objective.run`.
        """
        config = self.config.copy()
        with open_dict(config):
            config["seed"] = self.seed
        OmegaConf.set_readonly(config, True)
        began = time.perf_counter()
        # A function may catch the exception that ends it: the next report raises it again.
        ended_by: list[BaseException] = []

        with ExitStack() as interruptible, seeded(self.seed):

            def take_report(value: Any, step: int) -> None:
                nonlocal began
                if ended_by:
                    raise ended_by[0]
                interruptible.close()  # no signal may cut a report in two
                seconds = time.perf_counter() - began
                try:
                    number = _check_step(step, self.reports[-1].number if self.reports else -1)
                    checked = finite(value, f"reported {value!r} at step {step}")
                    self.reports.append(Report(number, checked, seconds))
                    report(self.reports[-1])
                except BaseException as error:
                    ended_by.append(error)
                    raise
                began = time.perf_counter()
                interruptible.enter_context(stopping.interruptible())

            interruptible.enter_context(stopping.interruptible())
            value = self.function(config, take_report)
        if ended_by:
            raise ended_by[0]
        return finite(value, f"returned {value!r}")

    def steps(self) -> Sequence[Step]:
        return self.reports

    def cut(self, number: int) -> None:
        self.reports = [report for report in self.reports if report.number <= number]

    def curves(self) -> dict[str, list[Any]]:
        return {
            name: [getattr(report, name) for report in self.reports]
            for name in ("number", "value", "seconds")
        }

    def standard_error(self) -> None:
        return None

    def state(self) -> None:
        return None

    def restore(self, state: dict[str, Any]) -> None:
        raise ValueError("the call of a function cannot be resumed")

    def weights(self) -> None:
        return None


def finite(value: Any, what: str) -> float:
    """Converts a number of any library to a float.

    Args:
        value: such as a NumPy scalar, or a tensor of one number.
        what: the objective did, for the error: "returned nan".

    Raises:
        UndefinedMetric: the value is not a number, or not finite.
    """
    try:
        number = math.nan if isinstance(value, str | bool | None) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UndefinedMetric(f"the objective {what}: expected a finite number")
    return number


def _check_step(step: Any, before: int) -> int:
    """The number of a step as an int; raises UndefinedMetric unless it is larger than `before`."""
    if isinstance(step, bool) or not isinstance(step, int | np.integer) or step <= before:
        raise UndefinedMetric(
            f"the objective reported at step {step!r}: expected a whole number of at least "
            f"{before + 1}"
        )
    return int(step)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds Python's, NumPy's and PyTorch's random numbers; restores the caller's at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def why_not_callable(function: Callable[..., Any]) -> str | None:
    """Says why a function cannot be called with a configuration and a way to report, or None."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        signature = "(config, report) -> value"
        return f"{error}; it is called with a configuration and a function to report: {signature}"
    except ValueError:  # a function written in C has no signature
        return None
    return None
