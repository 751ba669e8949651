"""Forks the workers of a command, from a copy that it makes of itself before it does anything.

A fork begins in milliseconds: a worker that is a command imports PyTorch and composes its
config, 2 s of processor time. Threads, database connections and CUDA do not survive a fork. So a
*fork server*, a copy of this process, is made when everything is imported and nothing has begun,
and it forks the workers.
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

FORK = None  # the context of multiprocessing; None where the system cannot fork
if hasattr(os, "fork"):
    FORK = multiprocessing.get_context("fork")


STDIN = 0
STDOUT = 1
STDERR = 2


def can_fork() -> bool:
    """Returns whether a fork of this process is safe, and orphans below it can be adopted."""
    return LINUX and threading.active_count() == 1


class ForkServer:
    """A copy of this process that forks workers, none of which may use a GPU."""

    def __init__(self, work: Callable[[Line], object]) -> None:
        """Forks the server.

        Args:
            work: What a worker does, with its line to this process.
        """
        import_lazy_modules()  # once, for all forks
        self._calls, servers_end = multiprocessing.Pipe()
        # A worker is an orphan, since its parent ends. This process learns how it ends only if it
        # has adopted it.
        adopt_orphans()
        self._pid = os.fork()
        is_fork_server = self._pid == 0
        if is_fork_server:
            self._calls.close()
            serve(servers_end, work)  # does not return
        servers_end.close()

    def close(self) -> None:
        """Ends the server; all workers must have ended."""
        self._calls.close()
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def start(self, environment: Mapping[str, str], log: Path, line: int) -> "ForkedWorker":
        """Forks a worker, the leader of a session.

        The fork server forks an intermediate process, the worker's parent, which forks the worker,
        sends the worker's process id, and ends. The worker is then an orphan, which this process
        adopts. See `serve`.

        Args:
            environment: The variables that are set for the worker; OMP_NUM_THREADS among them.
            log: The file to which its output is appended.
            line: The descriptor of its end of a line, by which it sends this process messages.

        Raises:
            OSError: The fork server has died, or the worker's parent.
        """
        try:
            self._calls.send((dict(environment), str(log)))
            send_handle(self._calls, line, self._pid)
            # Two messages come: the worker's process id from its parent, and then None from the
            # fork server, once the parent has ended. Without the first, the parent has died.
            pid = self._calls.recv()
            if pid is None:
                message = "the worker's parent has died before it named the worker"
                raise ChildProcessError(message)
            self._calls.recv()  # None
        except EOFError:
            raise BrokenPipeError("the fork server has died") from None
        return ForkedWorker(pid)


def make_fork_server(
    launcher: type[Launcher] | None, work: Callable[[Line], object], cleanup: ExitStack
) -> ForkServer | None:
    """Makes the fork server of the workers, if this process and the launcher's class may fork.

    Args:
        launcher: The class of the launcher; None if it has none.
        work: What a worker does, with its line to this process.
        cleanup: Ends the fork server.
    """
    if not can_fork() or launcher is None or not launcher.may_fork:
        return None
    server = ForkServer(work)
    return cleanup.enter_context(closing(server))


def serve(calls: Connection, work: Callable[[Line], object]) -> NoReturn:
    """Forks a worker for each call, until the command closes its end of `calls`.

    A call takes three steps:

    1. This process forks a parent of the worker.
    2. The parent forks the worker, sends the worker's process id to the command, and ends. The
       worker is then an orphan, and the command becomes its parent (`adopt_orphans`), so that it
       can learn how the worker ends.
    3. This process sends None, since the parent has ended.

    Args:
        calls: The pipe to the command, by which each call comes with a line for the worker.
        work: What a worker does, with its line.
    """
    assert FORK is not None
    os.setsid()  # a Ctrl-C in the terminal is only for the command

    def run_worker(environment: Mapping[str, str], log: str, line_descriptor: int) -> None:
        """Works in the forked process, as the leader of a session with its own log."""
        calls.close()  # only the fork server uses it
        os.setsid()
        _redirect_output(log)
        os.environ.update(environment)
        # The variable of OpenMP comes too late: it was read when PyTorch was imported.
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
        np.random.seed()  # else all workers would draw the same where nothing is seeded
        work(Line(line_descriptor))

    try:
        while True:
            environment, log = calls.recv()
            line_descriptor = recv_handle(calls)
            parent_pid = os.fork()
            in_parent = parent_pid == 0  # `fork` returns 0 in the process that it has made
            if in_parent:
                worker = FORK.Process(target=run_worker, args=(environment, log, line_descriptor))
                worker.start()
                calls.send(worker.pid)
                os._exit(0)
            os.close(line_descriptor)  # the worker has its own copy
            os.waitpid(parent_pid, 0)
            calls.send(None)  # the parent has ended
    except (EOFError, OSError):  # the command has ended; its workers notice that on their lines
        os._exit(0)


def _redirect_output(log: str) -> None:
    """Appends standard output and errors of this process to a file, and closes its input."""
    null = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(null, STDIN)
    os.dup2(output, STDOUT)
    os.dup2(output, STDERR)


class ForkedWorker:
    """A forked worker, with the part of the interface of subprocess.Popen that is used."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self, options: int = os.WNOHANG) -> int | None:
        """Returns the exit code, negative for a signal; None if the worker has not ended.

        Args:
            options: WNOHANG, to return at once; 0 to wait for the end.
        """
        if self._code is None:
            ended_pid, status = os.waitpid(self.pid, options)
            has_ended = ended_pid != 0
            if has_ended:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def wait(self) -> int | None:
        """Waits for the worker's end, and returns the exit code."""
        return self.poll(0)
