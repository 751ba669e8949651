"""Signals that stop a study: what they end, and when."""

import os
import signal
from multiprocessing.util import Finalize

import pytest

from studyloom.errors import Stopped
from studyloom.study.stopping import Stop


@pytest.mark.parametrize("number", Stop.SIGNALS)
def test_a_signal_is_a_wish_to_stop_and_a_second_one_stops_at_once(number):
    before = signal.getsignal(number)
    with Stop() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert stop.signal == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(number) == before


def test_a_signal_that_comes_to_a_fork_before_it_goes_on_ends_it_as_without_us(capfd):
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
def test_a_hangup_that_was_ignored_before_stays_ignored_and_no_other_signal(number):
    """`nohup` does so; and a shell ignores Ctrl-C for what it starts with &."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Stop() as stop:
            os.kill(os.getpid(), number)
            assert stop() == (number != signal.SIGHUP)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_work_that_may_be_left_is_left_at_the_first_signal():
    assert not issubclass(Stopped, Exception), "no handler of a user's swallows it"
    with Stop() as stop:
        with pytest.raises(Stopped), stop.interruptible():
            signal.raise_signal(signal.SIGTERM)
        entered = []
        with pytest.raises(Stopped), stop.interruptible():  # and is not begun after one
            entered.append(True)
        assert not entered


@pytest.mark.parametrize("kind", ["__del__", "multiprocessing"])
def test_a_signal_in_a_finalizer_is_seen_at_the_next_look(kind, monkeypatch):
    def signalled():
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
        del thing
        assert stop()  # which the body asks at the end of each epoch
    assert dropped == []
