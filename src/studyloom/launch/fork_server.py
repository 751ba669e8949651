"""Workers without the time it takes to start up: forked from a copy of this process that is set aside for it early.

A worker that is started as a command imports PyTorch and composes its configuration, about 2.5 s of processor time. One
that is forked has all that when it begins.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch

from studyloom.processes import is_alive

UNSEEN = 255  # exit code of a worker whose end nobody has seen
Work = Callable[[], object]


class ForkServer:
    """A copy of this process that forks workers.

    Threads, database connections and CUDA do not live through a fork. So it is made when all is imported, and nothing
    has begun; `environment` must name no GPU.
    """

    def __init__(self, work: Work) -> None:
        fork = multiprocessing.get_context("fork")
        self._calls, theirs = fork.Pipe()
        reading, self._line = os.pipe()  # closes when this process is gone, whatever ended it
        self._codes: dict[int, int] = {}
        self._process = fork.Process(target=self._serve, args=(theirs, reading, work))
        self._process.start()
        theirs.close()
        os.close(reading)

    @classmethod
    def open(cls, work: Work) -> "ForkServer | None":
        """One whose workers do `work`; None where a fork is not safe: on other systems, and beside threads."""
        if sys.platform != "linux" or threading.active_count() > 1:
            return None
        try:
            os.close(os.pidfd_open(os.getpid()))
        except OSError:  # before Linux 5.3
            return None
        return cls(work)

    def close(self) -> None:
        """Ends the nursery; no worker may be left."""
        self._calls.close()
        os.close(self._line)
        self._process.join()

    def start(self, environment: Mapping[str, str], log: Path) -> "ForkedWorker":
        """A new worker, as the leader of a session, whose standard input closes when this process is gone.

        Raises:
            OSError: the nursery is gone.
        """
        try:
            self._calls.send((dict(environment), str(log)))
            while isinstance(said := self._calls.recv(), tuple):
                self._note(said)
        except EOFError:
            raise BrokenPipeError("the nursery is gone") from None
        return ForkedWorker(said, self)

    def code(self, pid: int, timeout: float | None) -> int | None:
        """The exit code of a worker, negative for a signal; None if it has not ended within so many seconds."""
        try:
            while pid not in self._codes and self._calls.poll(timeout):
                self._note(self._calls.recv())
        except (EOFError, OSError):
            return None if is_alive(pid) else UNSEEN
        return self._codes.get(pid)

    def _note(self, said: tuple[int, int]) -> None:
        pid, code = said
        self._codes[pid] = code

    def _serve(self, calls: Connection, reading: int, work: Work) -> None:
        self._calls.close()
        os.close(self._line)
        os.setsid()  # a Ctrl-C in the terminal is for the command alone
        workers: dict[
            int, BaseProcess
        ] = {}  # by a descriptor that is ready at their end, whoever else lives on

        def live(environment: Mapping[str, str], log: str) -> None:
            calls.close()
            set_up_worker(environment, log, reading)
            work()

        try:
            while True:
                for ready in wait([calls, *workers]):
                    if isinstance(ready, int):
                        ended = workers.pop(ready)
                        os.close(ready)
                        ended.join()
                        calls.send((ended.pid, ended.exitcode))
                    else:
                        worker = multiprocessing.get_context("fork").Process(
                            target=live, args=calls.recv()
                        )
                        worker.start()
                        assert worker.pid is not None
                        workers[os.pidfd_open(worker.pid)] = worker
                        calls.send(worker.pid)
        except (EOFError, OSError):  # the command has ended, and its workers do so by themselves
            os._exit(0)


def set_up_worker(environment: Mapping[str, str], log: str, reading: int) -> None:
    """What a forked worker has of its own."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for theirs, own in ((reading, 0), (output, 1), (output, 2)):
        os.dup2(theirs, own)
    os.environ.update(environment)
    torch.set_num_threads(
        int(environment["OMP_NUM_THREADS"])
    )  # OpenMP has read its environment long before
    np.random.seed()  # what nobody seeds is not to be the same in all workers


class ForkedWorker:
    """A worker of the nursery, as subprocess.Popen would show it."""

    def __init__(self, pid: int, fork_server: ForkServer) -> None:
        self.pid = pid
        self.fork_server = fork_server

    def poll(self) -> int | None:
        return self.fork_server.code(self.pid, 0.0)

    def wait(self) -> int | None:
        return self.fork_server.code(self.pid, None)
