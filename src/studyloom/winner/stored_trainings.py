"""The stored trainings of the later stages of a study: read, and reused by other stages.

A training is identified by its candidate, a trial of the search, and the number of its seed. A
budget raised from 40 to 60 trials makes new stages, often with the same candidates: they reuse
what earlier stages trained and tested, unless the user's code has changed.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studyloom.errors import NoWinner
from studyloom.objectives.objective import Attempt
from studyloom.storage.attributes import TESTED
from studyloom.storage.ledger import Store
from studyloom.storage.stored_study import (
    ABLATION,
    FINAL_TRAINING,
    REEVALUATION,
    StoredStudy,
    open_in_same_database,
)
from studyloom.storage.trial_record import TrialRecord
from studyloom.training.checkpoint import load_weights
from studyloom.winner.candidates import CandidateTrainings, EarlierTraining, Origin, Training
from studyloom.winner.result import Tested, from_document, to_document
from studyloom.worker.stage import Stage
from studyloom.worker.stopping import Stop


@dataclass(frozen=True)
class CandidateStage(Stage):
    """A stage after the search, whose trials train each candidate with each seed."""

    source: CandidateTrainings

    @property
    def trained(self) -> dict[Training, FrozenTrial]:
        """The ended trials; one that is not complete has failed, though it may have a value."""
        return by_training(trial for trial in self.stored.trials() if trial.state.is_finished())

    def values(self) -> dict[Origin, list[float]]:
        """Returns a value for each seed of each candidate of which no training failed."""
        return {
            candidate: [*values.values()]
            for candidate, values in self._values_by_seed().items()
            if len(values) == self.source.seeds
        }

    def partial_values(self) -> dict[Origin, dict[int, float]]:
        """Returns the values of each candidate of which a training failed, by their seed."""
        return {
            candidate: values
            for candidate, values in self._values_by_seed().items()
            if len(values) < self.source.seeds
        }

    def _values_by_seed(self) -> dict[Origin, dict[int, float]]:
        values = dict[Origin, dict[int, float]]()
        for (candidate, seed), trial in sorted(self.trained.items()):
            if trial.state == TrialState.COMPLETE:
                values.setdefault(candidate, {})[seed] = trial.values[0]
        return values

    def reused(self) -> tuple[int, int]:
        """Counts the trainings that were reused from earlier stages, and all of them."""
        records = map(TrialRecord, self.stored.trials())
        return sum(record.reused is not None for record in records), self.trials

    def load_or_train(self, candidate: Origin, seed: int) -> dict[str, Any] | None:
        """Loads the network of a training; trains it again if its file is on another host.

        Returns:
            The weights of a network, or the states of a loop; None if the loop kept nothing.

        Raises:
            NoWinner: that training has failed.
        """
        assert self.weights is not None
        trial = self.trained[candidate, seed]
        if trial.state != TrialState.COMPLETE:
            reason = TrialRecord(trial).reason or trial.state.name
            raise NoWinner(f"trial {candidate.trial} could not be trained on all data: {reason}")
        try:
            return load_weights(self.weights / f"trial-{trial.number}.pt")
        except (OSError, ValueError):
            if not self.source.definition.tested and not TrialRecord(trial).is_kept:
                return None
        attempt = Attempt(stage=self.title)
        objective = self.source.train_again(candidate, seed, trial.number, attempt)
        objective.run(lambda step: None, Stop())
        return objective.weights()

    def earlier_test(self, search: StoredStudy) -> tuple[Tested, bool] | None:
        """Finds the test of the same networks for an earlier result, if there was one.

        Returns:
            The findings, and whether they come from another stage. If not, the command was killed
            before it wrote the result, or the run directory no longer holds the result.
        """
        own = self.stored.definition() or {}
        for stage in (self.stored, *earlier_stages(search, self.title, self.stored.name, own)):
            (tested,) = stage.attributes(TESTED)
            if tested and stage.definition() == own:
                return from_document(tested, Tested), stage is not self.stored
        return None

    def store_test(self, tested: Tested, store: Store) -> None:
        """Stores the test of these networks, as only the holder of the lease may."""
        store(self.stored.ledger.study_id, TESTED, to_document(tested))


def by_training(trials: Iterable[FrozenTrial]) -> dict[Training, FrozenTrial]:
    """Returns trials of later stages by candidate and seed; the last one of several."""
    return {
        (Origin.read(trial.params), trial.params["seed"]): trial
        for trial in trials
        if {"trial", "seed"} <= {*trial.params}
    }


def earlier_stages(
    search: StoredStudy, title: str, name: str, definition: Mapping[str, Any]
) -> Iterator[StoredStudy]:
    """Yields a stage under other budgets and rules, if it trains the same for a candidate and seed.

    Args:
        definition: of the stage; all of it must be the same but its candidates and seeds.
    """
    for later in search.later_stages():
        study_name = later.study.study_name
        if later.name is not None and later.name.title == title and study_name != name:
            stage = open_in_same_database(search, study_name)
            if stage is not None and _conditions(stage.definition()) == _conditions(definition):
                yield stage


def _conditions(definition: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what a training depends on in addition to its candidate and seed."""
    known = (definition or {}).items()
    return {key: value for key, value in known if key not in ("candidates", "seeds")}


def earlier_trainings(
    search: StoredStudy,
    title: str,
    name: str,
    definition: Mapping[str, Any],
    folder: Path | None,
    *,
    repeats: bool,
) -> Mapping[Training, EarlierTraining]:
    """Finds the trainings of other stages that a stage reuses.

    Args:
        name: of the stored study of the stage.
        definition: of the stage.
        folder: the folder of the networks of all stages; None if they are not needed.
        repeats: whether the stage would repeat the trainings of a re-evaluation or ablation.
    """
    known: dict[Training, EarlierTraining] = {}
    titles = [title]
    if repeats:
        titles += [REEVALUATION, ABLATION]
    stages = [
        stage
        for stage_title in titles
        for stage in earlier_stages(search, stage_title, name, definition)
    ]
    for stage in stages:
        weights = None if folder is None else networks_folder(folder, stage.name)
        complete = (trial for trial in stage.trials() if trial.state == TrialState.COMPLETE)
        for training, trial in by_training(complete).items():
            record = TrialRecord(trial)
            source = record.reused or f"{stage.name}, trial {trial.number}"
            # A loop may have kept nothing; and the networks of older studies are not marked.
            kept = title == FINAL_TRAINING or record.is_kept
            file = weights / f"trial-{trial.number}.pt" if weights and kept else None
            known.setdefault(training, EarlierTraining(trial, source, file))
    return known


def networks_folder(folder: Path, stage: str) -> Path:
    """Returns the folder for the networks of a stage, named after its stored study.

    Stages of other budgets and rules have trials with the same numbers.
    """
    return folder / hashlib.sha256(stage.encode()).hexdigest()[:12]
