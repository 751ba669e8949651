"""Events of a command: whole lines, which delay nothing; and an exit code for cron."""

import errno
import json
import os

import pytest
from commands import QUICK, study
from snapshots import snapshot_of
from toys import begin

from studyloom.commands import outputs
from studyloom.commands.looking import status_exit_code
from studyloom.commands.outputs import EventFile
from studyloom.errors import ConfigError, FileError
from studyloom.storage.opening import create_study
from studyloom.views.progress import Progress, StageProgress
from studyloom.views.progress_reader import ProgressReader
from studyloom.views.snapshot import WorkerStatus


@pytest.fixture
def stored(sqlite_url):
    return create_study(sqlite_url, "toy", {"defines": "nothing"}, trials=2)


def run_trial(stored, value=0.5):
    trial = begin(stored)
    claim = stored.ledger.claim("host:1", 2, 60, lambda *_: trial._trial_id)
    trial.suggest_float("lr", 0.0, 1.0)
    stored.optuna.tell(trial, value)
    stored.ledger.finish(claim)


def kinds(text):
    return [json.loads(line)["event"] for line in text.splitlines()]


def test_a_file_of_events_is_continued_without_repeats(tmp_path, stored):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "beg')  # a killed command has left half a line
    for value, code in ((0.5, 130), (0.4, 0)):
        run_trial(stored, value)
        file = EventFile(path)
        file.attach(stored)
        file(ProgressReader(stored).read())
        file.finish(code, None)
    half, *lines = path.read_text().splitlines()
    assert half == '{"event": "beg'
    expected = ["began", "ended", "best", "exit", "began", "ended", "exit"]
    assert kinds("\n".join(lines)) == expected


def test_a_file_that_cannot_be_written_is_an_error_before_the_study(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place, reason in (("missing/events", "No such"), (".", "Is a"), ("pipe", "no program")):
        with pytest.raises(ConfigError, match=rf"cannot be written: {reason}.*; name another"):
            EventFile(tmp_path / place)


def test_events_are_not_appended_to_a_file_of_something_else(tmp_path):
    path = tmp_path / "study.db"
    path.write_bytes(b"SQLite format 3")
    with pytest.raises(FileError, match=r"another file is there.*name a new file"):
        EventFile(path)
    assert path.read_bytes() == b"SQLite format 3"


def test_a_program_gets_its_document_if_events_cannot_be_written(tmp_path):
    done = study(*QUICK, f"run_dir={tmp_path}", "--json", "--events", str(tmp_path / "none" / "x"))
    document = json.loads(done.stdout)
    assert (done.returncode, document["exit_code"]) == (2, 2)
    assert document["reason"].startswith("--events ")


def test_a_slow_reader_gets_all_events_and_delays_nothing(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    file = EventFile(path)
    line = b"x" * 1000 + b"\n"
    for _ in range(200):  # three times what a pipe holds
        file._write(line)
    read = b""
    while len(read) < 200 * len(line):
        read += os.read(reader, 2**20)
        file._write(b"")
    assert read == line * 200
    file.finish(0, None)
    assert kinds(os.read(reader, 2**16).decode()) == ["exit"]
    os.close(reader)


def test_an_error_in_writing_events_is_logged_once(tmp_path, stored, monkeypatch, caplog):
    file = EventFile(tmp_path / "events.jsonl")
    file.attach(stored)

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(outputs.os, "write", fail)
    run_trial(stored)
    for _ in range(3):
        file(ProgressReader(stored).read())
    file.finish(0, None)
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text


def progress_of(workers=(), title="search", **more):
    snapshot = snapshot_of(workers=workers)
    return Progress(snapshot, (StageProgress("search", 5, 3, snapshot),), title, **more)


def test_the_exit_code_of_status_says_if_a_study_needs_attention(stored):
    alive = WorkerStatus("host:1", lease_seconds=9.0)
    dead = WorkerStatus("host:1", lease_seconds=-9.0)
    for state, code in (
        ({"workers": [alive]}, 0),
        ({"workers": [dead]}, 3),
        ({}, 3),
        ({"control": "pause"}, 4),
        ({"halted": "ValueError"}, 1),
        ({"exit_code": 1}, 1),
        ({"exit_code": 0}, 0),
        ({"title": "done"}, 0),
    ):
        assert status_exit_code(progress_of(**state), stored) == code, state
    with stored.ledger.testing():
        assert status_exit_code(progress_of(title="test"), stored) == 0
    assert status_exit_code(progress_of(title="test"), stored) == 3
