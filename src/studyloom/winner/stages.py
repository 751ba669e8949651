"""The stages after the search: what each trains, and the study in which it is stored.

The trainings of a stage are another study in the database of the search. Workers share them, and
they survive crashes as the search does. `StagePlanner` plans a stage from what is known so far; a
`PlannedStage` becomes a `CandidateStage` once it is stored.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from studyloom.config.schema import WinnerSection
from studyloom.errors import DefinitionError
from studyloom.space.rule import Rule
from studyloom.space.tree import Point
from studyloom.storage.command_record import StoredCommand, store_stage
from studyloom.storage.opening import create_in_same_database, list_differences
from studyloom.storage.stored_study import (
    ABLATION,
    FINAL_TRAINING,
    REEVALUATION,
    StageName,
    StoredStudy,
    open_in_same_database,
)
from studyloom.winner.ablation import Defaults, Names
from studyloom.winner.candidates import Candidates, CandidateTrainings, Origin
from studyloom.winner.stored_trainings import (
    CandidateStage,
    find_earlier_trainings,
    networks_folder,
)
from studyloom.worker.open_study import OpenStudy

WITH_SIMPLE = "with the simple configuration"  # in the name of a final training


@dataclass(frozen=True)
class PlannedStage:
    """A stage after the search, which may not be stored yet.

    Args:
        name: the name of its stored study, which has all that its trainings depend on but the
            candidates.
        repeats_reevaluation: whether its trainings have the seeds and examples of the
            re-evaluation, as those of a final training may.
        keeps_networks: whether the trained networks are saved.
        later_trials: how many trainings follow in later stages, at most.
    """

    study: OpenStudy
    title: str
    name: StageName
    trainings: CandidateTrainings
    repeats_reevaluation: bool
    keeps_networks: bool
    later_trials: int

    @property
    def trials(self) -> int:
        """The number of trainings."""
        return len(self.trainings.trainings)

    @property
    def identity(self) -> dict[str, Any]:
        """The definition of the stored study."""
        candidates = [
            {"trial": origin.trial, "defaults": [*origin.defaults]}
            for origin in self.trainings.candidates
        ]
        code = self.study.stored.code()
        return {"candidates": candidates, "seeds": self.trainings.seeds, **code}

    @property
    def names(self) -> tuple[str, str]:
        """The names under which the study may be stored.

        The second one is used if the first has other candidates, as after a trial was deleted, or
        the baseline was trained again.
        """
        candidates = repr(self.identity["candidates"])
        return str(self.name), str(self.name.with_detail(_short_digest(candidates)))

    def find(self) -> CandidateStage | None:
        """Returns the stage with its stored study; None if no worker has begun it.

        A worker that makes the study stores its slots last. Until then no slot is open, and the
        stage would look as if all its trainings had ended.
        """
        for name in self.names:
            stored = open_in_same_database(self.study.stored, name)
            if stored is None:
                return None
            if not list_differences(stored.definition() or {}, self.identity):
                if sum(stored.ledger.counts().values()) < self.trials:
                    return None
                return self._make_stage(stored)
        return None

    def begin(self) -> CandidateStage:
        """Creates the stored study, unless another worker has, and returns the stage with it."""
        first, second = self.names
        try:
            stored = self._create(first)
        except DefinitionError:  # it has other candidates
            stored = self._create(second)
        store_stage(self.study.stored, self.title, stored.name)
        return self._make_stage(stored)

    def _create(self, name: str) -> StoredStudy:
        """Creates the stored study, or opens it; raises DefinitionError if it differs."""
        objectives = [self.study.definition.metric]
        return create_in_same_database(
            self.study.stored, name, self.identity, self.trials, objectives
        )

    def _make_stage(self, stored: StoredStudy) -> CandidateStage:
        """Makes the stage with its stored study."""
        folder = None
        weights = None
        if self.keeps_networks:
            folder = self.study.run_dir / "winner"
            weights = networks_folder(folder, stored.name)
        find_earlier = partial(
            find_earlier_trainings,
            self.study.stored,
            self.title,
            stored.name,
            self.identity,
            folder,
            repeats_reevaluation=self.repeats_reevaluation and self.title == FINAL_TRAINING,
        )
        trainings = replace(self.trainings, find_earlier=find_earlier)
        return CandidateStage(
            title=self.title,
            stored=stored,
            source=trainings,
            strategy=trainings,
            trials=self.trials,
            weights=weights,
            later_trials=self.later_trials,
        )


@dataclass(frozen=True)
class StagePlanner:
    """Plans the stages after the search of a study.

    Args:
        rule: chooses the candidates, and the winner among them.
    """

    study: OpenStudy
    rule: Rule

    @property
    def settings(self) -> WinnerSection:
        """The section `winner` of the study's config."""
        return winner_settings(self.study)

    def plan_reevaluation(self, candidates: Candidates) -> PlannedStage:
        """Plans the re-evaluation: every candidate on new seeds and validation sets."""
        points = {origin: source.point for origin, source in candidates.items()}
        return self._plan(REEVALUATION, points)

    def plan_ablation(
        self, winner: Origin, defaults: Defaults, removed_changes: Iterable[Names]
    ) -> PlannedStage:
        """Plans an ablation: the winner with hyperparameters at their defaults.

        Args:
            removed_changes: the hyperparameters that are put back, for each training.
        """
        points = {}
        for names in removed_changes:
            points[replace(winner, defaults=names)] = defaults.put_back(names)
        detail = ""
        together = max(len(origin.defaults) for origin in points)
        if together > 1:
            detail = f"{together} together"
        return self._plan(ABLATION, points, detail)

    def plan_final_training(
        self, candidates: Candidates, points: Mapping[Origin, Point]
    ) -> PlannedStage:
        """Plans the final training: on all training data.

        Each ReduceLROnPlateau steps on the values of the candidate's trial in the search: on
        examples that it trains on, the metric reaches its plateau later, or never.

        Args:
            points: the configurations to train; the one whose origin has defaults is the simple
                configuration.
        """
        detail = ""
        if any(origin.defaults for origin in points):
            detail = WITH_SIMPLE
        plan = self._plan(FINAL_TRAINING, points, detail)
        if plan.repeats_reevaluation:
            return plan
        points_with_values = {}
        for origin, point in points.items():
            values = candidates[Origin(origin.trial)].recorded_values
            points_with_values[origin] = self.study.definition.with_recorded_values(point, values)
        return replace(plan, trainings=replace(plan.trainings, candidates=points_with_values))

    def has_simple(self) -> bool | None:
        """Returns whether the stored final training has the simple configuration.

        None if there is no final training of this budget and rule.
        """
        stored_name = StoredCommand.read(self.study.stored).stages.get(FINAL_TRAINING, "")
        if not f"{stored_name} ".startswith(f"{self._name(FINAL_TRAINING)} "):
            return None
        return WITH_SIMPLE in stored_name

    def _plan(self, title: str, points: Mapping[Origin, Point], detail: str = "") -> PlannedStage:
        """Plans a stage.

        Args:
            points: the configurations to train.
            detail: an addition to the name of the stage.
        """
        definition = self.study.definition
        is_final = title == FINAL_TRAINING
        trainings = CandidateTrainings(
            definition, self.study.data, points, self.settings.seeds, trains_on_all=is_final
        )
        repeats_reevaluation = trainings.repeats_reevaluation
        later_trials = 0
        if definition.tested and not is_final:
            later_trials = count_trainings_after(self.study)
        return PlannedStage(
            study=self.study,
            title=title,
            name=self._name(title).with_detail(detail),
            trainings=trainings,
            repeats_reevaluation=repeats_reevaluation,
            # The result has the networks of the re-evaluation if there is no final training, or if
            # a final training would only repeat it.
            keeps_networks=is_final or repeats_reevaluation or not definition.tested,
            later_trials=later_trials,
        )

    def _name(self, title: str) -> StageName:
        """Names a stage by the settings that change its trainings."""
        search = self.study.stored
        settings = self.settings
        trials = self.study.search.trials
        name = StageName(search.name, title, trials, settings.top, settings.seeds)
        if self.rule != Rule(search.objectives[0]):
            name = name.with_detail(str(self.rule))  # other candidates, other trainings
        if search.code_changes():  # other code, other trainings
            name = name.with_detail(f"code {_short_digest(repr(sorted(search.code().items())))}")
        return name


def winner_settings(study: OpenStudy) -> WinnerSection:
    """Returns the section `winner` of a study's config."""
    return study.definition.config.winner


def count_trainings_after(study: OpenStudy) -> int:
    """Returns how many trainings follow a stage that is not the last, at most."""
    settings = winner_settings(study)
    return (settings.top + 3) * settings.seeds


def _short_digest(text: str) -> str:
    """Returns a digest for the name of a stage."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
