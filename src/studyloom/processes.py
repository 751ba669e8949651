"""Hosts and processes: their ids, signs of life, what is below them, what code of others does."""

import contextlib
import ctypes
import functools
import gc
import hashlib
import os
import signal
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from studyloom.errors import DescriptorsClosed

# In the environment of whatever a worker starts: a word of this worker alone.
MARK = "STUDYLOOM_MARK"

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


@contextlib.contextmanager
def running_beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Calls a function in a thread while the body runs.

    Args:
        work: the function. The event that it is given says that the body has ended, and that it has
            a second to return.
    """
    end = threading.Event()
    thread = threading.Thread(target=work, args=(end,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(1.0)  # a daemon that still runs when the interpreter ends may abort the process


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
    for process, fields in process_table():
        children[int(fields[1])].append(process)
    found: list[int] = []
    left = [pid]
    while left:
        below = [child for child in children[left.pop()] if not spare(child)]
        found += below
        left += below
    return found


def process_table() -> Iterator[tuple[int, list[str]]]:
    """Yields the processes that there are, as `stat_fields` has them."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            yield int(process.name), stat_fields(process.name)
