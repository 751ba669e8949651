"""What is stored with a trial, read by name: how it ended, what it cost, and who made it.

Importing this module imports no torch: `studyloom status` uses it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Generic, TypeVar

from optuna.trial import FrozenTrial, TrialState

from studyloom.storage import attributes
from studyloom.text import mask_passwords

T = TypeVar("T")


class Stored(Generic[T]):
    """Reads an attribute of a trial by its key; the default if the trial has none.

    What is of another type than `attributes.TYPES` has was left out as the trial was read.
    """

    def __init__(self, key: str, default: T) -> None:
        self.key, self.default = key, default

    def __get__(self, record: "TrialRecord", owner: type) -> T:
        value: T | None = record.trial.user_attrs.get(self.key)
        return self.default if value is None else value


@dataclass(frozen=True)
class TrialRecord:
    """Reads what is stored with a trial of a worker's; a missing attribute is its default."""

    trial: FrozenTrial

    slot = Stored[int | None](attributes.SLOT, None)
    worker = Stored[str | None](attributes.WORKER, None)
    kind = Stored[str | None](attributes.FAILURE, None)  # of failure
    times = Stored[Mapping[str, float]](attributes.TIMES, {})
    paused = Stored[int | None](attributes.PAUSED, None)
    rungs = Stored[Sequence[int]](attributes.RUNGS, ())
    planned_epochs = Stored[int | None](attributes.PLANNED_EPOCHS, None)
    standard_error = Stored[float | None](attributes.STANDARD_ERROR, None)
    resumed = Stored[attributes.Resumed | None](attributes.RESUMED, None)
    reused = Stored[str | None](attributes.REUSED, None)
    is_kept = Stored[bool](attributes.KEPT, False)
    forgotten = Stored[Sequence[str]](attributes.FORGOTTEN, ())
    made = Stored[Mapping[str, Any]](attributes.MADE, {})
    traceback = Stored[str | None](attributes.TRACEBACK, None)
    proposed = Stored[Any](attributes.PROPOSED, None)
    columns = Stored[dict[str, list[Any]]](attributes.EPOCHS, {})  # of its epochs, once it ended

    @property
    def is_baseline(self) -> bool:
        return attributes.BASELINE in self.trial.user_attrs

    @property
    def is_given(self) -> bool:
        """Whether a user, a program or an earlier study gave its configuration."""
        return self.is_baseline or attributes.ENQUEUED in self.trial.user_attrs

    @property
    def outcome(self) -> str:
        """How it ended, or its state: complete, pruned, failed, paused, running, waiting.

        A trial that diverged has failed, although the sampler sees it as pruned.
        """
        trial = self.trial
        if self.kind is not None or trial.state == TrialState.FAIL:
            return "failed"
        if trial.state == TrialState.RUNNING and self.paused is not None:
            return "paused"
        return trial.state.name.lower()

    @property
    def reason(self) -> str | None:
        """Why it failed; None if nothing is stored."""
        reason = self.trial.user_attrs.get(attributes.REASON)
        return None if reason is None else mask_passwords(str(reason))

    def proposer(self, key: str = "by") -> str | None:
        """Returns by whom, or `why`, it was proposed; None if sampler or command chose it."""
        proposed = self.proposed
        return str(proposed.get(key, "")) if isinstance(proposed, Mapping) else None

    @property
    def config(self) -> dict[str, Any] | None:
        """The configuration that it was made of; None if it stored none."""
        config = self.made.get("config")
        return config if isinstance(config, dict) else None

    @property
    def curve(self) -> dict[str, list[Any]]:
        """The learning curve by column, of which `number` and `value` are two.

        Until the trial has ended or come to a rung these are the steps that it reported, and that
        Optuna's pruners and dashboard read; then those of each epoch, of whatever jobs in turn.
        Empty if it has reported nothing.
        """
        columns, reports = self.columns, self.trial.intermediate_values
        if not columns and reports:
            numbers, values = zip(*sorted(reports.items()), strict=True)
            columns = {"number": [*numbers], "value": [*values]}
        return columns

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Yields the learning curve, each epoch by its columns.

        A value may be None where another epoch has one.
        """
        columns = self.curve
        for epoch in zip_longest(*columns.values()):
            yield dict(zip(columns, epoch, strict=True))

    @property
    def epoch_count(self) -> int:
        """How many epochs it has trained; of folds and seeds in turn, all of each."""
        return max(len(self.curve.get("value", ())), len(self.trial.intermediate_values))

    @property
    def seconds(self) -> float | None:
        """The seconds that workers spent on it, without their start-up; None until it has ended.

        A trial that did not store them counts from its start to its end, interruptions included.
        """
        if not self.trial.state.is_finished():
            return None
        if "training" in self.times:
            spent = (each for kind, each in self.times.items() if kind != "start-up")
            return round(sum(spent), 4)
        duration = self.trial.duration
        return None if duration is None else duration.total_seconds()
