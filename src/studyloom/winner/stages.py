"""The stages after the search: what each trains, and the study in which it is stored.

The trainings of a stage are another study in the database of the search. Workers share them, and
they survive crashes as the search does.
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
from studyloom.storage.opening import create_in_same_database, differences
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
from studyloom.winner.stored_trainings import CandidateStage, earlier_trainings, networks_folder
from studyloom.worker.open_study import OpenStudy

WITH_SIMPLE = "with the simple configuration"  # in the name of a final training


@dataclass(frozen=True)
class PlannedStage:
    """A stage after the search, which may not be stored yet.

    Args:
        name: of its stored study, by all that its trainings depend on but the candidates.
        repeats: whether it would repeat trainings of the re-evaluation or the ablation.
        keeps: whether the networks are kept.
        following: how many trainings follow in later stages, at most.
    """

    study: OpenStudy
    title: str
    name: StageName
    trainings: CandidateTrainings
    repeats: bool
    keeps: bool
    following: int

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
        digest = hashlib.sha256(candidates.encode()).hexdigest()[:8]
        return str(self.name), str(self.name.with_detail(digest))

    def find(self) -> CandidateStage | None:
        """Returns the stage with its stored study; None if no worker has begun it.

        A worker that makes the study stores its slots last. Until then no slot is open, and the
        stage would look as if all its trainings had ended.
        """
        for name in self.names:
            stored = open_in_same_database(self.study.stored, name)
            if stored is None:
                return None
            if not differences(stored.definition() or {}, self.identity):
                if sum(stored.ledger.counts().values()) < self.trials:
                    return None
                return self._stored_in(stored)
        return None

    def begin(self) -> CandidateStage:
        """Makes the stored study, unless another worker has, and returns the stage with it."""
        first, second = self.names
        try:
            stored = self._create(first)
        except DefinitionError:  # it has other candidates
            stored = self._create(second)
        store_stage(self.study.stored, self.title, stored.name)
        return self._stored_in(stored)

    def _create(self, name: str) -> StoredStudy:
        objectives = [self.study.definition.metric]
        return create_in_same_database(
            self.study.stored, name, self.identity, self.trials, objectives
        )

    def _stored_in(self, stored: StoredStudy) -> CandidateStage:
        folder = self.study.run_dir / "winner" if self.keeps else None
        find_earlier = partial(
            earlier_trainings,
            self.study.stored,
            self.title,
            stored.name,
            self.identity,
            folder,
            repeats=self.repeats and self.title == FINAL_TRAINING,
        )
        trainings = replace(self.trainings, find_earlier=find_earlier)
        return CandidateStage(
            title=self.title,
            stored=stored,
            source=trainings,
            strategy=trainings,
            trials=self.trials,
            weights=None if folder is None else networks_folder(folder, stored.name),
            following=self.following,
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
        return winner_settings(self.study)

    def reevaluation(self, candidates: Candidates) -> PlannedStage:
        """Plans the re-evaluation: every candidate on new seeds and validation sets."""
        points = {origin: source.point for origin, source in candidates.items()}
        return self._plan(REEVALUATION, points)

    def ablation(
        self, winner: Origin, defaults: Defaults, put_back: Iterable[Names]
    ) -> PlannedStage:
        """Plans an ablation: the winner with hyperparameters at their defaults.

        Args:
            put_back: the names of the hyperparameters that each training has at their defaults.
        """
        points = {replace(winner, defaults=names): defaults.put_back(names) for names in put_back}
        together = max(len(origin.defaults) for origin in points)
        return self._plan(ABLATION, points, f"{together} together" if together > 1 else "")

    def final_training(
        self, candidates: Candidates, points: Mapping[Origin, Point]
    ) -> PlannedStage:
        """Plans the final training: on all training data.

        Each ReduceLROnPlateau steps on the values of the candidate's trial in the search: on
        examples that it trains on, the metric reaches its plateau later, or never.

        Args:
            points: the configurations to train; with hyperparameters at their defaults that of the
                simple configuration.
        """
        simple = any(origin.defaults for origin in points)
        plan = self._plan(FINAL_TRAINING, points, WITH_SIMPLE if simple else "")
        if plan.repeats:
            return plan
        recorded = {}
        for origin, point in points.items():
            values = candidates[Origin(origin.trial)].recorded_values
            recorded[origin] = self.study.definition.with_recorded_values(point, values)
        return replace(plan, trainings=replace(plan.trainings, candidates=recorded))

    def has_simple(self) -> bool | None:
        """Whether the stored final training has the simple configuration; None without one."""
        begun = StoredCommand.read(self.study.stored).stages.get(FINAL_TRAINING, "")
        if not f"{begun} ".startswith(f"{self._name(FINAL_TRAINING)} "):
            return None  # it belongs to another budget or rule
        return WITH_SIMPLE in begun

    def _plan(self, title: str, points: Mapping[Origin, Point], detail: str = "") -> PlannedStage:
        definition = self.study.definition
        final = title == FINAL_TRAINING
        trainings = CandidateTrainings(
            definition, self.study.data, points, self.settings.seeds, whole=final
        )
        repeats = trainings.repeats
        return PlannedStage(
            study=self.study,
            title=title,
            name=self._name(title).with_detail(detail),
            trainings=trainings,
            repeats=repeats,
            # Without a final training, or if it only repeats this, the result has these networks.
            keeps=final or repeats or not definition.tested,
            following=0 if final or not definition.tested else trainings_after(self.study),
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
            digest = hashlib.sha256(repr(sorted(search.code().items())).encode()).hexdigest()
            name = name.with_detail(f"code {digest[:8]}")
        return name


def winner_settings(study: OpenStudy) -> WinnerSection:
    """Returns the section `winner` of a study's config."""
    return study.definition.config.winner


def trainings_after(study: OpenStudy) -> int:
    """Returns how many trainings follow a stage that is not the last, at most."""
    settings = winner_settings(study)
    return (settings.top + 3) * settings.seeds
