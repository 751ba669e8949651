"""A command in a child of this process, which watches it and runs no code of the user's.

The user's code runs in every command: networks are tried out in it, a single worker trains them
there, and the winner is tested. It may end its process at any moment and with any exit code, leave
a thread that never ends, or start processes that outlive it. So the parent ends with 0 only if the
child has said so, starts another child where one has died of a trial, and ends what is left.
"""

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

import torch

from studyloom.launch.fork_server import can_fork
from studyloom.launch.line import Line, Listener, open_line
from studyloom.launch.supervisor import GRACE, STOPS, WorkerExit, describe_death
from studyloom.processes import adopt_orphans, descendants, end_with
from studyloom.storage.embedded_server import is_keeper
from studyloom.study.stopping import Stop

POLL = 0.5  # seconds between looks at what nothing wakes this process for


@dataclass(frozen=True)
class Death:
    """A child that ended before it had said so.

    Args:
        pid: its process id.
        words: how it ended.
    """

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
    work(Line(None), None)


class Watch:
    """Forks a child, passes signals on to it, and waits for its end."""

    def __init__(self) -> None:
        self._asked: int | None = None  # the signal by which this process was asked to stop
        self._child: tuple[int, Listener] | None = None
        self._before = descendants(os.getpid())
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
            pid, listener = self._child
            end, heard = WorkerExit(self._wait(pid, listener)), listener.heard
            self._child = None
            listener.close()
            if heard.unable:
                self._give_back_handlers()
                return
            # The workers of a command that was killed release their trials and end by themselves.
            alone = heard.claimed or heard.code is not None
            self._end_others(0.0 if alone else GRACE + 2)
            if self._asked is not None or not heard.claimed:
                end_like(end, heard.code)
            if heard.released:
                death = None
            elif heard.code is not None:
                end_like(end, heard.code)
            else:
                death = Death(pid, describe_death("the worker", end, heard))
                print_line(f"{death.words}; another one goes on")

    def _fork(self) -> Line | None:
        """Forks a child. Returns its line in the child, and None here."""
        sys.stdout.flush()
        sys.stderr.flush()
        listener, theirs = open_line()
        parent = os.getpid()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._handlers)
        try:
            pid = os.fork()
            if pid == 0:
                self._give_back_handlers()
                end_with(parent)
                listener.close()
                line = Line(theirs)
                if torch.cuda._is_in_bad_fork():  # the page has asked for a GPU already
                    line.say_unable()
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
        self._asked = number
        if self._child is not None:
            pid, listener = self._child
            listener.ask(pid, number)

    def _wait(self, pid: int, listener: Listener) -> int:
        """Waits for a child's end, or ends it if it does not come to its own.

        Returns:
            Its exit code, negative for a signal.
        """
        ready = [os.pidfd_open(pid), listener.fileno()]
        try:
            while True:
                select.select(ready, [], [], POLL)
                while words := listener.listen():
                    pass
                if words == b"":  # its end is closed
                    del ready[1:]
                if listener.heard.lingers:
                    os.kill(pid, signal.SIGKILL)
                if (status := reap(pid)) is not None:
                    while listener.listen():
                        pass
                    return status
        finally:
            os.close(ready[0])

    def _end_others(self, grace: float) -> None:
        """Ends what is left of a child that has ended, such as a session that a trial has begun.

        The keeper of an embedded server stays: it ends by itself when nobody uses the server.

        Args:
            grace: seconds in which the processes may end by themselves.
        """
        end = time.monotonic() + grace
        while True:
            reap()
            left = descendants(os.getpid(), lambda pid: pid in self._before or is_keeper(pid))
            if not left:
                return
            if time.monotonic() >= end:
                for pid in left:
                    with suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.01 if not grace else 0.1)


def reap(wanted: int | None = None) -> int | None:
    """Takes note of all children that have ended; a child that nobody waits for stays in the list.

    Args:
        wanted: the process id of one child.

    Returns:
        How that one ended: its exit code, negative for a signal; None if it has not.
    """
    code = None
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == wanted:
                code = os.waitstatus_to_exitcode(ended[1])
    return code


def end_like(end: WorkerExit, said: int | None) -> NoReturn:
    """Ends this process as its child has ended; with 0 only if the child has said so.

    Args:
        end: how it ended.
        said: the exit code with which it said that it ends; None if it did not.
    """
    if said is None and end.signal in STOPS:
        assert end.code is not None
        signal.signal(-end.code, signal.SIG_DFL)
        os.kill(os.getpid(), -end.code)
    if said is None:
        words = f"the process of this command ended with {end}, and not in order"
        print_line(f"error: {words}; the user's code may have ended it")
        os._exit(1)
    # An interpreter that cannot write its output ends with 120.
    os._exit(said or max(0, end.code or 0))


def print_line(words: str) -> None:
    with suppress(OSError):
        os.write(2, f"{words}\n".encode())
