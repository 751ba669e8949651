"""Retries on SQLite, with real failures: locks of other connections, and damaged files."""

import contextlib
import inspect
import os
import shutil
import sqlite3
import time

import pytest
from failures import MAXIMIZE, WRITES, check_shown, contents, in_background, make_study, template
from optuna.storages import RDBStorage

from studyloom.errors import StorageLost
from studyloom.storage import connections
from studyloom.storage.call_state import call_state
from studyloom.storage.database import RetryingStorage, connect
from studyloom.storage.retry import Retry
from studyloom.storage.urls import parse_url


@pytest.fixture(scope="module")
def new_database(tmp_path_factory):
    path = tmp_path_factory.mktemp("new") / "study.db"
    connect(f"sqlite:///{path}", create=True).engine.dispose()
    return path


@pytest.fixture
def sqlite_url(new_database, tmp_path):
    """A copy of a database with tables, since creating one takes a tenth of a second."""
    shutil.copy(new_database, tmp_path / "study.db")
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def no_wait_in_sqlite(monkeypatch):
    """SQLite reports a lock at once, so that the waiting is ours."""
    monkeypatch.setattr(connections, "BUSY_SECONDS", 0.02)


@pytest.fixture
def locked(sqlite_url, tmp_path, no_wait_in_sqlite):
    """A storage with a study and a running trial, and a stranger that holds its write lock."""
    opened = connect(sqlite_url, deadline=20)
    study_id, trial_id = make_study(opened)
    stranger = sqlite3.connect(tmp_path / "study.db", isolation_level=None, check_same_thread=False)
    stranger.execute("BEGIN IMMEDIATE")
    yield opened, study_id, trial_id, stranger
    stranger.close()


def test_a_write_waits_for_another_programs_lock_and_logs_it_once(locked, lines):
    opened, study_id, trial_id, stranger = locked
    for write in WRITES.values():
        lines.away.clear()
        before = contents(opened)

        def let_go():
            assert lines.away.wait(60)
            stranger.execute("ROLLBACK")

        with in_background(let_go):
            assert write(opened, study_id, trial_id) is not False
        assert contents(opened) != before
        assert contents(opened)["numbers"] == list(range(contents(opened)["trials"]))
        first, last = lines.lines[-2:]
        assert "study.db: database is locked" in first
        assert first.endswith("trying again for up to 20 s")
        assert "study.db is back after" in last
        stranger.execute("BEGIN IMMEDIATE")
    assert len(lines.lines) == 2 * len(WRITES)


def test_a_lock_that_stays_is_named_with_the_time_waited(locked, lines):
    opened, study_id, trial_id, _ = locked
    opened.retry.deadline = 0.05
    before, began = contents(opened), time.monotonic()
    for write in WRITES.values():
        with pytest.raises(StorageLost) as caught:
            write(opened, study_id, trial_id)
        check_shown(
            caught.value,
            "study.db",
            "database is locked",
            "end that program",
            "did not recover in",
            "storage.deadline",
        )
        assert 0.05 <= caught.value.waited < 3
        assert not caught.value.is_transient
    assert time.monotonic() - began < len(WRITES) * 1.5
    assert contents(opened) == before


def test_a_database_that_stayed_away_is_called_once_until_it_is_back():
    """What a command asks when it ends waits no second time."""
    retry, tries = Retry(parse_url("sqlite:///study.db"), 0.1), []

    def away():
        tries.append(retry)
        raise StorageLost("away", is_transient=True)

    def count_tries():
        tries.clear()
        with pytest.raises(StorageLost, match=r"away; it did not recover in 0\.[1-9] s"):
            retry.run(away)
        return len(tries)

    assert count_tries() > 1
    assert [count_tries(), count_tries()] == [1, 1]
    retry.run(lambda: None)
    assert count_tries() > 1


