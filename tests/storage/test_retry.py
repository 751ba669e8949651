"""Outages for real: locks of other connections, a server that stops, connections cut before and after a COMMIT."""

import contextlib
import inspect
import logging
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from datetime import datetime
from pathlib import Path

import pytest
import sqlalchemy
from commands import CANARY
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from servers import Server

from studyloom.errors import StorageError, StorageLost
from studyloom.storage import database as storage
from studyloom.storage import sql
from studyloom.storage.connections import LOCK_KEY, POSTGRES, exclusive
from studyloom.storage.database import RetryingStorage, connect, execute, read
from studyloom.storage.ledger import Ledger
from studyloom.storage.retry import diagnose, log

MAXIMIZE = [StudyDirection.MAXIMIZE]


def template():
    trial = create_trial(state=TrialState.RUNNING, user_attrs={"slot": 0})
    trial.datetime_start = datetime.now()
    return trial


def make_study(opened):
    """A study with 99 slots and a running trial."""
    study_id = opened.create_new_study(MAXIMIZE, "s")
    ledger = Ledger(opened, study_id)
    ledger.create()
    ledger.extend(99)
    return study_id, opened.create_new_trial(study_id, template())


def begin(opened, study_id, _=None, owner="w"):
    """A claim with its trial, as a worker makes them."""
    ledger = Ledger(opened, study_id)
    return ledger.claim(
        owner, 99, 60.0, lambda connection, slot: sql.add(connection, study_id, {"slot": slot})
    )


def end(opened, study_id, claim, value=0.5):
    """What a worker writes at the end of a trial."""

    def write(connection):
        sql.check_running(connection, claim.trial_id)
        sql.write(connection, sql.end(claim.trial_id, TrialState.COMPLETE, [value]))

    return Ledger(opened, study_id).finish(claim, write)


def named(error, *words):
    """An error as a user sees it: with these words, without a password and without what other libraries raised."""
    shown = "".join(traceback.format_exception(error))
    assert all(word in str(error) for word in words), str(error)
    assert CANARY not in shown
    assert "sqlalchemy" not in shown.lower().replace("sqlalchemy.engine.url", "")
    assert "psycopg" not in shown.replace("postgresql+psycopg", "")
    assert "sqlite3" not in shown


class Lines(logging.Handler):
    """What is logged, and a moment to act at: once the first try has failed."""

    def __init__(self):
        super().__init__()
        self.lines = []
        self.away = threading.Event()

    def emit(self, stored):
        self.lines.append(stored.getMessage())
        self.away.set()


@pytest.fixture
def lines():
    handler = Lines()
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)
    assert not any(CANARY in line for line in handler.lines)


@contextlib.contextmanager
def in_background(act):
    """Runs `act` beside the body, and waits for it."""
    failures = []

    def run():
        try:
            act()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(120)
    assert not thread.is_alive()
    assert failures == []


# SQLite


@pytest.fixture(scope="module")
def new_database(tmp_path_factory):
    path = tmp_path_factory.mktemp("new") / "study.db"
    connect(f"sqlite:///{path}", create=True).engine.dispose()
    return path


@pytest.fixture
def sqlite_url(new_database, tmp_path):
    """A database with tables, which took a tenth of a second to make."""
    shutil.copy(new_database, tmp_path / "study.db")
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def impatient(monkeypatch):
    """SQLite reports a lock at once, so that it is we who wait."""
    monkeypatch.setattr(storage, "BUSY_SECONDS", 0.02)


@pytest.fixture
def locked(sqlite_url, tmp_path, impatient):
    """A storage with a study and a running trial, and a stranger who holds its write lock."""
    opened = connect(sqlite_url, deadline=20)
    study_id, trial_id = make_study(opened)
    stranger = sqlite3.connect(tmp_path / "study.db", isolation_level=None, check_same_thread=False)
    stranger.execute("BEGIN IMMEDIATE")
    yield opened, study_id, trial_id, stranger
    stranger.close()


