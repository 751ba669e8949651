"""What every launcher is given and knows: the work, the command of a worker, and how its leases are renewed."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from studyloom.errors import StorageLost
from studyloom.launch.fork_server import ForkServer
from studyloom.storage.ledger import Ledger
from studyloom.study.reporter import Limits
from studyloom.study.stopping import Stop

WORKER = "STUDYLOOM_WORKER"  # set in the environment of workers that a launcher started
HALT = 3  # exit code of a worker that found the study halted
RENEWALS = 4  # of a lease, in the time that it lasts


def process_age() -> float:
    """Seconds since this process began, and before it, for a worker, the process that has started it."""
    before = os.environ.get(WORKER, "0")
    try:
        began = int(
            Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        ) / os.sysconf("SC_CLK_TCK")
        own = time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, AttributeError):  # outside Linux
        own = time.process_time()
    return float(before) + own


@dataclass(frozen=True)
class Task:
    """What a launcher is to get done.

    work: works in this process until nothing is left or it is to stop. todo: how many slots are open at most. name: of
    the study.
    """

    work: Callable[[Stop], None]
    todo: Callable[[], int]
    ledger: Ledger
    run_dir: Path
    limits: Limits
    name: str
    fork_server: ForkServer | None = None

    @property
    def logs(self) -> Path:
        return self.run_dir / "logs"


class Launcher(Protocol):
    """leaves_host: whether workers may run on other hosts, which see no file of this one."""

    @property
    def leaves_host(self) -> bool: ...

    def count(self, slots: int) -> int:
        """How many workers it starts for so many open slots."""

    def launch(self, task: Task, stop: Stop) -> str | None:
        """Works on the task until its budget is spent or it is to stop.

        Returns:
            What to tell a person, where the work goes on after this command has ended.

        Raises:
            LaunchError: no worker comes to work.
            StorageLost: the database is away for good.
        """


def program() -> list[str]:
    """How this program is called, without its arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return ["python", "-m", spec.name] if spec is not None else ["python", sys.argv[0]]


def own_arguments(*without: str) -> list[str]:
    """The arguments of this command, without those that set a group or section, or a key below it."""
    left_out = tuple(f"{name}{end}" for name in without for end in ("=", "."))
    return [argument for argument in sys.argv[1:] if not argument.startswith(left_out)]


def worker_arguments() -> list[str]:
    """What is given to a Python interpreter for this very command, as a worker of it."""
    return [*program()[1:], *own_arguments("launcher"), "launcher=join"]


@contextlib.contextmanager
def renewing_leases(task: Task, owners: Callable[[], Iterable[str]]) -> Iterator[None]:
    """Renews the leases of workers from a thread, which neither a long epoch nor an absent database holds up."""
    end = threading.Event()

    def renew_for() -> None:
        with contextlib.suppress(StorageLost):  # the workers will meet it too, and say so
            while not end.wait(task.limits.lease / RENEWALS):
                task.ledger.renew_for([*owners()], task.limits.lease)

    thread = threading.Thread(target=renew_for, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(1.0)  # a daemon that still runs when the interpreter ends may abort the process


def follow_parent() -> None:
    """Makes a worker stop when the process that started it is gone: its standard input closes then, on every system."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
