"""One trial is stopped from elsewhere: it ends at its last report, and N trials stay N."""

import json
import sys
import threading
from contextlib import contextmanager

import optuna
import pytest
from commands import documented
from earlier import run_of
from live_processes import until
from optuna.trial import TrialState
from toy_worker import FOLDER, RANDOM, Killed, fresh, work
from toys import EACH_KIND, KINDS, TINY, TWO, Never, Signal, ask, define_own_loop

import studyloom
from studyloom.cli import main
from studyloom.commands import looking
from studyloom.data.training_data import TrainingData
from studyloom.decisions.strategy import Strategy
from studyloom.errors import ConfigError
from studyloom.storage import sql
from studyloom.storage.attributes import EPOCHS, PROVENANCE, STOP_REQUESTED
from studyloom.storage.opening import open_study
from studyloom.storage.trial_record import TrialRecord
from studyloom.views.trial_details import describe_end
from studyloom.worker.slots import SlotQueue
from studyloom.worker.stage import Stage
from studyloom.worker.stop_trial import stop_trial
from studyloom.worker.stopping import read_control
from studyloom.worker.worker import Worker

TRIALS = 4
LONG = (*RANDOM, "train.epochs=5")
OBJECTIVE = """
defaults: [studyloom, sampler: random, pruner: none, storage: sqlite, launcher: local, _self_]
study: {name: s, trials: 4}
objective: {_target_: test_stop_trial.called, metric: height, direction: maximize}
"""
COMMAND = """
defaults:
  [studyloom, sampler: random, pruner: none, storage: sqlite, launcher: local, space: none, _self_]
study: {name: s, trials: 2}
objective:
  _target_: studyloom.extras.integrations.Command
  run: python %s {lr} %s
  value: 'loss (\\S+)'
  metric: loss
  direction: minimize
params: {lr: 0.1}
space: {params: {lr: {float: [0.01, 1.0], log: true}}}
"""
WAITING_PROGRAM = """
import pathlib, sys, time
gate = pathlib.Path(sys.argv[2])
for epoch in range(600):
    print("loss", sys.argv[1], flush=True)
    while not gate.exists():
        time.sleep(0.01)
    time.sleep(0.01)
"""


@pytest.fixture(params=["sqlite_url", pytest.param("postgres_url", marks=pytest.mark.chaos)])
def url(request):
    return request.getfixturevalue(request.param)


def stop(url, number):
    """Stops a trial over a connection of its own, as another process does."""
    study = open_study(url, "s")
    try:
        return stop_trial(study, number)
    finally:
        study.close()


class StopsTrial(Never):
    """Stops a trial over another connection, in the epoch after its reports so far."""

    def __init__(self, url, number, reports):
        self.study = open_study(url, "s")
        self.number = number
        self.reports = reports
        self.outcome = None

    @contextmanager
    def interruptible(self):
        for trial in self.study.trials():
            is_due = trial.number == self.number and len(trial.intermediate_values) == self.reports
            if is_due and self.outcome is None:
                self.outcome = stop_trial(self.study, self.number)
        yield


def check_stopped(stored, number, reports, trials=TRIALS):
    """Checks that a trial has ended after some reports, and that the budget is spent exactly."""
    stopped = stored.trials()[number]
    assert stopped.state == TrialState.PRUNED
    assert len(stopped.intermediate_values) == reports
    if reports:
        assert stopped.value == stopped.intermediate_values[stopped.last_step]
    assert "it was stopped on request" in describe_end(stopped)
    assert stored.ledger.counts() == {"free": 0, "held": 0, "done": trials}
    assert len(stored.trials()) == trials


@pytest.mark.parametrize("kind", EACH_KIND)
def test_a_running_trial_ends_at_its_next_report_and_the_budget_is_kept(url, kind):
    definition = ask(*LONG, *KINDS[kind])
    stored = fresh(url, definition, TRIALS)
    stopping = StopsTrial(url, number=1, reports=1)
    work(definition, stored, TRIALS, stopping)
    assert stopping.outcome == "requested"
    check_stopped(stored, number=1, reports=2)
    stopped = stored.trials()[1]
    assert len(stopped.user_attrs[EPOCHS]["number"]) == 2
    assert PROVENANCE in stopped.user_attrs  # it can be replayed
    others = [trial.state for trial in stored.trials() if trial.number != 1]
    assert others == [TrialState.COMPLETE] * (TRIALS - 1)


