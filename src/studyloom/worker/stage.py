"""A stage of a run: the search, or trainings that follow it, each a study in the same database.

A stage defines where its trials come from, how they are chosen, and which files they have.
"""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import Trial

from studyloom.data.training_data import TrainingData
from studyloom.decisions.early_end import decide_early_end
from studyloom.objectives.objective import Attempt, Objective
from studyloom.space.rule import Cost
from studyloom.space.tree import Point, Space
from studyloom.storage.attributes import KEPT
from studyloom.storage.stored_study import SEARCH, StoredStudy
from studyloom.training.checkpoint import Checkpoint, save_weights
from studyloom.worker.callbacks import TrialCallback


class TrialSource(Protocol):
    """A source of trials: a Definition, or the trainings of a later stage."""

    @property
    def space(self) -> Space:
        """The search space, or the grid of a later stage's trainings."""

    @property
    def baseline(self) -> Point | None:
        """The configuration of the first trial; None without a baseline."""

    @property
    def seed(self) -> int:
        """The seed of the study."""

    def provenance_sections(self, point: Point) -> dict[str, Any] | None:
        """Returns the sections of the config that are stored with a trial; None for none."""

    def trains_on(self, data: TrainingData) -> torch.device:
        """Returns the device of a training."""

    def measure_costs(self, point: Point, data: TrainingData) -> list[Cost]:
        """Measures what a configuration costs before it is trained, for limits."""

    def make_objective(
        self, point: Point, number: int, data: TrainingData, attempt: Attempt
    ) -> Objective:
        """Makes the training of a trial.

        Args:
            number: of the trial, from which its seed follows.
        """


class TrialStrategy(Protocol):
    """Chooses the configurations of a worker's trials, and stops the weak ones."""

    @property
    def keeps_state(self) -> tuple[str, ...]:
        """Which of `sampler` and `pruner` is one object for all trials."""

    def sampler(self, number: int, *, redraws: bool = False) -> BaseSampler:
        """Makes the sampler of a trial; `redraws` if its configuration was refused."""

    def pruner(self) -> BasePruner:
        """Makes the pruner of a worker."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run: a stored study, where its trials come from, and how they are chosen.

    Args:
        weights: the folder for the network of each complete trial; None to keep none.
        following: how many trials follow in later stages, at most.
        callbacks: what gets each trial that ends.
    """

    title: str
    stored: StoredStudy
    source: TrialSource
    strategy: TrialStrategy
    trials: int
    weights: Path | None = None
    following: int = 0
    callbacks: Sequence[TrialCallback] = ()

    @property
    def is_search(self) -> bool:
        return self.title == SEARCH

    def has_ended(self) -> bool:
        """Whether it has ended by its bounds, so that no further trial begins."""
        return decide_early_end(self.stored, self.trials) is not None

    def todo(self) -> int:
        """Returns how many trials have not ended yet."""
        return self.stored.ledger.todo(self.trials, begun=self.has_ended())

    def remove_left_files(self, folder: str | None) -> None:
        """Removes the files in a folder of trials whose worker died after their end."""
        if folder is not None:
            TrialFiles(self, Path(folder)).remove_left()


@dataclass(frozen=True)
class TrialFiles:
    """The files of the trials of a stage: what they resume from, and the weights that they keep.

    Args:
        folder: for the states of running trials; None to save none.
    """

    stage: Stage
    folder: Path | None

    def checkpoint(self, number: int, point: Point) -> Checkpoint | None:
        """Returns where the state of trial `number` is saved; None if it is not saved."""
        if self.folder is None:
            return None
        stored = self.stage.stored
        parts = [stored.name, number, self.stage.source.seed, point.params]
        identity, path = json.dumps(parts, default=str), self.folder / f"trial-{number}.pt"
        return Checkpoint(path, identity, stored.ledger.uuid)

    @staticmethod
    def folder_of(checkpoint: Checkpoint) -> Path:
        """Returns the folder for files that the objective of a trial writes itself.

        Its name has a digest of the checkpoint's identity and study, so that a trial of another
        study does not resume from its files.
        """
        named = checkpoint.identity + checkpoint.study
        digest = hashlib.sha256(named.encode()).hexdigest()[:12]
        return checkpoint.path.with_name(f"{checkpoint.path.stem}-{digest}")

    def remove(self, number: int, point: Point) -> None:
        """Removes the files that an ended trial has left for another attempt, if any."""
        if checkpoint := self.checkpoint(number, point):
            with contextlib.suppress(OSError):
                checkpoint.remove()
            shutil.rmtree(self.folder_of(checkpoint), ignore_errors=True)

    def remove_left(self) -> None:
        """Removes files of ended trials whose worker died before it could remove them."""
        if self.folder is None or not self.folder.is_dir():
            return
        found = (re.match(r"trial-(\d+)[.-]", path.name) for path in self.folder.iterdir())
        numbers = {int(match[1]) for match in found if match}
        for trial in self.stage.stored.trials() if numbers else ():
            if trial.number in numbers and trial.state.is_finished():
                with contextlib.suppress(KeyError):
                    point = self.stage.source.space.make_point(trial.params)
                    checkpoint = self.checkpoint(trial.number, point)
                    # Another study may have its files in the same folder.
                    if checkpoint is not None and not checkpoint.is_of_another_training():
                        self.remove(trial.number, point)

    def keep_weights(self, trial: Trial, objective: Objective) -> None:
        """Saves the weights of a complete trial, if they are wanted and it has any."""
        folder = self.stage.weights
        if folder is not None and (weights := objective.weights()) is not None:
            save_weights(folder / f"trial-{trial.number}.pt", weights)
            trial.set_user_attr(KEPT, True)
