"""Checkpoints of short epochs: how often they are written, and what a resumed trial repeats."""

from contextlib import contextmanager

import pytest
from toy_worker import FOLDS, RANDOM, SPLIT, fresh, outcomes, work
from toys import KINDS, Never, Signal, ask

from studyloom.data.training_data import TrainingData
from studyloom.decisions.strategy import Strategy
from studyloom.storage.attributes import EPOCHS
from studyloom.storage.failures import Limits
from studyloom.storage.trial_buffer import TrialBuffer
from studyloom.training.checkpoint import Checkpoint
from studyloom.worker.stage import Stage
from studyloom.worker.worker import Worker

EPOCHS_OF_TRIAL = 5
HOUR = 3600.0


@pytest.fixture(params=KINDS)
def definition(request):
    return ask(*RANDOM, *KINDS[request.param], f"train.epochs={EPOCHS_OF_TRIAL}")


@pytest.fixture
def saved(monkeypatch):
    """The epochs of the states that were saved."""
    epochs, save = [], Checkpoint.save

    def noted(checkpoint, state):
        epochs.append(len(state.get("history") or state["reports"][0]))
        save(checkpoint, state)

    monkeypatch.setattr(Checkpoint, "save", noted)
    return epochs


@pytest.fixture
def stored_steps(monkeypatch):
    """The steps whose value was stored."""
    steps, store = [], TrialBuffer.set_trial_intermediate_value

    def noted(buffer, trial_id, step, value):
        steps.append(step)
        store(buffer, trial_id, step, value)

    monkeypatch.setattr(TrialBuffer, "set_trial_intermediate_value", noted)
    return steps


def train_trial(definition, stored, folder, interval, stopping=None):
    """Works on trial 0, with a time between two checkpoints."""
    stage = Stage("search", stored, definition, Strategy(definition), 1)
    data, limits = TrainingData(None, SPLIT, FOLDS), Limits()
    Worker(stage, data, stopping or Never(), folder, limits, checkpoint_interval=interval).run()


@pytest.mark.parametrize(("interval", "epochs"), [(0.0, [1, 2, 3, 4]), (HOUR, [])])
def test_a_state_is_saved_after_an_epoch_if_the_last_is_old_enough(
    url, definition, checkpoints, saved, interval, epochs
):
    train_trial(definition, fresh(url, definition, 1), checkpoints, interval)
    assert saved == epochs


def test_a_trial_that_is_released_saves_its_state_however_short_its_epochs(
    url, definition, checkpoints, saved
):
    class Stop(Signal):
        """Stops at the report of the third epoch."""

        @contextmanager
        def interruptible(self):
            self.left -= 1
            yield

    stored = fresh(url, definition, 1)
    train_trial(definition, stored, checkpoints, HOUR, Stop(3))
    assert saved == [3]


def test_epochs_after_the_last_state_are_trained_again_and_stored_once(
    url, definition, checkpoints, saved, stored_steps, tmp_path
):
    """A worker ends in the midst of epoch 5; the last state is that of epoch 2."""
    undisturbed = fresh(f"sqlite:///{tmp_path}/undisturbed.db", definition, 1)
    work(definition, undisturbed, 1)
    stored_steps.clear()
    saved.clear()
    stored = fresh(url, definition, 1)
    train_trial(definition, stored, checkpoints, 0.0, Signal(3))
    train_trial(definition, stored, checkpoints, HOUR, Signal(3))
    assert (saved, stored_steps) == ([1, 2], [1, 2, 3, 4])
    train_trial(definition, stored, checkpoints, HOUR)
    assert stored_steps == [1, 2, 3, 4, 5]
    assert outcomes(stored) == outcomes(undisturbed)
    (trial,), (same,) = stored.trials(), undisturbed.trials()
    assert trial.intermediate_values == same.intermediate_values
    assert trial.user_attrs[EPOCHS]["value"] == same.user_attrs[EPOCHS]["value"]
