"""The evaluation of a study: how far it is from its search to its winner, and what comes next.

The best of 40 trials is partly luck: its value is a maximum over noise. So the result is made in
four steps, each computed from what the ones before have stored:

1. The candidates are chosen: the best few trials of the search, and the baseline to compare with.
2. In the re-evaluation, each candidate is trained on the same new seeds and validation sets. The
   drop from the value in the search to the mean on new seeds is the selection gap. The candidate
   with the best mean wins, among those that satisfy the rule, if it beats the baseline by more than
   the margin. With `winner.ablation` the winner is also trained without each of its changes to the
   default configuration.
3. In the final training, winner and baseline are trained on the full training set. If this is the
   one of the re-evaluation too, they get further seeds: the winner was chosen for its networks.
4. The test measures both, once, on the test set.

`read_evaluation` reads all of it from the database each time, so that every process comes to the
same evaluation, also after trials were opened again. `next_stage` is the stage that has work.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from studyloom.decisions.early_end import decide_early_end
from studyloom.definition.definition import Definition
from studyloom.space.rule import Rule
from studyloom.space.tree import Configuration
from studyloom.storage.trial_record import TrialRecord
from studyloom.winner.ablation import ChangeSet, Defaults, Losses
from studyloom.winner.candidates import (
    CandidateId,
    Candidates,
    Training,
    choose_candidates,
    rank_trials,
)
from studyloom.winner.reevaluation import Reevaluated
from studyloom.winner.result import Ablation
from studyloom.winner.stages import (
    PlannedStage,
    StagePlanner,
    count_trainings_after,
    winner_settings,
)
from studyloom.winner.stored_trainings import CandidateStage, StoredTest
from studyloom.worker.open_study import OpenStudy, Stages
from studyloom.worker.stage import Stage


@dataclass
class Evaluation:
    """The state of a study on the way to its winner; a field is None until it is known.

    Args:
        remaining: how many trials or trainings of the current stage have not ended.
        rule: chooses the candidates, and the winner among them.
        later: the stored stages after the search; the last of them is the current one, unless a
            stage is planned.
        planned: the current stage, if no worker has begun it.
        candidates: the best trials of the search, and the baseline.
        reevaluated: the candidates with their values on new seeds.
        winner: the candidate that wins.
        defaults: puts hyperparameters of the winner back to their defaults, for an ablation.
        ablation: what the changes of the winner are worth.
        trained_stage: the last stage, once all its trainings have ended: it has the networks.
        test: the stored test of these networks.
    """

    study: OpenStudy
    remaining: int
    later: list[CandidateStage] = field(default_factory=list)
    planned: PlannedStage | None = None
    rule: Rule | None = None
    candidates: Candidates | None = None
    reevaluated: Reevaluated | None = None
    winner: CandidateId | None = None
    defaults: Defaults | None = None
    ablation: Ablation | None = None
    trained_stage: CandidateStage | None = None
    test: StoredTest | None = None

    @property
    def search(self) -> Stage:
        """The search, after which further trainings may follow."""
        search = self.study.search
        if not winner_settings(self.study).enabled:
            return search
        return replace(search, later_trials=count_trainings_after(self.study))

    @property
    def stages(self) -> list[Stage]:
        """The stored stages, the search first."""
        return [self.search, *self.later]

    @property
    def title(self) -> str:
        """The title of the current stage."""
        if self.planned is not None:
            return self.planned.title
        return self.stages[-1].title

    @property
    def trials(self) -> int:
        """How many trials the winner is chosen from: the budget, or fewer after an early end."""
        search = self.study.search
        early_end = decide_early_end(search.stored, search.trials)
        if early_end is None:
            return search.trials
        return early_end.begun

    @property
    def lacks_winner(self) -> bool:
        """Returns whether all stages have ended without a winner."""
        return (
            winner_settings(self.study).enabled
            and not self.remaining
            and self.trained_stage is None
        )

    def enter(self, plan: PlannedStage) -> CandidateStage | None:
        """Makes a stage the current one.

        Returns:
            The stage if all its trainings have ended, so that the next one may follow; else None.
        """
        stage = plan.find()
        if stage is None:
            self.planned = plan
            self.remaining = plan.trials
            return None
        self.later.append(stage)
        self.remaining = stage.count_open_trials()
        if self.remaining:
            return None
        return stage


def next_stage(evaluation: Evaluation) -> Stage | None:
    """Returns the stage whose trials are open; None if there is none.

    Creates its stored study if no worker has begun the stage.
    """
    if not evaluation.remaining:
        return None
    if evaluation.planned is not None:
        return evaluation.planned.begin()
    return evaluation.stages[-1]


class WinnerStages(Stages):
    """The stages of a study up to the final training of its winner."""

    def find_next(self, study: OpenStudy) -> Stage | None:
        """Returns the first stage that has work; None if none has."""
        return next_stage(read_evaluation(study))

    def find_begun(self, study: OpenStudy) -> list[Stage]:
        """Returns the stages that are stored, in their order."""
        return read_evaluation(study).stages


def read_evaluation(study: OpenStudy) -> Evaluation:
    """Reads from the database how far a study is on the way to its winner.

    Goes through the stages in their order, and returns at the first whose trainings have not ended.
    """
    evaluation = Evaluation(study, remaining=study.search.count_open_trials())
    if evaluation.remaining:
        # `studyloom redo` may have opened trials of a search that had ended. The trials in memory
        # are read again then.
        study.stored.storage.forget(study.stored.ledger.study_id)
        return evaluation

    # The candidates
    settings = winner_settings(study)
    definition = study.definition
    rule = definition.rule or study.stored.default_rule()
    evaluation.rule = rule
    ranked_trials = rank_trials(study.stored, rule, study.search.trials)
    candidates = choose_candidates(definition, study.stored, ranked_trials, settings.top)
    evaluation.candidates = candidates
    if not settings.enabled or not candidates:
        return evaluation
    planner = StagePlanner(study, rule)
    needs_ablation = settings.ablation or planner.has_simple() is True

    # The re-evaluation, which a single candidate that will be tested does not need
    stage = None
    searched_values = []
    for trial in ranked_trials:
        if not TrialRecord(trial).is_baseline:
            searched_values.append(trial.values[0])
    reevaluated = Reevaluated(
        study.stored,
        rule,
        candidates,
        values=None,
        searched_values=searched_values,
        margin=settings.margin,
    )
    if not definition.tested or len(candidates) > 1 or needs_ablation:
        stage = evaluation.enter(planner.plan_reevaluation(candidates))
        if stage is None:
            return evaluation
        reevaluated = replace(
            reevaluated, values=stage.values(), partial_values=stage.partial_values()
        )
    evaluation.reevaluated = reevaluated
    if not reevaluated.eligible:
        return evaluation
    evaluation.winner = reevaluated.winner

    if needs_ablation:
        read_ablation(evaluation, planner, reevaluated)
        if evaluation.ablation is None:
            return evaluation

    # The final training; without a test the networks of the re-evaluation are the last ones
    if definition.tested:
        configurations = choose_final_configurations(evaluation, planner, reevaluated)
        # The test of an Optuna objective trains by itself, and with seeds of its own.
        is_trained_again = settings.retrain and not definition.has_optuna_objective
        # A single candidate, as winner.yaml has, gets the seeds that it has among several.
        may_need_new_seeds = reevaluated.winner_was_selected or len(candidates) == 1
        plan = planner.plan_final_training(
            configurations,
            find_recorded_values(candidates, stage),
            needs_new_seeds=may_need_new_seeds and is_trained_again,
        )
        stage = evaluation.enter(plan)
        if stage is None:
            return evaluation
        evaluation.test = stage.find_test(study.stored)
    evaluation.trained_stage = stage
    return evaluation


def find_recorded_values(
    candidates: Candidates, reevaluation: CandidateStage | None
) -> dict[CandidateId, Sequence[float]]:
    """Finds the value of each epoch of an earlier training of each candidate.

    It is the trial in the search, or the first training of the re-evaluation if the search has
    stopped the trial.
    """
    recorded_values = {}
    for candidate_id, source in candidates.items():
        recorded_values[candidate_id] = source.recorded_values
        if source.stopped is not None and reevaluation is not None:
            recorded_values[candidate_id] = reevaluation.curve(Training(candidate_id, 0))
    return recorded_values


def read_ablation(evaluation: Evaluation, planner: StagePlanner, reevaluated: Reevaluated) -> None:
    """Reads the ablation: the winner without each of its changes, then without several at once.

    The simple configuration is the first of these that is about as good as the winner. If trainings
    of the ablation have not ended, `evaluation.ablation` stays None.
    """
    study = evaluation.study
    winner = reevaluated.winner
    configuration = reevaluated.candidates[winner].configuration
    winner_values: Sequence[float] = ()
    if reevaluated.values is not None:
        winner_values = reevaluated.values.get(winner, ())
    defaults = Defaults(study.definition, configuration, study.stored.trials())
    losses = Losses(
        winner=winner_values,
        values={},
        sign=study.stored.sign,
        margin=planner.settings.simple_margin,
    )
    evaluation.defaults = defaults
    simple = None  # the change set that the simple configuration lacks
    if defaults.single_changes:
        plan = planner.plan_ablation(winner, defaults, defaults.single_changes)
        stage = evaluation.enter(plan)
        if stage is None:
            return  # workers train it next
        losses = losses.with_values(stage.values())
        for change_set in find_simplifications(study.definition, planner.rule, defaults, losses):
            if len(change_set) > 1:  # single changes are trained already
                stage = evaluation.enter(planner.plan_ablation(winner, defaults, [change_set]))
                if stage is None:
                    return
                losses = losses.with_values(stage.values())
            if losses.is_within_margin(change_set):
                simple = change_set
                break
    evaluation.ablation = losses.describe(defaults, simple)


def find_simplifications(
    definition: Definition, rule: Rule, defaults: Defaults, losses: Losses
) -> list[ChangeSet]:
    """Returns the change sets that a simple configuration may lack, the largest first.

    There are none if costs are limited, because costs are known only for trials of the search.
    """
    limits_costs = bool(rule.conditions or definition.limits)
    if limits_costs:
        return []
    change_sets = losses.propose_simplifications()
    return [change_set for change_set in change_sets if defaults.is_possible(change_set)]


def choose_final_configurations(
    evaluation: Evaluation, planner: StagePlanner, reevaluated: Reevaluated
) -> dict[CandidateId, Configuration]:
    """Returns the configurations of the final training: winner, baseline and simple configuration.

    The simple one is left out if there is none, or if a final training without it has begun.
    """
    winner = reevaluated.winner
    configurations = {}
    for candidate_id, source in reevaluated.candidates.items():
        if candidate_id in (winner, reevaluated.baseline):
            configurations[candidate_id] = source.configuration
    ablation = evaluation.ablation
    defaults = evaluation.defaults
    if ablation is None or defaults is None or not ablation.simple_defaults:
        return configurations
    began_without_simple = planner.has_simple() is False
    if not began_without_simple:
        simple = replace(winner, defaults=ablation.simple_defaults)
        configurations[simple] = defaults.put_back(ablation.simple_defaults)
    return configurations
