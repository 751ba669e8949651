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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from errno import EADDRINUSE
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from markupsafe import Markup

from studyloom.errors import StudyloomError
from studyloom.files import is_own
from studyloom.storage.stored_study import StoredStudy
from studyloom.text import mask_passwords, name_error, one_line
from studyloom.views.page import Section, Trials, document, fill, section_html
from studyloom.views.progress import ProgressReader
from studyloom.views.report import read_report
from studyloom.winner.result import RunFiles
from studyloom.worker.stopping import Request, set_control

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PORTS = 100  # ports to try, from the requested one upwards
DEADLINE = 10.0  # seconds that a request waits for a database that is away
INTERVAL = 3.0  # seconds between two reads of the study, while a browser is connected
ROW = "trial-"  # the prefix of the id of a row of the table of trials
STOPPED = "the study is stopped; the command that runs it resumes it"
REQUESTS: dict[str, Request | None] = {"pause": "pause", "resume": None, "stop": "stop"}  # by path
SAFETY = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "SAMEORIGIN"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
)


def guarded(app: "WSGIApplication") -> "WSGIApplication":
    """Wraps an application to reject requests from other hosts and other websites.

    Any port is allowed, since a tunnel may end at another one. Browsers send an Origin with each
    request that could change something.
    """

    def respond(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            return start_response(status, [*headers, *SAFETY], *exc_info)

        host, origin = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN")
        try:
            known = urlsplit(f"//{host}").hostname in LOOPBACK
        except ValueError:
            known = False
        if known and origin in (None, f"http://{host}", f"https://{host}"):
            return app(environ, start)
        why = "this dashboard accepts requests only to localhost, none from other websites\n"
        return _respond(start, "403 Forbidden", "text/plain", why)

    return respond


def _respond(start_response: "StartResponse", status: str, kind: str, text: str) -> Iterable[bytes]:
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


class LivePage:
    """A WSGI application: the live report at /, its changes at /changes, and another app.

    The report has parts: its head, its sections, and the rows of the table of trials. The browser
    polls for the parts that have changed since its version. The report of your run directory
    has buttons to pause, resume and stop the study; their requests hold the report's token.
    """

    interval = INTERVAL

    def __init__(self, stored: StoredStudy, run_dir: Path | None, app: "WSGIApplication") -> None:
        self.stored, self.run_dir, self.app = stored, run_dir, app
        self.reader = ProgressReader(stored)
        own = run_dir is not None and is_own(run_dir) and stored.ours
        self.token = secrets.token_urlsafe() if own else ""
        self.boot = secrets.token_hex(4)  # versions of an earlier server mean nothing
        self.version = 0  # how often anything has changed
        self.parts: dict[str, tuple[str, int]] = {}  # HTML, and since which version
        self.gone: dict[str, int] = {}  # parts that were removed, and with which version
        self.sections: list[Section] = []
        self.trouble = ""  # why the study could not be read at the last look
        self.due = 0.0  # when the next look is, by time.monotonic()
        self.looking = threading.Lock()

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path[1:] in REQUESTS:
            status, words = self.control(path[1:], environ)
            return _respond(start_response, status, "text/plain", words)
        if path not in ("", "/", "/changes") or environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return self.app(environ, start_response)
        with self.looking:
            if time.monotonic() >= self.due:
                self.look()
            if path == "/changes":
                given = parse_qs(environ.get("QUERY_STRING", "")).get("since", [""])[0]
                content, kind = json.dumps(self.since(given)), "application/json"
            else:
                content, kind = self._page(), "text/html"
        return _respond(start_response, "200 OK", kind, content)

    def control(self, name: str, environ: "WSGIEnvironment") -> tuple[str, str]:
        """Stores a request to pause, resume or stop, as the command of this name does.

        Only the report that this server has sent to this machine may send it: other websites
        neither know its token nor may set a header of this name.

        Returns:
            The status of the response, and what the report shows.
        """
        sent = environ.get("HTTP_X_REPORT_TOKEN", "").encode()
        known = self.token and secrets.compare_digest(sent, self.token.encode())
        posted = environ["REQUEST_METHOD"] == "POST" and environ.get("REMOTE_ADDR") in LOOPBACK
        if not known or not posted:
            return "403 Forbidden", "refused: only the report may ask for this; load it again"
        try:
            with self.looking:
                if self.reader.read().ended:
                    return "409 Conflict", "the study has ended"
                if not set_control(self.stored, REQUESTS[name]):
                    return "409 Conflict", f"refused: {STOPPED}"
        except (StudyloomError, OSError) as error:
            return "503 Service Unavailable", mask_passwords(one_line(f"not stored: {error}"))
        self.due = 0.0
        return "200 OK", f"{name} requested"

    def since(self, given: str) -> dict[str, Any]:
        """Returns the changes since a version; everything if another server made the version.

        `gone` are the keys of removed rows and sections; None if no rows are left but `rows`.
        """
        match = re.fullmatch(rf"{self.boot}-(\d{{1,9}})", given)
        version = int(match[1]) if match else 0
        changed = {key: html for key, (html, at) in self.parts.items() if at > version}
        rows = {key: changed.pop(key) for key in [*changed] if key.startswith(ROW)}
        return {
            "version": f"{self.boot}-{self.version}",
            "parts": changed,
            "rows": rows,
            "gone": [key for key, at in self.gone.items() if at > version] if match else None,
            "order": [section.key for section in self.sections],
            "trouble": self.trouble,
        }

    def look(self) -> None:
        """Renders the current state of the study.

        Rendering takes at most a fifth of the time, so that a study of a thousand trials leaves
        the processor to its workers.
        """
        began = time.monotonic()
        try:
            parts, sections = self._read()
            self.trouble = ""
        except Exception as error:  # whatever one look meets, the next one may succeed
            known = isinstance(error, StudyloomError | OSError)
            what = str(error) if known else name_error(error)
            self.trouble = mask_passwords(one_line(f"the study cannot be read: {what}"))
        else:
            before = {key: html for key, (html, _) in self.parts.items()}
            if [*parts.items()] != [*before.items()]:
                self.version += 1
                gone = self.gone | dict.fromkeys(before, self.version)
                self.gone = {key: at for key, at in gone.items() if key not in parts}
                self.parts = {
                    key: self.parts[key] if before.get(key) == html else (html, self.version)
                    for key, html in parts.items()
                }
                self.sections = sections
        self.due = time.monotonic() + max(self.interval, 4 * (time.monotonic() - began))

    def _read(self) -> tuple[dict[str, str], list[Section]]:
        """Returns the parts of the report by key, and its sections without the table's rows."""
        folder, progress = self.run_dir, self.reader.read()
        files = RunFiles() if folder is None else RunFiles.read(self.stored, folder)
        head, sections = read_report(self.stored, files, progress, folder)
        rows: dict[str, str] = {}
        bare = [_without_rows(section, rows) for section in sections]
        done = {"done": progress.done, "budget": progress.budget, "words": progress.now_words()}
        asked = progress.control
        useful = {"pause": asked is None, "resume": asked == "pause", "stop": True}
        buttons = useful if self.token and asked != "stop" and not progress.ended else {}
        parts = {
            "head": fill("head.html", head=head),
            "nav": fill("nav.html", sections=[(section, "") for section in bare]),
            "progress": fill(
                "progress.html", **done, said=1 + bool(progress.later_words), buttons=buttons
            ),
            **{section.key: section_html(section) for section in bare},
        }
        return {key: str(html) for key, html in parts.items()} | rows, bare

    def _page(self) -> str:
        """Returns the HTML as last rendered."""
        parts = {key: html for key, (html, _) in self.parts.items()}
        rows = "\n".join(html for key, html in parts.items() if key.startswith(ROW))
        if "trials" in parts:
            parts["trials"] = parts["trials"].replace("<tbody>", f"<tbody>{rows}")
        live = {
            "version": f"{self.boot}-{self.version}",
            "token": self.token,
            "interval": str(round(1000 * self.interval)),
            "more": f"/dashboard/studies/{self.stored.ledger.study_id}",
        }
        head, progress = (Markup(parts.get(key, "")) for key in ("head", "progress"))
        sections = [(section, Markup(parts[section.key])) for section in self.sections]
        return document(self.stored.name, head, sections, live, progress, self.run_dir)


def _without_rows(section: Section, rows: dict[str, str]) -> Section:
    """Returns a section without the rows of the table of trials, which are added to `rows`."""
    blocks = []
    for block in section.blocks:
        if isinstance(block, Trials):
            for row in block.rows:
                rows[f"{ROW}{row.number}"] = str(fill("row.html", row=row, columns=block.columns))
            block = replace(block, rows=())
        blocks.append(block)
    return replace(section, blocks=blocks)


class Handler(WSGIRequestHandler):
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


def application(stored: StoredStudy, run_dir: Path | None) -> "WSGIApplication":
    """Makes the live report, with optuna-dashboard below /dashboard, behind the guard."""
    from optuna_dashboard import wsgi  # type: ignore[import-untyped]  # it takes 1.7 s

    # This storage is not an RDBStorage: with one, the dashboard would compare Optuna's table
    # versions on each request.
    page = LivePage(stored, run_dir, wsgi(stored.storage))
    page.look()  # the first browser does not wait for it
    return guarded(page)


def serve(
    stored: StoredStudy, run_dir: Path | None, port: int, tell: Callable[[str], None]
) -> None:
    """Serves the live report of a study until Ctrl-C or SIGTERM.

    Args:
        tell: called with the address, once the server listens.

    Raises:
        ValueError: no port is free.
    """
    with bind(port) as server, quiet_importances():
        # shutdown() waits for serve_forever() to return, so that it needs another thread.
        def stop(*_: object) -> None:
            threading.Thread(target=server.shutdown, daemon=True).start()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        server.set_app(application(stored, run_dir))
        tell(f"http://127.0.0.1:{server.server_port}/")
        server.serve_forever()
