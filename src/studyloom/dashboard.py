"""optuna-dashboard on a study, with what the study came to, and with a guard at its door.

By itself optuna-dashboard takes the storage URL from its command line, which `ps` shows, asks nobody who they are,
answers to any Host header, so that any page in the browser can reach it by DNS rebinding, and serves HTML artifacts on
its own origin, where their scripts could delete the study.
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
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from errno import EADDRINUSE
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from optuna.artifacts import ArtifactMeta, FileSystemArtifactStore
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.text import Text

from studyloom import progress
from studyloom.failures import FAILURE, REASON
from studyloom.record import Record, open_record, study_names
from studyloom.storage import StorageError
from studyloom.study import EPOCHS

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PORTS = 100  # that are tried, from the wanted one upwards
DEADLINE = 10.0  # seconds that a page waits for a database that is away
SILENCE = 30  # seconds after which a connection that says nothing is closed
MARGIN = "*studyloom writes what stands above anew; what you write below stays.*"
FILES = {"best.yaml": "application/yaml", "winner.yaml": "application/yaml", "report.html": "text/html"}
CURVES = ("epoch", "value", "train_loss", "valid_loss")
SAFETY = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "SAMEORIGIN"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
# A page in a sandbox has an origin of its own, from which it can neither read the dashboard nor write to it.
SANDBOX = ("Content-Security-Policy", "sandbox allow-scripts")


def open_one(url: str, name: str | None) -> Record:
    """The study of that name; without a name, the only one in the database.

    Raises:
        StorageError: no such database, no such study, or several where none was named.
    """
    if name is None:
        names = study_names(url, DEADLINE)
        if len(names) != 1:
            held = f"{len(names)} studies: {', '.join(names)}" if names else "no study"
            raise StorageError(f"--study: which study is not said, and the database holds {held}")
        name = names[0]
    return open_record(url, name, DEADLINE)


def publish(record: Record, run_dir: Path | None, headline: str) -> None:
    """Lays down what the study came to where the dashboard shows it; done again, it is brought up to date.

    The study has a note with `headline` and the next commands, trials that failed have one with the reason, and the
    files of `run_dir` that are there become artifacts, with the learning curves as `curves.csv`. What a user wrote
    into notes stays.

    Raises:
        StorageError: the database cannot be used.
        OSError: `run_dir` cannot be written.
    """
    from optuna_dashboard import get_note, save_note  # type: ignore[import-untyped]  # 1.7 s to import
    from optuna_dashboard._note import note_ver_key, split_body  # type: ignore[import-untyped]

    was = get_note(record.study)
    above, margin, below = was.partition(MARGIN)
    theirs = below if margin else f"\n\n{above}"
    note = f"{study_note(record, run_dir, headline)}\n\n---\n\n{MARGIN}{theirs}".rstrip()
    if note != was:
        save_note(record.study, note)
    storage, study_id = record.storage, record.ledger.study_id
    attributes = storage.get_study_system_attrs(study_id)  # with the trials' notes and all artifacts
    trials = record.trials()
    for trial in trials:
        version = note_ver_key(trial._trial_id)
        if REASON in trial.user_attrs and trial.state.is_finished() and version not in attributes:
            # As save_note does, but that it reads all notes to write one: a thousand took 60 s.
            for key, value in {**split_body(trial_note(trial), trial._trial_id), version: 1}.items():
                storage.set_study_system_attr(study_id, key, value)
    if run_dir is None:
        return
    contents = {name: (run_dir / name).read_bytes() for name in FILES if (run_dir / name).is_file()}
    if curves := curves_csv(trials, record.metric):
        contents["curves.csv"] = curves.encode()
    store = artifact_store(run_dir)
    for name, content in contents.items():
        # An id for each name, and not a new one for each time: Optuna's upload_artifact makes another entry whenever
        # it is called, and storages know no way to delete one.
        identity = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{record.name}/{name}"))
        store.write(identity, io.BytesIO(content))
        meta = json.dumps(asdict(ArtifactMeta(identity, name, FILES.get(name, "text/csv"), None)))
        if attributes.get(f"artifacts:{identity}") != meta:
            storage.set_study_system_attr(study_id, f"artifacts:{identity}", meta)


def artifact_store(run_dir: Path) -> FileSystemArtifactStore:
    folder = run_dir / "artifacts"
    folder.mkdir(exist_ok=True)
    return FileSystemArtifactStore(folder)


def study_note(record: Record, run_dir: Path | None, headline: str) -> str:
    """Markdown: where the study stands, and what can be typed next."""
    if run_dir is not None:
        place = shlex.quote(str(run_dir.absolute()))  # whoever reads it may be elsewhere
        commands = [f"studyloom {verb} {place}" for verb in ("status", "report", "winner", "doctor", "dashboard")]
    else:
        commands = [
            'studyloom doctor --storage "$STUDYLOOM_STORAGE"',
            f"studyloom dashboard --study {shlex.quote(record.name)}",
        ]
    return "\n\n".join((as_text(headline), *front_note(record), as_code("\n".join(commands))))


def front_note(record: Record) -> list[str]:
    """Markdown: the Pareto front as a table, where a study has one, and how the best of it is chosen."""
    snapshot = progress.take(record)
    if not snapshot.front:
        return []
    heads, *rows = ([as_text(cell) for cell in row] for row in progress.front_rows(snapshot))
    table = [heads, ["---:"] * len(heads), *rows]
    return ["\n".join(f"| {' | '.join(row)} |" for row in table), f"The best by *{as_text(str(snapshot.rule))}*"]


def trial_note(trial: FrozenTrial) -> str:
    """Markdown: why a trial came to nothing."""
    kind, reason = (str(trial.user_attrs.get(name, "failed")) for name in (FAILURE, REASON))
    return f"**{as_text(kind)}**\n\n{as_text(reason)}"


def as_text(text: str) -> str:
    """Markdown that shows a text as it is, on one line: a study may be called `<img …>` or `[a](javascript:…)`."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


