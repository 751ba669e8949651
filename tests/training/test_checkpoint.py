"""Checkpoints, with real damage, real kills and real full disks."""

import errno
import itertools
import logging
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

import pytest
import torch

from studyloom.processes import host_id
from studyloom.training import checkpoint as module
from studyloom.training.checkpoint import Checkpoint, _header, load_weights, snapshot


def state(number: int) -> dict:
    """Makes a state that shows whether it is whole."""
    return {
        "number": number,
        "weights": torch.arange(3000.0) + number,
        "said": [[1, 0.5, None, "x"]],
    }


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


BOTH = {"trial-1.pt", "trial-1.pt.previous"}


# Without faults


def test_what_was_saved_last_is_loaded(checkpoint, caplog):
    for number in range(4):
        checkpoint.save(state(number))
        loaded = checkpoint.load()
        assert number_of(loaded) == number
        assert loaded["said"] == [[1, 0.5, None, "x"]]
    assert names_in(checkpoint.path.parent) == BOTH
    assert caplog.records == []


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"ab", "", "ü", True, None, -5, 10**40, float("inf"), 1 + 2j, [], (), (1,), set()),
        *({1, 2}, {}, {b"": b""}, OrderedDict(a=1), torch.Size([]), torch.float32),
        torch.device("cuda:1"),
    ],
    ids=repr,
)
def test_whatever_a_state_may_hold_is_read_back(checkpoint, value):
    checkpoint.save({"value": snapshot(value, "it")})
    read = checkpoint.load()["value"]
    assert (type(read), read) == (type(value), value)


def test_absent_is_none_without_a_line(checkpoint, caplog):
    assert checkpoint.load() is None
    checkpoint.path.parent.mkdir()
    assert checkpoint.load() is None
    assert caplog.records == []


def test_only_the_one_before_is_loaded_without_a_line(two, caplog):
    """Nothing is lost: without hard links a kill between two renames leaves it like this."""
    two.path.unlink()
    assert number_of(two.load()) == 1
    assert caplog.records == []


def test_removed_is_absent_and_removing_is_quiet(two):
    for suffix in ("this.5.new.tmp", "that.old.tmp"):
        two.path.with_name(f"trial-1.pt.{suffix}").touch()
    two.remove()
    assert names_in(two.path.parent) == set()
    two.remove()
    two.path.parent.rmdir()
    two.remove()


@pytest.mark.parametrize("name", ["trial-1.pt", "trial-[1].pt", "trial-*.pt"])
def test_neighbours_are_left_alone(tmp_path, name):
    neighbours = {
        "trial-17.pt",
        "trial-17.pt.host.1.new.tmp",
        "trial-1.pt2",
        "trial-1.ptx.previous",
        "trial-.pt.a.tmp",
    }
    for neighbour in neighbours:
        (tmp_path / neighbour).touch()
    checkpoint = Checkpoint(tmp_path / name, "me")
    checkpoint.save(state(1))
    checkpoint.save(state(2))
    checkpoint.remove()
    assert names_in(tmp_path) == neighbours


# Damage


def lines(caplog) -> list[str]:
    assert {stored.levelno for stored in caplog.records} <= {logging.WARNING}
    return [stored.getMessage() for stored in caplog.records]


def is_refused(two, caplog, wrong):
    """Checks that state 2 is refused with a line, and that state 1 or else the start is used."""
    assert number_of(two.load()) == 1
    (line,) = lines(caplog)
    assert line == f"checkpoint {two.path} {wrong}; going on from the one before"
    caplog.clear()
    previous = two.previous.read_bytes()
    two.previous.unlink()
    assert two.load() is None
    assert lines(caplog) == [f"checkpoint {two.path} {wrong}; going on from the start"]
    caplog.clear()
    two.previous.write_bytes(previous)


DAMAGED = "is damaged: its content is another than was saved"
NO_CHECKPOINT = "does not begin as a checkpoint does"


def test_an_empty_file_is_refused(two, caplog):
    two.path.write_bytes(b"")
    is_refused(two, caplog, "is empty")


@pytest.mark.parametrize("share", [0.0001, 0.003, 0.007, 0.5, 0.999])
def test_a_truncated_file_is_refused(two, caplog, share):
    content = two.path.read_bytes()
    for length in {int(share * len(content)) + 1, len(content) - 1}:
        two.path.write_bytes(content[:length])
        is_refused(two, caplog, NO_CHECKPOINT if length < 23 else DAMAGED)


