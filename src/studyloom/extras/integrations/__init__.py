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

__all__ = ["Validations", "accelerate", "command", "hydra", "lightning", "script", "transformers"]

# The adapters that configs name, by their module, which is imported when it is used.
ADAPTERS = {"Command": "command", "Hydra": "hydra", "Script": "script"}


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
        self.has_report = False  # whether a report waits until `finish` passes it on
        self._epochs: Iterator[int] = iter(())

    @property
    def is_last(self) -> bool:
        """True if no validation comes after the next one."""
        return self.number is not None and self.number == self.run.count

    def next_path(self, suffix: str) -> Path:
        """Returns the file for the state that the trainer saves next.

        Two files take turns: the last state must exist until the next one is complete.
        """
        name = "0"
        if self.number is not None:
            name = str(self.number % 2)
        return self.run.dir / f"{name}{suffix}"

    def begin(self, count: int | None) -> None:
        """Begins the training; after a checkpoint, once the trainer has restored its state.

        Args:
            count: how many validations there are in all; None if that is not known.
        """
        self._epochs = self.run.epochs(count)
        self._begin_epoch()

    def report(self, logged: Mapping[str, Any]) -> None:
        """Reports what a validation has logged; the run stores it once `finish` is called.

        Validations before and after training, such as a sanity check, do not count as epochs.

        Args:
            logged: the logged numbers, by name. The monitored one becomes the metric; the others
                are reported under their names.

        Raises:
            UndefinedMetric: the monitored name is not among the logged ones, or is not finite.
        """
        if self.number is None:  # before or after training
            return
        if self.monitored not in logged:
            names = ", ".join(sorted(logged)) or "nothing, since it logs nothing"
            raise UndefinedMetric(
                f"{self.trainer} logs no {self.monitored} when it validates: expected one of "
                f"{names}"
            )
        reserved_names = (*COLUMNS, self.run.metric, self.monitored)
        numbers = {self.run.metric: logged[self.monitored]}
        for name, value in logged.items():
            if name not in reserved_names and math.isfinite(float(value)):
                numbers[name] = float(value)
        self.run.report(**numbers)
        self.has_report = True

    def finish(self, files: Path | None = None) -> None:
        """Ends the epoch of the last report, if there is one: the run stores it.

        Trainers call this once they have saved their state. The trial may end here.

        Args:
            files: the saved files, from which the trial would resume; None if there are none.
        """
        if not self.has_report:
            return
        if files is not None:
            self.run.keep_files(files)
        self.has_report = False
        self._begin_epoch()

    def end(self) -> None:
        """Ends the training, and the epoch of its last validation.

        Raises:
            UndefinedMetric: the trainer has never validated.
        """
        self.finish()
        self.number = None  # a validation after the training is no epoch
        try:
            _ = self.run.value  # raises if nothing was reported
        except UndefinedMetric:
            raise UndefinedMetric(
                f"{self.trainer} has never validated, so there is no {self.monitored}: expected a "
                f"validation in training; {self.advice}"
            ) from None

    def _begin_epoch(self) -> None:
        """Takes the next epoch of the run, which stores the report of the one before.

        After the last epoch the number stays.
        """
        self.number = next(self._epochs, self.number or 0)