def test_a_server_that_stayed_away_is_not_called_for_a_moment(monkeypatch):
    """Each try to connect takes seconds, and a command that ends makes several calls."""
    monkeypatch.setattr("studyloom.storage.retry.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("studyloom.storage.retry.LONGEST_PAUSE", 0.2)
    retry, tries = Retry(parse_url("postgresql://host/name"), 0.02), []

    def away():
        tries.append(retry)
        raise StorageLost("away", is_transient=True)

    def lose():
        with pytest.raises(StorageLost, match=r"away; it did not recover in 0\.02 s"):
            retry.run(away)
        return len(tries)

    assert lose() == lose() == lose() > 1
    time.sleep(0.2)
    assert lose() == lose()
    time.sleep(0.2)
    assert retry.run(lambda: 3) == retry.run(lambda: 3) == 3


@pytest.mark.parametrize("answered", [False, True])
def test_a_call_that_begins_while_another_one_waits_fails_with_it(answered):
    """A command, whose threads call the database, waits once. An answer begins a new outage."""
    retry, ends = Retry(parse_url("postgresql://host/name"), 0.2), []

    def away():
        ends.append(call_state.try_ends)
        if len(ends) == 2:  # this call waits, and another thread makes one
            if answered:
                retry.run(lambda: None)
            time.sleep(0.15)
            retry.run(away)
        raise StorageLost("away", is_transient=True)

    with pytest.raises(StorageLost):
        retry.run(away)
    assert (max(ends) > ends[1]) == answered


def test_a_wait_that_a_signal_ends_shortens_no_later_one():
    retry, tries = Retry(parse_url("postgresql://host/name"), 0.1), []

    def away():
        tries.append(retry)
        if len(tries) == 2:
            raise KeyboardInterrupt
        raise StorageLost("away", is_transient=True)

    with pytest.raises(KeyboardInterrupt):
        retry.run(away)
    time.sleep(0.1)
    with pytest.raises(StorageLost):
        retry.run(away)
    assert len(tries) > 3


def test_every_method_that_calls_the_database_is_retried():
    """A release of Optuna may add some."""
    asking = {
        name
        for name, method in vars(RDBStorage).items()
        if inspect.isfunction(method)
        and "_create_scoped_session(self.scoped_session" in inspect.getsource(method)
    }
    overridden = {
        name
        for name in dir(RetryingStorage)
        if getattr(RetryingStorage, name) is not getattr(RDBStorage, name, None)
    }
    assert asking - overridden == {
        "record_heartbeat",
        "_get_stale_trial_ids",
    }  # the heartbeat is off


def deleted(path):
    for file in path.parent.glob("study.db*"):
        file.unlink()


def replaced(path):
    deleted(path)
    connect(f"sqlite:///{path}", create=True)


def emptied(path):
    os.truncate(path, 0)


def cut_short(path):
    sqlite3.connect(path).execute("PRAGMA wal_checkpoint(TRUNCATE)").connection.close()
    os.truncate(path, 8192)


def without_tables(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE trial_user_attributes")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (deleted, "deleted, moved, replaced or emptied"),
        (replaced, "deleted, moved, replaced or emptied"),
        (emptied, "emptied"),
        (cut_short, "malformed (the file is damaged"),
        (without_tables, "no such table"),
    ],
)
def test_a_file_that_is_damaged_in_mid_run_is_named_at_once(
    sqlite_url, tmp_path, damage, words, lines
):
    opened = connect(sqlite_url)
    trial_id = opened.create_new_trial(opened.create_new_study(MAXIMIZE, "s"), template())
    damage(tmp_path / "study.db")
    before = sorted(path.name for path in tmp_path.glob("study.db"))
    began = time.monotonic()
    for write in (WRITES["an attribute"], WRITES["a trial"]):
        with pytest.raises(StorageLost) as caught:
            write(opened, 1, trial_id)
        check_shown(caught.value, "study.db", words)
    assert time.monotonic() - began < 3
    assert lines.lines == []
    assert sorted(path.name for path in tmp_path.glob("study.db")) == before