def test_a_longer_file_is_refused(two, caplog):
    two.path.write_bytes(two.path.read_bytes() + b"\0")
    is_refused(two, caplog, DAMAGED)


def test_one_flipped_bit_anywhere_is_refused(two, caplog):
    content = two.path.read_bytes()
    header = content.index(b"\n") + 1
    positions = [
        *range(header),
        *random.Random(0).sample(range(header, len(content)), 60),
        len(content) - 1,
    ]
    for position, bit in zip(positions, itertools.cycle(range(8))):
        flipped = bytearray(content)
        flipped[position] ^= 1 << bit
        two.path.write_bytes(flipped)
        assert number_of(two.load()) == 1, position
    assert len(lines(caplog)) == len(positions)
    two.path.write_bytes(content)
    assert number_of(two.load()) == 2


def test_another_format_is_refused(two, caplog):
    content = two.path.read_bytes()
    for other in (b"2", b"10"):
        two.path.write_bytes(content.replace(b"checkpoint 1 ", b"checkpoint " + other + b" ", 1))
        is_refused(two, caplog, f"has format {other.decode()} and not 1")


def test_another_identity_is_foreign(two, caplog):
    other = Checkpoint(two.path, "study, 1, lr=0.2")
    assert other.load() is None
    wrong = "is foreign: it does not belong to study, 1, lr=0.2"
    assert lines(caplog) == [
        f"checkpoint {two.path} {wrong}; going on from the one before",
        f"checkpoint {two.previous} {wrong}; going on from the start",
    ]
    caplog.clear()
    other.save(state(9))
    assert number_of(other.load()) == 9
    assert number_of(two.load()) == 2, "the one before is still the first one's"
    assert len(lines(caplog)) == 1


def test_what_cannot_be_read_is_refused(two, caplog):
    two.path.unlink()
    two.path.mkdir()
    is_refused(two, caplog, "cannot be read: Is a directory")


def test_two_damaged_ones_give_two_lines_and_the_start(two, caplog):
    two.path.write_bytes(b"")
    two.previous.write_bytes(b"nonsense\n")
    assert two.load() is None
    assert lines(caplog) == [
        f"checkpoint {two.path} is empty; going on from the one before",
        f"checkpoint {two.previous} {NO_CHECKPOINT}; going on from the start",
    ]


def test_a_damaged_one_before_is_not_noticed_while_it_is_not_needed(two, caplog):
    two.previous.write_bytes(b"")
    assert number_of(two.load()) == 2
    assert caplog.records == []


# Pickles from elsewhere


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def payload_of(content, protocol: str) -> bytes:
    if protocol == "pickle":
        return pickle.dumps(content)
    file = BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=protocol == "zip")
    return file.getvalue()


@pytest.mark.parametrize("protocol", ["zip", "legacy", "pickle"])
def test_a_malicious_file_with_a_right_digest_is_not_executed(two, caplog, tmp_path, protocol):
    canary = tmp_path / "canary"
    payload = payload_of({"identity": two.identity, "state": {"number": Evil(canary)}}, protocol)
    two.path.write_bytes(_header(payload) + b"\n" + payload)
    assert number_of(two.load()) == 1
    (line,) = lines(caplog)
    assert "cannot be read as tensors and plain values" in line
    assert "weights_only" not in line
    assert not canary.exists()
    pickle.loads(payload) if protocol == "pickle" else torch.load(
        BytesIO(payload), weights_only=False
    )
    assert canary.exists(), "it was not malicious"


@pytest.mark.parametrize(
    "content",
    [
        [1],
        {"state": {}},
        {"identity": "study, 1, lr=0.1"},
        {"identity": "study, 1, lr=0.1", "state": 1},
    ],
)
def test_what_has_no_identity_or_no_state_is_foreign(two, caplog, content):
    payload = payload_of(content, "zip")
    two.path.write_bytes(_header(payload) + b"\n" + payload)
    is_refused(two, caplog, f"is foreign: it does not belong to {two.identity}")


# Files that hold more than they have bytes


