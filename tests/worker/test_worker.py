"""The worker loop: budgets, claims, stops, and deaths of other workers."""

import os
import subprocess
from contextlib import contextmanager, suppress

import optuna
import pytest
import torch
from optuna.trial import TrialState
from torch.utils.data import DataLoader
from toy_worker import (
    FOLDER,
    FOLDS,
    RANDOM,
    SPLIT,
    fresh,
    outcomes,
    outcomes_of,
    work,
    work_side_by_side,
)
from toys import TWO, Never, Signal, ask, toy_folds

from studyloom.data.training_data import TrainingData
from studyloom.decisions.strategy import Strategy
from studyloom.errors import Halted
from studyloom.processes import Stopwatch, worker_id
from studyloom.storage.attributes import (
    BASELINE,
    EPOCHS,
    FAILURE,
    REASON,
    RESUMED,
    SLOT,
    STREAMS,
    TIMES,
)
from studyloom.storage.opening import open_study
from studyloom.worker.driver import reopen
from studyloom.worker.stage import Stage
from studyloom.worker.worker import Worker


@pytest.fixture(scope="module")
def undisturbed(definition, tmp_path_factory):
    """The trials of a study to which nothing happens."""
    stored = fresh(f"sqlite:///{tmp_path_factory.mktemp('undisturbed')}/s.db", definition, 4)
    work(definition, stored, 4)
    trials = stored.trials()
    stored.close()
    return trials


def test_the_baseline_is_trial_0_and_may_be_left_out(undisturbed, definition, url):
    baseline, *others = undisturbed
    assert baseline.params == definition.baseline.params
    assert baseline.user_attrs[BASELINE] is True
    assert baseline.state == TrialState.COMPLETE
    assert not any(BASELINE in trial.user_attrs for trial in others)
    other = ask(*RANDOM, "study.baseline=false")
    without = fresh(url, other, 1)
    work(other, without, 1)
    assert BASELINE not in without.trials()[0].user_attrs


def test_a_trial_depends_only_on_its_study_seed_and_number(url, definition, undisturbed):
    """In one go or in two; tests/chaos has several workers, and any fault."""
    in_parts = fresh(url, definition, 4)
    for trials in (1, 4):
        work(definition, in_parts, trials)
    assert outcomes(in_parts) == outcomes_of(undisturbed)
    other_seed = ask(*RANDOM, "study.seed=1")
    other = fresh(url, other_seed, 2, name="other")
    work(other_seed, other, 2)
    assert not outcomes(other) & outcomes_of(undisturbed)


def test_a_stopped_trial_is_released_and_the_same_trial_is_resumed(
    url, definition, undisturbed, checkpoints
):
    stored = fresh(url, definition, 2)
    work(definition, stored, 2, Signal(2))
    assert stored.ledger.counts() == {"free": 2, "held": 0, "done": 0}
    assert [list(t.intermediate_values) for t in stored.trials()] == [[1]]
    assert (checkpoints / "trial-0.pt").exists()
    again = open_study(url, "s")
    work(definition, again, 2)
    assert outcomes(again) == outcomes_of(undisturbed[:2])
    assert [list(t.intermediate_values) for t in again.trials()] == [[1, 2], [1, 2]]
    assert again.trials()[0].user_attrs[EPOCHS]["number"] == [1, 2]
    assert list(checkpoints.iterdir()) == []


def test_a_trial_without_its_checkpoint_starts_again_and_ends_the_same(
    url, definition, undisturbed, tmp_path, monkeypatch, caplog
):
    """Such as one that goes on on another host."""
    stored = fresh(url, definition, 1)
    work(definition, stored, 1, Signal(2))
    (here := tmp_path / "here").mkdir()
    monkeypatch.setitem(FOLDER, "checkpoints", here)
    work(definition, stored, 1)
    words = f"trial 0: its reports up to step 1 have no checkpoint in {here}; it starts again from"
    assert words in caplog.text
    assert outcomes(stored) == outcomes_of(undisturbed[:1])


