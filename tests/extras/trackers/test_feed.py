"""Laws of what a tracker is told: once, all of it, and without anybody who waits."""

import logging
import threading
from pathlib import Path

import pytest

from studyloom.extras.trackers import (
    Answer,
    Ending,
    Feed,
    Known,
    Point,
    TrackedStudy,
    TrackedTrial,
    feed,
)
from studyloom.extras.trackers.locks import locked

PATIENT = 30.0  # seconds: more than a machine under load needs


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No pauses between tries."""
    monkeypatch.setattr(feed, "LINGER", 0.01)
    monkeypatch.setattr(feed, "PAUSES", (0.01,))


class Recorder:
    """A tracker that knows what it was told, and may be away, refuse, or hang.

    Attributes:
        points: of each trial: every number that it was told, repeated ones too.
        fails: raises from each method whose name it is called with, before or after it has acted.
        gate: calls wait for it.
    """

    place = "here"

    def __init__(self, fails=lambda method, trial: None, late=False):
        self.points, self.begun, self.states, self.answers = {}, [], {}, []
        self.fails, self.late = fails, late
        self.gate = threading.Event()
        self.gate.set()
        self.called = threading.Event()

    def act(self, method, number, act):
        self.called.set()
        assert self.gate.wait(PATIENT)
        if not self.late:
            self.fails(method, number)
        act()
        if self.late:
            self.fails(method, number)

    def begin(self, trial):
        self.act("begin", trial.number, lambda: self.begun.append(trial.number))

    def report(self, trial, epoch, values):
        raise AssertionError("report_all is there")

    def report_all(self, trial, points):
        known = self.points.setdefault(trial.number, [])
        self.act("report", trial.number, lambda: known.extend(points))

    def end(self, trial, state, values):
        self.act("end", trial.number, lambda: self.states.update({trial.number: state}))

    def study_end(self, answer):
        self.act("study_end", None, lambda: self.answers.append(answer.digest))

    def known(self, trial):
        self.act("known", trial.number, lambda: None)
        points = frozenset((p.epoch, p.name) for p in self.points.get(trial.number, ()))
        return Known(points, trial.number in self.begun, trial.number in self.states)

    def ended(self, study):
        self.act("ended", None, lambda: None)
        return {*self.states}

    def answered(self, study):
        return self.answers[-1] if self.answers else None

    def epochs(self, number):
        return [point.epoch for point in self.points.get(number, ())]


def study(folder):
    return TrackedStudy("s", "ab" * 16, {"accuracy": "maximize"}, folder)


def trial(folder, number=0):
    return TrackedTrial(study(folder), number, {"lr": 0.1}, {}, 1.0, 2.0)


def points(*epochs):
    return [Point(epoch, "accuracy", epoch / 10, float(epoch)) for epoch in epochs]


def ended(folder, number=0, *epochs, state="complete"):
    return Ending(trial(folder, number), points(*epochs), state, {"accuracy": 0.5})


class Away:
    """Refuses until it is let; `tried` is set after `wanted` tries."""

    def __init__(self, *methods, wanted=3):
        self.methods, self.back, self.tries, self.wanted = methods, threading.Event(), 0, wanted
        self.tried = threading.Event()

    def __call__(self, method, number):
        if not self.back.is_set() and method in (self.methods or (method,)):
            self.tries += 1
            if self.tries >= self.wanted:
                self.tried.set()
            raise ConnectionError("nobody answers at http://me:secret@host")


def test_all_is_told_in_order_and_once(tmp_path):
    tracker = Recorder()
    told = Feed("t", tracker, tmp_path)
    told.begin(trial(tmp_path), [], 60.0, new=True)
    for epoch in range(1, 6):
        told.report(trial(tmp_path), points(epoch), 60.0)
        told.report(trial(tmp_path), points(epoch), 60.0)
    told.end(ended(tmp_path, 0, *range(1, 6)))
    assert told.close() == 0
    assert tracker.begun == [0]
    assert tracker.epochs(0) == [1, 2, 3, 4, 5]
    assert tracker.states == {0: "complete"}


def test_nobody_waits_for_a_tracker_that_hangs_and_all_is_told_when_it_goes_on(tmp_path):
    tracker = Recorder()
    tracker.gate.clear()
    told = Feed("t", tracker, tmp_path)
    told.begin(trial(tmp_path), [], 60.0, new=True)
    assert tracker.called.wait(PATIENT)
    for epoch in range(1, 1001):  # while a call is under way
        told.report(trial(tmp_path), points(epoch), 60.0)
    told.end(ended(tmp_path, 0, *range(1, 1001)))
    assert tracker.epochs(0) == []
    tracker.gate.set()
    assert told.close() == 0
    assert tracker.epochs(0) == [*range(1, 1001)]


@pytest.mark.parametrize("late", [False, True], ids=["lost", "arrived"])
@pytest.mark.parametrize("method", ["begin", "report", "end", "study_end", "known"])
def test_a_call_that_fails_is_repeated_without_a_number_told_twice(tmp_path, caplog, method, late):
    # What has arrived is not repeated, so that it fails once.
    away = Away(method, wanted=1 if late and method != "known" else 3)
    tracker = Recorder(away, late)
    told = Feed("t", tracker, tmp_path)
    told.begin(trial(tmp_path), points(1), 60.0, new=False)
    told.report(trial(tmp_path), points(2, 3), 60.0)
    told.end(ended(tmp_path, 0, 1, 2, 3))
    told.answer(Answer(study(tmp_path), 0, {}, {}, {}, "digest"))
    assert away.tried.wait(PATIENT)
    away.back.set()
    assert told.close() == 0
    assert tracker.epochs(0) == [1, 2, 3]
    assert tracker.states == {0: "complete"}
    assert tracker.answers == ["digest"]
    lines = [record.getMessage() for record in caplog.records]
    assert sum("nobody answers" in line for line in lines) == 1, "one line for all tries"
    assert not any("secret" in line for line in lines)
    if away.tries > 1:
        assert sum("is back after" in line for line in lines) == 1


def test_what_another_worker_has_told_is_not_told_again(tmp_path):
    tracker = Recorder()
    first = Feed("t", tracker, tmp_path)
    first.begin(trial(tmp_path), [], 60.0, new=True)
    first.report(trial(tmp_path), points(1, 2), 60.0)
    assert first.close() == 0
    second = Feed("t", tracker, tmp_path)  # goes on with the trial, and finds 3 reports stored
    second.begin(trial(tmp_path), points(1, 2, 3), 60.0, new=False)
    second.report(trial(tmp_path), points(4), 60.0)
    second.end(ended(tmp_path, 0, 1, 2, 3, 4))
    assert second.close() == 0
    assert tracker.begun == [0]
    assert tracker.epochs(0) == [1, 2, 3, 4]


def test_the_command_tells_what_is_missing_of_all_that_has_ended_and_nothing_else(tmp_path):
    tracker = Recorder()
    first = Feed("t", tracker, tmp_path)
    first.begin(trial(tmp_path, 0), points(1), 60.0, new=True)
    first.end(ended(tmp_path, 0, 1))
    first.begin(trial(tmp_path, 1), points(1), 60.0, new=True)  # and its worker dies
    assert first.close() == 0
    last = Feed("t", tracker, tmp_path, alone=True)
    last.complete(study(tmp_path), [ended(tmp_path, number, 1, 2) for number in range(3)])
    assert last.close() == 0
    assert {number: tracker.epochs(number) for number in range(3)} == {
        0: [1],  # had ended there
        1: [1, 2],
        2: [1, 2],
    }
    assert tracker.begun == [0, 1, 2]
    assert {*tracker.states} == {0, 1, 2}


def test_the_command_waits_for_workers_that_still_tell_something(tmp_path, monkeypatch):
    monkeypatch.setattr(feed, "PATIENCE", 0.2)
    tracker = Recorder()
    with locked(tmp_path, "t.lock", shared=True):
        last = Feed("t", tracker, tmp_path, alone=True)
        last.complete(study(tmp_path), [ended(tmp_path, 0, 1)])
        assert last.close() == 1
    assert tracker.begun == []


def test_a_trial_that_was_left_is_not_told_any_more(tmp_path):
    tracker = Recorder(away := Away())
    told = Feed("t", tracker, tmp_path)
    told.begin(trial(tmp_path), points(1), 60.0, new=True)
    assert away.tried.wait(PATIENT)
    told.leave(0)
    away.back.set()
    assert told.close() == 0
    assert tracker.points.get(0, []) == []


def test_a_trial_whose_lease_has_run_out_is_not_told_until_its_worker_says_more(tmp_path):
    tracker = Recorder(away := Away())
    told = Feed("t", tracker, tmp_path)
    told.begin(trial(tmp_path, 0), points(1), 60.0, new=True)
    assert away.tried.wait(PATIENT)
    told.report(trial(tmp_path, 0), points(2), -1.0)  # the process slept
    away.back.set()
    told.begin(trial(tmp_path, 1), points(1), 60.0, new=True)
    told.flush(0.0)
    assert told.close() == 0
    assert tracker.epochs(0) == []
    assert tracker.epochs(1) == [1]


def test_a_trial_that_is_refused_again_and_again_does_not_hold_up_the_others(tmp_path, caplog):
    def refuse(method, number):
        if number == 1 and method == "begin":
            raise ValueError("no such \x1b[31m<img onerror=x>\nfake: line")

    tracker = Recorder(refuse)
    told = Feed("t", tracker, tmp_path)
    left = threading.Event()
    logging.getLogger(feed.__name__).addFilter(
        check := lambda r: "left out" not in r.getMessage() or left.set() or True
    )
    for number in range(3):
        told.begin(trial(tmp_path, number), points(1), 60.0, new=True)
    for epoch in range(2, 300):
        told.report(trial(tmp_path, 2), points(epoch), 60.0)
        if left.wait(0.02):
            break
    logging.getLogger(feed.__name__).removeFilter(check)
    assert told.close() == 0
    assert tracker.epochs(0) == [1]
    assert tracker.epochs(2) == [*range(1, epoch + 1)]
    lines = [record.getMessage() for record in caplog.records]
    assert any("trial 1 is left out" in line for line in lines)
    assert not any("\x1b" in line or "\n" in line for line in lines)


def test_the_queue_is_bounded_and_what_is_left_out_is_told_at_the_end(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(feed, "MOST_POINTS", 10)
    monkeypatch.setattr(feed, "MOST_TRIALS", 2)
    tracker = Recorder(away := Away())
    told = Feed("t", tracker, tmp_path)
    told.begin(trial(tmp_path), [], 60.0, new=True)
    for epoch in range(1, 100):
        told.report(trial(tmp_path), points(epoch), 60.0)
    for number in range(1, 4):
        told.end(ended(tmp_path, number, 1, 2))
    assert told._points <= 10
    assert len(told._waiting) <= 2
    away.back.set()
    told.close()
    last = Feed("t", tracker, tmp_path, alone=True)
    monkeypatch.setattr(feed, "MOST_POINTS", 10_000)
    monkeypatch.setattr(feed, "MOST_TRIALS", 10)
    missing = [ended(tmp_path, 0, *range(1, 100)), *(ended(tmp_path, n, 1, 2) for n in (1, 2, 3))]
    last.complete(study(tmp_path), missing)
    assert last.close() == 0
    assert sorted(tracker.epochs(0)) == [*range(1, 100)]
    assert {n: tracker.epochs(n) for n in (1, 2, 3)} == {n: [1, 2] for n in (1, 2, 3)}
    assert sum("queue is full" in record.getMessage() for record in caplog.records) == 1


def test_the_end_waits_no_longer_than_it_says_for_a_tracker_that_hangs_or_is_away(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(feed, "PATIENCE", 0.1)
    hanging = Recorder()
    hanging.gate.clear()
    for tracker in (hanging, Recorder(Away())):
        told = Feed("t", tracker, tmp_path)
        told.end(ended(tmp_path, 0, 1))
        assert told.close() == 1
    hanging.gate.set()


def test_an_answer_is_told_again_only_if_it_is_another(tmp_path):
    tracker = Recorder()
    for digest in ("a", "a", "b"):
        told = Feed("t", tracker, tmp_path)
        told.answer(Answer(study(tmp_path), 0, {}, {}, {}, digest))
        assert told.close() == 0
    assert tracker.answers == ["a", "b"]


def test_locks_are_shared_or_not_and_a_disk_without_room_is_no_error(tmp_path):
    with locked(tmp_path, "x", shared=True) as one, locked(tmp_path, "x", shared=True) as two:
        assert one
        assert two
        with locked(tmp_path, "x", stopping=lambda: True) as alone:
            assert not alone
    with locked(Path("/proc/nowhere"), "x") as held:
        assert not held
