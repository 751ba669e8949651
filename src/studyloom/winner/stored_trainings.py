"""The stored trainings of the later stages of a study: read, and reused by other stages.

A training is identified by its candidate, a trial of the search, and the number of its seed. A
budget raised from 40 to 60 trials makes new stages, often with the same candidates: they reuse
what earlier stages trained and tested, unless the user's code has changed.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from studyloom.winner.candidates import CandidateId, CandidateTrainings, EarlierTraining, Training
from studyloom.winner.result import Tested, from_document, to_document
from studyloom.worker.stage import Stage
from studyloom.worker.stopping import Stop


@dataclass(frozen=True)
class StoredTest:
    """The stored test of a stage's networks.

    Args:
        is_earlier: whether another stage with the same networks was tested. If not, the command
            was killed before it wrote the result, or the run directory no longer holds the result.
    """

    tested: Tested
    is_earlier: bool


@dataclass(frozen=True)
class CandidateStage(Stage):
    """A stage after the search, whose trials train each candidate with each seed."""

    source: CandidateTrainings

    @property
    def ended_trials(self) -> dict[Training, FrozenTrial]:
        """The ended trials; one that is not complete has failed, though it may have a value."""
        return group_by_training(
            trial for trial in self.stored.trials() if trial.state.is_finished()
        )

    def values(self) -> dict[CandidateId, list[float]]:
        """Returns the candidates without failed trainings, each with a value for each seed."""
        values = {}
        for candidate_id, values_by_seed in self._find_values().items():
            if len(values_by_seed) == self.source.seeds:
                values[candidate_id] = list(values_by_seed.values())
        return values

    def partial_values(self) -> dict[CandidateId, dict[int, float]]:
        """Returns the candidates with failed trainings, each with its other values by seed."""
        values = {}
        for candidate_id, values_by_seed in self._find_values().items():
            if len(values_by_seed) < self.source.seeds:
                values[candidate_id] = values_by_seed
        return values

    def _find_values(self) -> dict[CandidateId, dict[int, float]]:
        """Returns the value of each complete training, by candidate and number of the seed."""
        values: dict[CandidateId, dict[int, float]] = {}
        for training, trial in sorted(self.ended_trials.items()):
            if trial.state == TrialState.COMPLETE:
                values_by_seed = values.setdefault(training.candidate, {})
                values_by_seed[training.seed] = trial.values[0]
        return values

    def curve(self, training: Training) -> Sequence[float]:
        """Returns the value of each epoch of an ended training."""
        return TrialRecord(self.ended_trials[training]).columns.get("value", [])

    def count_reused(self) -> tuple[int, int]:
        """Counts the trainings that were reused from earlier stages, and all of them."""
        reused = 0
        for trial in self.stored.trials():
            if TrialRecord(trial).reused is not None:
                reused += 1
        return reused, self.trials

    def load_or_train(self, training: Training) -> dict[str, Any] | None:
        """Loads the network of a training; trains it again if its file is on another host.

        Returns:
            The weights of a network, or the states of a loop; None if the loop kept nothing.

        Raises:
            NoWinner: that training has failed.
        """
        assert self.weights is not None
        trial = self.ended_trials[training]
        if trial.state != TrialState.COMPLETE:
            reason = TrialRecord(trial).reason or trial.state.name
            number = training.candidate.trial
            raise NoWinner(f"trial {number} could not be trained on all data: {reason}")
        try:
            return load_weights(self.weights / f"trial-{trial.number}.pt")
        except (OSError, ValueError):
            # A loop must keep something only if it is tested. Otherwise there is a file, maybe on
            # another host, only if the trial is marked as kept.
            must_keep = self.source.definition.tests_kept_states
            if not must_keep and not TrialRecord(trial).is_kept:
                return None
        attempt = Attempt(stage=self.title)
        objective = self.source.make_new_objective(training, trial.number, attempt)
        objective.run(lambda step: None, Stop())
        return objective.weights()

    def find_test(self, search: StoredStudy) -> StoredTest | None:
        """Finds the test of these networks; None if they were not tested.

        An earlier stage, of another budget or rule, had the same networks if its definition is
        equal, with the same candidates and seeds. Its test counts then.
        """
        definition = self.stored.definition() or {}
        earlier_stages = find_earlier_stages(search, self.title, self.stored.name, definition)
        for stage in (self.stored, *earlier_stages):
            (document,) = stage.attributes(TESTED)  # None if the stage was not tested
            if document and stage.definition() == definition:
                try:
                    tested = from_document(document, Tested)
                except ValueError:  # another version of studyloom has stored it: it is repeated
                    continue
                return StoredTest(tested, is_earlier=stage is not self.stored)
        return None

    def store_test(self, tested: Tested, store: Store) -> None:
        """Stores the test of these networks with the stage.

        Args:
            store: writes to the database for the only command that may test the winner now.
        """
        store(self.stored.ledger.study_id, TESTED, to_document(tested))


def group_by_training(trials: Iterable[FrozenTrial]) -> dict[Training, FrozenTrial]:
    """Returns trials by their candidate and seed; of several with the same, the last one.

    Trials of another program, without these hyperparameters, are left out.
    """
    trials_by_training = {}
    for trial in trials:
        params = trial.params
        if "trial" in params and "seed" in params:
            trials_by_training[Training(CandidateId.read(params), params["seed"])] = trial
    return trials_by_training


def find_earlier_stages(
    search: StoredStudy, title: str, name: str, definition: Mapping[str, object]
) -> Iterator[StoredStudy]:
    """Finds the earlier stages whose trainings a stage can reuse.

    A study that was continued with another budget or rule has several stages of one title, with
    different names. A training with the same candidate and seed has the same result in all stages
    that are found.

    Args:
        title: the title of the stages to find, such as "re-evaluation".
        name: the name of the stage itself, which is left out.
        definition: the definition of the stage; the definitions of the others may differ only in
            candidates and seeds.
    """
    conditions = _find_conditions(definition)
    for listed_stage in search.later_stages():
        stage_name = listed_stage.study.study_name
        parsed_name = listed_stage.name  # None if another program has made the stage
        has_title = parsed_name is not None and parsed_name.title == title
        if not has_title or stage_name == name:
            continue
        stage = open_in_same_database(search, stage_name)
        if stage is not None and _find_conditions(stage.definition()) == conditions:
            yield stage


def _find_conditions(definition: Mapping[str, object] | None) -> dict[str, object]:
    """Returns a stage's definition without candidates and seeds: mainly the user's code."""
    conditions = dict(definition or {})
    conditions.pop("candidates", None)
    conditions.pop("seeds", None)
    return conditions


def find_earlier_trainings(
    search: StoredStudy,
    title: str,
    name: str,
    definition: Mapping[str, object],
    folder: Path | None,
    *,
    repeats_reevaluation: bool,
    tests_kept_states: bool,
) -> Mapping[Training, EarlierTraining]:
    """Finds the trainings of other stages that a stage reuses.

    Args:
        title: the title of the stage that may reuse them.
        name: the name of its stored study.
        definition: the definition of that study.
        folder: the folder of the networks of all stages; None if they are not needed.
        repeats_reevaluation: whether its trainings have the seeds and examples of a re-evaluation
            or ablation, which it then reuses too.
        tests_kept_states: whether each final training must keep a network, for the test.

    Returns:
        The trainings by candidate and seed; of several with the same, the first that is found.
    """
    titles = [title]
    if repeats_reevaluation:
        titles += [REEVALUATION, ABLATION]
    stages: list[StoredStudy] = []
    for stage_title in titles:
        stages += find_earlier_stages(search, stage_title, name, definition)
    trainings: dict[Training, EarlierTraining] = {}
    for stage in stages:
        complete_trials = [trial for trial in stage.trials() if trial.state == TrialState.COMPLETE]
        for training, trial in group_by_training(complete_trials).items():
            record = TrialRecord(trial)
            # A loop may have kept nothing in a re-evaluation. Each final training keeps a network
            # if the test needs it, though those of older studies are not marked as kept.
            must_have_network = title == FINAL_TRAINING and tests_kept_states
            has_network = must_have_network or record.is_kept
            file = None
            if folder is not None and has_network:
                file = networks_folder(folder, stage.name) / f"trial-{trial.number}.pt"
            source = record.reused or f"{stage.name}, trial {trial.number}"
            trainings.setdefault(training, EarlierTraining(trial, source, file))
    return trainings


def networks_folder(folder: Path, stage: str) -> Path:
    """Returns the folder for the networks of a stage, named after its stored study.

    Stages of other budgets and rules have trials with the same numbers.
    """
    return folder / hashlib.sha256(stage.encode()).hexdigest()[:12]
