"""`studyloom dashboard`: a study in the browser, while it runs and after.

The page of the study comes first, and follows it; optuna-dashboard is behind it, and both are
behind a guard. By itself optuna-dashboard takes the storage URL from its command line, which `ps`
shows. It answers to any Host header, so that any page in the browser can reach it by DNS rebinding,
and it serves HTML artifacts on its own origin, where their scripts could delete the study.
"""

import csv
import hashlib
import hmac
import io
import ipaddress
import json
import re
import secrets
import shlex
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from errno import EADDRINUSE
from os.path import lexists
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import parse_qs, parse_qsl, quote, urlencode, urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from markupsafe import Markup
from optuna.artifacts import ArtifactMeta
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.text import Text

from studyloom.errors import StorageError, StudyloomError
from studyloom.files import write_whole
from studyloom.storage.attributes import EPOCHS, FAILURE, REASON
from studyloom.study.failures import NO_REASON, reason_of
from studyloom.study.opening import open_study, study_names
from studyloom.study.rows import quantities
from studyloom.study.stored_study import StoredStudy
from studyloom.text import fence_for, mask_passwords, one_line, printable, without_formula
from studyloom.views.page import (
    Rendered,
    Section,
    Trials,
    document,
    head_html,
    nav_html,
    progress_html,
    render_section,
    row_html,
)
from studyloom.views.progress import JobReader, all_stages, stage_words, time_words
from studyloom.views.report import read_files, read_report
from studyloom.views.snapshot import front_rows, take_snapshot

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PORTS = 100  # that are tried, from the wanted one upwards
MOST_BYTES = 64 * 2**20  # of a request; the dashboard holds it in memory
SILENCE = 30  # seconds after which an idle connection is closed
SAFETY = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "SAMEORIGIN"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
)
# A page in a sandbox has an origin of its own, from which it can neither read the dashboard nor
# write to it. Whatever is not below one of these may be an artifact, which is anybody's page.
SANDBOX = ("Content-Security-Policy", "sandbox allow-scripts")
OWN_PAGES = ("", "events", "dashboard", "api", "csv", "static", "favicon.ico")


