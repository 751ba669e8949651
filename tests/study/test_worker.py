import os
import sqlite3
import threading
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch
from commands import ROOT
from optuna.trial import TrialState
from sqlalchemy.engine import make_url
from toys import TINY, TWO, Never, Signal, ask, toy_folds, toy_split

from studyloom.config.values import with_values
from studyloom.data.training_data import TrainingData
from studyloom.errors import Diverged, Halted, QuestionError, StorageError
from studyloom.processes import worker_id
from studyloom.question import objective
from studyloom.question.jobs import build_jobs
from studyloom.question.objective import run_epochs
from studyloom.question.question import Question
from studyloom.seeds import derive
from studyloom.storage import database as storage
from studyloom.storage.attributes import (
    BASELINE,
    EPOCHS,
    FAILURE,
    REASON,
    SLOT,
    STANDARD_ERROR,
    TIMES,
)
from studyloom.storage.connections import plain_engine
from studyloom.storage.database import connect
from studyloom.storage.ledger import Ledger
from studyloom.study import worker as study
from studyloom.study.reporter import Limits
from studyloom.study.stopwatch import Stopwatch
from studyloom.study.stored_study import create_study, differences, open_study
from studyloom.study.worker import Worker
from studyloom.training.job import Epoch
from studyloom.training.trainer import Training, epochs

SPLIT = toy_split()
FOLDS = toy_folds(SPLIT)
RANDOM = (*TINY, "sampler=random", "pruner=none")


@pytest.fixture(scope="module")
def question():
    return ask(*RANDOM)


