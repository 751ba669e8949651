"""Candidates that ASHA had ended at a rung."""

import pytest
from reevaluated import SPLIT, CountedTest, evaluate_winner, stages_of, train, train_plainly, work
from toys import TINY, ask

from studyloom.storage.trial_record import TrialRecord
from studyloom.views.words import describe_search_value
from studyloom.winner.candidates import (
    CandidateId,
    Training,
    choose_candidates,
    find_kept_epoch,
    rank_trials,
)
from studyloom.winner.evaluation import find_recorded_values

ASHA = (
    *(*TINY[:-1], "space=lr", "sampler=random", "study.seed=1"),
    *("pruner=asha", "pruner.min_resource=1", "train.epochs=9"),
)


def test_trials_that_asha_has_ended_are_candidates_and_train_to_the_end(tmp_path):
    definition = ask(*ASHA)
    url = f"sqlite:///{tmp_path}/study.db"
    stages = stages_of(definition, url, tmp_path, 9, top=5, seeds=1)
    train(stages.search, SPLIT, 9)
    work(stages)
    trials = {trial.number: trial for trial in stages.search.stored.trials()}
    complete = [trial for trial in trials.values() if TrialRecord(trial).outcome == "complete"]
    assert len(complete) < 6, "else the best five beside the baseline may all be complete"
    assert len(stages.candidates) == 6
    stopped = {
        candidate: source.stopped
        for candidate, source in stages.candidates.items()
        if source.stopped is not None
    }
    assert stopped
    for candidate, epoch in stopped.items():
        assert epoch == trials[candidate.trial].last_step < 9
        curve = stages.reevaluation.curve(stages.reevaluation.source.trainings[0])
        assert len(curve) == 9
        for seed, value in enumerate(stages.reevaluated.values[candidate]):
            assert train_plainly(stages.reevaluation, candidate, seed)[0] == value
    recorded_values = find_recorded_values(stages.candidates, stages.reevaluation)
    for candidate, values in recorded_values.items():
        assert len(values) == 9, "a plateau in the final training steps on them"
        expected = TrialRecord(trials[candidate.trial]).columns["value"]
        if candidate in stopped:
            expected = stages.reevaluation.curve(Training(candidate, 0))
        assert values == expected
    result = evaluate_winner(stages, CountedTest(), ["x"])
    for row in result.candidates:
        epoch = stopped.get(CandidateId(row.trial))
        assert row.stopped_at_epoch == epoch
        assert (row.selection_gap is None) == (epoch is not None)
        if epoch is not None:
            assert describe_search_value(row).endswith(f" at epoch {epoch}")
    assert result.belongs_to(stages.search.stored)


@pytest.mark.parametrize("top", [1, 2, 4])
def test_the_best_complete_trial_is_a_candidate(tmp_path, top):
    """Even if all others would probably have been better."""
    stages = stages_of(ask(*ASHA), f"sqlite:///{tmp_path}/study.db", tmp_path, 9, top=top, seeds=1)
    train(stages.search, SPLIT, 9)
    search = stages.search.stored
    ranked = [trial for trial in rank_trials(search, stages.rule, 9) if trial.number > 0]
    complete = {trial.number for trial in search.feasible()}
    best_last = sorted(ranked, key=lambda trial: trial.number in complete)
    candidates = choose_candidates(stages.definition, search, best_last, top)
    best = next(trial.number for trial in best_last if trial.number in complete)
    others = [trial.number for trial in best_last if trial.number != best][: top - 1]
    assert {candidate.trial for candidate in candidates} == {0, best, *others}


def test_a_trial_that_asha_has_ended_has_not_chosen_its_epochs(tmp_path):
    """A complete one repeats the epoch that it kept."""
    definition = ask(*ASHA, "train.patience=2", "train.weights=best")
    stages = stages_of(definition, f"sqlite:///{tmp_path}/study.db", tmp_path, 9, top=3, seeds=1)
    train(stages.search, SPLIT, 9)
    for source in stages.candidates.values():
        values = source.configuration.values
        assert values["train.weights"] == "last"
        kept_epoch = None
        if source.stopped is None:
            kept_epoch = find_kept_epoch(TrialRecord(source.trial).columns, "best", 1)
        assert values["train.until"] == kept_epoch


def test_a_study_of_two_objectives_has_only_complete_candidates(tmp_path):
    definition = ask(*ASHA, "objective.metric=[accuracy,parameters]", "winner.rule='max accuracy'")
    stages = stages_of(definition, f"sqlite:///{tmp_path}/study.db", tmp_path, 9, top=3, seeds=1)
    train(stages.search, SPLIT, 9)
    assert all(source.stopped is None for source in stages.candidates.values())
