"""Trackers have of a study what its database has, whoever worked on it and stopped when."""

import threading
from functools import partial

import pytest
from toy_worker import FOLDER, RANDOM, fresh, work
from toys import ask
from tracked import in_database, seen_of

from studyloom.study.tracking import Feed, TrackedAnswer, Tracking, project, track_study


class Memory:
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

    def write_answer(self, answer):
        self.answers.append(answer)


@pytest.fixture
def stored(sqlite_url, tmp_path):
    FOLDER["checkpoints"] = tmp_path
    question = ask(*RANDOM)
    stored = fresh(sqlite_url, question, 3)
    work(question, stored, 3)
    yield stored
    stored.close()


def test_a_command_writes_every_ended_trial_with_its_curves_and_the_answer(stored, tmp_path):
    memory = Memory()
    answer = TrackedAnswer(track_study(stored, tmp_path), 1, {}, {}, {})
    for _ in range(2):
        project(stored, {"mine": memory}, tmp_path, answer)
        assert memory.trials == in_database(stored)
    assert memory.answers == [answer, answer]


def test_one_that_lists_its_trials_is_given_those_that_are_missing_alone(stored, tmp_path):
    class Listing(Memory):
        def written(self, study):
            return {0, 2}

    listing = Listing()
    project(stored, {"mine": listing}, tmp_path)
    assert [*listing.trials] == [1]


def test_a_tracker_that_is_away_costs_a_line_and_is_told_in_time(stored, tmp_path, caplog):
    memory = Memory()
    memory.away = True
    first, second, _ = stored.trials()
    with Tracking({"mine": memory}, stored, tmp_path) as tracking:
        tracking.end(first)
        assert memory.told.acquire(timeout=60)
        memory.away = False
        tracking.end(second)
    assert {*memory.trials} == {0, 1}
    (away, back) = [record.message for record in caplog.records]
    assert away == "track.mine: no answer from ␛[31mhost; the study goes on"
    assert back.startswith("track.mine: is back after ")


def test_nobody_waits_for_one_that_hangs_and_the_same_command_is_named(monkeypatch, caplog):
    hangs = threading.Event()
    feed = Feed("mine")
    feed.put(hangs.wait)
    feed.close(0.01)
    hangs.set()
    assert caplog.messages == ["track.mine: it may lack trials; the same command writes them"]


def test_one_trial_that_a_tracker_refuses_costs_the_others_nothing():
    told = []

    def write(number):
        if number == 0:
            raise ValueError("0 is refused")
        told.append(number)

    feed = Feed("mine")
    for number in range(4):
        feed.put(partial(write, number))
    feed.close(60)
    assert sorted({*told}) == [1, 2, 3]
