"""`bench.py search`: intervals over seeds, and replays that promote what the product promotes."""

import numpy as np

from scripts.search.simulator import replay
from scripts.search.statistics import interval
from scripts.search.tables import Task
from studyloom.decisions.asha import AshaOrder
from studyloom.metrics import ObjectiveValue
from studyloom.storage.standings import DONE, OPEN, UNCLAIMED, RungReport, Standing

EPOCHS, TRIALS = 9, 12
VALUES = np.random.default_rng(0).random((100, 1, EPOCHS)).cumsum(2).astype(np.float32)
SPACE = {"a": {"int": [0, 9]}, "b": {"choice": [*range(10)]}}
TOY = Task("toy", "toys", "mnist", ("space=none", "model=mlp"), SPACE, (), VALUES)
RANDOM = ("sampler=random", "pruner=asha", "pruner.min_resource=1")
ENDED = 0  # the epoch by which `standing` marks a trial that was pruned


def test_an_interval_has_the_mean_and_narrows_with_more_seeds():
    values = np.random.default_rng(1).normal(size=(8, 400))
    widths = []
    for seeds in (4, 40, 400):
        low, high = interval(values[:, :seeds])
        assert low < values[:, :seeds].mean() < high
        widths.append(high - low)
    assert widths[0] > 2 * widths[1] > 2 * widths[2]


def test_a_replay_trains_the_trials_that_asha_chooses():
    tape = replay(TOY.begin(0), RANDOM, 0, 60, trials=TRIALS)
    order = AshaOrder(1, 3, 1, (ObjectiveValue("accuracy", "maximize"),))
    rungs = order.rungs(EPOCHS)
    curves: dict[int, dict[int, float]] = {}  # the value of each epoch, by trial
    for trial, epoch, value in zip(tape.trials, tape.epochs, tape.values, strict=True):
        curve = curves.setdefault(trial, {})
        assert epoch == len(curve) + 1
        if epoch == 1 or epoch - 1 in rungs:
            assert choose_trial(order, curves, rungs) == trial
        curve[epoch] = value
    assert len(curves) == TRIALS


def choose_trial(order: AshaOrder, curves: dict[int, dict[int, float]], rungs: list[int]) -> int:
    """Returns the trial that trains next, and marks the trials that ASHA prunes before it."""
    while True:
        chosen = order.choose([standing(slot, curves, rungs) for slot in range(TRIALS)])
        assert chosen is not None
        if not chosen.ends_pruned:
            return chosen.slot
        curves[chosen.slot][ENDED] = DONE


def standing(slot: int, curves: dict[int, dict[int, float]], rungs: list[int]) -> Standing:
    """Returns how far a trial has come."""
    curve = curves.get(slot)
    if not curve:
        return Standing(slot, UNCLAIMED)
    last = max(curve)
    reports = {rung: RungReport(rung, curve[rung]) for rung in rungs if rung <= last}
    state = OPEN
    if ENDED in curve or last == EPOCHS:
        state = DONE
    return Standing(slot, state, last, reports, paused=max(reports, default=None))
