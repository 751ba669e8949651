"""The ranks of a worker: processes beside it that train each of its trials together with it.

The worker is rank 0, and alone speaks to the database. It starts the others once, as `torchrun`
would: with `RANK`, `LOCAL_RANK`, `WORLD_SIZE`, `LOCAL_WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`.
If one of them dies, so does the worker, and its launcher starts both again; the others die with it.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import NoReturn

import torch
import torch.distributed as dist
from omegaconf import DictConfig

from studyloom.config.values import describe_error
from studyloom.errors import ConfigError, wants_tracebacks
from studyloom.launch.command import WORKER_VARIABLE, Command, process_age
from studyloom.launch.fork_server import can_fork
from studyloom.launch.line import Line
from studyloom.launch.prepare import prepare_to_join
from studyloom.launch.supervisor import WorkerExit
from studyloom.processes import collect_as_usual, end_with
from studyloom.study.stopping import Stop
from studyloom.text import printable
from studyloom.training.ranks import ALONE, Ranks

# In the environment of a rank that was started as a command: its number, how many there are, the
# descriptor of its line, and the process that has started it.
VARIABLE = "STUDYLOOM_RANK"
HOST = "127.0.0.1"
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
FAILED = 70  # the exit code of a rank that has told rank 0 of its exception
POLL = 0.1  # seconds between looks at the other ranks
TIME_TO_FAIL = 10.0  # seconds in which rank 0 may record that exception
DEADLINE = timedelta(days=30)  # of one exchange: a rank that waits for a long epoch is no fault


def start_ranks(cfg: DictConfig, command: Command, line: Line) -> "Peers":
    """Starts the other ranks of this process; in one of them it trains, and does not return.

    Call it before this process has threads or uses a GPU: then the others are forks of it on Linux.

    Args:
        cfg: the config as composed.
        command: starts a worker.
        line: to the process that started this one.
    """
    if (mark := os.environ.pop(VARIABLE, None)) is not None:
        rank, count, descriptor, parent = map(int, mark.split())
        _train(cfg, Ranks(rank, count, [Connection(descriptor)]), parent)
    count = _wanted(cfg)
    if count == 1:
        return Peers(line)
    # Bound here: any other process could take a port that was only looked up, and PyTorch's store
    # would listen to other hosts too.
    listener = socket.create_server((HOST, 0))
    os.environ |= _variables(0, count, listener.getsockname()[1])
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    forks = can_fork() and not torch.cuda.device_count()
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        forks = False
    lines: list[Connection] = []
    pids: list[int] = []
    for rank in range(1, count):
        ours, theirs = Pipe()
        lines.append(ours)
        if forks:
            pids.append(_fork(cfg, rank, theirs, listener, lines))
        else:
            pids.append(_spawn(command, rank, theirs))
        theirs.close()
    return Peers(line, lines, pids, listener)


def _wanted(cfg: DictConfig) -> int:
    """Returns how many ranks this process is to have; a wrong number is reported elsewhere."""
    launcher = cfg.launcher if isinstance(cfg.launcher, DictConfig) else {}
    joins = launcher.get("_target_") == "studyloom.launch.Join"
    if not joins and WORKER_VARIABLE not in os.environ:
        return 1
    ranks = launcher.get("ranks", 1)
    return ranks if type(ranks) is int and ranks > 1 and not cfg.study.dry_run else 1


def _variables(rank: int, count: int, port: int) -> dict[str, str]:
    """Returns what `torchrun` sets for a process; and the network device, the one of this host."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": LOOPBACK,
    }