WRITES = {
    "a claim with its trial": begin,
    "a trial": lambda s, study, trial: s.create_new_trial(study, template()),
    "a study": lambda s, study, trial: s.create_new_study(MAXIMIZE, "t"),
    "an attribute of the study": lambda s, study, trial: s.set_study_user_attr(study, "k", 1),
    "a parameter": lambda s, study, trial: s.set_trial_param(
        trial, "x", 0.5, FloatDistribution(0, 1)
    ),
    "a report": lambda s, study, trial: s.set_trial_intermediate_value(trial, 1, 0.5),
    "an attribute": lambda s, study, trial: s.set_trial_user_attr(trial, "k", 1),
    "an end": lambda s, study, trial: s.set_trial_state_values(trial, TrialState.COMPLETE, [0.5]),
    "a row of ours": lambda s, study, trial: execute(
        s, lambda c: c.execute(sqlalchemy.text("UPDATE studies SET study_name = 'u'"))
    ),
}


def contents(opened):
    """All that the writes above may write, in a form to compare."""
    tables = (
        "studies",
        "study_user_attributes",
        "trials",
        "trial_values",
        "trial_intermediate_values",
        "trial_params",
    )

    def take(connection):
        found = {
            table: connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()
            for table in (*tables, "trial_user_attributes")
        }
        found["states"] = sorted(connection.exec_driver_sql("SELECT state FROM trials").scalars())
        found["names"] = sorted(
            connection.exec_driver_sql("SELECT study_name FROM studies").scalars()
        )
        found["numbers"] = sorted(connection.exec_driver_sql("SELECT number FROM trials").scalars())
        return found

    return read(opened, take)


@pytest.mark.parametrize("what", WRITES)
def test_a_write_waits_for_a_strangers_lock_and_says_so_once(locked, lines, what):
    opened, study_id, trial_id, stranger = locked
    before = contents(opened)

    def let_go():
        assert lines.away.wait(60)
        stranger.execute("ROLLBACK")

    with in_background(let_go):
        result = WRITES[what](opened, study_id, trial_id)
    assert result is not False
    assert contents(opened) != before
    assert contents(opened)["numbers"] == list(range(contents(opened)["trials"]))
    first, last = lines.lines
    assert "study.db: database is locked" in first
    assert first.endswith("trying again for up to 20 s")
    assert "study.db is back after" in last


def test_a_lock_held_for_a_second_is_tried_about_seven_times(locked, lines, monkeypatch):
    opened, _, trial_id, stranger = locked
    failures = []
    monkeypatch.setattr(storage, "diagnose", lambda *a: failures.append(a) or diagnose(*a))
    timer = threading.Timer(1, stranger.execute, ["ROLLBACK"])
    timer.start()
    opened.set_trial_user_attr(trial_id, "k", 1)
    timer.join()
    assert 4 <= len(failures) <= 12
    assert len(lines.lines) == 2


def test_reading_does_not_wait_for_a_writer(locked, lines):
    opened, study_id, _, _ = locked
    assert len(opened.get_all_trials(study_id)) == 1
    assert lines.lines == []


def test_a_lock_that_stays_is_named_with_the_time_waited(locked, lines):
    opened, study_id, trial_id, _ = locked
    opened.deadline = 0.2
    before, began = contents(opened), time.monotonic()
    for write in WRITES.values():
        with pytest.raises(StorageLost) as caught:
            write(opened, study_id, trial_id)
        named(
            caught.value,
            "study.db",
            "database is locked",
            "end that program",
            "stayed so for",
            "storage.deadline",
        )
        assert 0.2 <= caught.value.waited < 3
        assert not caught.value.passing
    assert time.monotonic() - began < len(WRITES) * 1.5
    assert contents(opened) == before


def test_a_deadline_that_is_lowered_while_a_call_waits_ends_the_wait(locked, lines):
    opened, _, trial_id, _ = locked

    def lower():
        lines.away.wait(60)
        opened.deadline = 0

    began = time.monotonic()
    with in_background(lower), pytest.raises(StorageLost):
        opened.set_trial_user_attr(trial_id, "k", 1)
    assert time.monotonic() - began < 5


def test_waiting_does_not_move_a_users_random_numbers(locked):
    opened, study_id, _, _ = locked
    opened.deadline = 0.2
    random.seed(1)
    with pytest.raises(StorageLost):
        opened.create_new_trial(study_id, template())
    assert random.random() == random.Random(1).random()


