"""The heartbeat of a command: a file that is written anew while the command lives.

`find runs/mnist/heartbeat.json -mmin +2` finds one whose command is gone or hangs.
"""

import json
import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path

from studyloom.files import write_whole
from studyloom.processes import host_id
from studyloom.views.events import finite
from studyloom.views.progress import Progress

INTERVAL = 10.0  # seconds
FRESH = 60.0  # seconds after which a heartbeat is no sign of life
NAME = "heartbeat.json"
log = logging.getLogger(__name__)


class Heartbeat:
    """Writes heartbeat.json into the run directory.

    Args:
        run_dir: where the study runs.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / NAME
        self._last: float | None = None
        self._progress: Progress | None = None
        self._told = False  # that it cannot be written

    def __call__(self, progress: Progress) -> None:
        """Writes the file if the last time is long enough ago."""
        now = time.monotonic()
        changed = self._progress is None or self._progress.title != progress.title
        self._progress = progress
        if changed or self._last is None or now - self._last >= INTERVAL:
            self._last = now
            self._write(None)

    def finish(self, code: int) -> None:
        """Writes with which exit code the command ends."""
        if self._progress is not None:
            self._write(code)

    def _write(self, code: int | None) -> None:
        progress = self._progress
        assert progress is not None
        eta = None if progress.eta is None else progress.eta.seconds
        document = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": host_id(),
            "pid": os.getpid(),
            "study": progress.search.name,
            "stage": progress.title,
            "done": progress.done,
            "budget": progress.budget,
            "control": progress.control,
            "eta": eta,
            "exit_code": code,
        }
        try:
            write_whole(self.path, json.dumps(finite(document)) + "\n")
        except OSError as error:
            if not self._told:
                self._told = True
                log.warning("%s: %s", self.path, error.strerror or error)


def is_beating(run_dir: Path) -> bool:
    """Whether a command that works in a run directory has shown so in the last minute.

    By the file's own time, so that nothing is read of a folder that may be somebody else's.
    """
    try:
        age = time.time() - (run_dir / NAME).stat().st_mtime
    except OSError:
        return False
    return age < FRESH
