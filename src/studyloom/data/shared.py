"""One copy of a large training part for all processes of a host.

It lies in memory that the system keeps for as long as a process holds it (memfd_create of Linux):
it has no name in a file system and no limit such as that of /dev/shm, nobody can change it once it
is sealed, only this user can open it, and nothing of it is left after `kill -9`. What a process
writes to its tensors becomes that process's own.

A command loads the part, shares it, and tells its workers where it is. A process that joins by hand
loads it, and goes on with the shared copy if the content is the same. Outside Linux, and if memory
has no room for a second copy while the first is shared, each process keeps its own.
"""

import json
import logging
import math
import mmap
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from studyloom.data.split import Split, parts_of
from studyloom.errors import DataError

try:
    import fcntl

    SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
except (ImportError, AttributeError):  # outside Linux
    SEALS = 0

# Bytes from which on a part is shared. To load 64 MB again takes a worker 0.05 s, and to find out
# whether another process has shared them takes 0.02 s.
LARGE = 64 * 2**20
VARIABLE = "STUDYLOOM_SHARED"  # in the environment of a worker: the key of the data, and the file
NAME = "studyloom-"  # of the memory, before the digest of the part
PATIENCE = 60.0  # seconds to wait for another process that shares the same part
DTYPES = {
    str(dtype): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
}
# A mapping of memory: its ends, its offset in the file, the file's inode and path, and what of it
# is where; of a private one "Anonymous" and "Swap" are what was written to it.
MAPPING = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ (\d+) *(.*)\n((?:\w+:.*\n)*)", re.MULTILINE
)
WRITTEN = re.compile(r"^(Anonymous|Swap): +[1-9]", re.MULTILINE)
P = TypeVar("P")  # a part of any kind
log = logging.getLogger(__name__)

# What this process has shared last: the key of the data, and the descriptor that others open.
_held: dict[str, int] = {}


def load(train: Callable[[], P], key: str) -> P | Split:
    """Returns the training part that the launcher of this worker has shared; else loads it.

    Args:
        train: loads the part.
        key: what the part follows from; the launcher must have named the same.
    """
    _release()
    # Removed, since a worker may run another study, of other data.
    known, _, path = os.environ.pop(VARIABLE, "").partition(":")
    opened = open_shared(path) if path and known == key else None
    if opened is None:
        return train()
    split, descriptor = opened
    os.close(descriptor)
    return split


def variables() -> dict[str, str]:
    """Returns the variables by which a worker of this process finds the part that it has shared."""
    places = [f"{key}:/proc/{os.getpid()}/fd/{fd}" for key, fd in _held.items()]
    return {VARIABLE: places[-1]} if places else {}


def share(split: Split, key: str) -> Split:
    """Shares a training part with other processes, or takes the copy that one of them has shared.

    Of inputs that a file holds, as with numpy.memmap, it shares where they are.

    Args:
        split: the part.
        key: what it follows from, as `load` gets it.

    Returns:
        the part, in shared memory if it is large and this can be done.
    """
    size = sum(tensor.nbytes for tensor in _tensors(split).values())
    if size < LARGE or type(split) is not Split or not SEALS or split.inputs.device.type != "cpu":
        return split
    path, at = _file_of(split.inputs)
    if path.startswith(f"/memfd:{NAME}"):  # from the launcher of this worker
        return split
    try:
        if path and not path.endswith(" (deleted)"):
            if split.inputs.is_contiguous():
                _held[key] = _publish(split, (path, at))[1]
            return split
        with _turn(split.digest):
            for path in _others(split.digest):
                if (opened := open_shared(path)) is not None:
                    if _equal(split, opened[0]):
                        _held[key] = opened[1]
                        return opened[0]
                    os.close(opened[1])
            if size > _free_memory():
                log.warning(
                    "the training part (%.1f GB) is not shared between workers: memory has no room "
                    "for a second copy while it is shared",
                    size / 1e9,
                )
                return split
            shared, _held[key] = _publish(split)
            return shared
    except (OSError, TypeError, ValueError):  # a system without it, or a part of odd values
        return split


