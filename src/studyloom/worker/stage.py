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
from optuna.trial import FrozenTrial, Trial

from studyloom.data.training_data import TrainingData
from studyloom.decisions.early_end import decide_early_end
from studyloom.objectives.objective import Attempt, Objective
from studyloom.space.rule import Cost
from studyloom.space.tree import Configuration, Space
from studyloom.storage.attributes import KEPT
from studyloom.storage.stored_study import SEARCH, StoredStudy
from studyloom.training.checkpoint import Checkpoint, save_weights
from studyloom.worker.callbacks import TrialCallback

# A checkpoint, such as trial-12.pt, or the folder of an objective, such as trial-12-0f3a….
TRIAL_FILE = re.compile(r"trial-(?P<number>\d+)[.-]")


class TrialSource(Protocol):
    """A source of trials: a Definition, or the trainings of a later stage."""

    @property
    def space(self) -> Space:
        """The search space, or the grid of a later stage's trainings."""

    @property
    def baseline(self) -> Configuration | None:
        """The configuration of the first trial; None without a baseline."""

    @property
    def seed(self) -> int:
        """The seed of the study."""

    def provenance_sections(self, configuration: Configuration) -> dict[str, Any] | None:
        """Returns the sections of the config that are stored with a trial; None for none."""

    def trains_on(self, data: TrainingData) -> torch.device:
        """Returns the device of a training."""

    def measure_costs(self, configuration: Configuration, data: TrainingData) -> list[Cost]:
        """Measures what a configuration costs before it is trained, for limits."""

    def make_objective(
        self, configuration: Configuration, number: int, data: TrainingData, attempt: Attempt
    ) -> Objective:
        """Makes the training of a trial.

        Args:
            number: the number of the trial, from which its seed is derived.
        """


class TrialStrategy(Protocol):
    """Chooses the configurations of a worker's trials, and stops the weak ones."""

    @property
    def keeps_state(self) -> tuple[str, ...]:
        """Names which of "sampler" and "pruner" remember trials in the worker's process."""

    def sampler(self, number: int, *, redraws: bool = False) -> BaseSampler:
        """Makes the sampler of a trial.

        Args:
            number: the number of the trial, from which the sampler's seed is derived.
            redraws: whether a first configuration of the trial was refused.
        """

    def pruner(self) -> BasePruner:
        """Makes the pruner of a worker."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run: a stored study, where its trials come from, and how they are chosen.

    Args:
        weights: the folder for the network of each complete trial; None to keep none.
        later_trials: how many trials follow in later stages, at most.
        callbacks: the callbacks that get each trial that ends.
    """

    title: str
    stored: StoredStudy
    source: TrialSource
    strategy: TrialStrategy
    trials: int
    weights: Path | None = None
    later_trials: int = 0
    callbacks: Sequence[TrialCallback] = ()

    @property
    def is_search(self) -> bool:
        """Returns whether this stage is the search."""
        return self.title == SEARCH

    def has_ended(self) -> bool:
        """Returns whether it ends early, as by a limit on its epochs, so that no trial begins."""
        return decide_early_end(self.stored, self.trials) is not None

    def count_open_trials(self) -> int:
        """Counts the trials of the budget that have not ended yet.

        Once the stage has ended early, only trials that have begun or are queued are counted.
        """
        return self.stored.ledger.count_open(self.trials, only_with_trial=self.has_ended())

    def remove_stale_files(self, folder: str | None) -> None:
        """Removes files of ended trials from the folder of checkpoints, if there is one."""
        if folder is not None:
            TrialFiles(self, Path(folder)).remove_stale()


@dataclass(frozen=True)
class TrialFiles:
    """The files of the trials of a stage: the states to resume from, and the final weights.

    Args:
        folder: the folder for the states of running trials; None to save none.
    """

    stage: Stage
    folder: Path | None

    def checkpoint(self, number: int, configuration: Configuration) -> Checkpoint | None:
        """Returns the file for the state of a trial; None if states are not saved.

        The file holds an identity, so that it is not restored in another training of this number.
        """
        if self.folder is None:
            return None
        stored = self.stage.stored
        identity = [stored.name, number, self.stage.source.seed, configuration.params]
        return Checkpoint(
            path=self.folder / f"trial-{number}.pt",
            identity=json.dumps(identity, default=str),
            study=stored.ledger.uuid,
        )

    @staticmethod
    def folder_of(checkpoint: Checkpoint) -> Path:
        """Returns the folder for files that the objective of a trial writes itself.

        Its name has a digest of the checkpoint's identity and study, so that a trial of another
        study does not resume from its files.
        """
        identity = checkpoint.identity + checkpoint.study
        digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
        return checkpoint.path.with_name(f"{checkpoint.path.stem}-{digest}")

    def remove(self, number: int, configuration: Configuration) -> None:
        """Removes the files from which another worker would have resumed a trial."""
        checkpoint = self.checkpoint(number, configuration)
        if checkpoint is None:
            return
        with contextlib.suppress(OSError):
            checkpoint.remove()
        shutil.rmtree(self.folder_of(checkpoint), ignore_errors=True)

    def remove_stale(self) -> None:
        """Removes files of ended trials whose worker died before it could remove them."""
        numbers = self._find_trials_with_files()
        if not numbers:  # the trials need not be read
            return
        for trial in self.stage.stored.trials():
            if trial.number in numbers and trial.state.is_finished():
                self._remove_own_files(trial)

    def _find_trials_with_files(self) -> set[int]:
        """Returns the numbers of the trials that have files in the folder."""
        if self.folder is None or not self.folder.is_dir():
            return set()
        numbers = set()
        for path in self.folder.iterdir():
            match = TRIAL_FILE.match(path.name)
            if match:
                numbers.add(int(match["number"]))
        return numbers

    def _remove_own_files(self, trial: FrozenTrial) -> None:
        """Removes the files of a trial, unless a trial of its number in another study has them."""
        try:
            configuration = self.stage.source.space.make_configuration(trial.params)
        except KeyError:  # the space no longer has its hyperparameters
            return
        checkpoint = self.checkpoint(trial.number, configuration)
        if checkpoint is not None and not checkpoint.is_of_another_training():
            self.remove(trial.number, configuration)

    def keep_weights(self, trial: Trial, objective: Objective) -> None:
        """Saves the weights of a complete trial for the result, if its stage keeps weights."""
        folder = self.stage.weights
        if folder is None:
            return
        weights = objective.weights()
        if weights is None:
            return
        save_weights(folder / f"trial-{trial.number}.pt", weights)
        trial.set_user_attr(KEPT, True)
