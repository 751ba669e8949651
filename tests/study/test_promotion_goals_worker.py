"""Two objectives under pruner=promotion: paused, promoted by fronts, told without values."""

from dataclasses import replace

import pytest
import torch
from optuna.trial import TrialState
from toy_worker import fresh, work
from toys import TWO, Signal, ask

from studyloom.errors import Halted
from studyloom.question.question import Question
from studyloom.storage.attributes import PAUSED, REASON
from studyloom.study.failures import outcome
from studyloom.study.opening import open_study
from studyloom.study.promotion import rank_points

TRIALS = 12
PROMOTED = (*TWO, "pruner=promotion", "train.epochs=5")


def costs_of(trial):
    return trial.user_attrs["parameters"]


def test_the_first_fronts_go_on_and_the_pruned_have_no_values(url, checkpoints):
    question = ask(*PROMOTED, "sampler=tpe", "+sampler.n_startup_trials=3")
    stored = fresh(url, question, TRIALS)
    work(question, stored, TRIALS, Signal(14))
    assert "paused" in map(outcome, stored.trials())
    work(question, open_study(url, "s"), TRIALS)
    trials = stored.trials()
    assert [trial.number for trial in trials] == [*range(TRIALS)]
    assert {outcome(trial) for trial in trials} == {"complete", "pruned"}
    assert stored.ledger.counts() == {"free": 0, "held": 0, "done": TRIALS}
    assert list(checkpoints.iterdir()) == []
    for rung in (1, 3):
        there = [trial for trial in trials if rung in trial.intermediate_values]
        points = [(-trial.intermediate_values[rung], costs_of(trial)) for trial in there]
        best = rank_points(tuple(points))[: len(there) // 3]
        assert all(there[position].last_step > rung for position in best)
    for trial in trials:
        assert trial.user_attrs.get(PAUSED) is None
        if trial.state == TrialState.PRUNED:
            assert trial.values is None
            assert trial.constraints == {"pruned": 1 / trial.last_step}
        else:
            assert trial.values == [trial.intermediate_values[5], costs_of(trial)]
    complete = {trial.number for trial in trials if trial.state == TrialState.COMPLETE}
    assert {trial.number for trial in stored.front()} <= complete
    assert {trial.number for trial in stored.ranked()} <= complete


@pytest.mark.chaos
def test_what_was_measured_first_stays_when_a_trial_goes_on(sqlite_url, monkeypatch):
    """A latency is never the same twice, and the trial was ranked by the first."""
    measured, whole = [], Question.measure_costs

    def drifting(self, point, data):
        measured.append(len(measured))
        return [replace(cost, value=100.0 + len(measured)) for cost in whole(self, point, data)]

    monkeypatch.setattr(Question, "measure_costs", drifting)
    question = ask(*PROMOTED)
    stored = fresh(sqlite_url, question, TRIALS)
    work(question, stored, TRIALS)
    assert len(measured) > TRIALS
    costs = [costs_of(trial) for trial in stored.trials()]
    assert costs[0] == 101.0
    assert costs == sorted(costs), "in the order in which they began"
    assert len({*costs}) == TRIALS


def sized(config, run):
    """A loop that tells its size after its reports."""
    run.keep(net=torch.nn.Linear(1, 1))
    for _ in run.epochs(config.train.epochs):
        run.report(score=1.0)
    run.cost(size=config.model.hidden[0])
    return run.value


LOOP = (
    *PROMOTED[:-4],
    "objective._target_=test_promotion_goals_worker.sized",
    "objective.metric=[score,size]",
    "objective.direction=[maximize,minimize]",
    *PROMOTED[-4:],
)


def test_a_loop_that_tells_its_cost_too_late_ends_the_study_in_trial_0(sqlite_url):
    question = ask(*LOOP)
    stored = fresh(sqlite_url, question, TRIALS)
    with pytest.raises(Halted, match=r"run\.cost\(size=…\)"):
        work(question, stored, TRIALS)
    (trial,) = stored.trials()
    assert "tell size before the first report" in trial.user_attrs[REASON]
