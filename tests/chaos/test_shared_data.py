"""Real commands whose workers share a large training part."""

import re
from pathlib import Path

import pytest
from harness import outcomes
from runs import STUDY, Run, kill

pytestmark = pytest.mark.nightly

# 70 MB, above the size from which on a part is shared.
BIG = """
import os, pathlib, numpy, torch

FILE = pathlib.Path(__file__).with_name("pixels.npy")
if not FILE.exists():
    pixels = numpy.random.default_rng(0).integers(0, 256, (23_000, 3, 32, 32), numpy.uint8)
    numpy.save(new := FILE.with_name(f"{os.getpid()}.npy"), pixels)
    new.rename(FILE)


def load(part, mapped):
    if part == "train":
        with open(FILE.with_name("calls"), "a") as calls:
            print(os.getpid(), file=calls)
    pixels = numpy.load(FILE, mmap_mode="r")
    pixels = pixels if mapped else numpy.array(pixels)
    pixels = pixels if part == "train" else pixels[:100]
    return pixels, torch.from_numpy(pixels[:, 0, 0, 0] // 128)
"""


def held_parts(pid, name):
    """The inodes of what a process has mapped of the training set, and its own kilobytes of it."""
    found = {}
    for block in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{pid}/smaps").read_text()):
        if re.search(name, block.partition("\n")[0]):
            found[block.split()[4]] = int(re.search(r"Anonymous: *(\d+)", block)[1])
    return found


def big_run(tmp_path, folder, mapped):
    (tmp_path / "big.py").write_text(BIG)
    own = ("data._target_=studyloom.data.Loaded", "~data.transform", "study.trials=2")
    own += (f"+data.load={{_target_: big.load, _partial_: true, mapped: {mapped}}}",)
    path = tmp_path / folder
    run = Run(path, f"sqlite:///{path}/study.db", (*STUDY, *own), trials=2)
    run.environment["PYTHONPATH"] += f":{tmp_path}"
    return run


def check_one_copy(run, name, calls, loads):
    workers = [held_parts(pid, name) for pid in run.workers()]
    assert len(workers) == 2
    assert len((calls).read_text().split()) == loads
    assert len({*workers[0], *workers[1]}) == 1  # one inode
    assert [*workers[0].values(), *workers[1].values()] == [0, 0]  # and no page of their own


def test_workers_have_one_copy_and_nothing_is_left_of_it_after_a_kill(tmp_path):
    run, calls = big_run(tmp_path, "run", False), tmp_path / "calls"

    def check_and_kill():
        check_one_copy(run, r"\(deleted\)", calls, loads=1)
        kill(run.processes())

    run.at_work(meanwhile=check_and_kill).communicate()
    run.until_gone(60)
    run.end(run.start(), 0)
    alone = big_run(tmp_path, "alone", False)
    alone.end(alone.start("launcher.workers=1"), 0)
    assert outcomes(run.stored()) == outcomes(alone.stored())


def test_workers_map_the_file_that_the_command_has_mapped(tmp_path):
    run, calls = big_run(tmp_path, "run", True), tmp_path / "calls"
    run.end(run.at_work(meanwhile=lambda: check_one_copy(run, r"pixels\.npy", calls, loads=3)), 0)
