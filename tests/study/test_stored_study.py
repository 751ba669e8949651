"""Studies in their database: opened, compared with their question, and ranked."""

import os

import numpy as np
import optuna
import pytest
from commands import ROOT
from optuna.trial import TrialState, create_trial
from sqlalchemy.engine import make_url
from toy_worker import RANDOM, fresh, work
from toys import ask, fill, two_sided

from studyloom.errors import QuestionError, StorageError
from studyloom.metrics import Goal
from studyloom.question.rule import parse_rule
from studyloom.storage.attributes import RULE, SLOT
from studyloom.storage.connections import plain_engine
from studyloom.storage.database import connect
from studyloom.storage.ledger import Ledger
from studyloom.study.identity import differences
from studyloom.study.stored_study import create_study, open_study, value_of


def beaten(one, by):
    """Whether accuracy and parameters are beaten by others."""
    return by != one and by[0] >= one[0] and by[1] <= one[1]


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_brute_force_finds_unbeaten_the_best_by_the_metric_first(
    sqlite_url, seed
):
    generator = np.random.default_rng(seed)
    drawn = [
        (float(a) / 8, float(p)) for a, p in generator.integers(0, 9, (60, 2))
    ]  # many are alike in one or both
    stored = two_sided(
        sqlite_url, *(None if place % 7 == 3 else values for place, values in enumerate(drawn))
    )
    fill(stored, create_trial(values=[2.0, 0.0], constraints={"latency_ms": 0.5}))
    fill(stored, create_trial(state=TrialState.PRUNED, constraints={"diverged": 1.0}))
    fill(stored, create_trial(state=TrialState.RUNNING, intermediate_values={1: 0.99}))
    whole = {
        t.number: (t.values[0], t.values[1])
        for t in stored.trials()[:60]
        if t.state == TrialState.COMPLETE
    }
    unbeaten = {n for n, one in whole.items() if not any(beaten(one, by) for by in whole.values())}
    front = stored.front()
    assert {trial.number for trial in front} == unbeaten
    assert [trial.values[0] for trial in front] == sorted(
        (trial.values[0] for trial in front), reverse=True
    )
    stored.optuna.tell(62, state=TrialState.FAIL)


def test_the_front_is_that_of_optuna_where_no_limit_is_broken(sqlite_url):
    drawn = np.random.default_rng(0).random((80, 2)).tolist()
    stored = two_sided(sqlite_url, *map(tuple, drawn))
    assert {trial.number for trial in stored.front()} == {
        trial.number for trial in stored.optuna.best_trials
    }


def test_without_a_rule_the_best_is_most_accurate_at_no_more_parameters_than_the_baseline(
    sqlite_url,
):
    stored = two_sided(
        sqlite_url, (0.9, 100), (0.95, 101), (0.92, 100), (0.92, 60), (0.8, 10), None
    )
    assert str(stored.rule()) == "max accuracy where parameters <= 100"
    assert [trial.number for trial in stored.ranked()] == [3, 2, 0, 4], (
        "of two alike the smaller first"
    )


def test_without_a_baseline_the_metric_decides(sqlite_url):
    stored = two_sided(sqlite_url, None, (0.95, 101), (0.92, 100))
    assert str(stored.rule()) == "max accuracy"
    assert [trial.number for trial in stored.ranked()] == [1, 2]


def test_a_rule_that_was_stated_ranks_for_whoever_opens_the_study(url):
    stored = two_sided(url, (0.9, 100), (0.95, 101), (0.92, 40))
    stored.state(parse_rule("min parameters where accuracy > 0.91", stored.goals))
    elsewhere = open_study(url, "two")
    assert str(elsewhere.rule()) == "min parameters where accuracy > 0.91"
    assert [trial.number for trial in elsewhere.ranked()] == [2, 1]
    stored.state(None)
    assert elsewhere.rule() == elsewhere.default_rule()


@pytest.mark.parametrize("stated", ["max nothing", "rm -rf", 7, {"a": 1}])
def test_what_is_no_rule_in_a_database_of_somebody_else_is_left_alone(sqlite_url, stated):
    stored = two_sided(sqlite_url, (0.9, 100))
    stored.optuna.set_user_attr(RULE, stated)
    assert stored.rule() == stored.default_rule()


def test_a_rule_may_bound_what_a_limit_has_measured(sqlite_url):
    stored = create_study(sqlite_url, "s", {}, 3)
    for value, cost in ((0.9, 2.0), (0.8, 1.0), (0.95, None)):
        fill(
            stored,
            create_trial(value=value, user_attrs={} if cost is None else {"latency_ms": cost}),
        )
    rule = parse_rule(
        "max accuracy where latency_ms < 2", [*stored.goals, Goal("latency_ms", "minimize")]
    )
    assert [trial.number for trial in stored.ranked(rule)] == [1]
    assert [trial.number for trial in stored.ranked()] == [2, 0, 1]


def test_a_study_knows_what_its_values_are_and_which_way_they_are_better(url):
    stored = open_study(url, two_sided(url, (0.9, 100)).name)
    assert [(goal.name, goal.direction) for goal in stored.goals] == [
        ("accuracy", "maximize"),
        ("parameters", "minimize"),
    ]
    assert (stored.metric, stored.sign) == ("accuracy", 1)
    (trial,) = stored.trials()
    assert [value_of(trial, place) for place in (0, 1)] == [0.9, 100]
    assert value_of(None) is None


# Created, opened, and refused


@pytest.mark.parametrize("question", ["network"], indirect=True)
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


def test_a_study_whose_maker_died_half_way_is_completed(url, question, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "set_metric_names", interrupt)  # before its slots are made
        with pytest.raises(KeyboardInterrupt):
            fresh(url, question, 1)
    assert Ledger(connect(url), 1).counts()["free"] == 0
    stored = fresh(url, question, 1)
    work(question, stored, 1)
    assert len(stored.trials()) == 1
    assert stored.metric == "accuracy"


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_study_of_another_program_is_refused_and_stays_as_it_was(url, question):
    connect(url, create=True)
    plain = optuna.create_study(study_name="s", storage=url)
    with pytest.raises(QuestionError, match="not made by studyloom"):
        fresh(url, question, 1)
    assert (plain.user_attrs, plain.metric_names, plain.get_trials()) == ({}, None, [])
    assert [trial.number for trial in open_study(url, "s").trials()] == []
    plain.add_trial(create_trial(value=1.0))
    assert len(open_study(url, "s").trials()) == 1, "its points may be where another one begins"


def test_the_rights_that_the_readme_grants_are_enough_for_a_study(postgres_url, question):
    sections = ROOT.joinpath("conf/README.md").read_text().split("```")
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


def test_a_trial_that_begins_while_they_are_read_is_not_another_programs(sqlite_url, question):
    stored, read = fresh(sqlite_url, question, 2), []
    get_trials = stored.optuna.get_trials

    def one_more(**options):
        stored.optuna.add_trial(create_trial(value=1.0, user_attrs={SLOT: len(read)}))
        read.append(options)
        return get_trials(**options)

    stored.optuna.get_trials = one_more
    assert (stored.uncounted(), len(read)) == (([], []), 1)
