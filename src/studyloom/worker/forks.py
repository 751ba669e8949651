"""Forks workers of a command before it has threads, a database or a GPU.

A fork begins in milliseconds: a worker that is a command imports PyTorch and composes its
config, 2 s of processor time.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from studyloom.processes import LINUX, adopt_orphans
from studyloom.storage.database import import_lazy_modules
from studyloom.worker.line import Line
from studyloom.worker.task import Launcher

FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None


def can_fork() -> bool:
    """Whether a fork of this process is safe, and orphans below it can be adopted."""
    return LINUX and threading.active_count() == 1


class ForkServer:
    """A copy of this process that forks workers, none of which may use a GPU.

    Threads, database connections and CUDA do not survive a fork, so the copy is made when
    everything is imported and nothing has begun.

    Args:
        work: what a worker does, with its line to this process.
    """

    def __init__(self, work: Callable[[Line], object]) -> None:
        import_lazy_modules()  # once, for all forks
        self._calls, theirs = multiprocessing.Pipe()
        adopt_orphans()  # a worker is one, since its parent ends: so its end is seen here
        self._pid = os.fork()
        if self._pid == 0:
            self._calls.close()
            serve(theirs, work)
        theirs.close()

    def close(self) -> None:
        """Ends the server; all workers must have ended."""
        self._calls.close()
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def start(self, environment: Mapping[str, str], log: Path, line: int) -> "ForkedWorker":
        """Forks a worker, the leader of a session; raises OSError if that fails.

        The fork server may have died, or its fork that forks the worker.

        Args:
            environment: the variables that are set for the worker; OMP_NUM_THREADS among them.
            line: the descriptor of its end of a line.
        """
        try:
            self._calls.send((dict(environment), str(log)))
            send_handle(self._calls, line, self._pid)
            if (pid := self._calls.recv()) is not None:
                self._calls.recv()  # its parent has ended
        except EOFError:
            raise BrokenPipeError("the fork server has died") from None
        if pid is None:
            raise ChildProcessError("the worker's parent has died before it named the worker")
        return ForkedWorker(pid)


def fork_workers(
    launcher: type[Launcher] | None, worker: Callable[[Line], object], ending: ExitStack
) -> ForkServer | None:
    """Makes the fork server of the workers, if this process and the launcher's class may fork."""
    if not can_fork() or launcher is None or not launcher.may_fork:
        return None
    return ending.enter_context(closing(ForkServer(worker)))


def serve(calls: Connection, work: Callable[[Line], object]) -> NoReturn:
    """Forks a worker for each call, until the other end of `calls` is closed."""
    assert FORK is not None
    os.setsid()  # a Ctrl-C in the terminal is only for the command

    def run_worker(environment: Mapping[str, str], log: str, line: int) -> None:
        calls.close()
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for source, target in ((null, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        os.environ.update(environment)
        # OpenMP read its environment long ago.
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
        np.random.seed()  # else all workers would draw the same where nothing is seeded
        work(Line(line))

    try:
        while True:
            call, line = calls.recv(), recv_handle(calls)
            forker = os.fork()
            if forker == 0:
                worker = FORK.Process(target=run_worker, args=(*call, line))
                worker.start()
                calls.send(worker.pid)
                os._exit(0)
            os.close(line)
            os.waitpid(forker, 0)
            calls.send(None)
    except (EOFError, OSError):  # the command has ended, and its workers end by themselves
        os._exit(0)


class ForkedWorker:
    """A forked worker, with the part of the interface of subprocess.Popen that is used."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self, options: int = os.WNOHANG) -> int | None:
        """Returns the exit code, negative for a signal; None if the worker has not ended."""
        if self._code is None:
            ended, status = os.waitpid(self.pid, options)
            self._code = os.waitstatus_to_exitcode(status) if ended else None
        return self._code

    def wait(self) -> int | None:
        """Waits for the worker's end, and returns the exit code."""
        return self.poll(0)
