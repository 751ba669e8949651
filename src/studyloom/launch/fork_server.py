"""Starts workers in milliseconds: forks them from a copy of this process that was made early.

A worker that is started as a command imports PyTorch and composes its configuration, which takes
about 2 s of processor time. A forked one has all that from the first moment.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path

import numpy as np
import torch

from studyloom.launch.line import Line
from studyloom.processes import is_alive
from studyloom.storage.connections import import_lazy_modules

UNSEEN = 255  # exit code of a worker whose end nobody saw
Work = Callable[[Line], object]


def can_fork() -> bool:
    """Whether a fork of this process is safe, and its end can be waited for."""
    if sys.platform != "linux" or threading.active_count() > 1:
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError):  # before Linux 5.3, and a Python that was built for that
        return False
    return True


class ForkServer:
    """A copy of this process that forks workers.

    Threads, database connections and CUDA do not survive a fork. Therefore the copy is made when
    everything is imported and nothing has begun, and no worker may use a GPU.

    Args:
        work: what a worker does, with its line to this process.
    """

    def __init__(self, work: Work) -> None:
        fork = multiprocessing.get_context("fork")
        self._calls, server_end = fork.Pipe()
        reading, self._line = os.pipe()  # closes when this process ends, however it ends
        self._codes: dict[int, int] = {}
        self._process = fork.Process(target=self._serve, args=(server_end, reading, work))
        self._process.start()
        server_end.close()
        os.close(reading)

    @classmethod
    def open(cls, work: Work) -> "ForkServer | None":
        """Starts a fork server if a fork is safe.

        Args:
            work: what a worker does.

        Returns:
            The server; None outside Linux, and if this process has several threads.
        """
        if not can_fork():
            return None
        import_lazy_modules()  # once, for all forks
        return cls(work)

    def close(self) -> None:
        """Ends the server; all workers must have ended."""
        # A worker that works in this process may have closed all of its files.
        with suppress(OSError):
            self._calls.close()
        with suppress(OSError):
            os.close(self._line)
        self._process.join()

    def start(self, environment: Mapping[str, str], log: Path, line: int) -> "ForkedWorker":
        """Forks a worker, the leader of a session, whose input closes when this process ends.

        Args:
            environment: the variables that are set for the worker; OMP_NUM_THREADS among them.
            log: the file to which its output is appended.
            line: the descriptor of its end of a line.

        Raises:
            OSError: the fork server has died.
        """
        try:
            self._calls.send((dict(environment), str(log)))
            assert self._process.pid is not None
            send_handle(self._calls, line, self._process.pid)
            while isinstance(message := self._calls.recv(), tuple):
                self._store_code(message)
        except EOFError:
            raise BrokenPipeError("the fork server has died") from None
        return ForkedWorker(message, self)

    def exit_code(self, pid: int, timeout: float | None) -> int | None:
        """Returns the exit code of a worker, negative for a signal.

        Args:
            pid: of the worker.
            timeout: seconds to wait for its end; None to wait for as long as it takes.

        Returns:
            The code; None if the worker has not ended; UNSEEN if the fork server died before it.
        """
        try:
            while pid not in self._codes and self._calls.poll(timeout):
                self._store_code(self._calls.recv())
        except (EOFError, OSError):
            return None if is_alive(pid) else UNSEEN
        return self._codes.get(pid)

    def _store_code(self, message: tuple[int, int]) -> None:
        pid, code = message
        self._codes[pid] = code

    def _serve(self, calls: Connection, reading: int, work: Work) -> None:
        """Runs the server: forks a worker for each call, and sends the exit code of each."""
        self._calls.close()
        os.close(self._line)
        os.setsid()  # a Ctrl-C in the terminal is for the command alone
        # By a descriptor that is ready when the worker has ended, even if its children live on.
        workers: dict[int, BaseProcess] = {}

        def run_worker(environment: Mapping[str, str], log: str, line: int) -> None:
            calls.close()
            set_up_worker(environment, log, reading)
            work(Line(line))

        try:
            while True:
                for ready in wait([calls, *workers]):
                    if isinstance(ready, int):
                        ended = workers.pop(ready)
                        os.close(ready)
                        ended.join()
                        calls.send((ended.pid, ended.exitcode))
                    else:
                        call, line = calls.recv(), recv_handle(calls)
                        worker = multiprocessing.get_context("fork").Process(
                            target=run_worker, args=(*call, line)
                        )
                        worker.start()
                        os.close(line)
                        assert worker.pid is not None
                        workers[os.pidfd_open(worker.pid)] = worker
                        calls.send(worker.pid)
        except (EOFError, OSError):  # the command has ended, and its workers end by themselves
            os._exit(0)


def set_up_worker(environment: Mapping[str, str], log: str, reading: int) -> None:
    """Gives a forked worker its own session, input, output, variables and threads.

    Args:
        environment: the variables that are set; OMP_NUM_THREADS among them.
        log: the file to which the worker's output is appended.
        reading: the descriptor that becomes its standard input.
    """
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for source, target in ((reading, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.environ.update(environment)
    # OpenMP read its environment long ago.
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    np.random.seed()  # else all workers would draw the same where nothing is seeded


class ForkedWorker:
    """A forked worker, with the part of the interface of subprocess.Popen that is used."""

    def __init__(self, pid: int, fork_server: ForkServer) -> None:
        self.pid = pid
        self.fork_server = fork_server

    def poll(self) -> int | None:
        """Returns the exit code; None if the worker has not ended."""
        return self.fork_server.exit_code(self.pid, 0.0)

    def wait(self) -> int | None:
        """Waits for the worker's end, and returns the exit code."""
        return self.fork_server.exit_code(self.pid, None)
