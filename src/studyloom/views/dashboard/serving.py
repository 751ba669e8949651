"""Serves a study in the browser: its own page first, optuna-dashboard behind it, both guarded.

By itself optuna-dashboard takes the storage URL from its command line, which `ps` shows, and does
not authenticate. It answers to any Host header, so that any page in the browser can reach it by DNS
rebinding, and it serves HTML artifacts on its own origin, where their scripts could delete the
study.
"""

import secrets
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from rich.console import Console
from rich.text import Text

from studyloom.errors import StorageError
from studyloom.study.opening import open_study, study_names
from studyloom.study.stored_study import StoredStudy
from studyloom.views.dashboard.guard import LOOPBACK, Guard, bind, is_address
from studyloom.views.dashboard.live_page import LivePage
from studyloom.views.dashboard.notes import Artifacts, publish

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
    from optuna_dashboard import wsgi  # type: ignore[import-untyped]

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
