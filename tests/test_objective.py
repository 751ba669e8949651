import optuna
import pytest
from optuna.pruners import NopPruner, ThresholdPruner
from toys import TINY, Never, Signal, ask, toy_folds, toy_split

from studyloom import train
from studyloom.objective import Stopped, mean, measure, report
from studyloom.space import Point
from studyloom.train import Epoch, Training

SPLIT = toy_split()


@pytest.fixture(scope="module")
def question():
    return ask(*TINY, "train.epochs=4")


def training_of(question, folds=1, point=None):
    return Training(question.jobs(point or question.baseline, toy_folds(SPLIT, folds), number=0), SPLIT)


def a_trial(pruner=None):
    return optuna.create_study(direction="maximize", pruner=pruner or NopPruner()).ask()


def measured(trial, training, *, prunable=True, reported=0, stopping=None):
    """As a worker does it while the database answers."""
    curve = []
    for epoch in measure(training, stopping or Never()):
        report(trial, epoch, prunable=prunable and epoch.number < training.epochs, reported=reported)
        curve.append(epoch)
    return curve


def reports(trial):
    return trial.study.trials[0].intermediate_values


def test_each_step_reports_the_mean_of_all_folds_at_that_epoch(question):
    jobs = question.jobs(question.baseline, toy_folds(SPLIT, 3), number=0)
    trial = a_trial()
    curve = measured(trial, Training(jobs, SPLIT))
    alone = [list(train.epochs([job], SPLIT)) for job in jobs]
    for step in range(1, 5):
        expected = sum(epochs[step - 1][0].accuracy for epochs in alone) / 3
        assert reports(trial)[step] == pytest.approx(expected, abs=1e-12)
    assert [epoch.number for epoch in curve] == [1, 2, 3, 4]


def test_a_pruner_ends_a_trial_with_the_epoch_at_which_it_did(question):
    trial = a_trial(ThresholdPruner(lower=1.1, n_warmup_steps=2))
    with pytest.raises(optuna.TrialPruned) as caught:
        measured(trial, training_of(question))
    assert caught.value.args[0].number == 2
    assert list(reports(trial)) == [1, 2]


def test_a_trial_that_may_not_be_pruned_is_not(question):
    assert len(measured(a_trial(ThresholdPruner(lower=1.1)), training_of(question), prunable=False)) == 4


def test_what_is_stored_already_is_not_reported_again(question):
    trial = a_trial()
    trial.report(0.5, 1)
    trial.report(0.5, 2)
    measured(trial, training_of(question), reported=2)  # Optuna's warning would be an error
    assert (reports(trial)[1], reports(trial)[2], sorted(reports(trial))) == (0.5, 0.5, [1, 2, 3, 4])


def test_a_trial_gone_on_with_is_judged_again_where_its_worker_may_have_died_before_it_was(question):
    trial = a_trial(ThresholdPruner(lower=1.1))
    trial.report(0.5, 1)
    trial.report(0.5, 2)
    with pytest.raises(optuna.TrialPruned) as caught:
        measured(trial, training_of(question), reported=2)
    assert caught.value.args[0].number == 2


def test_a_stop_in_the_midst_of_an_epoch_leaves_those_before_it(question):
    trial = a_trial()
    with pytest.raises(Stopped):
        measured(trial, training_of(question), stopping=Signal(3))
    assert list(reports(trial)) == [1, 2]


def test_a_mean_epoch_averages_what_was_said_and_adds_up_the_time():
    two = [Epoch(3, 1.0, 2.0, 0.5, 0.25, 100.0), Epoch(3, 2.0, 4.0, 1.0, 0.75, 300.0)]
    assert mean(two) == Epoch(3, 1.5, 3.0, 0.75, 1.0, 200.0)


def test_a_diverging_fold_ends_the_trial():
    question = ask(*TINY, "optimizer=sgd", "optimizer.lr=1e30", "study.baseline=false")
    with pytest.raises(train.Diverged, match="epoch"):
        measured(a_trial(), training_of(question, point=Point()))
