"""One copy of a large training part for all workers of a command."""

import multiprocessing
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from studyloom.data import Loaded, Split, Tokens, training_data
from studyloom.data.training_data import load_shared, share, shared_variables
from studyloom.environment import SHARED
from studyloom.processes import LINUX

pytestmark = pytest.mark.skipif(not LINUX, reason="a way of Linux")
COUNT = 400
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch):
    monkeypatch.setattr(training_data, "LARGE", 1)
    monkeypatch.delenv(SHARED.name, raising=False)
    yield
    load_shared(lambda: None, "")  # lets go of what a test has shared


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
    """A worker: takes the launcher's copy, says what it is, and sets its own to 0."""
    os.environ |= variables
    split = load_shared(refuse, "key")
    line.send((inode(split.inputs), int(split.inputs.sum()), SHARED.get() is not None))
    split.inputs.zero_()
    line.recv()
    line.send(int(split.inputs.sum()))


@contextmanager
def worker(variables):
    """Runs `receive` in a process that is no fork of this one; gives its line."""
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=receive, args=(theirs, variables))
    process.start()
    theirs.close()
    yield ours
    ours.close()
    process.join()


@pytest.mark.chaos  # two processes that import PyTorch
def test_workers_have_one_copy_in_which_nobody_changes_anything_for_others():
    split = make_split()
    ours = share(split, "key")
    for name in ("digest", "names", "mean", "outputs"):
        assert getattr(ours, name) == getattr(split, name)
    assert ours.tokens.names == ["a"]
    assert torch.equal(ours.references["rule"], split.references["rule"])
    assert share(ours, "key") is ours
    total = int(split.inputs.sum())
    with worker(shared_variables()) as first, worker(shared_variables()) as second:
        lines = (first, second)
        assert [line.recv() for line in lines] == [(inode(ours.inputs), total, False)] * 2
        ours.inputs[0] = 7
        for line in lines:
            line.send("go on")
        assert [line.recv() for line in lines] == [0, 0]
    assert torch.equal(ours.inputs[1:], split.inputs[1:])  # although they have set theirs to 0


def test_a_worker_that_runs_another_study_or_whose_launcher_has_ended_loads_its_own_data():
    share(make_split(), "key")
    os.environ |= shared_variables()
    assert load_shared(lambda: "loaded", "another key") == "loaded"
    assert shared_variables() == {}
    assert load_shared(lambda: "loaded", "key") == "loaded"  # the variable is gone
    os.environ[SHARED.name] = "key:/proc/self/fd/1234567"
    assert load_shared(lambda: "loaded", "key") == "loaded"


def test_a_memory_map_stays_one_and_is_not_copied(tmp_path):
    np.save(tmp_path / "x.npy", make_split().inputs.numpy())
    targets = torch.arange(COUNT) % 2
    source = Loaded(lambda part: (np.load(tmp_path / "x.npy", mmap_mode="r"), targets), 100)
    split = source.train()
    assert int(inode(split.inputs)[1]) == (tmp_path / "x.npy").stat().st_ino
    assert share(split, "key") is split
    assert shared_variables() == {}


def test_what_cannot_be_shared_is_left_as_it_is(monkeypatch, caplog):
    class Own(Split):
        pass

    own = Own(torch.rand(4, 2), torch.arange(4), 4, "own")
    assert share(own, "key") is own
    split = make_split()
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert share(split, "key") is split
    assert "is not shared between workers; each loads it: " in caplog.text
    monkeypatch.undo()
    assert share(split, "key") is split  # below 64 MB
    assert shared_variables() == {}