def test_the_errors_of_optuna_are_its_own(url):
    opened = connect(url, create=True)
    study_id = opened.create_new_study(MAXIMIZE, "s")
    trial_id = opened.create_new_trial(study_id, template())
    opened.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])
    with pytest.raises(DuplicatedStudyError):
        opened.create_new_study(MAXIMIZE, "s")
    with pytest.raises(UpdateFinishedTrialError):
        opened.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])
    with pytest.raises(KeyError):
        opened.get_study_id_from_name("t")
    first, second = (opened.create_new_trial(study_id, template()) for _ in range(2))
    opened.set_trial_param(first, "x", 0.5, FloatDistribution(0, 1))
    with pytest.raises(ValueError, match="distribution"):
        opened.set_trial_param(second, "x", 0, CategoricalDistribution([1]))


def test_every_method_that_asks_the_database_is_persistent():
    """Optuna's next release may add some."""
    asking = {
        name
        for name, method in vars(RDBStorage).items()
        if inspect.isfunction(method)
        and "_create_scoped_session(self.scoped_session" in inspect.getsource(method)
    }
    persistent = {
        name
        for name in dir(RetryingStorage)
        if getattr(RetryingStorage, name) is not getattr(RDBStorage, name, None)
    }
    assert asking - persistent == {
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


def garbled(path):
    sqlite3.connect(path).execute("PRAGMA wal_checkpoint(TRUNCATE)").connection.close()
    with path.open("r+b") as file:
        file.write(
            b"letter to grandmother, which is longer than a header\n" * (path.stat().st_size // 53)
        )


def without_tables(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE trial_user_attributes")


@pytest.mark.parametrize("fresh", [False, True], ids=["open connection", "new connection"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (deleted, "deleted, moved, replaced or emptied"),
        (replaced, "deleted, moved, replaced or emptied"),
        (emptied, "emptied"),
        (cut_short, "malformed (the file is damaged"),
        (garbled, "database"),
        (without_tables, "no such table"),
    ],
)
def test_a_file_that_is_damaged_in_mid_run_is_named_at_once(
    sqlite_url, tmp_path, damage, words, fresh, lines
):
    opened = connect(sqlite_url)
    trial_id = opened.create_new_trial(opened.create_new_study(MAXIMIZE, "s"), template())
    if fresh:
        opened.remove_session()
        opened.engine.dispose()
    damage(tmp_path / "study.db")
    if damage is replaced and fresh:
        return  # its user finds another study there, or none
    before = sorted(path.name for path in tmp_path.glob("study.db"))
    began = time.monotonic()
    for write in (WRITES["an attribute"], WRITES["a trial"]):
        with pytest.raises(StorageLost) as caught:
            write(opened, 1, trial_id)
        named(caught.value, "study.db", words)
        print(caught.value)
    assert time.monotonic() - began < 3
    assert lines.lines == []
    assert sorted(path.name for path in tmp_path.glob("study.db")) == before


# What runs on a disk of 600 kB, until it is full.
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
        s.create_new_trial(study, create_trial(state=TrialState.RUNNING, user_attrs={{"a": "x" * 1000}}))
except StorageLost:
    traceback.print_exc()
"""


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


# PostgreSQL


@pytest.fixture(scope="module")
def server():
    with tempfile.TemporaryDirectory(prefix="studyloom-pg") as folder:
        server = Server(Path(folder))
        yield server
        server.stop(signal.SIGQUIT)
        server.server.cleanup_mode = None  # or it takes seconds to stop what is gone
        server.server.cleanup()


@pytest.fixture
def served(server):
    """A storage on that server with a study and a running trial, and nothing else."""
    server.start()
    if server.spoilt:
        server.ask("DROP SCHEMA IF EXISTS public CASCADE; CREATE SCHEMA public")
    opened = connect(server.url, create=server.spoilt, deadline=20)
    server.ask("TRUNCATE studies CASCADE")
    server.spoilt = False
    yield opened, *make_study(opened)
    server.start()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
def test_a_server_that_is_away_is_waited_for(server, served, lines, end):
    opened, _, trial_id = served
    server.stop(end)

    def start():
        assert lines.away.wait(60)
        server.start()

    with in_background(start):
        opened.set_trial_intermediate_value(trial_id, 1, 0.5)
    assert opened.get_trial(trial_id).intermediate_values == {1: 0.5}
    first, last = lines.lines
    assert "postgres:***@/postgres" in first
    assert "trying again for up to 20 s" in first
    assert "is back after" in last


def test_a_server_that_ends_while_it_works_on_a_call_is_waited_for(server, served, lines):
    """A stranger locks the study's row, so that the call is in the server when that goes."""
    opened, study_id, _ = served
    stranger = server.connection().execution_options(isolation_level="READ COMMITTED")
    stranger.exec_driver_sql("SELECT * FROM studies FOR UPDATE")

    def restart():
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        while not server.ask(waiting)[0]:
            time.sleep(0.01)
        server.stop(signal.SIGQUIT)
        server.start()

    with in_background(restart):
        opened.create_new_trial(study_id, template())
    assert [trial.number for trial in opened.get_all_trials(study_id)] == [0, 1]
    stranger.invalidate()
    stranger.close()
    assert "is back after" in lines.lines[-1]


@pytest.fixture
def brisk(server, served, monkeypatch):
    """A storage whose sessions on the server wait for locks, and are left idle, for tenths of a second only."""
    options = "-c lock_timeout=100ms -c idle_in_transaction_session_timeout=200ms"
    monkeypatch.setitem(POSTGRES, "options", options)
    return connect(server.url, deadline=20)


def test_a_row_that_a_stranger_keeps_locked_is_waited_for(server, served, brisk, lines):
    _, study_id, _ = served
    with server.connection() as stranger:
        stranger.exec_driver_sql("BEGIN")
        stranger.exec_driver_sql("SELECT * FROM studies FOR UPDATE")

        def let_go():
            assert lines.away.wait(60)
            stranger.exec_driver_sql("ROLLBACK")

        with in_background(let_go):
            brisk.create_new_trial(study_id)
    assert "lock timeout" in lines.lines[0]
    assert "(another program keeps its rows locked; end that program)" in lines.lines[0]
    assert [trial.number for trial in brisk.get_all_trials(study_id)] == [0, 1]


def test_a_transaction_that_was_ended_for_its_idleness_is_done_again(brisk, lines):
    """So it goes to a worker that was stopped for a while, by SIGSTOP or the lid of a laptop."""
    naps = iter([1.0, 0.0])

    def work(connection):
        connection.exec_driver_sql("SELECT * FROM studies FOR UPDATE")
        time.sleep(next(naps))
        return connection.exec_driver_sql("UPDATE studies SET study_name = 'u'").rowcount

    assert execute(brisk, work) == 1
    assert len(lines.lines) == 2


def test_connections_that_were_ended_between_calls_are_made_anew_without_a_word(
    server, served, lines
):
    opened, _, trial_id = served
    for step in range(3):
        assert all(server.end_connections())
        opened.set_trial_intermediate_value(trial_id, step, 0.5)
        assert len(opened.get_trial(trial_id).intermediate_values) == step + 1
    assert lines.lines == []


def test_connections_that_are_ended_all_the_time_lose_and_double_nothing(server, served):
    opened, study_id, _ = served
    done = threading.Event()

    def cut():
        while not done.is_set():
            server.end_connections()
            time.sleep(0.1)

    def work(worker):
        for _ in range(6):
            claim = begin(opened, study_id, owner=f"w{worker}")
            write(claim, sql.param(claim.trial_id, "x", claim.slot / 24, FloatDistribution(0, 1)))
            for step in range(3):
                write(claim, sql.report(claim.trial_id, step, claim.slot))
            assert end(opened, study_id, claim, claim.slot)

    def write(claim, row):
        assert Ledger(opened, study_id).renew(
            claim, 60.0, lambda connection: sql.write(connection, [row])
        )

    with in_background(cut):
        with contextlib.ExitStack() as stack:
            for worker in range(4):
                stack.enter_context(in_background(lambda worker=worker: work(worker)))
        done.set()
    trials = [trial for trial in opened.get_all_trials(study_id) if trial.params]
    assert len(trials) == 24 == len(opened.get_all_trials(study_id)) - 1
    assert sorted(trial.user_attrs["slot"] for trial in trials) == list(range(24))
    for trial in trials:
        slot = trial.user_attrs["slot"]
        assert trial.values == [slot]
        assert trial.params == {"x": slot / 24}
        assert trial.intermediate_values == dict.fromkeys(range(3), slot)


def test_a_server_that_stays_away_is_named_with_the_time_waited(server, served, lines):
    opened, study_id, trial_id = served
    opened.deadline = 0.2
    server.stop(signal.SIGQUIT)
    for what in ("a trial", "a report", "a row of ours"):
        with pytest.raises(StorageLost) as caught:
            WRITES[what](opened, study_id, trial_id)
        named(
            caught.value,
            "postgres:***@/postgres",
            "Is the server running",
            "stayed so for",
            "goes on from here",
        )
    with pytest.raises(StorageLost) as caught:
        connect(server.url, deadline=0.2)
    named(caught.value, "stayed so for")
    with pytest.raises(StorageError) as caught:
        connect(server.url, deadline=0)
    named(caught.value, "Is the server running")
    assert not isinstance(caught.value, StorageLost)


def test_opening_waits_for_a_server_that_starts(server, served, lines):
    server.stop(signal.SIGQUIT)

    def start():
        assert lines.away.wait(60)
        server.start()

    with in_background(start), exclusive(server.url, deadline=20):
        assert len(connect(server.url, deadline=20).get_all_studies()) == 1


def test_a_server_that_breaks_off_is_asked_again_without_a_deadline_too(server, served, lines):
    waiting = (
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    )
    with server.connection() as other:
        other.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_lock(LOCK_KEY)))

        def cut():
            while not server.ask(waiting):
                time.sleep(0.01)
            assert lines.away.wait(60)
            other.close()

        with in_background(cut), exclusive(server.url):
            pass
    assert "trying again for up to 2 s" in lines.lines[0]


def test_exclusive_ends_in_order_when_its_connection_was_lost(server, served):
    with exclusive(server.url):
        server.end_connections()
    with exclusive(server.url):
        pass


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"database": "nowhere"}, 'database "nowhere" does not exist'),
        ({"username": "nobody"}, 'role "nobody" does not exist'),
        ({"username": "sleeper"}, "not permitted to log in"),
        ({"username": "guarded"}, "password authentication failed"),
        ({"username": "stranger"}, "pg_hba.conf rejects connection"),
    ],
    ids=["database", "role", "login", "password", "host"],
)
def test_what_is_wrong_with_an_address_is_told_at_once(server, served, change, words, lines):
    server.ask("DROP ROLE IF EXISTS sleeper, guarded, stranger")
    server.ask("CREATE ROLE sleeper NOLOGIN")
    server.ask("CREATE ROLE guarded LOGIN PASSWORD 'another'")
    server.ask("CREATE ROLE stranger LOGIN")
    access = server.sockets / "pg_hba.conf"
    if "guarded" not in access.read_text():
        access.write_text(
            f"local all guarded scram-sha-256\nlocal all stranger reject\n{access.read_text()}"
        )
        server.ask("SELECT pg_reload_conf()")
    with pytest.raises(StorageError, match=words) as caught:
        connect(server.address.set(**change).render_as_string(hide_password=False), deadline=5)
    named(caught.value)
    assert lines.lines == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("DROP SCHEMA public CASCADE", "does not exist"),
        ("ALTER TABLE trial_user_attributes RENAME TO elsewhere", "does not exist"),
        ("ALTER DATABASE postgres SET default_transaction_read_only = on", "read-only transaction"),
    ],
)
def test_a_database_that_was_spoilt_in_mid_run_is_named_at_once(
    server, served, spoil, words, lines
):
    opened, study_id, trial_id = served
    server.spoilt = True
    server.ask(spoil)
    server.end_connections()
    try:
        for write in (WRITES["an attribute"], WRITES["a trial"]):
            with pytest.raises(StorageLost) as caught:
                write(opened, study_id, trial_id)
            named(caught.value, words)
    finally:
        server.ask("ALTER DATABASE postgres RESET ALL", database="template1")
    assert lines.lines == []


