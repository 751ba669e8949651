"""The methods that are compared, and what they name as the answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .simulator import Tape
from .surrogates import remembered
from .tables import Results


@dataclass(frozen=True)
class Run:
    """A search.

    Args:
        results: of the task that was searched.
        tape: of the search.
    """

    results: Results
    tape: Tape

    def answers(self) -> list[int]:
        """Names after each epoch the configuration whose last value is the best."""
        last: dict[int, tuple[float, int, int]] = {}  # by trial: value, epoch, configuration
        answers: list[int] = []
        tape = self.tape
        for trial, configuration, epoch, value in zip(
            tape.trials, tape.configurations, tape.epochs, tape.values, strict=True
        ):
            last[trial] = (value, epoch, configuration)
            answers.append(max(last.values())[2])
        return answers


@dataclass(frozen=True)
class Method:
    """A way to search.

    Args:
        name: as it is printed.
        overrides: of the command line.
        first: the points to begin with on LCBench, by the seed of the study.
    """

    name: str
    overrides: tuple[str, ...]
    first: Callable[[int], Sequence[Mapping[str, Any]]] | None = None


BEFORE = "tpe, median"  # Optuna's default, and once this project's
MEDIAN, PROMOTION = ("sampler=tpe", "pruner=median"), ("sampler=tpe", "pruner=asha")
METHODS = (
    Method(BEFORE, MEDIAN),
    Method("random, median", ("sampler=random", "pruner=median")),
    Method("random, promotion", ("sampler=random", "pruner=asha")),
    Method("tpe, promotion from epoch 1", (*PROMOTION, "pruner.min_resource=1")),
    Method("tpe, promotion", PROMOTION),
    Method("memory, tpe, median", MEDIAN, remembered),
    Method("memory, tpe, promotion", PROMOTION, remembered),
)
