"""`studyloom dashboard`: a study in the browser of this machine, while it runs and after.

/ serves a live report of the study, /dashboard serves optuna-dashboard, and a guard protects both.
On its own, optuna-dashboard takes the storage URL from its command line, which `ps` shows, and
accepts any Host header, so that any website in the browser can reach it by DNS rebinding. Other
machines reach the port by an SSH tunnel.
"""

import json
import re
import secrets
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from errno import EADDRINUSE
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from markupsafe import Markup

from studyloom.errors import StudyloomError
from studyloom.files import is_trusted
from studyloom.storage.stored_study import StoredStudy
from studyloom.text import mask_passwords, name_error, one_line
from studyloom.views.charts import Block
from studyloom.views.page import Section, Trials, fill_template, render_page, render_section
from studyloom.views.progress import Progress
from studyloom.views.progress_reader import ProgressReader
from studyloom.views.report import read_configs, read_report
from studyloom.views.report_requests import PATHS, Answer, ProposeChanged, ReportRequests
from studyloom.winner.result import Result

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PORTS = 100  # ports to try, from the requested one upwards
DEADLINE = 10.0  # seconds that a request waits for a database that is away
INTERVAL = 3.0  # seconds between two reads of the study, while a browser is connected
ROW = "trial-"  # the prefix of the id of a row of the table of trials
SAFETY = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "SAMEORIGIN"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
)