def open_shared(path: str) -> tuple[Split, int] | None:
    """Opens a part that a process of this user has shared.

    Args:
        path: below /proc.

    Returns:
        the part, and a descriptor of it; None if there is no such sealed memory of this user.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)  # fails for what is no such memory
        if sealed & SEALS != SEALS or os.fstat(descriptor).st_uid != os.geteuid():
            raise DataError(f"{path}: is not sealed by this user")
        return _read(descriptor), descriptor
    except (OSError, ValueError, LookupError, TypeError, RuntimeError):
        os.close(descriptor)
        return None


def _release() -> None:
    """Closes what this process has shared; whoever has opened it goes on with it."""
    while _held:
        os.close(_held.popitem()[1])


def _publish(split: Split, where: tuple[str, int] | None = None) -> tuple[Split, int]:
    """Copies a part to memory that it then seals; returns the part there, and the descriptor.

    Args:
        split: the part.
        where: the file that holds the inputs, and their offset there; they are not copied then.
    """
    facts = {
        name: getattr(split, name)
        for name in ("outputs", "digest", "mean", "std", "ordered", "names", "columns")
    }
    places: dict[str, Any] = {}
    copied, end = _tensors(split), 0
    if where is not None:
        inputs, (path, at) = copied.pop("inputs"), where
        places["inputs"] = (
            str(inputs.dtype),
            list(inputs.shape),
            at,
            path,
            _version(os.stat(path)),
        )
    for name, tensor in copied.items():
        places[name] = (str(tensor.dtype), list(tensor.shape), end)
        end += math.ceil(tensor.nbytes / mmap.PAGESIZE) * mmap.PAGESIZE
    header = json.dumps({"facts": facts, "tensors": places}).encode()
    header = f"{len(header):<16}".encode() + header
    begin = math.ceil(len(header) / mmap.PAGESIZE) * mmap.PAGESIZE
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    descriptor = os.memfd_create(f"{NAME}{split.digest[:32]}", flags)
    try:
        os.ftruncate(descriptor, begin + end)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(header)
            for name, tensor in copied.items():
                file.seek(begin + places[name][2])
                for part in parts_of(tensor):
                    file.write(part.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
        return _read(descriptor), descriptor
    except BaseException:
        os.close(descriptor)
        raise


def _read(descriptor: int) -> Split:
    """Maps the part that sealed memory holds."""
    memory = _map(descriptor)
    length = 16 + int(memory[:16])
    header = json.loads(memory[16:length])
    begin = math.ceil(length / mmap.PAGESIZE) * mmap.PAGESIZE
    tensors: dict[str, Tensor] = {}
    for name, (dtype, shape, at, *elsewhere) in header["tensors"].items():
        source, offset = (_map_file(*elsewhere), at) if elsewhere else (memory, begin + at)
        count = math.prod(shape)
        flat = torch.frombuffer(source, dtype=DTYPES[dtype], count=count, offset=offset)
        tensors[name] = flat.reshape(shape)
    facts: dict[str, Any] = header["facts"]
    for name in ("names", "columns"):
        facts[name] = tuple(facts[name])
    references = {name[1:]: tensor for name, tensor in tensors.items() if name[0] == "="}
    return Split(tensors["inputs"], tensors["targets"], **facts, references=references)


def _map(descriptor: int) -> mmap.mmap:
    """Maps a file. What is written to a page makes a copy of it, for this process alone."""
    return mmap.mmap(
        descriptor,
        os.fstat(descriptor).st_size,
        flags=mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0),
        prot=mmap.PROT_READ | mmap.PROT_WRITE,
    )


def _map_file(path: str, version: list[int]) -> mmap.mmap:
    """Maps a file that another process has mapped, if it is still the same."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if _version(os.fstat(descriptor)) != version:
            raise DataError(f"{path}: is another file, or was changed")
        return _map(descriptor)
    finally:
        os.close(descriptor)


def _version(file: os.stat_result) -> list[int]:
    return [file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns]


def _tensors(split: Split) -> dict[str, Tensor]:
    references = {f"={name}": tensor for name, tensor in split.references.items()}
    return {"inputs": split.inputs, "targets": split.targets} | references


def _equal(split: Split, other: Split) -> bool:
    """Whether two parts are the same, in all that they hold."""
    ours, theirs = _tensors(split), _tensors(other)
    bare, bare_other = (
        {name: value for name, value in vars(part).items() if not isinstance(value, Tensor)}
        | {"references": None}
        for part in (split, other)
    )
    return (
        bare == bare_other
        and ours.keys() == theirs.keys()
        and all(
            tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name])
            for name, tensor in ours.items()
        )
    )


def _others(digest: str) -> Iterator[str]:
    """Yields where processes of this host hold a part with a digest."""
    wanted = f"/memfd:{NAME}{digest[:32]} (deleted)"
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or belongs to somebody else
            for number in os.listdir(process / "fd"):
                with suppress(OSError):
                    if os.readlink(path := f"{process}/fd/{number}") == wanted:
                        yield path


@contextmanager
def _turn(digest: str) -> Iterator[None]:
    """Has the processes of this host that share the same part do it one after the other.

    A socket's address without a file is the lock: it is free again however its process ends.
    """
    end = time.monotonic() + PATIENCE
    with socket.socket(socket.AF_UNIX) as lock:
        while time.monotonic() < end:
            try:
                lock.bind(f"\0{NAME}{os.geteuid()}-{digest}")
                break
            except OSError:  # in use
                time.sleep(0.02)
        yield


def _file_of(tensor: Tensor) -> tuple[str, int]:
    """Returns the file in which the memory of a tensor lies, and where there; "" for none.

    None also if this process has written to a mapping of its own, such as one of NumPy's with
    `mmap_mode="c"`: memory holds something else there than the file does.
    """
    address, maps = tensor.data_ptr(), ""
    with suppress(OSError):  # outside Linux
        maps = Path("/proc/self/smaps").read_text(errors="surrogateescape")
    for low, high, offset, inode, path, pages in MAPPING.findall(maps):
        if int(low, 16) <= address < int(high, 16):
            shared = path.startswith(f"/memfd:{NAME}") or not WRITTEN.search(pages)
            at = int(offset, 16) + address - int(low, 16)
            return (path, at) if inode != "0" and shared else ("", 0)
    return "", 0


def _free_memory() -> float:
    """Returns the bytes that this process may still take, as the host and its control group say."""
    free = math.inf
    with suppress(OSError, ValueError, LookupError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if "MemAvailable" in line)
    with suppress(OSError, ValueError, LookupError):  # of version 1, or without a limit
        path = Path("/proc/self/cgroup").read_text().split("::/")[1].strip()
        group = Path("/sys/fs/cgroup", path)
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        words = (group / "memory.stat").read_text().split()
        free = min(free, limit - used + int(words[words.index("inactive_file") + 1]))
    return free