@dataclass(frozen=True)
class Guard:
    """A WSGI application that lets through only requests from its own pages, with the token.

    Args:
        app: the application to protect.
        hosts: the names by which it may be addressed, in lower case. Any port is allowed, so that
            a tunnel may end at another one.
        token: what browsers must know; None lets everybody on this machine in.
    """

    app: "WSGIApplication"
    hosts: Sequence[str]
    token: str | None = None

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        host, origin = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN")
        if hostname(host) not in self.hosts:
            why = "this dashboard has another name; --host gives it one"
            return refuse(start_response, "403 Forbidden", why)
        elsewhere = origin is not None and origin.partition("://")[2].casefold() != host.casefold()
        if elsewhere or is_embedded(environ):
            why = "this request comes from the page of another site"
            return refuse(start_response, "403 Forbidden", why)
        if self.token is not None:
            given = dict(parse_qsl(environ.get("QUERY_STRING", ""))).get("token", "")
            if matches(self.token, given):  # also with the cookie, as from a bookmark
                return self.enter(environ, start_response)
            if not self.has_token(environ):
                why = "open the address with ?token= that the command printed"
                return refuse(start_response, "401 Unauthorized", why)
        if (status := body_status(environ)) is not None:
            return refuse(start_response, status, f"a request may have {MOST_BYTES} bytes")
        path = environ.get("PATH_INFO", "")
        if not is_utf8(path):  # the dashboard would leave out what is not, and see another path
            return refuse(start_response, "400 Bad Request", "the path must be UTF-8")
        own_page = path.removeprefix("/").partition("/")[0] in OWN_PAGES
        extra = [*SAFETY] if own_page else [*SAFETY, SANDBOX]

        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            # The dashboard lets pages of all sites read artifacts; this header says so.
            own = [
                header for header in headers if header[0].lower() != "access-control-allow-origin"
            ]
            return start_response(status, own + extra, *exc_info)

        return self.app(environ, start)

    def close(self) -> None:
        """Ends what the application does by itself, if it does anything."""
        if (close := getattr(self.app, "close", None)) is not None:
            close()

    @property
    def key(self) -> str:
        """The value of the cookie: a user's token may have characters that cookies cannot."""
        return hashlib.sha256(f"studyloom dashboard {self.token}".encode()).hexdigest()

    @staticmethod
    def cookie(environ: "WSGIEnvironment") -> str:
        """The name of the cookie; it has the port, as browsers share cookies between all ports."""
        return f"studyloom-{environ['SERVER_PORT']}"

    def has_token(self, environ: "WSGIEnvironment") -> bool:
        """Whether a request has the token in its Authorization header, or the cookie."""
        scheme, _, credentials = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.casefold() == "bearer":
            # WSGI decodes headers as Latin-1; browsers and curl send UTF-8.
            token = credentials.strip().encode("latin-1").decode("utf-8", "surrogateescape")
            return matches(str(self.token), token)
        pairs = (pair.strip().partition("=") for pair in environ.get("HTTP_COOKIE", "").split(";"))
        return any(
            name == self.cookie(environ) and matches(self.key, value) for name, _, value in pairs
        )

    def enter(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Sets the cookie, and redirects to the same page without the token.

        So the token is not in the browser's history.
        """
        query = [
            (name, value) for name, value in parse_qsl(environ["QUERY_STRING"]) if name != "token"
        ]
        # A path that begins with //name would lead to another host.
        path = environ.get("PATH_INFO", "").lstrip("/").encode("latin-1")
        location = f"/{quote(path)}" + (f"?{urlencode(query)}" if query else "")
        cookie = f"{self.cookie(environ)}={self.key}; Path=/; HttpOnly; SameSite=Strict"
        start_response("303 See Other", [("Location", location), ("Set-Cookie", cookie), *SAFETY])
        return []


def is_embedded(environ: "WSGIEnvironment") -> bool:
    """Whether a browser says that a page of another site has sent a request, but for a link."""
    site, mode = environ.get("HTTP_SEC_FETCH_SITE"), environ.get("HTTP_SEC_FETCH_MODE")
    followed = mode == "navigate" and environ["REQUEST_METHOD"] == "GET"
    return site in ("cross-site", "same-site") and not followed


def is_utf8(path: str) -> bool:
    """Whether a path, which WSGI decodes as Latin-1, is UTF-8."""
    try:
        path.encode("latin-1").decode()
    except UnicodeError:
        return False
    return True


def body_status(environ: "WSGIEnvironment") -> str | None:
    """Returns with which status to refuse the body of a request; None if it may be read."""
    if environ.get("HTTP_TRANSFER_ENCODING"):  # of no size that is known before
        return "411 Length Required"
    length = environ.get("CONTENT_LENGTH") or "0"
    if not (length.isascii() and length.isdigit() and len(length) < 20):
        return "400 Bad Request"
    return "413 Content Too Large" if int(length) > MOST_BYTES else None


def matches(secret: str, candidate: str) -> bool:
    """Compares two texts in a time that does not depend on where they differ.

    Args:
        secret: the text that is right.
        candidate: the text that a request has.
    """
    return hmac.compare_digest(secret.encode(), candidate.encode("utf-8", "surrogateescape"))


def hostname(netloc: str) -> str | None:
    """Returns the host of a Host header, in lower case and without its port; None if malformed."""
    try:
        return urlsplit(f"//{netloc}").hostname
    except ValueError:
        return None


def refuse(start_response: "StartResponse", status: str, why: str) -> Iterable[bytes]:
    """Answers a request with an error.

    Args:
        start_response: as WSGI gives it to an application.
        status: the status code and its name.
        why: what the user reads.
    """
    content = f"{status}: {why}\n".encode()
    start_response(
        status, [("Content-Type", "text/plain"), ("Content-Length", str(len(content))), *SAFETY]
    )
    return [content]


class Handler(WSGIRequestHandler):
    """Handles the requests of one connection."""

    timeout = SILENCE

    def log_message(self, *_: Any) -> None:
        """Logs nothing: a line for each request would hide the address, and show the token."""


class Server(ThreadingMixIn, WSGIServer):
    """An HTTP server with a thread for each request."""

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints a traceback, but not if the browser closed the connection."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def bind(host: str, port: int) -> Server:
    """Opens a server on the first free port from `port` on.

    Raises:
        ValueError: the host is not one of this machine's, or no port is free; the message names
            the way out.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"--port must be a number from 0 (any free port) to 65535; got {port}")
    if is_address(host, "is_unspecified"):
        raise ValueError(
            f"--host must be the name by which browsers know this machine; got {host}. Requests "
            "for any other name are refused, since the page of another site may have sent them; "
            f"give that name, such as --host {socket.gethostname()}"
        )
    for candidate in range(port, min(port + PORTS, 2**16)):
        try:
            return Server(host, candidate)
        except OSError as error:
            if error.errno != EADDRINUSE:
                denied = isinstance(error, PermissionError)
                way = "choose one from 1024 on" if denied else "is it this machine's?"
                raise ValueError(
                    f"--host {host} --port {candidate}: {error.strerror or error}; {way}"
                ) from None
    raise ValueError(f"--port {port}: this one and the {PORTS - 1} above are taken; choose another")


