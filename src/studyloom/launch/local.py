"""Workers on this host: in this process, or each a process of its own."""

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from studyloom.launch.fork_server import ForkedWorker, ForkServer
from studyloom.launch.supervisor import GRACE, Supervisor, WorkerExit
from studyloom.launch.task import WORKER, Task, process_age, renewing_leases, worker_arguments
from studyloom.processes import host_id, worker_id
from studyloom.study.stopping import Stop


@dataclass(frozen=True)
class Join:
    """One worker in this process, vouched for by a thread, and by itself after each epoch."""

    leaves_host = False

    def count(self, slots: int) -> int:
        return min(1, slots)

    def launch(self, task: Task, stop: Stop) -> None:
        if WORKER in os.environ:  # its launcher vouches for it
            task.work(stop)
            return
        with renewing_leases(task, lambda: [worker_id(os.getpid())]):
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
    leaves_host = False

    def __post_init__(self) -> None:
        if self.workers != "auto" and (type(self.workers) is not int or self.workers < 1):
            raise ValueError(
                f"launcher.workers: {self.workers!r} is neither auto nor a whole number from 1"
            )
        if type(self.per_gpu) is not int or self.per_gpu < 1:
            raise ValueError(f"launcher.per_gpu: {self.per_gpu!r} is no whole number from 1")

    def launch(self, task: Task, stop: Stop) -> None:
        count = self.count(task.todo())
        if (
            count <= 1 and task.limits.trial_timeout is None
        ):  # a trial that hangs is ended with its process
            Join().launch(task, stop)
            return
        command = [sys.executable, *worker_arguments()]
        environments = self.environments(count)
        # Two commands at once on one run directory share no log.
        prefix = f"{host_id()}-{os.getpid()}-worker"
        logs = [task.logs / f"{prefix}{number}.log" for number in range(1, count + 1)]
        places = zip(environments, logs, strict=True)
        supervisor = Supervisor(
            task, [LocalWorker(command, env, path, task.fork_server) for env, path in places]
        )
        try:
            supervisor.attend(stop)
        finally:
            supervisor.end_all()

    def count(self, slots: int) -> int:
        """How many workers to start for so many open slots."""
        wanted = (
            (len(gpus()) * self.per_gpu or cores()) if self.workers == "auto" else int(self.workers)
        )
        return min(wanted, slots)

    def environments(self, count: int) -> list[dict[str, str]]:
        """What is set for each worker: its device, and its share of the cores as threads."""
        devices = gpus()
        threads = str(max(1, cores() // count))
        return [
            {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, WORKER: f"{process_age():.3f}"}
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


@dataclass
class LocalWorker:
    """A place on this host: each worker there is the leader of a process group.

    nursery: has the workers; without one, on GPUs, and where it is gone, a worker is a command.
    """

    command: list[str]
    environment: dict[str, str]
    log: Path
    fork_server: ForkServer | None = None
    failures: int = 0
    process: subprocess.Popen[bytes] | ForkedWorker | None = None
    guard: subprocess.Popen[bytes] | None = None

    @property
    def busy(self) -> bool:
        return self.process is not None

    @property
    def owner(self) -> str | None:
        return None if self.process is None else worker_id(self.process.pid)

    def start(self) -> None:
        self.process = self.forked() or self.called()
        self.guard = guard(self.process.pid)

    def forked(self) -> ForkedWorker | None:
        if self.fork_server is None or "CUDA_VISIBLE_DEVICES" in self.environment:
            return None
        try:
            return self.fork_server.start(self.environment, self.log)
        except OSError:
            return None

    def called(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            return subprocess.Popen(
                self.command,
                env=os.environ | self.environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def look(self) -> WorkerExit | None:
        code = None if self.process is None else self.process.poll()
        return None if code is None else WorkerExit(code)

    def stop(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGTERM)

    def clear(self) -> str | None:
        owner, process, guard = self.owner, self.process, self.guard
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if guard is not None:
            guard.kill()
        for ended in (process, guard):
            if ended is not None:
                ended.wait()
            if isinstance(ended, subprocess.Popen) and ended.stdin is not None:
                ended.stdin.close()
        self.process = self.guard = None
        return owner


def guard(group: int) -> subprocess.Popen[bytes]:
    """A shell that outlives this process by some seconds and then kills a worker's process group.

    A worker stops by itself when its standard input closes (`follow_parent`); this is for one that hangs, or whose own
    children would be left when it is killed together with its launcher.
    """
    script = f'read _; sleep {GRACE + 1:g}; kill -9 "-$0"'
    command, quiet = (
        ["sh", "-c", script, str(group)],
        subprocess.DEVNULL,
    )  # whoever reads our output shall see its end
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True
    )
