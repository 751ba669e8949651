"""Workers on the nodes of a Ray cluster: an actor for each, with the cores and GPUs that it asks for."""

import logging
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studyloom.errors import LaunchError
from studyloom.files import PACKAGE
from studyloom.launch.local import cores, gpus
from studyloom.launch.ray_actor import Actor
from studyloom.launch.supervisor import Supervisor, WorkerExit
from studyloom.launch.task import WORKER, Task, worker_arguments
from studyloom.processes import host_id
from studyloom.study.stopping import Stop

# When the command is gone: ends all processes of its cluster, and removes its files. Ray itself may leave its agents
# behind for a minute when it is killed.
CLEANUP = """
import os, shutil, signal, sys, time
sys.stdin.read()
mark = os.fsencode("STUDYLOOM_RAY=" + sys.argv[1])
def has_mark(pid):
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return mark in file.read().split(b"\\0")
    except OSError:
        return False
end = time.monotonic() + 10
while time.monotonic() < end:
    numbers = [int(name) for name in os.listdir("/proc") if name.isdecimal()] if os.path.isdir("/proc") else []
    found = [pid for pid in numbers if pid != os.getpid() and has_mark(pid)]
    if not found:
        break
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    time.sleep(0.1)
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""
RETRY = 1.0  # seconds between tries to start a worker on an actor that Ray is restarting
STORE = 100 * 2**20  # bytes of Ray's object store; nothing is put there
KEPT = (
    "STUDYLOOM_",
    "PYTHONPATH",
    "HYDRA_FULL_ERROR",
)  # how the variables begin that a worker inherits


@dataclass(frozen=True)
class Ray:
    """Actors of Ray, each of which runs one worker; Ray starts one again elsewhere when it or its node is lost.

    Args:
        workers: a number, or `auto`: as many as the cluster has room for; never more than slots are left.
        num_gpus: GPUs of a worker; a fraction shares one. By default 1 where there are GPUs, else 0.
        num_cpus: cores of a worker, and its threads.
        address: of a running cluster, such as `auto` or `head:6379`; without one, a cluster on this host for as long as
            the command runs.
    """

    workers: int | str = "auto"
    num_gpus: float | None = None
    num_cpus: float = 1
    address: str | None = None

    def __post_init__(self) -> None:
        if self.workers != "auto" and (type(self.workers) is not int or self.workers < 1):
            raise ValueError(
                f"launcher.workers: {self.workers!r} is neither auto nor a whole number from 1"
            )
        for name, least in (("num_gpus", 0), ("num_cpus", 1)):
            number = getattr(self, name)
            if not (number is None and least == 0) and (
                type(number) not in (int, float) or not number >= least
            ):
                raise ValueError(f"launcher.{name}: {number!r} is no number from {least}")
            if number is not None and number > 1 and number % 1:
                raise ValueError(
                    f"launcher.{name}: {number} is neither a whole number nor a fraction of one"
                )
        if self.address is not None and not (isinstance(self.address, str) and self.address):
            raise ValueError(
                f"launcher.address: {self.address!r} is neither null nor a text such as head:6379"
            )

    @property
    def leaves_host(self) -> bool:
        return self.address is not None

    def count(self, slots: int) -> int:
        """How many workers to start for so many open slots; joins the cluster where that says how many it has room for.

        Raises:
            LaunchError: Ray is missing, the cluster cannot be reached, or it has not the GPUs of one worker.
        """
        if self.workers != "auto":
            return min(int(self.workers), slots)
        if self.address is None:
            resources = [{"CPU": float(cores()), "GPU": float(len(gpus()))}]
        else:
            resources = nodes(self.connect())
        return min(sum(self.room(each, self.share(resources)) for each in resources), slots)

    def share(self, resources: list[dict[str, float]]) -> float:
        """The GPUs of one worker."""
        return (
            float(any(each.get("GPU") for each in resources))
            if self.num_gpus is None
            else self.num_gpus
        )

    def room(self, resources: dict[str, float], share: float) -> int:
        """For how many workers a node has room."""
        fitting = resources.get("CPU", 0.0) / self.num_cpus
        if share:
            number = resources.get("GPU", 0.0)
            fitting = min(fitting, number // share if share >= 1 else int(number) * (1 // share))
        return int(fitting)

    def launch(self, task: Task, stop: Stop) -> None:
        with self.cluster(task) as ray:
            resources = nodes(ray)
            share = self.share(resources)
            if not any(self.room(each, share) for each in resources):
                has = ", ".join(
                    f"{each.get('CPU', 0):g} CPUs and {each.get('GPU', 0):g} GPUs"
                    for each in resources
                )
                raise LaunchError(
                    f"launcher: no node has room for a worker of num_cpus={self.num_cpus:g} and num_gpus={share:g}; "
                    f"there are {has}; ask for less, or for a larger cluster"
                )
            kind = ray.remote(
                num_cpus=self.num_cpus,
                num_gpus=share,
                max_restarts=-1,
                max_task_retries=0,  # a lost actor is heard of at once, and its trial is another worker's
                scheduling_strategy="SPREAD",
            )(Actor)
            task.logs.mkdir(parents=True, exist_ok=True)
            numbers = range(1, self.count(task.todo()) + 1)
            logs = [
                task.logs.absolute() / f"{host_id()}-{os.getpid()}-worker{number}.log"
                for number in numbers
            ]
            places = [RayWorker(ray, kind, log) for log in logs]
            supervisor = Supervisor(task, places)
            try:
                supervisor.attend(stop)
            finally:
                supervisor.end_all()
                for place in places:
                    place.end()

    @contextmanager
    def cluster(self, task: Task) -> Iterator[Any]:
        """Ray, for as long as the body lasts."""
        if self.address is None:
            workers = 0 if self.workers == "auto" else min(int(self.workers), task.todo())
            with own_cluster(max(cores(), math.ceil(workers * self.num_cpus))) as ray:
                yield ray
            return
        try:
            yield self.connect(task)
        finally:
            imported().shutdown()

    def connect(self, task: Task | None = None) -> Any:
        """The cluster of the address, told of the code that it is to run: this folder, and studyloom itself."""
        ray = imported()
        if ray.is_initialized():
            return ray
        here = Path.cwd()
        excludes = ["/runs", "/data"]
        if task is not None and task.run_dir.absolute().is_relative_to(here):
            excludes.append(f"/{task.run_dir.absolute().relative_to(here)}")
        code = {"working_dir": str(here), "py_modules": [str(PACKAGE)], "excludes": excludes}
        return join(address=self.address, runtime_env=code)


@contextmanager
def own_cluster(cpus: int) -> Iterator[Any]:
    """A cluster on this host. It listens to everybody, so that it is told a token that nobody else knows."""
    # Ray's sockets have paths of at most 107 bytes, so that its files cannot lie below any run directory.
    folder = tempfile.mkdtemp(prefix=f"studyloom-ray-{os.getpid()}-", dir="/tmp")
    own = {
        "STUDYLOOM_RAY": folder,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    os.environ |= own | {"RAY_USAGE_STATS_ENABLED": "0"}  # before Ray is imported
    command = [sys.executable, "-I", "-c", CLEANUP, folder]
    sweeper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert sweeper.stdin is not None
    try:
        options = {"include_dashboard": False, "object_store_memory": STORE, "_temp_dir": folder}
        yield join(address="local", num_cpus=cpus, num_gpus=len(gpus()), **options)
    finally:
        with suppress(LaunchError):
            imported().shutdown()
        for name in own:
            del os.environ[name]
        sweeper.stdin.close()
        sweeper.wait()


def imported() -> Any:
    try:
        import ray
    except ImportError as error:
        raise LaunchError(
            f"launcher=ray: Ray is missing; pip install 'studyloom[ray]' ({error})"
        ) from None
    return ray


def join(**options: Any) -> Any:
    """Ray, after its `init`, which would take over the signals. Raises LaunchError."""
    ray = imported()
    logging.getLogger("ray").setLevel(
        logging.ERROR
    )  # else it tells what it leaves out of its copy of the folder
    handlers = {number: signal.getsignal(number) for number in Stop.SIGNALS}
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=False, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        words = " ".join(str(error).split())
        raise LaunchError(
            f"launcher.address={options['address']}: no cluster to be joined: {words}"
        ) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return ray


def nodes(ray: Any) -> list[dict[str, float]]:
    """What each node of the cluster has, by the names of resources."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


