"""Checkpoints under damage, and under an error at any call of a save."""

import errno
import itertools
import logging
import os
import random
import subprocess
from collections import OrderedDict
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch

from studyloom.processes import host_id
from studyloom.training import checkpoint as module
from studyloom.training.checkpoint import (
    Checkpoint,
    _header,
    copy_state,
    hash_files,
    load_weights,
    save_weights,
)

BOTH = {"trial-1.pt", "trial-1.pt.previous"}
DAMAGED = "is damaged: its content differs from what was saved"


def state(number: int) -> dict:
    """Makes a state that shows whether it is whole."""
    return {"number": number, "weights": torch.arange(3000.0) + number, "more": [[1, None, "x"]]}


def number_of(loaded: dict | None) -> int | None:
    if loaded is None:
        return None
    assert torch.equal(loaded["weights"], torch.arange(3000.0) + loaded["number"])
    return loaded["number"]


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(tmp_path / "checkpoints" / "trial-1.pt", "study, 1, lr=0.1")


@pytest.fixture
def two(checkpoint):
    """A checkpoint with states 1 and 2 in it."""
    checkpoint.save(state(1))
    checkpoint.save(state(2))
    return checkpoint


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def lines(caplog) -> list[str]:
    assert {stored.levelno for stored in caplog.records} <= {logging.WARNING}
    return [stored.getMessage() for stored in caplog.records]


def test_load_returns_the_state_that_was_saved_last(checkpoint, caplog):
    assert checkpoint.load() is None
    for number in range(4):
        checkpoint.save(state(number))
        assert number_of(checkpoint.load()) == number
    checkpoint.path.unlink()  # without hard links a kill between two renames leaves it like this
    assert number_of(checkpoint.load()) == 2
    assert caplog.records == []


def test_every_plain_value_of_a_state_is_read_back(checkpoint):
    for value in (
        *(b"", "ü", True, None, 10**40, float("inf"), 1 + 2j, [], (1,), {1, 2}, {b"": b""}),
        *(OrderedDict(a=1), torch.Size([]), torch.float32, torch.device("cuda:1")),
    ):
        checkpoint.save({"value": copy_state(value, "it")})
        read = checkpoint.load()["value"]
        assert (type(read), read) == (type(value), value)


def test_remove_leaves_the_files_of_other_checkpoints(tmp_path):
    neighbours = {"trial-17.pt", "trial-17.pt.host.1.new.tmp", "trial-1.pt2"}
    for name in ("trial-1.pt", "trial-*.pt"):
        for neighbour in neighbours:
            (tmp_path / neighbour).touch()
        checkpoint = Checkpoint(tmp_path / name, "me")
        checkpoint.save(state(1))
        checkpoint.save(state(2))
        (tmp_path / f"{name}.this.5.new.tmp").touch()
        checkpoint.remove()
        assert names_in(tmp_path) == neighbours
        checkpoint.remove()


def test_a_damaged_file_is_logged_and_the_previous_state_is_loaded(two, caplog):
    content, previous = two.path.read_bytes(), two.previous.read_bytes()
    line = f"checkpoint {two.path} {DAMAGED}; resuming from the"
    for damaged in (b"", content[:-1], content.replace(b"checkpoint 1", b"checkpoint 2")):
        two.path.write_bytes(damaged)
        assert number_of(two.load()) == 1
        two.previous.unlink()
        assert two.load() is None
        assert lines(caplog) == [f"{line} one before", f"{line} start"]
        caplog.clear()
        two.previous.write_bytes(previous)
    # One flipped bit anywhere is damage too.
    header = content.index(b"\n") + 1
    sample = random.Random(0).sample(range(header, len(content)), 20)
    positions = [*range(0, header, 5), *sample, len(content) - 1]
    for position, bit in zip(positions, itertools.cycle(range(8))):
        flipped = bytearray(content)
        flipped[position] ^= 1 << bit
        two.path.write_bytes(flipped)
        assert number_of(two.load()) == 1, position
    assert len(lines(caplog)) == len(positions)
    caplog.clear()
    two.path.write_bytes(content)
    two.previous.write_bytes(b"")
    assert number_of(two.load()) == 2, "the one before is not needed"
    assert caplog.records == []


def test_a_state_with_another_identity_is_not_loaded(two, caplog):
    other = Checkpoint(two.path, "study, 1, lr=0.2")
    assert (other.is_of_another_training(), two.is_of_another_training()) == (True, False)
    assert other.load() is None
    wrong = "belongs to another training, not to study, 1, lr=0.2"
    assert lines(caplog) == [
        f"checkpoint {two.path} {wrong}; resuming from the one before",
        f"checkpoint {two.previous} {wrong}; resuming from the start",
    ]
    other.save(state(9))
    assert number_of(other.load()) == 9
    assert number_of(two.load()) == 2, "the one before is still the first one's"


