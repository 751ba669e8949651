"""Retries on SQLite, with real failures: locks of other connections, damaged files, a full disk."""

import contextlib
import inspect
import os
import shutil
import sqlite3
import subprocess
import sys
import time

import pytest
from failures import MAXIMIZE, WRITES, check_shown, contents, in_background, make_study, template
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url

from studyloom.errors import StorageLost
from studyloom.storage import database as storage
from studyloom.storage.database import RetryingStorage, connect
from studyloom.storage.retry import Retry


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
    monkeypatch.setattr(storage, "BUSY_SECONDS", 0.02)


@pytest.fixture
def locked(sqlite_url, tmp_path, no_wait_in_sqlite):
    """A storage with a study and a running trial, and a stranger that holds its write lock."""
    opened = connect(sqlite_url, deadline=20)
    study_id, trial_id = make_study(opened)
    stranger = sqlite3.connect(tmp_path / "study.db", isolation_level=None, check_same_thread=False)
    stranger.execute("BEGIN IMMEDIATE")
    yield opened, study_id, trial_id, stranger
    stranger.close()


def test_a_write_waits_for_a_strangers_lock_and_says_so_once(locked, lines):
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


def test_reading_does_not_wait_for_a_writer(locked, lines):
    opened, study_id, _, _ = locked
    assert len(opened.get_all_trials(study_id)) == 1
    assert lines.lines == []


def test_a_lock_that_stays_is_named_with_the_time_waited(locked, lines):
    opened, study_id, trial_id, _ = locked
    opened.retry.deadline = 0.2
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
        assert 0.2 <= caught.value.waited < 3
        assert not caught.value.passing
    assert time.monotonic() - began < len(WRITES) * 1.5
    assert contents(opened) == before


@pytest.mark.parametrize(("end", "told"), [(KeyError, 2), (KeyboardInterrupt, 1)])
def test_no_call_waits_any_more_once_one_has_ended_in_an_error(sqlite_url, lines, end, told):
    """A trial that is gone is an answer of the database; a signal is none."""
    retry = Retry(make_url(sqlite_url), deadline=20)
    tries = iter([StorageLost("locked", passing=True), end])

    def attempt():
        raise next(tries)

    with pytest.raises(end):
        retry.run(attempt)
    assert not retry.away
    assert ["is back after" in line for line in lines.lines] == [False, True][:told]


def test_every_method_that_asks_the_database_is_retried():
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


# Writes to a disk of 600 kB until it is full.
FILL = """
import traceback
from studyloom.errors import StorageLost
from studyloom.storage.database import connect, execute
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
s = connect("sqlite:///{disk}/study.db", create=True)
study = s.create_new_study([StudyDirection.MAXIMIZE], "s")
trial = s.create_new_trial(study, create_trial(state=TrialState.RUNNING))
try:
    for k in range(10_000):
        s.set_trial_user_attr(trial, f"k{{k}}", "x" * 1000)
except StorageLost:
    traceback.print_exc()
n = len(s.get_trial(trial).user_attrs)
assert 0 < n == k, (n, k)
try:
    for _ in range(9):
        large = {{"a": "x" * 1000}}
        s.create_new_trial(study, create_trial(state=TrialState.RUNNING, user_attrs=large))
except StorageLost:
    traceback.print_exc()
"""


@pytest.mark.nightly
def test_a_full_disk_is_named_at_once_and_what_is_written_stays(tmp_path):
    mount = f"mount -t tmpfs -o size=600k none {tmp_path}"
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "sh", "-c", mount], capture_output=True).returncode
    ):
        pytest.skip("no mount namespaces here")
    command = [
        *unshare,
        "sh",
        "-c",
        f'{mount} && exec "$0" -c "$1"',
        sys.executable,
        FILL.format(disk=tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("studyloom.errors.StorageLost") == 2
    assert done.stderr.count("disk is full (free some space") == 2
    assert "sqlalchemy" not in done.stderr