class Proxy:
    """Stands between us and the server, and once cuts a connection at a COMMIT: before it, or when it has been done."""

    def __init__(self, server, folder):
        self.target = str(server.sockets / ".s.PGSQL.5432")
        self.url = server.address.set(query={"host": str(folder)}).render_as_string(
            hide_password=False
        )
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / ".s.PGSQL.5432"))
        self.listener.listen()
        self.cut = None  # before or after
        self.cuts = 0
        self.threads = []
        self.sockets = [self.listener]
        self.start(self.accept)

    def start(self, act, *arguments):
        self.threads.append(threading.Thread(target=act, args=arguments))
        self.threads[-1].start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                upstream = socket.socket(socket.AF_UNIX)
                upstream.connect(self.target)
                self.sockets += [client, upstream]
                silent = threading.Event()
                self.start(self.ask, client, upstream, silent)
                self.start(self.answer, upstream, client, silent)

    def ask(self, client, upstream, silent):
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if b"COMMIT\0" in data and self.cut:
                    self.cut, cut = None, self.cut
                    self.cuts += 1
                    if cut == "before":
                        break
                    silent.set()
                upstream.sendall(data)
        with contextlib.suppress(OSError):
            upstream.shutdown(socket.SHUT_RDWR)

    def answer(self, upstream, client, silent):
        with contextlib.suppress(OSError):
            while (data := upstream.recv(65536)) and not silent.is_set():
                client.sendall(data)
        for end in (client, upstream):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self):
        for end in self.sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(120)
        for end in self.sockets:
            end.close()


