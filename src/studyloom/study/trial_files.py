"""The files of trials: what a trial resumes from, and the weights that it keeps."""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial, Trial

from studyloom.definition.objective import Objective
from studyloom.space.tree import Point, Space
from studyloom.storage.attributes import KEPT
from studyloom.training.checkpoint import Checkpoint, save_weights


@dataclass(frozen=True)
class TrialFiles:
    """The files of the trials of one study.

    Args:
        folder: for the states of running trials; None to save none.
        weights: for the weights of complete trials; None to keep none.
    """

    folder: Path | None
    study: str
    seed: int
    weights: Path | None = None

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

    def remove(self, number: int, point: Point) -> None:
        """Removes what a trial that has ended has left for another attempt, if anything."""
        if checkpoint := self.checkpoint(number, point):
            with contextlib.suppress(OSError):
                checkpoint.remove()
            shutil.rmtree(self.folder_of(checkpoint), ignore_errors=True)

    def remove_left(self, read: Callable[[], Sequence[FrozenTrial]], space: Space) -> None:
        """Removes what ended trials have left, whose worker died before it had removed it."""
        if self.folder is None or not self.folder.is_dir():
            return
        found = (re.match(r"trial-(\d+)[.-]", path.name) for path in self.folder.iterdir())
        numbers = {int(match[1]) for match in found if match}
        for trial in read() if numbers else ():
            if trial.number in numbers and trial.state.is_finished():
                with contextlib.suppress(KeyError):
                    point = space.at(trial.params)
                    checkpoint = self.checkpoint(trial.number, point)
                    # Another study may have its files in the same folder.
                    if checkpoint is not None and not checkpoint.is_foreign():
                        self.remove(trial.number, point)

    def keep_weights(self, trial: Trial, objective: Objective) -> None:
        """Saves the weights of a complete trial, if they are wanted and it has any."""
        weights = None if self.weights is None else objective.weights()
        if self.weights is not None and weights is not None:
            save_weights(self.weights / f"trial-{trial.number}.pt", weights)
            trial.set_user_attr(KEPT, True)
