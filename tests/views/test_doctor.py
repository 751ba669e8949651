import contextlib
import os
import sqlite3
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy
from commands import CANARY
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from toys import fill

from studyloom.storage import checks, connections
from studyloom.storage.checks import State
from studyloom.storage.connections import plain_engine
from studyloom.storage.database import connect
from studyloom.storage.slots import create_table
from studyloom.storage.urls import parse_url
from studyloom.study.opening import create_study
from studyloom.views import doctor
from studyloom.views.doctor import examine, show, writable


@pytest.fixture
def study(url):
    """A database with a study and its ledger."""
    opened = connect(url, create=True)
    study_id = opened.create_new_study([StudyDirection.MAXIMIZE], "s")
    create_table(opened)
    opened.create_new_trial(study_id, create_trial(state=TrialState.RUNNING))
    opened.remove_session()
    opened.engine.dispose()
    return url


def ask(url, statement):
    with plain_engine(parse_url(url)).connect() as connection:
        result = connection.exec_driver_sql(statement)
        return result.all() if result.returns_rows else None


def findings_of(url, run_dir=None):
    """Findings by name."""
    findings = dict(examine(url, run_dir))
    assert not any(CANARY in finding.words for finding in findings.values())
    assert not any("\n" in finding.words for finding in findings.values())
    return findings


def unwell(url, run_dir=None):
    """Findings that are not ok, except the space on the disk on which the tests run."""
    findings = findings_of(url, run_dir).items()
    return {
        name: finding
        for name, finding in findings
        if finding.state != State.OK and " GB free" not in finding.words
    }


def all_of(url):
    """The tables and rows of a database."""
    with plain_engine(parse_url(url)).connect() as connection:
        names = sorted(sqlalchemy.inspect(connection).get_table_names())
        return {
            name: sorted(map(str, connection.exec_driver_sql(f"SELECT * FROM {name}")))
            for name in names
        }


def test_a_healthy_study_is_ok_and_stays_as_it_was(study, tmp_path):
    before = all_of(study)
    assert unwell(study, tmp_path) == {}
    assert all_of(study) == before
    assert {path.name for path in tmp_path.iterdir()} <= {
        "study.db",
        "study.db-wal",
        "study.db-shm",
    }
    findings = findings_of(study, tmp_path)
    assert {"database", "tables", "schema", "permission", "locking", "commit", "clock"} < {
        *findings
    }
    assert {"run_dir", "gpus", "workers", "versions"} < {*findings}
    assert "ms, the median of 20" in findings["commit"].words
    assert "launcher.workers=auto starts" in findings["workers"].words


def test_an_examination_does_not_disturb_a_study_that_runs_nor_is_disturbed(study):
    opened, done = connect(study), threading.Event()
    steps = []

    def report():
        while not done.is_set():
            opened.set_trial_intermediate_value(1, len(steps), 0.5)
            steps.append(time.monotonic())
        opened.remove_session()

    worker = threading.Thread(target=report)
    worker.start()
    try:
        assert unwell(study) == {}
    finally:
        done.set()
        worker.join()
    assert len(opened.get_trial(1).intermediate_values) == len(steps) > 10


def test_a_database_that_is_not_there_is_made_by_the_first_run(tmp_path):
    findings = unwell(f"sqlite:///{tmp_path}/new/study.db")
    assert findings["database"].state is State.WARNING
    assert "the first run of a study makes it" in findings["database"].words
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_gone_from_a_run_is_to_be_put_back(tmp_path):
    findings = unwell(f"sqlite:///{tmp_path}/study.db", tmp_path)
    assert findings["database"].state is State.TODO
    assert "put it back" in findings["database"].words
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_answer_is_a_line():
    findings = unwell(f"postgresql://user:{CANARY}@127.0.0.1:1/db")
    assert {*findings} == {"database"}
    assert "user:***@127.0.0.1:1/db: " in findings["database"].words
    assert "refused" in findings["database"].words


def test_a_database_without_tables_is_ok_for_the_first_run(postgres_url):
    findings = unwell(postgres_url)
    assert {name: finding.state for name, finding in findings.items()} == {"tables": State.WARNING}
    assert all_of(postgres_url) == {}


def test_a_study_of_optuna_alone_is_ok_for_the_first_run(url):
    connect(url, create=True)
    findings = unwell(url)
    assert {name: finding.state for name, finding in findings.items()} == {"tables": State.WARNING}
    assert "without studyloom_slots" in findings["tables"].words


