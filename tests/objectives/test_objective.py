"""The epochs of jobs become the reports and the value of a trial."""

from dataclasses import replace

import pytest
from toys import TINY, Never, ask, toy_folds, toy_split

from studyloom.errors import Interrupted, Stopped
from studyloom.metrics import Metric
from studyloom.objectives.objective import NetworkObjective, mean_epoch
from studyloom.training.trainer import Training

SPLIT = toy_split()


@pytest.fixture(scope="module")
def definition():
    return ask(*TINY, "train.epochs=4")


def test_the_learning_curve_is_the_mean_over_jobs_at_each_epoch(definition):
    jobs = definition.build_jobs(definition.baseline, toy_folds(SPLIT, 3), number=0)
    training = Training(jobs, SPLIT)
    steps = []
    NetworkObjective(training).run(steps.append, Never())
    assert steps == [*map(mean_epoch, training.history)]
    assert [step.number for step in steps] == [1, 2, 3, 4]


def test_a_second_signal_counts_while_a_stopped_training_is_closed(definition, monkeypatch):
    training = Training(
        definition.build_jobs(definition.baseline, toy_folds(SPLIT, 3), number=0), SPLIT
    )
    signals = iter([Interrupted])

    def close():
        for signal in signals:
            raise signal

    def report(_):
        raise Stopped

    monkeypatch.setattr(training, "close", close)
    with pytest.raises(Interrupted):
        NetworkObjective(training).run(report, Never())


# Patience, and the best epoch


class Script:
    """A metric with given values, one for each evaluation."""

    def __init__(self, *values):
        self.values = iter(values)

    def metric(self):
        return Metric("script", "maximize", lambda outputs, targets: next(self.values))


@pytest.mark.parametrize("weights", ["last", "best"])
def test_the_value_is_the_mean_over_the_selected_epochs_of_jobs(definition, weights):
    scripts = ((0.1, 0.8, 0.3, 0.2), (0.4, 0.4, 0.2))  # the second ends after three epochs
    jobs = [
        replace(job, patience=2, weights=weights, metric=Script(*script).metric())
        for job, script in zip(
            definition.build_jobs(definition.baseline, toy_folds(SPLIT, 2), 0), scripts, strict=True
        )
    ]
    objective = NetworkObjective(Training(jobs, SPLIT))
    steps = []
    value = objective.run(steps.append, Never())
    selected = {"last": (0.2, 0.2), "best": (0.8, 0.4)}[weights]
    assert value == pytest.approx(sum(selected) / 2)
    assert objective.standard_error() == pytest.approx(abs(selected[0] - selected[1]) / 2)
    last_of_second_job = selected[1]
    expected = {1: 0.25, 2: 0.6, 3: 0.25, 4: (0.2 + last_of_second_job) / 2}
    assert {step.number: step.value for step in steps} == pytest.approx(expected)
    objective.forget_steps_after(2)
    assert len(objective.history) == 2