@pytest.fixture(autouse=True)
def checkpoints(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    monkeypatch.setitem(PLACES, "checkpoints", folder)
    return folder


PLACES: dict[str, Path | None] = {}


@pytest.fixture
def threads_are_workers(monkeypatch):
    """A worker is a process; here each thread is taken for one."""
    monkeypatch.setattr(study, "worker_id", lambda pid: f"elsewhere:{threading.get_ident()}")


def work(question: Question, stored, trials, stopping=None, folds=FOLDS, **limits):
    folder = PLACES["checkpoints"]
    Worker(
        question,
        stored,
        TrainingData(None, SPLIT, folds),
        stopping or Never(),
        folder,
        Limits(**limits),
    ).run(trials)


def fresh(url, question, trials, name="s"):
    return create_study(url, name, question.identity("toy"), trials)


def outcomes(stored):
    return {(t.number, tuple(sorted(t.params.items())), t.value, t.state) for t in stored.trials()}


@pytest.mark.usefixtures("threads_are_workers")
def test_n_means_n_over_any_number_of_workers(url, question):
    stored = fresh(url, question, 9)
    workers = [
        threading.Thread(target=work, args=(question, open_study(url, "s"), 9)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    work(question, stored, 9)  # a re-join of a full study
    trials = stored.trials()
    assert [trial.number for trial in trials] == list(range(9))
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    assert sorted(trial.user_attrs[SLOT] for trial in trials) == list(range(9))
    assert len({tuple(sorted(trial.params.items())) for trial in trials}) == 9
    assert stored.ledger.counts() == {"free": 0, "held": 0, "done": 9}


def test_a_budget_extended_continues_with_the_difference(sqlite_url, question):
    work(question, fresh(sqlite_url, question, 2), 2)
    before = outcomes(open_study(sqlite_url, "s"))
    stored = fresh(sqlite_url, question, 5)
    work(question, stored, 5)
    assert len(stored.trials()) == 5
    assert before <= outcomes(stored)


def test_the_baseline_is_trial_0_and_the_best_is_never_worse(sqlite_url, question):
    stored = fresh(sqlite_url, question, 6)
    work(question, stored, 6)
    baseline = stored.trials()[0]
    assert baseline.params == question.baseline.params
    assert baseline.user_attrs[BASELINE] is True
    assert baseline.state == TrialState.COMPLETE
    assert stored.optuna.best_value >= baseline.value
    assert [t.number for t in stored.trials() if BASELINE in t.user_attrs] == [0]


def test_without_a_baseline_trial_0_is_sampled(sqlite_url):
    question = ask(*RANDOM, "study.baseline=false")
    stored = fresh(sqlite_url, question, 1)
    work(question, stored, 1)
    assert BASELINE not in stored.trials()[0].user_attrs
    assert stored.trials()[0].params != ask(*RANDOM).baseline.params


def test_a_trial_is_what_its_study_seed_and_number_make_it(tmp_path, question):
    """In one go or in three, with the random sampler; tests/chaos has it beside others and after any fault."""
    at_once = fresh(f"sqlite:///{tmp_path}/a.db", question, 6)
    work(question, at_once, 6)
    in_parts = fresh(f"sqlite:///{tmp_path}/b.db", question, 6)
    for trials in (1, 4, 6):
        work(question, in_parts, trials)
    assert outcomes(at_once) == outcomes(in_parts)
    other = fresh(f"sqlite:///{tmp_path}/c.db", other_seed := ask(*RANDOM, "study.seed=1"), 3)
    work(other_seed, other, 3)
    assert not outcomes(other) & outcomes(at_once)


def test_tpe_alone_draws_the_same_study_twice(tmp_path):
    question = ask(*TINY, "+sampler.n_startup_trials=3", "+sampler.n_ei_candidates=8")
    records = [fresh(f"sqlite:///{tmp_path}/{name}.db", question, 8) for name in "ab"]
    for stored in records:
        work(question, stored, 8)
    assert outcomes(records[0]) == outcomes(records[1])


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
    workers = [
        threading.Thread(target=work, args=(question, open_study(url, "s"), 6)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    points = [(t.params["train.batch_size"], t.params["model.activation"]) for t in stored.trials()]
    assert sorted(points) == sorted((b, a) for b in (16, 32, 64) for a in ("relu", "tanh"))
    assert stored.trials()[0].params == question.baseline.params


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


@pytest.mark.parametrize("kept", [True, False], ids=["on another host", "by nobody"])
def test_a_trial_without_its_checkpoint_starts_anew_says_so_and_ends_the_same(
    sqlite_url, question, checkpoints, tmp_path, monkeypatch, caplog, kept
):
    stored = fresh(sqlite_url, question, 1)
    monkeypatch.setitem(PLACES, "checkpoints", checkpoints if kept else None)
    work(question, stored, 1, Signal(2))
    assert [*checkpoints.iterdir()] == ([checkpoints / "trial-0.pt"] if kept else [])
    (tmp_path / "here").mkdir()
    monkeypatch.setitem(PLACES, "checkpoints", tmp_path / "here" if kept else None)
    work(question, stored, 1)
    where = tmp_path / "here" if kept else None
    assert (
        f"trial 0: of its 1 epochs so far no checkpoint is in {where}; it starts anew"
        in caplog.text
    )
    monkeypatch.setitem(PLACES, "checkpoints", checkpoints)
    clean = fresh(sqlite_url, question, 1, name="clean")
    work(question, clean, 1)
    assert outcomes(stored) == outcomes(clean)


class Thief(Never):
    """Another worker takes the slot over while this one is in its epoch number `epoch`."""

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

    def let_go():
        assert at_work.wait(60)
        other.ledger.release(taken[0])

    class Watched(Thief):
        """The thief lets go when the worker has gone on to its next trial."""

        def interruptible(self):
            if self.left < 0:
                at_work.set()
            return super().interruptible()

    thief = threading.Thread(target=let_go)
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


def test_a_trial_ended_for_its_time_is_not_tried_again(sqlite_url, question):
    stored = fresh(sqlite_url, question, 1)
    stored.ledger.claim("w", 1, 60.0)
    stored.ledger.record_death("w", "the trial took longer than it may", fatal=True)
    work(question, stored, 1)
    (trial,) = stored.trials()
    assert (trial.state, trial.user_attrs[FAILURE]) == (TrialState.FAIL, "timeout")


def test_a_trial_that_takes_too_long_ends_after_its_epoch(sqlite_url, question):
    stored = fresh(sqlite_url, question, 1)
    work(question, stored, 1, trial_timeout=1e-9)
    (trial,) = stored.trials()
    assert (trial.state, trial.user_attrs[FAILURE]) == (TrialState.FAIL, "timeout")
    assert "study.trial_timeout=1e-09" in trial.user_attrs[REASON]
    assert list(trial.intermediate_values) == [1]


def test_a_trial_that_was_told_and_whose_slot_was_not_is_left_as_it_is(url, question):
    stored = fresh(url, question, 1)
    trial = stored.optuna.ask()
    stored.ledger.claim("dead", 1, 60.0, lambda *_: trial._trial_id)
    stored.optuna.tell(trial, 0.25)
    stored.ledger.record_death("dead", "signal SIGKILL")
    work(question, open_study(url, "s"), 1)
    assert [t.value for t in stored.trials()] == [0.25]
    assert stored.ledger.counts()["done"] == 1


class Outage(Never):
    """A stranger's lock on a SQLite database, from the second epoch to the fourth, when `act` is done just before."""

    def __init__(self, stored, act=lambda: None):
        self.stored, self.act = stored, act
        self.epoch = 0
        self.reported = None  # in the database, in the midst of the outage

    @contextmanager
    def interruptible(self):
        self.epoch += 1
        if self.epoch == 2:
            path = self.stored.ledger.storage.retry.address.database
            self.stranger = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self.stranger.execute("BEGIN IMMEDIATE")
        if self.epoch == 4:
            (trial,) = open_study(
                f"sqlite:///{self.stored.ledger.storage.retry.address.database}", "s"
            ).trials()
            self.reported = list(trial.intermediate_values)
            try:
                self.act()
            finally:
                self.stranger.close()
        yield


@pytest.fixture
def impatient(monkeypatch):
    """SQLite reports a lock at once, so that it is we who wait."""
    monkeypatch.setattr(storage, "BUSY_SECONDS", 0.02)


@pytest.mark.usefixtures("impatient")
def test_training_goes_on_while_the_database_is_away(sqlite_url):
    question = ask(*RANDOM, "train.epochs=4")
    stored = fresh(sqlite_url, question, 1)
    outage = Outage(stored)
    work(question, stored, 1, outage)
    assert outage.reported == [1]
    (trial,) = stored.trials()
    assert list(trial.intermediate_values) == [1, 2, 3, 4]
    clean = fresh(sqlite_url, question, 1, name="clean")
    work(question, clean, 1)
    assert outcomes(stored) == outcomes(clean)


@pytest.mark.usefixtures("impatient")
def test_a_trial_that_was_to_be_pruned_while_the_database_was_away_is_pruned_there(sqlite_url):
    pruner = (
        "pruner._target_=optuna.pruners.ThresholdPruner",
        "+pruner.lower=1.1",
        "+pruner.n_warmup_steps=2",
    )
    question = ask(*RANDOM, *pruner, "train.epochs=6", "study.baseline=false")
    stored = fresh(sqlite_url, question, 1)
    outage = Outage(stored)
    work(question, stored, 1, outage)
    assert outage.epoch >= 4
    (trial,) = stored.trials()
    assert trial.state == TrialState.PRUNED
    assert list(trial.intermediate_values) == trial.user_attrs[EPOCHS]["number"] == [1, 2]


class Killed(BaseException):
    """The end of a worker, as far as one can be had without that of the tests."""


@pytest.mark.usefixtures("impatient")
def test_what_a_checkpoint_knows_and_the_database_does_not_is_reported_when_the_trial_goes_on(
    sqlite_url,
):
    question = ask(*RANDOM, "train.epochs=6")
    stored = fresh(sqlite_url, question, 1)

    def die():
        raise Killed

    outage = Outage(stored, die)
    with pytest.raises(Killed):
        work(question, stored, 1, outage)
    assert outage.reported == [1]
    work(question, stored, 1)
    (trial,) = stored.trials()
    assert list(trial.intermediate_values) == [1, 2, 3, 4, 5, 6]
    clean = fresh(sqlite_url, question, 1, name="clean")
    work(question, clean, 1)
    assert outcomes(stored) == outcomes(clean)


def test_a_trial_is_not_pruned_after_its_last_epoch(sqlite_url):
    pruner = (
        "pruner._target_=optuna.pruners.ThresholdPruner",
        "+pruner.lower=1.1",
        "+pruner.n_warmup_steps=2",
    )
    question = ask(*RANDOM, *pruner, "train.epochs=2", "study.baseline=false")
    stored = fresh(sqlite_url, question, 1)
    work(question, stored, 1)
    assert [trial.state for trial in stored.trials()] == [TrialState.COMPLETE]


class Broken(torch.nn.Module):
    """Fails in its first step, or not at all."""

    errors: tuple[Exception | None, ...] | list = ()  # of the networks to come, in their order

    def __init__(self, shape, classes):
        super().__init__()
        self.error = self.errors.pop(0)
        self.layer = torch.nn.Linear(shape[0] * shape[1] * shape[2], classes)

    def forward(self, images):
        if self.error is not None:
            raise self.error
        return self.layer(images.flatten(1))


@pytest.fixture
def broken(monkeypatch):
    """A question whose network fails as told."""
    question = ask("space=lr", "sampler=random", "train.epochs=1", "train.batch_size=32")
    question.config.model = {"_target_": "test_worker.Broken"}
    monkeypatch.setattr(Question, "at", lambda self, point: question.config)

    def fails_with(*errors):
        monkeypatch.setattr(Broken, "errors", list(errors))
        return question

    return fails_with


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("error", "kind", "reason", "state"),
    [
        (OUT_OF_MEMORY, "out_of_memory", "OutOfMemoryError: CUDA out of memory", TrialState.PRUNED),
        (MemoryError(), "out_of_memory", "MemoryError: ", TrialState.PRUNED),
        (
            RuntimeError("[enforce fail] can't allocate memory: 9"),
            "out_of_memory",
            "RuntimeError",
            TrialState.PRUNED,
        ),
        (RuntimeError("a bug"), "error", "RuntimeError: a bug", TrialState.FAIL),
    ],
)
def test_a_failure_has_a_class_and_a_reason_and_the_study_goes_on(
    sqlite_url, broken, error, kind, reason, state
):
    question = broken(None, error, None)
    stored = fresh(sqlite_url, question, 3)
    work(question, stored, 3)
    assert [trial.state for trial in stored.trials()] == [
        TrialState.COMPLETE,
        state,
        TrialState.COMPLETE,
    ]
    failed = stored.trials()[1]
    assert failed.user_attrs[FAILURE] == kind
    assert failed.user_attrs[REASON].startswith(reason)
    assert failed.constraints == ({kind: 1.0} if state == TrialState.PRUNED else {})
    assert ("in forward" in failed.user_attrs.get("traceback", "")) == (kind == "error")
    assert stored.optuna.best_trial.number in (0, 2)


def test_an_error_in_the_first_trial_stops_the_study_and_starting_again_goes_on(sqlite_url, broken):
    question = broken(RuntimeError("a bug"), None, None)
    stored = fresh(sqlite_url, question, 3)
    with pytest.raises(Halted, match="RuntimeError: a bug"):
        work(question, stored, 3)
    assert stored.ledger.counts() == {"free": 2, "held": 0, "done": 1}
    with pytest.raises(Halted):  # a worker that comes later
        work(question, stored, 3)
    work(question, fresh(sqlite_url, question, 3), 3)
    assert stored.ledger.counts()["done"] == 3


def test_the_same_error_in_a_row_stops_the_study_and_different_ones_do_not(sqlite_url, broken):
    different = [RuntimeError(str(number)) for number in range(3)]
    question = broken(None, *different, None, *[RuntimeError("a bug")] * 5)
    stored = fresh(sqlite_url, question, 10)
    with pytest.raises(Halted, match="RuntimeError: a bug"):
        work(question, stored, 10, max_failures=3)
    assert len(stored.trials()) == 8


def test_a_sampler_stops_going_where_training_diverges(sqlite_url, broken, monkeypatch):
    """Half of the range diverges. TPE is told, and goes there less often than chance would."""
    question = broken()
    question.config.sampler = {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 8}
    question.config.study.baseline = False
    tried = []

    def diverge_above(self, objective, reporter, *_):
        rate = reporter.trial.params["optimizer.lr"]
        tried.append(rate > 3e-3)
        if tried[-1]:
            raise Diverged(0, 1, 1, "train", float("nan"))
        return 0.5

    silent = SimpleNamespace(curves=dict, standard_error=lambda: None)
    monkeypatch.setattr(Question, "make_objective", lambda *_: silent)
    monkeypatch.setattr(Worker, "evaluate", diverge_above)
    stored = fresh(sqlite_url, question, 40)
    work(question, stored, 40)
    assert sum(tried[8:]) <= 10 < len(tried[8:]) / 2
    assert {trial.user_attrs.get(FAILURE) for trial in stored.trials()} == {None, "diverged"}


def test_a_diverged_trial_says_so(sqlite_url):
    question = ask(*TINY, "optimizer=sgd", "~space.optimizer", "optimizer.lr=1e30")
    stored = fresh(sqlite_url, question, 1)
    work(question, stored, 1)
    (trial,) = stored.trials()
    assert (trial.state, trial.user_attrs[FAILURE]) == (TrialState.PRUNED, "diverged")
    assert "loss is" in trial.user_attrs[REASON]


def test_a_value_is_the_last_epochs_and_not_the_luckiest(sqlite_url, question, monkeypatch):
    def measure(training, _):
        for number, accuracy in ((1, 0.9), (2, 0.7)):
            training.said.append([Epoch(number, 1.0, 1.0, accuracy, 0.1, 1.0)])
            yield training.said[-1][0]

    monkeypatch.setattr(objective, "run_epochs", measure)
    stored = fresh(sqlite_url, question, 1)
    work(question, stored, 1)
    assert [trial.value for trial in stored.trials()] == [0.7]


def test_a_learning_curve_is_stored_with_its_trial(sqlite_url, question):
    stored = fresh(sqlite_url, question, 1)
    work(question, stored, 1)
    (trial,) = stored.trials()
    curve = trial.user_attrs[EPOCHS]
    assert curve["number"] == [1, 2]
    assert curve["value"] == pytest.approx(list(trial.intermediate_values.values()), abs=1e-6)
    assert set(curve) == {
        "number",
        "train_loss",
        "valid_loss",
        "value",
        "seconds",
        "samples_per_second",
    }


# Folds and seeds

FIVE = toy_folds(SPLIT, 5)
CROSS = (*TINY, "objective.folds=5")
IN_TURN = (*CROSS, "train.epochs=3", "pruner=wilcoxon")


def timeless(trial):
    """A trial's learning curve without its times."""
    return {name: trial.user_attrs[EPOCHS][name] for name in (*TIMELESS, STANDARD_ERROR)}


TIMELESS = ("number", "train_loss", "valid_loss", "value")


def test_a_grid_over_folds_is_the_textbook_search_with_cross_validation(sqlite_url):
    search = (
        "space=none",
        "+space.train.batch_size.choice=[16,32]",
        "+space.optimizer.lr.choice=[0.001,0.01]",
    )
    question = ask(
        *TINY[:-1], "objective.folds=5", *search, "sampler=grid", "pruner=none", "optimizer.lr=0.01"
    )
    assert question.trials() == 4
    stored = fresh(sqlite_url, question, 4)
    work(question, stored, 4, folds=FIVE)
    seen = set()
    for trial in stored.trials():
        point = (trial.params["train.batch_size"], trial.params["optimizer.lr"])
        cfg = with_values(question.config, {"train.batch_size": point[0], "optimizer.lr": point[1]})
        ends = []
        for job in build_jobs(cfg, FIVE, derive(question.config.study.seed, trial.number)):
            *_, (last,) = epochs([job], SPLIT)
            ends.append(last.value)
        assert trial.value == pytest.approx(np.mean(ends), abs=1e-12)
        assert trial.user_attrs[STANDARD_ERROR] == pytest.approx(
            np.std(ends, ddof=1) / np.sqrt(5), abs=1e-12
        )
        seen.add(point)
    assert seen == {(16, 0.001), (16, 0.01), (32, 0.001), (32, 0.01)}
    assert stored.optuna.best_value == max(trial.value for trial in stored.trials())


def test_the_standard_error_is_stored_for_each_epoch_and_of_the_last_alone(sqlite_url):
    question = ask(*RANDOM, "objective.seeds=3")
    stored = fresh(sqlite_url, question, 1)
    work(question, stored, 1)
    (trial,) = stored.trials()
    errors = trial.user_attrs[EPOCHS][STANDARD_ERROR]
    training = Training(question.jobs(question.baseline, FOLDS, 0), SPLIT)
    said = [[epoch.value for epoch in epochs] for epochs in training]
    assert errors == pytest.approx(np.std(said, axis=1, ddof=1) / np.sqrt(3), abs=1e-6)
    assert trial.user_attrs[STANDARD_ERROR] == pytest.approx(errors[-1], abs=1e-6)


@pytest.mark.parametrize("pruner", ["none", "wilcoxon"])
@pytest.mark.parametrize("after", [1, 3, 4, 9])
def test_a_trial_over_folds_that_was_stopped_equals_one_that_was_not(sqlite_url, pruner, after):
    """Stopped in the midst of the epoch after that many; in turn each epoch of a job is one, in lockstep of all."""
    question = ask(*CROSS, "objective.folds=3", "train.epochs=3", f"pruner={pruner}")
    folds = toy_folds(SPLIT, 3)
    stored, clean = (fresh(sqlite_url, question, 1, name=name) for name in ("s", "clean"))
    work(question, stored, 1, Signal(after + 1), folds=folds)
    stopped = pruner == "wilcoxon" or after <= 3
    assert stored.ledger.counts()["free"] == stopped
    if stopped and pruner == "wilcoxon":
        assert len(stored.trials()[0].intermediate_values) == after // 3
    rest = Signal(100)
    work(question, open_study(sqlite_url, "s"), 1, rest, folds=folds)
    if stopped:  # nothing is trained twice, but the last epoch, after which there is no checkpoint; and a look for more
        assert 100 - rest.left == max(1, (9 if pruner == "wilcoxon" else 3) - after) + 1
    work(question, clean, 1, folds=folds)
    (resumed,), (never_stopped,) = stored.trials(), clean.trials()
    assert resumed.value == never_stopped.value
    assert resumed.intermediate_values == never_stopped.intermediate_values
    assert resumed.user_attrs[STANDARD_ERROR] == never_stopped.user_attrs[STANDARD_ERROR]
    assert timeless(resumed) == timeless(never_stopped)


def test_jobs_in_turn_come_to_the_value_and_the_curve_of_lockstep(sqlite_url):
    records = []
    for pruner in ("none", "wilcoxon"):
        question = ask(*IN_TURN, f"pruner={pruner}")
        records.append(fresh(sqlite_url, question, 1, name=pruner))
        work(question, records[-1], 1, folds=FIVE)
    (lockstep,), (in_turn,) = (stored.trials() for stored in records)
    assert in_turn.value == lockstep.value == fmean(in_turn.intermediate_values.values())
    assert list(in_turn.intermediate_values) == [1, 2, 3, 4, 5]
    assert timeless(in_turn) == timeless(lockstep)
    assert timeless(in_turn)["number"] == [1, 2, 3]


def test_wilcoxon_ends_a_clearly_worse_trial_before_its_last_fold_and_no_better_one(sqlite_url):
    rates = (
        "space=none",
        "+space.optimizer.lr.choice=[1.0e-6,3.0e-3,3.0e-2]",
        "optimizer.lr=3.0e-3",
    )
    question = ask(*TINY[:-1], *IN_TURN[len(TINY) :], *rates, "sampler=grid")
    stored = fresh(sqlite_url, question, 3)
    work(question, stored, 3, folds=FIVE)
    trials = {trial.params["optimizer.lr"]: trial for trial in stored.trials()}
    worse, baseline, better = trials[1e-6], trials[3e-3], trials[3e-2]
    assert better.value > baseline.value
    assert {baseline.state, better.state} == {TrialState.COMPLETE}
    assert worse.state == TrialState.PRUNED
    assert list(worse.intermediate_values) == [1, 2, 3]
    assert stored.optuna.best_trial.number == better.number
    seen = np.array(list(worse.intermediate_values.values()))
    curve = worse.user_attrs[EPOCHS]
    assert curve["number"] == [1, 2, 3]
    assert curve["value"][-1] == pytest.approx(seen.mean(), abs=1e-6)
    assert worse.user_attrs[STANDARD_ERROR] == pytest.approx(seen.std(ddof=1) / np.sqrt(3))


@pytest.mark.usefixtures("impatient")
def test_jobs_in_turn_go_on_while_the_database_is_away_and_are_judged_where_they_were_to_be(
    sqlite_url,
):
    """The first job ends in the midst of the outage; the pruner would have ended the trial there."""
    pruner = (
        "pruner._target_=optuna.pruners.ThresholdPruner",
        "+pruner.lower=1.1",
        "+pruner.steps=jobs",
    )
    question = ask(*CROSS, *RANDOM[-2:], *pruner, "study.baseline=false")
    stored = fresh(sqlite_url, question, 1)
    outage = Outage(stored)
    work(question, stored, 1, outage, folds=FIVE)
    assert outage.epoch >= 4
    assert outage.reported == []
    (trial,) = stored.trials()
    assert trial.state == TrialState.PRUNED
    assert list(trial.intermediate_values) == [1]
    assert trial.user_attrs[EPOCHS]["number"] == [1, 2]
    assert trial.user_attrs[EPOCHS]["value"][-1] == pytest.approx(
        trial.intermediate_values[1], abs=1e-6
    )
    assert STANDARD_ERROR not in trial.user_attrs


@pytest.mark.usefixtures("impatient")
def test_the_ends_of_jobs_that_only_a_checkpoint_knows_are_reported_when_the_trial_goes_on(
    sqlite_url,
):
    question = ask(*CROSS, "pruner=wilcoxon")
    stored, clean = (fresh(sqlite_url, question, 1, name=name) for name in ("s", "clean"))

    def die():
        raise Killed

    outage = Outage(stored, die)
    with pytest.raises(Killed):
        work(question, stored, 1, outage, folds=FIVE)
    assert outage.reported == []
    for study_record in (stored, clean):
        work(question, study_record, 1, folds=FIVE)
    (resumed,), (never_stopped,) = stored.trials(), clean.trials()
    assert resumed.intermediate_values == never_stopped.intermediate_values
    assert timeless(resumed) == timeless(never_stopped)


def test_another_question_under_the_same_name_is_refused_with_the_differences(url, question):
    fresh(url, question, 1)
    with pytest.raises(QuestionError, match=r"train\.epochs: 2 → 3") as caught:
        create_study(url, "s", ask(*RANDOM, "train.epochs=3").identity("other"), 1)
    assert "data.digest: toy → other" in str(caught.value)
    assert "study.name=" in str(caught.value)
    fresh(
        url, ask(*RANDOM, "sampler=tpe", "pruner=median", "study.trials=9"), 9
    )  # other ways to the same answer


def test_differences_tell_what_came_and_what_went():
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == [
        "b: 2 → 3",
        "c: (absent) → 4",
    ]
    assert differences({"a": [1]}, {}) == ["a: [1] → (absent)"]


def test_a_study_whose_maker_died_half_way_is_completed(url, question):
    connect(url, create=True)
    optuna.create_study(study_name="s", storage=connect(url), direction="maximize")
    backend = connect(url)
    with pytest.raises(Exception, match="studyloom_slots"):
        Ledger(backend, 1).counts()
    stored = fresh(url, question, 1)
    work(question, stored, 1)
    assert len(stored.trials()) == 1


def test_the_rights_that_the_readme_grants_are_enough_for_a_study(postgres_url, question):
    sections = ROOT.joinpath("README.md").read_text().split("```")
    statements = next(section for section in sections if section.startswith("sql\nCREATE DATABASE"))
    role = f"least_{os.getpid()}"
    with plain_engine(make_url(postgres_url)).connect() as connection:
        try:
            for statement in (
                statements.removeprefix("sql").replace("studyloom", role).split(";")[1:-1]
            ):
                connection.exec_driver_sql(statement)
            url = make_url(postgres_url).set(username=role).render_as_string(hide_password=False)
            stored = fresh(url, question, 2)
            work(question, stored, 2)
            assert stored.ledger.counts()["done"] == 2
        finally:
            connection.exec_driver_sql(f"DROP OWNED BY {role} CASCADE")
            connection.exec_driver_sql(f"DROP ROLE {role}")


def test_a_study_that_is_not_there_is_named_with_those_that_are(sqlite_url, question):
    fresh(sqlite_url, question, 1, name="mine")
    with pytest.raises(StorageError, match="no study 'yours'; it holds mine"):
        open_study(sqlite_url, "yours")


def test_all_of_a_workers_time_is_some_trials(sqlite_url):
    question = ask(*RANDOM)
    stored = fresh(sqlite_url, question, 3)
    watch = Stopwatch.since(5.0)
    began = watch.taken
    folder = PLACES["checkpoints"]
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


# Two objectives


def two(url, question, trials, name="s"):
    return create_study(url, name, question.identity("toy"), trials, goals=question.goals)


def pairs(stored):
    return [(t.number, t.params, t.values, t.intermediate_values, t.state) for t in stored.trials()]


def test_of_two_objectives_a_trial_has_both_values_and_its_learning_curve(sqlite_url):
    question = ask(*TWO)
    stored = two(sqlite_url, question, 4)
    work(question, stored, 4)
    for trial in stored.trials():
        width = trial.params["model.hidden.0"] if trial.params else 16
        assert trial.values[1] == 17 * width + 10 * (width + 1)
        assert (
            trial.values[0] == trial.user_attrs[EPOCHS]["value"][-1] == trial.intermediate_values[2]
        )
        assert list(trial.intermediate_values) == [1, 2]
        assert trial.constraints in (None, {})
    assert stored.optuna.metric_names == ["accuracy", "parameters"]
    assert optuna.load_study(study_name="s", storage=stored.storage).best_trials


def test_of_two_objectives_a_stopped_trial_goes_on_and_n_stays_n(url):
    question = ask(*TWO)
    stored = two(url, question, 3)
    work(question, stored, 3, Signal(2))
    assert stored.ledger.counts() == {"free": 3, "held": 0, "done": 0}
    assert [list(t.intermediate_values) for t in stored.trials()] == [[1]]
    again = open_study(url, "s")
    work(question, again, 3)
    work(question, again, 3)  # a re-join of a full study
    clean = two(url, question, 3, name="clean")
    work(question, clean, 3)
    assert pairs(again) == pairs(clean)
    assert again.ledger.counts() == {"free": 0, "held": 0, "done": 3}


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_one_worker_draws_the_same_study_of_two_objectives_twice(tmp_path, sampler):
    own = {"nsga2": "sampler.population_size=4", "tpe": "+sampler.n_startup_trials=4"}[sampler]
    question = ask(
        *TWO[:-2], f"sampler={sampler}", own, *TWO[-2:], "+space.optimizer.lr.float=[0.0001,0.1]"
    )
    drawn = []
    for name in ("one", "other"):
        stored = two(f"sqlite:///{tmp_path / name}.db", question, 14)
        work(question, stored, 14)
        drawn.append([(t.params, t.values) for t in stored.trials()])
    assert drawn[0] == drawn[1]
    assert len({str(params) for params, _ in drawn[0]}) > 9
    if sampler == "nsga2":
        assert {t.system_attrs["NSGAIISampler:generation"] for t in stored.trials()[1:]} >= {
            0,
            1,
            2,
        }
    other = ask(
        *TWO[:-2],
        f"sampler={sampler}",
        own,
        *TWO[-2:],
        "+space.optimizer.lr.float=[0.0001,0.1]",
        "study.seed=1",
    )
    stored = two(f"sqlite:///{tmp_path}/third.db", other, 3)
    work(other, stored, 3)
    assert [t.params for t in stored.trials()][1:] != [params for params, _ in drawn[0]][1:3]


def test_of_two_objectives_what_fails_or_breaks_a_limit_is_neither_on_the_front_nor_best(
    sqlite_url, monkeypatch
):
    question = ask(*TWO, "+objective.constraints.parameters='<= 700'", "study.baseline=false")
    stored = two(sqlite_url, question, 12)
    tried, measure = [], run_epochs

    def diverges(training, stopping):
        tried.append(training)
        if len(tried) == 2:
            raise Diverged(0, 1, 2, "train", float("nan"))
        yield from measure(training, stopping)

    monkeypatch.setattr(objective, "run_epochs", diverges)
    work(question, stored, 12)
    failed = {t.number: t.user_attrs[FAILURE] for t in stored.trials() if FAILURE in t.user_attrs}
    assert {*failed.values()} == {"diverged", "infeasible"}
    assert all(t.values is None for t in stored.trials() if t.number in failed)
    assert (
        {t.number for t in stored.front()}
        <= {t.number for t in stored.ranked()}
        == {*range(12)} - {*failed}
    )