@pytest.mark.parametrize("study_db", ["letter", "short", "flipped"])
def test_a_damaged_file_is_a_line_and_stays_as_it_is(tmp_path, study_db):
    path = tmp_path / "study.db"
    connect(f"sqlite:///{path}", create=True).engine.dispose()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    content = bytearray(path.read_bytes())
    if study_db == "letter":
        content = bytearray(b"letter to grandmother\n" * 400)
    elif study_db == "short":
        del content[len(content) // 2 :]
    else:
        content[4096:6000] = b"x" * 1904
    path.write_bytes(content)
    finding = findings_of(f"sqlite:///{path}", tmp_path)["database"]
    assert finding.state is State.TODO
    assert "study.db" in finding.words
    assert "damaged" in finding.words or "not a database" in finding.words
    assert path.read_bytes() == content


def test_tables_that_are_missing_or_of_another_version_are_named(study):
    ask(study, "ALTER TABLE studyloom_slots RENAME COLUMN token TO mark")
    assert "studyloom_slots has no token" in unwell(study)["tables"].words
    ask(study, "DROP TABLE studyloom_slots")
    ask(study, "DROP TABLE trial_intermediate_values")
    finding = unwell(study)["tables"]
    assert finding.state is State.TODO
    assert "trial_intermediate_values" in finding.words


def test_a_schema_of_another_optuna_is_named_with_the_way_out(study):
    ask(study, "UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    finding = unwell(study)["schema"]
    assert finding.state is State.TODO
    assert "optuna storage upgrade" in finding.words


def test_a_lock_that_a_stranger_keeps_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "BUSY_SECONDS", 0.02)
    connect(f"sqlite:///{tmp_path}/study.db", create=True)
    with contextlib.closing(
        sqlite3.connect(tmp_path / "study.db", isolation_level=None)
    ) as stranger:
        stranger.execute("BEGIN IMMEDIATE")
        findings = unwell(f"sqlite:///{tmp_path}/study.db")
    for name in ("permission", "locking", "commit"):
        assert findings[name].state is State.TODO
        assert "database is locked (another program" in findings[name].words


def test_a_file_system_that_keeps_no_locks_is_found_out(tmp_path, monkeypatch):
    """SQLite without the system's locks simulates a network disk without locks."""
    path = tmp_path / "study.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (x)")

    def without_locks(address):
        file = sqlalchemy.URL.create(
            "sqlite", database=f"file:{path}", query={"vfs": "unix-none", "uri": "true"}
        )
        return sqlalchemy.create_engine(
            file, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool
        )

    assert findings_of(f"sqlite:///{path}")["locking"].state is State.OK
    monkeypatch.setattr(checks, "plain_engine", without_locks)
    assert (
        "two processes get the write lock at once" in unwell(f"sqlite:///{path}")["locking"].words
    )


def test_sqlite_on_a_network_disk_is_refused_with_the_ways_out(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "filesystem_of", lambda path: "nfs4")
    finding = dict(examine(f"sqlite:///{tmp_path}/study.db"))["file system"]
    assert finding.state is State.TODO
    assert "local disk, or use PostgreSQL" in finding.words


def test_a_disk_that_is_nearly_full_slow_commits_and_a_wrong_clock_are_warnings(
    postgres_url, tmp_path, monkeypatch
):
    monkeypatch.setattr(doctor, "SMALL", 10**18)
    monkeypatch.setattr(checks, "SLOW", 0.0)
    clock = SimpleNamespace(time=lambda: time.time() - 3600, perf_counter=time.perf_counter)
    monkeypatch.setattr(checks, "time", clock)
    findings = dict(examine(postgres_url, tmp_path))
    assert "free some" in findings["disk"].words
    assert "report less often" in findings["commit"].words
    assert "3600 s behind the database's" in findings["clock"].words
    assert {findings[name].state for name in ("disk", "commit", "clock")} == {State.WARNING}


def test_a_user_who_may_not_write_is_told_what_to_grant(postgres_url):
    opened = connect(postgres_url, create=True)
    opened.engine.dispose()
    role = f"weak_{os.getpid()}"
    ask(postgres_url, f"CREATE ROLE {role} LOGIN")
    try:
        weak = parse_url(postgres_url).set(username=role).render_as_string(hide_password=False)
        assert "permission denied for table" in unwell(weak)["permission"].words
        ask(postgres_url, f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}")
        assert "GRANT USAGE" in unwell(weak)["permission"].words
        ask(postgres_url, f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}")
        assert {*unwell(weak)} == {"tables"}
        ask(postgres_url, f"ALTER ROLE {role} SET default_transaction_read_only = on")
        assert "read-only transaction" in unwell(weak)["permission"].words
    finally:
        ask(postgres_url, f"DROP OWNED BY {role}")
        ask(postgres_url, f"DROP ROLE {role}")


@pytest.mark.skipif(
    not Path("/sys/kernel").is_dir(), reason="no folder here that refuses even root"
)
def test_a_folder_that_cannot_be_written_is_named():
    finding = writable(Path("/sys/kernel"))
    assert finding.state is State.TODO
    assert "/sys/kernel cannot be written: " in finding.words


def test_a_report_ends_with_2_if_something_is_to_be_done(tmp_path, capsys):
    assert show(f"sqlite:///{tmp_path}/study.db") == 0
    assert show(f"sqlite:///{tmp_path}/study.db", tmp_path) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("warning  database    there is no database")
    assert all(line.split()[0] in {"ok", "warning", "to"} for line in lines)


def test_no_name_of_a_study_can_pretend_to_be_the_next_message(tmp_path, capsys):
    url = f"sqlite:///{tmp_path}/study.db"
    name = "mine\x1b]0;title\x07\nmended"
    stored = create_study(url, name, {"a": 1}, 1)
    fill(stored, create_trial(value=0.5))
    with plain_engine(parse_url(url)).begin() as connection:
        connection.execute(sqlalchemy.text("DELETE FROM studyloom_slots"))
    stored.close()
    assert doctor.repair(url, None, lambda: False) == 2
    printed = capsys.readouterr().out
    assert printed.startswith("mine␛]0;title␇ mended: ")
    assert "\x1b" not in printed
