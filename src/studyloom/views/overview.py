"""`studyloom dashboard runs/`: the headlines of several studies on one page.

/ lists the studies of the run directories in a folder, and /NAME/ is the live report of one of
them. A run directory that is new appears by itself.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from studyloom.errors import StudyloomError
from studyloom.storage.stored_study import StoredStudy
from studyloom.text import mask_passwords, name_error, one_line
from studyloom.views.dashboard import FurtherPage, LivePage, guarded, send_text
from studyloom.views.halted_study import explain_halt
from studyloom.views.headline import make_headline
from studyloom.views.page import fill_standalone
from studyloom.views.report_requests import ProposeChanged
from studyloom.views.words import begin_sentence
from studyloom.winner.result import Result

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

INTERVAL = 10  # seconds between two reads of the studies, while a browser shows them
OpenRun = Callable[[Path], StoredStudy]  # opens the study of a run directory


@dataclass(frozen=True)
class StudySummary:
    """A study in the list.

    Args:
        name: the name of its run directory.
        sentence: its headline.
        progress: how far it is.
        trouble: why it cannot be read; empty if it can.
    """

    name: str
    sentence: str = ""
    progress: str = ""
    trouble: str = ""

    @property
    def address(self) -> str:
        """The address of its live report, relative to that of the list."""
        return f"{quote(self.name)}/"


def find_runs(folder: Path) -> list[Path]:
    """Finds the run directories in a folder, by name; none if the folder cannot be read."""
    try:
        folders = sorted(folder.iterdir())
    except OSError:
        return []
    return [*filter(is_run, folders)]


def is_run(folder: Path) -> bool:
    """Returns whether a study has run in a folder."""
    try:
        return (folder / ".hydra" / "config.yaml").is_file()
    except OSError:  # a folder of another user
        return False


def count_studies(count: int) -> str:
    """Returns a number of studies in words: 1 study, 2 studies."""
    if count == 1:
        return "1 study"
    return f"{count} studies"


class Overview:
    """A WSGI application: the list of studies at /, and their live reports below their names.

    Args:
        folder: the folder with the run directories.
        open_run: opens the study of a run directory.
        propose_changed: queues a trial's configuration with changes.
    """

    def __init__(
        self, folder: Path, open_run: OpenRun, propose_changed: ProposeChanged | None = None
    ) -> None:
        self.folder = folder
        self.open_run = open_run
        self.propose_changed = propose_changed
        self.reports: dict[str, LivePage] = {}  # by the name of the run directory
        self.summaries: list[StudySummary] = []
        self.next_refresh = 0.0  # by time.monotonic()
        self.refreshing = threading.Lock()

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Responds to a request, as WSGI has it."""
        with self.refreshing:
            if time.monotonic() >= self.next_refresh:
                self.refresh()
        path = environ.get("PATH_INFO", "/").encode("latin-1").decode("utf-8", "replace")
        name, slash, subpath = path.removeprefix("/").partition("/")
        if not name:
            return send_text(start_response, "200 OK", "text/html", self._render())
        report = self.reports.get(name)
        if report is None or not slash:
            return not_found(environ, start_response)
        return report({**environ, "PATH_INFO": f"/{subpath}"}, start_response)

    def refresh(self) -> None:
        """Reads all studies, and opens those that are new."""
        self.summaries = [*map(self._summarize, find_runs(self.folder))]
        self.next_refresh = time.monotonic() + INTERVAL

    def _summarize(self, run_dir: Path) -> StudySummary:
        """Returns the headline of a study and how far it is, or why it cannot be read."""
        name = run_dir.name
        try:
            if name not in self.reports:
                all_studies = FurtherPage("../", "all studies")
                stored = self.open_run(run_dir)
                self.reports[name] = LivePage(
                    stored, run_dir, not_found, self.propose_changed, further=all_studies
                )
            report = self.reports[name]
            progress = report.reader.read()
            result = Result.read(run_dir, report.stored)
        except (StudyloomError, OSError, ValueError) as error:
            # The run directory may have been made again, with another study.
            self.reports.pop(name, None)
            return StudySummary(name, trouble=mask_passwords(one_line(str(error))))
        except Exception as error:  # one study must not hide the others
            return StudySummary(name, trouble=one_line(name_error(error)))
        halt = explain_halt(report.stored)
        sentence = begin_sentence(make_headline(progress.search, result, halt))
        return StudySummary(name, sentence, progress.line)

    def _render(self) -> str:
        """Returns the list of studies as HTML."""
        summary = f"{count_studies(len(self.summaries))}, read every {INTERVAL} s"
        return fill_standalone(
            "overview.html",
            folder=str(self.folder),
            summary=summary,
            studies=self.summaries,
            seconds=INTERVAL,
        )


def not_found(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Responds that there is no such page."""
    status = HTTPStatus.NOT_FOUND
    return send_text(start_response, f"{status.value} {status.phrase}", "text/plain", "not found\n")


def overview_application(
    folder: Path, open_run: OpenRun, propose_changed: ProposeChanged | None = None
) -> "WSGIApplication":
    """Makes the list of the studies in a folder with their live reports, behind the guard."""
    return guarded(Overview(folder, open_run, propose_changed))
