"""The study's own page, served: the content of report.html, which follows the study by itself.

The page is made of parts: its head, its sections, and the rows of the table of trials. Every few
seconds they are rendered again, and those that differ are sent to the pages that are open, as
server-sent events.
"""

import json
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from markupsafe import Markup

from studyloom.errors import StudyloomError
from studyloom.study.stored_study import StoredStudy
from studyloom.text import mask_passwords, one_line
from studyloom.views.dashboard.spreadsheet import answer_csv
from studyloom.views.progress.job import JobReader
from studyloom.views.progress.words import all_stages, stage_words, time_words
from studyloom.views.report.blocks import Section, Trials
from studyloom.views.report.page import (
    Rendered,
    document,
    head_html,
    nav_html,
    progress_html,
    render_section,
    row_html,
)
from studyloom.views.report.sections import read_report
from studyloom.views.report.writing import read_files

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

INTERVAL = 3.0  # seconds between two looks at the study, while a page is open
BEAT = 15.0  # seconds after which an idle connection shows whether its browser is still there
TABLE = "trials"  # the section whose rows are parts of their own


@dataclass
class Part:
    """A piece of the page.

    Args:
        html: what it is now.
        version: since which version of the page.
    """

    html: str
    version: int


@dataclass
class Parts:
    """All pieces of a page, and since when each is what it is.

    Args:
        version: how often anything has changed.
        order: the keys of the sections, in the order of the page.
        pieces: the head, the list and the sections, by key.
        rows: of the table of trials, by the id of the row.
        titles: of the sections, by key.
    """

    version: int = 0
    order: list[str] = field(default_factory=list)
    pieces: dict[str, Part] = field(default_factory=dict)
    rows: dict[str, Part] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)

    def take(self, pieces: dict[str, str], rows: dict[str, str], sections: list[Rendered]) -> bool:
        """Takes what the page is now.

        Returns:
            Whether anything has changed.
        """
        version = self.version + 1
        order = [section.key for section in sections]
        known = {key: part.html for key, part in (self.pieces | self.rows).items()}
        if order == self.order and known == pieces | rows:
            return False
        for mine, now in ((self.pieces, pieces), (self.rows, rows)):
            for key in {*mine} - {*now}:
                del mine[key]
            for key, html in now.items():
                if key not in mine or mine[key].html != html:
                    mine[key] = Part(html, version)
        self.version, self.order = version, order
        self.titles = {section.key: section.title for section in sections}
        return True

    def since(self, version: int) -> dict[str, Any]:
        """Returns what has changed since a version."""
        return {
            "parts": {key: p.html for key, p in self.pieces.items() if p.version > version},
            "rows": {key: p.html for key, p in self.rows.items() if p.version > version},
            "order": self.order,
        }


