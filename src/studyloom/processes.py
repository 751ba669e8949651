"""Hosts and processes: their ids, whether they run, signals, threads, and where time is spent.

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

# True: functions may use what only Linux has. STUDYLOOM_PORTABLE=1 tests their fallbacks on Linux.
LINUX = sys.platform == "linux" and not PORTABLE.get()

# Options of prctl, in Linux's <sys/prctl.h>.
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

# A line of /proc/cpuinfo, such as "model name      : AMD EPYC 7763 64-Core Processor".
MODEL_NAME = re.compile(r"^model name\s*:\s*(.+)$", re.MULTILINE)
POLL_INTERVAL = 0.2  # seconds between checks of whether a parent process still runs
DEFAULT_THRESHOLDS = gc.get_threshold()
DEFAULT_HANDLER = signal.default_int_handler
INTERRUPTED = 128 + signal.SIGINT  # the exit code after Ctrl-C, as shells have it


def worker_id(pid: int) -> str:
    """Returns the id of a worker on this host, such as host-1a2b:4711."""
    return f"{host_id()}:{pid}"


@functools.cache
def host_id() -> str:
    """Returns this host's name and four hexadecimal digits, such as host-1a2b.

    The name does not suffice: several hosts may be called `localhost`, and containers on one host
    may share its name while using the same process ids. The digits distinguish them. They come from
    the boot and the process namespace; outside Linux, from the time when the first process began.
    """
    if LINUX:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = os.readlink("/proc/self/ns/pid")
        identity = f"{boot} {namespace}"
    else:
        import psutil  # here, since `import studyloom` does without it

        identity = str(psutil.Process(1).create_time())
    digest = hashlib.sha256(identity.encode()).hexdigest()
    return f"{socket.gethostname()}-{digest[:4]}"


def count_cores() -> int:
    """Returns the number of cores that this process may use."""
    if LINUX:
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_cpu_name() -> str:
    """Returns the model of the CPU; outside Linux its kind, such as arm64."""
    if LINUX:
        with contextlib.suppress(OSError):
            text = Path("/proc/cpuinfo").read_text()
            match = MODEL_NAME.search(text)
            if match:
                return match[1]
    return platform.machine()


def read_nvidia_driver() -> str:
    """Returns the version line of NVIDIA's driver, or "driver unknown"."""
    file = Path("/proc/driver/nvidia/version")
    if not LINUX or not file.exists():
        return "driver unknown"
    return file.read_text().partition("\n")[0]


def descriptor_path(descriptor: int) -> str:
    """Returns the path by which other processes open a file that this one holds open.

    Only Linux has such paths.
    """
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def is_alive(pid: int) -> bool:
    """Returns whether a process of this host still runs; a zombie does not."""
    import psutil

    try:
        state = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return False
    return state not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def is_gone(worker: str) -> bool:
    """Returns whether a worker of this host has ended, by its id; False for another host's."""
    host, _, pid = worker.rpartition(":")
    if host != host_id() or not re.fullmatch(r"[0-9]{1,9}", pid):
        return False
    return not is_alive(int(pid))


def signal_group(group: int, number: int) -> None:
    """Sends a signal to the process group of a child, if any process of the group still runs.

    A group may have only zombies, which have ended, and whose parent has not waited for them yet.
    Linux ignores a signal to them, and macOS raises PermissionError.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


@contextlib.contextmanager
def deferring_signals() -> Iterator[None]:
    """Calls the handlers of SIGINT, SIGTERM and SIGHUP only after the body.

    Otherwise an exception of a handler could leave the work of the body half done. It does nothing
    outside of the main thread, where Python calls no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received_signals: list[int] = []
    handlers = {}  # by signal
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal_number = getattr(signal, name, None)  # Windows has no SIGHUP
        if signal_number is None:
            continue
        handler = signal.getsignal(signal_number)
        if callable(handler):  # else the signal is ignored, or ends the process at once
            handlers[signal_number] = handler
    try:
        for signal_number in handlers:
            signal.signal(signal_number, lambda received, _: received_signals.append(received))
        yield
    finally:
        for signal_number, handler in handlers.items():
            signal.signal(signal_number, handler)
        for signal_number in received_signals:  # now for the handlers that are set again
            signal.raise_signal(signal_number)


