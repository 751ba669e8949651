"""The output next to the terminal: the log, events, notices, and JSON at the end.

The command line names their targets, and `config.arguments` moves them into environment variables.
`take_environment` removes them, so that neither workers nor studies within an objective write to
them again.
"""

import contextlib
import errno
import logging
import os
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, Protocol, TypedDict

import optuna

from studyloom.commands.options import print_json, replace_unencodable_characters
from studyloom.commands.plugins import load_plugin
from studyloom.environment import EVENTS, JSON, NOTIFY
from studyloom.errors import ConfigError, StudyloomError
from studyloom.files import check_output
from studyloom.storage.stored_study import StoredStudy, value_of
from studyloom.text import PrintableFormatter, mask_passwords, printable
from studyloom.views.consoles import make_console
from studyloom.views.events import History, format_event
from studyloom.views.progress import Progress
from studyloom.views.progress_reader import ProgressReader
from studyloom.views.status import BestTrial
from studyloom.winner.result import ShortResult
from studyloom.worker_log import LINE

EVENTS_BEGIN = b'{"event"'  # the first bytes of a file of events, see `events.format_event`
# Seconds that the reader of a pipe has to take the last events when the command ends.
PIPE_DEADLINE = 5.0
PIPE_INTERVAL = 0.05  # seconds between attempts to write to a pipe that is full
log = logging.getLogger(__name__)


def take_environment() -> dict[str, str]:
    """Takes the settings of outputs out of the environment, and returns them by variable.

    Call it before the process forks: no fork shall find them.
    """
    settings = {}
    for variable in (EVENTS, NOTIFY, JSON):
        value = variable.take()
        if value is not None:
            settings[variable.name] = value
    return settings


def prepare_logging(level: int) -> None:
    """Writes log records and warnings on standard error; of Optuna only errors.

    Args:
        level: the lowest level of records that are written.
    """
    replace_unencodable_characters()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # The pool logs the traceback of each exception that it raises, such as a second Ctrl-C.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter(LINE))
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(True)


class ProgressListener(Protocol):
    """Reports the progress of a study to something other than the terminal."""

    def __call__(self, progress: Progress) -> None:
        """Reports what is new in the progress."""

    def finish(self, code: int, reason: str | None) -> None:
        """Reports the exit code of the command, and why it is not 0."""


class Outputs:
    """Reports what happens in a study.

    Args:
        settings: the settings of outputs by variable, see `take_environment`.

    Attributes:
        as_json: whether standard output gets a JSON object at the end, and nothing else.
        console: output for people: standard output, or standard error with --json.
        listeners: the outputs that get each progress that is read, and at the end the exit code.
        notes: lines that are printed before the first trial.
    """

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self._settings = settings or {}
        self.as_json = bool(self._settings.get(JSON.name))
        stream = sys.stdout
        if self.as_json:
            stream = sys.stderr
        self.console = make_console(stream)
        self.console.lasting = True
        self.events: EventFile | None = None
        self.listeners: list[ProgressListener] = []
        self.notes: Sequence[str] = ()
        self._progress: Progress | None = None
        self._reader: ProgressReader | None = None
        self._run_dir: Path | None = None

    def open(self) -> None:
        """Opens the file of events, and prepares to send notices.

        Raises:
            ConfigError: the file of events cannot be written to, or a notice cannot be sent.
        """
        path = self._settings.get(EVENTS.name)
        if path:
            self.events = EventFile(Path(path))
            self.listeners.append(self.events)
        targets = self._settings.get(NOTIFY.name)
        if targets:
            make_notices = load_plugin("notify")
            self.listeners.append(make_notices(targets.splitlines()))

    def attach(self, stored: StoredStudy, run_dir: Path) -> None:
        """Begins to report on a study."""
        self._reader = ProgressReader(stored)
        self._run_dir = run_dir
        if self.events is not None:
            self.events.attach(stored)

    def read(self) -> Progress:
        """Reads the current progress; only after `attach`. Raises StorageError."""
        assert self._reader is not None
        self._progress = self._reader.read()
        return self._progress

    def report_progress(self) -> None:
        """Reads the study once more and reports what is new; nothing if it cannot be read."""
        if self._reader is None:
            return
        # Optuna raises a KeyError for a study that was deleted.
        with contextlib.suppress(StudyloomError, KeyError):
            progress = self.read()
            for listener in self.listeners:
                listener(progress)

    def finish(self, code: int, reason: str | None = None) -> None:
        """Reports the exit code of the command, and why it is not 0; reads no more of the study."""
        if reason is not None:
            reason = mask_passwords(reason)
        for listener in self.listeners:
            listener.finish(code, reason)
        if self.as_json:
            print_json(run_document(self._progress, self._run_dir, code, reason))