def guarded(app: "WSGIApplication") -> "WSGIApplication":
    """Wraps an application to reject requests from other websites, and to add SAFETY headers.

    A website may let its own name resolve to 127.0.0.1. The browser then sends that name as Host,
    and would let the website read the response. Browsers also send an Origin with each request that
    could change something. Any port is allowed, since a tunnel may end at another one.
    """

    def respond(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Passes a request on to the application, or rejects it."""

        def start_with_safety(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            return start_response(status, [*headers, *SAFETY], *exc_info)

        host = environ.get("HTTP_HOST", "")
        origin = environ.get("HTTP_ORIGIN")
        is_same_origin = origin in (None, f"http://{host}", f"https://{host}")
        if _is_loopback(host) and is_same_origin:
            return app(environ, start_with_safety)
        reason = "this dashboard accepts requests only to localhost, none from other websites\n"
        return send_text(start_with_safety, "403 Forbidden", "text/plain", reason)

    return respond


def _is_loopback(host: str) -> bool:
    """Returns True if a Host header, with or without a port, names this machine."""
    try:
        return urlsplit(f"//{host}").hostname in LOOPBACK
    except ValueError:  # such as an address whose bracket is not closed
        return False


def send_text(
    start_response: "StartResponse", status: str, kind: str, text: str
) -> Iterable[bytes]:
    """Sends a text, which no browser and no proxy may store."""
    content = text.encode(errors="replace")
    start_response(
        status,
        [
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(content))),
            ("Cache-Control", "no-store"),
        ],
    )
    return [content]


@dataclass(frozen=True)
class FurtherPage:
    """A page to which a live report links: its address and title."""

    address: str
    title: str


@dataclass(frozen=True)
class VersionedHtml:
    """The HTML of a part of the report, and the version of the report in which it changed last."""

    html: str
    version: int


class ReportParts:
    """The parts of a live report, by key, and the version of the report in which each changed.

    A version counts how often anything has changed. Its name begins with a random text for each
    server: a browser may still show the report of a server that has ended, whose versions mean
    nothing to this one.
    """

    def __init__(self) -> None:
        self.server = secrets.token_hex(4)
        self.version = 0
        self.parts: dict[str, VersionedHtml] = {}
        self.removed: dict[str, int] = {}  # the version in which a part was removed, by its key

    @property
    def version_name(self) -> str:
        """The name of the current version."""
        return f"{self.server}-{self.version}"

    def update(self, parts: Mapping[str, str]) -> None:
        """Replaces the parts; those whose HTML is the same keep the version of their change.

        Args:
            parts: the HTML of all parts, by key, in the order in which the browser shows them.
        """
        previous_html = {key: part.html for key, part in self.parts.items()}
        is_same = list(parts.items()) == list(previous_html.items())  # lists also have an order
        if is_same:
            return
        self.version += 1
        for key in self.parts:
            if key not in parts:
                self.removed[key] = self.version
        updated_parts = {}
        for key, html in parts.items():
            self.removed.pop(key, None)  # a part may come back
            if html == previous_html.get(key):
                updated_parts[key] = self.parts[key]
            else:
                updated_parts[key] = VersionedHtml(html, self.version)
        self.parts = updated_parts

    def find_version(self, version_name: str) -> int | None:
        """Returns the number of a version; None if the name is not that of one of this server."""
        match = re.fullmatch(rf"{self.server}-(\d{{1,9}})", version_name)  # such as 3f9a01bc-12
        if match is None:
            return None
        return int(match[1])

    def changed_since(self, version: int) -> dict[str, str]:
        """Returns the HTML of the parts that have changed since a version, by key."""
        return {key: part.html for key, part in self.parts.items() if part.version > version}

    def removed_since(self, version: int) -> list[str]:
        """Returns the keys of the parts that were removed since a version."""
        return [key for key, when in self.removed.items() if when > version]


@dataclass(frozen=True)
class RenderedReport:
    """A report as HTML.

    Args:
        parts: the HTML by key: of the head, of the sections, and of the rows of the table of
            trials, each with the prefix ROW.
        sections: the sections, without the rows of that table.
    """

    parts: Mapping[str, str]
    sections: Sequence[Section]


class LivePage:
    """A WSGI application: the live report at /, its changes at /changes, and another app.

    The report has parts: its head, its sections, and the rows of the table of trials. The browser
    polls for the parts that have changed since its version, without sections that are far from its
    visible part. The report of your run directory has buttons to pause, resume and stop the study
    or a trial, and to propose a trial with changes; their requests hold the report's token.

    Args:
        app: the application that answers all other paths.
        propose_changed: queues a trial's configuration with changes; None if none may be proposed.
        further: the page to which it links; None for the study in optuna-dashboard.
    """

    interval = INTERVAL

    def __init__(
        self,
        stored: StoredStudy,
        run_dir: Path | None,
        app: "WSGIApplication",
        propose_changed: ProposeChanged | None = None,
        *,
        further: FurtherPage | None = None,
    ) -> None:
        self.stored = stored
        self.run_dir = run_dir
        self.app = app
        if further is None:
            address = f"/dashboard/studies/{stored.ledger.study_id}"
            further = FurtherPage(address, "optuna-dashboard")
        self.further = further
        self.reader = ProgressReader(stored)
        self.requests = ReportRequests(stored, self.reader, propose_changed)
        self.token = ""  # without a token no request is accepted, and the report has no buttons
        if run_dir is not None and is_trusted(run_dir) and stored.is_studylooms:
            self.token = secrets.token_urlsafe()
        self.parts = ReportParts()
        self.sections: Sequence[Section] = ()
        self.trouble = ""  # why the study could not be read the last time
        self.next_refresh = 0.0  # by time.monotonic()
        self.refreshing = threading.Lock()

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Responds to a request, as WSGI has it.

        The path "/" is the report, "/changes" is what has changed in it as JSON, and PATHS are
        those of its buttons. All other paths are those of optuna-dashboard.
        """
        path = environ.get("PATH_INFO", "/")
        request = path.removeprefix("/")
        if request in PATHS:
            answer = self.control(request, environ)
            return send_text(start_response, answer.status, "text/plain", answer.text)
        is_read = environ["REQUEST_METHOD"] in ("GET", "HEAD")
        if path not in ("", "/", "/changes") or not is_read:
            return self.app(environ, start_response)
        with self.refreshing:
            if time.monotonic() >= self.next_refresh:
                self.refresh()
            if path == "/changes":
                query = parse_qs(environ.get("QUERY_STRING", ""))
                version_name = query.get("since", [""])[0]
                near = None
                if "near" in query:
                    near = query["near"][0].split(",")
                outdated = query.get("outdated", [""])[0].split(",")
                content = json.dumps(self.changes_since(version_name, near, outdated))
                kind = "application/json"
            else:
                content = self._render_page()
                kind = "text/html"
        return send_text(start_response, "200 OK", kind, content)

    def control(self, name: str, environ: "WSGIEnvironment") -> Answer:
        """Does what a button of the report asks for.

        Only the report that this server has sent to this machine may send it. Other websites do not
        know its token, and the browser does not let them set the header X-Report-Token.

        Returns:
            The response, whose text the report shows.
        """
        if not self._is_from_report(environ):
            refusal = "refused: only the report may ask for this; load it again"
            return Answer("403 Forbidden", refusal)
        with self.refreshing:
            answer = self.requests.answer(name, environ)
        self.next_refresh = 0.0  # the browser's next poll shows the change
        return answer

    def _is_from_report(self, environ: "WSGIEnvironment") -> bool:
        """Returns True if a request was posted on this machine, with the token of the report."""
        if not self.token:
            return False
        token = environ.get("HTTP_X_REPORT_TOKEN", "").encode()
        # Takes equally long for every wrong token, so that none can be guessed letter by letter.
        if not secrets.compare_digest(token, self.token.encode()):
            return False
        return environ["REQUEST_METHOD"] == "POST" and environ.get("REMOTE_ADDR") in LOOPBACK

    def changes_since(
        self,
        version_name: str,
        near: Collection[str] | None = None,
        outdated: Collection[str] = (),
    ) -> dict[str, Any]:
        """Returns what has changed since a version of the report.

        Args:
            version_name: the version that the browser shows. If another server made it, the whole
                report is returned.
            near: the keys of the sections near the visible part of the report. Only the HTML of
                these is returned, since figures of many trials are large; None for all sections.
            outdated: the keys of the sections whose changes the browser has not received before.

        Returns:
            The changed HTML by key: `rows` are those of the table of trials, `parts` the others.
            `outdated` are the keys of the changed sections whose HTML is not returned.
            `gone` are the keys of removed parts; None makes the browser remove every row that
            is not among `rows`.
        """
        version = self.parts.find_version(version_name)  # None for another server's version
        gone = None
        if version is not None:
            gone = self.parts.removed_since(version)
        parts = {}
        rows = {}
        changed = self.parts.changed_since(version or 0)
        for key in outdated:
            if key in self.parts.parts:
                changed[key] = self.parts.parts[key].html
        order = [section.key for section in self.sections]
        still_outdated = []
        for key, html in changed.items():
            if key.startswith(ROW):
                rows[key] = html
            elif near is None or key in near or key not in order:
                parts[key] = html
            else:
                still_outdated.append(key)
        return {
            "version": self.parts.version_name,
            "parts": parts,
            "rows": rows,
            "gone": gone,
            "outdated": still_outdated,
            "order": order,
            "trouble": self.trouble,
        }

    def refresh(self) -> None:
        """Renders the current state of the study.

        Rendering takes at most a fifth of the time, so that a study of a thousand trials leaves
        the processor to its workers.
        """
        began = time.monotonic()
        try:
            rendered = self._render()
        except (StudyloomError, OSError) as error:
            self._note_trouble(str(error))
        except Exception as error:  # whatever happens this time, the next time may succeed
            self._note_trouble(name_error(error))
        else:
            self.trouble = ""
            self.parts.update(rendered.parts)
            self.sections = rendered.sections
        duration = time.monotonic() - began
        self.next_refresh = time.monotonic() + max(self.interval, 4 * duration)

    def _note_trouble(self, reason: str) -> None:
        self.trouble = mask_passwords(one_line(f"the study cannot be read: {reason}"))

    def _render(self) -> RenderedReport:
        """Reads the study and renders its report, with each row of the table of trials apart.

        The browser then receives only the rows that have changed.
        """
        progress = self.reader.read()
        result = None
        configs = ""
        if self.run_dir is not None:
            result = Result.read(self.run_dir, self.stored)
            configs = read_configs(self.run_dir)
        report = read_report(self.stored, result, configs, progress, self.run_dir)
        rows: dict[str, str] = {}
        sections_without_rows = []
        for section in report.sections:
            rows |= _render_rows(section)
            sections_without_rows.append(_remove_rows(section))
        # The template takes the HTML of each section too, of which its links need nothing.
        links = [(section, "") for section in sections_without_rows]
        parts = {
            "head": str(fill_template("head.html", head=report.head)),
            "nav": str(fill_template("nav.html", sections=links)),
            "progress": self._render_progress(progress),
        }
        for section in sections_without_rows:
            parts[section.key] = str(render_section(section))
        return RenderedReport(parts | rows, sections_without_rows)

    def _render_progress(self, progress: Progress) -> str:
        """Returns the line that shows how far the study is, with its buttons."""
        buttons = {}  # by name; False for a button that would change nothing
        is_stoppable = progress.control != "stop" and not progress.has_ended
        if self.token and is_stoppable:  # without a token, no request of the report is accepted
            is_paused = progress.control == "pause"
            buttons = {"pause": progress.control is None, "resume": is_paused, "stop": True}
        texts = [*progress.list_times()]  # the facts of the head have the stage and its counts
        if progress.control_text:
            texts.insert(0, progress.control_text)
        elif progress.has_ended:
            texts.insert(0, progress.stage_text)
        html = fill_template(
            "progress.html",
            share=round(progress.share, 3),
            texts=texts,
            buttons=buttons,
        )
        return str(html)

    def _render_page(self) -> str:
        """Returns the whole report as HTML, from its parts as last rendered."""
        parts = self.parts.changed_since(0)  # all of them: the first version is 1
        # The rows of the table of trials are parts of their own, and the table is rendered empty.
        rows = "\n".join(html for key, html in parts.items() if key.startswith(ROW))
        if "trials" in parts:
            parts["trials"] = parts["trials"].replace("<tbody>", f"<tbody>{rows}")
        live = {
            "version": self.parts.version_name,
            "token": self.token,
            "interval": str(round(1000 * self.interval)),
            "proposes": str(self.requests.propose_changed is not None).lower(),
            "more": self.further.address,
            "title": self.further.title,
        }
        head = Markup(parts.get("head", ""))
        progress = Markup(parts.get("progress", ""))
        sections = [(section, Markup(parts[section.key])) for section in self.sections]
        return render_page(self.stored.name, head, sections, live, progress, self.run_dir)


def _render_rows(section: Section) -> dict[str, str]:
    """Returns the HTML of each row of the table of trials, by key; nothing for other sections."""
    rows = {}
    for block in section.blocks:
        if isinstance(block, Trials):
            for row in block.rows:
                html = fill_template("row.html", row=row, columns=block.columns)
                rows[f"{ROW}{row.number}"] = str(html)
    return rows


def _remove_rows(section: Section) -> Section:
    """Returns a section whose table of trials has no rows, if it has that table."""
    blocks: list[Block] = []
    for block in section.blocks:
        if isinstance(block, Trials):
            blocks.append(replace(block, rows=()))
        else:
            blocks.append(block)
    return replace(section, blocks=blocks)


class Handler(WSGIRequestHandler):
    """Handles one request."""

    def log_message(self, *_: Any) -> None:
        """Logs nothing: a line for each request would hide the address."""


class Server(ThreadingMixIn, WSGIServer):
    """An HTTP server with a thread for each request."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints a traceback, but not if the browser closed the connection."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def bind(port: int) -> Server:
    """Opens a server on the first free port of 127.0.0.1 from `port` on.

    Raises:
        ValueError: no port is free; the message says how to fix this.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"--port must be a number from 0 (any free port) to 65535; got {port}")
    for candidate in range(port, min(port + PORTS, 2**16)):
        try:
            return Server(("127.0.0.1", candidate), Handler)
        except OSError as error:
            if error.errno != EADDRINUSE:
                raise ValueError(
                    f"--port {candidate}: {error.strerror or error}; choose one from 1024 on"
                ) from None
    raise ValueError(f"--port {port}: this one and the {PORTS - 1} above are taken; choose another")


