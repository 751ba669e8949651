"""The line between a worker and its launcher, a pair of sockets.

The user's code may call `os._exit(0)`, and any process may send a signal. So a worker sends its
launcher *messages* on the line: that it has claimed a slot, why it died, its exit code. And the
launcher confirms on the line that it has sent a signal: without this confirmation a signal is no
request to stop.

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
PATIENCE = 1.0  # seconds that the launcher's confirmation may come later than its signal
CONFIRMATION = b"a"  # one byte, so that the number of bytes is the number of confirmations


class Line:
    """The worker's end of a line; `worker.stopping.Stop` calls its `is_requested`."""

    def __init__(self, descriptor: int | None = None, *, lingers: bool = False) -> None:
        """Takes over a socket.

        Args:
            descriptor: The socket; None if no launcher has started this process.
            lingers: Whether this process lives on once its command has ended.
        """
        self._lingers = lingers
        self._socket = None
        if descriptor is not None:
            self._socket = socket.socket(fileno=descriptor)
            os.set_inheritable(descriptor, False)
        self._requests = 0  # how many requests to stop the launcher has confirmed
        self._answered = 0  # how many of those `is_requested` has answered
        self._has_claimed = False

    @property
    def is_connected(self) -> bool:
        """Returns whether a launcher has started this process."""
        return self._socket is not None

    @classmethod
    def to_launcher(cls) -> "Line":
        """Returns the line to the launcher that started this process as a command."""
        # The variable is removed: a command that a trial starts has no launcher.
        descriptor = LINE.take()
        if descriptor is None:
            return cls()
        return cls(int(descriptor))

    def follow(self) -> None:
        """Listens in a thread from now on; stops this process when its launcher has ended."""
        if self._socket is not None:
            threading.Thread(target=self._listen, args=(self._socket,), daemon=True).start()

    def _listen(self, line: socket.socket) -> None:
        """Counts the launcher's requests until it has ended, which is one more request."""
        # The connection is reset if the launcher has not read the last messages.
        with contextlib.suppress(ConnectionError):
            while True:
                confirmations = line.recv(1024)
                if not confirmations:  # the launcher has closed its end
                    break
                self._requests += len(confirmations)
        self._requests += 1
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE + 1)  # the process ends meanwhile, if it can
        is_session_leader = os.getpgrp() == os.getpid()
        if is_session_leader:
            os.killpg(0, signal.SIGKILL)  # with all that this worker has started

    def is_requested(self) -> bool:
        """Returns whether the launcher sent the latest signal; each of its requests counts once.

        The user's code may have sent it, or a person to this process only. Without a launcher every
        signal counts.
        """
        if self._socket is None:
            return True
        end = time.monotonic() + PATIENCE
        while self._requests == self._answered:
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        self._answered += 1
        return True

    def send(self, message: str, value: object = "") -> None:
        """Sends the launcher a message with its value.

        Args:
            message: `claimed`, for a slot; `ended`, with an exit code; or `died`, with a reason.
        """
        if self._socket is not None:
            with contextlib.suppress(OSError):  # the launcher has ended
                self._socket.send(f"{message} {value}\n".encode())

    def send_claimed(self) -> None:
        """Sends once that this process has claimed a slot."""
        if not self._has_claimed:
            self._has_claimed = True
            self.send("claimed")

    @contextlib.contextmanager
    def sending_exit_code(self) -> Iterator[None]:
        """Sends the exit code of this process once the body has ended, and then ends the process.

        A thread that the user's code has left running does not hold the process up.
        """
        code = 1
        try:
            yield
            code = 0
        except SystemExit as error:
            code = _exit_code(error)
            raise
        finally:
            self.send("ended", code)
            if not self._lingers:
                timer = threading.Timer(LINGER, os._exit, [code])
                timer.daemon = True
                timer.start()


def _exit_code(error: SystemExit) -> int:
    """Returns the exit code that the system reports for an exit: 0 for None, 1 for a text."""
    if isinstance(error.code, int):
        return error.code & 255
    if error.code is None:
        return 0
    return 1


class Listener:
    """The launcher's end of a line.

    Attributes:
        messages: The messages so far, with their values.
    """

    def __init__(self) -> None:
        self.messages: dict[str, str] = {}
        self._socket, self._workers_end = socket.socketpair()
        self._socket.setblocking(False)

    def detach(self) -> int:
        """Returns the descriptor of the worker's end, which no longer belongs to this object."""
        return self._workers_end.detach()

    def listen(self) -> dict[str, str]:
        """Reads the new messages since the last call, and returns all messages."""
        # There is no further message after a BlockingIOError, which is an OSError.
        with contextlib.suppress(OSError):
            while True:
                text = self._socket.recv(2**16).decode()
                if not text:
                    break
                for line in text.splitlines():
                    message, value = line.split(" ", 1)
                    self.messages[message] = value
        return self.messages

    def request_stop(self, pid: int, number: int = signal.SIGTERM) -> None:
        """Requests that the worker stops: by a signal, which is confirmed on the line."""
        with contextlib.suppress(OSError):  # it has ended
            self._socket.send(CONFIRMATION)
            os.kill(pid, number)

    def close(self) -> None:
        self._socket.close()
