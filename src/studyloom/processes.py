"""Hosts and processes: their ids, signs of life, signals and threads, and where time goes.

Only this module checks for Linux; each function has a fallback for other systems. Forks are
in `worker/forks.py`, and are used only where this module allows it.
"""

import contextlib
import ctypes
import functools
import gc
import hashlib
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from studyloom.environment import PORTABLE

# Whether Linux's ways are taken; with STUDYLOOM_PORTABLE=1 Linux takes the plain ones too.
LINUX = sys.platform == "linux" and not PORTABLE.get()

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of Linux's <sys/prctl.h>
LOOK = 0.2  # seconds between looks at whether a parent lives
USUAL = gc.get_threshold()
USUAL_HANDLER = signal.default_int_handler


def worker_id(pid: int) -> str:
    """Returns the id of a worker on this host, such as host-1a2b:4711."""
    return f"{host_id()}:{pid}"


@functools.cache
def host_id() -> str:
    """Returns this host's name and four hexadecimal digits, such as host-1a2b.

    The digits come from the boot and the process namespace, or from when the first process began:
    several hosts may be called `localhost`, and containers on one host may share its name while
    using the same process ids.
    """
    if LINUX:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        known = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    else:
        import psutil  # here: `import studyloom` needs none

        known = str(psutil.Process(1).create_time())
    return f"{socket.gethostname()}-{hashlib.sha256(known.encode()).hexdigest()[:4]}"


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if LINUX else os.cpu_count() or 1


def cpu_name() -> str:
    """Returns the model of the CPU; outside Linux its kind, such as arm64."""
    text = ""
    if LINUX:
        with contextlib.suppress(OSError):
            text = Path("/proc/cpuinfo").read_text()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.machine()


def driver_of_nvidia() -> str:
    """Returns the version line of NVIDIA's driver."""
    file = Path("/proc/driver/nvidia/version")
    known = file.read_text() if LINUX and file.exists() else "driver unknown"
    return known.partition("\n")[0]


def path_of(descriptor: int) -> str:
    """Returns the path by which other processes open a file of this one; only Linux has it."""
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def is_alive(pid: int) -> bool:
    """Whether a process of this host still runs; a zombie does not."""
    import psutil

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
def ending_at_interrupt() -> Iterator[None]:
    """Ends the process with a line and exit code 130 at a Ctrl-C before a study handles it."""
    try:
        yield
    except KeyboardInterrupt:
        _print_stopped()
        sys.exit(128 + signal.SIGINT)


def _print_stopped() -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"stopped before the first trial\n")


def end_at_interrupt() -> None:
    """Ends a program at a Ctrl-C as `ending_at_interrupt` does, until `interrupt_as_usual`.

    It changes nothing in a notebook, nor where another handler than Python's is set.
    """
    is_program = hasattr(sys.modules["__main__"], "__file__")
    in_main_thread = threading.current_thread() is threading.main_thread()
    if is_program and in_main_thread and signal.getsignal(signal.SIGINT) is USUAL_HANDLER:
        signal.signal(signal.SIGINT, _end_process)


def interrupt_as_usual() -> None:
    """Raises KeyboardInterrupt at a Ctrl-C, as before `end_at_interrupt`."""
    if signal.getsignal(signal.SIGINT) is _end_process:
        signal.signal(signal.SIGINT, USUAL_HANDLER)


def _end_process(*_: object) -> NoReturn:
    # An exception would come out of a library that is being imported as any error.
    _print_stopped()
    os._exit(128 + signal.SIGINT)


def open_streams() -> None:
    """Opens standard streams that were closed before this process started, as by `>&-`.

    Without it the next file that is opened would get the number of standard output.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "r+")  # noqa: SIM115  # the lowest free number is its own
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def discard_output(descriptor: int = 1) -> None:
    """Discards what is still printed, since the reader of the pipe has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def print_at_once(text: str) -> None:
    """Prints a text; if the reader of the pipe has gone, discards it and what follows."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        discard_output()


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Imports torch and what needs it in the body: a signal waits, and later collections skip it.

    A Ctrl-C in the midst comes out of the libraries as any error; collections take 0.8 s at exit.
    """
    with signals_deferred():
        yield
    gc.freeze()


@contextlib.contextmanager
def importing_optuna() -> Iterator[None]:
    """Imports Optuna in the body, without a warning in a notebook that lacks ipywidgets.

    Optuna imports tqdm, which wants them for progress bars that studyloom does not show.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")
        yield


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
    """Collects garbage after 100,000 objects, while there is much to import and compose.

    That makes half a million objects which stay. By default Python looks through them 580 times, as
    long as they become more: 0.4 of the 2.0 s that the imports of a command take.
    """
    gc.set_threshold(100_000, *USUAL[1:])


def collect_as_usual() -> None:
    """Collects garbage as before `collect_rarely`, so that work does not wait for its memory."""
    gc.set_threshold(*USUAL)


@dataclass
class Stopwatch:
    """Adds up the time of a worker by kind, such as training or storage."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    taken: float = field(default_factory=time.perf_counter)

    @classmethod
    def since(cls, start_up: float) -> "Stopwatch":
        """Returns a stopwatch that has run for the seconds in which the process started."""
        return cls(defaultdict(float, {"start-up": start_up}), time.perf_counter() - start_up)

    @contextlib.contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        """Measures the time of the body."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Returns the seconds by kind since the last call; what was not measured is `other`."""
        now = time.perf_counter()
        taken = {"other": max(0.0, now - self.taken - sum(self.seconds.values()))} | self.seconds
        self.taken = now
        self.seconds.clear()
        return taken


def prctl(option: int, value: int) -> bool:
    """Calls Linux's prctl, and returns whether it worked."""
    return bool(ctypes.CDLL(None).prctl(option, value) == 0)


def adopt_orphans() -> bool:
    """Makes this process the parent of all orphans below it. Returns whether the system can."""
    return LINUX and prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_with(parent: int) -> None:
    """Ends this process with its parent: on Linux at once, on other systems by a polling thread."""
    if LINUX:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os._exit(1)


# Kills a process group once the parent has ended; ends when the group has.
GUARD = """
import os, sys, time
parent, group = map(int, sys.argv[1:])
while os.getppid() == parent:
    os.killpg(group, 0)
    time.sleep(0.2)
os.killpg(group, 9)
"""


@contextlib.contextmanager
def leading_group(words: Sequence[str], **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """Starts a program as the leader of a process group, which does not outlive this process.

    Args:
        options: of subprocess.Popen.

    Raises:
        OSError: it cannot be started.
    """
    if LINUX:
        with warnings.catch_warnings():
            # Python 3.12 warns of forks while there are threads; the child does no more than prctl.
            warnings.simplefilter("ignore", DeprecationWarning)
            end = functools.partial(end_with, os.getpid())
            process = subprocess.Popen(words, start_new_session=True, preexec_fn=end, **options)
        yield process
        return
    process = subprocess.Popen(words, start_new_session=True, **options)
    guard = [sys.executable, "-IS", "-c", GUARD, str(os.getpid()), str(process.pid)]
    with subprocess.Popen(guard, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as watching:
        try:
            yield process
        finally:
            watching.kill()