def test_a_new_study_does_not_resume_from_a_deleted_studys_checkpoint(
    definition, checkpoints, tmp_path, monkeypatch
):
    """Of the same name and seed; its examples, which no checkpoint names, were others."""

    def begun(name, **more):
        stored = fresh(f"sqlite:///{tmp_path}/{name}.db", definition, 1)
        work(definition, stored, 1, **more)
        (trial,) = stored.trials()
        return trial.user_attrs.get(EPOCHS, {}).get("train_loss")

    begun("deleted", stopping=Signal(2))
    assert (checkpoints / "trial-0.pt").exists()
    others = toy_folds(SPLIT, 5)[1:2]
    anew = begun("anew", folds=others)
    monkeypatch.setitem(FOLDER, "checkpoints", None)
    assert anew == begun("elsewhere", folds=others)
    assert list(checkpoints.iterdir()) == []


@pytest.mark.parametrize("kept", [True, False])
def test_a_resumed_trial_names_the_epoch_of_its_checkpoint(
    url, definition, checkpoints, kept, caplog
):
    """As where it is killed between a report and the checkpoint that would have followed."""
    caplog.set_level("INFO")
    stored = fresh(url, definition, 1)
    work(definition, stored, 1, Signal(2))
    stored.ledger.claim("w", 1, 60.0)
    stored.ledger.record_death("w", "it was killed")
    if not kept:
        (checkpoints / "trial-0.pt").unlink()
    work(definition, stored, 1)
    (trial,) = stored.trials()
    epoch, where = (1, "resumes after epoch 1") if kept else (None, "starts again from the begin")
    assert trial.user_attrs[RESUMED] == {"epoch": epoch, "deaths": 1, "death": "it was killed"}
    assert f"trial 0 {where}" in caplog.text


def streaming(config, run):
    """A loop that reads on in the same stream in each epoch."""
    run.keep(net=torch.nn.Linear(1, 1))
    examples = iter(DataLoader(run.train))
    for _ in run.epochs(3):
        next(examples)
        run.report(accuracy=0.5)
    return run.value


def test_a_stream_is_stored_with_the_first_report_and_named_on_resuming(url, checkpoints, caplog):
    caplog.set_level("INFO")
    target = ("objective._target_=test_worker.streaming", "objective.direction=maximize")
    definition = ask(*RANDOM, *target)
    stored = fresh(url, definition, 1)
    work(definition, stored, 1, Signal(2))
    (trial,) = stored.trials()
    assert trial.state == TrialState.RUNNING
    assert trial.user_attrs[STREAMS] == ["examples"]
    stored.ledger.claim("w", 1, 60.0)
    stored.ledger.record_death("w", "it was killed")
    work(definition, stored, 1)
    assert "it was killed; stream examples starts again" in caplog.text


class Thief(Never):
    """Has another worker take the slot in the second epoch, and give it back at once."""

    def __init__(self, other):
        self.epoch, self.ledger, self.taken = 0, other.ledger, None

    @contextmanager
    def interruptible(self):
        self.epoch += 1
        yield
        if self.epoch == 2:
            self.ledger.record_death(worker_id(os.getpid()), "thought dead")
            self.taken = self.ledger.claim("thief", 2, 60.0)
            self.ledger.release(self.taken)


def test_a_late_worker_drops_its_result_and_claims_the_next_slot(url, definition, undisturbed):
    stored = fresh(url, definition, 2)
    work(definition, stored, 2, thief := Thief(open_study(url, "s")))
    assert thief.taken.deaths == 1
    assert thief.epoch > 4, "the last epoch was done again"
    assert stored.ledger.counts() == {"free": 0, "held": 0, "done": 2}
    assert outcomes(stored) == outcomes_of(undisturbed[:2])
    resumed = [trial.user_attrs.get(RESUMED) for trial in stored.trials()]
    assert resumed == [{"epoch": 1, "deaths": 1, "death": "thought dead"}, None]


def test_a_trial_that_crashed_too_many_workers_fails_with_the_reason(url, definition):
    stored = fresh(url, definition, 1)
    for _ in range(3):
        stored.ledger.claim("w", 1, 60.0)
        stored.ledger.record_death("w", "the worker ended with signal SIGKILL")
    work(definition, stored, 1, max_attempts=3)
    (trial,) = stored.trials()
    assert (trial.state, trial.user_attrs[FAILURE]) == (TrialState.FAIL, "crashed")
    assert trial.user_attrs[REASON] == (
        "3 workers crashed in this trial; the last: the worker ended with signal SIGKILL"
    )
    assert stored.ledger.counts()["done"] == 1
    overdue = fresh(url, definition, 1, name="overdue")
    overdue.ledger.claim("w", 1, 60.0)
    (late,) = overdue.ledger.overdue(["w"], -1.0)
    overdue.ledger.record_death("w", "the trial took longer than it may", overdue=late)
    work(definition, overdue, 1)
    assert overdue.trials()[0].user_attrs[FAILURE] == "timeout", "after a single death"


