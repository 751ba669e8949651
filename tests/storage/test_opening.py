"""Studies created and opened in their database, and compared with their question."""

import os
import sys
import types

import optuna
import pytest
from optuna.trial import create_trial
from toy_worker import RANDOM, fresh, work
from toys import ask

from studyloom.errors import DefinitionError, StorageError
from studyloom.moved import MOVED
from studyloom.storage.attributes import FORMAT, VERSION
from studyloom.storage.database import connect
from studyloom.storage.ledger import Ledger
from studyloom.storage.opening import check_definition, create_study, open_only_study, open_study


@pytest.fixture(scope="module")
def definition():
    return ask(*RANDOM)


def test_another_definition_under_a_name_is_refused_with_differences(url, definition):
    fresh(url, definition, 1)
    with pytest.raises(DefinitionError, match=r"train\.epochs: 2 → 3") as caught:
        create_study(url, "s", ask(*RANDOM, "train.epochs=3").identity("other"), 1)
    assert "data.digest: toy → other" in str(caught.value)
    assert "study.name=" in str(caught.value)
    other_way = ask(*RANDOM, "sampler=tpe", "pruner=median", "study.trials=9")
    fresh(url, other_way, 9)  # to the same result


def test_an_edit_of_user_code_is_named_by_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("studies.mine")
    module.__file__ = str(tmp_path / "studies" / "mine.py")
    monkeypatch.setitem(sys.modules, "studies.mine", module)
    was = {"train.epochs": 2, "code.studies.mine": "8b256f1a"}
    now = {"train.epochs": 2, "code.studies.mine": "6abe592d"}
    mine = os.path.join("studies", "mine.py")
    with pytest.raises(DefinitionError) as caught:
        check_definition("s", was, now)
    assert f"{mine} has changed since the study 's' began" in str(caught.value)
    assert "study.accept_code_change=true" in str(caught.value)
    assert "8b256f1a" not in str(caught.value)
    with pytest.raises(DefinitionError) as caught:
        check_definition("s", was, now | {"train.epochs": 3})
    assert f"  train.epochs: 2 → 3\n  {mine} has changed\n" in str(caught.value)
    moved = {"model._target_": "b.Net", "code.b": "1"}
    with pytest.raises(DefinitionError) as caught:
        check_definition("s", {"model._target_": "a.Net", "code.a": "1"}, moved)
    assert "has changed" not in str(caught.value)
    of_notebook = {"train.epochs": 2, "code.__main__.Net": "8b256f1a", "code.main.py": "1"}
    words = "the code of Net, main.py have changed since"
    with pytest.raises(DefinitionError, match=words):
        check_definition(
            "s", of_notebook, {**of_notebook, "code.__main__.Net": "0", "code.main.py": "2"}
        )


def test_a_study_whose_creation_was_interrupted_is_completed(url, definition, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "set_metric_names", interrupt)  # before its slots are made
        with pytest.raises(KeyboardInterrupt):
            fresh(url, definition, 1)
    assert Ledger(connect(url), 1, "").counts()["free"] == 0
    stored = fresh(url, definition, 1)
    work(definition, stored, 1)
    assert len(stored.trials()) == 1
    assert stored.metric == "accuracy"


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_study_of_another_program_is_refused_and_stays_as_it_was(url, definition):
    connect(url, create=True)
    plain = optuna.create_study(study_name="s", storage=url)
    with pytest.raises(DefinitionError, match="not made by studyloom"):
        fresh(url, definition, 1)
    assert (plain.user_attrs, plain.metric_names, plain.get_trials()) == ({}, None, [])
    assert [trial.number for trial in open_study(url, "s").trials()] == []
    plain.add_trial(create_trial(value=1.0))
    assert len(open_study(url, "s").trials()) == 1, "its trials may be where another one begins"


def test_a_missing_study_is_named_with_the_studies_that_exist(sqlite_url, definition):
    fresh(sqlite_url, definition, 1, name="mine")
    with pytest.raises(StorageError, match="no study 'yours'; it holds mine"):
        open_study(sqlite_url, "yours")


@pytest.mark.parametrize(
    ("number", "version", "words"),
    [
        (2, "0.9.0", r"in another format, by studyloom 0\.9\.0; .*; install that one, or give"),
        (None, None, r"by a studyloom from before the first release; .*; install that one"),
    ],
)
def test_a_study_of_another_format_is_refused_with_its_version(
    sqlite_url, definition, number, version, words
):
    stored = fresh(sqlite_url, definition, 1)
    stored.optuna.set_user_attr(FORMAT, number)
    stored.optuna.set_user_attr(VERSION, version)
    for opened in (lambda: open_study(sqlite_url, "s"), lambda: fresh(sqlite_url, definition, 1)):
        with pytest.raises(StorageError, match=words):
            opened()
    stored.optuna.set_user_attr(FORMAT, 1)
    assert open_study(sqlite_url, "s").definition() == definition.identity("toy")


def test_only_a_moved_target_counts_as_equal(monkeypatch):
    monkeypatch.setitem(MOVED, "package.old", "package.new")
    was = {"model._target_": "package.old.Net", "steps": [{"_target_": "package.new.Crop"}]}
    now = {"model._target_": "package.new.Net", "steps": [{"_target_": "package.old.Crop"}]}
    for one, other in ((was, now), (now, was)):
        assert check_definition("s", one, other) == one
    monkeypatch.delitem(MOVED, "package.old")
    with pytest.raises(DefinitionError, match=r"package\.old\.Net → package\.new\.Net"):
        check_definition("s", was, now)


def test_the_only_study_needs_no_name_and_several_are_listed(sqlite_url, definition):
    fresh(sqlite_url, definition, 8, name="first")
    assert open_only_study(sqlite_url, None, 0.0, "name one").name == "first"
    fresh(sqlite_url, definition, 8, name="second")
    with pytest.raises(StorageError, match=r"name one; the .* 2 studies: first, second"):
        open_only_study(sqlite_url, None, 0.0, "name one")
    assert open_only_study(sqlite_url, "second", 0.0, "").name == "second"
