"""The file of events: a line of JSON for each thing that happens in a job."""

import contextlib
import errno
import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from studyloom.errors import ConfigError
from studyloom.storage.attributes import UUID
from studyloom.study.stored_study import StoredStudy
from studyloom.text import printable
from studyloom.views.events import History, new_events, write_event
from studyloom.views.progress import Progress

PENDING = 2**24  # bytes that wait for a reader of a pipe; then no more are kept
LAST = 5.0  # seconds that a reader has to take what is left when the command ends
log = logging.getLogger(__name__)


class EventFile:
    """Writes the events of a job to a file, a pipe or a descriptor such as /dev/fd/3.

    It waits for no reader while the study runs, and for 5 s at its end. A file that exists is
    continued: what it tells of this study is not told again. An error of writing ends it with a
    line in the log, and not the study.

    Args:
        path: of the file; its folder must exist.

    Raises:
        ConfigError: it cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending = b""
        self._told: History | None = None  # of the study, once that is known
        self._study: tuple[str, str | None] = "", None
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._file: int | None = os.open(path, flags, 0o644)
        except OSError as error:
            why = "nobody reads the pipe" if error.errno == errno.ENXIO else error.strerror
            raise ConfigError(
                [f"--events {printable(str(path))}: cannot be written: {why}; name another file"]
            ) from None

    def attach(self, stored: StoredStudy) -> None:
        """Begins to tell of a study; reads what the file tells of it already.

        Args:
            stored: the study of the search.
        """
        self._study = stored.name, stored.optuna.user_attrs.get(UUID)
        self._told = History.read(self._lines(), self._study[1])

    def _lines(self) -> Iterator[str]:
        if self._file is None or not stat.S_ISREG(os.fstat(self._file).st_mode):
            return
        with (
            contextlib.suppress(OSError),
            self.path.open(encoding="utf-8", errors="replace") as file,
        ):
            last = "\n"
            for last in file:
                yield last
            if not last.endswith("\n"):  # of a command that was killed while it wrote
                self._write(b"\n")

    def __call__(self, progress: Progress) -> None:
        """Writes what has happened since the last call."""
        if self._told is not None:
            lines = [write_event(event, *self._study) for event in new_events(self._told, progress)]
            self._write("".join(lines).encode())

    def finish(self, code: int, reason: str | None) -> None:
        """Writes with which exit code the command ends, and closes the file.

        Args:
            code: the exit code.
            reason: why, in words, if it is not 0.
        """
        event: Mapping[str, Any] = {"event": "exit", "code": code, "reason": reason}
        self._write(write_event(event, *self._study).encode())
        end = time.monotonic() + LAST
        while self._pending and self._file is not None and time.monotonic() < end:
            time.sleep(0.05)
            self._write(b"")
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, text: bytes) -> None:
        """Writes as much as a reader takes, and keeps the rest."""
        self._pending += text
        while self._pending and self._file is not None:
            try:
                self._pending = self._pending[os.write(self._file, self._pending) :]
            except BlockingIOError:
                if len(self._pending) > PENDING:
                    self._give_up("its reader takes nothing")
                return
            except OSError as error:
                self._give_up(error.strerror or str(error))

    def _give_up(self, why: str) -> None:
        log.warning("--events %s: %s; no more events are written", self.path, why)
        if self._file is not None:
            os.close(self._file)
        self._file, self._pending = None, b""