def rezipped(content: bytes, compression: int) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(BytesIO(content)) as old, zipfile.ZipFile(file, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return file.getvalue()


def overlapping(content: bytes) -> bytes:
    """Has a hundred further entries of an archive say that they are where a tensor of it is."""
    start, end = content.index(b"PK\1\2"), content.index(b"PK\6\6")
    entries = [b"PK\1\2" + rest for rest in content[start:end].split(b"PK\1\2")[1:]]
    entries += 100 * [entry for entry in entries if b"/data/0" in entry]
    directory, count = b"".join(entries), len(entries)
    last = struct.pack("<4s4xHHIIH", b"PK\5\6", count, count, len(directory), start, 0)
    return content[:start] + directory + last


def with_second_directory(content: bytes) -> bytes:
    """Hides a compressed archive behind a plain one, for readers that take the first directory."""
    return rezipped(content, zipfile.ZIP_DEFLATED) + content


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: rezipped(content, zipfile.ZIP_DEFLATED), "is compressed"),
        (lambda content: rezipped(content, zipfile.ZIP_LZMA), "is compressed"),
        (overlapping, "its entries say that they hold"),
        (with_second_directory, "or no archive as torch.save writes it"),
        (lambda content: content + bytes(100), "or no archive as torch.save writes it"),
        (lambda content: content[:-1], "or no archive as torch.save writes it"),
        (lambda content: content[:50], "or no archive as torch.save writes it"),
        (lambda content: content[:5], "or no archive as torch.save writes it"),
    ],
)
def test_a_file_takes_no_more_memory_than_it_has_bytes(two, caplog, monkeypatch, change, words):
    content = change(payload_of({"identity": two.identity, "state": state(3)}, "zip"))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    path = two.path.with_name("weights.pt")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights\.pt: cannot be read as weights: .*{words}"):
        load_weights(path)
    monkeypatch.undo()
    two.path.write_bytes(_header(content) + b"\n" + content)
    assert number_of(two.load()) == 1
    (line,) = lines(caplog)
    assert words in line


@pytest.mark.parametrize("kind", ["zip", "legacy", "stored"])
@pytest.mark.parametrize("count", [0, 1, 3000])
def test_what_torch_save_writes_is_read_in_all_its_forms(tmp_path, kind, count):
    weights = {f"{number}.weight": torch.full((2, 3), number) for number in range(count)}
    content = payload_of(weights, "legacy" if kind == "legacy" else "zip")
    path = tmp_path / "weights.pt"
    path.write_bytes(rezipped(content, zipfile.ZIP_STORED) if kind == "stored" else content)
    loaded = load_weights(path)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


# Errors while saving


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


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0]} {call[1]}")
@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=["EIO", "^C"]
)
@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
def test_an_error_at_any_call_leaves_a_whole_state_and_no_temporary_file(
    two, monkeypatch, call, error, damaged
):
    if damaged:
        two.path.write_bytes(b"nonsense")
    with monkeypatch.context() as patch:
        failing_at(patch, *call, error)
        if call == ("link", 0) and isinstance(error, OSError):
            two.save(state(3))  # a file system without hard links
        else:
            with pytest.raises(type(error)) as caught:
                two.save(state(3))
            if isinstance(error, OSError):
                assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(two.path))
    assert number_of(two.load()) in ({1, 3} if damaged else {2, 3})
    assert names_in(two.path.parent) == BOTH
    two.save(state(4))
    assert number_of(two.load()) == 4


def test_without_hard_links_the_one_before_is_kept_too(two, monkeypatch):
    failing_at(monkeypatch, "link", 0, PermissionError(errno.EPERM, "Operation not permitted"))
    two.save(state(3))
    assert number_of(two.load()) == 3
    two.path.unlink()
    assert number_of(two.load()) == 2


def test_a_folder_that_cannot_be_synced_is_no_error(two, monkeypatch):
    failing_at(monkeypatch, "fsync", 1, OSError(errno.EINVAL, "Invalid argument"))
    two.save(state(3))
    assert number_of(two.load()) == 3


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    checkpoint = Checkpoint(tmp_path / "file" / "trial-1.pt", "me")
    with pytest.raises(OSError, match=r"trial-1\.pt"):
        checkpoint.save(state(1))
    assert checkpoint.load() is None


