"""The worker loop: budgets, claims, stops, and deaths of other workers."""

import os
import threading
from contextlib import contextmanager

import pytest
from optuna.trial import TrialState
from toy_worker import FOLDER, FOLDS, RANDOM, SPLIT, fresh, outcomes, work, work_side_by_side
from toys import Never, Signal, ask, begin

from studyloom.data.training_data import TrainingData
from studyloom.processes import worker_id
from studyloom.storage.attributes import (
    BASELINE,
    EPOCHS,
    FAILURE,
    REASON,
    SLOT,
    TIMES,
)
from studyloom.study.opening import open_study
from studyloom.study.reporter import Stopwatch
from studyloom.study.worker import Worker


@pytest.mark.usefixtures("threads_are_workers")
def test_n_means_n_over_any_number_of_workers(url, question):
    stored = fresh(url, question, 6)
    work_side_by_side(question, url, 6, workers=3)
    work(question, stored, 6)  # joins a study that is done
    trials = stored.trials()
    assert [trial.number for trial in trials] == list(range(6))
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    assert sorted(trial.user_attrs[SLOT] for trial in trials) == list(range(6))
    assert len({tuple(sorted(trial.params.items())) for trial in trials}) == 6
    assert stored.ledger.counts() == {"free": 0, "held": 0, "done": 6}


def test_the_baseline_is_trial_0_and_the_best_is_never_worse(sqlite_url, question):
    stored = fresh(sqlite_url, question, 6)
    work(question, stored, 6)
    baseline = stored.trials()[0]
    assert baseline.params == question.baseline.params
    assert baseline.user_attrs[BASELINE] is True
    assert baseline.state == TrialState.COMPLETE
    assert stored.optuna.best_value >= baseline.value
    assert [t.number for t in stored.trials() if BASELINE in t.user_attrs] == [0]
    other = ask(*RANDOM, "study.baseline=false")
    without = fresh(sqlite_url, other, 1, name="without")
    work(other, without, 1)
    assert BASELINE not in without.trials()[0].user_attrs


def test_a_trial_is_what_its_study_seed_and_number_make_it(tmp_path, question):
    """In one go or in three, with the random sampler.

    tests/chaos tests it with several workers, and after any fault.
    """
    at_once = fresh(f"sqlite:///{tmp_path}/a.db", question, 6)
    work(question, at_once, 6)
    in_parts = fresh(f"sqlite:///{tmp_path}/b.db", question, 6)
    for trials in (1, 4, 6):
        work(question, in_parts, trials)
    assert outcomes(at_once) == outcomes(in_parts)
    other = fresh(f"sqlite:///{tmp_path}/c.db", other_seed := ask(*RANDOM, "study.seed=1"), 3)
    work(other_seed, other, 3)
    assert not outcomes(other) & outcomes(at_once)


def test_a_stopped_trial_is_handed_back_and_the_same_trial_is_gone_on_with(
    url, question, checkpoints
):
    stored = fresh(url, question, 2)
    work(question, stored, 2, Signal(2))
    assert stored.ledger.counts() == {"free": 2, "held": 0, "done": 0}
    assert [list(t.intermediate_values) for t in stored.trials()] == [[1]]
    assert (checkpoints / "trial-0.pt").exists()
    again = open_study(url, "s")
    work(question, again, 2)
    clean = fresh(url, question, 2, name="clean")
    work(question, clean, 2)
    assert outcomes(again) == outcomes(clean)
    assert [list(t.intermediate_values) for t in again.trials()] == [[1, 2], [1, 2]]
    assert again.trials()[0].user_attrs[EPOCHS]["number"] == [1, 2]
    assert list(checkpoints.iterdir()) == []


def test_a_trial_without_its_checkpoint_starts_anew_says_so_and_ends_the_same(
    sqlite_url, question, tmp_path, monkeypatch, caplog
):
    """Such as one that went on on another host."""
    stored = fresh(sqlite_url, question, 1)
    work(question, stored, 1, Signal(2))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.setitem(FOLDER, "checkpoints", here)
    work(question, stored, 1)
    words = f"trial 0: of its 1 epochs so far no checkpoint is in {here}; it starts anew"
    assert words in caplog.text
    clean = fresh(sqlite_url, question, 1, name="clean")
    work(question, clean, 1)
    assert outcomes(stored) == outcomes(clean)


class Thief(Never):
    """Has `steal` called in the epoch number `epoch`: another worker takes the slot."""

    def __init__(self, epoch, steal):
        self.left, self.steal = epoch, steal

    @contextmanager
    def interruptible(self):
        self.left -= 1
        yield
        if self.left == 0:
            self.steal()