@pytest.fixture
def proxied(server, served):
    with tempfile.TemporaryDirectory(prefix="studyloom-proxy") as folder:
        proxy = Proxy(server, Path(folder))
        opened = connect(proxy.url, deadline=20)
        yield proxy, opened
        opened.remove_session()
        opened.engine.dispose()
        proxy.close()


@pytest.mark.parametrize("cut", ["before", "after"])
@pytest.mark.parametrize("what", [what for what in WRITES if what != "a trial"])
def test_a_commit_whose_answer_was_lost_is_done_once(served, proxied, what, cut, lines):
    _, study_id, trial_id = served
    proxy, opened = proxied
    before = contents(opened)
    proxy.cut = cut
    result = WRITES[what](opened, study_id, trial_id)
    assert proxy.cuts == 1
    after = contents(opened)
    if what == "a claim with its trial":
        assert opened.get_trial(result.trial_id).user_attrs == {"slot": result.slot}
        assert result.token == {"before": 1, "after": 2}[cut]
        assert Ledger(opened, study_id).counts()["held"] == 1
        assert after == before | {
            "trials": 2,
            "trial_user_attributes": 2,
            "numbers": [0, 1],
            "states": ["RUNNING"] * 2,
        }
    elif what == "a study":
        assert result == opened.get_study_id_from_name("t")
        assert after == before | {"studies": 2, "names": ["s", "t"]}
    elif what == "an end":
        assert result is True
        assert after == before | {"trial_values": 1, "states": ["COMPLETE"]}
    else:
        assert [key for key in after if after[key] != before[key]] == [
            {
                "an attribute of the study": "study_user_attributes",
                "a parameter": "trial_params",
                "a report": "trial_intermediate_values",
                "an attribute": "trial_user_attributes",
                "a row of ours": "names",
            }[what]
        ]
    assert len(lines.lines) == 2


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_trials_end_whose_answer_was_lost_is_done_once_and_ends_its_claim(
    served, proxied, cut, lines
):
    _, study_id, _ = served
    proxy, opened = proxied
    claim = begin(opened, study_id)
    proxy.cut = cut
    assert end(opened, study_id, claim)
    assert proxy.cuts == 1
    assert Ledger(opened, study_id).counts() == {"free": 98, "held": 0, "done": 1}
    assert opened.get_trial(claim.trial_id).value == 0.5
    assert not end(opened, study_id, claim)  # no answer was lost: it is another's by now


def test_a_trial_made_without_a_claim_is_not_made_again_after_a_lost_commit(served, proxied):
    _, study_id, _ = served
    proxy, opened = proxied
    proxy.cut = "after"
    with pytest.raises(StorageLost) as caught:
        opened.create_new_trial(study_id)
    named(caught.value, "it is unknown whether")
    assert len(opened.get_all_trials(study_id)) == 2


def test_a_trial_that_another_has_ended_is_not_taken_for_our_own(served, proxied, lines):
    first, _, trial_id = served
    proxy, opened = proxied
    proxy.cut = "before"

    class End(logging.Handler):
        def emit(self, _):
            first.set_trial_state_values(trial_id, TrialState.FAIL)

    log.addHandler(handler := End())
    try:
        with pytest.raises(UpdateFinishedTrialError):
            opened.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])
    finally:
        log.removeHandler(handler)
    assert first.get_trial(trial_id).state == TrialState.FAIL
