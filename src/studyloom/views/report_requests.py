"""Requests that a browser sends to a study through its live report: the same as commands do.

The buttons pause, resume or stop the study, stop one trial, or propose the configuration of a trial
with changes. The dashboard checks where a request comes from before it is answered here.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from studyloom.errors import ConfigError, StudyloomError
from studyloom.storage.stored_study import StoredStudy
from studyloom.text import mask_passwords, one_line
from studyloom.views.progress_reader import ProgressReader
from studyloom.worker.stop_trial import stop_trial
from studyloom.worker.stopping import Request, set_control

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

STOPPED = "the study is stopped; the command that runs it resumes it"
CONTROLS: dict[str, Request | None] = {"pause": "pause", "resume": None, "stop": "stop"}  # by path
STOP_TRIAL = "stop_trial"
PROPOSE = "propose"
PATHS = frozenset((*CONTROLS, STOP_TRIAL, PROPOSE))
LONGEST_BODY = 100_000  # bytes
# Queues the configuration of a trial with changes, and returns the number of the new trial.
ProposeChanged = Callable[[StoredStudy, int, Mapping[str, Any]], int]


@dataclass(frozen=True)
class Answer:
    """The HTTP status of a response, and its text."""

    status: str
    text: str


class InvalidRequest(Exception):
    """A request that no report sends, such as one without the number of a trial."""


@dataclass(frozen=True)
class ReportRequests:
    """Answers the requests of a live report.

    Args:
        stored: the study.
        reader: reads how far it is.
        propose_changed: queues a trial's configuration with changes; None if none may be proposed.
    """

    stored: StoredStudy
    reader: ProgressReader
    propose_changed: ProposeChanged | None = None

    def answer(self, path: str, environ: "WSGIEnvironment") -> Answer:
        """Does what a request asks for, and returns the text that the report shows.

        Args:
            path: one of PATHS.
        """
        try:
            if self.reader.read().has_ended:
                return Answer("409 Conflict", "the study has ended")
            if path == STOP_TRIAL:
                return Answer("200 OK", self._stop_trial(environ))
            if path == PROPOSE:
                return Answer("200 OK", self._propose(environ))
            return self._set_control(path)
        except InvalidRequest as error:
            return Answer("400 Bad Request", f"refused: {error}")
        except ConfigError as error:
            return Answer("409 Conflict", mask_passwords(one_line(f"refused: {error}")))
        except (StudyloomError, OSError) as error:
            return Answer(
                "503 Service Unavailable", mask_passwords(one_line(f"not stored: {error}"))
            )

    def _set_control(self, path: str) -> Answer:
        """Stores a request to pause, resume or stop, as the command of this name does."""
        if not set_control(self.stored, CONTROLS[path]):
            return Answer("409 Conflict", f"refused: {STOPPED}")
        return Answer("200 OK", f"{path} requested")

    def _stop_trial(self, environ: "WSGIEnvironment") -> str:
        """Stops the trial that the query names."""
        query = parse_qs(environ.get("QUERY_STRING", ""))
        number = _read_number(query.get("trial", [""])[0])
        outcome = stop_trial(self.stored, number)
        if outcome == "ended":
            return f"trial {number} has ended"
        return f"trial {number} ends at its next report"

    def _propose(self, environ: "WSGIEnvironment") -> str:
        """Proposes the configuration of a trial with the changes that the body names."""
        if self.propose_changed is None:
            raise InvalidRequest("this report takes no proposals")
        document = _read_object(environ)
        changes = document.get("changes")
        if not isinstance(changes, dict):
            raise InvalidRequest("it must have changes")
        values = {}
        for name, text in changes.items():
            values[name] = _parse_value(text)
        number = self.propose_changed(self.stored, _read_number(document.get("trial")), values)
        return f"trial {number} waits for the next free worker"


def _read_number(text: object) -> int:
    """Returns the number of a trial; raises InvalidRequest if it is none."""
    digits = str(text)
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
        raise InvalidRequest("it must name a trial")
    return int(digits)


def _read_object(environ: "WSGIEnvironment") -> dict[str, Any]:
    """Reads an object in JSON from the body of a request."""
    length = environ.get("CONTENT_LENGTH") or "0"
    if not length.isdigit() or int(length) > LONGEST_BODY:
        raise InvalidRequest(f"it may have at most {LONGEST_BODY} bytes")
    try:
        document = json.loads(environ["wsgi.input"].read(int(length)))
    except (RecursionError, ValueError):
        raise InvalidRequest("it must be JSON") from None
    if not isinstance(document, dict):
        raise InvalidRequest("it must be an object in JSON")
    return document


def _parse_value(text: object) -> Any:
    """Returns the value that a person has typed: a number or true, false, null, or else a text."""
    try:
        value = json.loads(str(text))
    except (RecursionError, ValueError):
        return str(text)
    if isinstance(value, dict | list):
        return str(text)
    return value
