"""Stored studies for the tests of views."""

import pytest
from made_trials import forty
from optuna.samplers import RandomSampler
from optuna.trial import TrialState
from toys import begin, fill

from studyloom.storage.attributes import BASELINE, FAILURE, REASON, TIMES
from studyloom.storage.opening import create_study


@pytest.fixture
def stored(sqlite_url):
    return create_study(sqlite_url, "toy", {"asks": "nothing"}, trials=8)


@pytest.fixture
def half_done(stored):
    """A study of eight slots: four trials ended, two slots are held, two are free.

    The trials are complete (the baseline), complete, pruned, diverged, and one that runs. The
    worker of the other held slot has not begun a trial yet.
    """
    ledger = stored.ledger
    stored.optuna.sampler = RandomSampler(seed=0)
    for number, value in enumerate([0.8, 0.9, None, None, None]):
        trial = begin(stored)
        claim = ledger.claim(f"host:{number}", 8, 60, lambda *_, trial=trial: trial._trial_id)
        trial.suggest_float("lr", 0.0, 1.0)
        for step in (1, 2):
            trial.report(0.1 * step, step)
        if number == 0:
            trial.set_user_attr(BASELINE, True)
        if number == 3:
            trial.set_user_attr(FAILURE, "diverged")
            trial.set_user_attr(REASON, "train loss is nan at epoch 1 of 2")
        if number < 4:
            trial.set_user_attr(TIMES, {"training": 9.0, "storage": 1.0})
            stored.optuna.tell(trial, value, None if value is not None else TrialState.PRUNED)
            ledger.finish(claim)
    ledger.claim("host:9", 8, lease=60)
    return stored


@pytest.fixture
def study_of(sqlite_url):
    """Returns a function that stores a study of these trials."""

    def make(trials=(), name="toy"):
        stored = create_study(sqlite_url, name, {"asks": "nothing"}, trials=40)
        fill(stored, *trials)
        return stored

    return make


@pytest.fixture(scope="session")
def searched(tmp_path_factory):
    """The forty trials, stored once; tests only read them."""
    url = f"sqlite:///{tmp_path_factory.mktemp('searched')}/study.db"
    stored = create_study(url, "toy", {"asks": "nothing"}, trials=40)
    fill(stored, *forty())
    yield stored
    stored.close()
