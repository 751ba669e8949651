"""Launchers: how the workers of a study are started, kept alive with the right device, and stopped.

A worker is the same command with `launcher=join`; the database is all that workers share. Whoever started a worker
vouches for it: the leases of its trials are renewed from a process that no step of a training can hold up. A worker in
this process is vouched for by a thread, and by itself after each epoch.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from studyloom.ledger import Ledger
from studyloom.stop import Stop
from studyloom.storage import StorageLost
from studyloom.study import Limits, owner_of

WORKER = "STUDYLOOM_WORKER"  # set in the environment of workers that a launcher started
HALT = 3  # exit code of a worker that found the study halted
RESTARTS = 3  # of a worker that dies before it claims a slot, after which its place stays empty
GRACE = 6.0  # seconds that a worker has to hand its trial back; none lives 10 s after its launcher
POLL = 0.1
RENEWALS = 4  # of a lease, in the time that it lasts

log = logging.getLogger(__name__)


class LaunchError(RuntimeError):
    """No worker is left although there is work; says where their logs are."""


@dataclass(frozen=True)
class Task:
    """What a launcher is to get done.

    work: works in this process until nothing is left or it is to stop. todo: how many slots are open at most.
    """

    work: Callable[[Stop], None]
    todo: Callable[[], int]
    ledger: Ledger
    logs: Path
    limits: Limits


@dataclass(frozen=True)
class Join:
    """One worker in this process."""

    def launch(self, task: Task, stop: Stop) -> None:
        if WORKER in os.environ:  # its launcher vouches for it
            task.work(stop)
            return
        with vouching(task, lambda: [owner_of(os.getpid())]):
            task.work(stop)


@dataclass(frozen=True)
class Local:
    """Workers on this host, each a process of its own; a single one works in this process.

    Args:
        workers: a number, or `auto`: `per_gpu` for each GPU, else one for each core; never more than slots are left.
        per_gpu: workers that share a GPU.
    """

    workers: int | str = "auto"
    per_gpu: int = 1

    def __post_init__(self) -> None:
        if self.workers != "auto" and (type(self.workers) is not int or self.workers < 1):
            raise ValueError(f"launcher.workers: {self.workers!r} is neither auto nor a whole number from 1")
        if type(self.per_gpu) is not int or self.per_gpu < 1:
            raise ValueError(f"launcher.per_gpu: {self.per_gpu!r} is no whole number from 1")

    def launch(self, task: Task, stop: Stop) -> None:
        """Works on the task until its budget is spent or it is to stop.

        Raises:
            LaunchError: workers die before they come to work.
        """
        count = self.count(task.todo())
        if count <= 1 and task.limits.trial_timeout is None:  # a trial that hangs is ended with its process
            Join().launch(task, stop)
            return
        crew = Crew(worker_command(), task, self.environments(count))
        try:
            crew.attend(stop)
        finally:
            crew.dismiss()

    def count(self, slots: int) -> int:
        """How many workers to start for so many open slots."""
        wanted = (len(gpus()) * self.per_gpu or cores()) if self.workers == "auto" else int(self.workers)
        return min(wanted, slots)

    def environments(self, count: int) -> list[dict[str, str]]:
        """What is set for each worker: its device, and its share of the cores as threads."""
        devices = gpus()
        threads = str(max(1, cores() // count))
        return [
            {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, WORKER: "1"}
            | ({"CUDA_VISIBLE_DEVICES": devices[k % len(devices)]} if devices else {})
            for k in range(count)
        ]


def gpus() -> list[str]:
    """The devices that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(k) for k in range(count)]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def program() -> list[str]:
    """How this program is called, without its arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return ["python", "-m", spec.name] if spec is not None else ["python", sys.argv[0]]


def own_arguments(*without: str) -> list[str]:
    """The arguments of this command, without those that set a group or section, or a key below it."""
    left_out = tuple(f"{name}{end}" for name in without for end in ("=", "."))
    return [argument for argument in sys.argv[1:] if not argument.startswith(left_out)]


def worker_command() -> list[str]:
    """This very command, as a worker of it."""
    return [sys.executable, *program()[1:], *own_arguments("launcher"), "launcher=join"]


@contextlib.contextmanager
def vouching(task: Task, owners: Callable[[], Iterable[str]]) -> Iterator[None]:
    """Renews the leases of workers from a thread, which neither a long epoch nor an absent database holds up."""
    end = threading.Event()

    def vouch() -> None:
        with contextlib.suppress(StorageLost):  # the workers will meet it too, and say so
            while not end.wait(task.limits.lease / RENEWALS):
                task.ledger.vouch([*owners()], task.limits.lease)

    thread = threading.Thread(target=vouch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(1.0)  # a daemon that still runs when the interpreter ends may abort the process


@dataclass
class Place:
    """A worker's place: its process, and how often in a row it died there before it came to work."""

    environment: dict[str, str]
    log: Path = field(default_factory=Path)
    process: subprocess.Popen[bytes] | None = None
    guard: subprocess.Popen[bytes] | None = None
    failures: int = 0


