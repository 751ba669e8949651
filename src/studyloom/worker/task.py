"""The task that a launcher gets, the command that its workers run, and the renewal of leases."""

import json
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import psutil

from studyloom.config.overrides import Override
from studyloom.environment import WORKER
from studyloom.errors import StorageLost
from studyloom.processes import running_in_thread
from studyloom.storage.failures import Limits
from studyloom.storage.ledger import Ledger
from studyloom.worker.line import Line
from studyloom.worker.stopping import Stop

RENEWALS = 4  # how often a lease is renewed in the time that it lasts


def process_age() -> float:
    """Returns the seconds since this process began; for a worker, since its launcher did."""
    age_of_launcher = float(WORKER.get() or 0)  # when it started this worker; not set elsewhere
    return age_of_launcher + time.time() - psutil.Process().create_time()


@dataclass(frozen=True)
class Command:
    """A command that runs a study: the running one, or the equivalent of a call from Python.

    Args:
        program: Python's arguments before the overrides, such as ("-m", "studies.mnist").
        arguments: the arguments after `program`: the overrides.
        age: returns the seconds for which the command has run.
        is_call: whether the user called a function instead.
        kind: the kind of thing that the user repeats to resume the study: a command, call or cell.
        begins: whether it may begin a study, unless its launcher only joins one; else it works on
            one that exists.
        is_worker: whether this process is the worker of a launcher that watches it. The tasks of a
            SLURM array are not: each is a command of its own, with the launcher `join`.
        line: the line to the launcher that has started this process, if one has.
        fork_server: forks workers; None if each worker is started as a command.
    """

    program: tuple[str, ...]
    arguments: tuple[str, ...]
    age: Callable[[], float] = process_age
    is_call: bool = False
    kind: str = "command"
    begins: bool = True
    is_worker: bool = False
    line: Line = field(default_factory=Line)
    fork_server: Any = None  # a `ForkServer`, whose module imports this one

    @classmethod
    def of_this_process(cls) -> "Command":
        """Returns the command that the user typed to start this process."""
        program: tuple[str, ...]
        main_spec = getattr(sys.modules["__main__"], "__spec__", None)
        if main_spec is not None:  # it was started with `python -m`
            program = ("-m", main_spec.name)
        else:
            program = (sys.argv[0],)
        return cls(program, tuple(sys.argv[1:]))

    @property
    def as_typed(self) -> list[str]:
        """The command line without its arguments, as the user types it."""
        if self.program[:2] == ("-m", "studyloom"):
            return ["studyloom", *self.program[2:]]
        return ["python", *self.program]

    def continue_with(self, override: str) -> list[str]:
        """Returns the words of the command line that runs the study again with another setting.

        They are such as `python -m studies.mnist study.trials=80`.
        """
        key, _, _ = override.partition("=")
        return [*self.as_typed, *self.without(key, "launcher.begins"), override]

    def write_settings(self, section: str, values: Mapping[str, int | bool]) -> str:
        """Writes settings as the user gives them, such as `winner.top=1 winner.seeds=1`."""
        if self.is_call:
            items = [f'"{key}": {value}' for key, value in values.items()]
            return f"{section}={{{', '.join(items)}}}"
        return " ".join(f"{section}.{key}={json.dumps(value)}" for key, value in values.items())

    @property
    def again(self) -> str:
        """The phrase for what a user does to run the study again, such as "the same command"."""
        if self.kind == "cell":
            return "run the cell again"
        return f"the same {self.kind}"

    @property
    def resumes(self) -> str:
        """The phrase for what resumes the study, such as "the same command resumes"."""
        if self.kind == "cell":
            return f"{self.again} to resume"
        return f"{self.again} resumes"

    @property
    def correction(self) -> str:
        """The sentence on what the user does after a wrong metric, space or argument."""
        return "with another metric, space or argument it is another study"

    def without(self, *keys: str) -> list[str]:
        """Returns the arguments without the overrides of some keys, and of all keys below them."""
        remaining_arguments = []
        for argument in self.arguments:
            if not Override.parse(argument).is_within(*keys):
                remaining_arguments.append(argument)
        return remaining_arguments

    def worker_arguments(self) -> list[str]:
        """Returns the arguments with which Python runs a worker of this command.

        The worker has the launcher `join`, which runs trials in the process itself. It begins no
        study: it may start long after this command, when the study has been stopped or has halted.
        """
        return [
            *self.program,
            *self.without("launcher"),
            "launcher=join",
            "launcher.begins=false",
        ]


@dataclass(frozen=True)
class Task:
    """The work that a launcher gets.

    Args:
        work: runs trials in this process until none is open or a stop is requested.
        count_open_trials: counts the trials that have not ended, including those of later stages,
            of which there may be fewer in the end; 0 if the study has stopped itself.
        ledger: the budget of the search, in the database.
        limits: the limits of trials, such as the duration of a lease.
        name: the name of the study.
        is_halted: returns whether the study has stopped itself, since all its trials fail.
    """

    work: Callable[[Stop], None]
    count_open_trials: Callable[[], int]
    ledger: Ledger
    run_dir: Path
    limits: Limits
    name: str
    command: Command = field(default_factory=Command.of_this_process)
    is_halted: Callable[[], bool] = lambda: False

    @property
    def logs(self) -> Path:
        """The folder of the workers' logs."""
        return self.run_dir / "logs"


class Launcher(ABC):
    """Starts the workers of a task. A custom launcher is a subclass.

    Attributes:
        may_fork: whether a worker may be a fork of this process.
    """

    may_fork: ClassVar[bool] = False

    @property
    def begins(self) -> bool:
        """Returns whether a command with this launcher may begin a study.

        If so, it creates a study that is missing, and resumes one that was stopped or has halted.
        Otherwise it only joins a study that exists and runs.
        """
        return True

    @property
    def leaves_host(self) -> bool:
        """Returns whether workers may run on other hosts, which see no file of this one."""
        return False

    @property
    def needs_processes(self) -> bool:
        """Returns whether even a single worker runs in a process of its own."""
        return False

    @abstractmethod
    def count_workers(self, slots: int) -> int:
        """Returns how many workers the launcher starts for a number of open slots."""

    def start(self, slots: int, run_dir: Path) -> Any:
        """Prepares what workers need, such as a cluster, before a study is made.

        Raises:
            LaunchError: no worker could run.
        """
        return None

    def works_here(self, task: Task, slots: int) -> bool:
        """Returns whether this process is the only worker for open slots, and writes no log."""
        return False

    @abstractmethod
    def launch(self, task: Task, stop: Stop) -> str | None:
        """Works on the task until its budget is spent or `stop` is true.

        Returns:
            A line to print if workers continue after this command has ended; else None.

        Raises:
            Halted: all trials fail for the same reason, and this process was the worker.
            LaunchError: workers die before they claim a trial.
            StorageLost: the database stays away.
        """


@contextmanager
def renewing_leases(task: Task, worker_ids: Callable[[], Iterable[str]]) -> Iterator[None]:
    """Renews the leases of workers in a thread, while the body runs.

    A worker keeps its trial as long as its lease is renewed, however long an epoch takes.

    Args:
        worker_ids: returns the ids of the workers that live now.
    """
    lease = task.limits.lease

    def renew(end: threading.Event) -> None:
        while not end.wait(lease / RENEWALS):
            # An error of the database is left to the body, which meets it too if it lasts.
            with suppress(StorageLost):
                task.ledger.renew_for([*worker_ids()], lease)

    with running_in_thread(renew):
        yield
