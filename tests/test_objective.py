import optuna
import pytest
import torch
from optuna.pruners import NopPruner, ThresholdPruner
from toys import TINY, ask, toy_folds, toy_split

from studyloom import objective, train
from studyloom.objective import Stopped, mean, measure
from studyloom.train import Epoch

SPLIT = toy_split()


@pytest.fixture(scope="module")
def question():
    return ask(*TINY, "train.epochs=4")


def jobs_of(question, folds=1):
    return question.jobs(question.baseline, toy_folds(SPLIT, folds), number=0)


def a_trial(pruner=None):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(direction="maximize", pruner=pruner or NopPruner()).ask()


def never():
    return False


def test_each_step_reports_the_mean_of_all_folds_at_that_epoch(question):
    jobs = jobs_of(question, folds=3)
    trial = a_trial()
    curve = measure(trial, jobs, SPLIT, prunable=True, reported=0, stopping=never)
    alone = [list(train.epochs([job], SPLIT)) for job in jobs]
    for step in range(1, 5):
        expected = sum(epochs[step - 1][0].accuracy for epochs in alone) / 3
        assert trial.study.trials[0].intermediate_values[step] == pytest.approx(expected, abs=1e-12)
    assert [epoch.number for epoch in curve] == [1, 2, 3, 4]


def test_a_pruner_ends_a_trial_with_its_curve_so_far(question):
    with pytest.raises(optuna.TrialPruned) as caught:
        measure(
            a_trial(ThresholdPruner(lower=1.1)), jobs_of(question), SPLIT, prunable=True, reported=0, stopping=never
        )
    assert [epoch.number for epoch in caught.value.args[0]] == [1]


def test_a_trial_that_may_not_be_pruned_is_not(question):
    pruner = ThresholdPruner(lower=1.1)
    curve = measure(a_trial(pruner), jobs_of(question), SPLIT, prunable=False, reported=0, stopping=never)
    assert len(curve) == 4


def test_a_trial_is_not_pruned_after_its_last_epoch(question):
    pruner = ThresholdPruner(lower=1.1, n_warmup_steps=4)
    assert len(measure(a_trial(pruner), jobs_of(question), SPLIT, prunable=True, reported=0, stopping=never)) == 4


def test_a_stop_takes_effect_at_the_end_of_an_epoch(question):
    trial = a_trial()
    with pytest.raises(Stopped):
        measure(trial, jobs_of(question), SPLIT, prunable=True, reported=0, stopping=lambda: True)
    assert list(trial.study.trials[0].intermediate_values) == [1]


def test_a_stop_asked_in_the_last_epoch_lets_the_trial_end(question):
    asked = iter([False, False, False, True])
    curve = measure(a_trial(), jobs_of(question), SPLIT, prunable=True, reported=0, stopping=lambda: next(asked))
    assert len(curve) == 4


def test_what_is_stored_already_is_not_reported_again(question):
    trial = a_trial()
    trial.report(0.5, 1)
    trial.report(0.5, 2)
    measure(trial, jobs_of(question), SPLIT, prunable=True, reported=2, stopping=never)  # a warning would be an error
    stored = trial.study.trials[0].intermediate_values
    assert (stored[1], stored[2], sorted(stored)) == (0.5, 0.5, [1, 2, 3, 4])


def test_the_value_is_the_last_epochs_and_not_the_luckiest(question, monkeypatch):
    said = [Epoch(n, 1.0, 1.0, accuracy, 0.1, 1.0) for n, accuracy in ((1, 0.9), (2, 0.7))]
    monkeypatch.setattr(objective.train, "epochs", lambda jobs, split: iter([[epoch] for epoch in said]))
    curve = measure(a_trial(), jobs_of(question), SPLIT, prunable=True, reported=0, stopping=never)
    assert curve[-1].accuracy == 0.7


def test_a_mean_epoch_averages_what_was_said_and_adds_up_the_time():
    two = [Epoch(3, 1.0, 2.0, 0.5, 0.25, 100.0), Epoch(3, 2.0, 4.0, 1.0, 0.75, 300.0)]
    assert mean(two) == Epoch(3, 1.5, 3.0, 0.75, 1.0, 200.0)


def test_a_diverging_fold_ends_the_trial(question):
    jobs = ask(*TINY, "optimizer=sgd", "optimizer.lr=1e30", "study.baseline=false").jobs(
        question.baseline.__class__(), toy_folds(SPLIT), number=0
    )
    with pytest.raises(train.Diverged, match="epoch"):
        measure(a_trial(), jobs, SPLIT, prunable=True, reported=0, stopping=never)
    assert torch.isfinite(SPLIT.images).all()