class TooLongKey(Never):
    """Notes something of the trial in its first epoch that PostgreSQL cannot hold."""

    def __init__(self, stored):
        self.stored = stored

    @contextmanager
    def interruptible(self):
        yield
        (trial,) = self.stored.trials()
        self.stored.storage.set_trial_user_attr(trial._trial_id, "k" * 513, 1)


def test_a_value_that_the_database_cannot_hold_fails_its_trial(postgres_url, definition):
    stored = fresh(postgres_url, definition, 1)
    with suppress(Halted):  # it is the first trial
        work(definition, stored, 1, TooLongKey(stored))
    (trial,) = open_study(postgres_url, "s").trials()
    assert trial.user_attrs[FAILURE] == "error"
    assert "cannot hold this: value too long" in trial.user_attrs[REASON]
    assert stored.ledger.counts()["done"] == 1


def test_a_command_first_resumes_the_trial_of_a_dead_worker(sqlite_url):
    definition = ask(*RANDOM)
    stored = fresh(sqlite_url, definition, 2)
    gone = subprocess.Popen(["true"])
    gone.wait()
    ledger = stored.ledger
    interrupted = ledger.claim(worker_id(gone.pid), 2, lease=60)
    reopen([Stage("search", stored, definition, Strategy(definition), 2)])
    assert ledger.claim(worker_id(os.getpid()), 2, lease=60).slot == interrupted.slot


def test_all_of_a_workers_time_is_charged_to_its_trials(sqlite_url):
    definition = ask(*RANDOM)
    stored = fresh(sqlite_url, definition, 3)
    watch = Stopwatch.since(5.0)
    began = watch.last_take
    folder = FOLDER["checkpoints"]
    stage = Stage("search", stored, definition, Strategy(definition), 3)
    Worker(stage, TrainingData(None, SPLIT, FOLDS), Never(), folder, stopwatch=watch).run()
    taken = [trial.user_attrs[TIMES] for trial in stored.trials()]
    assert taken[0]["start-up"] == 5.0
    parts = {"training", "evaluation", "storage", "sampling", "checkpoints", "other"}
    assert {*taken[0]} - {"start-up"} <= parts
    assert min(part for times in taken for part in times.values()) >= 0
    spent = sum(part for times in taken for part in times.values()) + sum(watch.take().values())
    assert spent == pytest.approx(watch.last_take - began, abs=0.01)


@pytest.mark.usefixtures("threads_are_workers")
def test_a_grid_visits_each_configuration_once_with_any_workers(url):
    space = ("~space.optimizer", "~space.model", "+space.model.activation.choice=[relu,tanh]")
    definition = ask(*RANDOM, "sampler=grid", *space)
    assert Strategy(definition).trials == 6
    stored = fresh(url, definition, 6)
    work_side_by_side(definition, url, 6, workers=4)
    work(definition, stored, 6)  # joins a study that is done
    trials = stored.trials()
    assert sorted(trial.user_attrs[SLOT] for trial in trials) == [*range(6)]
    assert stored.ledger.counts() == {"free": 0, "held": 0, "done": 6}
    configurations = [(t.params["train.batch_size"], t.params["model.activation"]) for t in trials]
    assert sorted(configurations) == sorted((b, a) for b in (16, 32, 64) for a in ("relu", "tanh"))
    assert trials[0].params == definition.baseline.params


def test_a_trial_with_two_objectives_has_both_values_and_its_curve(sqlite_url):
    definition = ask(*TWO)
    stored = fresh(sqlite_url, definition, 4)
    work(definition, stored, 4)
    for trial in stored.trials():
        width = trial.params["model.hidden.0"] if trial.params else 16
        assert trial.values[1] == 17 * width + 10 * (width + 1)
        assert trial.values[0] == trial.user_attrs[EPOCHS]["value"][-1]
        assert list(trial.intermediate_values) == [1, 2]
        assert trial.values[0] == trial.intermediate_values[2]
        assert trial.constraints in (None, {})
    assert stored.optuna.metric_names == ["accuracy", "parameters"]
    assert optuna.load_study(study_name="s", storage=stored.storage).best_trials