class Crew:
    """Worker processes, each the leader of a process group, watched and vouched for by this process."""

    def __init__(self, command: Sequence[str], task: Task, environments: Sequence[dict[str, str]]) -> None:
        self.command = list(command)
        self.task = task
        self.places = [Place(environment) for environment in environments]
        self.stopped: float | None = None  # when the workers were told to stop
        self.looked = time.monotonic()  # for trials that take too long
        task.logs.mkdir(parents=True, exist_ok=True)
        for number, place in enumerate(self.places, start=1):
            # Two commands at once on one run directory share no log.
            place.log = task.logs / f"{socket.gethostname()}-{os.getpid()}-worker{number}.log"
            self.start(place)

    def start(self, place: Place) -> None:
        with place.log.open("ab") as output:
            place.process = subprocess.Popen(
                self.command,
                env=os.environ | place.environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        place.guard = guard(place.process.pid)

    def attend(self, stop: Stop) -> None:
        """Waits for all workers; starts those that die again, and tells them to stop when it is to.

        Raises:
            LaunchError: workers die before they come to work.
            StorageLost: the database is away for good; the workers were told to stop.
        """
        try:
            with vouching(self.task, self.owners):
                self.watch(stop)
        except StorageLost:
            self.stop()
            self.wait()
            raise
        if self.stopped is None and self.task.todo():
            raise LaunchError(self.last_words())

    def owners(self) -> dict[str, Place]:
        """Where there are workers, by their names in the ledger."""
        return {owner_of(process.pid): place for place in self.places if (process := place.process) is not None}

    def watch(self, stop: Stop) -> None:
        while working := self.owners():
            for place in working.values():
                assert place.process is not None
                if (code := place.process.poll()) is not None:
                    self.end(place, code)
            self.end_overdue()
            if stop():
                self.stop()
            if self.stopped is not None and time.monotonic() > self.stopped + GRACE:
                return
            time.sleep(POLL)

    def wait(self) -> None:
        """Gives workers that were told to stop their time for it."""
        assert self.stopped is not None
        for place in self.owners().values():
            assert place.process is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                place.process.wait(max(0.0, self.stopped + GRACE - time.monotonic()))

    def end_overdue(self) -> None:
        """Ends, about every second, the workers whose trial takes too long."""
        limit = self.task.limits.trial_timeout
        if limit is None or time.monotonic() < self.looked + 1.0:
            return
        self.looked = time.monotonic()
        working = self.owners()
        # A second more than the worker itself allows, which looks after each epoch only.
        for owner in self.task.ledger.overdue([*working], limit + 1.0):
            self.kill(working[owner])
            death = f"the trial took longer than study.trial_timeout={limit:g} s"
            self.task.ledger.bury(owner, death, fatal=True)
            self.start(working[owner])

    def stop(self) -> None:
        """Tells the workers to hand their trials back."""
        if self.stopped is None:
            self.stopped = time.monotonic()
            for place in self.places:
                if place.process is not None:
                    place.process.send_signal(signal.SIGTERM)

    def end(self, place: Place, code: int) -> None:
        """A worker has ended: what it left behind is cleared away, and its place filled again if it died."""
        death = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        held = self.task.ledger.bury(self.kill(place), f"the worker ended with {death}")
        if code == HALT:
            self.stop()
        if code == 0 or self.stopped is not None:
            return
        log.warning("a worker ended with %s; its log: %s", death, place.log)
        place.failures = 0 if held else place.failures + 1
        if place.failures <= RESTARTS:
            self.start(place)

    def kill(self, place: Place) -> str:
        """Kills what is left of a worker's process group; the worker's name in the ledger."""
        process, guard = place.process, place.guard
        assert process is not None
        assert guard is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        guard.kill()
        for ended in (process, guard):
            ended.wait()
            assert ended.stdin is not None
            ended.stdin.close()
        place.process = place.guard = None
        return owner_of(process.pid)

    def dismiss(self) -> None:
        """Ends every worker that is still there, and hands back what they hold."""
        killed = [self.kill(place) for place in self.owners().values()]
        with contextlib.suppress(StorageLost):  # then their leases will end
            for owner in killed:
                self.task.ledger.bury(owner, "it was told to stop and did not")

    def last_words(self) -> str:
        """The end of the log of a worker that died."""
        place = max(self.places, key=lambda place: place.failures)
        lines = place.log.read_text(errors="replace").splitlines()[-12:]
        return "\n".join([f"workers die before they come to work; the end of {place.log}:", *lines])


def guard(group: int) -> subprocess.Popen[bytes]:
    """A shell that outlives this process by some seconds and then kills a worker's process group.

    A worker stops by itself when its standard input closes (`follow_parent`); this is for one that hangs, or whose own
    children would be left when it is killed together with its launcher.
    """
    script = f'read _; sleep {GRACE + 1:g}; kill -9 "-$0"'
    return subprocess.Popen(["sh", "-c", script, str(group)], stdin=subprocess.PIPE, start_new_session=True)


def follow_parent() -> None:
    """Makes a worker stop when the process that started it is gone: its standard input closes then, on every system."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
