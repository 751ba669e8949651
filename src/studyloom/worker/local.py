"""Workers on this host: one in this process, or several in their own processes."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from studyloom.config.build import build
from studyloom.config.study_config import StudyConfig
from studyloom.data.training_data import shared_variables
from studyloom.environment import LINE, MARK, WORKER
from studyloom.errors import BrokenProcess, ConfigError, LaunchError
from studyloom.processes import count_cores, host_id, worker_id
from studyloom.training.device import training_device
from studyloom.user_code.pickled import can_pass_objects, child_arguments
from studyloom.worker.failure_causes import gpu_is_lost
from studyloom.worker.forks import ForkedWorker, ForkServer
from studyloom.worker.line import Listener
from studyloom.worker.stopping import Stop
from studyloom.worker.supervisor import Supervisor, WorkerExit
from studyloom.worker.task import Launcher, Task, renewing_leases

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Join(Launcher):
    """One worker in this process; a thread renews its lease, and the worker after each epoch."""

    def count(self, slots: int) -> int:
        return min(1, slots)

    def works_here(self, task: Task, slots: int) -> bool:
        return True

    def launch(self, task: Task, stop: Stop) -> None:
        """Works in this process.

        Raises:
            StorageLost: the database stays away.
            Halted: all trials fail for the same reason.
            LaunchError: work is left; as BrokenProcess, since this process can do no more.
        """
        if task.command.is_worker:  # the launcher renews the lease
            try:
                task.work(stop)
            except BrokenProcess as error:
                task.command.line.send("died", error)
                raise
            return
        with working_here(task, stop) as attempt:
            task.work(stop)
        if attempt.broken is not None:
            raise in_a_new_process(attempt.broken, task)


@dataclass(frozen=True)
class Local(Launcher):
    """Workers on this host, each in its own process; a single worker runs in this process.

    Args:
        workers: a number, or `auto`: as many as the GPUs allow, or one for each core if there is no
            GPU. There are never more workers than open slots.
        gpus: how many GPUs a worker sees, for a trial that trains on several.
        per_gpu: the number of workers that share a GPU, for small trials.
    """

    workers: int | str = "auto"
    gpus: int = 1
    per_gpu: int = 1
    may_fork = True

    def __post_init__(self) -> None:
        check_count("workers", self.workers, auto=True)
        check_count("per_gpu", self.per_gpu)
        check_count("gpus", self.gpus)
        if self.gpus > 1 and self.per_gpu > 1:
            raise ValueError(
                "launcher.gpus gives a worker several GPUs, and launcher.per_gpu a part of one; "
                f"got gpus={self.gpus} and per_gpu={self.per_gpu}; leave one of them at 1"
            )
        available = len(visible_gpus())
        if self.gpus > 1 and available < self.gpus:
            raise ValueError(
                f"launcher.gpus={self.gpus}: this process sees {available} "
                f"GPU{'' if available == 1 else 's'}; choose a smaller number, or set "
                "CUDA_VISIBLE_DEVICES"
            )

    def launch(self, task: Task, stop: Stop) -> None:
        """Works on the task, as `Launcher.launch` says.

        If a trial leaves this process unable to use its GPU, a worker process does the rest.
        """
        slots = task.todo()
        if self.works_here(task, slots):
            with working_here(task, stop) as attempt:
                task.work(stop)
            broken = attempt.broken
            if broken is None:
                return
            if not can_pass_objects():
                raise in_a_new_process(broken, task)
            log.warning("%s; a worker process continues", broken)
            slots = task.todo()
        if not slots:  # others have ended the last trials meanwhile
            return
        count = self.count(slots)
        command = [sys.executable, *task.command.worker()]
        common = {WORKER.name: f"{task.command.age():.3f}", **shared_variables()}
        # With the process id: two commands at once on one run directory share no log.
        prefix = f"{host_id()}-{os.getpid()}-worker"
        fork_server = task.command.fork_server
        workers = [
            LocalWorker(command, common | own, task.logs / f"{prefix}{n}.log", fork_server)
            for n, own in enumerate(self.environments(count), 1)
        ]
        Supervisor(task, workers).run(stop)

    def works_here(self, task: Task, slots: int) -> bool:
        """Whether this process is the only worker for open slots, and writes no log.

        With a time limit a single worker has a process too: a trial that hangs ends with it. With
        `gpus` it has one, which sees only these, and so has a worker whose trials this process
        cannot train, since its GPU is lost.
        """
        needs_process = self.gpus > 1 or task.limits.trial_timeout is not None
        return not needs_process and self.count(slots) <= 1 and not gpu_is_lost()

    def count(self, slots: int) -> int:
        """Returns how many workers to start for a number of open slots."""
        if self.workers != "auto":
            return min(int(self.workers), slots)
        if available := len(visible_gpus()):
            return min(available // self.gpus * self.per_gpu, slots)
        if training_device().type == "mps":
            return min(self.per_gpu, slots)
        return min(count_cores(), slots)

    def devices(self) -> list[str]:
        """Returns the GPUs of each worker, as CUDA_VISIBLE_DEVICES names them; none without GPUs.

        GPUs that are too few for another worker are left out.
        """
        available = visible_gpus()
        starts = range(0, len(available) - self.gpus + 1, self.gpus)
        return [",".join(available[start : start + self.gpus]) for start in starts]

    def environments(self, count: int) -> list[dict[str, str]]:
        """Returns the variables of each worker: its devices, and its share of the cores."""
        devices = self.devices()
        threads = str(max(1, count_cores() // count))
        common = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        return [
            common | ({"CUDA_VISIBLE_DEVICES": devices[n % len(devices)]} if devices else {})
            for n in range(count)
        ]


@dataclass
class WorkHere:
    """The work of this process on a task.

    Attributes:
        broken: why another process has to do what is left; None if nothing is.
    """

    broken: BrokenProcess | None = None


@contextlib.contextmanager
def working_here(task: Task, stop: Stop) -> Iterator[WorkHere]:
    """Renews the leases of this process while the body works on a task.

    Raises:
        LaunchError: trials are open, and no worker runs them.
    """
    attempt = WorkHere()
    with renewing_leases(task, lambda: [worker_id(os.getpid())]):
        try:
            yield attempt
        except BrokenProcess as error:
            attempt.broken = error
    left = 0 if stop() else task.todo()
    if not left:
        attempt.broken = None
    elif attempt.broken is None:
        raise LaunchError(f"{left} trials are open, and no worker runs them")


def in_a_new_process(broken: BrokenProcess, task: Task) -> BrokenProcess:
    """Returns an error that says how to do the rest where no worker process can be started."""
    kind = task.command.kind
    return BrokenProcess(f"{broken}; repeat the {kind} in a new process, which does the rest")


def build_launcher(config: StudyConfig) -> Launcher:
    """Builds the launcher of a config. Raises ConfigError if it is not a `Launcher`."""
    launcher = build(config["launcher"], "launcher")
    if not isinstance(launcher, Launcher):
        raise ConfigError(
            f"launcher._target_={config['launcher']['_target_']}: must be a subclass of "
            "studyloom.worker.Launcher"
        )
    return launcher


def visible_gpus() -> list[str]:
    """Returns the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(n) for n in range(count)]


