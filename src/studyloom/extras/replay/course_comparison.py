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

# What studyloom stores for each epoch of a network, besides the metric.
FURTHER_QUANTITIES = ("train_loss", "valid_loss")
# Another number of threads, processor or release adds in another order. Between one and two
# threads, six epochs on MNIST-5k were at most 0.9% apart in their losses and 1 of 800 images.
# Near divergence the same rounding is amplified without bound (150 images at a rate of 0.3): that
# is reported as different, since no tolerance would mean anything there.
LOSS_TOLERANCE = 0.05  # how far apart losses may be, as a share
EXAMPLES_TOLERANCE = 0.01  # by how many validation examples accuracies may differ, as a share
ROUNDING = 1e-6  # of means
EXTERNAL = (failures.TIMEOUT, failures.CRASHED)  # failures whose cause lies outside the trial
# Failures whose reason holds computed numbers; the wording of other reasons may change.
WITH_NUMBERS = (failures.DIVERGED, failures.INFEASIBLE)


@dataclass(frozen=True)
class Course:
    """Describes how a training went: as a trial stored it, or as a replay repeated it.

    Args:
        curve: by quantity, a number for each epoch from 1 on; None where a loop reported none. The
            value is called by the name of the metric, and is the first.
        value: the value that a loop returned at its end; None if it did not come so far.
        trained_epochs: the epochs of all jobs together. A trial has a job for each fold and seed,
            which are trained side by side: an epoch of the curve is one of each job.
    """

    curve: Mapping[str, Sequence[float | None]]
    failure: failures.Failure | None
    value: float | None = None
    trained_epochs: int = 0

    @property
    def epochs(self) -> int:
        """The number of epochs of the curve."""
        return len(self.curve[self.metric])

    @property
    def metric(self) -> str:
        """The name of the metric, the first quantity of the curve."""
        return next(iter(self.curve))

    @property
    def failed_by_itself(self) -> bool:
        """True if it failed, and the cause lies in the trial: then a replay must fail too."""
        return self.failure is not None and self.failure.kind not in EXTERNAL

    @classmethod
    def read(cls, trial: FrozenTrial, metric: str, *, is_loop: bool) -> "Course":
        """Reads the course of a trial from what the database holds of it.

        Args:
            is_loop: whether the trial called a custom loop, which names its curves itself.

        Raises:
            ValueError: its curves have different lengths.
        """
        curve = _read_curve(trial, metric, is_loop=is_loop)
        lengths = {len(numbers) for numbers in curve.values()}
        if len(lengths) > 1:
            raise ValueError(
                f"its attribute `{EPOCHS}` must have a number for each epoch and quantity"
            )
        trained_epochs = len(curve[metric])
        columns = TrialRecord(trial).columns
        if columns and JOBS in columns:  # the number of jobs that trained, for each epoch
            trained_epochs = sum(int(count or 0) for count in columns[JOBS])
        failure = failures.Failure.read(trial)
        # The value that a loop returned. Optuna gives a pruned trial the value of its last report,
        # which no loop has returned.
        value = None
        has_returned = failure is None and trial.state != TrialState.PRUNED
        if is_loop and has_returned and trial.values:
            value = trial.values[0]
        return cls(curve, failure, value, trained_epochs)

    def find_difference(self, replayed: "Course", tolerance: "Tolerance | None") -> str | None:
        """Returns the first number or failure that differs: "epoch 3, value: stored 0.5, now 0.6".

        Args:
            replayed: the course of the replay. It is compared as far as both have epochs.
            tolerance: how far apart numbers may be; None if they must be equal bit for bit.

        Returns:
            None if nothing differs.
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
                    epoch = position + 1
                    return _format_difference(epoch, quantity, stored, now)
        # The value that the loop returned at its end.
        returned_both_times = self.value is not None and replayed.failure is None
        if returned_both_times and not are_equal(self.metric, self.value, replayed.value):
            epoch = replayed.epochs
            return _format_difference(epoch, self.metric, self.value, replayed.value)
        must_be_equal = tolerance is None
        return self._find_failure_difference(replayed, exactly=must_be_equal)

    def _find_failure_difference(self, replayed: "Course", *, exactly: bool) -> str | None:
        """Returns how the failures differ; None if they do not.

        A stored failure from outside the trial, such as a crash, need not be repeated. Every
        failure of the replay counts.

        Args:
            exactly: whether to compare what the reasons of failures have in all versions.
        """
        expected = None
        if self.failed_by_itself:
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
    """Returns the numbers of each epoch by quantity, the metric first.

    If the workers of a trial died, only the values that they reported are stored: Optuna's
    intermediate values.

    Args:
        is_loop: whether a custom loop trained, whose further quantities have any names.
    """
    columns = TrialRecord(trial).columns
    if not columns:
        values = [value for _, value in sorted(trial.intermediate_values.items())]
        return {metric: values}
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
    def allowed_examples(self) -> int:
        """The number of validation examples by which accuracies may differ; 0 for other metrics."""
        if self.metric != "accuracy" or self.examples == 0:
            return 0
        return max(1, math.ceil(EXAMPLES_TOLERANCE * self.examples))

    def holds(self, quantity: str, stored: float | None, replayed: float | None) -> bool:
        """Returns True if two values are close enough; None is a value that was not reported."""
        if stored is None or replayed is None:
            return stored is replayed  # True if both are None
        if quantity == self.metric and self.allowed_examples:
            # The accuracy may be a mean over folds, and then is no multiple of one example.
            examples_apart = abs(replayed - stored) * self.examples
            return examples_apart <= self.allowed_examples + ROUNDING
        return math.isclose(stored, replayed, rel_tol=LOSS_TOLERANCE, abs_tol=ROUNDING)

    def __str__(self) -> str:
        if not self.allowed_examples:
            return f"losses and {self.metric} within {LOSS_TOLERANCE:.0%}"
        return (
            f"losses within {LOSS_TOLERANCE:.0%}, "
            f"accuracies within {self.allowed_examples} of {self.examples} validation examples"
        )


def _format_failure(failure: failures.Failure | None, *, exactly: bool) -> str:
    """Formats a failure so that two equal failures of different versions have the same text.

    Args:
        exactly: whether to include what the reason has in all versions: computed numbers, or the
            name of an exception. Other wording may change, and is left out.
    """
    if failure is None:
        return "none"
    if exactly and failure.kind in WITH_NUMBERS:
        return f"{failure.kind} ({failure.reason})"
    if exactly and failure.kind == failures.ERROR:
        exception_name, _, _ = failure.reason.partition(":")  # of `ValueError: …`
        return f"{failure.kind} ({exception_name})"
    return failure.kind
