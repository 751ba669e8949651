"""Failed trials that are trained again in their slots: N trials stay N."""

import json

import pytest
from commands import documented
from earlier import run_of
from optuna.trial import TrialState
from toy_worker import fresh, work
from toys import ask

from studyloom.cli import main
from studyloom.errors import Halted
from studyloom.storage.attributes import BASELINE
from studyloom.storage.command_record import CommandRecord, begin_command, end_command
from studyloom.storage.opening import open_study
from studyloom.storage.redo import missing_baseline, redo_failed
from studyloom.storage.stored_study import StoredStudy
from studyloom.views.progress_reader import ProgressReader

LOOP = (
    *("space=none", "sampler=random", "pruner=none", "objective._target_=test_redo.buggy"),
    *("objective.direction=maximize", "+params={x: 0.1}", "+space.params.x.float=[0,1]"),
)
BUG = {"above": 2.0}
TRIALS = 8


def buggy(config, run):
    """A loop that takes no time, and has a bug for large values."""
    if config.params.x > BUG["above"]:
        raise RuntimeError("a bug")
    return config.params.x


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def url(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def definition():
    return ask(*LOOP)


def work_with_bug(monkeypatch, definition, stored, above=0.4):
    with monkeypatch.context() as patch:
        patch.setitem(BUG, "above", above)
        work(definition, stored, TRIALS, max_failures=TRIALS)


def by_slot(stored: StoredStudy):
    return {trial.user_attrs["slot"]: trial for trial in stored.trials()}


def test_failed_trials_are_trained_again_in_the_same_slots(url, definition, monkeypatch):
    stored = fresh(url, definition, TRIALS)
    work_with_bug(monkeypatch, definition, stored)
    before = by_slot(stored)
    failed = [n for n, trial in before.items() if trial.state == TrialState.FAIL]
    assert 0 < len(failed) < TRIALS
    assert redo_failed(stored) == failed
    assert stored.ledger.counts() == {"free": len(failed), "held": 0, "done": TRIALS - len(failed)}
    assert redo_failed(stored) == []  # they wait
    for _ in range(2):
        work(definition, stored, TRIALS)
        after = by_slot(stored)
        assert {n: t.params for n, t in after.items()} == {n: t.params for n, t in before.items()}
        assert {trial.state for trial in after.values()} == {TrialState.COMPLETE}
        assert sorted(after) == [*range(TRIALS)]
        assert stored.ledger.counts()["done"] == TRIALS
        assert stored.ledger.compare() is None
        assert [trial.number for trial in stored.set_aside_trials()] == failed
        assert redo_failed(stored) == []
    fresh_study = open_study(url, stored.name)
    assert [trial.number for trial in fresh_study.trials() if trial.number not in failed] == [
        trial.number for trial in stored.trials()
    ]


def test_a_study_whose_slots_are_open_again_has_not_ended(sqlite_url, definition, monkeypatch):
    stored = fresh(sqlite_url, definition, TRIALS)
    begin_command(stored, CommandRecord(TRIALS), 0.0)
    work_with_bug(monkeypatch, definition, stored)
    end_command(stored, 1)
    reader = ProgressReader(stored)
    assert reader.read().has_ended
    redo_failed(stored)
    progress = reader.read()
    assert (progress.title, progress.has_ended, progress.exit_code) == ("search", False, None)


def test_trials_that_fail_again_can_be_trained_once_more(sqlite_url, definition, monkeypatch):
    stored = fresh(sqlite_url, definition, TRIALS)
    work_with_bug(monkeypatch, definition, stored)
    first = redo_failed(stored)
    work_with_bug(monkeypatch, definition, stored)
    # The new trials, not those that are set aside.
    assert redo_failed(stored) == [TRIALS + place for place in range(len(first))]
    work(definition, stored, TRIALS)
    assert {trial.state for trial in stored.trials()} == {TrialState.COMPLETE}
    assert len(stored.trials()) == TRIALS


def test_a_trial_that_failed_before_it_had_a_configuration_is_drawn_again(sqlite_url, definition):
    stored = fresh(sqlite_url, definition, 2)
    work(definition, stored, 1)
    stored.reconcile(2)
    claim = stored.ledger.claim(
        "elsewhere:1",
        2,
        60.0,
        lambda connection, slot: stored.storage.create(
            connection, stored.ledger.study_id, {"slot": slot}
        ),
    )
    stored.optuna._storage.set_trial_state_values(claim.trial_id, TrialState.FAIL)
    stored.ledger.finish(claim)
    assert redo_failed(stored) == [1]
    work(definition, stored, 2)
    assert [trial.number for trial in stored.trials()] == [0, 2]
    assert stored.trials()[1].state == TrialState.COMPLETE


def test_a_baseline_that_failed_stays_the_baseline(sqlite_url, definition, monkeypatch):
    stored = fresh(sqlite_url, definition, TRIALS)
    with pytest.raises(Halted):
        work_with_bug(monkeypatch, definition, stored, above=0.0)
    assert "studyloom redo --failed" in missing_baseline(stored)
    assert redo_failed(stored) == [0]
    stored = fresh(sqlite_url, definition, TRIALS)  # as the same command does
    work(definition, stored, TRIALS)
    (baseline,) = (trial for trial in stored.trials() if BASELINE in trial.user_attrs)
    assert baseline.params == {"params.x": 0.1}
    assert baseline.state == TrialState.COMPLETE
    assert missing_baseline(stored) is None


def test_redo_names_the_trials(tmp_path, definition, monkeypatch, capsys):
    run = run_of(tmp_path / "run", "s")
    stored = fresh(f"sqlite:///{run}/study.db", definition, TRIALS)
    work_with_bug(monkeypatch, definition, stored)
    failed = [t.number for t in stored.trials() if t.state == TrialState.FAIL]
    assert main(["redo", str(run), "--failed", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    documented(document, "redo")
    assert document == {"study": "s", "trials": failed}
    assert main(["redo", str(run), "--failed"]) == 0
    assert capsys.readouterr().out == "s: no trial has failed\n"
    with pytest.raises(SystemExit):
        main(["redo", str(run)])
    assert "--failed" in capsys.readouterr().err


def test_hours_include_trials_that_were_set_aside(sqlite_url, definition, monkeypatch):
    stored = fresh(sqlite_url, definition, TRIALS)
    work_with_bug(monkeypatch, definition, stored)
    before = ProgressReader(stored).read().hours
    assert redo_failed(stored)
    assert ProgressReader(stored).read().hours.cores == pytest.approx(before.cores)
