"""Hosts and processes: their ids, signs of life, signals and threads."""

import contextlib
import ctypes
import functools
import gc
import hashlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

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
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    namespace = os.readlink("/proc/self/ns/pid")
    digest = hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()
    return f"{socket.gethostname()}-{digest[:4]}"


def is_alive(pid: int) -> bool:
    """Whether a process of this host has not ended yet; one that nobody has waited for has."""
    import psutil  # here: `import studyloom` needs none

    try:
        ended: bool = psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
    return not ended


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Calls the handlers of SIGINT, SIGTERM and SIGHUP only after the body.

    So no exception of a handler cuts the body in two. It does nothing outside of the main thread.
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
        work: the event that it is given is set when the body has ended; then it has a second.
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
    """Calls Linux's prctl, and returns whether it worked."""
    return bool(ctypes.CDLL(None).prctl(option, value) == 0)


def adopt_orphans() -> bool:
    """Makes this process the parent of all orphans below it. Returns whether the system can."""
    return prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_with(parent: int) -> None:
    """Has the system kill this process when its parent, which has forked it, ends."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)