def as_code(text: str) -> str:
    """Markdown that shows lines as they are, in a box; the fence is longer than any within."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def curves_csv(trials: Iterable[FrozenTrial], metric: str) -> str:
    """A line for each epoch of each trial, under the name of its value; empty where there is none."""
    rows: list[list[Any]] = []
    for trial in trials:
        epochs = trial.user_attrs.get(EPOCHS, {})
        columns = [epochs.get("number" if name == "epoch" else name, []) for name in CURVES]
        rows += [[trial.number, *row] for row in zip(*columns, strict=False)]
    written = io.StringIO()
    if rows:
        csv.writer(written, lineterminator="\n").writerows([("trial", "epoch", metric, *CURVES[2:]), *rows])
    return written.getvalue()


def application(record: Record, run_dir: Path | None, host: str, token: str | None) -> "Guard":
    """The dashboard, for requests that address it by `host` or a name of this machine to itself, and bear the token."""
    from optuna_dashboard import wsgi

    # A storage that is no RDBStorage: of one, the dashboard would compare Optuna's table versions with each page.
    app = wsgi(record.storage, artifact_store=None if run_dir is None else artifact_store(run_dir))
    return Guard(app, (*LOOPBACK, host.casefold()), token)


@dataclass(frozen=True)
class Guard:
    """Lets requests through to an application that come from its own pages, and with the token where there is one.

    hosts: names by which it may be addressed; the port is free, so that a tunnel may end at another one.
    """

    app: "WSGIApplication"
    hosts: Sequence[str]
    token: str | None = None

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        host, origin = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN")
        if hostname(host) not in self.hosts:
            return refuse(start_response, "403 Forbidden", "this dashboard has another name; --host gives it one")
        if origin is not None and origin.partition("://")[2].casefold() != host.casefold():
            return refuse(start_response, "403 Forbidden", "this request comes from the page of another site")
        if self.token is not None and not self.bears_token(environ):
            if self.matches(self.token, dict(parse_qsl(environ.get("QUERY_STRING", ""))).get("token", "")):
                return self.enter(environ, start_response)
            return refuse(start_response, "401 Unauthorized", "open the address with ?token= that the command printed")
        artifact = environ.get("PATH_INFO", "").startswith("/artifacts/")
        extra = [*SAFETY, SANDBOX] if artifact else [*SAFETY]

        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            # The dashboard lets pages of all sites read artifacts.
            own = [header for header in headers if header[0].lower() != "access-control-allow-origin"]
            return start_response(status, own + extra, *exc_info)

        return self.app(environ, start)

    @staticmethod
    def matches(secret: str, given: str) -> bool:
        return hmac.compare_digest(secret.encode(), given.encode("utf-8", "surrogateescape"))

    @property
    def key(self) -> str:
        """What the cookie holds: a token of the user's may have signs that cookies cannot."""
        return hashlib.sha256(f"studyloom dashboard {self.token}".encode()).hexdigest()

    @staticmethod
    def cookie(environ: "WSGIEnvironment") -> str:
        """A name of its own, since a browser shares cookies between all ports of a host."""
        return f"studyloom-{environ['SERVER_PORT']}"

    def bears_token(self, environ: "WSGIEnvironment") -> bool:
        scheme, _, given = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.casefold() == "bearer":
            return self.matches(str(self.token), given.strip().encode("latin-1").decode("utf-8", "surrogateescape"))
        pairs = (pair.strip().partition("=") for pair in environ.get("HTTP_COOKIE", "").split(";"))
        return any(name == self.cookie(environ) and self.matches(self.key, value) for name, _, value in pairs)

    def enter(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Hands out the cookie, and leads to the same page without the token, which no history then keeps."""
        rest = [(name, value) for name, value in parse_qsl(environ["QUERY_STRING"]) if name != "token"]
        path = environ.get("PATH_INFO", "").lstrip("/").encode("latin-1")  # //name would lead to another host
        location = f"/{quote(path)}" + (f"?{urlencode(rest)}" if rest else "")
        cookie = f"{self.cookie(environ)}={self.key}; Path=/; HttpOnly; SameSite=Strict"
        start_response("303 See Other", [("Location", location), ("Set-Cookie", cookie), *SAFETY])
        return []


def hostname(netloc: str) -> str | None:
    """The host of a Host header in lower case, without its port."""
    try:
        return urlsplit(f"//{netloc}").hostname
    except ValueError:
        return None


def refuse(start_response: "StartResponse", status: str, why: str) -> Iterable[bytes]:
    content = f"{status}: {why}\n".encode()
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(content))), *SAFETY])
    return [content]


class Handler(WSGIRequestHandler):
    timeout = SILENCE

    def log_message(self, *_: Any) -> None:
        """Says nothing: a line for each request would hide the address, and show the token."""


class Server(ThreadingMixIn, WSGIServer):
    """A thread for each request."""

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a browser that went away
            super().handle_error(request, client_address)


def bind(host: str, port: int) -> Server:
    """A server on the first free port from `port` on.

    Raises:
        ValueError: the host is none of this machine's, or no port is free; says the way out.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"--port {port}: ports are numbers from 0 (any free one) to 65535")
    if is_address(host, "is_unspecified"):
        raise ValueError(
            f"--host {host}: browsers send the name by which they know this machine, which tells them from a page that "
            f"wants to reach the dashboard by a name of its own; give that name, such as --host {socket.gethostname()}"
        )
    for candidate in range(port, min(port + PORTS, 2**16)):
        try:
            return Server(host, candidate)
        except OSError as error:
            if error.errno != EADDRINUSE:
                way = "choose one from 1024 on" if isinstance(error, PermissionError) else "is it this machine's?"
                raise ValueError(f"--host {host} --port {candidate}: {error.strerror or error}; {way}") from None
    raise ValueError(f"--port {port}: this one and the {PORTS - 1} above are taken; choose another")


def is_address(host: str, kind: str) -> bool:
    """Whether a host is an IP address of a kind, such as `is_loopback`."""
    try:
        return bool(getattr(ipaddress.ip_address(host), kind))
    except ValueError:
        return False


def serve(
    record: Record, run_dir: Path | None, headline: str, host: str, port: int, token: str | None, console: Console
) -> None:
    """Publishes the study and serves the dashboard until Ctrl-C or SIGTERM.

    Whoever is at this machine may use it, unless there is a token; others reach it on another host than loopback,
    which always has one.

    Raises:
        ValueError: the address or the database cannot be used.
    """
    if token == "":
        raise ValueError("--token: is empty; leave it out, and one is made where it is needed")
    if token is None and host not in LOOPBACK and not is_address(host, "is_loopback"):
        token = secrets.token_urlsafe()
    with bind(host, port) as server:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: threading.Thread(target=server.shutdown, daemon=True).start())
        publish(record, run_dir, headline)
        server.set_app(application(record, run_dir, host, token))
        netloc = f"{f'[{host}]' if ':' in host else host}:{server.server_port}"
        address = f"http://{netloc}/" + ("" if token is None else f"?token={quote(token, safe='')}")
        console.print(Text(f"{headline}\n{address}  (Ctrl-C ends it)"), soft_wrap=True)
        server.serve_forever()
