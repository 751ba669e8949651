"""One copy of the training part for all processes of a host."""

import fcntl
import mmap
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import FORKS

from studyloom.data import shared
from studyloom.data.functions import Loaded
from studyloom.data.split import Split

pytestmark = pytest.mark.skipif(not shared.SEALS, reason="Linux only")
COUNT = 400


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch):
    monkeypatch.setattr(shared, "LARGE", 1)
    monkeypatch.delenv(shared.VARIABLE, raising=False)
    yield
    shared.load(lambda: None, "")  # lets go of what a test has shared


def make_split(seed=0, **changes):
    inputs = torch.randint(
        0, 256, (COUNT, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    facts = {"digest": f"{os.getpid():x}-{seed}", "names": ("no", "yes"), "mean": 0.5}
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
    split = shared.load(refuse, "key")
    line.send((inode(split.inputs), int(split.inputs.sum()), shared.VARIABLE in os.environ))
    split.inputs.zero_()
    line.recv()
    line.send(int(split.inputs.sum()))


def offer(line, digest):
    """Another command, which shares a part."""
    shared.LARGE = 1
    split = shared.share(make_split(digest=digest, references={}), "their key")
    line.send(inode(split.inputs))
    line.recv()


@contextmanager
def other(work, *arguments):
    """Runs a function in a process that is no fork of this one; gives the process and its line."""
    ours, theirs = FORKS.Pipe()
    process = FORKS.Process(target=work, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        ours.close()
        process.join()


def test_workers_have_one_copy_in_which_nobody_changes_anything_for_others():
    split = make_split()
    ours = shared.share(split, "key")
    assert shared._equal(ours, split)
    assert type(ours.names) is tuple
    total = int(split.inputs.sum())
    variables = shared.variables()
    with other(receive, variables) as (_, first), other(receive, variables) as (_, second):
        lines = (first, second)
        assert [line.recv() for line in lines] == [(inode(ours.inputs), total, False)] * 2
        ours.inputs[0] = 7
        for line in lines:
            line.send("go on")
        assert [line.recv() for line in lines] == [0, 0]
    assert torch.equal(ours.inputs[1:], split.inputs[1:])  # although they have set theirs to 0
    descriptor = int(shared.variables()[shared.VARIABLE].rpartition("/")[2])
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        mmap.mmap(descriptor, 0)


def test_a_memory_map_stays_one_and_is_not_loaded_again(tmp_path):
    np.save(tmp_path / "x.npy", make_split().inputs.numpy())
    targets = torch.arange(COUNT) % 2
    source = Loaded(lambda part: (np.load(tmp_path / "x.npy", mmap_mode="r"), targets), 100)
    split = source.train()
    where = inode(split.inputs)
    assert int(where[1]) == (tmp_path / "x.npy").stat().st_ino
    assert shared.share(split, "key") is split
    with other(receive, shared.variables()) as (_, line):
        assert line.recv()[:2] == (where, int(split.inputs.sum()))
        line.send("go on")
    # A file that is another one by now is not mapped.
    os.environ |= shared.variables()
    os.utime(tmp_path / "x.npy", (1, 1))
    assert shared.load(lambda: "loaded", "key") == "loaded"


def test_a_memory_map_that_was_written_to_here_is_shared_as_it_is_here(tmp_path):
    np.save(tmp_path / "x.npy", make_split().inputs.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="c")
    split = replace(make_split(), inputs=torch.from_numpy(mapped))
    assert shared.share(split, "key") is split  # nothing was written yet
    mapped[5:] = 3
    ours = shared.share(split, "key")
    assert inode(ours.inputs) != inode(split.inputs)
    assert torch.equal(ours.inputs, split.inputs)
    with other(receive, shared.variables()) as (_, line):
        assert line.recv()[:2] == (inode(ours.inputs), int(split.inputs.sum()))
        line.send("go on")


SHARER = """
import sys
sys.path.insert(0, sys.argv[1])
import test_shared as tests
from studyloom.data import shared
shared.LARGE = 1
split = shared.share(tests.make_split(digest=sys.argv[2]), "their key")
print(*tests.inode(split.inputs), flush=True)
sys.stdin.read()
"""


def test_whoever_joins_by_hand_goes_on_with_the_copy_that_is_there():
    digest = f"joined-{os.getpid()}"
    references = {"rule": torch.ones(COUNT, 2)}
    with other(offer, digest) as (_, line):
        where = line.recv()
        same = make_split(digest=digest, references={})
        assert inode(shared.share(same, "key").inputs) == where
        # The content decides, and not the digest that is said.
        for changes in ({"seed": 1}, {"references": references}, {"mean": 0.25}):
            mine = make_split(**{"digest": digest, "references": {}} | changes)
            got = shared.share(mine, "key")
            assert inode(got.inputs) != where
            assert shared._equal(got, mine)
        line.send("end")


def test_nothing_is_left_of_a_process_that_is_killed():
    digest = f"killed-{os.getpid()}"
    with other(offer, digest) as (process, line):
        assert line.recv() is not None
        assert [*shared._others(digest)]
        process.kill()
        process.join()
    assert not [*shared._others(digest)]
    assert not [path for path in Path("/proc").glob("[0-9]*/maps") if digest in _read(path)]
    with shared._turn(digest):  # nor is a lock held
        pass


def _read(path):
    try:
        return path.read_text()
    except OSError:
        return ""


def test_what_is_no_sealed_memory_of_this_user_is_not_trusted(tmp_path):
    ours = shared.share(make_split(), "key")
    path = shared.variables()[shared.VARIABLE].partition(":")[2]
    whole = Path(path).read_bytes()
    assert shared.open_shared(path) is not None

    def memory(content, seals):
        descriptor = os.memfd_create("forged", os.MFD_ALLOW_SEALING)
        os.write(descriptor, content)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        return f"/proc/{os.getpid()}/fd/{descriptor}"

    assert shared.open_shared(memory(whole, shared.SEALS)) is not None
    (tmp_path / "file").write_bytes(whole)
    os.mkfifo(tmp_path / "pipe")
    refused = [
        memory(whole, shared.SEALS & ~fcntl.F_SEAL_WRITE),
        *(memory(content, shared.SEALS) for content in (b"", b"x" * 99, whole[:-4096], whole[9:])),
        memory(whole.replace(b"torch.uint8", b"torch.ghost"), shared.SEALS),
        memory(whole.replace(b'"outputs": 2', b'"outputs": x'), shared.SEALS),
        *map(str, (tmp_path / "file", tmp_path / "pipe", tmp_path / "none", tmp_path)),
    ]
    for path in refused:
        assert shared.open_shared(path) is None, path
        os.environ[shared.VARIABLE] = f"key:{path}"
        assert shared.load(lambda: "loaded", "key") == "loaded"
    assert len(ours) == COUNT


def test_a_worker_that_runs_another_study_loads_its_own_data():
    shared.share(make_split(), "key")
    os.environ |= shared.variables()
    assert shared.load(lambda: "loaded", "another key") == "loaded"
    assert shared.variables() == {}
    assert shared.load(lambda: "loaded", "key") == "loaded"  # the variable is gone


def test_without_room_for_a_second_copy_each_process_keeps_its_own(monkeypatch, caplog):
    split = make_split()
    monkeypatch.setattr(shared, "_free_memory", lambda: 100.0)
    assert shared.share(split, "key") is split
    assert "memory has no room for a second copy" in caplog.text
    monkeypatch.undo()
    assert shared._free_memory() > 10 * 2**20
    small = make_split()
    assert shared.share(small, "key") is small  # below 64 MB


def test_what_cannot_be_shared_is_left_as_it_is(monkeypatch):
    odd = make_split(mean=object())
    assert shared.share(odd, "key") is odd

    class Own(Split):
        pass

    own = Own(torch.rand(4, 2), torch.arange(4), 4, "own")
    assert shared.share(own, "key") is own
    split = make_split()
    monkeypatch.setattr(os, "memfd_create", lambda *_: os.open("/nowhere", os.O_RDONLY))
    assert shared.share(split, "key") is split
