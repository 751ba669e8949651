"""The stages after the search: what each trains, and the study in which it is stored.

The trainings of a stage are another study in the database of the search. Workers share them, and
they survive crashes as the search does. `StagePlanner` plans a stage from what is known so far; a
`PlannedStage` becomes a `CandidateStage` once it is stored.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from studyloom.config.schema import WinnerSection
from studyloom.errors import DefinitionError
from studyloom.space.rule import Rule
from studyloom.space.tree import Configuration
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
from studyloom.winner.ablation import ChangeSet, Defaults
from studyloom.winner.candidates import CandidateId, Candidates, CandidateTrainings
from studyloom.winner.stored_trainings import (
    CandidateStage,
    find_earlier_trainings,
    networks_folder,
)
from studyloom.worker.open_study import OpenStudy

# In the name of a final training:
WITH_SIMPLE = "with the simple configuration"
WITH_NEW_SEEDS = "further seeds"


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
        """The definition of the stored study: its candidates, its seeds, and the code."""
        candidates = []
        for candidate_id in self.trainings.candidates:
            description = {"trial": candidate_id.trial, "defaults": list(candidate_id.defaults)}
            candidates.append(description)
        code = self.study.stored.code()
        identity = {"candidates": candidates, "seeds": self.trainings.seeds, **code}
        if self.trainings.has_final_seeds:
            identity["has_final_seeds"] = True
        return identity

    @property
    def possible_names(self) -> tuple[str, str]:
        """The names under which the study may be stored: a plain one, and one with a digest.

        The second one is used if the study of the first name has other candidates, as after a trial
        was deleted, or the baseline was trained again.
        """
        digest = _short_digest(repr(self.identity["candidates"]))
        return str(self.name), str(self.name.with_detail(digest))

    def find(self) -> CandidateStage | None:
        """Returns the stage with its stored study; None if no worker has begun it."""
        for name in self.possible_names:
            stored = open_in_same_database(self.study.stored, name)
            if stored is None:
                return None
            differences = list_differences(stored.definition() or {}, self.identity)
            if differences:  # it has other candidates
                continue
            # A worker that creates the study stores its slots, one for each training, last. Until
            # then the stage would look as if all its trainings had ended.
            slot_count = sum(stored.ledger.counts().values())
            if slot_count < self.trials:
                return None
            return self._make_stage(stored)
        return None

    def begin(self) -> CandidateStage:
        """Creates the stored study, unless another worker has, and returns the stage with it."""
        plain_name, name_with_digest = self.possible_names
        try:
            stored = self._create(plain_name)
        except DefinitionError:  # the study of that name has other candidates
            stored = self._create(name_with_digest)
        store_stage(self.study.stored, self.title, stored.name)
        return self._make_stage(stored)

    def _create(self, name: str) -> StoredStudy:
        """Creates the stored study, or opens it; raises DefinitionError if it differs."""
        objectives = [self.study.definition.metric]
        return create_in_same_database(
            self.study.stored, name, self.identity, self.trials, objectives
        )

    def _make_stage(self, stored: StoredStudy) -> CandidateStage:
        """Makes the stage with its stored study.

        Which trainings of earlier stages it reuses is read later, when the first one begins.
        """
        all_networks = None
        own_networks = None
        if self.keeps_networks:
            all_networks = self.study.run_dir / "winner"
            own_networks = networks_folder(all_networks, stored.name)
        is_final = self.title == FINAL_TRAINING
        find_earlier = partial(
            find_earlier_trainings,
            search=self.study.stored,
            title=self.title,
            name=stored.name,
            definition=self.identity,
            folder=all_networks,
            repeats_reevaluation=self.repeats_reevaluation and is_final,
            tests_kept_states=self.trainings.definition.tests_kept_states,
        )
        trainings = replace(self.trainings, find_earlier=find_earlier)
        return CandidateStage(
            title=self.title,
            stored=stored,
            source=trainings,
            strategy=trainings,
            trials=self.trials,
            weights=own_networks,
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
        configurations = {
            candidate_id: source.configuration for candidate_id, source in candidates.items()
        }
        return self._plan(REEVALUATION, configurations)

    def plan_ablation(
        self, winner: CandidateId, defaults: Defaults, change_sets: Iterable[ChangeSet]
    ) -> PlannedStage:
        """Plans an ablation: copies of the winner with hyperparameters put back to their defaults.

        Args:
            defaults: puts hyperparameters of the winner back to their defaults.
            change_sets: the names of the hyperparameters that are put back in each copy.
        """
        configurations = {}
        for change_set in change_sets:
            candidate_id = replace(winner, defaults=change_set)
            configurations[candidate_id] = defaults.put_back(change_set)
        detail = ""
        most_together = max(len(candidate_id.defaults) for candidate_id in configurations)
        if most_together > 1:
            detail = f"{most_together} together"
        return self._plan(ABLATION, configurations, detail)

    def plan_final_training(
        self,
        configurations: Mapping[CandidateId, Configuration],
        recorded_values: Mapping[CandidateId, Sequence[float]],
        *,
        needs_new_seeds: bool,
    ) -> PlannedStage:
        """Plans the final training: on all training data.

        A network is then validated on examples that it is trained on, where the metric reaches its
        plateau later, or never. So a ReduceLROnPlateau steps on the values of an earlier training.

        Args:
            configurations: the configurations to train; one with hyperparameters put back to their
                defaults is the simple configuration.
            recorded_values: the value of each epoch of an earlier training, by the candidate
                without hyperparameters put back.
            needs_new_seeds: whether networks must not be those of the re-evaluation, as they would
                be if all of the training data was used there too.
        """
        detail = ""
        has_simple = any(candidate_id.defaults for candidate_id in configurations)
        if has_simple:
            detail = WITH_SIMPLE
        plan = self._plan(FINAL_TRAINING, configurations, detail)
        trainings = plan.trainings
        if trainings.has_examples_of_reevaluation:
            if not needs_new_seeds:
                return plan
            trainings = replace(trainings, has_final_seeds=True)
            name_with_seeds = plan.name.with_detail(WITH_NEW_SEEDS)
            plan = replace(plan, name=name_with_seeds, repeats_reevaluation=False)
        definition = self.study.definition
        configurations_with_values = {}
        for candidate_id, configuration in configurations.items():
            values = recorded_values[CandidateId(candidate_id.trial)]
            configurations_with_values[candidate_id] = definition.with_recorded_values(
                configuration, values
            )
        return replace(plan, trainings=replace(trainings, candidates=configurations_with_values))

    def has_simple(self) -> bool | None:
        """Returns whether the stored final training has the simple configuration.

        Returns None if there is no final training of this budget and rule, which are parts of its
        name.
        """
        stored_name = StoredCommand.read(self.study.stored).stages.get(FINAL_TRAINING, "")
        name_without_details = self._make_name(FINAL_TRAINING)
        # After the budget and the rule, the name ends, or details follow after a space.
        has_this_budget_and_rule = f"{stored_name} ".startswith(f"{name_without_details} ")
        if not has_this_budget_and_rule:
            return None
        return WITH_SIMPLE in stored_name

    def _plan(
        self, title: str, configurations: Mapping[CandidateId, Configuration], detail: str = ""
    ) -> PlannedStage:
        """Plans a stage.

        Args:
            configurations: the configurations to train.
            detail: an addition to the name of the stage.
        """
        definition = self.study.definition
        is_final = title == FINAL_TRAINING
        trainings = CandidateTrainings(
            definition, self.study.data, configurations, self.settings.seeds, trains_on_all=is_final
        )
        repeats_reevaluation = trainings.has_examples_of_reevaluation
        if definition.tested and not is_final:
            later_trials = count_trainings_after(self.study)
        else:
            later_trials = 0
        return PlannedStage(
            study=self.study,
            title=title,
            name=self._make_name(title).with_detail(detail),
            trainings=trainings,
            repeats_reevaluation=repeats_reevaluation,
            # The result has the networks of the re-evaluation if there is no final training, or if
            # a final training would only repeat it.
            keeps_networks=is_final or repeats_reevaluation or not definition.tested,
            later_trials=later_trials,
        )

    def _make_name(self, title: str) -> StageName:
        """Names a stage by the settings that change its trainings, such as the budget and rule."""
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