def test_a_state_of_another_study_is_not_loaded(two):
    one, other = (replace(two, study=study) for study in ("one", "other"))
    assert number_of(one.load()) == 2, "an earlier version saved it"
    one.save(state(3))
    assert (other.is_of_another_training(), one.is_of_another_training()) == (True, False)
    assert number_of(other.load()) == 2
    assert number_of(one.load()) == 3


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def test_a_malicious_file_with_a_valid_digest_is_not_executed(two, caplog, tmp_path):
    canary = tmp_path / "canary"
    for zipped in (True, False):
        file = BytesIO()
        content = {"identity": two.identity, "state": {"number": Evil(canary)}}
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        payload = file.getvalue()
        two.path.write_bytes(_header(payload) + b"\n" + payload)
        assert number_of(two.load()) == 1
        (tmp_path / "weights.pt").write_bytes(payload)
        with pytest.raises(ValueError, match=r"weights\.pt: cannot be read as weights"):
            load_weights(tmp_path / "weights.pt")
        (line,) = lines(caplog)
        assert "cannot be read as tensors and plain values" in line
        assert "weights_only" not in line
        assert not canary.exists()
        caplog.clear()


def test_load_weights_reads_weights_and_refuses_other_content(tmp_path):
    path = tmp_path / "a" / "weights.pt"
    save_weights(path, {"0.weight": torch.full((2, 3), 5.0)})
    assert load_weights(path)["0.weight"].tolist() == [[5.0] * 3] * 2
    before = hash_files(path.parent, durable=True)
    torch.save([1], path)
    assert hash_files(path.parent) != before
    with pytest.raises(ValueError, match="must hold weights, a dict of tensors"):
        load_weights(path)


def test_an_unsafe_pytorch_does_not_read_untrusted_weights(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    save_weights(path, {"0.weight": torch.zeros(3)})
    monkeypatch.setattr(module, "IS_LOADING_SAFE", False)
    assert load_weights(path)
    with pytest.raises(ValueError, match=r"weights\.pt: .* pip install 'torch>=2\.10'"):
        load_weights(path, untrusted=True)


# The system calls of a save that can fail: the name, and which call of that name.
CALLS = [("open", 0), ("fsync", 0), ("link", 0), ("replace", 0), ("replace", 1), ("fsync", 1)]


def failing_at(monkeypatch, name: str, which: int, error: BaseException) -> None:
    owner = module if name == "open" else os
    real, count = open if name == "open" else getattr(os, name), itertools.count()

    def fail(*args):
        if next(count) == which:
            raise error
        return real(*args)

    monkeypatch.setattr(owner, name, fail, raising=False)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()], ids=["full", "^C"]
)
def test_an_error_at_any_call_leaves_a_whole_state_and_no_temporary_file(two, monkeypatch, error):
    full = isinstance(error, OSError)
    for call, damaged in itertools.product(CALLS, (False, True)):
        two.remove()
        two.save(state(1))
        two.save(state(2))
        if damaged:
            two.path.write_bytes(b"nonsense")
        with monkeypatch.context() as patch:
            failing_at(patch, *call, error)
            if full and call == ("link", 0):
                two.save(state(3))  # a file system without hard links
            else:
                with pytest.raises(type(error)) as caught:
                    two.save(state(3))
                assert not full or caught.value.filename == str(two.path)
        assert number_of(two.load()) in ({1, 3} if damaged else {2, 3})
        assert names_in(two.path.parent) == BOTH


def dead_process() -> int:
    """Returns the number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        return process.pid


def test_a_save_removes_temporary_files_of_dead_processes_only(two):
    def temporary(host, number, kind="new"):
        path = two.path.with_name(f"trial-1.pt.{host}.{number}.{kind}.tmp")
        path.write_bytes(two.previous.read_bytes())
        return path

    host = host_id()
    # Of a process with our own number, an earlier one may have had it and died.
    numbers = (dead_process(), os.getpid())
    dead = [temporary(host, number, kind) for number in numbers for kind in ("new", "old")]
    places = [(host, os.getppid()), ("elsewhere", dead_process()), (host, "x")]
    others = [temporary(*place) for place in places]
    two.save(state(3))
    assert not [path for path in dead if path.exists()]
    assert [path for path in others if path.exists()] == others
    two.path.unlink()
    assert number_of(two.load()) == 2
