"""The offline files of W&B hold what it was told."""

import struct
import subprocess
import sys
import time
from collections import Counter

import pytest
from tracked import in_wandb, needs

from studyloom.extras.trackers import Answer, Point, TrackedStudy, TrackedTrial, WandB
from studyloom.extras.trackers.wandb import BLOCK, SECOND, read_records

pytestmark = [needs("wandb"), pytest.mark.filterwarnings("ignore")]


def points(*epochs):
    return [Point(epoch, "accuracy", epoch / 8, 1e9) for epoch in epochs]


@pytest.mark.chaos
def test_a_second_worker_goes_on_with_a_run_and_files_have_each_number_once(tmp_path):
    study = TrackedStudy("s", "ab" * 16, {"accuracy": "maximize"}, tmp_path)
    one = TrackedTrial(study, 0, {"optimizer.lr": 0.5, "model": "mlp"}, {}, 1e9, 1e9 + 9)
    first, second = (WandB(str(tmp_path), "p") for _ in range(2))
    first.begin(one)
    first.report_all(one, points(1, 2))
    first._finish(first._runs["ab" * 16 + "-0"])
    known = second.known(one)
    assert known.points == {(1, "accuracy"), (2, "accuracy")}
    second.begin(one)
    second.report_all(one, points(3))
    second.end(one, "pruned", {"accuracy": 0.375})
    assert second.ended(study) == {0}
    seen = in_wandb(tmp_path)[0]
    assert seen.params == {"optimizer.lr": "0.5", "model": "mlp"}
    assert seen.curves == Counter(("accuracy", epoch, epoch / 8) for epoch in (1, 2, 3))
    assert (seen.state, seen.finals) == ("pruned", {"accuracy": 0.375})
    file = tmp_path / "winner.yaml"
    file.write_text("a: 1\n")
    answer = Answer(study, 0, {"optimizer.lr": 0.5}, {"test.mean": 0.9}, {file.name: file}, "d1")
    assert second.answered(study) is None
    second.study_end(answer)
    assert second.answered(study) == "d1"
    (log,) = tmp_path.glob("wandb/offline-run-*-study/run-*-study.wandb")
    kinds = Counter(record.WhichOneof("record_type") for record in read_records(log))
    assert kinds["artifact"] == 1


@pytest.mark.chaos
def test_a_run_that_goes_on_in_the_same_second_writes_over_nothing(tmp_path):
    """W&B names folders by the second, and a killed run may go on at once."""
    study = TrackedStudy("s", "ab" * 16, {"accuracy": "maximize"}, tmp_path)
    one, run_id = TrackedTrial(study, 0, {}, {}, 1e9, 1e9 + 9), f"{'ab' * 16}-0"
    earlier = []
    for ahead in range(4):
        second = time.strftime(SECOND, time.localtime(time.time() + ahead))
        path = tmp_path / "wandb" / f"offline-run-{second}-{run_id}" / f"run-{run_id}.wandb"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"earlier")
        earlier.append(path)
    tracker = WandB(str(tmp_path), "p")
    tracker.begin(one)
    tracker.end(one, "pruned", {})
    assert [path.read_bytes() for path in earlier] == [b"earlier"] * 4


KILLED = """
import os, signal, sys
from pathlib import Path
from studyloom.processes import descendants
from studyloom.extras.trackers import Point, TrackedStudy, TrackedTrial, WandB

folder = Path(sys.argv[1])
study = TrackedStudy("s", "ab" * 16, {"accuracy": "maximize"}, folder)
trial = TrackedTrial(study, 0, {}, {}, 1e9, 1e9 + 9)
tracker = WandB(str(folder), "p")
tracker.begin(trial)
tracker.report_all(trial, [Point(1, "accuracy", 0.125, 1e9)])
for pid in descendants(os.getpid()):
    os.kill(pid, signal.SIGKILL)
for attempt in range(int(sys.argv[2])):
    try:
        known = tracker.known(trial)
        tracker.begin(trial)
        wanted = [n for n in (1, 2) if (n, "accuracy") not in known.points]
        tracker.report_all(trial, [Point(n, "accuracy", n / 8, 1e9) for n in wanted])
        tracker.end(trial, "complete", {"accuracy": 0.25})
        break
    except Exception as error:
        print("again:", type(error).__name__)
else:
    raise SystemExit(3)
"""


@pytest.mark.chaos
def test_a_run_goes_on_after_the_process_of_wandb_was_killed_and_nothing_is_printed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), "9"], capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    seen = in_wandb(tmp_path)[0]
    assert seen.curves == Counter({("accuracy", 1, 0.125): 1, ("accuracy", 2, 0.25): 1})
    assert seen.state == "complete"


@pytest.mark.chaos
def test_nothing_is_printed_by_who_ends_after_the_process_of_wandb(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path), "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")


def test_records_are_read_over_the_end_of_a_block_and_half_a_one_is_left_out(tmp_path):
    from wandb.proto.wandb_internal_pb2 import Record

    records = [Record(num=number, uuid="x" * (number * 4000)) for number in range(1, 14)]
    content = bytearray(b":W&B\0\0\0")
    for record in records:  # as the format says: cut at the end of each block of 32 KiB
        left, kind = record.SerializeToString(), 0
        while left or not kind:
            room = BLOCK - len(content) % BLOCK
            if room < 7:
                content += bytes(room)
                continue
            part, left = left[: room - 7], left[room - 7 :]
            kind = (1 if not left else 2) if not kind else (4 if not left else 3)
            content += struct.pack("<IHB", 0, len(part), kind) + part
    path = tmp_path / "run.wandb"
    path.write_bytes(content)
    assert [record.num for record in read_records(path)] == [*range(1, 14)]
    path.write_bytes(content[:-3])
    assert [record.num for record in read_records(path)] == [*range(1, 13)]
