"""Workers on the nodes of a Ray cluster: an actor for each, with the cores and GPUs it needs."""

import atexit
import logging
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studyloom.environment import TRACEBACKS, VARIABLE_PREFIX, WORKER
from studyloom.errors import LaunchError
from studyloom.extras.ray_actor import Actor
from studyloom.files import PACKAGE
from studyloom.installation import pip_install
from studyloom.processes import count_cores, host_id
from studyloom.worker.local import check_count, visible_gpus
from studyloom.worker.stopping import Stop
from studyloom.worker.supervisor import Supervisor, WorkerExit
from studyloom.worker.task import Launcher, Task

KILL_DEADLINE = 2.0  # seconds that a kill waits for the reply of the actor
OBJECT_STORE_BYTES = 100 * 2**20  # of Ray's object store; nothing is put there
# The beginnings of the variables that a worker inherits.
INHERITED_PREFIXES = (VARIABLE_PREFIX, "PYTHONPATH", TRACEBACKS.name)
ROUNDING = 1e-9  # added before a share is rounded down: 1 // 0.2 is 4
# The resources of a node of the cluster, by name, such as {"CPU": 8.0, "GPU": 2.0}.
Resources = dict[str, float]


@dataclass
class Ray(Launcher):
    """Ray actors, each with one worker; Ray restarts the actor of a lost node on another one.

    Args:
        workers: a number, or `auto`: as many as fit in the cluster. There are never more
            workers than open slots.
        num_gpus: the GPUs that a worker sees; a fraction shares one. By default one if there are
            GPUs, else 0.
        num_cpus: the cores of a worker, and its threads.
        address: the address of a running cluster, such as `auto` or `head:6379`; None for a
            cluster on this host that ends with the command.
    """

    workers: int | str = "auto"
    num_gpus: float | None = None
    num_cpus: int = 1
    address: str | None = None
    _cluster: ExitStack | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_count("workers", self.workers, auto=True)
        check_count("num_cpus", self.num_cpus)
        if self.num_gpus is not None and not _is_number_of_gpus(self.num_gpus):
            raise ValueError(
                "launcher.num_gpus must be an integer, a fraction below 1, or null; "
                f"got {self.num_gpus!r}"
            )
        if self.address is not None and not (isinstance(self.address, str) and self.address):
            raise ValueError(
                "launcher.address must be null, or a text such as auto or head:6379; "
                f"got {self.address!r}"
            )

    @property
    def leaves_host(self) -> bool:
        return self.address is not None

    def count_workers(self, slots: int) -> int:
        """Returns how many workers to start for a number of open slots.

        Joins a running cluster if that is needed to know how many workers fit.

        Raises:
            LaunchError: Ray is missing, or the cluster cannot be reached.
        """
        if self.workers != "auto":
            return min(int(self.workers), slots)
        if self.address is None:  # the cluster will be this host
            nodes = [{"CPU": float(count_cores()), "GPU": float(len(visible_gpus()))}]
        else:
            nodes = read_nodes(self.connect())
        gpus = self.gpus_of_worker(nodes)
        count = sum(self.count_fitting(node, gpus) for node in nodes)
        return min(count, slots)

    def gpus_of_worker(self, nodes: list[Resources]) -> float:
        """Returns the number of GPUs for each worker; a fraction if workers share one.

        Args:
            nodes: the resources of each node.
        """
        if self.num_gpus is not None:
            return self.num_gpus
        if any(node.get("GPU") for node in nodes):
            return 1.0
        return 0.0

    def count_fitting(self, node: Resources, gpus: float) -> int:
        """Counts the workers that fit on a node.

        Args:
            node: the resources of the node.
            gpus: the GPUs of one worker. A fraction is a share of one GPU: a worker never has parts
                of two.
        """
        by_cores = int(node.get("CPU", 0.0) / self.num_cpus)
        if gpus == 0:
            return by_cores
        gpus_of_node = node.get("GPU", 0.0)
        if gpus >= 1:
            by_gpus = int(gpus_of_node // gpus)
        else:
            workers_on_one_gpu = int(1 / gpus + ROUNDING)
            by_gpus = int(gpus_of_node) * workers_on_one_gpu
        return min(by_cores, by_gpus)

    def start(self, slots: int, run_dir: Path) -> Any:
        """Starts the cluster, or joins it, unless that is done; returns the module `ray`.

        `close` leaves or ends the cluster; it is also called if the command ends before.

        Args:
            slots: the number of trials that no worker has yet.
            run_dir: the run directory, which is not copied to the nodes (see `connect`).

        Raises:
            LaunchError: Ray is missing, or the cluster does not start or cannot be reached.
        """
        if self._cluster is not None:
            return import_ray()
        with ExitStack() as stack:
            if self.address is None:
                cpus = count_cores()
                if self.workers != "auto":
                    workers = min(int(self.workers), slots)
                    # The user may ask for more workers than there are cores.
                    cpus = max(cpus, workers * self.num_cpus)
                stack.enter_context(own_cluster(cpus))
            else:
                stack.callback(lambda: import_ray().shutdown())
                self.connect(run_dir)
            self._cluster = stack.pop_all()  # not reached after an error, which ends the cluster
        atexit.register(self.close)
        return import_ray()

    def close(self) -> None:
        """Leaves the cluster, or ends it if this command has started it."""
        cluster = self._cluster
        self._cluster = None
        if cluster is not None:
            atexit.unregister(self.close)
            cluster.close()

    def launch(self, task: Task, stop: Stop) -> None:
        """Runs the workers of a task in the cluster, each by an actor, until the task is done.

        Raises:
            LaunchError: Ray is missing, the cluster does not start or cannot be reached, no node
                has resources for a worker, or workers die before they claim a trial.
            StorageLost: the database stays away.
        """
        ray = self.start(task.count_open_trials(), task.run_dir)
        with closing(self):
            gpus = self.gpus_of_fitting_worker(read_nodes(ray))
            make_remote = ray.remote(
                num_cpus=self.num_cpus,
                num_gpus=gpus,
                # Ray starts an actor again as often as its node is lost, but does not repeat the
                # call that fails then: the launcher learns at once that the worker is gone, and
                # its trial goes to another worker.
                max_restarts=-1,
                max_task_retries=0,
                scheduling_strategy="SPREAD",
            )
            actor_class = make_remote(Actor)
            task.logs.mkdir(parents=True, exist_ok=True)
            prefix = f"{host_id()}-{os.getpid()}-worker"
            command = task.command.worker_arguments()
            workers = []
            for number in range(1, self.count_workers(task.count_open_trials()) + 1):
                log = task.logs.absolute() / f"{prefix}{number}.log"
                workers.append(RayWorker(ray, actor_class, command, log))
            try:
                Supervisor(task, workers).run(stop)
            finally:
                for worker in workers:
                    worker.close()

    def connect(self, run_dir: Path | None = None) -> Any:
        """Joins the cluster, unless that is done, and returns the module `ray`.

        Ray copies the working directory and the package studyloom to the nodes.

        Args:
            run_dir: the run directory. It may be in the working directory, and is not copied.

        Raises:
            LaunchError: Ray is missing, or the cluster cannot be reached.
        """
        ray = import_ray()
        if ray.is_initialized():
            return ray
        here = Path.cwd()
        excludes = ["/runs", "/data"]  # patterns as in .gitignore, relative to `here`
        if run_dir is not None and run_dir.absolute().is_relative_to(here):
            excludes.append(f"/{run_dir.absolute().relative_to(here)}")
        code = {"working_dir": str(here), "py_modules": [str(PACKAGE)], "excludes": excludes}
        return init_ray(self.address, runtime_env=code)

    def gpus_of_fitting_worker(self, nodes: list[Resources]) -> float:
        """Returns the GPUs of one worker; raises LaunchError if it fits on no node."""
        gpus = self.gpus_of_worker(nodes)
        if any(self.count_fitting(node, gpus) for node in nodes):
            return gpus
        sizes = []
        for node in nodes:
            sizes.append(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs")
        raise LaunchError(
            f"launcher: no node has resources for a worker of num_cpus={self.num_cpus:g} and "
            f"num_gpus={gpus:g}; there are {', '.join(sizes)}; ask for less, or for a larger "
            "cluster"
        )


def _is_number_of_gpus(number: object) -> bool:
    """Returns True for an integer of at least 0, and for a fraction of 1."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return False
    is_integer = number % 1 == 0
    return 0 <= number <= 1 or (number > 1 and is_integer)


@contextmanager
def own_cluster(cpus: int) -> Iterator[None]:
    """Provides a new Ray cluster on this host while the body runs.

    Other users of the host can reach the ports of the cluster, so that it gets a secret token. If
    this process is killed, Ray's own processes end by themselves, some of them after a minute.
    """
    token_variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # Set before Ray is imported, which reads them then.
    os.environ |= token_variables
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # The paths of Ray's sockets have at most 107 bytes: its files cannot lie below a run directory.
    with tempfile.TemporaryDirectory(
        prefix=f"studyloom-ray-{os.getpid()}-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        try:
            init_ray(
                None,
                num_cpus=cpus,
                num_gpus=len(visible_gpus()),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=folder,
            )
            yield
        finally:
            with suppress(LaunchError):
                import_ray().shutdown()
            for name in token_variables:
                del os.environ[name]


def import_ray() -> Any:
    """Returns the module `ray`. Raises LaunchError if it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise LaunchError(f"launcher=ray: Ray is missing; {pip_install('ray')} ({error})") from None
    return ray


def init_ray(address: str | None, **options: Any) -> Any:
    """Calls `ray.init` quietly, and returns the module `ray`.

    Ray replaces signal handlers. Those of studyloom are restored afterwards.

    Args:
        address: the address of a running cluster; None starts one on this host.
        options: further arguments of `ray.init`.

    Raises:
        LaunchError: Ray is missing, or `ray.init` fails.
    """
    ray = import_ray()
    # At its usual level Ray reports what it leaves out of its copy of the folder.
    logging.getLogger("ray").setLevel(logging.ERROR)
    handlers = {number: signal.getsignal(number) for number in Stop.SIGNALS}
    try:
        ray.init(
            address or "local",
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
            **options,
        )
    except Exception as error:  # Ray raises a plain one if its processes do not start in time
        problem = f"launcher.address={address}: the cluster cannot be joined"
        if address is None:
            problem = (
                "launcher=ray: its cluster does not start on this host, as launcher=local would"
            )
        raise LaunchError(f"{problem}: {' '.join(str(error).split())}") from None
    finally:
        if threading.current_thread() is threading.main_thread():  # only it can set handlers
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return ray


def read_nodes(ray: Any) -> list[Resources]:
    """Returns the resources of each living node of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


class RayWorker:
    """The handle of a worker in the cluster, which an actor runs once Ray has found a node for it.

    Args:
        ray: the module `ray`, connected.
        actor_class: the class Actor, as `ray.remote` made it.
        command: the arguments of a Python interpreter that runs a worker.
        log: the file of this host to which the worker's output is written.
    """

    def __init__(self, ray: Any, actor_class: Any, command: Sequence[str], log: Path) -> None:
        self.log = log
        self.failures = 0
        self.messages: dict[str, str] = {}
        self.worker_id: str | None = None
        self._ray = ray
        self._actor_class = actor_class
        self._actor: Any = None
        self._pending_reply: Any = None  # Ray's reference to the reply that the actor will send
        environment = {}
        for name, value in os.environ.items():
            if name.startswith(INHERITED_PREFIXES):
                environment[name] = value
        environment[WORKER.name] = "1"
        here = Path.cwd()
        package = PACKAGE.parent
        if package.is_relative_to(here):
            package = package.relative_to(here)
        self._start_arguments = {
            "arguments": [*command],
            "environment": environment,
            "folder": str(here),
            "package": str(package),
            "log": str(log),
        }

    @property
    def active(self) -> bool:
        return self._pending_reply is not None

    def start(self) -> None:
        """Has the actor start a worker; creates the actor first if needed."""
        self.log.touch()  # a node that sees this file shares the disk of this host
        if self._actor is None:
            self._actor = self._actor_class.remote()
        self._pending_reply = self._actor.start.remote(**self._start_arguments)
        self.messages = {}

    def poll(self) -> WorkerExit | None:
        """Takes the actor's reply, if there is one, and requests the next one.

        A reply has the worker's id, its exit code, messages, and output, which goes to the log.

        Returns:
            How the worker ended; None if it has not, as far as is known.
        """
        if self._pending_reply is None:
            return None
        ready, _ = self._ray.wait([self._pending_reply], timeout=0)
        if not ready:
            return None
        try:
            reply = self._ray.get(self._pending_reply)
        except self._ray.exceptions.RayError as error:
            return self._handle_lost_actor(error)
        self.worker_id, code, output, self.messages = reply
        if output:
            with self.log.open("ab") as log:
                log.write(output)
        self._pending_reply = self._actor.poll.remote()
        if code is None:
            return None
        return WorkerExit(code)

    def _handle_lost_actor(self, error: Exception) -> WorkerExit | None:
        """Counts the worker of an actor that does not reply as ended; returns how it ended.

        An actor that is only unavailable may reply later. If no worker has started there yet, its
        start is repeated. Otherwise the actor is kept, so that `kill` ends the worker if it can. If
        the worker is alive nevertheless, it will notice that another one has its trial.

        Args:
            error: what Ray raised instead of the actor's reply.

        Returns:
            None if the start is repeated.
        """
        is_unavailable = isinstance(error, self._ray.exceptions.ActorUnavailableError)
        has_started = self.worker_id is not None
        if is_unavailable and not has_started:  # Ray restarts the actor, or waits for a node
            self.start()
            return None
        reason = type(error).__name__
        if str(error):
            reason = str(error).splitlines()[0]
        with self.log.open("a") as log:
            log.write(f"{reason}\n")
        if not is_unavailable:
            self._actor = None  # the next start creates another one
        return WorkerExit(None, f"its actor ({reason})")

    def stop(self) -> None:
        """Has the worker release its trial and end; kills one that is still being started."""
        if self.worker_id is None:
            self.kill()
        else:
            self._actor.stop.remote()

    def kill(self) -> str | None:
        """Ends the worker's process group, and returns the id that the worker had in the database.

        None if no worker has started. The id shows whose trial the next worker may resume.
        """
        worker_id = self.worker_id
        self.worker_id = None
        self._pending_reply = None
        if worker_id is not None and self._actor is not None:
            with suppress(self._ray.exceptions.RayError):
                self._ray.get(self._actor.kill.remote(), timeout=KILL_DEADLINE)
        return worker_id

    def close(self) -> None:
        """Ends the actor."""
        if self._actor is not None:
            self._ray.kill(self._actor)
            self._actor = None
