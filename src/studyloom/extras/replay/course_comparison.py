"""Compares two courses of one training: as a trial stored it, and as a replay repeated it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studyloom.storage import failures
from studyloom.storage.attributes import COLUMNS, EPOCHS, JOBS
from studyloom.storage.trial_record import TrialRecord

QUANTITIES = ("value", "train_loss", "valid_loss")
# Another number of threads, processor or release adds in another order. Between one and two
# threads, six epochs on MNIST-5k were at most 0.9% apart in their losses and 1 of 800 images.
# Near divergence the same rounding is amplified without bound (150 images at a rate of 0.3): that
# is reported as different, since no tolerance would mean anything there.
LOSS = 0.05  # relative
COUNTED = 0.01  # of the validation examples, and at least one
OUTSIDE = (failures.TIMEOUT, failures.CRASHED)  # failures whose cause lies outside the trial
# Failures whose reason holds what was computed; the words of the others may change.
WITH_NUMBERS = (failures.DIVERGED, failures.INFEASIBLE)


@dataclass(frozen=True)
class Course:
    """Describes how a training went: as a trial stored it, or as a replay repeated it.

    Args:
        curve: by quantity, a number for each epoch from 1 on; None where a loop reported none. The
            value is called by the name of the metric, and is the first.
        value: that a loop returned at its end; None if it did not come so far.
        jobs: epochs that were trained in all, those of each job counted.
    """

    curve: Mapping[str, Sequence[float | None]]
    failure: failures.Failure | None
    value: float | None = None
    jobs: int = 0

    @property
    def epochs(self) -> int:
        return len(next(iter(self.curve.values()), ()))

    @property
    def failed_inside(self) -> bool:
        """Whether it failed by itself, so that a replay must fail too."""
        return self.failure is not None and self.failure.kind not in OUTSIDE

    @classmethod
    def read(cls, trial: FrozenTrial, metric: str, *, loop: bool) -> "Course":
        """Reads the course of a trial; if its workers died, as far as they had reported it.

        Args:
            loop: whether it called a custom loop, which names its curves itself.
        """
        reported = [value for _, value in sorted(trial.intermediate_values.items())]
        stored = TrialRecord(trial).columns
        columns = stored or {"value": reported}
        further = [name for name in columns if name not in COLUMNS] if loop else QUANTITIES[1:]
        curve = {metric: columns.get("value", [])}
        if stored:
            curve |= {name: columns.get(name, []) for name in further}
        if len({*map(len, curve.values())}) > 1:
            raise ValueError(
                f"its attribute `{EPOCHS}` must have a number for each epoch and quantity"
            )
        jobs = sum(int(count or 0) for count in columns.get(JOBS, [1] * len(curve[metric])))
        failure = failures.Failure.read(trial)
        # Optuna gives a pruned trial the value of its last report.
        returned = loop and failure is None and trial.state != TrialState.PRUNED
        value = trial.values[0] if returned and trial.values else None
        return cls(curve, failure, value, jobs)

    def differs(self, now: "Course", tolerance: "Tolerance | None") -> str | None:
        """Returns the first number or failure that differs: "epoch 3, value: stored 0.5, now 0.6".

        Without a tolerance numbers must be equal bit for bit.
        """

        def differ(quantity: str, before: float | None, value: float | None) -> bool:
            return before != value and not (tolerance and tolerance.holds(quantity, before, value))

        def words(epoch: int, quantity: str, before: Any, value: Any) -> str:
            return f"epoch {epoch}, {quantity}: stored {before}, now {value}"

        for position in range(min(self.epochs, now.epochs)):
            for quantity, values in self.curve.items():
                before = values[position]
                value = now.curve[quantity][position] if quantity in now.curve else None
                if differ(quantity, before, value):
                    return words(position + 1, quantity, before, value)
        metric = next(iter(self.curve))
        returned = self.value is not None and now.failure is None
        if returned and differ(metric, self.value, now.value):
            return words(now.epochs, metric, self.value, now.value)
        exactly = tolerance is None
        failed = _format_failure(self.failure if self.failed_inside else None, exactly=exactly)
        fails = _format_failure(now.failure, exactly=exactly)
        if failed != fails:
            return words(now.epochs + (now.failure is not None), "failure", failed, fails)
        return None


@dataclass(frozen=True)
class Tolerance:
    """Decides how far apart two trainings may be and still count as equal."""

    metric: str
    examples: int

    @property
    def off(self) -> int:
        """Returns by how many validation examples accuracies may differ; 0 for other metrics."""
        counts = self.metric == "accuracy" and self.examples
        return max(1, math.ceil(COUNTED * self.examples)) if counts else 0

    def holds(self, quantity: str, expected: float | None, now: float | None) -> bool:
        """Whether two values of a quantity are close enough; a loop may have reported none."""
        if expected is None or now is None:
            return expected is now
        if quantity == self.metric and self.off:
            # Not in whole examples: the accuracy may be a mean over folds.
            return abs(now - expected) * self.examples <= self.off + 1e-6
        return math.isclose(expected, now, rel_tol=LOSS, abs_tol=1e-6)

    def __str__(self) -> str:
        if not self.off:
            return f"losses and {self.metric} within {LOSS:.0%}"
        return (
            f"losses within {LOSS:.0%}, "
            f"accuracies within {self.off} of {self.examples} validation examples"
        )


def _format_failure(failure: failures.Failure | None, *, exactly: bool) -> str:
    """Formats the words that two failures of one kind share; ours differ between versions."""
    if failure is None:
        return "none"
    if exactly and failure.kind in WITH_NUMBERS:
        return f"{failure.kind} ({failure.reason})"
    if exactly and failure.kind == failures.ERROR:  # the class of the exception
        return f"{failure.kind} ({failure.reason.partition(':')[0]})"
    return failure.kind
