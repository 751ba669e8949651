"""When to stop: after a signal, a request from another terminal, or a time limit.

A signal is a *request* to stop the study if it came to all processes of the study, as by Ctrl-C in
the terminal, or from the launcher. A *lone* signal came to this process only, from the user's code
or from a person who ends processes: then this process stops, and another one replaces it.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any, Literal
from weakref import WeakSet

from studyloom.errors import Interrupted, Stopped, StudyloomError
from studyloom.processes import running_in_thread
from studyloom.storage import sql
from studyloom.storage.attributes import CONTROL
from studyloom.storage.database import Connection
from studyloom.storage.stored_study import StoredStudy


def always() -> bool:
    return True


class Stop:
    """Decides whether to stop: after Ctrl-C, SIGTERM or SIGHUP, or a time limit in seconds.

    A second signal raises Interrupted at once. An instance is a context manager, and handles those
    signals if it is entered in the main thread; in another thread only the time limit counts. It
    handles a Ctrl-C that was ignored, as a shell does for a command that it starts with `&`; a
    SIGHUP that was ignored stays so, as under `nohup`.

    Attributes:
        signal: The number of the signal that requested a stop, or that came to this process only.
        lone_signal: The name of the signal that came to this process only.
        requested: What requested a stop without a signal, such as `studyloom stop`.
        paused: Whether to release trials, and claim no others, until it is False again.
        is_shown: Whether another part shows that the process stops; then this prints no line.
        deadline: When the time limit ends, as time.monotonic; None without one.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(
        self, timeout: float | None = None, is_requested: Callable[[], bool] = always
    ) -> None:
        """Prepares to handle signals.

        Args:
            timeout: Seconds until the time limit ends; None without one.
            is_requested: Called after a signal; returns whether it is a request to stop the study.
        """
        self.signal: int | None = None
        self.lone_signal: str | None = None
        self.requested: str | None = None
        self.paused = False
        self.is_shown = False
        self.deadline: float | None = None
        if timeout is not None:
            self.deadline = time.monotonic() + timeout
        self._is_requested = is_requested
        self._interruptible = False
        self._has_signaled = False  # whether the signal that `request` sends has come
        self._previous_handlers: dict[int, Any] = {}

    def __call__(self) -> bool:
        if self._has_reason:
            return True
        return self.deadline is not None and time.monotonic() >= self.deadline

    @property
    def _has_reason(self) -> bool:
        """Returns whether a signal or request has come."""
        return self.signal is not None or self.requested is not None

    @property
    def reason(self) -> str:
        """The reason to stop, in words."""
        if self.requested is not None:
            return self.requested
        if self.signal is not None:
            return "stopped"
        return "the time is up"

    def request(self, reason: str) -> None:
        """Stops without an outside signal; from any thread.

        An epoch that this process trains is cut short, as by a signal.
        """
        if self._has_reason:
            return
        self.requested = reason
        if self._previous_handlers:
            # Python runs its handler in the main thread, where the epoch is trained.
            os.kill(os.getpid(), signal.SIGTERM)

    def __enter__(self) -> "Stop":
        is_main_thread = threading.current_thread() is threading.main_thread()
        if not is_main_thread:  # no other thread can set handlers
            return self
        for number in self.SIGNALS:
            is_ignored = signal.getsignal(number) is signal.SIG_IGN
            is_under_nohup = is_ignored and number == signal.SIGHUP
            if not is_under_nohup:
                self._previous_handlers[number] = signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            # While it is ignored, the exit codes of children are lost.
            previous = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._previous_handlers[signal.SIGCHLD] = previous
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Lets the first signal interrupt the body, which may be left at any step.

        Use it for nothing else: an exception between the two halves of a transaction does harm.
        """
        self._interruptible = True
        try:
            if self._has_reason:
                raise Stopped
            yield
        finally:
            self._interruptible = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal; Python calls it in the main thread, between any two steps.

        Args:
            frame: The step at which the main thread is interrupted.
        """
        is_terminating = self.requested is not None and number == signal.SIGTERM
        is_from_request = is_terminating and not self._has_signaled
        if is_from_request:
            self._has_signaled = True
            self._print(f"stopping, as {self.requested} says")
            self._interrupt(frame)
            return
        is_requested = self._is_requested()
        if self.signal is not None and not is_requested:
            # A terminal sends a Ctrl-C to this process and to the one that passes it on.
            return
        is_second_request = self.signal is not None and self.lone_signal is None
        if is_second_request:
            if _is_finalizer(frame):  # Python would drop the exception; one more signal stops it
                return
            raise Interrupted
        self.signal = number
        if is_requested:
            self.lone_signal = None
            self._print("stopping; once more stops at once")
        else:
            self.lone_signal = signal.Signals(number).name
            self._print("stopping")
        self._interrupt(frame)

    def _interrupt(self, frame: FrameType | None) -> None:
        """Leaves the body of `interruptible`, unless Python would drop the exception."""
        if self._interruptible and not _is_finalizer(frame):
            raise Stopped

    def _print(self, line: str) -> None:
        if not self.is_shown:
            os.write(2, f"{line}\n".encode())


