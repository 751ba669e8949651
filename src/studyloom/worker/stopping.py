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

STDERR = 2  # its file descriptor


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
        lone_signal: The name of the signal that came to this process only; None for none.
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
        """The reason to stop, such as "the time is up"."""
        if self.requested is not None:
            return self.requested
        if self.signal is not None:
            return "stopped"
        return "the time is up"

    def request(self, reason: str) -> None:
        """Requests a stop from any thread, for a reason such as "studyloom stop".

        An epoch that this process trains is cut short, as by a signal from outside.
        """
        if self._has_reason:
            return
        self.requested = reason
        handles_signals = bool(self._previous_handlers)
        if handles_signals:
            # Only a signal can interrupt the main thread, which trains the epoch.
            os.kill(os.getpid(), signal.SIGTERM)

    def __enter__(self) -> "Stop":
        is_main_thread = threading.current_thread() is threading.main_thread()
        if not is_main_thread:  # no other thread can set handlers
            return self
        for number in self.SIGNALS:
            is_ignored = signal.getsignal(number) is signal.SIG_IGN
            ignores_hangup = is_ignored and number == signal.SIGHUP  # under `nohup`
            if not ignores_hangup:
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
        """Lets the first signal end the body with Stopped, at any step of it.

        Only training may run in the body: an exception within a transaction would do harm.
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

        A signal is a *request* to stop the study if it is a Ctrl-C in the terminal, for example, or
        comes from the launcher. A *lone* signal came to this worker only, as by `kill PID`. There
        are four cases:

        1. The method `request` has sent the signal to this process, which stops its work.
        2. The signal is a lone one, and another signal came before: it is ignored.
        3. The signal is the second request, which ends the process at once.
        4. The signal is the first one, or the first request, and stops the work.

        Args:
            frame: The step at which the main thread is interrupted.

        Raises:
            Stopped: The first signal came while the main thread was interruptible.
            Interrupted: The signal is the second request to stop.
        """
        # Case 1
        is_own_signal = self.requested is not None and number == signal.SIGTERM
        if is_own_signal and not self._has_signaled:
            self._has_signaled = True
            self._print(f"stopping, as {self.requested} says")
            self._interrupt(frame)
            return
        # Case 2: for example, the same Ctrl-C came from the terminal and from the launcher.
        is_requested = self._is_requested()  # may wait, and another signal is handled meanwhile
        is_first = self.signal is None
        if not is_first and not is_requested:
            return
        # Case 3: the signal before was a request too.
        was_requested_before = not is_first and self.lone_signal is None
        if was_requested_before:
            if _is_in_finalizer(frame):  # Python would drop the exception; one more signal stops it
                return
            raise Interrupted
        # Case 4
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
        if self._interruptible and not _is_in_finalizer(frame):
            raise Stopped

    def _print(self, line: str) -> None:
        if not self.is_shown:
            os.write(STDERR, f"{line}\n".encode())


# The code of finalizers that are no `__del__`: of multiprocessing's, and of entries of a WeakSet.
FINALIZERS = (Finalize.__call__.__code__, vars(WeakSet())["_remove"].__code__)


def _is_in_finalizer(frame: FrameType | None) -> bool:
    """Returns whether a finalizer runs, such as `__del__`, whose exceptions Python drops.

    Args:
        frame: The step at which the main thread was interrupted.
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

# `previous_mask`: the signals that a thread had blocked before it prepared its fork
_before_fork = threading.local()


def _find_handled_signals() -> list[int]:
    """Returns the signals that a Stop handles now."""
    numbers: list[int] = []
    for number in Stop.SIGNALS:
        handler = signal.getsignal(number)
        if getattr(handler, "__func__", None) is Stop._handle:
            numbers.append(number)
    return numbers


def _block_signals() -> None:
    _before_fork.previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, _find_handled_signals())


def _restore_mask() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _before_fork.previous_mask)


def _reset_handlers_in_fork() -> None:
    for number in _find_handled_signals():
        signal.signal(number, signal.SIG_DFL)
    _restore_mask()


os.register_at_fork(
    before=_block_signals,
    after_in_parent=_restore_mask,
    after_in_child=_reset_handlers_in_fork,
)


# Requests of other terminals, which are stored with the study

Request = Literal["stop", "pause"]
POLL = 1.0  # seconds between looks, one short read each


def read_control(stored: StoredStudy) -> Request | None:
    """Reads the request of another terminal to the workers of a study; None without one."""
    (request,) = stored.attributes(CONTROL)
    if request == "stop":
        return "stop"
    if request == "pause":
        return "pause"
    return None  # also for anything else that another program has stored


def set_control(stored: StoredStudy, request: Request | None) -> bool:
    """Requests all workers of a study to stop or to pause; None withdraws a request to pause.

    Returns:
        False if the study was requested to stop: then nothing is stored, because its workers may
        still be about to stop. Only a command that starts the study again withdraws this request.
    """
    ledger = stored.ledger

    def store(connection: Connection) -> bool:
        """Stores the request in one transaction, unless the study was requested to stop."""
        # A study is locked by its attribute UUID, which a study of another program lacks.
        if stored.is_studylooms:
            sql.lock_study(connection, ledger.study_id, ledger.uuid)
        (stored_request,) = sql.study_attrs(connection, ledger.study_id, CONTROL)
        if stored_request == "stop" and request != "stop":
            return False
        if stored_request != request:
            sql.set_study_attr(connection, ledger.study_id, CONTROL, request)
        return True

    return ledger.storage.execute(store)


def withdraw_stop(stored: StoredStudy) -> None:
    """Withdraws a request to stop, as a command does that starts the study again."""
    if read_control(stored) == "stop":
        stored.optuna.set_user_attr(CONTROL, None)


@contextlib.contextmanager
def following_requests(
    stored: StoredStudy, stop: Stop, *, obeys_stop: bool = True
) -> Iterator[None]:
    """Obeys the requests of other terminals to stop and to pause, while the body runs.

    An earlier request counts from the start; then a thread looks for others once a second.

    Args:
        obeys_stop: Whether to obey a request to stop. A worker of a launcher does not: its launcher
            obeys the request, and then stops it.
    """

    def look() -> None:
        """Passes the request that is stored with the study on to `stop`."""
        with contextlib.suppress(StudyloomError):  # the database may be away
            request = read_control(stored)
            stop.paused = request == "pause"
            if request == "stop" and obeys_stop:
                stop.request("studyloom stop")

    def follow(end: threading.Event) -> None:
        """Looks once a second, until `end` is set."""
        while not end.wait(POLL):
            look()

    look()
    with running_in_thread(follow):
        yield
