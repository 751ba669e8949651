"""Hosts and processes: worker ids, signs of life, the standard streams, commands of the user's."""

import codecs
import contextlib
import ctypes
import functools
import gc
import hashlib
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

from studyloom.errors import DescriptorsClosed

K = TypeVar("K")
V = TypeVar("V")

# Becomes the command, after a process in its group that kills the group when our end of a pipe
# closes, however that comes about. It exists before the command does, it outlives SIGTERM, and its
# parent ends at once, so that no command finds a child that it has not started.
GROUP = """\
exec 3<&0 </dev/null
(trap '' HUP INT TERM; (read -r _ <&3; kill -KILL 0) >/dev/null 2>&1 &)
exec 3<&-
exec "$@"
"""
# In the environment of whatever a worker starts: a word of this worker alone. And the same of a
# cluster of Ray that a command has started.
MARK, CLUSTER_MARK = "STUDYLOOM_MARK", "STUDYLOOM_RAY"
GRACE = 3.0  # seconds between SIGTERM and SIGKILL; a worker has 6 s to release its trial
LONGEST_LINE = 2**16  # characters; what is longer is read in pieces
LOOK = 0.02  # seconds between looks at what a command has printed

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of Linux's <sys/prctl.h>
USUAL = gc.get_threshold()


def worker_id(pid: int) -> str:
    """Returns the id of a worker on this host, such as host-1a2b:4711."""
    return f"{host_id()}:{pid}"


@functools.cache
def host_id() -> str:
    """Returns this host's name and four hexadecimal digits, such as host-1a2b.

    The digits come from the boot and the process namespace: several hosts may be called
    `localhost`, and containers on one host may share its name while using the same process ids.
    Outside Linux it is the host's name alone.
    """
    with contextlib.suppress(OSError):  # outside Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = os.readlink("/proc/self/ns/pid")
        digest = hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()
        return f"{socket.gethostname()}-{digest[:4]}"
    return socket.gethostname()


def is_alive(pid: int) -> bool:
    """Reports whether a process of this host has not ended yet.

    One that has ended exists until it is waited for, and in a container whose first process waits
    for none that is for ever.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists, and belongs to another user
        pass
    with contextlib.suppress(OSError):  # outside Linux
        return stat_fields(pid)[0] not in "ZX"
    return True


def stat_fields(pid: int | str) -> list[str]:
    """Returns what proc(5) says of a process from its state on; raises OSError if it has ended."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


@dataclass
class Sightings(Generic[K, V]):
    """What this process sees again and again, and for how long it has seen each thing so far.

    Attributes:
        clock: Seconds on a clock that nobody sets, unlike that of a host or a server.
    """

    clock: Callable[[], float] = time.monotonic
    _last: float = 0.0
    _seen: dict[K, tuple[V, float]] = field(default_factory=dict)

    def look(self, things: Mapping[K, V], most: float = math.inf) -> dict[K, tuple[V, float]]:
        """Takes note of what is there now, and forgets what no longer is.

        Args:
            things: What is there, each with something to remember from its first sight.
            most: Seconds of the time between two looks that count.

        Returns:
            For each thing what is remembered, and the seconds since it was first seen.
        """
        now = self.clock()
        passed, self._last = min(now - self._last, most), now
        self._seen = {
            key: (self._seen[key][0], self._seen[key][1] + passed)
            if key in self._seen
            else (value, 0.0)
            for key, value in things.items()
        }
        return self._seen


