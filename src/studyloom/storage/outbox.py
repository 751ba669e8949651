"""Storage calls in order, made by a thread: training goes on while the database is away or slow."""

import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
SEND_TIMEOUT = 1.0  # seconds that a sender waits for a database which neither answers nor fails
POLL = 0.02  # seconds between looks whether the database is away


class Outbox(Generic[T]):
    """Posts items one after the other, from a thread that lives as long as the body of a `with`.

    A sender waits until everything is posted, unless the database is away: then it goes on, and a
    later call raises the failure, if there is one. Items after a failure are dropped. At the end of
    the body the rest is posted; also if the body was left by an exception, since what was sent
    before came first. Only an exception that is not an Exception (Stopped, Ctrl-C) drops the rest.

    Args:
        post: Called with each item. The next `send`, or the end of the body, raises what it raises.
        is_away: Returns whether the database is away.
    """

    def __init__(self, post: Callable[[T], None], is_away: Callable[[], bool]) -> None:
        self._post = post
        self._is_away = is_away
        self._items = deque[T]()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._closed = False

    def __enter__(self) -> "Outbox[T]":
        # A daemon: a call that hangs with its server does not keep the process from ending.
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, __: TracebackType | None
    ) -> None:
        try:
            if self._error is None and (kind is None or issubclass(kind, Exception)):
                self._wait()
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            # A daemon that still runs when the interpreter ends may abort the process.
            if not self._items or self._error is not None:
                self._thread.join()

    def send(self, item: T) -> None:
        """Adds an item, and waits until it is posted or the database turns out to be away."""
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()
        self._wait(SEND_TIMEOUT)

    def flush(self) -> None:
        """Waits until everything is posted, also while the database is away."""
        self._wait()

    def _wait(self, timeout: float | None = None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._items and self._error is None:
                if end is not None and (self._is_away() or time.monotonic() > end):
                    break
                self._changed.wait(POLL)
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._closed)
                if self._closed:
                    return
                item = self._items[0]
            try:
                self._post(item)
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._items.popleft()
                self._changed.notify_all()
