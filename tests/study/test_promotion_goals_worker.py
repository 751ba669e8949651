"""Two objectives under pruner=promotion: paused, promoted by fronts, told without values."""

from dataclasses import replace

import pytest
from optuna.trial import TrialState
from toy_worker import fresh, work, work_side_by_side
from toys import TWO, Signal, ask

from studyloom.errors import Halted
from studyloom.question.question import Question
from studyloom.storage.attributes import PAUSED, REASON
from studyloom.study.failures import outcome
from studyloom.study.opening import open_study
from studyloom.study.promotion import rank_points
from studyloom.views import figures
from studyloom.views.charts import Axis
from studyloom.views.snapshot import front_rows, take_snapshot

TRIALS = 12
PROMOTED = (*TWO, "pruner=promotion", "train.epochs=5")
SAMPLERS = {
    "nsga2": ("sampler=nsga2", "sampler.population_size=4"),
    "tpe": ("sampler=tpe", "+sampler.n_startup_trials=3"),
}


def costs_of(trial):
    return trial.user_attrs["parameters"]


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("nsga2", marks=pytest.mark.chaos)])
def test_the_first_fronts_go_on_and_the_pruned_have_no_values(url, sampler, checkpoints):
    question = ask(*PROMOTED, *SAMPLERS[sampler])
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
    _looked_at(stored, trials)


def _looked_at(stored, trials):
    """Checks that whoever looks at a study finds the complete trials, and is not troubled."""
    complete = {trial.number for trial in trials if trial.state == TrialState.COMPLETE}
    assert {trial.number for trial in stored.feasible()} == complete
    assert {trial.number for trial in stored.front()} <= complete
    assert {trial.number for trial in stored.ranked()} <= complete
    assert {trial.number for trial in stored.optuna.best_trials} <= complete
    snapshot = take_snapshot(stored)
    assert snapshot.outcomes == {"complete": len(complete), "pruned": TRIALS - len(complete)}
    assert {int(row[2]) for row in front_rows(snapshot)[1:]} <= complete
    figure = figures.front(stored, {"best": snapshot.best}, Axis("accuracy", "plain", 1))
    drawn = {mark.name: len(mark.parts) for mark in figure.marks}
    assert drawn["front"] + drawn.get("beaten", 0) == len(complete)
    assert drawn.get("infeasible", 0) == 0


@pytest.mark.chaos
def test_promoted_is_undisturbed_bit_for_bit(sqlite_url, tmp_path):
    question = ask(*PROMOTED)
    stored = fresh(sqlite_url, question, TRIALS)
    work(question, stored, TRIALS)
    alone = ask(*PROMOTED, "pruner=none")
    whole = fresh(f"sqlite:///{tmp_path}/whole.db", alone, TRIALS)
    work(alone, whole, TRIALS)
    for trial, undisturbed in zip(stored.trials(), whole.trials(), strict=True):
        assert trial.params == undisturbed.params
        assert trial.intermediate_values.items() <= undisturbed.intermediate_values.items()
        if trial.state == TrialState.COMPLETE:
            assert trial.values == undisturbed.values


@pytest.mark.chaos
@pytest.mark.usefixtures("threads_are_workers")
def test_several_workers_promote_side_by_side(url, checkpoints):
    question = ask(*PROMOTED)
    stored = fresh(url, question, TRIALS)
    work_side_by_side(question, url, TRIALS, workers=3)
    assert {outcome(trial) for trial in stored.trials()} == {"complete", "pruned"}
    assert len(stored.trials()) == TRIALS
    assert list(checkpoints.iterdir()) == []


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
    """A loop that tells its size, before its first report or after its last."""
    width = config.model.hidden[0]
    if config.train.batch_size == 32:
        run.cost(size=width)
    state = {"epoch": 0}
    run.keep(state=Counted(state))
    for epoch in run.epochs(config.train.epochs):
        run.report(score=width * (1 - 0.5**epoch))
    run.cost(size=width)
    return run.value


class Counted:
    """Something that has a state."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


LOOP = (
    *PROMOTED[:-4],
    "objective._target_=test_promotion_goals_worker.sized",
    "objective.metric=[score,size]",
    "objective.direction=[maximize,minimize]",
    *PROMOTED[-4:],
)


@pytest.mark.chaos
def test_a_loop_that_tells_its_cost_before_its_first_report_is_ranked_by_it(url):
    question = ask(*LOOP)
    stored = fresh(url, question, TRIALS)
    work(question, stored, TRIALS)
    trials = stored.trials()
    assert {outcome(trial) for trial in trials} == {"complete", "pruned"}
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    widths = [trial.user_attrs["size"] for trial in trials]
    assert {min(widths), max(widths)} <= {trial.values[1] for trial in complete}


def test_a_loop_that_tells_its_cost_too_late_ends_the_study_in_trial_0(sqlite_url):
    question = ask(*LOOP, "train.batch_size=64")
    stored = fresh(sqlite_url, question, TRIALS)
    with pytest.raises(Halted, match=r"run\.cost\(size=…\)"):
        work(question, stored, TRIALS)
    (trial,) = stored.trials()
    assert "tell size before the first report" in trial.user_attrs[REASON]
