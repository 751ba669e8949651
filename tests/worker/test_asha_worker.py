"""Paused trials: kept without a worker, gone on with when they are promoted, told at the end."""

from dataclasses import replace

import pytest
import torch
from optuna.trial import TrialState
from toy_worker import fresh, work
from toys import TINY, TWO, Signal, ask

from studyloom.decisions.asha import argsort_by_fronts
from studyloom.definition.network import NetworkDefinition
from studyloom.errors import Halted
from studyloom.storage.attributes import EPOCHS, PAUSED, PROVENANCE, REASON, RUNGS, TIMES
from studyloom.storage.opening import open_study
from studyloom.storage.trial_record import TrialRecord
from studyloom.views.progress_reader import ProgressReader

pytestmark = pytest.mark.chaos  # what decides is tested by itself in test_asha.py

TRIALS = 9
PROMOTED = (*TINY, "sampler=random", "pruner=asha", "train.epochs=5")


@pytest.fixture(scope="module")
def promoted(kind):
    """A question whose trials are paused: of networks, or of a loop that keeps its state."""
    return ask(*PROMOTED, *kind)


@pytest.fixture(scope="module")
def undisturbed(kind, tmp_path_factory):
    """The trials when none is paused or pruned."""
    definition = ask(*PROMOTED, "pruner=none", *kind)
    stored = fresh(f"sqlite:///{tmp_path_factory.mktemp('undisturbed')}/s.db", definition, TRIALS)
    work(definition, stored, TRIALS)
    trials = stored.trials()
    stored.close()
    return trials


def check(stored, undisturbed, checkpoints):
    """Checks that a search has ended, and that all of it is a part of the undisturbed one."""
    trials = stored.trials()
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert stored.ledger.counts() == {"free": 0, "held": 0, "done": TRIALS}
    for trial, whole in zip(trials, undisturbed, strict=True):
        assert trial.params == whole.params
        steps = [*trial.intermediate_values]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) in (1, 3, 5)
        assert trial.intermediate_values.items() <= whole.intermediate_values.items()
        assert trial.value == trial.intermediate_values[steps[-1]]
        assert (trial.state == TrialState.COMPLETE) == (len(steps) == 5)
        curve = trial.user_attrs[EPOCHS]
        for name in curve.keys() - {"seconds", "samples_per_second"}:
            assert curve[name] == whole.user_attrs[EPOCHS][name][: len(steps)], name
        assert trial.user_attrs[PROVENANCE]["seed"] == whole.user_attrs[PROVENANCE]["seed"]
        assert TIMES in trial.user_attrs
        assert TrialRecord(trial).outcome in ("complete", "pruned")
    assert trials[0].last_step == 5, "the baseline"
    assert sum(trial.last_step >= 3 for trial in trials) >= TRIALS // 3
    assert list(checkpoints.iterdir()) == []


def test_a_paused_trial_holds_no_worker_and_is_shown(url, promoted, undisturbed, checkpoints):
    stored = fresh(url, promoted, TRIALS)
    work(promoted, stored, TRIALS, Signal(8))  # in the second trial after the baseline
    assert [TrialRecord(trial).outcome for trial in stored.trials()] == [
        "complete",
        "paused",
        "running",
    ]
    paused = stored.trials()[1]
    assert paused.state == TrialState.RUNNING
    assert paused.user_attrs[PAUSED] == 1
    assert len(paused.user_attrs[EPOCHS]["number"]) == 1
    assert stored.ledger.counts() == {"free": 8, "held": 0, "done": 1}
    assert (checkpoints / "trial-1.pt").exists()
    assert '"paused": 1' in ProgressReader(stored).status().as_json()
    work(promoted, open_study(url, "s"), TRIALS)
    check(stored, undisturbed, checkpoints)
    assert stored.trials()[0].user_attrs.get(RUNGS) is None, "the baseline is never paused"
    assert {tuple(t.user_attrs[RUNGS]) for t in stored.trials()[1:]} <= {(1,), (1, 3)}


