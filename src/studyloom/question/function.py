"""Any objective: a function of one's own, `(config, report) -> value`, called with the configuration of each trial."""

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
    """A question whose trials call a function; nothing is trained for it, or tested."""

    tested: ClassVar[bool] = False

    @staticmethod
    def gather(cfg: DictConfig) -> TrainingData:
        return TrainingData()

    @functools.cached_property
    def metric(self) -> Metric:
        """The value that the function gives, under the name that `objective.metric` has for it.

        Raises:
            ConfigError: it is not said which way it is better.
        """
        name, direction = self.config.objective.metric, self.config.objective.direction
        if direction not in DIRECTIONS:
            said = (
                "a function does not say which way its value is better"
                if direction is None
                else "is neither"
            )
            raise ConfigError(
                [f"objective.direction={direction}: {said}; set {' or '.join(DIRECTIONS)}"]
            )
        if not isinstance(name, str):
            raise ConfigError(
                ["objective.metric: a function gives the value itself; here stands what to call it"]
            )
        return Metric("value" if name == "accuracy" else name, direction, _none)

    @functools.cached_property
    def limits(self) -> list[Limit]:
        return parse_limits(value_at(self.config, "objective.constraints"), {})

    def preflight(self, data: TrainingData) -> list[str]:
        objective = self.config.objective
        try:
            problem = takes_two(build_function(objective))
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
        """The function, to be called at a point with a seed."""
        at = self.at(point)
        return FunctionObjective(build_function(at.objective), at, seed)


def _none(outputs: object, targets: object) -> None:
    raise AssertionError("a function of one's own gives the value itself")


@dataclass(frozen=True)
class Report:
    """What a function reported. seconds: since the report before."""

    number: int
    value: float
    seconds: float


@dataclass
class FunctionObjective:
    """The effort of a function: a step is what it reports, and the value is what it gives.

    It is called with the configuration, and a seed there, `config.seed`, from which PyTorch's, NumPy's and Python's own
    random numbers start too. It cannot be gone on with: a trial that was handed back begins anew.
    """

    function: Function
    config: DictConfig
    seed: int
    said: list[Report] = field(default_factory=list)
    epochs: None = None
    stride: int = 1
    evaluating: float = 0.0

    def run(self, say: Callable[[Step], None], stopping: Stopping) -> float:
        """Calls the function; between its reports a signal may end it at any moment.

        Raises:
            Undefined: the value, or one that it reports, is no finite number.
        """
        given = self.config.copy()
        with open_dict(given):
            given["seed"] = self.seed
        OmegaConf.set_readonly(given, True)
        began = time.perf_counter()
        ended: list[
            BaseException
        ] = []  # a function may catch all exceptions; the next report raises it again

        with ExitStack() as interruptible, seeded(self.seed):

            def report(value: Any, step: int) -> None:
                nonlocal began
                if ended:
                    raise ended[0]
                interruptible.close()  # what is said is not to be left halfway
                now = time.perf_counter()
                try:
                    number = _step(step, self.said[-1].number if self.said else -1)
                    self.said.append(
                        Report(
                            number, finite(value, f"reported {value!r} at step {step}"), now - began
                        )
                    )
                    say(self.said[-1])
                except BaseException as error:
                    ended.append(error)
                    raise
                began = time.perf_counter()
                interruptible.enter_context(stopping.interruptible())

            interruptible.enter_context(stopping.interruptible())
            value = self.function(given, report)
        if ended:
            raise ended[0]
        return finite(value, f"gave {value!r}")

    def steps(self) -> Sequence[Step]:
        return self.said

    def cut(self, number: int) -> None:
        self.said = [said for said in self.said if said.number <= number]

    def curves(self) -> dict[str, list[Any]]:
        return {
            name: [getattr(said, name) for said in self.said]
            for name in ("number", "value", "seconds")
        }

    def standard_error(self) -> None:
        return None

    def state(self) -> None:
        return None

    def restore(self, state: dict[str, Any]) -> None:
        raise ValueError("a function cannot be gone on with")

    def weights(self) -> None:
        return None


def finite(value: Any, what: str) -> float:
    """A number of any library's, as Python's.

    Raises:
        Undefined: it is none, or not finite.
    """
    try:
        number = math.nan if isinstance(value, str | bool | None) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UndefinedMetric(f"the objective {what}: expected a finite number")
    return number


def _step(step: Any, before: int) -> int:
    if isinstance(step, bool) or not isinstance(step, int | np.integer) or step <= before:
        raise UndefinedMetric(
            f"the objective reported at step {step!r}: expected a whole number, from {before + 1} on"
        )
    return int(step)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers from a seed, and the caller's afterwards as if nothing had been drawn."""
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


def takes_two(function: Callable[..., Any]) -> str | None:
    """Why a function cannot be called with a configuration and a way to report, or None."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        return f"{error}; it is called with a configuration and a function that reports: (config, report) -> value"
    except ValueError:  # C has no signatures
        return None
    return None
