"""Foreign hands in the database: its ledger and Optuna's tables are two records of one truth.

Another program deletes trials, slots or the study, or adds its own; each is mended or said.
"""

import re
import sqlite3

import optuna
import pytest
from commands import QUICK, study, studyloom
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    distribution_to_json,
)
from optuna.trial import TrialState, create_trial
from runs import NEVER, TRIALS, Run, kill

from studyloom.storage.connections import plain_engine
from studyloom.storage.ledger import TEST_SLOT
from studyloom.storage.optuna_internals import TABLES
from studyloom.storage.redo import redo_failed
from studyloom.storage.urls import parse_url

pytestmark = pytest.mark.chaos
SMALL = (*QUICK, "sampler=tpe", "pruner=median", "launcher.workers=1")
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@pytest.fixture
def run(tmp_path):
    """A study whose trials take a second, with two workers."""
    run = Run(tmp_path / "run", f"sqlite:///{tmp_path}/run/study.db")
    yield run
    kill(run.processes())  # where a test has failed


@pytest.fixture
def small(tmp_path):
    """A study of trials of some milliseconds."""
    (tmp_path / "run").mkdir()
    return Run(tmp_path / "run", f"sqlite:///{tmp_path}/run/study.db", SMALL)


def ended(run, *overrides, code=0):
    """Runs the command with one worker to its end, and returns what it printed."""
    done = study(*run.overrides, *overrides, **run.environment)
    return run.ended(done.returncode, done.stdout, done.stderr, code)


def asked(run, verb, *options, code=0):
    """Runs `studyloom VERB OPTIONS RUN_DIR`, and returns what it printed."""
    done = studyloom(verb, *options, run.folder, **run.environment)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert not NEVER.search(done.stdout + done.stderr)
    return done.stdout + done.stderr


def sql(run, *statements):
    """Executes statements as another program would, in one transaction; returns the last's rows."""
    with plain_engine(parse_url(run.url)).connect() as connection:
        connection.exec_driver_sql("BEGIN")
        for statement in statements:
            result = connection.exec_driver_sql(statement)
        rows = result.all() if result.returns_rows else []
        connection.exec_driver_sql("COMMIT")
    return rows


def delete_trials(run, where):
    """Deletes trials with all that belongs to them."""
    which = f"WHERE trial_id IN (SELECT trial_id FROM trials WHERE {where})"
    parts = [name for name, table in TABLES.items() if "trial_id" in table.c and name != "trials"]
    sql(run, *(f"DELETE FROM {part} {which}" for part in parts), f"DELETE FROM trials {which}")


def check_whole(run, trials):
    """Checks that N slots are done, each by one trial that has ended."""
    stored = run.stored()
    slots = sorted(t.user_attrs["slot"] for t in stored.trials() if t.state in ENDED)
    assert slots == list(range(trials))
    assert len(stored.trials()) == trials
    assert stored.ledger.counts() == {"free": 0, "held": 0, "done": trials}
    links = {t.user_attrs["slot"]: t._trial_id for t in stored.trials()}
    mine = f"study_id = {stored.ledger.study_id} AND slot < {TEST_SLOT}"
    rows = sql(run, f"SELECT slot, trial_id FROM studyloom_slots WHERE {mine}")
    assert dict(map(tuple, rows)) == links
    (baseline,) = [t for t in stored.trials() if "baseline" in t.user_attrs]
    assert baseline.user_attrs["slot"] == 0


# Trials that are gone


def test_running_trials_deleted_under_their_slots_start_again(run):
    process = run.at_work(meanwhile=lambda: delete_trials(run, "state = 'RUNNING'"))
    run.end(process, 0)
    check_whole(run, TRIALS)
    assert "another program has deleted its trial" in run.logs()


def test_doctor_shows_what_it_fixes_and_it_or_the_command_fixes_it(small):
    """Trials that are gone are trained again, also the baseline; slots are made again."""
    ended(small, "study.trials=6")
    assert "agrees" in asked(small, "doctor", "--repair")
    sql(small, "DELETE FROM studyloom_slots WHERE slot = 1")
    delete_trials(small, "number IN (0, 4)")
    before = sql(small, "SELECT * FROM studyloom_slots ORDER BY slot")
    shown = asked(small, "doctor", "--repair", code=2)
    assert "slots 0-1, 4: differ from their trials" in shown
    assert "--yes" in shown
    assert "the next run of the study fixes this, or --repair" in asked(small, "doctor")
    assert sql(small, "SELECT * FROM studyloom_slots ORDER BY slot") == before
    asked(small, "doctor", "--repair", "--yes")
    assert "agrees" in asked(small, "doctor", "--repair")
    delete_trials(small, "number = 5")
    assert "slots 5: differ from their trials" in ended(small, "study.trials=6")
    check_whole(small, 6)


# Trials of other programs