@contextlib.contextmanager
def ending_at_interrupt() -> Iterator[None]:
    """Ends the process with a message and exit code 130 if Ctrl-C interrupts the body.

    The body comes before the first trial; during trials a study handles Ctrl-C itself.
    """
    try:
        yield
    except KeyboardInterrupt:
        _print_stopped()
        sys.exit(INTERRUPTED)


def _print_stopped() -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"stopped before the first trial\n")


def install_interrupt_handler() -> None:
    """Makes Ctrl-C end the process at once, with the message of `ending_at_interrupt`.

    Imports need it: a library that is being imported may turn a KeyboardInterrupt into any other
    error. `restore_interrupt_handler` undoes it. It changes nothing in a notebook, nor where
    another handler than Python's is set.
    """
    is_program = hasattr(sys.modules["__main__"], "__file__")  # a notebook has no such file
    is_main_thread = threading.current_thread() is threading.main_thread()
    has_default_handler = signal.getsignal(signal.SIGINT) is DEFAULT_HANDLER
    if is_program and is_main_thread and has_default_handler:
        signal.signal(signal.SIGINT, _end_process)


def restore_interrupt_handler() -> None:
    """Makes Ctrl-C raise KeyboardInterrupt again, as before `install_interrupt_handler`."""
    if signal.getsignal(signal.SIGINT) is _end_process:
        signal.signal(signal.SIGINT, DEFAULT_HANDLER)


def _end_process(*_: object) -> NoReturn:
    _print_stopped()
    os._exit(INTERRUPTED)


def open_closed_streams() -> None:
    """Opens standard streams that were closed before this process started, as by `>&-`.

    Otherwise the next file that is opened would get the number of standard output, and would
    receive what is printed.
    """
    for name in ("stdin", "stdout", "stderr"):  # with the numbers 0, 1 and 2
        if getattr(sys, name) is None:
            # A file gets the lowest free number, which is here that of the closed stream.
            stream = open(os.devnull, "r+")  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def discard_output(descriptor: int = 1) -> None:
    """Discards what is printed from now on, since the reader of the pipe has gone.

    Args:
        descriptor: the number of the stream; 1 is standard output.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def print_at_once(text: str) -> None:
    """Prints a text and flushes it; if the reader of the pipe has gone, discards all output."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        discard_output()


@contextlib.contextmanager
def importing_torch() -> Iterator[None]:
    """Imports PyTorch, and modules that need it, in the body.

    Signals wait until the imports are done: a library may turn the KeyboardInterrupt of a Ctrl-C
    into any other error. The garbage collector no longer looks at the imported objects, which would
    take it 0.8 s when the process exits.
    """
    with deferring_signals():
        yield
    gc.freeze()