class RayWorker:
    """A place in the cluster: an actor, once Ray has found room for it."""

    def __init__(self, ray: Any, kind: Any, log: Path) -> None:
        self.ray, self.kind, self.log = ray, kind, log
        self.failures = 0
        self.owner: str | None = None
        self.actor: Any = None
        self.answer: Any = None  # what it is being asked
        self.retry: float | None = None  # when a start is tried again
        environment = {name: value for name, value in os.environ.items() if name.startswith(KEPT)}
        here, package = Path.cwd(), PACKAGE.parent
        seen = package.relative_to(here) if package.is_relative_to(here) else package
        self.call = worker_arguments(), environment | {WORKER: "1"}, str(here), str(seen), str(log)

    @property
    def busy(self) -> bool:
        return self.answer is not None or self.retry is not None

    def start(self) -> None:
        self.log.touch()  # by this a node knows that it shares the disk
        if self.actor is None:
            self.actor = self.kind.remote()
        self.answer, self.retry = self.actor.start.remote(*self.call), None

    def look(self) -> WorkerExit | None:
        if self.retry is not None and time.monotonic() > self.retry:
            self.start()
        if self.answer is None or not self.ray.wait([self.answer], timeout=0)[0]:
            return None
        try:
            self.owner, code, said = self.ray.get(self.answer)
        except self.ray.exceptions.RayError as error:
            return self.lose(error)
        if said:
            with self.log.open("ab") as log:
                log.write(said)
        self.answer = self.actor.look.remote()
        return None if code is None else WorkerExit(code)

    def lose(self, error: Exception) -> WorkerExit | None:
        """Of a worker whose actor does not answer; should it be alive, it will find that its trial is another's."""
        unavailable = isinstance(error, self.ray.exceptions.ActorUnavailableError)
        if unavailable and self.owner is None:  # Ray is at it, or waits for room
            self.answer, self.retry = None, time.monotonic() + RETRY
            return None
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        with self.log.open("a") as log:
            log.write(f"{words}\n")
        if not unavailable:  # for good
            self.actor = None
        return WorkerExit(None, f"its actor ({words})")

    def stop(self) -> None:
        if self.owner is None:
            self.clear()
        else:
            self.actor.stop.remote()

    def clear(self) -> str | None:
        owner, self.owner, self.answer, self.retry = self.owner, None, None, None
        if owner is not None and self.actor is not None:
            with suppress(self.ray.exceptions.RayError):
                self.ray.get(self.actor.clear.remote(), timeout=2.0)
        return owner

    def end(self) -> None:
        if self.actor is not None:
            self.ray.kill(self.actor)
            self.actor = None
