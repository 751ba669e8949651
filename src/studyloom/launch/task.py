"""What every launcher gets: the task, and the renewal of its workers' leases."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from studyloom.errors import StorageLost
from studyloom.launch.command import Command
from studyloom.launch.fork_server import ForkServer
from studyloom.launch.line import Line
from studyloom.processes import running_beside
from studyloom.storage.ledger import Ledger
from studyloom.study.limits import Limits
from studyloom.study.stopping import Stop

RENEWALS = 4  # how often a lease is renewed in the time that it lasts


@dataclass(frozen=True)
class Task:
    """What a launcher is to get done.

    Args:
        work: works in this process until nothing is left or the worker is asked to stop.
        todo: returns the number of open slots, at most.
        ledger: of the study.
        run_dir: the folder of the run; logs are written below it.
        limits: of the trials and the study.
        name: of the study.
        fork_server: forks workers; None if each worker is started as a command.
        command: the command that runs the study.
        halted: returns whether the study has stopped itself.
    """

    work: Callable[[Stop], None]
    todo: Callable[[], int]
    ledger: Ledger
    run_dir: Path
    limits: Limits
    name: str
    fork_server: ForkServer | None = None
    command: Command = field(default_factory=Command.of_this_process)
    halted: Callable[[], bool] = lambda: False

    @property
    def logs(self) -> Path:
        return self.run_dir / "logs"


class Launcher(Protocol):
    """Starts the workers of a task.

    Attributes:
        leaves_host: whether workers may run on other hosts, which see no file of this one.
    """

    @property
    def leaves_host(self) -> bool: ...

    def count(self, slots: int) -> int:
        """Returns how many workers the launcher starts for a number of open slots."""

    def launch(self, task: Task, stop: Stop) -> str | None:
        """Works on the task until its budget is spent or `stop` is true.

        Returns:
            What to print, if the work goes on after this command has ended; else None.

        Raises:
            LaunchError: workers die before they claim a trial.
            StorageLost: the database stays away.
        """


@contextlib.contextmanager
def renewing_leases(task: Task, worker_ids: Callable[[], Iterable[str]]) -> Iterator[None]:
    """Renews the leases of workers while the body runs.

    A thread does it, so that neither a long epoch nor an absent database holds the body up.

    Args:
        task: whose ledger has the leases.
        worker_ids: returns the ids of the workers that live now.
    """

    def renew(end: threading.Event) -> None:
        while not end.wait(task.limits.lease / RENEWALS):
            # A lock may keep only this from being written. If the database stays away, it is for
            # the body to say so.
            with contextlib.suppress(StorageLost):
                task.ledger.renew_for([*worker_ids()], task.limits.lease)

    with running_beside(renew):
        yield


def follow_parent(line: Line) -> None:
    """Makes a worker stop when the process that started it has ended.

    Its standard input closes then, on every system.

    Args:
        line: to that process.
    """

    def wait() -> None:
        while os.read(0, 1024):
            pass
        line.ask()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
