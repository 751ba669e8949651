"""The heartbeat of a command."""

import json
import os
import time

import jsonschema
import pytest
from snapshots import snapshot_of
from studyloom.commands.heartbeat import Heartbeat, is_beating
from studyloom.commands.progress import check

from studyloom.commands import heartbeat
from studyloom.commands.documents import json_schema
from studyloom.views.progress import Progress, StageProgress
from studyloom.views.snapshot import WorkerStatus


def progress_of(workers=(), title="search", **more):
    snapshot = snapshot_of(workers=workers)
    return Progress(snapshot, (StageProgress("search", 5, 3, snapshot),), title, **more)


def test_it_is_written_at_once_then_every_ten_seconds_and_at_the_end(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock[0])
    beat = Heartbeat(tmp_path)
    path, times = tmp_path / "heartbeat.json", []
    for second in range(25):
        clock[0] = float(second)
        beat(progress_of())
        if path.exists():
            times.append(second)
            path.unlink()
    assert times == [0, 10, 20]
    beat(progress_of(title="test"))  # another stage is told at once
    document = json.loads(path.read_text())
    jsonschema.validate(document, json_schema("heartbeat"))
    assert (document["stage"], document["exit_code"]) == ("test", None)
    beat.finish(0)
    assert json.loads(path.read_text())["exit_code"] == 0


def test_a_folder_that_cannot_be_written_is_told_once_and_costs_nothing(tmp_path, caplog):
    beat = Heartbeat(tmp_path / "missing")
    beat(progress_of())
    beat(progress_of(title="test"))
    beat.finish(0)
    assert len(caplog.records) == 1


def test_one_of_an_hour_ago_is_no_sign_of_life(tmp_path):
    assert not is_beating(tmp_path)
    Heartbeat(tmp_path)(progress_of())
    assert is_beating(tmp_path)
    hour_ago = time.time() - 3600
    os.utime(tmp_path / "heartbeat.json", (hour_ago, hour_ago))
    assert not is_beating(tmp_path)


@pytest.mark.parametrize(
    ("progress", "code"),
    [
        (progress_of([WorkerStatus("host:1", left=9.0)]), 0),
        (progress_of([WorkerStatus("host:1", left=-9.0)]), 3),
        (progress_of(), 3),
        (progress_of(control="pause"), 4),
        (progress_of(control="stop"), 4),
        (progress_of(halted="ValueError"), 1),
        (progress_of(exit_code=1), 1),
        (progress_of(exit_code=0), 0),
        (progress_of(title="done"), 0),
    ],
)
def test_for_cron_an_exit_code_says_whether_somebody_has_to_look(progress, code, tmp_path):
    assert check(progress, tmp_path) == code


def test_while_the_answer_is_made_the_heartbeat_says_that_somebody_works(tmp_path):
    assert check(progress_of(title="test"), tmp_path) == 3
    Heartbeat(tmp_path)(progress_of(title="test"))
    assert check(progress_of(title="test"), tmp_path) == 0
