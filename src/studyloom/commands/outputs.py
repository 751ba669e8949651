"""What a command tells beside its terminal: events, notices, a heartbeat, and JSON at its end.

Where these go is said by the command line, which `config.passwords` has moved to the environment.
This takes it from there, so that neither workers nor studies within an objective tell it again.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from studyloom.commands.events import EventFile
from studyloom.commands.heartbeat import Heartbeat
from studyloom.config.passwords import EVENTS, JSON, NOTIFY
from studyloom.errors import StudyloomError
from studyloom.extras.notify import Notices
from studyloom.study.stored_study import StoredStudy
from studyloom.text import mask_passwords
from studyloom.views.events import finite
from studyloom.views.progress import JobReader, Progress


def take_environment() -> dict[str, str]:
    """Takes what is told, and to whom, from the environment, and returns the variables.

    Call it before the process forks: no fork shall find them.
    """
    names = [name for name in (EVENTS, NOTIFY, JSON) if name in os.environ]
    return {name: os.environ.pop(name) for name in names}


class Outputs:
    """Tells what happens in a job.

    Args:
        events: the file of events; None for none.
        notices: to people; None for none.
        as_json: whether standard output gets a JSON object at the end, and nothing else.

    Attributes:
        listeners: called with each progress that is read.
    """

    def __init__(
        self,
        events: EventFile | None = None,
        notices: Notices | None = None,
        *,
        as_json: bool = False,
    ) -> None:
        self.events, self.notices, self.as_json = events, notices, as_json
        self.heartbeat: Heartbeat | None = None
        self.listeners: Sequence[Callable[[Progress], None]] = ()
        self._progress: Progress | None = None
        self._reader: JobReader | None = None
        self._run_dir: Path | None = None

    @classmethod
    def of_environment(cls, taken: Mapping[str, str]) -> "Outputs":
        """Makes what the environment asks for.

        Args:
            taken: what `take_environment` has taken from there.

        Raises:
            ConfigError: the file of events cannot be written to, or a notice cannot be sent.
        """
        path, targets, as_json = (taken.get(name, "") for name in (EVENTS, NOTIFY, JSON))
        notices = Notices(targets.splitlines()) if targets else None
        return cls(EventFile(Path(path)) if path else None, notices, as_json=bool(as_json))

    def read(self) -> Progress:
        """Reads the job as it is now; only after `attach`.

        Raises:
            StorageError: the database cannot be read.
        """
        assert self._reader is not None
        return self._reader.read()

    def attach(self, stored: StoredStudy, run_dir: Path) -> None:
        """Begins to tell of a study.

        Args:
            stored: the study of the search.
            run_dir: where the heartbeat is written.
        """
        self._reader, self._run_dir = JobReader(stored), run_dir
        self.heartbeat = Heartbeat(run_dir)
        if self.events is not None:
            self.events.attach(stored)
        given = (self.events, self.notices, self.heartbeat, self._keep)
        self.listeners = [listener for listener in given if listener is not None]

    def _keep(self, progress: Progress) -> None:
        self._progress = progress

    def look(self) -> None:
        """Reads the job once more and tells what is new; tells nothing if it cannot be read."""
        if self._reader is None:
            return
        try:
            progress = self._reader.read()
        except (StudyloomError, KeyError):  # Optuna has a KeyError for a study that was deleted
            return
        for listener in self.listeners:
            listener(progress)

    def finish(self, code: int, reason: str | None = None) -> None:
        """Tells with which exit code the command ends.

        Args:
            code: the exit code.
            reason: why, in words, if it is not 0.
        """
        self.look()
        reason = None if reason is None else mask_passwords(reason)
        if self.heartbeat is not None:
            self.heartbeat.finish(code)
        if self.events is not None:
            self.events.finish(code, reason)
        if self.notices is not None:
            self.notices.finish(code, reason)
        if self.as_json:
            document = run_document(self._progress, self._run_dir, code, reason)
            print(json.dumps(finite(document), default=str), flush=True)


def run_document(
    progress: Progress | None, run_dir: Path | None, code: int, reason: str | None
) -> dict[str, Any]:
    """Returns what a command has done, for programs; see `run` in assets/schemas.json."""
    best = None if progress is None else progress.search.best
    return {
        "study": None if progress is None else progress.search.name,
        "run_dir": None if run_dir is None else str(run_dir),
        "exit_code": code,
        "reason": reason,
        "stage": None if progress is None else progress.title,
        "done": None if progress is None else progress.done,
        "budget": None if progress is None else progress.budget,
        "best": None
        if best is None
        else {"trial": best.number, "value": (best.values or [None])[0], "params": best.params},
        "answer": None if progress is None or progress.answer is None else dict(progress.answer),
    }
