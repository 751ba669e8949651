import contextlib
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy
from commands import CANARY
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from studyloom.errors import StorageError
from studyloom.storage.attributes import DEFINITION
from studyloom.storage.connections import plain_engine
from studyloom.storage.database import connect
from studyloom.storage.slot_table import create_table
from studyloom.storage.urls import parse_url
from studyloom.views import doctor
from studyloom.views.doctor import check_writable, examine, show


@pytest.fixture
def study(sqlite_url):
    """A database with a study and its ledger."""
    opened = connect(sqlite_url, create=True)
    study_id = opened.create_new_study([StudyDirection.MAXIMIZE], "s")
    create_table(opened)
    opened.create_new_trial(study_id, create_trial(state=TrialState.RUNNING))
    opened.remove_session()
    opened.engine.dispose()
    return sqlite_url


def findings_of(url, run_dir=None):
    """Findings by name."""
    findings = dict(examine(url, run_dir))
    assert not any(CANARY in finding.message for finding in findings.values())
    assert not any("\n" in finding.message for finding in findings.values())
    return findings


def problems_of(url, run_dir=None):
    """Findings that are not ok, except the space on the disk on which the tests run."""
    return {
        name: finding
        for name, finding in findings_of(url, run_dir).items()
        if finding.state != doctor.OK and " GB free" not in finding.message
    }


def contents_of(url):
    """The tables and rows of a database."""
    with plain_engine(parse_url(url)).connect() as connection:
        names = sorted(sqlalchemy.inspect(connection).get_table_names())
        rows = {name: connection.exec_driver_sql(f"SELECT * FROM {name}") for name in names}
        return {name: sorted(map(str, cells)) for name, cells in rows.items()}


def test_a_healthy_study_is_ok_and_remains_unchanged(study, tmp_path):
    before = contents_of(study)
    assert problems_of(study, tmp_path) == {}
    assert contents_of(study) == before
    assert all(path.name.startswith("study.db") for path in tmp_path.iterdir())
    findings = findings_of(study, tmp_path)
    assert {"database", "ledger", "run_dir", "gpus", "workers", "versions"} < {*findings}
    assert "launcher.workers=auto starts" in findings["workers"].message


def test_the_database_is_opened_once(study, monkeypatch):
    urls = []
    open_ledgers = doctor.open_ledgers

    def open_and_count(url, deadline):
        urls.append(url)
        return open_ledgers(url, deadline)

    monkeypatch.setattr(doctor, "open_ledgers", open_and_count)
    assert findings_of(study)["ledger"].state == doctor.OK
    assert urls == [study]


def test_a_missing_database_is_created_by_a_run_or_to_be_restored(tmp_path, capsys):
    assert problems_of(f"sqlite:///{tmp_path}/new/study.db")["database"].state == doctor.WARNING
    assert list(tmp_path.iterdir()) == []
    assert "to do" not in [check["state"] for check in show(f"sqlite:///{tmp_path}/study.db")]
    assert "the first run of a study makes it" in capsys.readouterr().out
    assert "to do" in [check["state"] for check in show(f"sqlite:///{tmp_path}/study.db", tmp_path)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("to do    database    there is no database")
    assert "put it back" in lines[0]
    assert all(line.split()[0] in {"ok", "warning", "to"} for line in lines)


def test_an_unreachable_server_is_reported_in_one_line():
    findings = problems_of(f"postgresql://user:{CANARY}@127.0.0.1:1/db")
    assert {*findings} == {"database"}
    assert "user:***@127.0.0.1:1/db: " in findings["database"].message
    assert "refused" in findings["database"].message


def test_a_damaged_file_is_reported_in_one_line_and_remains_unchanged(tmp_path):
    path = tmp_path / "study.db"
    connect(f"sqlite:///{path}", create=True).engine.dispose()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    intact = path.read_bytes()
    for content in (intact[: len(intact) // 2], b"letter to grandmother\n" * 400):
        path.write_bytes(content)
        finding = findings_of(f"sqlite:///{path}", tmp_path)["database"]
        assert finding.state == doctor.TODO
        assert "damaged" in finding.message or "not a database" in finding.message
        assert path.read_bytes() == content


def test_a_study_of_another_format_is_reported_and_not_repaired(study):
    connect(study).set_study_user_attr(1, DEFINITION, {})
    finding = findings_of(study)["database"]
    assert finding.state == doctor.TODO
    assert "'s' is stored in another format" in finding.message
    with pytest.raises(StorageError, match="'s' is stored in another format"):
        doctor.repair(study, "s", lambda: True)


def test_network_disks_read_only_folders_and_full_disks_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "SMALL", 10**18)
    finding = doctor.check_disk(tmp_path, wal=False)
    assert (finding.state, "free some" in finding.message) == (doctor.WARNING, True)
    monkeypatch.setattr(doctor, "filesystem_of", lambda path: "nfs4")
    finding = dict(examine(f"sqlite:///{tmp_path}/study.db"))["file system"]
    assert finding.state == doctor.TODO
    assert "local disk, or use PostgreSQL" in finding.message
    read_only = Path("/sys/kernel")  # also for root
    if read_only.is_dir():
        finding = check_writable(read_only)
        assert finding.state == doctor.TODO
        assert "/sys/kernel cannot be written: " in finding.message