FULL_AND_READ_ONLY = """
import errno, os, subprocess, sys
from pathlib import Path
import torch
from studyloom.training.checkpoint import Checkpoint

disk = Path(sys.argv[1])
checkpoint = Checkpoint(disk / "trial-1.pt", "me")
for number in (1, 2):
    checkpoint.save({"number": number})

def refused(expected):
    try:
        checkpoint.save({"number": 3, "weights": torch.zeros(1_000_000)})
    except OSError as error:
        assert (error.errno, error.filename) == (expected, str(checkpoint.path)), error
    else:
        raise AssertionError("saved")
    assert {*os.listdir(disk)} - {"filler"} == {"trial-1.pt", "trial-1.pt.previous"}
    assert checkpoint.load() == {"number": 2}

refused(errno.ENOSPC)
subprocess.run(["dd", "if=/dev/zero", f"of={disk}/filler"], stderr=subprocess.DEVNULL)
refused(errno.ENOSPC)  # now without a byte left
subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
refused(errno.EROFS)
print("as expected")
"""


def test_a_full_and_a_read_only_disk_are_named_and_leave_what_was_saved(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=256k none {disk}"
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    try:
        if subprocess.run([*unshare, "sh", "-c", mount], capture_output=True).returncode:
            pytest.skip("no mount namespaces here")
    except FileNotFoundError:
        pytest.skip("no unshare here")
    command = [
        *unshare,
        "sh",
        "-c",
        f'{mount} && exec "$0" -c "$1" {disk}',
        sys.executable,
        FULL_AND_READ_ONLY,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "as expected\n", done.stderr


# Kills


def dead_process() -> int:
    """Returns the number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_temporary_files_of_the_dead_are_removed_and_others_are_not(two):
    def temporary(host, number, kind="new"):
        path = two.path.with_name(f"trial-1.pt.{host}.{number}.{kind}.tmp")
        path.write_bytes(two.previous.read_bytes())
        return path

    host = host_id()
    # Of a process with our own number, an earlier one may have had it and died.
    dead = [
        temporary(host, number, kind)
        for number in (dead_process(), os.getpid())
        for kind in ("new", "old")
    ]
    others = [
        temporary(host, os.getppid()),
        temporary("elsewhere", dead_process()),
        temporary(host, "x"),
    ]
    two.save(state(3))
    assert not [path for path in dead if path.exists()]
    assert [path for path in others if path.exists()] == others
    two.path.unlink()
    assert number_of(two.load()) == 2
    two.remove()
    assert names_in(two.path.parent) == set()


# Forks a saver for each line it reads; it saves from the number in that line until it is killed.
SAVERS = """
import itertools, os, sys
from pathlib import Path
import torch
from studyloom.training.checkpoint import Checkpoint

if sys.argv[2] == "no links":
    def link(*_):
        raise PermissionError(1, "Operation not permitted")
    os.link = link
checkpoint = Checkpoint(Path(sys.argv[1]), "me")
torch.save({}, os.devnull)  # the first one takes long
for line in sys.stdin:
    if not (child := os.fork()):
        os.write(1, b"%d\\n" % os.getpid())
        for number in itertools.count(int(line)):
            checkpoint.save({"number": number, "weights": torch.arange(3000.0) + number})
            os.write(1, b"%d\\n" % number)
    os.waitpid(child, 0)
    os.write(1, b"dead\\n")
"""


@pytest.mark.chaos
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("links", ["links", "no links"])
def test_a_kill_at_any_moment_loses_nothing_that_was_reported_as_saved(tmp_path, caplog, links):
    checkpoint = Checkpoint(tmp_path / "trial-1.pt", "me")
    command = [sys.executable, "-c", SAVERS, checkpoint.path, links]
    moments = random.Random(0)
    following, left = 1, 0
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as savers:
        for round_ in range(400):
            if round_ >= 40 and left:
                break
            print(following, file=savers.stdin, flush=True)
            pid = int(savers.stdout.readline())
            reported = [int(savers.stdout.readline()) for _ in range(round_ % 4)]
            time.sleep(moments.uniform(0, 0.003))  # about as long as a save
            os.kill(pid, signal.SIGKILL)
            reported += [int(line) for line in iter(savers.stdout.readline, "dead\n")]
            last = reported[-1] if reported else following - 1
            loaded = number_of(checkpoint.load()) or 0
            assert last <= loaded <= last + 1
            left += bool(names_in(tmp_path) - BOTH)
            following = loaded + 1
        savers.stdin.close()
    assert caplog.records == []
    assert left > 0, "no kill was in the midst of a save"
    checkpoint.save(state(following))
    assert names_in(tmp_path) == BOTH
