"""Opening databases: what is created, what is refused with which words, and how locks are held."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import optuna
import pytest
import sqlalchemy
from live_processes import linux
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url

from studyloom.errors import StorageError, StorageLost
from studyloom.storage import connections, creation_lock
from studyloom.storage.connections import plain_engine, untrusted
from studyloom.storage.creation_lock import hold_creation_lock
from studyloom.storage.database import connect, read_only
from studyloom.storage.optuna_tables import newest_version, stored_version
from studyloom.storage.reach import count_free_connections
from studyloom.storage.urls import parse_url


def test_a_database_that_is_not_there_is_not_made_by_opening(sqlite_url, tmp_path):
    with pytest.raises(StorageError, match=r"there is no database .*study\.db"):
        connect(sqlite_url)
    assert list(tmp_path.iterdir()) == []


def test_a_database_deleted_in_mid_run_is_an_error_and_not_an_empty_one(sqlite_url, tmp_path):
    storage = connect(sqlite_url, create=True)
    optuna.create_study(study_name="s", storage=storage)
    storage.remove_session()
    storage.engine.dispose()
    for file in tmp_path.glob("study.db*"):
        file.unlink()
    with pytest.raises(StorageLost, match="the file was deleted"):
        storage.get_all_studies()
    assert not (tmp_path / "study.db").exists()


@pytest.fixture
def make_read_only(monkeypatch):
    """Returns a function from which on every disk is one that nobody can write to."""

    def make():
        monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY))

    return make


def test_a_study_on_a_read_only_disk_is_read_and_nothing_is_made_there(
    sqlite_url, tmp_path, make_read_only
):
    storage = connect(sqlite_url, create=True)
    optuna.create_study(study_name="s", storage=storage)
    storage.close()
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    make_read_only()
    for opened in (connect(sqlite_url), read_only(sqlite_url)):
        assert [study.study_name for study in opened.get_all_studies()] == ["s"]
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
        with pytest.raises(StorageError, match="no permission to write there"):
            opened.set_study_user_attr(1, "key", 1)
        opened.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_the_last_commits_of_a_study_on_a_read_only_disk_are_not_left_out(
    sqlite_url, make_read_only
):
    running = connect(sqlite_url, create=True)
    optuna.create_study(study_name="s", storage=running)
    make_read_only()
    looking = connect(sqlite_url)
    assert [study.study_name for study in looking.get_all_studies()] == ["s"]
    looking.close()
    running.close()


def test_a_path_may_hold_any_character(tmp_path):
    name = "a b 100% {brace} x#y ü"
    url = f"sqlite:///{tmp_path / name / 'study.db'}"
    connect(url, create=True)
    optuna.create_study(study_name="s", storage=connect(url))
    assert (tmp_path / name / "study.db").stat().st_size > 0


def test_a_file_that_is_not_a_database_is_named(tmp_path):
    (tmp_path / "study.db").write_text(
        "letter to grandmother, which is longer than a header\n" * 40
    )
    with pytest.raises(StorageError, match=r"study.db: .*not a database.*something else"):
        connect(f"sqlite:///{tmp_path / 'study.db'}", create=True)
    assert (tmp_path / "study.db").read_text().startswith("letter")


def test_one_process_at_a_time_is_exclusive(url):
    order = []
    inside = threading.Event()

    def second():
        inside.wait(10)
        with hold_creation_lock(url):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with hold_creation_lock(url):
        inside.set()
        thread.join(0.2)  # it would be in by now
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_command_that_waits_for_a_lock_says_so_and_then_continues(url, monkeypatch, caplog):
    monkeypatch.setattr(connections, "BUSY_SECONDS", 1)
    told, order = threading.Event(), []
    monkeypatch.setattr(creation_lock.log, "warning", lambda *_: told.set() or order.append(_[1]))

    def second():
        with hold_creation_lock(url):
            order.append("second")

    thread = threading.Thread(target=second)
    with hold_creation_lock(url):
        thread.start()
        assert told.wait(60)
    thread.join(60)
    (words, last) = order
    assert words.startswith("waiting for another command, which opens a study in ")
    assert last == "second"


@linux
@pytest.mark.chaos
def test_a_server_lock_leaves_a_process_that_sleeps_but_not_one_that_works(
    postgres_url, monkeypatch
):
    monkeypatch.setattr(connections, "BUSY_SECONDS", 1)
    hold = "from studyloom.storage import connections, creation_lock; connections.LEASE = 2\n"
    hold += "with creation_lock.hold_creation_lock(sys.argv[1]): print('held', flush=True); input()"
    command = [sys.executable, "-c", f"import sys; {hold}", postgres_url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    told = threading.Semaphore(0)
    monkeypatch.setattr(creation_lock.log, "warning", lambda *_: told.release())
    with subprocess.Popen(command, **pipes, stderr=subprocess.DEVNULL) as holder:
        assert holder.stdout.readline() == "held\n"
        tries = []

        def other():
            with hold_creation_lock(postgres_url):
                tries.append("held")

        thread = threading.Thread(target=other)
        thread.start()
        assert told.acquire(timeout=60)
        thread.join(4)  # two leases
        assert tries == []
        holder.send_signal(signal.SIGSTOP)
        thread.join(30)
        assert tries == ["held"]
        holder.kill()


def test_libpq_arguments_of_a_url_take_precedence(postgres_url):
    asked = {"sslmode": "disable", "connect_timeout": "3", "options": "-c search_path=mine"}
    url = make_url(postgres_url).update_query_dict(asked).render_as_string(hide_password=False)
    opened = connect(postgres_url, create=True)
    opened.execute(lambda connection: connection.exec_driver_sql("CREATE SCHEMA mine"))
    for engine in (connect(url, create=True).engine, plain_engine(parse_url(url))):
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SHOW search_path").scalar() == "mine"
            assert connection.exec_driver_sql("SHOW timezone").scalar() == "UTC"
            given = connection.connection.driver_connection.info.get_parameters()
            assert {name: given[name] for name in ("sslmode", "connect_timeout")} == {
                "sslmode": "disable",
                "connect_timeout": "3",
            }
    with opened.engine.connect() as connection:
        tables = connection.exec_driver_sql("SELECT count(*) FROM mine.trials").scalar()
    assert tables == 0


def test_a_value_that_the_database_cannot_hold_is_not_a_lost_database(postgres_url):
    opened = connect(postgres_url, create=True)
    study = optuna.create_study(storage=opened)
    trial_id = study.ask()._trial_id
    for write in (
        lambda: opened.set_trial_intermediate_value(trial_id, 2**31, 0.5),
        lambda: opened.set_trial_user_attr(trial_id, "k" * 513, 1),
    ):
        with pytest.raises(StorageError, match=r"cannot hold this: .*(range|too long)") as caught:
            write()
        assert not isinstance(caught.value, StorageLost)
    opened.set_trial_intermediate_value(trial_id, 1, 0.5)
    assert opened.get_trial(trial_id).intermediate_values == {1: 0.5}


def test_free_connections_are_the_limit_without_those_in_use(postgres_url, sqlite_url):
    assert count_free_connections(sqlite_url) == math.inf
    left = count_free_connections(postgres_url)
    with connect(postgres_url, create=True).engine.connect():
        assert count_free_connections(parse_url(postgres_url)) < left


# Optuna's tables, made here: those of plain Optuna, all or none, of its version.


@pytest.fixture
def new_url(url):
    """A URL of another database of the same kind."""
    address = make_url(url)
    other = address.set(database=f"{address.database}_plain")
    if address.get_backend_name() != "sqlite":
        with looking_at(url) as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {other.database}")
    return other.render_as_string(hide_password=False)


@contextlib.contextmanager
def looking_at(url):
    with plain_engine(parse_url(url)).connect() as connection:
        yield connection


def schema(url):
    """All that a database says of its tables, and their versions."""
    with looking_at(url) as connection:
        seen = sqlalchemy.inspect(connection)
        described = {
            name: [
                [{key: str(value) for key, value in c.items()} for c in seen.get_columns(name)],
                seen.get_pk_constraint(name),
                sorted(map(str, seen.get_foreign_keys(name))),
                sorted(map(str, seen.get_unique_constraints(name))),
                sorted(map(str, seen.get_indexes(name))),
            ]
            for name in seen.get_table_names()
        }
        versions = [
            [tuple(row) for row in connection.exec_driver_sql(f"SELECT * FROM {name}")]
            for name in ("version_info", "alembic_version")
        ]
    return described, versions


def test_optuna_makes_the_same_tables_and_can_use_them(url, new_url):
    RDBStorage(new_url).engine.dispose()
    storage = connect(url, create=True)
    ours, theirs = schema(url), schema(new_url)
    assert len(theirs[0]) >= 13
    assert ours == theirs
    plain = RDBStorage(url)
    assert {*vars(plain)} - {*vars(storage)} == {"_version_manager"}  # which takes 0.2 s
    assert newest_version() == plain.get_head_version() == plain.get_current_version()
    plain.upgrade()
    study = optuna.create_study(storage=plain, study_name="s")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    plain.remove_session()
    plain.engine.dispose()
    assert len(optuna.load_study(study_name="s", storage=storage).trials) == 2


def test_tables_of_another_version_are_refused_with_a_fix(sqlite_url):
    connect(sqlite_url, create=True).engine.dispose()
    for version, words in (("v2.6.0.a", "optuna storage upgrade"), ("v99", "updating optuna")):
        with looking_at(sqlite_url) as connection:
            connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{version}'")
        for create in (False, True):
            with pytest.raises(StorageError, match=words):
                connect(sqlite_url, create=create, deadline=0)
    with looking_at(sqlite_url) as connection:
        assert stored_version(connection) == "v99"


def test_opening_a_database_that_is_being_created_writes_nothing(sqlite_url, monkeypatch):
    """Otherwise its creator, which writes its version last, would meet that row and fail."""
    insert, looks = sqlalchemy.insert, []

    def look_and_insert(table):
        with pytest.raises(StorageError, match=r"is no database|no studies yet") as refused:
            connect(sqlite_url, deadline=0)
        looks.append(refused)
        return insert(table)

    monkeypatch.setattr(sqlalchemy, "insert", look_and_insert)
    connect(sqlite_url, create=True)
    monkeypatch.undo()
    assert len(looks) == 2
    assert connect(sqlite_url).get_all_studies() == []


def test_a_query_that_takes_long_ends_in_time(sqlite_url):
    """Of a plain table: with so many rows, say. Nothing else is cut short."""
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c"
    connect(sqlite_url, create=True).close()
    began = time.monotonic()
    with untrusted(0.2), pytest.raises(StorageError, match="takes longer to read than an untrus"):
        connect(sqlite_url, deadline=0).read(lambda c: c.exec_driver_sql(endless).all())
    assert time.monotonic() - began < 2
