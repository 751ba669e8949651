"""Trackers have of a study what its database has, whoever worked on it and stopped when."""

import threading
from contextlib import contextmanager

import pytest
from toy_worker import FOLDS, RANDOM, SPLIT, Killed, fresh, work
from toys import Never, ask
from tracked import first_line, in_database, seen_of

from studyloom.data.training_data import TrainingData
from studyloom.decisions.strategy import Strategy
from studyloom.extras.trackers import projection
from studyloom.extras.trackers.projection import (
    TrackedResult,
    Tracker,
    Tracking,
    describe_study,
    write_missing,
)
from studyloom.storage.failures import Limits
from studyloom.storage.opening import open_study
from studyloom.worker.stage import Stage
from studyloom.worker.worker import Worker


class Memory(Tracker):
    """A tracker that keeps what it is told, and refuses while it is away."""

    def __init__(self):
        self.trials, self.answers, self.away = {}, [], False
        self.told = threading.Semaphore(0)

    def write_trial(self, trial):
        if self.away:
            self.told.release()
            raise ConnectionError("no answer from \x1b[31mhost")
        self.trials[trial.number] = seen_of(trial)
        self.told.release()

    def write_result(self, result):
        self.answers.append(result)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A database with a study of three trials."""
    definition, url = ask(*RANDOM), f"sqlite:///{tmp_path_factory.mktemp('tracked')}/study.db"
    stored = fresh(url, definition, 3)
    work(definition, stored, 3)
    stored.close()
    return url


@pytest.fixture
def stored(url):
    return open_study(url, "s")


def test_a_command_writes_every_ended_trial_and_the_result(stored, tmp_path):
    memory = Memory()
    result = TrackedResult(describe_study(stored, tmp_path), 1, {}, {}, {})
    for _ in range(2):
        write_missing(stored, {"mine": memory}, tmp_path, result)
        assert memory.trials == in_database(stored)
    assert memory.answers == [result, result]


def test_a_tracker_that_lists_its_trials_gets_only_the_missing_ones(stored, tmp_path):
    class Listing(Memory):
        def written(self, study):
            return {0, 2}

    listing = Listing()
    write_missing(stored, {"mine": listing}, tmp_path)
    assert [*listing.trials] == [1]


def test_a_tracker_that_is_away_costs_a_line_and_is_updated_later(stored, tmp_path, caplog):
    memory = Memory()
    memory.away = True
    first, second, third = stored.trials()
    tracking = Tracking({"mine": memory}, tmp_path)
    for trial in (first, second):
        tracking(stored, trial)
        assert memory.told.acquire(timeout=60)
    memory.away = False
    tracking(stored, third)
    tracking.close()
    assert {*memory.trials} == {2}
    assert caplog.messages == ["track.mine: no answer from ␛[31mhost; the study continues"]
    write_missing(stored, {"mine": memory}, tmp_path)
    assert memory.trials == in_database(stored)


def test_a_command_waits_for_a_slow_tracker_and_says_how_long(
    stored, tmp_path, monkeypatch, caplog
):
    memory, result = Memory(), TrackedResult(describe_study(stored, tmp_path), 1, {}, {}, {})
    write = memory.write_trial
    with first_line() as line:
        monkeypatch.setattr(projection, "SILENT_WAIT", 0.01)
        monkeypatch.setattr(memory, "write_trial", lambda t: line.wait(30) and write(t))
        write_missing(stored, {"mine": memory}, tmp_path, result)
    assert caplog.messages == [
        "track.mine: waiting 300 s at most (track.mine.patience), since it may lack "
        "3 of 3 trials and the result"
    ]
    assert memory.trials == in_database(stored)
    assert memory.answers == [result]


def test_a_command_without_patience_reports_what_the_next_one_writes(
    stored, tmp_path, monkeypatch, caplog
):
    hangs, memory = threading.Event(), Memory()
    result = TrackedResult(describe_study(stored, tmp_path), 1, {}, {}, {})
    with monkeypatch.context() as slow:
        slow.setattr(memory, "patience", 0.01, raising=False)
        slow.setattr(memory, "write_trial", lambda _: hangs.wait())
        write_missing(stored, {"mine": memory}, tmp_path, result)
    missing = "may lack 3 of 3 trials and the result"
    assert caplog.messages[1:] == [f"track.mine: {missing}; the same command writes it"]
    write_missing(stored, {"mine": memory}, tmp_path, result)
    assert (memory.trials, memory.answers) == (in_database(stored), [result])
    assert len(caplog.messages) == 2
    hangs.set()


def test_a_tracker_that_is_away_lacks_all_trials_until_the_next_run(stored, tmp_path, caplog):
    memory = Memory()
    memory.away = True
    result = TrackedResult(describe_study(stored, tmp_path), 1, {}, {}, {})
    write_missing(stored, {"mine": memory}, tmp_path, result)
    assert caplog.messages == [
        "track.mine: no answer from ␛[31mhost",
        "track.mine: may lack 3 of 3 trials; the same command writes it",
    ]


class Live(Memory):
    """A tracker that also keeps the curves of trials that run."""

    def __init__(self):
        super().__init__()
        self.curves = []
        self.shown = threading.Semaphore(0)

    def write_running(self, trial):
        assert trial.state == "running"
        self.curves.append([(point.epoch, point.value) for point in trial.points])
        self.shown.release()


class Paced(Never):
    """Lets an epoch begin once the tracker shows the one before, and kills the worker in one."""

    def __init__(self, live, last_epoch=None):
        self.live = live
        self.last_epoch = last_epoch
        self.begun = 0

    @contextmanager
    def interruptible(self):
        self.begun += 1
        if self.begun > 1:
            assert self.live.shown.acquire(timeout=60)
        if self.begun == self.last_epoch:
            raise Killed
        yield


def track(definition, stored, tracking, stopping):
    """Works on the first slot of a study, with a tracker."""
    strategy = Strategy(definition)
    stage = Stage("search", stored, definition, strategy, 1, callbacks=(tracking,))
    data = TrainingData(None, SPLIT, FOLDS)
    try:
        Worker(stage, data, stopping, None, Limits()).run()
    finally:
        tracking.close()


def test_a_trial_that_runs_shows_its_committed_reports_also_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(projection, "LIVE_INTERVAL", 0.0)
    definition = ask(*RANDOM, "train.epochs=4")
    stored = fresh(f"sqlite:///{tmp_path}/study.db", definition, 1)
    live = Live()
    with pytest.raises(Killed):
        track(definition, stored, Tracking({"mine": live}, tmp_path), Paced(live, 3))
    assert live.trials == {}
    assert [epoch for epoch, _ in live.curves[-1]] == [1, 2]
    killed_after = len(live.curves)
    track(definition, stored, Tracking({"mine": live}, tmp_path), Never())
    (trial,) = stored.trials()
    reports = sorted(trial.intermediate_values.items())
    for curve in live.curves:
        assert curve == reports[: len(curve)]
    assert all(len(curve) >= 2 for curve in live.curves[killed_after:])
    assert live.trials == in_database(stored)
    stored.close()


def test_a_short_trial_is_written_only_at_its_end_and_at_once(tmp_path):
    """Its reports wait in the thread of the tracker, of which each has one write at most."""
    definition = ask(*RANDOM, "train.epochs=3")
    stored = fresh(f"sqlite:///{tmp_path}/study.db", definition, 1)
    live = Live()
    tracking = Tracking({"mine": live}, tmp_path)
    track(definition, stored, tracking, Never())
    assert live.curves == []
    assert live.trials == in_database(stored)
    stored.close()