@contextlib.contextmanager
def importing_optuna() -> Iterator[None]:
    """Imports Optuna in the body, without a warning in a notebook that lacks ipywidgets.

    Optuna imports tqdm, which needs ipywidgets for progress bars that studyloom does not show.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")
        yield


@contextlib.contextmanager
def running_in_thread(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Calls a function in a thread while the body runs.

    Args:
        work: the function. Its argument is an event that is set when the body has ended. The
            function should then return within a second: a daemon thread that still runs when the
            interpreter ends may abort the process.
    """
    body_has_ended = threading.Event()
    thread = threading.Thread(target=work, args=(body_has_ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        body_has_ended.set()
        thread.join(timeout=1.0)


def collect_garbage_rarely() -> None:
    """Makes Python collect garbage only after 100,000 new objects, while modules are imported.

    The imports of a command make half a million objects that are never garbage. By default Python
    looks through them 580 times, which takes 0.4 of the 2.0 s of the imports.
    """
    _, *later_thresholds = DEFAULT_THRESHOLDS  # the first one counts new objects
    gc.set_threshold(100_000, *later_thresholds)


def collect_garbage_as_usual() -> None:
    """Makes Python collect garbage as usual again, so that trials release their memory early."""
    gc.set_threshold(*DEFAULT_THRESHOLDS)


@dataclass
class Stopwatch:
    """Adds up the time of a worker by kind, such as training or storage.

    Args:
        seconds: the measured time of each kind since the last call of `take`.
        last_take: the time of that call on the clock `time.perf_counter`.
        last_processor_time: `read_processor_time()` at the last call of `take_processor_time`.
    """

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    last_take: float = field(default_factory=time.perf_counter)
    last_processor_time: float = field(default_factory=lambda: read_processor_time())

    @classmethod
    def since(cls, start_up: float) -> "Stopwatch":
        """Returns a stopwatch that began with the process, whose time so far is of kind "start-up".

        Args:
            start_up: the seconds that the process took to start.
        """
        seconds = defaultdict(float, {"start-up": start_up})
        start_of_process = time.perf_counter() - start_up
        return cls(seconds, last_take=start_of_process)

    @contextlib.contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        """Adds the time of the body to that of its kind."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Returns the seconds by kind since the last call, and begins again.

        Time that was measured as no kind is of kind "other".
        """
        now = time.perf_counter()
        total = now - self.last_take
        unmeasured = total - sum(self.seconds.values())
        times = {"other": max(0.0, unmeasured)} | self.seconds
        self.last_take = now
        self.seconds.clear()
        return times

    def take_processor_time(self) -> float:
        """Returns the seconds that processors worked since the last call, and begins again."""
        now = read_processor_time()
        processor_time = now - self.last_processor_time
        self.last_processor_time = now
        return processor_time


def read_processor_time() -> float:
    """Returns the seconds that processors have worked for this process and its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def prctl(option: int, value: int) -> bool:
    """Calls Linux's prctl, and returns whether it worked."""
    return bool(ctypes.CDLL(None).prctl(option, value) == 0)


def adopt_orphans() -> bool:
    """Makes this process the parent of its descendants whose own parents end.

    Returns:
        Whether the system can do so.
    """
    return LINUX and prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent(parent: int) -> None:
    """Makes this process end when its parent does; otherwise it would outlive a killed parent.

    On Linux it ends at once, on other systems within POLL_INTERVAL.

    Args:
        parent: the process id of the parent.
    """
    if LINUX:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # the parent had ended before this call
        os._exit(1)


def _end_after(parent: int) -> None:
    """Waits for the end of the parent, and then ends this process."""
    while os.getppid() == parent:
        time.sleep(POLL_INTERVAL)
    os._exit(1)


# A program that kills a process group once its parent has ended. Signal 0 only checks that the
# group exists: if it has ended first, that raises an error, and so ends the program.
GUARD = """
import os, sys, time
parent, group = map(int, sys.argv[1:])
while os.getppid() == parent:
    os.killpg(group, 0)
    time.sleep(0.2)
os.killpg(group, 9)
"""


@contextlib.contextmanager
def running_process_group(
    command: Sequence[str], **options: Any
) -> Iterator["subprocess.Popen[bytes]"]:
    """Starts a program as the leader of a process group, which does not outlive this process.

    On Linux the program itself is made to end with this process. On other systems a second program
    watches, and kills the group: see GUARD. The body of the `with` must end the group if it runs
    longer than the body.

    Args:
        command: the program and its arguments.
        options: further arguments of subprocess.Popen.

    Raises:
        OSError: the program cannot be started.
    """
    if LINUX:
        yield start_tied_process(command, start_new_session=True, **options)
        return
    process = subprocess.Popen(command, start_new_session=True, **options)
    parent = str(os.getpid())
    group = str(process.pid)
    guard_command = [sys.executable, "-IS", "-c", GUARD, parent, group]  # without site-packages
    with subprocess.Popen(
        guard_command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as guard:
        try:
            yield process
        finally:
            guard.kill()


def start_tied_process(command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
    """Starts a program that, on Linux, ends with this process, also if this one is killed.

    Args:
        command: the program and its arguments.
        options: further arguments of subprocess.Popen.

    Raises:
        OSError: the program cannot be started.
    """
    if not LINUX:
        return subprocess.Popen(command, **options)
    end_with_this_process = functools.partial(end_with_parent, os.getpid())
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork in a process with threads, which may hold locks. The child
        # calls only prctl, and needs none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        return subprocess.Popen(command, preexec_fn=end_with_this_process, **options)
