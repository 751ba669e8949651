"""When to stop: after a signal, a request from another terminal, or a time limit."""

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


class Stop:
    """Decides whether to stop: after Ctrl-C, SIGTERM or SIGHUP, or a time limit in seconds.

    A second signal raises Interrupted at once. An instance is a context manager, and handles those
    signals if it is entered in the main thread; in another thread only the time limit counts. It
    handles a Ctrl-C that was ignored, as a shell does for a command that it starts with `&`; a
    SIGHUP that was ignored stays so, as under `nohup`.

    Args:
        is_asked: called after a signal; returns whether it is a request to stop the study. If not,
            it came to this process only, from the user's code or from a person who ends processes:
            then this process stops, and another one replaces it.

    Attributes:
        requested: what requested a stop without a signal, such as `studyloom stop`.
        paused: whether to release trials, and claim no others, until it is False again.
        telling: whether another part shows that the process stops; then this prints no line.
        alone: the signal that came to this process only, in words.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(
        self, timeout: float | None = None, is_asked: Callable[[], bool] = lambda: True
    ) -> None:
        self.signal: int | None = None
        self.requested: str | None = None
        self.paused = False
        self.telling = False
        self.alone: str | None = None
        self._is_asked = is_asked
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self._interruptible = False
        self._signaled = False  # whether the signal of `request` has come
        self._handlers: dict[int, Any] = {}  # those before

    def __call__(self) -> bool:
        return self._asked or (self.deadline is not None and time.monotonic() >= self.deadline)

    @property
    def _asked(self) -> bool:
        return self.signal is not None or self.requested is not None

    @property
    def ended_by(self) -> str:
        """The reason to stop, in words."""
        if self.requested is not None:
            return self.requested
        return "the time is up" if self.signal is None else "stopped"

    def request(self, words: str) -> None:
        """Stops without an outside signal; from any thread.

        An epoch that this process trains is cut short, as by a signal.
        """
        if self._asked:
            return
        self.requested = words
        if self._handlers:
            os.kill(os.getpid(), signal.SIGTERM)  # Python runs its handler in the main thread

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # no other can set handlers
            for number in self.SIGNALS:
                ignored = signal.getsignal(number) is signal.SIG_IGN
                if not (ignored and number == signal.SIGHUP):  # ignored under `nohup`
                    self._handlers[number] = signal.signal(number, self._handle)
            if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # so the end of a child is known
                self._handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Lets the first signal interrupt the body, which may be left at any step.

        Use it for nothing else: an exception between the two halves of a transaction does harm.
        """
        self._interruptible = True
        try:
            if self._asked:
                raise Stopped
            yield
        finally:
            self._interruptible = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None and not self._signaled and number == signal.SIGTERM:
            self._signaled = True  # the one that `request` has sent
            self._tell(f"stopping, as {self.requested} says")
            self._interrupt(frame)
            return
        asked = self._is_asked()
        if self.signal is not None and not asked:
            # A terminal sends a Ctrl-C to this process and to the one that passes it on.
            return
        if self.signal is not None and self.alone is None:
            if _is_finalizer(frame):
                return  # one more signal stops it
            raise Interrupted
        self.signal, self.alone = number, None if asked else signal.Signals(number).name
        self._tell("stopping; once more stops at once" if asked else "stopping")
        self._interrupt(frame)

    def _interrupt(self, frame: FrameType | None) -> None:
        """Leaves the body of `interruptible`, unless Python would drop the exception."""
        if self._interruptible and not _is_finalizer(frame):
            raise Stopped

    def _tell(self, words: str) -> None:
        if not self.telling:
            os.write(2, f"{words}\n".encode())


_FINALIZERS = (Finalize.__call__.__code__, vars(WeakSet())["_remove"].__code__)


def _is_finalizer(frame: FrameType | None) -> bool:
    """Whether a frame is part of a finalizer, whose exceptions Python prints and drops.

    The body then stops at its next check instead, at the end of an epoch.
    """
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__del__" or code in _FINALIZERS:
            return True
        frame = frame.f_back
    return False


_fork = threading.local()  # the signals that a thread blocked before its fork


def _handled() -> list[int]:
    """Returns the signals that a Stop handles now."""
    handlers = ((n, getattr(signal.getsignal(n), "__func__", None)) for n in Stop.SIGNALS)
    return [number for number, handler in handlers if handler is Stop._handle]


def _hold_signals() -> None:
    _fork.blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _handled())


def _let_signals_come() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _fork.blocked)


def _end_by_signals() -> None:
    """Lets signals end a fork of the user's code, such as a worker of a pool, as usual.

    Python forgets a signal that comes to a fork before its code runs: of 100 forks that their
    parent terminated at once, 63 lived on, and `multiprocessing.Pool` then waits for ever. So
    signals are held back until the fork no longer handles them.
    """
    for number in _handled():
        signal.signal(number, signal.SIG_DFL)
    _let_signals_come()


os.register_at_fork(
    before=_hold_signals, after_in_parent=_let_signals_come, after_in_child=_end_by_signals
)


Request = Literal["stop", "pause"]
POLL = 1.0  # seconds between looks, one short read each


def read_control(stored: StoredStudy) -> Request | None:
    """Returns the request of another terminal; None without one."""
    (request,) = stored.attributes(CONTROL)
    return request if request in ("stop", "pause") else None


def set_control(stored: StoredStudy, request: Request | None) -> bool:
    """Requests all workers of a study to stop or to pause; None withdraws a request to pause.

    Returns:
        False if the study was requested to stop, which only a command that starts it again
        withdraws: its workers may still be about to stop. Then nothing is stored.
    """
    ledger = stored.ledger

    def store(connection: Connection) -> bool:
        if stored.ours:
            sql.lock_study(connection, ledger.study_id, ledger.uuid)
        (before,) = sql.study_attrs(connection, ledger.study_id, CONTROL)
        if before == "stop" and request != "stop":
            return False
        if before != request:
            sql.set_study_attr(connection, ledger.study_id, CONTROL, request)
        return True

    return ledger.storage.execute(store)


def begin_again(stored: StoredStudy) -> None:
    """Withdraws a request to stop, as a command does that starts the study again."""
    if read_control(stored) == "stop":
        stored.optuna.set_user_attr(CONTROL, None)


@contextlib.contextmanager
def following(stored: StoredStudy, stop: Stop, *, stops: bool = True) -> Iterator[None]:
    """Follows the requests of other terminals, in a thread, while the body runs.

    Args:
        stops: whether to stop on request; a worker of a launcher waits for its launcher instead.
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
