"""Optuna's tables as studyloom makes them: those of plain Optuna, all or none, of its version."""

import contextlib

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage

from studyloom.errors import StorageError
from studyloom.storage import tables
from studyloom.storage.connections import plain_engine
from studyloom.storage.database import connect
from studyloom.storage.urls import parse_url


@pytest.fixture
def new_url(url):
    """A URL of another database of the same kind."""
    address = sqlalchemy.make_url(url)
    other = address.set(database=f"{address.database}_plain")
    if address.get_backend_name() != "sqlite":
        with plain_engine(address).connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {other.database}")
    return other.render_as_string(hide_password=False)


@contextlib.contextmanager
def opened(url):
    engine = plain_engine(parse_url(url))
    with engine.connect() as connection:
        yield connection


def schema(url):
    """All that a database says of its tables, and their versions."""
    with opened(url) as connection:
        seen = sqlalchemy.inspect(connection)
        names = sorted({*seen.get_table_names()} - {"studyloom_slots"})
        described = {
            name: [
                [
                    {key: str(value) for key, value in column.items()}
                    for column in seen.get_columns(name)
                ],
                seen.get_pk_constraint(name),
                sorted(map(str, seen.get_foreign_keys(name))),
                sorted(map(str, seen.get_unique_constraints(name))),
                sorted(map(str, seen.get_check_constraints(name))),
                sorted(map(str, seen.get_indexes(name))),
            ]
            for name in names
        }
        if connection.dialect.name == "sqlite":
            made = "SELECT name, sql FROM sqlite_master WHERE name <> 'studyloom_slots'"
            texts = sorted(
                (name, sql and "".join(sql.split()))
                for name, sql in connection.exec_driver_sql(made)
            )
        else:
            kinds = sqlalchemy.dialects.postgresql.base.PGInspector.get_enums(seen)
            texts = sorted(map(str, kinds))
        versions = [
            [tuple(row) for row in connection.exec_driver_sql(f"SELECT * FROM {name}")]
            for name in ("version_info", "alembic_version")
        ]
    return described, texts, versions


def test_the_tables_are_those_that_plain_optuna_makes(url, new_url):
    plain = RDBStorage(new_url)
    plain.engine.dispose()
    connect(url, create=True).engine.dispose()
    ours, theirs = schema(url), schema(new_url)
    assert len(theirs[0]) >= 13
    assert ours == theirs


def test_plain_optuna_works_on_them_and_finds_nothing_to_upgrade(url):
    connect(url, create=True).engine.dispose()
    plain = RDBStorage(url)
    plain.upgrade()
    study = optuna.create_study(storage=plain, study_name="s")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    plain.remove_session()
    plain.engine.dispose()
    assert len(optuna.load_study(study_name="s", storage=connect(url)).trials) == 2


def test_the_newest_version_is_the_one_that_alembic_finds(sqlite_url):
    storage = RDBStorage(sqlite_url)
    assert tables.newest_version() == storage.get_head_version() == storage.get_current_version()
    storage.engine.dispose()


def test_tables_of_another_version_are_refused_with_the_way_out(url):
    connect(url, create=True).engine.dispose()
    for version, words in (("v2.6.0.a", "optuna storage upgrade"), ("v99", "updating optuna")):
        with opened(url) as connection:
            connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{version}'")
        for create in (False, True):
            with pytest.raises(StorageError, match=words):
                connect(url, create=create, deadline=0)
    with opened(url) as connection:
        assert tables.version_of(connection) == "v99"


def test_tables_that_a_killed_process_of_optuna_left_are_completed(url, new_url):
    RDBStorage(new_url).engine.dispose()
    connect(url, create=True).engine.dispose()
    with opened(url) as connection:
        for name in ("alembic_version", "version_info", "trial_values"):
            connection.exec_driver_sql(f"DROP TABLE {name}")
    connect(url, create=True).engine.dispose()
    assert schema(url)[2] == schema(new_url)[2]
    assert {*schema(url)[0]} == {*schema(new_url)[0]}


def test_who_is_stopped_while_making_them_leaves_none(url, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tables, "stamp", stop)
    with pytest.raises(KeyboardInterrupt):
        connect(url, create=True)
    monkeypatch.undo()
    with opened(url) as connection:
        assert sqlalchemy.inspect(connection).get_table_names() == []
    assert connect(url, create=True).get_all_studies() == []


def test_where_the_migrations_cannot_be_read_optuna_makes_and_checks_them(url, monkeypatch):
    monkeypatch.setattr(tables, "newest_version", lambda: None)
    monkeypatch.setattr("studyloom.storage.database.newest_version", lambda: None)
    assert connect(url, create=True).get_all_studies() == []
    assert connect(url).get_all_studies() == []
    with opened(url) as connection:
        assert tables.version_of(connection) is not None
