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
POLL = 0.01  # seconds between looks whether the launcher has confirmed a signal
CONFIRMATION = b"a"  # one byte, so that the number of bytes is the number of confirmations
BUFFER_SIZE = 2**16  # bytes that are read at once


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
        self._confirmations = 0  # of the launcher: so many signals have come from it
        self._used_confirmations = 0  # so many of them `is_requested` has matched with a signal
        self._has_sent_claimed = False

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
        """Counts the launcher's confirmations, until it has ended; then stops this process.

        The launcher confirms each signal with which it requests a stop, so that `is_requested`
        tells it from a signal of others. Once the launcher has ended, this thread sends the signal
        in its place and confirms it. If the process then does not end in time, it is killed.
        """
        # The connection is reset if the launcher has not read the last messages.
        with contextlib.suppress(ConnectionError):
            while True:
                confirmations = line.recv(BUFFER_SIZE)  # one byte each
                if not confirmations:  # the launcher has closed its end
                    break
                self._confirmations += len(confirmations)
        self._confirmations += 1
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE + 1)  # the process ends meanwhile, if it can
        is_session_leader = os.getpgrp() == os.getpid()
        if is_session_leader:
            os.killpg(0, signal.SIGKILL)  # with all that this worker has started

    def is_requested(self) -> bool:
        """Returns whether the signal that has just come is a request of the launcher to stop.

        It is one if the launcher confirms it on the line, maybe a moment later; each confirmation
        counts for one signal. Otherwise the user's code has sent the signal, or a person to this
        process only. Without a launcher every signal is a request.
        """
        if self._socket is None:
            return True
        deadline = time.monotonic() + PATIENCE
        # The thread that listens counts the confirmations.
        while self._confirmations == self._used_confirmations:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL)
        self._used_confirmations += 1
        return True

    def send(self, message: str, value: object = "") -> None:
        """Sends the launcher a message with its value.

        Args:
            message: `claimed`, for a slot; `recycled`, before a worker ends to be replaced;
                `ended`, with an exit code; or `died`, with a reason.
        """
        if self._socket is not None:
            with contextlib.suppress(OSError):  # the launcher has ended
                self._socket.send(f"{message} {value}\n".encode())

    def send_claimed(self) -> None:
        """Sends once that this process has claimed a slot."""
        if not self._has_sent_claimed:
            self._has_sent_claimed = True
            self.send("claimed")

    @contextlib.contextmanager
    def sending_exit_code(self) -> Iterator[None]:
        """Sends the launcher the exit code of this process once the body has ended.

        The process then ends after LINGER seconds at the latest, even if a thread of the user's
        code still runs. A process that lives on after its command is not ended.
        """
        code = 1  # for any exception but SystemExit
        try:
            yield
            code = 0
        except SystemExit as error:
            code = _find_exit_code(error)
            raise
        finally:
            self.send("ended", code)
            if not self._lingers:
                timer = threading.Timer(LINGER, os._exit, [code])
                timer.daemon = True
                timer.start()


def _find_exit_code(error: SystemExit) -> int:
    """Returns the exit code that the system reports for an exit: 0 for None, 1 for a text."""
    if isinstance(error.code, int):
        return error.code & 0xFF  # the system keeps one byte
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
        """Returns the descriptor of the worker's end, which the caller must close."""
        return self._workers_end.detach()

    def listen(self) -> dict[str, str]:
        """Reads the messages since the last call, such as "ended 0", and returns all messages."""
        # The socket raises BlockingIOError, an OSError, if there is no further message.
        with contextlib.suppress(OSError):
            while True:
                text = self._socket.recv(BUFFER_SIZE).decode()
                if not text:  # the worker has closed its end
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
