"""The file of events: whole lines, nothing twice, and never a study that waits for a reader."""

import errno
import json
import logging
import os

import pytest
from studyloom.commands.events import EventFile

from studyloom.commands import events
from studyloom.errors import ConfigError
from studyloom.study.opening import create_study
from studyloom.views.progress import JobReader


@pytest.fixture
def stored(sqlite_url):
    return create_study(sqlite_url, "toy", {"asks": "nothing"}, trials=2)


def tell(stored, value=0.5):
    trial = stored.optuna.ask()
    claim = stored.ledger.claim("host:1", 2, 60, lambda *_: trial._trial_id)
    trial.set_user_attr("slot", claim.slot)
    trial.suggest_float("lr", 0.0, 1.0)
    stored.optuna.tell(trial, value)
    stored.ledger.finish(claim)


def kinds(text):
    return [json.loads(line)["event"] for line in text.splitlines()]


def written(path, stored, code=None):
    file = EventFile(path)
    file.attach(stored)
    file(JobReader(stored).read())
    if code is not None:
        file.finish(code, None)
    return kinds(path.read_text())


def test_a_file_that_is_there_is_continued_and_tells_nothing_twice(tmp_path, stored):
    path = tmp_path / "events.jsonl"
    tell(stored)
    assert written(path, stored, 130) == ["began", "ended", "best", "exit"]
    tell(stored, 0.4)
    assert written(path, stored, 0)[4:] == ["began", "ended", "exit"]


def test_half_a_line_of_a_killed_command_stays_on_a_line_of_its_own(tmp_path, stored):
    path = tmp_path / "events.jsonl"
    tell(stored)
    path.write_text('{"event": "beg')
    EventFile(path).attach(stored)
    file = EventFile(path)
    file.attach(stored)
    file(JobReader(stored).read())
    first, *lines = path.read_text().splitlines()
    assert first == '{"event": "beg'
    assert kinds("\n".join(lines)) == ["began", "ended", "best"]


@pytest.mark.parametrize("place", ["missing/events.jsonl", "."])
def test_a_file_that_cannot_be_written_is_a_mistake_before_the_study(tmp_path, place):
    with pytest.raises(ConfigError, match=r"--events .*: cannot be written: .*; name another"):
        EventFile(tmp_path / place)


def test_a_pipe_that_nobody_reads_is_a_mistake(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="nobody reads the pipe"):
        EventFile(tmp_path / "pipe")


def test_a_slow_reader_gets_all_of_it_and_nobody_waits(tmp_path, stored):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    file = EventFile(path)
    file.attach(stored)
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


def test_a_reader_that_takes_nothing_ends_the_events_and_not_the_study(
    tmp_path, stored, monkeypatch, caplog
):
    monkeypatch.setattr(events, "PENDING", 2**10)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    file = EventFile(path)
    file.attach(stored)
    for _ in range(100):
        file._write(b"x" * 2**10)
    assert [record.getMessage() for record in caplog.records] == [
        f"--events {path}: its reader takes nothing; no more events are written"
    ]
    file.finish(0, None)
    os.close(reader)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EPIPE])
def test_an_error_of_writing_is_a_line_in_the_log(tmp_path, stored, monkeypatch, caplog, code):
    file = EventFile(tmp_path / "events.jsonl")
    file.attach(stored)

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(events.os, "write", fail)
    tell(stored)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            file(JobReader(stored).read())
    file.finish(0, None)
    assert len(caplog.records) == 1
    assert os.strerror(code) in caplog.text
