"""The files from which trials go on: checkpoints, and what loops write themselves."""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.space.tree import Parameter, Point, Space
from studyloom.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class TrialFiles:
    """The files of the trials of one study.

    Args:
        folder: where they are; None if no state is saved.
        study: its name.
        seed: of the study.
    """

    folder: Path | None
    study: str
    seed: int

    def checkpoint(self, number: int, point: Point) -> Checkpoint | None:
        """Returns where the state of trial `number` is saved; None if it is not saved."""
        if self.folder is None:
            return None
        parts = [self.study, number, self.seed, point.params]
        return Checkpoint(self.folder / f"trial-{number}.pt", json.dumps(parts, default=str))

    @staticmethod
    def folder_of(checkpoint: Checkpoint) -> Path:
        """Returns the folder for what the objective of a trial writes itself.

        Its name has a digest of the identity of the checkpoint, so that a trial of another study
        does not go on from its files.
        """
        digest = hashlib.sha256(checkpoint.identity.encode()).hexdigest()[:12]
        return checkpoint.path.with_name(f"{checkpoint.path.stem}-{digest}")

    def remove(self, checkpoint: Checkpoint | None) -> None:
        """Removes what a trial that has ended has left for another attempt, if anything."""
        if checkpoint is not None:
            with contextlib.suppress(OSError):
                checkpoint.remove()
            shutil.rmtree(self.folder_of(checkpoint), ignore_errors=True)

    def remove_left(self, read: Callable[[], Sequence[FrozenTrial]], space: Space) -> None:
        """Removes what ended trials have left, whose worker died before it had removed it.

        Args:
            read: returns the trials of the study; called only if there are files.
            space: of the study.
        """
        if self.folder is None or not self.folder.is_dir():
            return
        found = (re.match(r"trial-(\d+)[.-]", path.name) for path in self.folder.iterdir())
        numbers = {int(match[1]) for match in found if match}
        for trial in read() if numbers else ():
            if trial.number in numbers and trial.state.is_finished():
                with contextlib.suppress(KeyError):
                    point = space.walk(partial(_value_of, trial.params))
                    checkpoint = self.checkpoint(trial.number, point)
                    # Another study may have its files in the same folder.
                    if checkpoint is not None and not checkpoint.is_foreign():
                        self.remove(checkpoint)


def _value_of(params: Mapping[str, Any], parameter: Parameter) -> Any:
    return params[parameter.name]
