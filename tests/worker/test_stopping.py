"""What stops a study: signals, and what another terminal asks; no trial is lost."""

import os
import signal
import subprocess
from multiprocessing.util import Finalize
from queue import Queue
from types import SimpleNamespace
from weakref import WeakSet

import pytest
from toy_worker import FOLDER, FOLDS, RANDOM, SPLIT, fresh, outcomes, work
from toys import Never, ask

from studyloom.data.training_data import TrainingData
from studyloom.decisions.strategy import Strategy
from studyloom.errors import Stopped
from studyloom.storage.failures import Limits
from studyloom.storage.opening import create_study, open_study
from studyloom.worker import stopping, worker
from studyloom.worker.stage import Stage
from studyloom.worker.stopping import (
    Stop,
    following_requests,
    read_control,
    set_control,
    withdraw_stop,
)
from studyloom.worker.worker import Worker


@pytest.mark.parametrize("number", Stop.SIGNALS)
def test_a_signal_is_a_request_to_stop_and_a_second_one_stops_at_once(number):
    before = signal.getsignal(number)
    with Stop() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert stop.signal == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(number) == before


def test_a_signal_ends_a_fork_also_before_its_code_runs(capfd):
    """A pool's workers are told to end as soon as it has its results; they print no line."""
    with Stop() as stop, stop.interruptible():
        for _ in range(20):
            if (child := os.fork()) == 0:
                signal.alarm(20)
                while True:
                    signal.pause()
            os.kill(child, signal.SIGTERM)
            assert os.waitpid(child, 0)[1] == signal.SIGTERM
        assert not stop()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", Stop.SIGNALS)
def test_only_a_hangup_stays_ignored_in_a_command_that_ignores_it(number):
    """`nohup` does so; and a shell ignores Ctrl-C for what it starts with &."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Stop() as stop:
            os.kill(os.getpid(), number)
            assert stop() == (number != signal.SIGHUP)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_the_ends_of_children_are_noticed_even_if_they_were_ignored():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with Stop():
            child = subprocess.Popen(["false"])
            assert child.wait() == 1
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_the_first_signal_ends_work_that_may_be_interrupted():
    assert not issubclass(Stopped, Exception), "no handler of a user's swallows it"
    with Stop() as stop:
        with pytest.raises(Stopped), stop.interruptible():
            signal.raise_signal(signal.SIGTERM)
        entered = []
        with pytest.raises(Stopped), stop.interruptible():  # and is not begun after one
            entered.append(True)
        assert not entered


@pytest.mark.parametrize("kind", ["__del__", "multiprocessing", "WeakSet"])
def test_a_signal_in_a_finalizer_counts_at_the_next_check(kind, monkeypatch):
    def signalled():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    class Deleted:
        def __del__(self):
            signalled()

    class Closed:
        pass

    dropped = []
    monkeypatch.setattr("sys.unraisablehook", dropped.append)
    with Stop() as stop, stop.interruptible():
        thing = Deleted() if kind == "__del__" else Closed()
        if kind == "multiprocessing":
            Finalize(thing, signalled)
        if kind == "WeakSet":
            kept = WeakSet([thing])
            kept.data = SimpleNamespace(discard=lambda _: signalled(), refs=kept.data)
        del thing
        assert stop()  # which the body asks at the end of each epoch
    assert dropped == []


# What another terminal asks of a study


@pytest.fixture
def stored(url):
    return create_study(url, "toy", {"asks": "nothing"}, trials=4)


def test_a_command_takes_a_stop_back_and_leaves_a_pause(stored, url):
    for written in ("run rm -rf", 3, ["stop"], {"stop": True}):
        stored.optuna.set_user_attr("control", written)
        assert read_control(stored) is None
    set_control(open_study(url, "toy"), "stop")
    assert read_control(stored) == "stop"
    withdraw_stop(stored)
    assert read_control(stored) is None
    set_control(stored, "pause")
    withdraw_stop(stored)
    assert read_control(stored) == "pause"


def test_only_a_command_that_starts_again_withdraws_a_stop(stored):
    """A worker looks once a second, and could miss a stop that was withdrawn meanwhile."""
    assert set_control(stored, "pause")
    assert set_control(stored, "stop")
    for request in ("pause", None):
        assert not set_control(stored, request)
        assert read_control(stored) == "stop"
    assert set_control(stored, "stop")
    withdraw_stop(stored)
    assert set_control(stored, "pause")
    assert set_control(stored, None)
    assert read_control(stored) is None


def test_a_stored_request_stops_a_worker_at_its_next_check(stored, monkeypatch):
    monkeypatch.setattr(stopping, "POLL", 0.01)
    told = Queue()
    with following_requests(stored, SimpleNamespace(paused=False, request=told.put)):
        set_control(stored, "stop")
        assert told.get(timeout=30) == "studyloom stop"


def test_a_trial_that_was_paused_on_request_ends_with_the_same_values(sqlite_url, url, monkeypatch):
    monkeypatch.setattr(worker, "WAIT", 0.0)
    definition = ask(*RANDOM)
    undisturbed = fresh(url, definition, 3, name="undisturbed")
    work(definition, undisturbed, 3)
    stored = fresh(url, definition, 3)
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
    stage = Stage("search", stored, definition, Strategy(definition), 3)
    Worker(stage, *where, must_pause=pausing).run()
    assert held == [1, 0, 0, 0]  # the trial was released, and nobody claimed one
    assert outcomes(stored) == outcomes(undisturbed)
