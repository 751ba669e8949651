"""The line between a process that runs trials and the process that started it: a pair of sockets.

An exit code can be met by chance, since an objective may call `os._exit(0)` or send its process a
signal. So whatever matters goes through the line: that a process has claimed a trial, that it ends
in order and with which code, and that it was asked to stop.

Only the standard library is imported: the actors of Ray use this module.
"""

import contextlib
import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from studyloom.processes import is_same_file

VARIABLE = "STUDYLOOM_LINE"  # in the environment of a worker: the descriptor of its end
ASK = b"a"  # to stop; a signal follows
CLAIMED = b"c"  # a slot
RELEASED = b"r"  # the trial, because of a signal that came to this process alone
UNABLE = b"u"  # to do any work
RANK = re.compile(rb"p(\d+):(-?\d+);")  # another rank of the trial has ended, with an exit code
ENDED = b"e"  # in order; the next byte is the exit code
LINGER = 8.0  # seconds from the end that a process has announced to its end
PATIENCE = 1.0  # seconds that the launcher's word may come later than its signal


def open_line() -> tuple["Listener", int]:
    """Opens a line. Returns the launcher's end, and the descriptor of the other one."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return Listener(ours), theirs.detach()


class Line:
    """The end of the process that runs trials; its `is_asked` is what `study.stopping.Stop` asks.

    Args:
        descriptor: of the socket; None if nobody has started this process.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._socket = None if descriptor is None else socket.socket(fileno=descriptor)
        if descriptor is not None:
            os.set_inheritable(descriptor, False)
            # A fork says nothing, and does not keep the launcher from seeing that this end closes.
            os.register_at_fork(after_in_child=self._close)
        self._inode = None if self._socket is None else os.fstat(self._socket.fileno()).st_ino
        self._asked = 0  # how often the launcher has asked to stop
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
        descriptor = os.environ.pop(VARIABLE, None)
        return cls(None if descriptor is None else int(descriptor))

    def follow(self) -> None:
        """Listens from now on, in a thread."""
        if self._socket is not None:
            threading.Thread(target=self._listen, args=(self._socket,), daemon=True).start()

    def _close(self) -> None:
        is_open, line = self._is_open(), self._socket
        self._socket = None
        if line is not None and not is_open:
            line.detach()  # the number is a file's by now
        elif line is not None:
            line.close()

    def _is_open(self) -> bool:
        """Whether the descriptor is still the line's: an objective may close all descriptors."""
        line, inode = self._socket, self._inode
        return line is not None and inode is not None and is_same_file(line.fileno(), inode)

    def _listen(self, line: socket.socket) -> None:
        ready = select.poll()
        with contextlib.suppress(OSError, ValueError):
            ready.register(line, select.POLLIN)
            # A call that waits for ever would hold the line open when its descriptor is closed.
            while self._is_open():
                if ready.poll(1000.0):
                    if not (words := line.recv(1024)):
                        return
                    self._asked += len(words)

    def ask(self) -> None:
        """Has this process believe that its launcher asked it to stop: the launcher is gone."""
        self._asked += 1

    def is_asked(self) -> bool:
        """Whether a signal that has just come is the launcher's; each of its words counts once.

        It is not if code of the user's sent it, or somebody who meant this process alone. Without
        a launcher every signal counts.
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

    def say_claimed(self) -> None:
        """Says that this process has claimed a slot."""
        if not self._claimed:
            self._claimed = True
            self._say(CLAIMED)

    def say_released(self) -> None:
        """Says that this process ends because of a signal that came to it alone."""
        self._say(RELEASED)

    def say_rank_ended(self, rank: int, code: int) -> None:
        """Says that this process ends because another rank of its trial has ended."""
        self._say(b"p%d:%d;" % (rank, code))

    def say_unable(self) -> None:
        """Says that this process cannot use the GPU."""
        self._say(UNABLE)

    @contextlib.contextmanager
    def saying_end(self) -> Iterator[None]:
        """Says how the process ends once the body has ended."""
        try:
            yield
        except SystemExit as end:
            code = end.code
            self._say(ENDED + bytes([code & 255 if isinstance(code, int) else int(bool(code))]))
            raise
        except BaseException:
            self._say(ENDED + b"\1")
            raise
        self._say(ENDED + b"\0")

    def _say(self, words: bytes) -> None:
        if self._socket is not None and self._is_open():
            with contextlib.suppress(OSError):
                self._socket.send(words)


@dataclass
class Heard:
    """What the launcher of a process knows of it.

    Attributes:
        claimed: whether it has claimed a slot.
        released: whether it ends because of a signal that came to it alone.
        unable: whether it cannot use the GPU.
        code: the exit code with which it ends in order; None if it has not said so.
        until: when it is to have ended, on the monotonic clock; None for no limit.
        rank: the number and exit code of another rank of its trial, because of whose end it ends.
    """

    claimed: bool = False
    released: bool = False
    unable: bool = False
    code: int | None = None
    until: float | None = None
    rank: tuple[int, int] | None = None

    def hear(self, words: bytes) -> None:
        """Takes words from the line; none means that its other end is closed."""
        said, end, code = words.partition(ENDED)
        self.claimed |= CLAIMED in said
        self.released |= RELEASED in said
        self.unable |= UNABLE in said
        if (ended := RANK.search(said)) is not None:
            self.rank = int(ended[1]), int(ended[2])
        if end:
            self.code = code[0] if code else 1
        if (end or not words) and self.until is None:
            self.until = time.monotonic() + LINGER

    @property
    def lingers(self) -> bool:
        """Whether the process ought to have ended."""
        return self.until is not None and time.monotonic() > self.until


class Listener:
    """The launcher's end of a line."""

    def __init__(self, line: socket.socket) -> None:
        self.heard = Heard()
        self._socket = line

    def fileno(self) -> int:
        return self._socket.fileno()

    def listen(self) -> bytes | None:
        """Reads what was said since the last call, and returns it; None for nothing."""
        try:
            words = self._socket.recv(1024)
        except BlockingIOError:
            return None
        except OSError:
            words = b""
        self.heard.hear(words)
        return words

    def ask(self, pid: int, number: int = signal.SIGTERM) -> None:
        """Asks the process to stop.

        Args:
            pid: of the process.
            number: the signal that it gets.
        """
        with contextlib.suppress(OSError):  # it has ended
            self._socket.send(ASK)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def close(self) -> None:
        self._socket.close()
