"""Workers on this host: one in this process, or several in their own processes.

A single worker *works here*, in the process of the command. If this process can no longer use its
GPU after a trial, it is *broken*: a worker process runs the other trials, if one can be started.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from studyloom.config.build import build
from studyloom.config.study_config import StudyConfig
from studyloom.data.training_data import shared_variables
from studyloom.environment import LINE, MARK, RECYCLE, WORKER
from studyloom.errors import BrokenProcess, ConfigError, LaunchError
from studyloom.processes import count_cores, host_id, signal_group, worker_id
from studyloom.training.device import training_device
from studyloom.user_code.pickled import can_pass_objects, child_arguments
from studyloom.worker.failure_causes import has_lost_gpu
from studyloom.worker.forks import ForkedWorker, ForkServer
from studyloom.worker.line import Listener
from studyloom.worker.stopping import Stop
from studyloom.worker.supervisor import Supervisor, WorkerExit
from studyloom.worker.task import Launcher, Task, renewing_leases

KILL_ATTEMPTS = 10  # at killing what a worker has started, which may start others meanwhile
KILL_WAIT = 0.1  # seconds in which a killed process ends
MIG_PREFIX = "MIG-"  # of the name of a slice, into which NVIDIA's driver has divided a GPU
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Join(Launcher):
    """One worker in this process; a thread renews its lease, and the worker after each epoch.

    Args:
        begins: whether the command may begin a study, as `Launcher.begins` says. It is False for a
            command that another launcher starts.
    """

    begins: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.begins, bool):
            raise ValueError(f"launcher.begins must be true or false; got {self.begins!r}")

    def count_workers(self, slots: int) -> int:
        return min(1, slots)

    def works_here(self, task: Task, slots: int) -> bool:
        return True

    def launch(self, task: Task, stop: Stop) -> None:
        """Works in this process until no trial is open or a stop is requested.

        Raises:
            StorageLost: the database stays away.
            Halted: all trials fail for the same reason.
            BrokenProcess: this process can no longer use its GPU.
            LaunchError: trials are open, and no worker runs them.
        """
        if task.command.is_worker:  # its launcher renews the lease, and replaces it if it is broken
            try:
                task.work(stop)
            except BrokenProcess as error:
                task.command.line.send("died", error)
                raise
            return
        try:
            with working_here(task, stop):  # raises LaunchError if trials are open afterwards
                task.work(stop)
        except BrokenProcess as broken:
            raise make_new_process_error(broken, task) from None


@dataclass(frozen=True)
class Local(Launcher):
    """Workers on this host, each in its own process; a single worker runs in this process.

    Args:
        workers: a number, or `auto`: as many as the GPUs allow, or one for each core if there is no
            GPU. There are never more workers than open slots.
        gpus: how many GPUs a worker sees, for a trial that trains on several.
        per_gpu: the number of workers that share a GPU, for small trials.
        recycle: how many trials a worker takes up until another process replaces it, against memory
            that the user's code never releases; None for no limit. A trial counts each time: when
            it begins, when it resumes or is promoted, and when the worker only ends it.
    """

    workers: int | str = "auto"
    gpus: int = 1
    per_gpu: int = 1
    recycle: int | None = None
    may_fork = True

    def __post_init__(self) -> None:
        check_count("workers", self.workers, auto=True)
        check_count("per_gpu", self.per_gpu)
        check_count("gpus", self.gpus)
        if self.recycle is not None:
            check_count("recycle", self.recycle)
        if self.gpus > 1 and self.per_gpu > 1:
            raise ValueError(
                "launcher.gpus gives a worker several GPUs, and launcher.per_gpu a part of one; "
                f"got gpus={self.gpus} and per_gpu={self.per_gpu}; leave one of them at 1"
            )
        gpus = visible_gpus()
        visible_count = len(gpus)
        if self.gpus > 1 and gpus and gpus[0].startswith(MIG_PREFIX):
            raise ValueError(
                f"launcher.gpus={self.gpus}: a process can use a single MIG slice; leave it at 1"
            )
        if self.gpus > 1 and visible_count < self.gpus:
            if visible_count == 1:
                visible = "1 GPU"
            else:
                visible = f"{visible_count} GPUs"
            raise ValueError(
                f"launcher.gpus={self.gpus}: this process sees {visible}; "
                "choose a smaller number, or set CUDA_VISIBLE_DEVICES"
            )

    def launch(self, task: Task, stop: Stop) -> None:
        """Works on the task in this process or in worker processes, as `Launcher.launch` says.

        If a trial leaves this process unable to use its GPU, a worker process runs the others.
        """
        open_trials = task.count_open_trials()
        if self.works_here(task, open_trials):
            try:
                with working_here(task, stop):
                    task.work(stop)
                return
            except BrokenProcess as broken:
                # Another process may lack objects of this one, such as a Dataset of a notebook.
                if not can_pass_objects():
                    raise make_new_process_error(broken, task) from None
                log.warning("%s; a worker process continues", broken)
            open_trials = task.count_open_trials()
        if open_trials == 0:  # workers of other commands have ended the last trials meanwhile
            return
        workers = self._make_workers(task, self.count_workers(open_trials))
        Supervisor(task, workers).run(stop)

    def _make_workers(self, task: Task, count: int) -> "list[LocalWorker]":
        """Makes the handles of a number of workers, which are not started yet."""
        command = [sys.executable, *task.command.worker_arguments()]
        # This variable marks a process as a worker, which adds the seconds to its own age.
        age_of_command = {WORKER.name: f"{task.command.age():.3f}"}
        shared_environment = {**age_of_command, **shared_variables()}
        if self.recycle is not None:
            shared_environment[RECYCLE.name] = str(self.recycle)
        # With the process id in the name, two commands on one run directory share no log.
        prefix = f"{host_id()}-{os.getpid()}-worker"
        workers = []
        for number, environment in enumerate(self.make_environments(count), 1):
            worker = LocalWorker(
                command=command,
                environment=shared_environment | environment,
                log=task.logs / f"{prefix}{number}.log",
                fork_server=task.command.fork_server,
            )
            workers.append(worker)
        return workers

    @property
    def needs_processes(self) -> bool:
        """Returns whether even a single worker runs in a process of its own.

        It does if it has several GPUs, since it may see only these, and if it is to be replaced.
        """
        return self.gpus > 1 or self.recycle is not None

    def works_here(self, task: Task, slots: int) -> bool:
        """Returns whether this process is the only worker for open slots, and writes no log.

        A single worker runs in a separate process also if there is a time limit, so that a trial
        that hangs can be killed; and if this process has lost its GPU.
        """
        if self.needs_processes or task.limits.trial_timeout is not None:
            return False
        return self.count_workers(slots) <= 1 and not has_lost_gpu()

    def count_workers(self, slots: int) -> int:
        """Returns how many workers to start for a number of open slots."""
        if self.workers != "auto":
            return min(int(self.workers), slots)
        visible_count = len(visible_gpus())
        if visible_count > 0:
            gpu_groups = visible_count // self.gpus
            return min(gpu_groups * self.per_gpu, slots)  # per_gpu workers share a group
        if training_device().type == "mps":
            return min(self.per_gpu, slots)
        return min(count_cores(), slots)

    def group_gpus(self) -> list[str]:
        """Returns groups of GPUs, one for a worker, as values of CUDA_VISIBLE_DEVICES.

        With gpus=2 they are "0,1" and "2,3" on a host with five GPUs; the fifth is not used.
        """
        gpus = visible_gpus()
        groups = []
        for start in range(0, len(gpus) - self.gpus + 1, self.gpus):
            groups.append(",".join(gpus[start : start + self.gpus]))
        return groups

    def make_environments(self, count: int) -> list[dict[str, str]]:
        """Returns the variables of each worker: its GPUs, and its share of the cores."""
        gpu_groups = self.group_gpus()
        threads = str(max(1, count_cores() // count))
        environments = []
        for number in range(count):
            environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
            if gpu_groups:
                environment["CUDA_VISIBLE_DEVICES"] = gpu_groups[number % len(gpu_groups)]
            environments.append(environment)
        return environments


@contextmanager
def working_here(task: Task, stop: Stop) -> Iterator[None]:
    """Renews the lease of this process in a thread, while it works on a task in the body.

    Raises:
        BrokenProcess: the body has left this process unable to use its GPU, and trials are open.
        LaunchError: trials are open although this process can run them, and no stop was requested.
    """
    broken = None
    own_id = worker_id(os.getpid())
    # The ids are asked for at each renewal; here there is always one worker, this process.
    with renewing_leases(task, worker_ids=lambda: [own_id]):
        try:
            yield
        except BrokenProcess as error:
            broken = error
    if stop():
        return
    open_trials = task.count_open_trials()
    if open_trials == 0:
        return
    if broken is not None:
        raise broken
    raise LaunchError(f"{open_trials} trials are open, and no worker runs them")


def make_new_process_error(broken: BrokenProcess, task: Task) -> BrokenProcess:
    """Makes the error that says to repeat the command in a new process.

    It is raised if this process is broken and cannot start a worker process.
    """
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
    """Returns the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    They are names such as "0" or "GPU-8f2a". CUDA ignores the names after one that it cannot use,
    so that it may count fewer devices than the variable names. A process can use a single MIG
    slice: CUDA counts one, however many the variable names, and each can have its own worker.
    """
    count = torch.cuda.device_count()
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not value:
        return [str(number) for number in range(count)]
    names = value.split(",")
    names_slices = all(name.startswith(MIG_PREFIX) for name in names)
    if names_slices and count > 0:
        return names
    return names[:count]


def check_count(name: str, value: object, *, auto: bool = False) -> None:
    """Raises ValueError unless a setting is an integer of at least 1.

    Args:
        auto: whether "auto" is allowed too.
    """
    rule = "an integer of at least 1"
    if auto:
        rule = f"auto, or {rule}"
        if value == "auto":
            return
    if type(value) is not int or value < 1:
        raise ValueError(f"launcher.{name} must be {rule}; got {value!r}")


@dataclass
class LocalWorker:
    """The handle of a worker on this host, which is the leader of a process group.

    Args:
        command: the command line that starts the worker if it cannot be forked: there is no fork
            server, or it has died, or the worker uses a GPU.
        environment: the variables that are set for the worker.
        log: the file to which the worker's output is appended.

    Attributes:
        failures: how many workers in a row died before they claimed a slot.
        messages: the messages of the worker on its line.
        listener: the launcher's end of the line to the worker.
        mark: the value of a variable that all programs inherit that the worker starts, so that they
            can be found and ended.
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
        # All that the worker starts inherits the mark, by which `kill` finds it.
        self.environment = self.environment | {MARK.name: self.mark}

    @property
    def active(self) -> bool:
        """Returns whether there is a worker."""
        return self.process is not None

    @property
    def worker_id(self) -> str | None:
        """The id of the worker in the ledger; None without a worker."""
        if self.process is None:
            return None
        return worker_id(self.process.pid)

    def start(self) -> None:
        """Forks a worker, or starts it as a command."""
        self.listener = Listener()
        workers_end = self.listener.detach()
        try:
            self.process = self._fork(workers_end)
            if self.process is None:  # it cannot be forked, for example because it uses a GPU
                self.process = self._spawn(workers_end)
        finally:
            os.close(workers_end)  # the worker has its own copy
        # The start of the command counts as start-up of the first worker, and of none that follows.
        self.environment = self.environment | {WORKER.name: "0"}

    def poll(self) -> WorkerExit | None:
        """Reads the messages of the worker, and returns how it ended; None if it has not."""
        code = None
        if self.process is not None:  # None before `start`, and after `kill`
            code = self.process.poll()
        self.messages = self.listener.listen()
        if code is None:
            return None
        return WorkerExit(code)

    def stop(self) -> None:
        """Requests that the worker releases its trial and ends."""
        if self.process is not None:
            self.listener.request_stop(self.process.pid)

    def kill(self) -> str | None:
        """Kills the worker, and all that it has started, also in other sessions.

        Returns:
            The id of the worker in the ledger; None if there was none.
        """
        if self.process is None:
            return None
        killed_id = self.worker_id
        running_worker = None
        if self.process.poll() is None:
            running_worker = self.process.pid
        # Found while the worker runs: the children of a process get another parent when it ends.
        started_processes = find_started_processes(self.mark, running_worker)
        signal_group(self.process.pid, signal.SIGKILL)
        kill_started_processes(self.mark, started_processes)
        self.process.wait()
        self.listener.close()
        self.process = None
        return killed_id

    def _fork(self, line: int) -> ForkedWorker | None:
        """Forks the worker; None if it cannot be forked, for example because it uses a GPU.

        Args:
            line: the descriptor of the worker's end of its line.
        """
        uses_gpu = "CUDA_VISIBLE_DEVICES" in self.environment
        if self.fork_server is None or uses_gpu:
            return None
        try:
            return self.fork_server.start(self.environment, self.log, line)
        except OSError:
            return None

    def _spawn(self, line: int) -> subprocess.Popen[bytes]:
        """Starts the worker as a command, in a new session.

        Args:
            line: the descriptor of the worker's end of its line.
        """
        with self.log.open("ab") as output:
            return subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **child_arguments(self.environment | {LINE.name: str(line)}, line),
            )


