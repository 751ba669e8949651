"""Compares two courses of one training: as a trial stored it, and as a replay repeated it.

A course is a number for each epoch and quantity, the value at the end of a loop, and the failure.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from studyloom.storage import failures
from studyloom.storage.attributes import COLUMNS, EPOCHS, JOBS
from studyloom.storage.trial_record import TrialRecord

FURTHER_QUANTITIES = ("train_loss", "valid_loss")  # of a network that studyloom trains
# Another number of threads, processor or release adds in another order. Between one and two
# threads, six epochs on MNIST-5k were at most 0.9% apart in their losses and 1 of 800 images.
# Near divergence the same rounding is amplified without bound (150 images at a rate of 0.3): that
# is reported as different, since no tolerance would mean anything there.
MOST_LOSS = 0.05  # how far apart losses may be, as a share
MOST_EXAMPLES = 0.01  # by how many validation examples accuracies may differ, as a share
OUTSIDE = (failures.TIMEOUT, failures.CRASHED)  # failures whose cause lies outside the trial
# Failures whose reason holds computed numbers; the wording of other reasons may change.
WITH_NUMBERS = (failures.DIVERGED, failures.INFEASIBLE)


@dataclass(frozen=True)
class Course:
    """Describes how a training went: as a trial stored it, or as a replay repeated it.

    Args:
        curve: by quantity, a number for each epoch from 1 on; None where a loop reported none. The
            value is called by the name of the metric, and is the first.
        value: the value that a loop returned at its end; None if it did not come so far.
        jobs: the epochs that were trained in all jobs together, such as those of each fold.
    """

    curve: Mapping[str, Sequence[float | None]]
    failure: failures.Failure | None
    value: float | None = None
    jobs: int = 0

    @property
    def epochs(self) -> int:
        """The number of epochs of the curve."""
        return len(self.curve[self.metric])

    @property
    def metric(self) -> str:
        """The name of the metric, the first quantity of the curve."""
        return next(iter(self.curve))

    @property
    def failed_inside(self) -> bool:
        """True if it failed by itself, so that a replay must fail too."""
        return self.failure is not None and self.failure.kind not in OUTSIDE

    @classmethod
    def read(cls, trial: FrozenTrial, metric: str, *, is_loop: bool) -> "Course":
        """Reads the course of a trial; if its workers died, as far as they had reported it.

        Args:
            is_loop: whether it called a custom loop, which names its curves itself.

        Raises:
            ValueError: its curves have different lengths.
        """
        columns = TrialRecord(trial).columns
        curve = _read_curve(trial, metric, is_loop=is_loop)
        if len({len(numbers) for numbers in curve.values()}) > 1:
            raise ValueError(
                f"its attribute `{EPOCHS}` must have a number for each epoch and quantity"
            )
        counts = (columns or {}).get(JOBS, [1] * len(curve[metric]))
        jobs = sum(int(count or 0) for count in counts)
        failure = failures.Failure.read(trial)
        value = None
        # Optuna gives a pruned trial the value of its last report, which no loop has returned.
        has_ended = failure is None and trial.state != TrialState.PRUNED
        if is_loop and has_ended and trial.values:
            value = trial.values[0]
        return cls(curve, failure, value, jobs)

    def find_difference(self, replayed: "Course", tolerance: "Tolerance | None") -> str | None:
        """Returns the first number or failure that differs: "epoch 3, value: stored 0.5, now 0.6".

        Without a tolerance numbers must be equal bit for bit.
        """

        def are_equal(quantity: str, stored: float | None, now: float | None) -> bool:
            if stored == now:
                return True
            return tolerance is not None and tolerance.holds(quantity, stored, now)

        for position in range(min(self.epochs, replayed.epochs)):
            for quantity, stored_numbers in self.curve.items():
                stored = stored_numbers[position]
                now = None
                if quantity in replayed.curve:
                    now = replayed.curve[quantity][position]
                if not are_equal(quantity, stored, now):
                    return _format_difference(position + 1, quantity, stored, now)
        both_returned = self.value is not None and replayed.failure is None
        if both_returned and not are_equal(self.metric, self.value, replayed.value):
            epoch = replayed.epochs
            return _format_difference(epoch, self.metric, self.value, replayed.value)
        return self._find_failure_difference(replayed, exactly=tolerance is None)

    def _find_failure_difference(self, replayed: "Course", *, exactly: bool) -> str | None:
        """Returns how the failures differ; one from outside the trial need not be repeated."""
        expected = None
        if self.failed_inside:
            expected = self.failure
        stored = _format_failure(expected, exactly=exactly)
        now = _format_failure(replayed.failure, exactly=exactly)
        if stored == now:
            return None
        epoch = replayed.epochs
        if replayed.failure is not None:
            epoch += 1  # it failed within the next epoch
        return _format_difference(epoch, "failure", stored, now)


def _read_curve(
    trial: FrozenTrial, metric: str, *, is_loop: bool
) -> dict[str, Sequence[float | None]]:
    """Returns the numbers of each epoch by quantity, the metric first."""
    columns = TrialRecord(trial).columns
    if not columns:  # its workers died: only the values that they had reported are stored
        return {metric: [value for _, value in sorted(trial.intermediate_values.items())]}
    names: Sequence[str] = FURTHER_QUANTITIES
    if is_loop:
        names = [name for name in columns if name not in COLUMNS]
    curve: dict[str, Sequence[float | None]] = {metric: columns.get("value", [])}
    for name in names:
        curve[name] = columns.get(name, [])
    return curve


def _format_difference(epoch: int, quantity: str, stored: object, now: object) -> str:
    return f"epoch {epoch}, {quantity}: stored {stored}, now {now}"


@dataclass(frozen=True)
class Tolerance:
    """Decides how far apart two trainings may be and still count as equal.

    Args:
        examples: how many validation examples there are; 0 if that is not known.
    """

    metric: str
    examples: int

    @property
    def most_examples(self) -> int:
        """The number of validation examples by which accuracies may differ; 0 for other metrics."""
        if self.metric != "accuracy" or self.examples == 0:
            return 0
        return max(1, math.ceil(MOST_EXAMPLES * self.examples))

    def holds(self, quantity: str, stored: float | None, replayed: float | None) -> bool:
        """Returns True if two values are close enough; None is a value that was not reported."""
        if stored is None or replayed is None:
            return stored is replayed
        if quantity == self.metric and self.most_examples:
            # The accuracy may be a mean over folds, and then is no multiple of one example.
            examples_apart = abs(replayed - stored) * self.examples
            return examples_apart <= self.most_examples + 1e-6
        return math.isclose(stored, replayed, rel_tol=MOST_LOSS, abs_tol=1e-6)

    def __str__(self) -> str:
        if not self.most_examples:
            return f"losses and {self.metric} within {MOST_LOSS:.0%}"
        return (
            f"losses within {MOST_LOSS:.0%}, "
            f"accuracies within {self.most_examples} of {self.examples} validation examples"
        )


def _format_failure(failure: failures.Failure | None, *, exactly: bool) -> str:
    """Formats a failure so that two equal failures of different versions have the same text.

    The reason is left out where its wording may change between versions.
    """
    if failure is None:
        return "none"
    if exactly and failure.kind in WITH_NUMBERS:
        return f"{failure.kind} ({failure.reason})"
    if exactly and failure.kind == failures.ERROR:
        class_of_exception = failure.reason.partition(":")[0]
        return f"{failure.kind} ({class_of_exception})"
    return failure.kind
