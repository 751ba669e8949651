"""Studies created and opened in their database, and compared with their question."""

import os

import optuna
import pytest
from commands import ROOT
from optuna.trial import create_trial
from sqlalchemy.engine import make_url
from toy_worker import RANDOM, fresh, work
from toys import ask

from studyloom.errors import QuestionError, StorageError
from studyloom.storage.database import connect, plain_engine
from studyloom.storage.ledger import Ledger
from studyloom.study.opening import create_study, differences, open_study


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
    assert Ledger(connect(url), 1, "").counts()["free"] == 0
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
