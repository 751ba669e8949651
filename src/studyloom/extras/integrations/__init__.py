"""Integrations: existing trainings, unchanged, as objectives of a study.

A config names adapters, as `objective._target_: studyloom.extras.integrations.Command`. A custom
loop imports those of trainers, each of which needs the extra of its name. The validations of a
trainer are the epochs of a run, and what it logs there is reported.
"""

import math
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from studyloom.errors import UndefinedMetric
from studyloom.objectives.loop_run import Run
from studyloom.storage.attributes import COLUMNS

__all__ = ["Validations", "accelerate", "command", "hydra", "lightning", "transformers"]

# The adapters that configs name, by their module, which is imported when it is used.
ADAPTERS = {"Command": "command", "Hydra": "hydra"}


def __getattr__(name: str) -> Any:
    if name not in ADAPTERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{ADAPTERS[name]}"), name)


class Validations:
    """The validations of a training; each is an epoch of the run.

    Args:
        run: the run of the trial.
        monitored: the name under which the trainer logs the value.
        trainer: the trainer's name, for errors.
        advice: how to make the trainer validate, for errors.
    """

    def __init__(self, run: Run, monitored: str, trainer: str, advice: str) -> None:
        self.run = run
        self.monitored = monitored
        self.trainer = trainer
        self.advice = advice
        self.number: int | None = None  # of the next validation; None before and after training
        self.reported = False  # whether a report waits until `finish` passes it on
        self._epochs: Iterator[int] = iter(())

    @property
    def is_last(self) -> bool:
        """True if no validation comes after the next one."""
        return self.number is not None and self.number == self.run.count

    def next_path(self, suffix: str) -> Path:
        """Returns where to save the state now.

        Two files take turns: the last state must exist until the next one is complete.
        """
        turn = (self.number or 0) % 2
        return self.run.dir / f"{turn}{suffix}"

    def begin(self, count: int | None) -> None:
        """Begins the training; after a checkpoint, once the trainer has restored its state.

        Args:
            count: how many validations there are in all; None if that is not known.
        """
        self._epochs = self.run.epochs(count)
        self._next()

    def report(self, logged: Mapping[str, Any]) -> None:
        """Reports what a validation has logged; it is passed on when `finish` is called.

        Validations before and after training, such as a sanity check, do not count as epochs.

        Raises:
            UndefinedMetric: the monitored name is not among the logged ones, or is not finite.
        """
        if self.number is None:
            return
        if self.monitored not in logged:
            raise UndefinedMetric(
                f"{self.trainer} logs no {self.monitored} when it validates: expected one of "
                f"{', '.join(sorted(logged)) or 'nothing, since it logs nothing'}"
            )
        numbers = {self.run.metric: logged[self.monitored]}
        for name, value in logged.items():
            is_reserved = name in (*COLUMNS, self.run.metric, self.monitored)
            if not is_reserved and math.isfinite(float(value)):
                numbers[name] = float(value)
        self.run.report(**numbers)
        self.reported = True

    def finish(self, files: Path | None = None) -> None:
        """Sends the reports of the validation to the run, if there are any; the trial may end here.

        Args:
            files: the files that the trainer has saved since, to resume from; None if it saved
                nothing.
        """
        if not self.reported:
            return
        if files is not None:
            self.run.keep_files(files)
        self.reported = False
        self._next()

    def end(self) -> None:
        """Ends the training.

        Raises:
            UndefinedMetric: the trainer has never validated.
        """
        self.finish()
        self.number = None
        try:
            self.run.value  # noqa: B018  raises if nothing was reported
        except UndefinedMetric:
            raise UndefinedMetric(
                f"{self.trainer} has never validated, so there is no {self.monitored}: expected a "
                f"validation in training; {self.advice}"
            ) from None

    def _next(self) -> None:
        """Counts the next validation; after the last one the number stays."""
        self.number = next(self._epochs, self.number or 0)
