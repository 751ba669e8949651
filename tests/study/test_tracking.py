"""Trackers have of a study what its database has, whoever worked on it and stopped when."""

from collections import Counter
from contextlib import contextmanager

import pytest
from optuna.trial import TrialState, create_trial
from toy_worker import FOLDER, FOLDS, RANDOM, SPLIT, Killed, fresh
from toys import Never, ask, toy_folds
from tracked import Seen, in_database, short

from studyloom.data.training_data import TrainingData
from studyloom.extras.trackers import Feed, Known, feed
from studyloom.extras.trackers.journal import Journal
from studyloom.storage.attributes import REASON
from studyloom.study.limits import Limits
from studyloom.study.tracking import Tracking, close, endings, tracked_study, tracked_trial
from studyloom.study.worker import Worker


class Memory:
    """A tracker that keeps all that it is told, with the four methods alone."""

    def __init__(self):
        self.params, self.points, self.ends, self.answers = {}, {}, {}, []

    def begin(self, trial):
        self.params[trial.number] = {name: str(value) for name, value in trial.params.items()}

    def report(self, trial, epoch, values):
        known = self.points.setdefault(trial.number, Counter())
        known.update((name, epoch, short(value)) for name, value in values.items())

    def end(self, trial, state, values):
        assert trial.number not in self.ends, "told twice"
        self.ends[trial.number] = state, values

    def study_end(self, answer):
        self.answers.append(answer)

    def seen(self, names):
        return {
            number: Seen(
                params,
                self.points.get(number, Counter()),
                self.ends.get(number, ("running", {}))[0],
                {
                    name: short(value)
                    for name, value in self.ends.get(number, (0, {}))[1].items()
                    if name in names
                },
            )
            for number, params in self.params.items()
        }


class Remembering(Memory):
    """One that says what it has."""

    place = "memory"

    def report_all(self, trial, points):
        for point in points:
            self.report(trial, point.epoch, {point.name: point.value})

    def known(self, trial):
        points = self.points.get(trial.number, ())
        begun, ended = trial.number in self.params, trial.number in self.ends
        return Known(frozenset((epoch, name) for name, epoch, _ in points), begun, ended)

    def ended(self, study):
        return {*self.ends}

    def answered(self, study):
        return self.answers[-1].digest if self.answers else None


@pytest.fixture(params=[Memory, Remembering])
def tracker(request, monkeypatch):
    monkeypatch.setattr(feed, "LINGER", 0.01)
    monkeypatch.setattr(feed, "PAUSES", (0.01,))
    return request.param()


def track(question, stored, trials, tracker, folder, stopping=None, folds=FOLDS, **limits):
    """Works on a study and tells a tracker."""
    known = tracker if isinstance(tracker, Remembering) else Journal(tracker, "memory")
    data = TrainingData(None, SPLIT, folds)
    with Tracking({"memory": known}, stored, folder) as tracking:
        Worker(
            *(question, stored, data, stopping or Never(), FOLDER["checkpoints"]),
            Limits(**limits),
            tracking=tracking,
        ).run(trials)


def agree(tracker, stored):
    assert tracker.seen({goal.name for goal in stored.goals}) == in_database(stored)


class KilledIn(Never):
    """Ends a worker in one of its epochs."""

    def __init__(self, epoch):
        self.left = epoch

    @contextmanager
    def interruptible(self):
        self.left -= 1
        if not self.left:
            raise Killed
        yield


def test_all_trials_are_told_with_parameters_curves_states_and_values(
    sqlite_url, tmp_path, question, tracker
):
    stored = fresh(sqlite_url, question, 4)
    track(question, stored, 4, tracker, tmp_path)
    agree(tracker, stored)
    assert {name for name, _, _ in tracker.points[0]} >= {"accuracy", "train_loss", "valid_loss"}


