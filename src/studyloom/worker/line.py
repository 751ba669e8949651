"""The line between a worker and its launcher, a pair of sockets.

An objective may call `os._exit(0)`, and any process may send a signal. So a worker reports on the
line what it does and its exit code, and its launcher confirms there that a signal is its own.

Only the standard library is imported: the actors of Ray use this module.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

from studyloom.environment import LINE

GRACE = 6.0  # seconds for a worker to release its trial; none lives 10 s longer than its launcher
LINGER = 8.0  # seconds from the end that a worker has announced to its end
PATIENCE = 1.0  # seconds that the launcher's word may come later than its signal


class Line:
    """The worker's end of a line; `study.stopping.Stop` calls its `is_asked`.

    Args:
        descriptor: of the socket; None if no launcher has started this process.
        lingers: whether this process lives on once its command has ended.
    """

    def __init__(self, descriptor: int | None = None, *, lingers: bool = False) -> None:
        self._lingers = lingers
        self._socket = None if descriptor is None else socket.socket(fileno=descriptor)
        if descriptor is not None:
            os.set_inheritable(descriptor, False)
        self._asked = 0  # how many requests to stop the launcher has sent
        self._taken = 0  # how many of those `is_asked` has answered
        self._claimed = False

    @property
    def is_connected(self) -> bool:
        """Whether a launcher has started this process."""
        return self._socket is not None

    @classmethod
    def of_launcher(cls) -> "Line":
        """Returns the line to the launcher that started this process as a command."""
        # Taken away: a command that a trial starts has no launcher.
        descriptor = LINE.take()
        return cls(None if descriptor is None else int(descriptor))

    def follow(self) -> None:
        """Listens in a thread from now on; stops this process when its launcher has ended."""
        if self._socket is not None:
            threading.Thread(target=self._listen, args=(self._socket,), daemon=True).start()

    def _listen(self, line: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):  # the launcher has not read the last words
            while words := line.recv(1024):
                self._asked += len(words)
        self._asked += 1
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE + 1)
        if os.getpgrp() == os.getpid():  # with all that this worker has started
            os.killpg(0, signal.SIGKILL)

    def is_asked(self) -> bool:
        """Whether the launcher sent the latest signal; each of its requests counts once.

        The user's code may have sent it, or a person to this process only. Without a launcher every
        signal counts.
        """
        if self._socket is None:
            return True
        end = time.monotonic() + PATIENCE
        while self._asked == self._taken:
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        self._taken += 1
        return True

    def say(self, word: str, more: object = "") -> None:
        """Sends the launcher a word with its value: this process has `claimed` a slot, has `ended`
        with an exit code, or `died` of something.
        """
        if self._socket is not None:
            with contextlib.suppress(OSError):  # the launcher has ended
                self._socket.send(f"{word} {more}\n".encode())

    def say_claimed(self) -> None:
        """Says once that this process has claimed a slot."""
        if not self._claimed:
            self._claimed = True
            self.say("claimed")

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Says with which exit code this process ends, once the body has ended.

        A thread that the user's code has left running does not hold the process up.
        """
        code: object = 1
        try:
            yield
            code = 0
        except SystemExit as end:
            code = end.code
            raise
        finally:
            code = code & 255 if isinstance(code, int) else int(code is not None)
            self.say("ended", code)
            if not self._lingers:
                timer = threading.Timer(LINGER, os._exit, [code])
                timer.daemon = True
                timer.start()


class Listener:
    """The launcher's end of a line."""

    def __init__(self) -> None:
        self.words: dict[str, str] = {}
        self._socket, self._theirs = socket.socketpair()
        self._socket.setblocking(False)

    def detach(self) -> int:
        """Returns the descriptor of the worker's end, which is no longer this object's."""
        return self._theirs.detach()

    def listen(self) -> dict[str, str]:
        """Reads the new words since the last call, and returns all words."""
        with contextlib.suppress(OSError):  # nothing was said
            while text := self._socket.recv(2**16).decode():
                self.words |= dict(line.split(" ", 1) for line in text.splitlines())
        return self.words

    def ask(self, pid: int, number: int = signal.SIGTERM) -> None:
        """Sends the worker a request to stop, and a signal."""
        with contextlib.suppress(OSError):  # it has ended
            self._socket.send(b"a")
            os.kill(pid, number)

    def close(self) -> None:
        self._socket.close()