def is_address(host: str, kind: str) -> bool:
    """Whether a host is an IP address of a kind.

    Args:
        host: a name or an address.
        kind: a property of `ipaddress` addresses, such as `is_loopback`.
    """
    try:
        return bool(getattr(ipaddress.ip_address(host), kind))
    except ValueError:
        return False


def answer_csv(
    app: "WSGIApplication", environ: "WSGIEnvironment", start_response: "StartResponse"
) -> Iterable[bytes]:
    """Answers with a CSV file of an application, in which no cell is a formula to a spreadsheet.

    Args:
        app: the application, whose cells may be anybody's: parameters, attributes and their names.
        environ: of the request.
        start_response: as WSGI gives it to an application.
    """
    begun: list[tuple[str, list[tuple[str, str]]]] = []

    def start(status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
        begun.append((status, headers))
        return lambda content: None

    content = b"".join(app(environ, start))
    status, headers = begun[-1]
    if status.startswith("200"):
        csv.field_size_limit(sys.maxsize)  # a cell may hold all curves of a trial
        text = io.StringIO(newline="")
        rows = csv.reader(io.StringIO(content.decode(errors="replace"), newline=""))
        csv.writer(text).writerows(map(without_formula, row) for row in rows)
        content = text.getvalue().encode()
    headers = [header for header in headers if header[0].lower() != "content-length"]
    start_response(status, [*headers, ("Content-Length", str(len(content)))])
    return [content]


# It stands in stored notes, and must not change.
MARGIN = "*studyloom writes what stands above anew; what you write below stays.*"
FILES = {
    "best.yaml": "application/yaml",
    "winner.yaml": "application/yaml",
    "report.html": "text/html",
}
FOLDER = "artifacts"  # below the run directory


def publish(stored: StoredStudy, run_dir: Path | None, headline: str) -> None:
    """Writes the study's results to where the dashboard shows them, or brings them up to date.

    The study gets a note with the headline and the next commands, and a failed trial one with the
    reason. The files of the run become artifacts, with the learning curves as `curves.csv`. What a
    user wrote into notes stays.

    Args:
        stored: the study.
        run_dir: the folder in which it runs; None writes no artifacts.
        headline: where the study stands, in one line.

    Raises:
        StorageError: the database cannot be used.
        OSError: the folder cannot be written to.
    """
    # Imported here, as it takes 1.7 s.
    from optuna_dashboard import get_note, save_note  # type: ignore[import-untyped]

    before = get_note(stored.optuna)
    above, margin, below = before.partition(MARGIN)
    users = below if margin else f"\n\n{above}"
    note = f"{study_note(stored, run_dir, headline)}\n\n---\n\n{MARGIN}{users}".rstrip()
    if note != before:
        save_note(stored.optuna, note)
    # The attributes include the notes of trials and all artifacts.
    attributes = stored.storage.get_study_system_attrs(stored.ledger.study_id)
    _publish_trial_notes(stored, attributes)
    if run_dir is not None:
        _publish_artifacts(stored, run_dir, attributes)


def _publish_trial_notes(stored: StoredStudy, attributes: Mapping[str, Any]) -> None:
    from optuna_dashboard._note import note_ver_key, split_body  # type: ignore[import-untyped]

    for trial in stored.trials():
        version = note_ver_key(trial._trial_id)
        failed = REASON in trial.user_attrs and trial.state.is_finished()
        if failed and version not in attributes:
            # As save_note does, but save_note reads all notes to write one: a thousand took 60 s.
            note = {**split_body(trial_note(trial), trial._trial_id), version: 1}
            for key, value in note.items():
                stored.storage.set_study_system_attr(stored.ledger.study_id, key, value)


def _publish_artifacts(stored: StoredStudy, run_dir: Path, attributes: Mapping[str, Any]) -> None:
    contents = {name: (run_dir / name).read_bytes() for name in FILES if lexists(run_dir / name)}
    if curves := curves_csv(stored.trials(), stored.metric):
        contents["curves.csv"] = curves.encode()
    store = Artifacts(run_dir)
    for name, content in contents.items():
        # Each name has one id for good. Optuna's upload_artifact would add another entry with each
        # call, and storages cannot delete one.
        identity = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{stored.name}/{name}"))
        store.write(identity, io.BytesIO(content))
        key, kind = f"artifacts:{identity}", FILES.get(name, "text/csv")
        meta = json.dumps(asdict(ArtifactMeta(identity, name, kind, None)))
        if attributes.get(key) != meta:
            stored.storage.set_study_system_attr(stored.ledger.study_id, key, meta)


class Artifacts:
    """Optuna's protocol of an artifact store, on the folder in which a run keeps its artifacts.

    Optuna's own follows a link in that folder, to read from where it points to and to write there.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        (run_dir / FOLDER).mkdir(exist_ok=True)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        try:
            return (self.run_dir / self._name(artifact_id)).open("rb")
        except FileNotFoundError as error:
            raise ArtifactNotFound("not found") from error

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        write_whole(self.run_dir / self._name(artifact_id), content_body.read())

    def remove(self, artifact_id: str) -> None:
        try:
            (self.run_dir / self._name(artifact_id)).unlink()
        except FileNotFoundError as error:
            raise ArtifactNotFound("not found") from error

    @staticmethod
    def _name(artifact_id: str) -> str:
        """Returns the path of an artifact. The database, which names them, may be a foreign one."""
        if not re.fullmatch(r"[0-9a-fA-F-]{1,64}", artifact_id):
            raise ValueError(f"an artifact's id must be hexadecimal; got {artifact_id!r}")
        return f"{FOLDER}/{artifact_id}"


def study_note(stored: StoredStudy, run_dir: Path | None, headline: str) -> str:
    """Writes the note of a study, in Markdown: where it stands, and what can be typed next.

    Args:
        stored: the study.
        run_dir: the folder in which it runs; None names commands that need no folder.
        headline: where the study stands, in one line.
    """
    if run_dir is not None:
        folder = shlex.quote(str(run_dir.absolute()))  # the reader may work in another folder
        commands = [
            f"studyloom {verb} {folder}"
            for verb in ("status", "report", "winner", "doctor", "dashboard")
        ]
    else:
        commands = [
            'studyloom doctor --storage "$STUDYLOOM_STORAGE"',
            f"studyloom dashboard --study {shlex.quote(stored.name)}",
        ]
    return "\n\n".join((as_text(headline), *front_note(stored), as_code("\n".join(commands))))


def front_note(stored: StoredStudy) -> list[str]:
    """Writes the Pareto front as a table, and how the best is chosen.

    Returns:
        Paragraphs of Markdown; none if the study has no front.
    """
    snapshot = take_snapshot(stored)
    if not snapshot.front:
        return []
    heads, *rows = ([as_text(cell) for cell in row] for row in front_rows(snapshot))
    table = [heads, ["---:"] * len(heads), *rows]
    return [
        "\n".join(f"| {' | '.join(row)} |" for row in table),
        f"The best by *{as_text(str(snapshot.rule))}*",
    ]


def trial_note(trial: FrozenTrial) -> str:
    """Writes the note of a failed trial, in Markdown: why it failed."""
    kind, reason = str(trial.user_attrs.get(FAILURE, "failed")), reason_of(trial) or NO_REASON
    return f"**{as_text(kind)}**\n\n{as_text(reason)}"


def as_text(text: str) -> str:
    """Escapes a text for Markdown, on one line.

    A study may be called `<img …>` or `[a](javascript:…)`.
    """
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(printable(text).split()))


def as_code(text: str) -> str:
    """Fences lines as code in Markdown; the fence is longer than any in the text."""
    fence = fence_for(text, 3)
    return f"{fence}\n{printable(text)}\n{fence}"


def curves_csv(trials: Iterable[FrozenTrial], metric: str) -> str:
    """Writes the learning curves as CSV, a line for each epoch of each trial.

    Args:
        trials: the trials.
        metric: the name of the values.

    Returns:
        The text; empty if no trial stored an epoch.
    """
    rows: list[list[Any]] = []
    trials = [*trials]
    names = quantities(trials)
    for trial in trials:
        epochs = trial.user_attrs.get(EPOCHS, {})
        numbers = epochs.get("number", [])
        columns = [epochs.get(name, [None] * len(numbers)) for name in ("value", *names)]
        rows += [[trial.number, *row] for row in zip(numbers, *columns, strict=False)]
    text = io.StringIO()
    if rows:
        lines = [("trial", "epoch", metric, *names), *rows]
        csv.writer(text, lineterminator="\n").writerows(map(without_formula, one) for one in lines)
    return text.getvalue()


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


DEADLINE = 10.0  # seconds that a page waits for a database that is away


def open_only_study(url: str, name: str | None) -> StoredStudy:
    """Opens a study.

    Args:
        url: the database.
        name: the name of the study; None opens the only one in the database.

    Raises:
        StorageError: there is no such database or study, or there are several and no name.
    """
    if name is None:
        names = study_names(url, DEADLINE)
        if len(names) != 1:
            held = f"{len(names)} studies: {', '.join(names)}" if names else "no study"
            raise StorageError(f"--study must name the study to show; the database holds {held}")
        name = names[0]
    return open_study(url, name, DEADLINE)


def application(stored: StoredStudy, run_dir: Path | None, host: str, token: str | None) -> Guard:
    """Makes the page of a study, with optuna-dashboard below /dashboard, behind their guard.

    Args:
        stored: the study.
        run_dir: the folder with its artifacts, if there is one.
        host: the name by which browsers may address it, beside the names of loopback.
        token: what browsers must know; None lets everybody on this machine in.
    """
    from optuna_dashboard import wsgi

    # This storage is not an RDBStorage: with one, the dashboard would compare Optuna's table
    # versions on each page.
    app = wsgi(stored.storage, artifact_store=None if run_dir is None else Artifacts(run_dir))
    page = LivePage(stored, run_dir, app)
    page.look()  # the first browser does not wait for it
    return Guard(page, (*LOOPBACK, host.casefold()), token)


def serve(
    stored: StoredStudy,
    run_dir: Path | None,
    headline: str,
    host: str,
    port: int,
    token: str | None,
    console: Console,
    tell: Callable[[str], None] | None = None,
) -> None:
    """Publishes the study and serves the dashboard until Ctrl-C or SIGTERM.

    Args:
        stored: the study.
        run_dir: the folder in which it runs, if there is one.
        headline: where the study stands, in one line.
        host: the name by which browsers address this machine.
        port: the port; if it is taken, the next free one.
        token: what browsers must know. None lets everybody on this machine in on a loopback
            host, and makes a random token on any other.
        console: where to print the address.
        tell: gets the address too; None for nobody.

    Raises:
        ValueError: the address or the database cannot be used.
    """
    if token == "":
        raise ValueError(
            "--token must not be empty; leave it out, and one is made where it is needed"
        )
    if token is None and host not in LOOPBACK and not is_address(host, "is_loopback"):
        token = secrets.token_urlsafe()
    with bind(host, port) as server:
        # shutdown() waits for serve_forever() to return, so that it needs a thread of its own.
        def stop(*_: object) -> None:
            threading.Thread(target=server.shutdown, daemon=True).start()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        publish(stored, run_dir, headline)
        guard = application(stored, run_dir, host, token)
        server.set_app(guard)
        netloc = f"{f'[{host}]' if ':' in host else host}:{server.server_port}"
        address = f"http://{netloc}/" + ("" if token is None else f"?token={quote(token, safe='')}")
        console.print(Text(f"{headline}\n{address}  (Ctrl-C ends it)"), soft_wrap=True)
        if tell is not None:
            tell(address)
        server.serve_forever()
        guard.close()
