"""Optuna's tables, read and written by statements of our own: the same as by Optuna's code."""

import math
import os
import time
from datetime import datetime, timedelta

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from studyloom.storage import sql
from studyloom.storage.database import connect

DISTRIBUTIONS = {
    "x": FloatDistribution(1e-5, 1.0, log=True),
    "n": IntDistribution(1, 9, step=2),
    "c": CategoricalDistribution(["a", None, 3, 0.5]),
}


@pytest.fixture
def opened(url):
    storage = connect(url, create=True)
    storage.study_id = storage.create_new_study([StudyDirection.MAXIMIZE], "s")
    return storage


def shipped(opened):
    """The trials of the study as Optuna's own code reads them."""
    return RDBStorage._get_trials(opened, opened.study_id, None, set(), -1)


def begin(opened, **user_attrs):
    return opened.execute(
        lambda connection: sql.insert_trial(connection, opened.study_id, user_attrs)._trial_id
    )


def write(opened, *writes):
    opened.execute(lambda connection: sql.write(connection, writes))


REPORTS = {1: 0.25, 2: math.inf, 3: -math.inf}


def test_optuna_and_studyloom_read_the_same_trials(opened):
    first, second, third = (begin(opened, slot=slot, worker="w") for slot in range(3))
    values = {"x": 0.01, "n": 7, "c": None}
    params = [
        sql.param_write(first, name, d.to_internal_repr(values[name]), d)
        for name, d in DISTRIBUTIONS.items()
    ]
    reports = [sql.report_write(first, step, value) for step, value in REPORTS.items()]
    attributes = [
        sql.user_attr_write(first, "k", {"deep": [1, None]}),
        sql.system_attr_write(first, "s", "ä"),
    ]
    write(
        opened, *params, *reports, *attributes, *sql.end_writes(first, TrialState.COMPLETE, [0.75])
    )
    write(opened, *sql.end_writes(second, TrialState.FAIL, None))
    trials = opened.get_all_trials(opened.study_id)
    assert trials == shipped(opened)
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert [trial.state for trial in trials] == [
        TrialState.COMPLETE,
        TrialState.FAIL,
        TrialState.RUNNING,
    ]
    assert trials[0].params == values
    assert trials[0].distributions == DISTRIBUTIONS
    assert trials[0].intermediate_values == REPORTS
    assert trials[0].user_attrs == {"slot": 0, "worker": "w", "k": {"deep": [1, None]}}
    assert trials[0].system_attrs == {"s": "ä"}
    assert trials[0].value == 0.75
    assert opened.get_trial(third) == trials[2]
    with pytest.raises(KeyError):
        opened.get_trial(third + 1)
    with pytest.raises(KeyError):
        opened.get_all_trials(opened.study_id + 1)


def test_our_statements_read_what_optuna_writes(opened):
    study = optuna.load_study(study_name="s", storage=opened)
    study.add_trial(
        create_trial(value=math.inf, params={"x": 0.1}, distributions={"x": DISTRIBUTIONS["x"]})
    )
    study.add_trial(
        create_trial(state=TrialState.PRUNED, intermediate_values={1: math.nan, 2: 0.5}, value=0.5)
    )
    study.enqueue_trial({"n": 3})
    first, second, third = opened.get_all_trials(opened.study_id)
    assert [first, third] == [shipped(opened)[0], shipped(opened)[2]]
    assert first.value == math.inf
    assert math.isnan(second.intermediate_values[1])  # and so equal to nothing
    assert third.state == TrialState.WAITING


def test_trials_that_are_read_in_several_blocks_are_the_same(opened, monkeypatch):
    for slot in range(5):
        write(opened, sql.report_write(begin(opened, slot=slot), 1, slot / 4))
    monkeypatch.setattr(sql, "MOST_TRIALS_AT_ONCE", 2)
    trials = opened.get_all_trials(opened.study_id)
    assert trials == shipped(opened)
    assert [trial.intermediate_values for trial in trials] == [{1: n / 4} for n in range(5)]


def test_trials_of_another_study_are_not_read_and_are_numbered_apart(opened):
    other = opened.create_new_study([StudyDirection.MAXIMIZE], "t")
    begin(opened)
    opened.execute(lambda connection: sql.insert_trial(connection, other, {})._trial_id)
    begin(opened)
    assert [trial.number for trial in opened.get_all_trials(opened.study_id)] == [0, 1]
    assert [trial.number for trial in opened.get_all_trials(other)] == [0]
    trials = opened.read(lambda c: sql.read_some(c, opened.study_id, after=1, ids=[]))
    assert [trial.number for trial in trials] == [1]


def test_a_repeated_write_changes_nothing(opened):
    trial_id = begin(opened)
    writes = [
        sql.param_write(trial_id, "x", 0.5, DISTRIBUTIONS["x"]),
        sql.report_write(trial_id, 1, 0.5),
        sql.user_attr_write(trial_id, "k", 1),
        sql.system_attr_write(trial_id, "k", 1),
    ]
    write(opened, *writes)
    once = opened.get_trial(trial_id)
    write(opened, *writes)
    assert opened.get_trial(trial_id) == once


def test_times_are_local_and_stored_in_utc(opened, monkeypatch):
    trial_id = begin(opened)
    now = datetime.now()
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")  # 14 hours ahead of UTC
    time.tzset()
    try:
        (there,) = shipped(opened)
        assert opened.get_trial(trial_id) == there
        assert abs(there.datetime_start - datetime.now()) < timedelta(minutes=1)
    finally:
        monkeypatch.undo()
        assert os.environ.get("TZ") != "Pacific/Kiritimati"
        time.tzset()
    assert abs(opened.get_trial(trial_id).datetime_start - now) < timedelta(minutes=1)
