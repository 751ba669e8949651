"""Launchers: how the workers of a study are started, and how they are stopped.

A worker is the same command with `launcher=join`; the database is all that workers share. A launcher only keeps its
workers alive with the right device.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from studyloom.ledger import Ledger
from studyloom.study import owner_of

WORKER = "STUDYLOOM_WORKER"  # set in the environment of workers that a launcher started
RESTARTS = 3  # of one worker, after which its place stays empty
GRACE = 8.0  # seconds that a worker has to hand its trial back
POLL = 0.2

log = logging.getLogger(__name__)


class LaunchError(RuntimeError):
    """No worker is left although there is work; says where their logs are."""


class Stop:
    """Whether to stop: after a first Ctrl-C, SIGTERM or SIGHUP, or `timeout` seconds. A second signal stops at once.

    Used as a context in the main thread, where it takes those signals over; explicit handlers also serve a command that
    a shell started with `&`, for which it has Ctrl-C ignored.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __init__(self, timeout: float | None = None) -> None:
        self.signal: int | None = None
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.signal is not None or (self.deadline is not None and time.monotonic() >= self.deadline)

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        os.write(2, b"stopping after this epoch; once more stops at once\n")


@dataclass(frozen=True)
class Task:
    """What a launcher is to get done: `work(stop)` works in this process until nothing is left or it is to stop."""

    work: Callable[[Callable[[], bool]], None]
    ledger: Ledger
    trials: int
    logs: Path


@dataclass(frozen=True)
class Join:
    """One worker in this process."""

    def launch(self, task: Task, stop: Stop) -> None:
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
            LaunchError: every worker died more often than it is started again.
        """
        count = self.count(task.ledger.open(task.trials))
        if count <= 1:
            task.work(stop)
            return
        crew = Crew(worker_command(), task, count, self.environments(count))
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


@dataclass
class Place:
    """A worker's place: its process, and how often it was filled again."""

    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    log: Path = field(default_factory=Path)


class Crew:
    """Worker processes, watched by this one. Each leads a process group and dies when its standard input closes."""

    def __init__(self, command: Sequence[str], task: Task, count: int, environments: Sequence[dict[str, str]]) -> None:
        self.command = list(command)
        self.task = task
        self.places = [Place(environment) for environment in environments[:count]]
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

    def attend(self, stop: Stop) -> None:
        """Waits for all workers; starts those that die again, and tells them to stop when it is to."""
        told: float | None = None
        while processes := [place for place in self.places if place.process is not None]:
            for place in processes:
                assert place.process is not None
                if (code := place.process.poll()) is not None:
                    self.end(place, code, restart=told is None)
            if stop() and told is None:
                told = time.monotonic()
                self.signal(signal.SIGTERM)
            if told is not None and time.monotonic() > told + GRACE:
                return
            time.sleep(POLL)
        if told is None and self.task.ledger.open(self.task.trials):
            raise LaunchError(self.last_words())

    def end(self, place: Place, code: int, *, restart: bool) -> None:
        """A worker has ended: what it left behind is cleared away, and its place filled again if it died."""
        assert place.process is not None
        self.clear(place)
        if code == 0 or not restart:
            return
        place.restarts += 1
        log.warning("a worker ended with %s; its log: %s", _words(code), place.log)
        if place.restarts <= RESTARTS:
            self.start(place)

    def clear(self, place: Place) -> None:
        """Kills what is left of a worker's process group, and hands its slot back."""
        process = place.process
        assert process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
        place.process = None
        self.task.ledger.release_owner(owner_of(process.pid))

    def signal(self, number: int) -> None:
        for place in self.places:
            if place.process is not None:
                place.process.send_signal(number)

    def dismiss(self) -> None:
        """Ends every worker that is still there."""
        for place in self.places:
            if place.process is not None:
                self.clear(place)

    def last_words(self) -> str:
        """The end of the log of a worker that died."""
        place = max(self.places, key=lambda place: place.restarts)
        lines = place.log.read_text(errors="replace").splitlines()[-12:]
        return "\n".join([f"every worker died {RESTARTS + 1} times; the end of {place.log}:", *lines])


def _words(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def follow_parent() -> None:
    """Makes a worker stop when the process that started it is gone: its standard input closes then, on every system."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
