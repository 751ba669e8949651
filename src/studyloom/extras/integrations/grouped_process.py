"""A command of the user's, of which nothing is left when this process ends."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from studyloom.extras.integrations.output import read_lines
from studyloom.processes import descendants, process_table, stat_fields

# Becomes the command, after a process in its group that kills the group when our end of a pipe
# closes, however that comes about. It exists before the command does, it outlives SIGTERM, and its
# parent ends at once, so that no command finds a child that it has not started.
GROUP = """\
exec 3<&0 </dev/null
(trap '' HUP INT TERM; (read -r _ <&3; kill -KILL 0) >/dev/null 2>&1 &)
exec 3<&-
exec "$@"
"""
GRACE = 3.0  # seconds between SIGTERM and SIGKILL; a worker has 6 s to release its trial


class GroupedProcess:
    """A command in a process group of its own, all of which ends with this process.

    A context, at whose end nothing of the command is left. No shell reads its words.

    Args:
        words: the program and its arguments.
        environment: all its variables.
        output: the file to which all that it prints is appended. So nothing is lost of what it has
            printed if this process is killed.

    Attributes:
        code: its exit code, negative for a signal; None until it has ended.

    Raises:
        OSError: no process can be started.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], output: Path) -> None:
        self._output = output
        with output.open("ab") as file:
            self._start = file.tell()
            self._process = subprocess.Popen(
                ["sh", "-c", GROUP, "sh", *words],
                env=environment,
                stdin=subprocess.PIPE,  # closes when this process ends
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def code(self) -> int | None:
        return self._process.poll()

    def __enter__(self) -> "GroupedProcess":
        return self

    def __exit__(self, *_: object) -> None:
        """Asks all processes of the group to end, and kills those that do not in time."""
        pid = self._process.pid
        # Some may have begun sessions of their own. When a process started tells it from a later
        # one of its number; conda's Python 3.11, for one, can open no pidfd.
        below: dict[int, str] = {}
        end = time.monotonic() + GRACE
        try:
            for child in descendants(pid):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    below[child] = stat_fields(child)[19]
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGTERM)
            while (self.code is None or len(_group(pid)) > 1) and time.monotonic() < end:
                time.sleep(0.01)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            for child, started in below.items():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    if stat_fields(child)[19] == started:
                        os.kill(child, signal.SIGKILL)
            self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()

    def lines(self) -> Iterator[str]:
        """Yields the lines that the command prints until it has ended; see `read_lines`."""
        yield from read_lines(self._output, self._start, lambda: self.code is not None)


def _group(group: int) -> list[int]:
    """Returns the processes of a group that have not ended, as /proc has them."""
    return [pid for pid, fields in process_table() if int(fields[2]) == group and fields[0] != "Z"]