def test_a_late_worker_drops_its_result_and_goes_on_with_another_slot(url, question):
    stored = fresh(url, question, 2)
    other = open_study(url, "s")
    taken, at_work = [], threading.Event()

    def steal():
        other.ledger.record_death(worker_id(os.getpid()), "thought dead")
        taken.append(other.ledger.claim("thief", 2, 60.0))

    def release():
        assert at_work.wait(60)
        other.ledger.release(taken[0])

    class Watched(Thief):
        """Lets the thief release the slot when the worker is in its next trial."""

        def interruptible(self):
            if self.left < 0:
                at_work.set()
            return super().interruptible()

    thief = threading.Thread(target=release)
    thief.start()
    work(question, stored, 2, Watched(2, steal))
    thief.join()
    assert taken[0].deaths == 1
    assert stored.ledger.counts() == {"free": 0, "held": 0, "done": 2}
    clean = fresh(url, question, 2, name="clean")
    work(question, clean, 2)
    assert outcomes(stored) == outcomes(clean)


def test_a_trial_that_another_worker_has_told_is_left_to_it(url, question):
    stored = fresh(url, question, 1)

    def steal():
        (trial,) = stored.optuna.get_trials()
        open_study(url, "s").optuna.tell(trial.number, 0.125)

    work(question, stored, 1, Thief(2, steal))
    assert [trial.value for trial in stored.trials()] == [0.125]
    assert stored.ledger.counts()["done"] == 1


def test_a_trial_of_which_too_many_workers_died_is_given_up_with_the_reason(url, question):
    stored = fresh(url, question, 1)
    for _ in range(3):
        stored.ledger.claim("w", 1, 60.0)
        stored.ledger.record_death("w", "the worker ended with signal SIGKILL")
    work(question, stored, 1, max_attempts=3)
    (trial,) = stored.trials()
    assert (trial.state, trial.user_attrs[FAILURE]) == (TrialState.FAIL, "crashed")
    assert trial.user_attrs[REASON] == (
        "3 workers died of this trial, the last so: the worker ended with signal SIGKILL"
    )
    assert stored.ledger.counts()["done"] == 1
    overdue = fresh(url, question, 1, name="overdue")
    overdue.ledger.claim("w", 1, 60.0)
    (late,) = overdue.ledger.overdue(["w"], -1.0)
    overdue.ledger.record_death("w", "the trial took longer than it may", overdue=late)
    work(question, overdue, 1)
    assert overdue.trials()[0].user_attrs[FAILURE] == "timeout", "after a single death"


def test_a_trial_that_was_told_and_whose_slot_was_not_is_left_as_it_is(url, question):
    stored = fresh(url, question, 1)
    trial = begin(stored)
    stored.ledger.claim("dead", 1, 60.0, lambda *_: trial._trial_id)
    stored.optuna.tell(trial, 0.25)
    stored.ledger.record_death("dead", "signal SIGKILL")
    work(question, open_study(url, "s"), 1)
    assert [t.value for t in stored.trials()] == [0.25]
    assert stored.ledger.counts()["done"] == 1


def test_all_of_a_workers_time_is_some_trials(sqlite_url):
    question = ask(*RANDOM)
    stored = fresh(sqlite_url, question, 3)
    watch = Stopwatch.since(5.0)
    began = watch.taken
    folder = FOLDER["checkpoints"]
    Worker(question, stored, TrainingData(None, SPLIT, FOLDS), Never(), folder, watch=watch).run(3)
    taken = [trial.user_attrs[TIMES] for trial in stored.trials()]
    assert taken[0]["start-up"] == 5.0
    assert {*taken[0]} - {"start-up"} <= {
        "training",
        "evaluation",
        "storage",
        "sampling",
        "checkpoints",
        "other",
    }
    assert min(part for times in taken for part in times.values()) >= 0
    spent = sum(part for times in taken for part in times.values()) + sum(watch.take().values())
    assert spent == pytest.approx(watch.taken - began, abs=0.01)


@pytest.mark.usefixtures("threads_are_workers")
def test_a_grid_visits_each_point_once(url):
    question = ask(
        *RANDOM,
        "sampler=grid",
        "~space.optimizer",
        "~space.model",
        "+space.model.activation.choice=[relu,tanh]",
    )
    assert question.trials() == 6
    stored = fresh(url, question, 6)
    work_side_by_side(question, url, 6, workers=4)
    points = [(t.params["train.batch_size"], t.params["model.activation"]) for t in stored.trials()]
    assert sorted(points) == sorted((b, a) for b in (16, 32, 64) for a in ("relu", "tanh"))
    assert stored.trials()[0].params == question.baseline.params