# The code of finalizers that are no `__del__`: of multiprocessing's, and of entries of a WeakSet.
FINALIZERS = (Finalize.__call__.__code__, vars(WeakSet())["_remove"].__code__)


def _is_finalizer(frame: FrameType | None) -> bool:
    """Returns whether a frame is part of a finalizer, whose exceptions Python prints and drops.

    The body then stops at its next check instead, at the end of an epoch.
    """
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__del__" or code in FINALIZERS:
            return True
        frame = frame.f_back
    return False


# Forks of the user's code, such as workers of a pool, must end by signals as usual, although they
# inherit the handlers of a Stop. Python forgets a signal that comes to a fork before its code runs:
# of 100 forks that their parent terminated at once, 63 lived on, and `multiprocessing.Pool` then
# waits forever. So signals are blocked before each fork, until the fork has dropped the handlers.

_before_fork = threading.local()  # `blocked`: the signals that a thread blocked before its fork


def _handled_signals() -> list[int]:
    """Returns the signals that a Stop handles now."""
    handled: list[int] = []
    for number in Stop.SIGNALS:
        handler = signal.getsignal(number)
        if getattr(handler, "__func__", None) is Stop._handle:
            handled.append(number)
    return handled


def _block_signals() -> None:
    _before_fork.blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _handled_signals())


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _before_fork.blocked)


def _end_fork_by_signals() -> None:
    for number in _handled_signals():
        signal.signal(number, signal.SIG_DFL)
    _unblock_signals()


os.register_at_fork(
    before=_block_signals,
    after_in_parent=_unblock_signals,
    after_in_child=_end_fork_by_signals,
)


# Requests of other terminals, which are stored with the study

Request = Literal["stop", "pause"]
POLL = 1.0  # seconds between looks, one short read each


def read_control(stored: StoredStudy) -> Request | None:
    """Returns the request of another terminal; None without one."""
    (request,) = stored.attributes(CONTROL)
    if request == "stop":
        return "stop"
    if request == "pause":
        return "pause"
    return None  # also for anything else that another program has stored


def set_control(stored: StoredStudy, request: Request | None) -> bool:
    """Requests all workers of a study to stop or to pause; None withdraws a request to pause.

    Returns:
        False if the study was requested to stop, which only a command that starts it again
        withdraws: its workers may still be about to stop. Then nothing is stored.
    """
    ledger = stored.ledger

    def store(connection: Connection) -> bool:
        if stored.is_studylooms:
            sql.lock_study(connection, ledger.study_id, ledger.uuid)
        (present,) = sql.study_attrs(connection, ledger.study_id, CONTROL)
        if present == "stop" and request != "stop":
            return False
        if present != request:
            sql.set_study_attr(connection, ledger.study_id, CONTROL, request)
        return True

    return ledger.storage.execute(store)


def withdraw_stop(stored: StoredStudy) -> None:
    """Withdraws a request to stop, as a command does that starts the study again."""
    if read_control(stored) == "stop":
        stored.optuna.set_user_attr(CONTROL, None)


@contextlib.contextmanager
def following_requests(stored: StoredStudy, stop: Stop, *, stops: bool = True) -> Iterator[None]:
    """Follows the requests of other terminals, in a thread, while the body runs.

    Args:
        stops: Whether to stop on request; a worker of a launcher waits for its launcher instead.
    """

    def follow(end: threading.Event) -> None:
        while True:
            with contextlib.suppress(StudyloomError):
                request = read_control(stored)
                stop.paused = request == "pause"
                if request == "stop" and stops:
                    stop.request("studyloom stop")
                    return
            if end.wait(POLL):
                return

    with running_in_thread(follow):
        yield
