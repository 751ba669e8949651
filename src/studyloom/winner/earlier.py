"""What earlier stages of a study have done, so that a new one need not do it again.

A budget that grows from 40 to 60 trials makes new stages, often of the same candidates. A training
is known by its candidate, which is a trial of the search, and by the number of its seed. All else
belongs to the question of the study, but for the user's own code, which may have changed since.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studyloom.question.objective import StoredObjective
from studyloom.question.sources import code_of
from studyloom.storage.attributes import EPOCHS, KEPT, QUESTION, REUSED, STANDARD_ERROR, TESTED
from studyloom.study.job import RETRAINING
from studyloom.study.stored_study import StoredStudy
from studyloom.training.checkpoint import load_weights


@dataclass(frozen=True)
class EarlierStage:
    """A stage of another budget or rule.

    Args:
        name: of its stored study.
        study_id: of the same.
        attributes: of the same.
    """

    name: str
    study_id: int
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class EarlierTraining:
    """A training that another stage has done.

    Args:
        trial: as it is stored there.
        source: the stage and the number of the trial.
        weights: the file of its network; None if none was kept.
    """

    trial: FrozenTrial
    source: str
    weights: Path | None

    def objective(self) -> StoredObjective | None:
        """Returns an objective that has its result; None if another host keeps its network."""
        kept = None
        if self.weights is not None:
            try:
                kept = load_weights(self.weights)
            except (OSError, ValueError):
                return None
        attributes = self.trial.user_attrs
        columns, error = attributes.get(EPOCHS, {}), attributes.get(STANDARD_ERROR)
        return StoredObjective(self.trial.values[0], columns, error, kept, self.source)


def earlier_stages(search: StoredStudy, title: str, name: str) -> Iterator[EarlierStage]:
    """Yields the same stage of other budgets and rules, if the code of now made its trainings.

    Args:
        search: the study of the search.
        title: of the stage.
        name: of the stored study that is left out: the stage itself.
    """
    code, changed = search.code(), bool(search.code_changes())
    for study in search.storage.get_all_studies():
        if study.study_name.startswith(f"{search.name}/{title} ") and study.study_name != name:
            its = code_of(study.user_attrs.get(QUESTION) or {})
            if its == code or not (its or changed):  # an earlier version stored none
                yield EarlierStage(study.study_name, study._study_id, study.user_attrs)


def earlier_trainings(
    search: StoredStudy, title: str, name: str, folder: Path | None, *, needed: bool = False
) -> Mapping[tuple[int, int], EarlierTraining]:
    """Returns what other stages have trained, by candidate and seed.

    Args:
        search: the study of the search.
        title: of the stage.
        name: of its stored study.
        folder: with the folders of networks; None if the stage keeps none.
        needed: whether a training without a network is of no use.
    """
    known: dict[tuple[int, int], EarlierTraining] = {}
    for stage in earlier_stages(search, title, name):
        weights = None if folder is None else folder / folder_name(stage.name)
        for trial in search.storage.get_all_trials(stage.study_id, deepcopy=False):
            if trial.state == TrialState.COMPLETE and {"candidate", "seed"} <= {*trial.params}:
                source = trial.user_attrs.get(REUSED, f"{stage.name}, trial {trial.number}")
                # A loop may have kept nothing; and a network of before is not marked.
                kept = needed or title == RETRAINING or KEPT in trial.user_attrs
                file = weights / f"trial-{trial.number}.pt" if weights and kept else None
                key = trial.params["candidate"], trial.params["seed"]
                known.setdefault(key, EarlierTraining(trial, source, file))
    return known


def earlier_test(
    search: StoredStudy, retraining: StoredStudy
) -> tuple[dict[str, Any], bool] | None:
    """Returns what the test part gave for the same networks, if it was opened for them.

    Args:
        search: the study of the search.
        retraining: the study of the final trainings.

    Returns:
        the entries of winner.json about the test, and whether they are of another stage: one with
        another budget or rule, and the same winner. Else they are of a command that was killed
        before it wrote the answer, or of an answer that the run directory no longer holds.
    """
    own = retraining.optuna.user_attrs
    others = earlier_stages(search, RETRAINING, retraining.name)
    for attributes, elsewhere in ((own, False), *((stage.attributes, True) for stage in others)):
        tested, asked = attributes.get(TESTED), attributes.get(QUESTION) or {}
        same = all(asked.get(key) == own[QUESTION][key] for key in ("candidates", "seeds"))
        if same and isinstance(tested, dict) and isinstance(tested.get("test"), dict):
            return tested, elsewhere
    return None


def folder_name(stage: str) -> str:
    """Returns the name of the folder with the networks of a stage.

    Trials of other budgets and rules have the same numbers.

    Args:
        stage: the name of its stored study.
    """
    return hashlib.sha256(stage.encode()).hexdigest()[:12]