class RunDocument(TypedDict):
    """The document that `studyloom run FILE --json`, or a study with --json, prints at its end.

    `reason` says why the exit code is not 0; done and budget count the trials of all stages.
    """

    exit_code: int
    reason: NotRequired[str | None]
    study: NotRequired[str | None]
    run_dir: NotRequired[str | None]
    stage: NotRequired[str | None]
    done: NotRequired[int | None]
    budget: NotRequired[int | None]
    best: NotRequired[BestTrial | None]
    result: NotRequired[ShortResult | None]


def run_document(
    progress: Progress | None, run_dir: Path | None, code: int, reason: str | None
) -> dict[str, Any]:
    """Returns a `RunDocument`; unknown values are null.

    Args:
        progress: the last progress; None if the study was not opened.
        reason: why the exit code is not 0.
    """
    document: dict[str, Any] = {
        "exit_code": code,
        "reason": reason,
        "study": None,
        "run_dir": None,
        "stage": None,
        "done": None,
        "budget": None,
        "best": None,
        "result": None,
    }
    if run_dir is not None:
        document["run_dir"] = str(run_dir)
    if progress is None:
        return document
    document["study"] = progress.search.name
    document["stage"] = progress.title
    document["done"] = progress.done
    document["budget"] = progress.budget
    document["result"] = progress.result
    best = progress.search.best
    if best is not None:
        document["best"] = {
            "trial": best.number,
            "value": value_of(best),
            "params": best.params,
        }
    return document


# Events


class EventFile:
    """Writes the events of a study, a line of JSON for each, to a file or a pipe.

    It does not wait for the reader of a pipe while the study runs, and at most 5 s at the end: text
    that the reader has not taken is pending. An existing file is continued: its events are not
    written again. If writing fails, the study continues without events, and the log has a warning.

    Raises:
        ConfigError: it cannot be written to.
        FileError: it holds something else than events.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending = b""
        self._history: History | None = None  # the events of the study so far, once it is known
        self._study = ""
        self._study_id: str | None = None
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            check_output(path, "--events", EVENTS_BEGIN)
            self._file: int | None = os.open(path, flags, 0o644)
        except OSError as error:
            reason = error.strerror
            if error.errno == errno.ENXIO:
                reason = "no program reads the pipe"
            raise ConfigError(
                f"--events {printable(str(path))}: cannot be written: {reason}; name another file"
            ) from None

    def attach(self, stored: StoredStudy) -> None:
        """Begins to write events of a study; first reads the events that the file has already."""
        self._study = stored.name
        self._study_id = stored.ledger.uuid or None
        self._history = History.read(self._read_and_complete_lines(), self._study_id)

    def _read_and_complete_lines(self) -> Iterator[str]:
        """Yields the lines of the file, and completes the last one; a pipe has none.

        A command that was killed while it wrote has left a last line without a line break, which
        is added.
        """
        if self._file is None or not stat.S_ISREG(os.fstat(self._file).st_mode):
            return
        with self.path.open(encoding="utf-8", errors="replace") as file:
            last_line = ""
            for line in file:
                last_line = line
                yield line
            if last_line and not last_line.endswith("\n"):
                self._write(b"\n")

    def __call__(self, progress: Progress) -> None:
        """Writes the events since the last call."""
        if self._history is not None:
            lines = [self._format(event) for event in self._history.record_new(progress)]
            self._write("".join(lines).encode())

    def finish(self, code: int, reason: str | None) -> None:
        """Writes the exit code of the command, and closes the file.

        Waits for some seconds until the reader of a pipe has taken all events.
        """
        event = {"event": "exit", "exit_code": code, "reason": reason}
        self._write(self._format(event).encode())
        end = time.monotonic() + PIPE_DEADLINE
        while self._pending and time.monotonic() < end:
            time.sleep(PIPE_INTERVAL)
            self._write(b"")  # tries to write the pending text
        self._close()

    def _format(self, event: Mapping[str, Any]) -> str:
        """Formats an event as a line."""
        return format_event(event, self._study, self._study_id)

    def _write(self, text: bytes) -> None:
        """Writes pending and new text as far as the reader accepts it; the rest is then pending."""
        if self._file is None:
            return
        self._pending += text
        try:
            while self._pending:
                written_bytes = os.write(self._file, self._pending)
                self._pending = self._pending[written_bytes:]
        except BlockingIOError:  # the pipe is full
            return
        except OSError as error:
            log.warning("--events %s: %s; no more events are written", self.path, error.strerror)
            self._close()

    def _close(self) -> None:
        """Closes the file; pending text is lost."""
        if self._file is not None:
            os.close(self._file)
        self._file = None
        self._pending = b""
