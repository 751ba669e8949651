"""TODO views.guard."""

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
SILENCE = 30  # seconds after which a connection that says nothing is closed
SAFETY = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "SAMEORIGIN"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
# A page in a sandbox has an origin of its own, from which it can neither read the dashboard nor write to it.
SANDBOX = ("Content-Security-Policy", "sandbox allow-scripts")


@dataclass(frozen=True)
class Guard:
    """Lets requests through to an application that come from its own pages, and with the token where there is one.

    hosts: names by which it may be addressed; the port is free, so that a tunnel may end at another one.
    """

    app: "WSGIApplication"
    hosts: Sequence[str]
    token: str | None = None

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        host, provenance = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN")
        if hostname(host) not in self.hosts:
            return refuse(
                start_response,
                "403 Forbidden",
                "this dashboard has another name; --host gives it one",
            )
        if provenance is not None and provenance.partition("://")[2].casefold() != host.casefold():
            return refuse(
                start_response, "403 Forbidden", "this request comes from the page of another site"
            )
        if self.token is not None and not self.bears_token(environ):
            if self.matches(
                self.token, dict(parse_qsl(environ.get("QUERY_STRING", ""))).get("token", "")
            ):
                return self.enter(environ, start_response)
            return refuse(
                start_response,
                "401 Unauthorized",
                "open the address with ?token= that the command printed",
            )
        artifact = environ.get("PATH_INFO", "").startswith("/artifacts/")
        extra = [*SAFETY, SANDBOX] if artifact else [*SAFETY]

        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            # The dashboard lets pages of all sites read artifacts.
            own = [
                header for header in headers if header[0].lower() != "access-control-allow-origin"
            ]
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
            return self.matches(
                str(self.token), given.strip().encode("latin-1").decode("utf-8", "surrogateescape")
            )
        pairs = (pair.strip().partition("=") for pair in environ.get("HTTP_COOKIE", "").split(";"))
        return any(
            name == self.cookie(environ) and self.matches(self.key, value)
            for name, _, value in pairs
        )

    def enter(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Hands out the cookie, and leads to the same page without the token, which no history then keeps."""
        rest = [
            (name, value) for name, value in parse_qsl(environ["QUERY_STRING"]) if name != "token"
        ]
        path = (
            environ.get("PATH_INFO", "").lstrip("/").encode("latin-1")
        )  # //name would lead to another host
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
    start_response(
        status, [("Content-Type", "text/plain"), ("Content-Length", str(len(content))), *SAFETY]
    )
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
                way = (
                    "choose one from 1024 on"
                    if isinstance(error, PermissionError)
                    else "is it this machine's?"
                )
                raise ValueError(
                    f"--host {host} --port {candidate}: {error.strerror or error}; {way}"
                ) from None
    raise ValueError(f"--port {port}: this one and the {PORTS - 1} above are taken; choose another")


def is_address(host: str, kind: str) -> bool:
    """Whether a host is an IP address of a kind, such as `is_loopback`."""
    try:
        return bool(getattr(ipaddress.ip_address(host), kind))
    except ValueError:
        return False