def add_foreign_trials(run):
    """Adds trials with plain Optuna to a study of ours: better, different, and in every state."""
    plain = optuna.load_study(study_name="mnist", storage=run.url)
    x = FloatDistribution(0, 1)
    plain.add_trial(create_trial(value=7.0, params={"x": 0.5}, distributions={"x": x}))
    name, domain = next(iter(run.stored().trials()[-1].distributions.items()))
    far = FloatDistribution(100, 200, log=domain.log)
    plain.add_trial(create_trial(value=8.0, params={name: 150}, distributions={name: far}))
    choice = distribution_to_json(CategoricalDistribution(["a", "b"]))  # Optuna would refuse this
    change = f"UPDATE trial_params SET distribution_json = '{choice}', param_value = 1"
    sql(run, f"{change} WHERE trial_id = (SELECT max(trial_id) FROM trials)")
    curve = {step: 0.1 * step for step in range(50)}
    plain.add_trial(create_trial(value=9.0, intermediate_values=curve))
    plain.ask({"x": x}).report(0.9, 77)
    plain.enqueue_trial({"x": 0.1})
    plain.add_trial(create_trial(state=TrialState.FAIL))
    two = create_trial(values=[1.0, 2.0], user_attrs={"epochs": 3, "times": "none"})
    plain._storage.create_new_trial(plain._study_id, two)
    plain.add_trial(create_trial(value=5.0, user_attrs={"slot": "7", "baseline": True}))


def test_trials_that_plain_optuna_adds_are_kept_but_not_counted(small):
    ended(small, "study.trials=4")
    add_foreign_trials(small)
    foreign = [trial for trial in small.stored().optuna.get_trials() if trial.number >= 4]
    winner = ("winner.enabled=true", "winner.top=2", "winner.seeds=2")
    printed = ended(small, "study.trials=8", *winner)
    assert "8 of 8 trials" in printed
    assert "8 of other programs" in printed
    check_whole(small, 8)
    stored = small.stored()
    assert [t for t in stored.optuna.get_trials() if t.number in range(4, 12)] == foreign
    own = max(trial.value for trial in stored.trials() if trial.value is not None)
    assert re.search(rf"^[a-z, ]*\bbest +\d+ +{own:.4f}\b", printed, re.MULTILINE)
    assert '"trials_of_other_programs": 8' in asked(small, "status", "--json")
    asked(small, "report")
    assert "8 of other programs" in (small.folder / "report.html").read_text()
    assert len(asked(small, "trials", "--csv").splitlines()) == 9


# A study that is gone


def test_a_study_deleted_in_mid_run_ends_with_an_explanation(run):
    process = run.at_work(meanwhile=lambda: (delete_study(run), remake(run)))
    printed = run.end(process, 1)
    assert "the study was deleted while it ran" in printed
    printed = ended(run, "launcher.workers=1", "study.seed=5")
    run._stored = None
    check_whole(run, TRIALS)


def delete_study(run):
    optuna.delete_study(study_name="mnist", storage=run.url)


def remake(run):
    """Makes another study, which has the same id on SQLite; and has no trial yet."""
    more = ("launcher.workers=1", "study.seed=5", "study.timeout=0.001")
    done = study(*run.overrides, *more, **run.environment)
    assert done.returncode == 0, done.stderr


# A table that is not ours


def test_a_table_of_another_program_with_the_ledgers_name_is_reported(small):
    sqlite3.connect(small.folder / "study.db").close()
    sql(small, "CREATE TABLE studyloom_slots (x INTEGER)", "INSERT INTO studyloom_slots VALUES (1)")
    printed = ended(small, code=2)
    assert "studyloom_slots" in printed
    assert "another program" in printed
    assert "SELECT" not in printed
    assert sql(small, "SELECT * FROM studyloom_slots") == [(1,)]


# A baseline that failed

BUGGY = """
import os
from studyloom.models import MLP

class Net(MLP):
    def forward(self, images):
        if len(images) > 2 and os.path.exists(os.environ["BUG"]):
            raise RuntimeError("a bug")
        return super().forward(images)
"""


def test_a_baseline_that_failed_by_a_bug_is_repeated_within_the_budget(small, tmp_path):
    (tmp_path / "buggy.py").write_text(BUGGY)
    bug = tmp_path / "bug"
    bug.touch()
    small.environment["BUG"] = str(bug)
    small.environment["PYTHONPATH"] += f":{tmp_path}"
    small.overrides += ("model._target_=buggy.Net", "study.trials=4")
    done = study(*small.overrides, **small.environment)
    assert done.returncode == 1
    assert "RuntimeError: a bug" in done.stderr
    bug.unlink()
    printed = ended(small)
    assert "studyloom redo --failed" in printed
    assert "baseline  " not in printed
    for _ in range(2):
        redo_failed(small.stored())
        printed = ended(small)
        assert re.search(r"^[a-z, ]*\bbaseline +4 +0\.\d+", printed, re.MULTILINE)
        assert "4 of 4 trials" in printed
        assert "1 set aside" in printed
        check_whole(small, 4)
    assert small.stored().optuna.get_trials()[0].user_attrs["reason"] == "RuntimeError: a bug"