def test_a_study_begun_with_another_pruner_continues_with_asha(url, checkpoints):
    """What its trials have reported counts at the rungs; what has ended stays so."""
    begun, goes_on = ask(*PROMOTED, "pruner=median"), ask(*PROMOTED)
    stored = fresh(url, begun, TRIALS)
    work(begun, stored, TRIALS, Signal(15))  # in the third epoch of trial 2
    before = stored.trials()
    assert [trial.last_step for trial in before] == [5, 5, 2]
    assert before[2].state == TrialState.RUNNING
    stored = fresh(url, goes_on, TRIALS)
    work(goes_on, stored, TRIALS)
    trials = stored.trials()
    assert [t.value for t in trials[:2]] == [t.value for t in before[:2]]
    assert trials[2].last_step in (3, 5), "it had passed the lowest rung"
    assert {trial.last_step for trial in trials[3:]} <= {1, 3, 5}
    assert {TrialRecord(trial).outcome for trial in trials} == {"complete", "pruned"}
    assert list(checkpoints.iterdir()) == []


# Two objectives

TWO_OBJECTIVES = (*TWO, "pruner=asha", "train.epochs=5")


def costs_of(trial):
    return trial.user_attrs["parameters"]


def test_the_first_fronts_are_promoted_and_pruned_trials_have_no_values(url, checkpoints):
    definition = ask(*TWO_OBJECTIVES, "sampler=tpe", "+sampler.n_startup_trials=3")
    stored = fresh(url, definition, 12)
    work(definition, stored, 12, Signal(14))
    assert "paused" in [TrialRecord(trial).outcome for trial in stored.trials()]
    work(definition, open_study(url, "s"), 12)
    trials = stored.trials()
    assert [trial.number for trial in trials] == [*range(12)]
    assert stored.ledger.counts() == {"free": 0, "held": 0, "done": 12}
    assert list(checkpoints.iterdir()) == []
    for rung in (1, 3):
        there = [trial for trial in trials if rung in trial.intermediate_values]
        points = [(-trial.intermediate_values[rung], costs_of(trial)) for trial in there]
        best = argsort_by_fronts(tuple(points))[: len(there) // 3]
        assert all(there[position].last_step > rung for position in best)
    for trial in trials:
        assert trial.user_attrs.get(PAUSED) is None
        if TrialRecord(trial).outcome == "pruned":
            assert trial.values is None
            assert trial.constraints == {"pruned": 1 / trial.last_step}
        else:
            assert trial.values == [trial.intermediate_values[5], costs_of(trial)]
    complete = {trial.number for trial in trials if trial.state == TrialState.COMPLETE}
    assert {trial.number for trial in (*stored.front(), *stored.ranked())} <= complete


def test_a_resumed_trial_keeps_the_costs_that_were_measured_first(sqlite_url, monkeypatch):
    """The trial was ranked by the first."""
    measured, whole = [], NetworkDefinition.measure_costs

    def drifting(self, configuration, data):
        measured.append(len(measured))
        return [
            replace(cost, value=100.0 + len(measured)) for cost in whole(self, configuration, data)
        ]

    monkeypatch.setattr(NetworkDefinition, "measure_costs", drifting)
    definition = ask(*TWO_OBJECTIVES)
    stored = fresh(sqlite_url, definition, 12)
    work(definition, stored, 12)
    costs = [costs_of(trial) for trial in stored.trials()]
    assert len(measured) > len({*costs}) == 12
    assert costs == sorted(costs), "in the order in which they began"


# Loops that cannot be paused


def keeps_nothing(config, run):
    """A loop that reports and keeps nothing, which nobody can tell from its code."""
    for step in range(1, 6):
        run(0.1 * step, step)
    return 0.5


def tells_late(config, run):
    """A loop that tells its size after its reports."""
    run.keep(net=torch.nn.Linear(1, 1))
    for _ in run.epochs(config.train.epochs):
        run.report(score=1.0)
    run.cost(size=config.model.hidden[0])
    return run.value


@pytest.mark.parametrize(
    ("loop", "objectives", "words"),
    [
        ("keeps_nothing", ("objective.direction=maximize",), "call run.keep"),
        (
            "tells_late",
            ("objective.metric=[score,size]", "objective.direction=[maximize,minimize]"),
            "report size before the first report",
        ),
    ],
)
def test_a_loop_that_cannot_be_paused_ends_the_study_in_trial_0(
    sqlite_url, loop, objectives, words
):
    target = f"objective._target_=test_asha_worker.{loop}"
    definition = ask(*PROMOTED, target, *objectives)
    stored = fresh(sqlite_url, definition, 3)
    with pytest.raises(Halted):
        work(definition, stored, 3)
    (trial,) = stored.trials()
    assert words in trial.user_attrs[REASON]
