"""The guard in front of the pages, as a WSGI application, and the server that runs it.

The guard checks by which name a request addresses this machine, from which page it comes, and
whether it has the token.
"""

import hashlib
import hmac
import ipaddress
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from errno import EADDRINUSE
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

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
