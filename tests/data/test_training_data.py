"""One copy of a large training set for all workers of a command."""

import multiprocessing
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from studyloom.data import Loaded, Split, Tokens, training_data
from studyloom.data.training_data import load_shared, share_split, shared_variables
from studyloom.environment import SHARED
from studyloom.processes import LINUX

pytestmark = pytest.mark.skipif(not LINUX, reason="a way of Linux")
COUNT = 400
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch):
    monkeypatch.setattr(training_data, "FEWEST_SHARED_BYTES", 1)
    monkeypatch.delenv(SHARED.name, raising=False)
    yield
    load_shared(lambda: None, "")  # closes the file that a test has shared


def make_split(**changes):
    inputs = torch.randint(0, 256, (COUNT, 64), dtype=torch.uint8)
    facts = {"digest": "d", "names": ("no", "yes"), "mean": 0.5, "tokens": Tokens(["a"])}
    references = {"rule": torch.rand(COUNT, 2)}
    return Split(inputs, torch.arange(COUNT) % 2, 2, **facts | {"references": references} | changes)


def refuse():
    raise AssertionError("it loads again")


def inode(tensor):
    """The device and inode of the memory of a tensor, as the system has them."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, device, number, *_ = line.split()
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= tensor.data_ptr() < high:
            return device, number
    return None


def receive(line, variables):
    """Maps the launcher's copy as a worker, reports where it lies, and sets its own to 0."""
    os.environ |= variables
    split = load_shared(refuse, "key")
    line.send((inode(split.inputs), int(split.inputs.sum()), SHARED.get() is not None))
    split.inputs.zero_()
    line.recv()
    line.send(int(split.inputs.sum()))


@contextmanager
def worker(variables):
    """Runs `receive` in a process that is not a fork of this one; yields its line."""
    line, workers_end = SPAWN.Pipe()
    process = SPAWN.Process(target=receive, args=(workers_end, variables))
    process.start()
    workers_end.close()
    yield line
    line.close()
    process.join()


@pytest.mark.chaos  # two processes that import PyTorch
def test_workers_share_one_copy_and_never_see_a_change_of_another():
    split = make_split()
    mapped = share_split(split, "key")
    for name in ("digest", "names", "mean", "outputs"):
        assert getattr(mapped, name) == getattr(split, name)
    assert mapped.tokens.names == ["a"]
    assert torch.equal(mapped.references["rule"], split.references["rule"])
    assert share_split(mapped, "key") is mapped
    total = int(split.inputs.sum())
    with worker(shared_variables()) as first, worker(shared_variables()) as second:
        lines = (first, second)
        assert [line.recv() for line in lines] == [(inode(mapped.inputs), total, False)] * 2
        mapped.inputs[0] = 7
        for line in lines:
            line.send("go on")
        assert [line.recv() for line in lines] == [0, 0]
    assert torch.equal(mapped.inputs[1:], split.inputs[1:])  # although they have set theirs to 0


def test_a_worker_of_another_study_or_without_launcher_loads_its_data():
    share_split(make_split(), "key")
    os.environ |= shared_variables()
    assert load_shared(lambda: "loaded", "another key") == "loaded"
    assert shared_variables() == {}
    assert load_shared(lambda: "loaded", "key") == "loaded"  # the variable is gone
    os.environ[SHARED.name] = "key:/proc/self/fd/1234567"
    assert load_shared(lambda: "loaded", "key") == "loaded"


def test_a_memory_map_is_not_copied(tmp_path):
    np.save(tmp_path / "x.npy", make_split().inputs.numpy())
    targets = torch.arange(COUNT) % 2
    source = Loaded(lambda part: (np.load(tmp_path / "x.npy", mmap_mode="r"), targets), 100)
    split = source.train()
    assert int(inode(split.inputs)[1]) == (tmp_path / "x.npy").stat().st_ino
    assert share_split(split, "key") is split
    assert shared_variables() == {}


def test_data_that_cannot_be_shared_stays_unchanged(monkeypatch, caplog):
    class Own(Split):
        pass

    own = Own(torch.rand(4, 2), torch.arange(4), 4, "own")
    assert share_split(own, "key") is own
    split = make_split()
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert share_split(split, "key") is split
    assert "is not shared between workers; each loads it: " in caplog.text
    monkeypatch.undo()
    assert share_split(split, "key") is split  # below 64 MB
    assert shared_variables() == {}
