"""The way from a search to its winner: what is known of it, and which stage comes next.

The best of 40 trials is partly luck: its value is a maximum over noise. So the result is made in
four steps, each computed from what the ones before have stored:

1. Candidates: the best few trials of the search, and the baseline to compare with.
2. Re-evaluated: each candidate is trained on the same new seeds and validation sets. The drop from
   the value in the search to the mean on new seeds is the selection gap. The candidate with the
   best mean wins; if there is a rule, among those that satisfy it. With `winner.ablation` the
   winner is trained there without each of its changes to the default configuration as well.
3. Trained: winner and baseline, on the full training set.
4. Tested: both, once, on the test set.

`read_evaluation` reads all of it from the database each time, so that every process comes to the
same evaluation, also after trials were opened again.
"""

from dataclasses import dataclass, field, replace

from studyloom.decisions.early_end import decide_early_end
from studyloom.definition.definition import Definition
from studyloom.space.rule import Rule
from studyloom.space.tree import Point
from studyloom.winner.ablation import Defaults, Losses, Names
from studyloom.winner.candidates import Candidates, Origin, choose_candidates
from studyloom.winner.reevaluation import Reevaluated
from studyloom.winner.result import Ablation, Tested
from studyloom.winner.stages import (
    PlannedStage,
    StagePlanner,
    trainings_after,
    winner_settings,
)
from studyloom.winner.stored_trainings import CandidateStage
from studyloom.worker.open_study import OpenStudy, Stages
from studyloom.worker.stage import Stage


@dataclass
class Evaluation:
    """The state of a study on the way to its winner; what is not known yet is None.

    Args:
        left: how many trials or trainings are left in the present stage.
        rule: chooses the candidates, and the winner among them.
        later: the stored stages after the search, the last of which is the present one.
        planned: the next stage, if no worker has begun it.
        candidates: the best trials of the search, and the baseline.
        reevaluated: the candidates with their values on new seeds.
        winner: the candidate that wins.
        defaults: puts hyperparameters of the winner back to their defaults, for an ablation.
        ablation: what the changes of the winner are worth.
        trained: the last stage, all of whose trainings have ended: it has the networks.
        test: the stored test of these networks.
        is_earlier_test: whether another stage with the same networks was tested.
    """

    study: OpenStudy
    left: int
    later: list[CandidateStage] = field(default_factory=list)
    planned: PlannedStage | None = None
    rule: Rule | None = None
    candidates: Candidates | None = None
    reevaluated: Reevaluated | None = None
    winner: Origin | None = None
    defaults: Defaults | None = None
    ablation: Ablation | None = None
    trained: CandidateStage | None = None
    test: Tested | None = None
    is_earlier_test: bool = False

    @property
    def search(self) -> Stage:
        """The search, after which further trainings may follow."""
        search = self.study.search
        if not winner_settings(self.study).enabled:
            return search
        return replace(search, following=trainings_after(self.study))

    @property
    def stages(self) -> list[Stage]:
        """The stored stages, the search first."""
        return [self.search, *self.later]

    @property
    def title(self) -> str:
        """The title of the present stage."""
        if self.planned is not None:
            return self.planned.title
        return self.stages[-1].title

    @property
    def trials(self) -> int:
        """How many trials the winner is chosen from: fewer than the budget if the search ended."""
        search = self.study.search
        end = decide_early_end(search.stored, search.trials)
        if end is None:
            return search.trials
        return end.begun

    @property
    def lacks_winner(self) -> bool:
        """Whether all stages have ended without a winner."""
        return winner_settings(self.study).enabled and not self.left and self.trained is None

    def follow(self, plan: PlannedStage) -> CandidateStage | None:
        """Follows a stage that comes next; returns it if all its trainings have ended."""
        stage = plan.find()
        if stage is None:
            self.planned = plan
            self.left = plan.trials
            return None
        self.later.append(stage)
        self.left = stage.todo()
        if self.left:
            return None
        return stage


def next_stage(evaluation: Evaluation) -> Stage | None:
    """Returns the first stage that has work, or None; makes its stored study if it has none."""
    if not evaluation.left:
        return None
    if evaluation.planned is not None:
        return evaluation.planned.begin()
    return evaluation.stages[-1]


