"""Trackio has each point of a trial once, however many processes have written it."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from studyloom.extras.trackers import Trackio
from studyloom.extras.trackers.projection import (
    CurvePoint,
    TrackedResult,
    TrackedStudy,
    TrackedTrial,
)


class Run:
    """A run of the toy Trackio, which keeps its rows in the order of their calls."""

    def __init__(self, runs, name, config):
        self.runs, self.name, self.config, self.rows = runs, name, config, []

    def log(self, metrics, step=None):
        self.rows.append((step, metrics))

    def delete(self):
        self.runs.remove(self)


class Toy(ModuleType):
    """Trackio's documented functions, with the runs of one project in memory."""

    def __init__(self):
        super().__init__("trackio")
        self.__spec__ = ModuleSpec("trackio", None)
        self.stored = []
        self.current = None

    def init(self, project, name, group, config, resume, embed, auto_log_cpu, auto_log_gpu):
        assert (project, group, resume) == ("p", "s", "never")
        assert {embed, auto_log_cpu, auto_log_gpu} == {False}
        self.current = Run(self.stored, name, config)
        self.stored.append(self.current)
        return self.current

    def finish(self):
        assert self.current is not None
        self.current = None

    def Api(self):
        return self

    def runs(self, project):
        if not self.stored:
            raise ValueError("the project does not exist")
        return [*self.stored]


@pytest.fixture
def toy(monkeypatch):
    module = Toy()
    monkeypatch.setitem(sys.modules, "trackio", module)
    return module


def test_each_point_is_there_once_after_a_kill_and_a_second_write(toy, tmp_path):
    study = TrackedStudy("s", "ab" * 16, {"accuracy": "maximize"}, tmp_path)
    points = [CurvePoint(epoch, "accuracy", epoch / 10, 1e9) for epoch in (1, 2, 3)]
    rows = [(epoch, {"epoch": epoch, "accuracy": epoch / 10}) for epoch in (1, 2, 3)]

    def running(count):
        return TrackedTrial(study, 0, "running", {"lr": 0.1}, {}, {}, points[:count], 1e9, 0.0)

    killed = Trackio("p")
    killed.write_running(running(1))
    killed.write_running(running(2))
    assert [run.rows for run in toy.stored] == [rows[:2]]
    tracker = Trackio("p")
    tracker.write_running(running(2))
    tracker.write_running(running(3))
    assert [run.rows for run in toy.stored] == [rows]

    values = {"accuracy": 0.3}
    ended = TrackedTrial(study, 0, "complete", {"lr": 0.1}, values, {}, points, 1e9, 1e9 + 9)
    for _ in range(2):
        tracker.write_trial(ended)
        tracker.write_result(TrackedResult(study, 0, {"lr": 0.1}, {"test.mean": 0.2}, {}))
    trial, result = toy.stored
    assert (trial.name, trial.config) == (
        "trial-0-abababab",
        {"lr": 0.1, "studyloom.state": "complete"},
    )
    assert trial.rows == [*rows, (None, {"final/accuracy": 0.3})]
    assert (result.config, result.rows) == (
        {"winner": 0, "lr": 0.1},
        [(None, {"test.mean": 0.2})],
    )
    assert toy.current is None
