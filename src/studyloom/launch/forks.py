"""Forks of a command that are taken before it has threads, a database or a GPU.

One of them does the work, watched by the process that was started: the user's code runs in every
command, and may end its process with any exit code, leave a thread that never ends, or start
processes that outlive it. Others are workers, which begin in milliseconds: a worker that is a
command imports PyTorch and composes its configuration, 2 s of processor time.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from types import FrameType
from typing import NoReturn

import numpy as np
import psutil
import torch

from studyloom.launch.line import GRACE, Line, Listener
from studyloom.launch.supervisor import STOPS, WorkerExit
from studyloom.processes import LINUX, adopt_orphans, end_with
from studyloom.storage.database import import_lazy_modules
from studyloom.storage.embedded_server import is_keeper
from studyloom.study.stopping import Stop

FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None


def can_fork() -> bool:
    """Whether a fork of this process is safe, and orphans below it can be adopted."""
    return LINUX and threading.active_count() == 1


@dataclass(frozen=True)
class Death:
    """How a child died that had claimed a trial."""

    pid: int
    words: str


def watch(work: Callable[[Line, Death | None], NoReturn]) -> NoReturn:
    """Does work in a child of this process, and ends this one as the child does.

    Outside Linux, and in a process that has begun other things already, the work is done here.

    Args:
        work: gets the line to this process, and the child that died of a trial before it, if any.
    """
    if can_fork():
        Watch().run(work)
    work(Line(), None)


class Watch:
    """Forks a child, passes signals on to it, and ends with 0 only if the child has said so."""

    def __init__(self) -> None:
        self._asked = False  # whether this process was asked to stop
        self._child: tuple[int, Listener] | None = None
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # so the end of a child is known
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._before = {*psutil.Process().children(recursive=True)}
        # As those of Stop: a SIGHUP that is ignored stays so.
        self._handlers = {
            number: signal.getsignal(number)
            for number in Stop.SIGNALS
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN
        }

    def run(self, work: Callable[[Line, Death | None], NoReturn]) -> None:
        """Does the work in a child, and in another one if that dies of a trial.

        Returns only if no child can do the work.
        """
        death = None
        adopt_orphans()
        while True:
            try:
                line = self._fork()
            except OSError:  # no more processes are allowed
                return
            if line is not None:
                work(line, death)
            assert self._child is not None
            (pid, listener), code = self._child, None
            while code is None:
                ended, status = os.wait()  # other children are orphans from below
                code = os.waitstatus_to_exitcode(status) if ended == pid else None
            end, said = WorkerExit(code), listener.listen()
            listener.close()
            self._child = None
            if "unable" in said:
                self._give_back_handlers()
                return
            # The workers of a command that was killed release their trials and end by themselves.
            self._end_others(0.0 if "claimed" in said or "ended" in said else GRACE + 2)
            if self._asked or "claimed" not in said:
                end_like(end, said)
            if "ended" not in said:
                death = Death(pid, said.get("died", f"the worker ended with {end}"))
                print_line(f"{death.words}; another one goes on")
            elif int(said["ended"]) > 128:  # a signal that came to the child alone
                death = None
            else:
                end_like(end, said)

    def _fork(self) -> Line | None:
        """Forks a child. Returns its line in the child, and None here."""
        sys.stdout.flush()
        sys.stderr.flush()
        listener, parent = Listener(), os.getpid()
        theirs = listener.detach()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._handlers)
        try:
            pid = os.fork()
            if pid == 0:
                self._give_back_handlers()
                end_with(parent)
                listener.close()
                line = Line(theirs)
                if torch.cuda._is_in_bad_fork():  # the page has asked for a GPU already
                    line.say("unable")
                    os._exit(0)
                return line
            self._child = pid, listener
            os.close(theirs)
            for number in self._handlers:
                signal.signal(number, self._pass_on)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return None

    def _give_back_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self._asked = True
        if self._child is not None:
            pid, listener = self._child
            listener.ask(pid, number)

    def _end_others(self, grace: float) -> None:
        """Ends what is left of a child that has ended, after seconds of grace."""
        end = time.monotonic() + grace
        while left := [*self._below(psutil.Process())]:
            _, alive = psutil.wait_procs(left, timeout=max(0.1, end - time.monotonic()))
            for process in alive:
                with suppress(psutil.Error):
                    process.kill()

    def _below(self, process: psutil.Process) -> Iterator[psutil.Process]:
        """Yields the processes below one; the keeper of an embedded server may have other users."""
        with suppress(psutil.Error):  # it has ended
            for child in process.children():
                if child not in self._before and not is_keeper(child):
                    yield child
                    yield from self._below(child)


def end_like(end: WorkerExit, said: Mapping[str, str]) -> NoReturn:
    """Ends this process as its child has ended; with 0 only if the child has said so."""
    if "ended" in said:
        # An interpreter that cannot write its output ends with 120.
        os._exit(int(said["ended"]) or max(0, end.code or 0))
    if end.signal in STOPS:
        assert end.code is not None
        signal.signal(-end.code, signal.SIG_DFL)
        os.kill(os.getpid(), -end.code)
    words = f"the process of this command ended with {end}, and not in order"
    print_line(f"error: {words}; the user's code may have ended it")
    os._exit(1)


def print_line(words: str) -> None:
    with suppress(OSError):
        os.write(2, f"{words}\n".encode())


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
        adopt_orphans()  # a worker is one, since whoever forks it ends: so its end is seen here
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
        """Forks a worker, the leader of a session; raises OSError if the fork server has died.

        Args:
            environment: the variables that are set for the worker; OMP_NUM_THREADS among them.
            line: the descriptor of its end of a line.
        """
        try:
            self._calls.send((dict(environment), str(log)))
            send_handle(self._calls, line, self._pid)
            pid = self._calls.recv()
            self._calls.recv()  # whoever forked it has ended
        except EOFError:
            raise BrokenPipeError("the fork server has died") from None
        return ForkedWorker(pid)


def serve(calls: Connection, work: Callable[[Line], object]) -> NoReturn:
    """Forks a worker for each call, until the other end of `calls` is closed."""
    assert FORK is not None
    os.setsid()  # a Ctrl-C in the terminal is for the command alone

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