def _fork(
    cfg: DictConfig, rank: int, line: Connection, listener: socket.socket, lines: list[Connection]
) -> int:
    """Forks a rank, and returns its process id.

    Args:
        cfg: the config as composed.
        rank: its number.
        line: from it to rank 0.
        listener: of rank 0, which the fork closes.
        lines: of rank 0, which the fork closes: else it would not see that rank 0 has ended.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            listener.close()
            for other in lines:
                other.close()
            count = int(os.environ["WORLD_SIZE"])
            _train(cfg, Ranks(rank, count, [line]), parent)
        finally:
            os._exit(1)
    return pid


def _spawn(command: Command, rank: int, line: Connection) -> int:
    """Starts a rank as a command, and returns its process id; for GPUs, and outside Linux."""
    count, port = int(os.environ["WORLD_SIZE"]), int(os.environ["MASTER_PORT"])
    mark = f"{rank} {count} {line.fileno()} {os.getpid()}"
    variables = _variables(rank, count, port) | {
        VARIABLE: mark,
        WORKER_VARIABLE: f"{process_age():.3f}",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    process = subprocess.Popen(
        [sys.executable, *command.worker()],
        env=os.environ | variables,
        pass_fds=[line.fileno()],
        stdin=subprocess.DEVNULL,
    )
    process.returncode = 0  # so that nobody but `Peers` waits for it
    return process.pid


def _train(cfg: DictConfig, ranks: Ranks, parent: int) -> NoReturn:
    """Trains what rank 0 leads, until rank 0 has ended.

    Signals are for rank 0, with which this process ends.

    Args:
        cfg: the config as composed.
        ranks: as this process sees them.
        parent: rank 0.
    """
    code = 1
    try:
        end_with(parent)
        threading.Thread(target=_follow_parent, args=(parent,), daemon=True).start()
        for number in Stop.SIGNALS:
            signal.signal(number, lambda *_: None)
        os.environ |= _variables(ranks.rank, ranks.world_size, int(os.environ["MASTER_PORT"]))
        _join_group(ranks)
        prepared = prepare_to_join(cfg, ranks)
        collect_as_usual()
        code = FAILED
        ranks.follow(lambda call: prepared.question.take_part(call, prepared.data))
        code = 0
    except BaseException as error:
        if wants_tracebacks():
            traceback.print_exc()
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"rank {ranks.rank}: {printable(describe_error(error))}\n")
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _follow_parent(parent: int) -> None:
    """Ends this process when the one that started it has ended, where the system does not do it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _join_group(ranks: Ranks, listener: socket.socket | None = None) -> None:
    """Makes PyTorch's process group: gloo, and NCCL beside it for tensors on GPUs.

    Args:
        ranks: as this process sees them.
        listener: of rank 0.

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
        lines: to each of them.
        pids: of each of them.
        listener: the socket at which they find this process.
    """

    def __init__(
        self,
        line: Line,
        lines: list[Connection] | None = None,
        pids: list[int] | None = None,
        listener: socket.socket | None = None,
    ) -> None:
        self._line, self._lines, self._pids = line, lines or [], pids or []
        self._listener = listener
        self._ending = False
        self._left = dict(enumerate(self._pids, 1))  # by rank
        self._lock = threading.Lock()  # else a process id could be another's when it is killed

    def __enter__(self) -> "Peers":
        for rank, pid in enumerate(self._pids, 1):
            threading.Thread(target=self._watch, args=(rank, pid), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def connect(self) -> Ranks:
        """Waits for the others, and returns the ranks as rank 0 sees them.

        Raises:
            ConfigError: there are fewer GPUs than ranks.
        """
        if not self._pids:
            return ALONE
        ranks = Ranks(0, len(self._pids) + 1, self._lines, self.end)
        _join_group(ranks, self._listener)
        return ranks

    def end(self) -> None:
        """Ends the others at once."""
        self._ending = True
        with self._lock:
            for pid in self._left.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _watch(self, rank: int, pid: int) -> None:
        """Waits for the end of a rank, and ends this process then, unless it has ended it."""
        while (code := self._exit_code(rank, pid)) is None:
            time.sleep(POLL)
        if code == FAILED:
            time.sleep(TIME_TO_FAIL)  # this process may be about to record why
        if not self._ending:
            self._line.say_rank_ended(rank, code)
            words = f"rank {rank} ended with {WorkerExit(code)}; this process ends too\n"
            os.write(2, words.encode())
            os._exit(1)

    def _exit_code(self, rank: int, pid: int) -> int | None:
        """Returns how a rank ended, negative for a signal; None if it has not."""
        with self._lock:
            try:
                ended, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # the user's code has waited for it
                ended, status = pid, 1 << 8
            if ended:
                del self._left[rank]
            return os.waitstatus_to_exitcode(status) if ended else None