class WinnerStages(Stages):
    """The stages of a study up to the final training of its winner."""

    def next(self, study: OpenStudy) -> Stage | None:
        return next_stage(read_evaluation(study))

    def begun(self, study: OpenStudy) -> list[Stage]:
        return read_evaluation(study).stages


def read_evaluation(study: OpenStudy) -> Evaluation:
    """Reads from the database how far a study is on the way to its winner."""
    evaluation = Evaluation(study, left=study.search.todo())
    if evaluation.left:
        # A search that had ended may have trials again, as after `studyloom redo`: then other
        # trials than those in memory count.
        study.stored.storage.forget(study.stored.ledger.study_id)
        return evaluation
    settings = winner_settings(study)
    definition = study.definition
    evaluation.rule = rule = definition.rule or study.stored.default_rule()
    candidates = choose_candidates(
        definition, study.stored, rule, study.search.trials, settings.top
    )
    evaluation.candidates = candidates
    if not settings.enabled or not candidates:
        return evaluation
    planner = StagePlanner(study, rule)
    ablates = settings.ablation or planner.has_simple() is True

    # A single candidate that will be tested is not trained again first.
    stage = None
    if not definition.tested or len(candidates) > 1 or ablates:
        stage = evaluation.follow(planner.reevaluation(candidates))
        if stage is None:
            return evaluation
    reevaluated = Reevaluated(study.stored, rule, candidates, values=None)
    if stage is not None:
        reevaluated = replace(reevaluated, values=stage.values(), partial=stage.partial_values())
    evaluation.reevaluated = reevaluated
    if not reevaluated.eligible:
        return evaluation
    evaluation.winner = reevaluated.winner

    if ablates:
        read_ablation(evaluation, planner, reevaluated)
        if evaluation.ablation is None:
            return evaluation

    if definition.tested:
        points = final_points(evaluation, planner, reevaluated)
        stage = evaluation.follow(planner.final_training(candidates, points))
        if stage is None:
            return evaluation
        earlier = stage.earlier_test(study.stored)
        if earlier is not None:
            evaluation.test, evaluation.is_earlier_test = earlier
    evaluation.trained = stage
    return evaluation


def read_ablation(evaluation: Evaluation, planner: StagePlanner, reevaluated: Reevaluated) -> None:
    """Reads the ablation: the winner without each of its changes, then without several at once.

    The simple configuration is that with the fewest changes which is about as good.
    """
    study = evaluation.study
    winner = reevaluated.winner
    point = reevaluated.candidates[winner].point
    values = (reevaluated.values or {}).get(winner, ())
    defaults = Defaults(study.definition, point, study.stored.trials())
    losses = Losses(values, {}, study.stored.sign, planner.settings.margin)
    evaluation.defaults = defaults
    simple = None
    if defaults.changed:
        stage = evaluation.follow(planner.ablation(winner, defaults, defaults.changed))
        if stage is None:
            return
        losses = losses.with_values(stage.values())
        for names in simplifications(study.definition, planner.rule, defaults, losses):
            if len(names) > 1:
                stage = evaluation.follow(planner.ablation(winner, defaults, [names]))
                if stage is None:
                    return
                losses = losses.with_values(stage.values())
            if losses.is_within_margin(names):
                simple = names
                break
    evaluation.ablation = losses.describe(defaults, simple)


def simplifications(
    definition: Definition, rule: Rule, defaults: Defaults, losses: Losses
) -> list[Names]:
    """Returns the changes that a simple configuration may lack: all not needed, then fewer.

    There are none with limits of costs, which are known only of trials of the search.
    """
    if rule.conditions or definition.limits:
        return []
    return [names for names in losses.attempts() if defaults.is_possible(names)]


def final_points(
    evaluation: Evaluation, planner: StagePlanner, reevaluated: Reevaluated
) -> dict[Origin, Point]:
    """Returns the configurations of the final training: winner and baseline.

    The simple configuration is added, unless the winner was trained without it for its test before.
    """
    winner = reevaluated.winner
    points = {
        origin: source.point
        for origin, source in reevaluated.candidates.items()
        if origin in (winner, reevaluated.baseline)
    }
    ablation = evaluation.ablation
    defaults = evaluation.defaults
    if ablation is None or defaults is None or not ablation.simple:
        return points
    if planner.has_simple() is not False:
        simple = replace(winner, defaults=ablation.simple)
        points[simple] = defaults.put_back(ablation.simple)
    return points
