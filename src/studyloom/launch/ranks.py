"""The processes of a worker that train each of its trials together with it.

The worker is rank 0, and only it uses the database. It starts the others once, as `torchrun` would:
with `RANK`, `LOCAL_RANK`, `WORLD_SIZE`, `LOCAL_WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`. If one
of them dies, the worker and all its ranks end, and the launcher starts the worker again.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from omegaconf import DictConfig

from studyloom.config.values import describe_error
from studyloom.environment import RANK, WORKER
from studyloom.error_display import wants_tracebacks
from studyloom.errors import ConfigError
from studyloom.launch.line import Line
from studyloom.launch.supervisor import WorkerExit
from studyloom.launch.task import Command
from studyloom.pickled import passed_to_child
from studyloom.processes import end_with
from studyloom.study.stopping import Stop
from studyloom.text import printable
from studyloom.training.ranks import ALONE, Ranks

# Prepares a rank; the function that it returns takes part in what rank 0 calls.
Train = Callable[[Ranks], Callable[[Any], None]]
HOST = "127.0.0.1"
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
FAILED = 70  # the exit code of a rank that has sent its exception to rank 0
TIME_TO_FAIL = 10.0  # seconds in which rank 0 may record that exception
DEADLINE = timedelta(days=30)  # of one exchange: a rank that waits for a long epoch is no fault


def start_ranks(
    cfg: DictConfig, command: Command, line: Line, train: Train, launcher: Any
) -> "Peers":
    """Starts the other ranks of this process; in such a rank, trains and does not return.

    Args:
        line: to the process that started this one.
        train: takes part in what rank 0 leads.
        launcher: the class of the launcher of a command.
    """
    if (mark := RANK.take()) is not None:
        count, descriptor, parent = map(int, mark.split())
        _train(Ranks(int(os.environ["RANK"]), count, [Connection(descriptor)]), parent, train)
    leads = command.is_worker or getattr(launcher, "starts_ranks", False)
    section = cfg.launcher if isinstance(cfg.launcher, DictConfig) else {}
    count = section.get("ranks", 1)  # LocalLauncher reports a wrong number
    if type(count) is not int or count <= 1 or not leads or cfg.study.dry_run:
        return Peers(line)
    # Bound here: any other process could take a port that was only looked up, and PyTorch's store
    # would listen to other hosts too.
    listener = socket.create_server((HOST, 0))
    os.environ |= rank_variables(0, count, listener.getsockname()[1])
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    peers = Peers(line, listener)
    for rank in range(1, count):
        ours, theirs = Pipe()
        peers.lines.append(ours)
        variables = rank_variables(rank, count, listener.getsockname()[1]) | {
            RANK.name: f"{count} {theirs.fileno()} {os.getpid()}",
            WORKER.name: f"{command.age():.3f}",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }
        process = subprocess.Popen(
            [sys.executable, *command.worker()],
            stdin=subprocess.DEVNULL,
            **passed_to_child(variables, theirs.fileno()),
        )
        peers.processes.append(process)
        theirs.close()
    return peers


def rank_variables(rank: int, count: int, port: int) -> dict[str, str]:
    """Returns the variables that `torchrun` sets for a process, and this host's network device."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": LOOPBACK,
        "NCCL_SOCKET_IFNAME": LOOPBACK,
    }


def _train(ranks: Ranks, parent: int, train: Train) -> NoReturn:
    """Trains what rank 0, the process `parent`, leads, until it has ended.

    Signals are for rank 0, with which this process ends.
    """
    code = 1
    try:
        end_with(parent)
        for number in Stop.SIGNALS:
            signal.signal(number, lambda *_: None)
        _join_group(ranks)
        take_part = train(ranks)
        code = FAILED
        ranks.follow(take_part)
        code = 0
    except BaseException as error:
        if wants_tracebacks():
            traceback.print_exc()
        sys.stderr.write(f"rank {ranks.rank}: {printable(describe_error(error))}\n")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _join_group(ranks: Ranks, listener: socket.socket | None = None) -> None:
    """Makes PyTorch's process group: gloo, and NCCL for tensors on GPUs.

    Raises:
        ConfigError: there are fewer GPUs than ranks.
    """
    backend = "gloo"
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        if gpus < ranks.world_size:
            raise ConfigError(
                [
                    f"launcher.ranks={ranks.world_size} needs a GPU for each rank, and this worker "
                    f"has {gpus}; give it more, or set launcher.ranks={max(1, gpus)}"
                ]
            )
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(ranks.rank)
    store = dist.TCPStore(  # type: ignore[attr-defined]
        HOST,
        int(os.environ["MASTER_PORT"]),
        ranks.world_size,
        is_master=listener is not None,
        timeout=DEADLINE,
        wait_for_workers=False,
        master_listen_fd=None if listener is None else listener.detach(),
    )
    dist.init_process_group(
        backend, store=store, rank=ranks.rank, world_size=ranks.world_size, timeout=DEADLINE
    )


class Peers:
    """The other ranks of a worker, as processes; a context, at whose end they end.

    Args:
        line: to the process that started this one.
        listener: the socket at which the others find this process.
    """

    def __init__(self, line: Line, listener: socket.socket | None = None) -> None:
        self.lines: list[Connection] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self._line, self._listener = line, listener
        self._ending = False

    def __enter__(self) -> "Peers":
        for rank, process in enumerate(self.processes, 1):
            threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def connect(self) -> Ranks:
        """Waits for the others, and returns the ranks as rank 0 sees them."""
        if not self.processes:
            return ALONE
        ranks = Ranks(0, len(self.processes) + 1, self.lines, self.end)
        _join_group(ranks, self._listener)
        return ranks

    def end(self) -> None:
        """Ends the others at once."""
        self._ending = True
        for process in self.processes:
            process.kill()

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        """Waits for the end of a rank, and ends this process then, unless it has ended it."""
        code = process.wait()
        if code == FAILED:
            time.sleep(TIME_TO_FAIL)  # this process may be about to record why
        if not self._ending:
            words = f"rank {rank} of the worker ended with {WorkerExit(code)}"
            self._line.say("died", words)
            os.write(2, f"{words}; this process ends too\n".encode())
            os._exit(128 + signal.SIGKILL)  # so a SLURM task starts the worker again