def called(trial):
    """The objective that the config names; each test replaces it."""


def test_an_optuna_objective_learns_of_a_stop_by_should_prune(tmp_path, sqlite_url, monkeypatch):
    def objective(trial):
        height = trial.suggest_float("height", 0, 1)
        for step in range(5):
            if trial.number == 2 and step == 3:
                stop(sqlite_url, 2)
            trial.report(height, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return height

    monkeypatch.setattr(sys.modules[__name__], "called", objective)
    (tmp_path / "own.yaml").write_text(OBJECTIVE)
    definition = define_own_loop(tmp_path)
    stored = fresh(sqlite_url, definition, TRIALS)
    work(definition, stored, TRIALS)
    check_stopped(stored, number=2, reports=4)


def test_the_processes_of_a_command_end_with_its_trial(tmp_path, sqlite_url):
    program = tmp_path / "program.py"
    gate = tmp_path / "gate"
    program.write_text(WAITING_PROGRAM)
    (tmp_path / "own.yaml").write_text(COMMAND % (program, gate))
    definition = define_own_loop(tmp_path)
    stored = fresh(sqlite_url, definition, 1)
    stage = Stage("search", open_study(sqlite_url, "s"), definition, Strategy(definition), 1)
    worker = Worker(stage, TrainingData(), Never(), FOLDER["checkpoints"])
    thread = threading.Thread(target=worker.run)
    thread.start()
    until(lambda: [trial for trial in stored.trials() if trial.intermediate_values])
    assert stop(sqlite_url, 0) == "requested"
    gate.touch()
    thread.join(60)
    assert not thread.is_alive()
    check_stopped(stored, number=0, reports=2, trials=1)


def test_a_trial_that_waits_at_a_rung_ends_at_once(url):
    definition = ask(*TINY, "sampler=random", "pruner=asha", "train.epochs=5")
    stored = fresh(url, definition, TRIALS)
    work(definition, stored, TRIALS, Signal(8))  # in the second trial after the baseline
    assert TrialRecord(stored.trials()[1]).outcome == "paused"
    assert stop(url, 1) == "ended"
    stopped = open_study(url, "s").trials()[1]
    assert stopped.state == TrialState.PRUNED
    assert TrialRecord(stopped).paused is None
    work(definition, open_study(url, "s"), TRIALS)
    check_stopped(open_study(url, "s"), number=1, reports=1)


def test_a_trial_that_comes_to_a_rung_after_the_request_ends_there(sqlite_url):
    definition = ask(*TINY, "sampler=random", "pruner=asha", "train.epochs=5")
    stored = fresh(sqlite_url, definition, TRIALS)
    stopping = StopsTrial(sqlite_url, number=1, reports=0)
    work(definition, stored, TRIALS, stopping)
    assert stopping.outcome == "requested"
    check_stopped(stored, number=1, reports=1)


def test_a_request_between_the_report_at_a_rung_and_the_release_counts(sqlite_url, monkeypatch):
    definition = ask(*TINY, "sampler=random", "pruner=asha", "train.epochs=5")
    stored = fresh(sqlite_url, definition, TRIALS)
    outcomes = []

    def requests_stop(slots, slot):
        outcomes.append(stop(sqlite_url, slot))
        return False  # the trial is not promoted

    monkeypatch.setattr(SlotQueue, "is_next_to_promote", requests_stop)
    work(definition, stored, 2)
    assert outcomes == ["requested"]
    trial = open_study(sqlite_url, "s").trials()[1]
    assert trial.state == TrialState.PRUNED
    assert trial.last_step == 1


def test_the_next_worker_ends_the_trial_of_one_that_died(url):
    class DiesAfterRequest(StopsTrial):
        @contextmanager
        def interruptible(self):
            with super().interruptible():
                if self.outcome is not None:
                    raise Killed
                yield

    definition = ask(*LONG)
    stored = fresh(url, definition, TRIALS)
    with pytest.raises(Killed):
        work(definition, stored, TRIALS, DiesAfterRequest(url, number=1, reports=2))
    released = stored.trials()[1]
    assert released.state == TrialState.RUNNING
    assert STOP_REQUESTED in released.user_attrs
    work(definition, open_study(url, "s"), TRIALS)
    check_stopped(open_study(url, "s"), number=1, reports=2)
    assert PROVENANCE in stored.trials()[1].user_attrs


def test_a_released_trial_ends_without_a_worker(url):
    definition = ask(*LONG)
    stored = fresh(url, definition, TRIALS)
    work(definition, stored, 1, Signal(3))
    assert stop(url, 0) == "ended"
    assert open_study(url, "s").trials()[0].last_step == 2
    work(definition, open_study(url, "s"), TRIALS)
    check_stopped(open_study(url, "s"), number=0, reports=2)


def test_a_stopped_trial_of_two_objectives_can_be_ranked(sqlite_url):
    definition = ask(*TWO, "train.epochs=5")
    stored = fresh(sqlite_url, definition, TRIALS)
    work(definition, stored, TRIALS, Signal(8))
    assert stop(sqlite_url, 1) == "ended"
    stopped = open_study(sqlite_url, "s").trials()[1]
    assert stopped.values is None
    assert max(stopped.constraints.values()) > 0
    work(definition, open_study(sqlite_url, "s"), TRIALS)


@pytest.fixture
def run_dir(tmp_path):
    """A run whose trial 1 was released after its first epoch."""
    folder = tmp_path / "run"
    run_of(folder, "s")
    definition = ask(*LONG)
    stored = fresh(f"sqlite:///{folder}/study.db", definition, TRIALS)
    work(definition, stored, TRIALS, Signal(8))
    return folder


def test_the_command_says_how_the_trial_has_ended(run_dir, capsys):
    assert main(["stop", str(run_dir), "--trial", "1"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("trial 1 of s: It was pruned after 1 of 5 epochs, at 0.")
    assert line.endswith(": it was stopped on request.")
    assert main(["stop", str(run_dir), "--trial", "1"]) == 2
    assert "trial 1 has ended: it is pruned; there is nothing to stop" in capsys.readouterr().err


def test_the_command_waits_for_the_worker(run_dir, capsys, monkeypatch):
    """The worker here ends the trial while the command sleeps."""
    stored = open_study(f"sqlite:///{run_dir}/study.db", "s")
    claim = stored.ledger.claim("elsewhere:1", TRIALS, lease=600)
    assert claim.slot == 1

    def sleep(_):
        trial = stored.trials()[1]
        end = sql.end_writes(trial._trial_id, TrialState.PRUNED, [0.5])
        stored.ledger.finish(claim, lambda connection: sql.write(connection, end))

    monkeypatch.setattr(looking.time, "sleep", sleep)
    assert main(["stop", str(run_dir), "--trial", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert documented(document, "stop_trial") == {"study": "s", "trial": 1, "state": "pruned"}


def test_python_stops_a_trial_or_the_study(run_dir):
    with studyloom.open_study(run_dir) as study:
        study.stop(trial=1)
        assert study.to_dicts()[1]["state"] == "pruned"
        study.stop()
        assert read_control(study._stored) == "stop"
        with pytest.raises(ConfigError, match="there is no trial 7"):
            study.stop(trial=7)


def test_trials_that_cannot_be_stopped_are_named(sqlite_url):
    definition = ask(*RANDOM)
    stored = fresh(sqlite_url, definition, 2)
    with pytest.raises(ConfigError, match="there is no trial 0: no trial has begun"):
        stop(sqlite_url, 0)
    work(definition, stored, 2)
    with pytest.raises(ConfigError, match="there is no trial 9; the trials are 0-1"):
        stop(sqlite_url, 9)
    with pytest.raises(ConfigError, match="trial 1 has ended: it is complete"):
        stop(sqlite_url, 1)
    optuna.create_study(storage=sqlite_url, study_name="theirs")
    theirs = open_study(sqlite_url, "theirs")
    with pytest.raises(ConfigError, match="another program runs this study"):
        stop_trial(theirs, 0)
