"""Trials that were never trained, for the tests of the report and its figures."""

from datetime import datetime, timedelta

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from studyloom.storage.attributes import BASELINE, EPOCHS, FAILURE, REASON, TRACEBACK, WORKER
from studyloom.views.axes import Axis

BEGAN = datetime(2026, 1, 1, 12)
MODEL = CategoricalDistribution(["mlp", "cnn"])
RATE = FloatDistribution(1e-4, 1.0, log=True)
AXIS = Axis("accuracy", "unit", 1)


def a_trial(
    number,
    state=TrialState.COMPLETE,
    accuracy=0.9,
    epochs=3,
    params=None,
    worker="host:1",
    **attributes,
):
    """A trial of ten seconds that begins a second after the one before.

    Args:
        params: value and distribution by name; None for a learning rate.
        epochs: how many epochs come before the last one, whose value is `accuracy`.
    """
    params = {"lr": (10.0 ** -(1 + number % 3), RATE)} if params is None else params
    values = [accuracy - 0.1 / (epoch + 1) for epoch in range(epochs)] + [accuracy]
    curve = {"number": list(range(1, len(values) + 1)), "value": values}
    curve |= {
        "train_loss": [1 - value for value in values],
        "valid_loss": [1.1 - value for value in values],
    }
    trial = create_trial(
        state=state,
        value=accuracy if state == TrialState.COMPLETE else None,
        params={name: value for name, (value, _) in params.items()},
        distributions={name: distribution for name, (_, distribution) in params.items()},
        intermediate_values=dict(enumerate(values, 1)),
        user_attrs={WORKER: worker} | ({EPOCHS: curve} if state.is_finished() else {}) | attributes,
        constraints={"diverged": 1.0} if attributes.get(FAILURE) == "diverged" else None,
    )
    trial.datetime_start = BEGAN + timedelta(seconds=11 * number)
    trial.datetime_complete = (
        BEGAN + timedelta(seconds=11 * number + 10) if state.is_finished() else None
    )
    return trial


def branching(number):
    """The parameters of a trial in a conditional space."""
    rate = {"lr": (0.001 * (1 + number % 100), RATE)}
    if number % 2:
        return {"model": ("cnn", MODEL), **rate, "cnn.channels": (8, IntDistribution(1, 64))}
    momentum = (number % 100 / 100, FloatDistribution(0.0, 1.0))
    return {"model": ("mlp", MODEL), **rate, "mlp.momentum": momentum}


def forty():
    """Forty trials of two workers: complete, pruned, failed, diverged, and one that runs."""
    lines = "Traceback …\nValueError: no"
    failed = {FAILURE: "error", REASON: "ValueError: no", TRACEBACK: lines}
    diverged = {FAILURE: "diverged", REASON: "train loss is nan"}
    for number in range(40):
        own = {"params": branching(number), "worker": f"host:{number % 2}"}
        match number % 5:
            case _ if number == 0:
                yield a_trial(0, accuracy=0.9, **own, **{BASELINE: True})
            case 3:
                yield a_trial(number, TrialState.PRUNED, 0.7, 1, **own)
            case 4 if number < 20:
                yield a_trial(number, TrialState.FAIL, 0.5, 1, **own, **failed)
            case 4 if number < 39:
                yield a_trial(number, TrialState.PRUNED, 0.1, 1, **own, **diverged)
            case 4:
                yield a_trial(number, TrialState.RUNNING, 0.8, 1, **own)
            case _:
                yield a_trial(number, accuracy=0.9 + 0.001 * number, **own)


def mark_of(figure, name):
    return next(mark for mark in figure.marks if mark.name == name)


def marked(best=None, baseline=None):
    return {"best": best, "baseline": baseline}


def points_of(mark):
    return [point for part in mark.parts for point in part]


def numbered(*trials):
    for number, trial in enumerate(trials):
        trial.number = number
    return [*trials]


def over(distribution, *settings):
    """A complete trial for each setting of a parameter p."""
    asked = {"p": distribution}
    return numbered(
        *(create_trial(value=0.5, params={"p": each}, distributions=asked) for each in settings)
    )