class LivePage:
    """A WSGI application: the page of a study at /, its changes at /events, and another app behind.

    Args:
        stored: the study.
        run_dir: the folder in which it runs, if there is one.
        app: what answers to all other addresses.
        interval: seconds between two looks at the study, while a page is open.
    """

    def __init__(
        self,
        stored: StoredStudy,
        run_dir: Path | None,
        app: "WSGIApplication",
        interval: float = INTERVAL,
    ) -> None:
        self.stored, self.run_dir, self.app, self.interval = stored, run_dir, app, interval
        self.job = JobReader(stored)
        self.boot = secrets.token_hex(4)  # versions of an earlier server mean nothing
        self.parts = Parts()
        self.trouble = ""  # why the study could not be read at the last look
        self.listeners, self.closed = 0, False
        self.follower: threading.Thread | None = None
        self.looking = threading.Lock()
        self.changed = threading.Condition()

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        path, reads = environ.get("PATH_INFO", "/"), environ["REQUEST_METHOD"] in ("GET", "HEAD")
        if path in ("", "/") and reads:
            return self._answer_page(start_response)
        if path == "/events" and reads:
            return self._answer_events(environ, start_response)
        if path.startswith("/csv/"):
            return answer_csv(self.app, environ, start_response)
        return self.app(environ, start_response)

    def _answer_page(self, start_response: "StartResponse") -> Iterable[bytes]:
        """Answers with the page as of the last look, which the events then bring up to date."""
        if not self.parts.version:
            self.look()
        with self.changed:
            content = self._page().encode(errors="replace")
        kind = ("Content-Type", "text/html; charset=utf-8")
        length = ("Content-Length", str(len(content)))
        start_response("200 OK", [kind, length, ("Cache-Control", "no-store")])
        return [content]

    def _page(self) -> str:
        parts = self.parts
        sections = [Rendered(key, parts.titles[key], self._whole(key)) for key in parts.order]
        head = parts.pieces["head"].html if "head" in parts.pieces else ""
        more = f"/dashboard/studies/{self.stored.ledger.study_id}"
        live = {"version": f"{self.boot}-{parts.version}", "more": more}
        told = Markup(parts.pieces["progress"].html if "progress" in parts.pieces else "")
        return document(self.stored.name, Markup(head), sections, live, told)

    def _whole(self, key: str) -> Markup:
        """Returns a section with its rows; both were rendered by templates, which escape."""
        html = self.parts.pieces[key].html
        if key == TABLE:
            rows = "\n".join(part.html for part in self.parts.rows.values())
            above, body, below = html.rpartition("<tbody>")
            html = f"{above}{body}{rows}{below}" if body else html
        return Markup(html)

    def _answer_events(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        given = parse_qs(environ.get("QUERY_STRING", "")).get("since", [""])[0]
        since = self._version_of(environ.get("HTTP_LAST_EVENT_ID") or given)
        kind = ("Content-Type", "text/event-stream; charset=utf-8")
        start_response("200 OK", [kind, ("Cache-Control", "no-store")])
        return self._events(since)

    def _version_of(self, text: str) -> int:
        """Returns the version that a browser has; 0 if it is none of this server's."""
        boot, _, number = text.partition("-")
        known = boot == self.boot and number.isascii() and number.isdigit() and len(number) < 12
        return int(number) if known else 0

    def _events(self, since: int) -> Iterator[bytes]:
        """Yields what changes, until the browser is gone."""
        with self.changed:
            self.listeners += 1
            if self.follower is None:
                self.follower = threading.Thread(target=self._follow, daemon=True)
                self.follower.start()
        said = ""
        try:
            yield b"retry: 2000\n\n"
            while not self.closed:
                message, version, trouble = self._wait(since, said)
                if message is not None:
                    identity = f"{self.boot}-{version}"
                    yield _event("changed", message | {"version": identity}, identity)
                    since = version
                elif trouble == said:
                    yield b": still here\n\n"
                if trouble and trouble != said:
                    yield _event("away", trouble)
                said = trouble
        finally:
            with self.changed:
                self.listeners -= 1
                self.changed.notify_all()

    def _wait(self, since: int, said: str) -> tuple[dict[str, Any] | None, int, str]:
        """Waits for something that a browser does not know, or for a beat.

        Args:
            since: the version that it has.
            said: the trouble that it was told.

        Returns:
            What has changed, if anything has; the version now, and the trouble now.
        """
        with self.changed:
            self.changed.wait_for(
                lambda: self.parts.version > since or self.trouble != said or self.closed, BEAT
            )
            version = self.parts.version
            message = self.parts.since(since) if version > since else None
            return message, version, self.trouble

    def _follow(self) -> None:
        """Looks at the study again and again, for as long as somebody listens.

        A look takes a fifth of the time at most, so that a thousand trials leave the processor to
        those who train.
        """
        while True:
            began = time.monotonic()
            self.look()
            rest = max(self.interval, 4 * (time.monotonic() - began))
            with self.changed:
                self.changed.wait_for(lambda: self.closed, rest)
                if not self.listeners or self.closed:
                    self.follower = None
                    self.changed.notify_all()
                    return

    def close(self) -> None:
        """Ends the connections of the pages that are open, and looks at the study no more."""
        with self.changed:
            self.closed = True
            follower = self.follower
            self.changed.notify_all()
        if follower is not None:
            follower.join()

    def look(self) -> None:
        """Renders the study as it is now, and wakes those who wait for a change."""
        with self.looking:
            trouble = ""
            try:
                pieces, rows, sections = self._read()
            except Exception as error:  # whatever one look meets, the next one may succeed
                known = isinstance(error, StudyloomError | OSError)
                what = str(error) if known else f"{type(error).__name__}: {error}"
                trouble = mask_passwords(one_line(f"the study cannot be read: {what}"))
            with self.changed:
                changed = self.trouble != trouble
                self.trouble = trouble
                if not trouble:
                    changed |= self.parts.take(pieces, rows, sections)
                if changed:
                    self.changed.notify_all()

    def _read(self) -> tuple[dict[str, str], dict[str, str], list[Rendered]]:
        """Returns the parts of the page and the rows of its table by key, and its sections."""
        winner, config_text = None, ""
        if self.run_dir is not None:
            winner, config_text = read_files(self.stored, self.run_dir)
        progress = self.job.read()
        head, sections = read_report(self.stored, winner, config_text, progress)
        rendered: list[Rendered] = []
        rows: dict[str, str] = {}
        for section in sections:
            shell, own = _without_rows(section)
            rows |= own
            rendered.append(render_section(shell))
        pieces = {section.key: str(section.html) for section in rendered}
        pieces |= {"head": str(head_html(head)), "nav": str(nav_html(rendered))}
        said = [stage_words(progress), all_stages(progress), *time_words(progress)]
        told = progress_html(progress.done, progress.budget, [words for words in said if words])
        pieces["progress"] = str(told)
        return pieces, rows, rendered


def _without_rows(section: Section) -> tuple[Section, dict[str, str]]:
    """Returns a section without the rows of the table of trials, and these by id."""
    rows: dict[str, str] = {}
    blocks = []
    for block in section.blocks:
        if isinstance(block, Trials):
            rows |= {f"trial-{row.number}": str(row_html(row, block.words)) for row in block.rows}
            block = replace(block, rows=())
        blocks.append(block)
    return replace(section, blocks=blocks), rows


def _event(name: str, data: Any, identity: str = "") -> bytes:
    """Returns a server-sent event; its JSON has no line break."""
    head = f"id: {identity}\n" if identity else ""
    return f"{head}event: {name}\ndata: {json.dumps(data)}\n\n".encode()
