"""What another terminal asks of a study: all workers see it, and no trial is lost."""

from queue import Queue
from types import SimpleNamespace

import pytest
from toy_worker import FOLDER, FOLDS, RANDOM, SPLIT, fresh, outcomes, work
from toys import Never, ask

from studyloom.data.training_data import TrainingData
from studyloom.study import stopping, worker
from studyloom.study.opening import create_study, open_study
from studyloom.study.reporter import Limits
from studyloom.study.stopping import begin_again, following, read_control, set_control
from studyloom.study.worker import Worker


@pytest.fixture
def stored(url):
    return create_study(url, "toy", {"asks": "nothing"}, trials=4)


def test_a_command_takes_a_stop_back_and_leaves_a_pause(stored, url):
    for written in ("run rm -rf", 3, ["stop"], {"stop": True}):
        stored.optuna.set_user_attr("control", written)
        assert read_control(stored) is None
    set_control(open_study(url, "toy"), "stop")
    assert read_control(stored) == "stop"
    begin_again(stored)
    assert read_control(stored) is None
    set_control(stored, "pause")
    begin_again(stored)
    assert read_control(stored) == "pause"


def test_whoever_follows_is_told_to_stop_within_a_look(stored, monkeypatch):
    monkeypatch.setattr(stopping, "POLL", 0.01)
    told = Queue()
    with following(stored, SimpleNamespace(paused=False, request=told.put)):
        set_control(stored, "stop")
        assert told.get(timeout=30) == "studyloom stop"


def test_paused_in_the_midst_of_a_trial_it_goes_on_to_the_same_values(sqlite_url, url, monkeypatch):
    monkeypatch.setattr(worker, "WAIT", 0.0)
    question = ask(*RANDOM)
    undisturbed = fresh(url, question, 3, name="undisturbed")
    work(question, undisturbed, 3)
    stored = fresh(url, question, 3)
    asked, held = [], []

    def pausing():
        """From the second look to the sixth: that is after the first epoch of trial 0."""
        asked.append(None)
        if 3 <= len(asked) <= 6:
            held.append(len(stored.ledger.held()))
            return True
        return False

    data = TrainingData(None, SPLIT, FOLDS)
    where = (data, Never(), FOLDER["checkpoints"], Limits())
    Worker(question, stored, *where, pausing=pausing).run(3)
    assert held == [1, 0, 0, 0]  # the trial was released, and nobody claimed one
    assert outcomes(stored) == outcomes(undisturbed)