def prepare_streams() -> None:
    """Makes the standard streams fit to be written to, whatever a command was started with.

    A stream that is closed becomes the null device: else the database would be the first file to
    be opened, get its number, and get what is printed. What an encoding lacks is written as `?`.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a test or an embedding program has its own
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def discard_output(stream: TextIO | None = None) -> None:
    """Discards what is written to a stream, by default standard output, and what it still holds."""
    stream = sys.stdout if stream is None else stream
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()


class LastingOutput:
    """Standard output or error that may fail: a study outlasts a full disk, and a pipe's reader.

    From then on it discards what is written. If it is standard output, a line on standard error
    says so, once.

    Args:
        stream: where to write; None for standard output.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._discarding():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._discarding():
            self._stream.flush()

    @contextlib.contextmanager
    def _discarding(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            discard_output(self._stream)
            if not isinstance(error, BrokenPipeError) and self._stream is not sys.stderr:
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.write(
                        f"standard output: {error.strerror}; the study goes on without it\n"
                    )


def end_if_forked(pid: int) -> None:
    """Ends this process at once if it is not process `pid`, but a fork that the user's code made.

    Such a fork has come back from the user's code into ours, where it would do everything a second
    time, over the database connections of its parent.
    """
    if os.getpid() != pid:
        os.write(2, b"a fork of this process has left the code that made it, and ends here\n")
        os._exit(1)


def is_same_file(descriptor: int, inode: int) -> bool:
    """Whether a descriptor is still open, and of the file that had this inode when it was opened.

    Code of the user's may close descriptors that are not its own; another file then gets the
    number.
    """
    try:
        return os.fstat(descriptor).st_ino == inode
    except OSError:
        return False


@contextlib.contextmanager
def descriptors_kept() -> Iterator[None]:
    """Raises DescriptorsClosed if the body has closed descriptors that it did not open.

    The log, the database and all else of this process may have been among them.
    """
    probe, other = os.pipe()
    os.close(other)
    inode = os.fstat(probe).st_ino
    try:
        yield
    finally:
        if kept := is_same_file(probe, inode):
            os.close(probe)
    if not kept:
        raise DescriptorsClosed("the objective has closed descriptors that it had not opened")


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Calls the handlers of SIGINT, SIGTERM and SIGHUP only after the body.

    The exception that a handler raises cannot cut the body in two, such as the start of processes
    between the first and the last of them. In another thread than the main one, where no handler
    runs, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    numbers = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
    handlers = {n: handler for n in numbers if n and callable(handler := signal.getsignal(n))}
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: pending.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in pending:
            signal.raise_signal(number)


def collect_rarely() -> None:
    """Has garbage collected after 100 000 objects, while there is much to import and compose.

    That makes half a million objects which stay. By default Python looks through them 580 times, as
    long as they become more: 0.4 of the 2.0 s that the imports of a command take.
    """
    gc.set_threshold(100_000, *USUAL[1:])


def collect_as_usual() -> None:
    """Has garbage collected as before `collect_rarely`; work should not wait for its memory."""
    gc.set_threshold(*USUAL)


def prctl(option: int, value: int) -> bool:
    """Calls Linux's prctl, and returns whether it worked; False on other systems."""
    try:
        return bool(ctypes.CDLL(None).prctl(option, value) == 0)
    except (AttributeError, OSError):
        return False


def adopt_orphans() -> bool:
    """Makes this process the parent of all orphans below it. Returns whether the system can."""
    return prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_with(parent: int) -> None:
    """Has the system kill this process when the process that forked it ends.

    Args:
        parent: the process that forked this one.
    """
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


def descendants(pid: int, spare: Callable[[int], bool] = lambda pid: False) -> list[int]:
    """Returns the processes below a process, as /proc has them.

    Args:
        pid: the process, which is not among them.
        spare: says of a process that it and those below it are left out.
    """
    children = defaultdict[int, list[int]](list)
    for process, fields in _table():
        children[int(fields[1])].append(process)
    found: list[int] = []
    left = [pid]
    while left:
        below = [child for child in children[left.pop()] if not spare(child)]
        found += below
        left += below
    return found


def kill_marked(mark: str) -> None:
    """Kills the programs that a worker has started, also in sessions of their own.

    Those have no parent below ours if the worker has ended: they are known by their environment. It
    takes some milliseconds, and does nothing where there is no /proc.

    Args:
        mark: of the worker; see `MARK`.
    """
    variable = f"{MARK}={mark}".encode()

    def left() -> Iterator[int]:
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if variable in (process / "environ").read_bytes().split(b"\0"):
                    yield int(process.name)

    for _ in range(10):  # they may be starting others meanwhile
        found = [*left()]
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return


class GroupedProcess:
    """A command in a process group of its own, all of which ends with this process.

    A context, at whose end nothing of the command is left. No shell reads its words.

    Args:
        words: the program and its arguments.
        environment: all its variables.
        output: the file to which all that it prints is appended. So nothing is lost of what it has
            printed if this process is killed.

    Attributes:
        code: its exit code, negative for a signal; None until it has ended.

    Raises:
        OSError: no process can be started.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], output: Path) -> None:
        self._output = output
        with output.open("ab") as file:
            self._start = file.tell()
            self._process = subprocess.Popen(
                ["sh", "-c", GROUP, "sh", *words],
                env=environment,
                stdin=subprocess.PIPE,  # closes when this process ends
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def code(self) -> int | None:
        return self._process.poll()

    def __enter__(self) -> "GroupedProcess":
        return self

    def __exit__(self, *_: object) -> None:
        """Asks all processes of the group to end, and kills those that do not in time."""
        pid = self._process.pid
        # Some may have begun sessions of their own. When a process started tells it from a later
        # one of its number; conda's Python 3.11, for one, can open no pidfd.
        below: dict[int, str] = {}
        end = time.monotonic() + GRACE
        try:
            for child in descendants(pid):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    below[child] = stat_fields(child)[19]
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGTERM)
            while (self.code is None or len(_group(pid)) > 1) and time.monotonic() < end:
                time.sleep(0.01)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            for child, started in below.items():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    if stat_fields(child)[19] == started:
                        os.kill(child, signal.SIGKILL)
            self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()

    def lines(self) -> Iterator[str]:
        """Yields the lines that the command prints until it has ended; see `read_lines`."""
        yield from read_lines(self._output, self._start, lambda: self.code is not None)


def read_lines(
    path: Path, start: int = 0, ended: Callable[[], bool] = lambda: True
) -> Iterator[str]:
    """Yields the lines of a file that may grow, in little memory.

    A carriage return ends a line too, as progress bars have it.

    Args:
        path: of the file.
        start: the position of the first byte to read.
        ended: whether the file grows no more.
    """
    decode, rest = codecs.getincrementaldecoder("utf-8")("replace").decode, ""
    with path.open("rb") as file:
        file.seek(start)
        while True:
            last = ended()  # before the read, which then has all
            if not (chunk := file.read(LONGEST_LINE)):
                if last:
                    break
                time.sleep(LOOK)
                continue
            *whole, rest = re.split(r"\r\n|\n|\r", rest + decode(chunk))
            yield from whole
            if len(rest) > LONGEST_LINE:
                yield rest
                rest = ""
    if rest:
        yield rest


def _group(group: int) -> list[int]:
    """Returns the processes of a group that have not ended, as /proc has them."""
    return [pid for pid, fields in _table() if int(fields[2]) == group and fields[0] != "Z"]


def _table() -> Iterator[tuple[int, list[str]]]:
    """Yields the processes that there are, as `stat_fields` has them."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            yield int(process.name), stat_fields(process.name)
