"""The methods that are compared: overrides of a command line, and what is named as the answer."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .simulator import CONF, Tape
from .tables import Task

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """What a method has seen of a task.

    Args:
        task: that was searched.
        tape: of the search.
        order: int (configurations, seeds): trials had the first seed of their configuration.
    """

    task: Task
    tape: Tape
    order: NDArray[np.int64]

    def seen(self, configuration: int, epoch: int) -> float:
        """Returns the value of a configuration after an epoch, as the search has seen it."""
        return float(self.task.values[configuration, self.order[configuration, 0], epoch - 1])

    def truth(self, configuration: int, used: int = 1) -> float:
        """Returns the final value of a configuration: the mean over seeds that nothing has seen.

        Args:
            configuration: of the task.
            used: how many seeds the search and what came after it have seen.
        """
        hidden = self.order[configuration, used if self.task.seeds > used else 0 :]
        return float(self.task.values[configuration, hidden, -1].mean(dtype=np.float64))

    def regret(self, configuration: int, used: int = 1) -> float:
        """Returns how far a configuration is from the best of the task, on the task's scale."""
        return (self.task.best - self.truth(configuration, used)) / self.task.scale


def last_seen(run: Run) -> list[int | None]:
    """Names after each epoch the configuration whose last value is the best."""
    return _best(run, finished=False)


def finished(run: Run) -> list[int | None]:
    """Names after each epoch the best configuration that is trained to the end; None before."""
    return _best(run, finished=True)


def _best(run: Run, finished: bool) -> list[int | None]:
    last: dict[int, tuple[float, int, int]] = {}  # by trial: value, epoch, configuration
    answers: list[int | None] = []
    for trial, configuration, epoch in zip(
        run.tape.trials, run.tape.configurations, run.tape.epochs, strict=True
    ):
        if not finished or epoch == run.task.epochs:
            last[trial] = (run.seen(configuration, epoch), epoch, configuration)
        answers.append(max(last.values())[2] if last else None)
    return answers


@dataclass(frozen=True)
class Method:
    """A way to search.

    Args:
        name: as it is printed.
        overrides: of the command line.
        prunes: whether it is another way on curves than on tables, whose trials have one epoch.
        times: how many budgets it gets.
    """

    name: str
    overrides: tuple[str, ...]
    prunes: bool = False
    times: int = 1

    @property
    def exists(self) -> bool:
        """Whether the configs that it names are there."""
        named = (override.partition("=") for override in self.overrides)
        return all(
            Path(CONF, group, f"{option}.yaml").exists()
            for group, _, option in named
            if group in ("sampler", "pruner")
        )


DEFAULT = "tpe, median"  # as shipped
MEDIAN = "random, median"  # the pruner as shipped, and no sampler beside it
RANDOM, RANDOM_TWICE = "random", "random x2"  # the first half of a search is the other
SCREEN = (
    "sampler=random",
    "pruner=none",
    f"sampler._target_={__package__}.screening.Screening",
    f"pruner._target_={__package__}.screening.FirstEpoch",
)
METHODS = (
    Method(RANDOM_TWICE, ("sampler=random", "pruner=none"), times=2),
    Method(DEFAULT, ("sampler=tpe", "pruner=median")),
    Method(MEDIAN, ("sampler=random", "pruner=median"), prunes=True),
    Method("random, asha", ("sampler=random", "pruner=asha"), prunes=True),
    Method("tpe, asha", ("sampler=tpe", "pruner=asha"), prunes=True),
    Method("one epoch, best ninth", SCREEN, prunes=True),
    Method("random, promotion", ("sampler=random", "pruner=promotion"), prunes=True),
    Method("tpe, promotion", ("sampler=tpe", "pruner=promotion"), prunes=True),
)