def check_count(name: str, value: object, *, auto: bool = False) -> None:
    """Raises ValueError unless a setting is an integer from 1 on, or "auto" if `auto` is set."""
    if (type(value) is not int or value < 1) and not (auto and value == "auto"):
        words = f"{'auto, or ' * auto}an integer of at least 1"
        raise ValueError(f"launcher.{name} must be {words}; got {value!r}")


@dataclass
class LocalWorker:
    """The handle of a worker on this host, which is the leader of a process group.

    Args:
        command: starts the worker where there is no fork server, on a GPU, or if that has died.
        log: the file to which the worker's output is appended.
    """

    command: list[str]
    environment: dict[str, str]
    log: Path
    fork_server: ForkServer | None = None
    failures: int = field(default=0, init=False)
    messages: dict[str, str] = field(default_factory=dict, init=False)
    listener: Listener = field(init=False)
    process: subprocess.Popen[bytes] | ForkedWorker | None = field(default=None, init=False)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex, init=False)

    def __post_init__(self) -> None:
        self.environment = self.environment | {MARK.name: self.mark}

    @property
    def active(self) -> bool:
        return self.process is not None

    @property
    def worker_id(self) -> str | None:
        return None if self.process is None else worker_id(self.process.pid)

    def start(self) -> None:
        self.listener = Listener()
        theirs = self.listener.detach()
        try:
            self.process = self._fork(theirs) or self._spawn(theirs)
        finally:
            os.close(theirs)

    def poll(self) -> WorkerExit | None:
        code = None if self.process is None else self.process.poll()
        self.messages = self.listener.listen()
        return None if code is None else WorkerExit(code)

    def stop(self) -> None:
        if self.process is not None:
            self.listener.request_stop(self.process.pid)

    def kill(self) -> str | None:
        """Ends the worker, and all that it has started, also in other sessions."""
        ended, process = self.worker_id, self.process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            kill_marked(self.mark)
            process.wait()
            self.listener.close()
        self.process = None
        return ended

    def _fork(self, line: int) -> ForkedWorker | None:
        if self.fork_server is None or "CUDA_VISIBLE_DEVICES" in self.environment:
            return None
        try:
            return self.fork_server.start(self.environment, self.log, line)
        except OSError:
            return None

    def _spawn(self, line: int) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            return subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **child_arguments(self.environment | {LINE.name: str(line)}, line),
            )


def kill_marked(mark: str) -> None:
    """Kills the programs that a worker has started, whose environment has its mark.

    Once the worker has ended, those in another session are no longer descendants of ours.
    """
    for _ in range(10):  # they may be starting others meanwhile
        found = [
            process
            for process in psutil.process_iter(["environ"])
            if (process.info["environ"] or {}).get(MARK.name) == mark
        ]
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if not psutil.wait_procs(found, timeout=0.1)[1]:
            return