@contextmanager
def quiet_importances() -> Iterator[None]:
    """Ignores Optuna's warnings in the body, such as of few trials for an importance.

    optuna-dashboard computes them for each view, and the terminal is for the address.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="optuna")
        yield


def application(
    stored: StoredStudy, run_dir: Path | None, propose_changed: ProposeChanged | None = None
) -> "WSGIApplication":
    """Makes the live report, with optuna-dashboard below /dashboard, behind the guard.

    Args:
        propose_changed: queues a trial's configuration with changes; None if none may be proposed.
    """
    from optuna_dashboard import wsgi  # type: ignore[import-untyped]  # it takes 1.7 s

    # This storage is not an RDBStorage: with one, the dashboard would compare Optuna's table
    # versions on each request.
    page = LivePage(stored, run_dir, wsgi(stored.storage), propose_changed)
    page.refresh()  # the first browser does not wait for it
    return guarded(page)


def serve(app: "WSGIApplication", port: int, print_address: Callable[[str], None]) -> None:
    """Serves an application, such as a live report, until Ctrl-C or SIGTERM.

    Args:
        print_address: called with the address, once the server listens.

    Raises:
        ValueError: no port is free.
    """
    with bind(port) as server, quiet_importances():
        # shutdown() waits for serve_forever() to return. A signal handler runs inside of
        # serve_forever(): if it called shutdown(), it would wait for itself. A thread may wait.
        def stop(*_: object) -> None:
            threading.Thread(target=server.shutdown, daemon=True).start()

        for signal_number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signal_number, stop)
        server.set_app(app)
        print_address(f"http://127.0.0.1:{server.server_port}/")
        server.serve_forever()