def find_started_processes(mark: str, worker_pid: int | None = None) -> list[psutil.Process]:
    """Finds the running programs that a worker has started, also those that have left its group.

    They have its mark in their environment. macOS hides the environment of some programs, such as
    those that are part of it. These are found by their parents: the worker, or another program that
    it has started.

    Args:
        worker_pid: the process id of the worker; None if it has ended.
    """
    started_processes = []
    parents = []  # processes whose children were started by the worker
    children_by_parent = defaultdict[int, list[psutil.Process]](list)
    for process in psutil.process_iter(["environ", "ppid"]):
        children_by_parent[process.info["ppid"]].append(process)
        environment = process.info["environ"] or {}
        if process.pid == worker_pid:
            parents.append(process)
        elif environment.get(MARK.name) == mark:
            parents.append(process)
            started_processes.append(process)
    while parents:
        parent = parents.pop()
        for child in children_by_parent[parent.pid]:
            hides_environment = not child.info["environ"]
            if hides_environment:
                parents.append(child)
                started_processes.append(child)
    return started_processes


def kill_started_processes(mark: str, started_processes: list[psutil.Process]) -> None:
    """Kills the programs that a worker has started, and those that they start meanwhile.

    Args:
        started_processes: the programs that were found while the worker ran.
    """
    for _ in range(KILL_ATTEMPTS):
        for process in started_processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        _, alive_processes = psutil.wait_procs(started_processes, timeout=KILL_WAIT)
        started_processes = [*alive_processes, *find_started_processes(mark)]
        if not started_processes:
            return