@pytest.mark.parametrize("epoch", [1, 2, 4, 5])
def test_a_trial_that_goes_on_elsewhere_is_told_once(sqlite_url, tmp_path, tracker, kind, epoch):
    question = ask(*RANDOM, *kind, "train.epochs=3")
    stored = fresh(sqlite_url, question, 3)
    with pytest.raises(Killed):
        track(question, stored, 3, tracker, tmp_path, KilledIn(epoch))
    track(question, stored, 3, tracker, tmp_path)
    agree(tracker, stored)


def test_what_a_worker_had_not_told_when_it_died_is_told_by_the_next_one_and_the_command(
    sqlite_url, tmp_path, monkeypatch, tracker
):
    monkeypatch.setattr(feed, "LINGER", 3600.0)
    monkeypatch.setattr(Feed, "close", lambda feed: 0)  # it was killed
    question = ask(*RANDOM, "train.epochs=3")
    stored = fresh(sqlite_url, question, 3)
    with pytest.raises(Killed):
        track(question, stored, 3, tracker, tmp_path, KilledIn(5))  # in the second trial
    assert tracker.params == {}
    monkeypatch.undo()
    monkeypatch.setitem(FOLDER, "checkpoints", tmp_path / "worker-checkpoints")
    (tmp_path / "second").mkdir()  # where no thread of the first holds a lock
    track(question, stored, 3, tracker, tmp_path / "second")
    assert {*tracker.ends} == {1, 2}
    known = tracker if isinstance(tracker, Remembering) else Journal(tracker, "memory")
    study = tracked_study(stored, tmp_path / "second")
    last = Feed("memory", known, tmp_path / "second", alone=True)
    last.complete(study, endings(stored, study))
    close([last])
    agree(tracker, stored)


def test_a_pruned_and_a_failed_trial_say_so(sqlite_url, tmp_path, tracker):
    pruner = ("pruner._target_=optuna.pruners.ThresholdPruner", "+pruner.lower=1.1")
    question = ask(*RANDOM, *pruner, "train.epochs=3", "study.baseline=false")
    stored = fresh(sqlite_url, question, 1)
    track(question, stored, 1, tracker, tmp_path)
    assert [trial.state for trial in stored.trials()] == [TrialState.PRUNED]
    agree(tracker, stored)
    question, other = ask(*RANDOM), type(tracker)()
    failing = fresh(sqlite_url, question, 1, name="t")
    track(question, failing, 1, other, tmp_path, trial_timeout=1e-9)
    agree(other, failing)
    assert other.ends[0][0] == "failed"


def test_no_password_of_a_reason_is_told(sqlite_url, tmp_path):
    stored = fresh(sqlite_url, ask(*RANDOM), 1)
    secret = "OSError: cannot reach postgresql://bob:hunter2@db/x"
    stored.optuna.add_trial(create_trial(state=TrialState.FAIL, user_attrs={REASON: secret}))
    (trial,) = stored.optuna.trials
    facts = tracked_trial(trial, tracked_study(stored, tmp_path)).facts
    assert facts == {REASON: secret.replace("hunter2", "***")}


def test_jobs_in_turn_are_told_when_their_means_are_known(sqlite_url, tmp_path, tracker, kind):
    question = ask(*RANDOM, *kind, "objective.folds=2", "train.epochs=2")
    stored = fresh(sqlite_url, question, 2)
    track(question, stored, 2, tracker, tmp_path, folds=toy_folds(SPLIT, 2))
    agree(tracker, stored)


def test_trials_that_are_paused_and_promoted_are_told_once(sqlite_url, tmp_path, tracker):
    question = ask(*RANDOM[:-1], "pruner=promotion", "train.epochs=4")
    stored = fresh(sqlite_url, question, 6)
    track(question, stored, 6, tracker, tmp_path)
    agree(tracker, stored)


def test_a_tracker_is_no_part_of_what_a_study_asks(sqlite_url):
    plain, tracked = ask(*RANDOM), ask(*RANDOM, "track=tensorboard")
    assert plain.identity("toy") == tracked.identity("toy")
    assert "track" in tracked.config
