"""When to stop: signals and time limits."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from studyloom.errors import Stopped


class Stop:
    """Whether to stop: after a first Ctrl-C, SIGTERM or SIGHUP, or `timeout` seconds. A second signal stops at once.

    Used as a context in the main thread, where it takes those signals over; explicit handlers also serve a command that
    a shell started with `&`, for which it has Ctrl-C ignored.
    """

    SIGNALS = tuple(
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
    )

    def __init__(self, timeout: float | None = None) -> None:
        self.signal: int | None = None
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self._interruptible = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.signal is not None or (
            self.deadline is not None and time.monotonic() >= self.deadline
        )

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Around work that may be left at any step: there the first signal raises Stopped, and does not wait.

        Nothing else may be: an exception between two halves of a transaction is nobody's friend.
        """
        self._interruptible = True
        try:
            if self.signal is not None:
                raise Stopped
            yield
        finally:
            self._interruptible = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        os.write(2, b"stopping; once more stops at once\n")
        if self._interruptible:
            raise Stopped
