"""The keeper of an embedded PostgreSQL server: a process that starts, restarts and stops it.

It is run as `python -I server_keeper.py FOLDER PROGRAMS`, by its path and isolated from the user's
packages, so that neither PYTHONPATH nor the working directory can change what it runs. Therefore,
and so that a keeper takes 10 MB and some hundredths of a second, it imports nothing but the
standard library: no module of studyloom either, which is why it names its temporary files itself.
"""

import ctypes
import fcntl
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

# Of URLs: embedded_postgres:///folder, or with four slashes for an absolute path.
SCHEME = "embedded_postgres"
ROLE = "studyloom"
# Seconds in which a server is ready or has failed; on an idle disk it takes 0.2, after a crash
# longer.
START_TIMEOUT = 60.0
# Seconds in which a server that was told to end does so, unless it or a process of it is stopped.
END_TIMEOUT = 5.0
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    # A socket's path has room for 107 bytes, and the path of a run directory may be longer.
    "unix_socket_directories": "",
    # Two for each worker; a server starts as fast as with 100, its default.
    "max_connections": "500",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
NOBODY = 65534
CLONE_NEWUSER, PR_SET_PDEATHSIG = 0x10000000, 1


def open_lock(path: Path) -> int:
    """Opens a file to lock, creates it if need be, and returns its descriptor; follows no link."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def try_lock(lock: int) -> bool:
    """Takes the exclusive lock of an open file; False if another process has it locked."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main(folder: Path, programs: Path) -> None:
    """Starts a keeper in the background, and exits once its server is ready or has failed.

    Args:
        folder: The folder of the server; it exists.
        programs: The folder of the programs initdb and postgres.
    """
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        with os.fdopen(reading) as pipe:
            outcome = pipe.read()
        sys.exit(0 if outcome == "ready" else outcome or 1)
    os.setsid()
    with open(folder / "server.log", "ab", buffering=0) as log:
        for number in (1, 2):  # 0 is the null device
            os.dup2(log.fileno(), number)
    with os.fdopen(writing, "w") as pipe:
        try:
            lock = open_lock(folder / "keeper.lock")
            fcntl.flock(lock, fcntl.LOCK_EX)
            user = server_user(folder)
            prepare(folder, programs, user)
            server = start(folder, programs, user)
        except (OSError, subprocess.SubprocessError) as error:
            pipe.write(" ".join(str(error).split()))
            sys.exit(1)
        pipe.write("ready")
    keep(folder, lambda: start(folder, programs, user), server)


def keep(
    folder: Path, start: Callable[[], "subprocess.Popen[bytes]"], server: "subprocess.Popen[bytes]"
) -> None:
    """Waits until no process uses the server, restarts it if it dies, and then stops it.

    Args:
        folder: The folder of the server.
        start: Starts another server.
        server: The server that runs.
    """
    users = open_lock(folder / "users.lock")
    while not try_lock(users):
        if server.poll() is not None:
            with suppress(OSError):
                server = start()
        elif status(folder / "data") == "stopping":
            # Somebody has sent it a SIGTERM: it refuses new clients, and would wait for those that
            # it has until their commands end.
            server.send_signal(signal.SIGINT)
        time.sleep(0.1)
    for number in (signal.SIGINT, signal.SIGQUIT):  # in order; at once
        server.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(END_TIMEOUT)
            return


def prepare(folder: Path, programs: Path, user: dict[str, Any]) -> None:
    """Creates password and database if there are none; the database gets its name once it is whole.

    Args:
        folder: The folder of the server.
        programs: The folder of the program initdb.
        user: Arguments of subprocess, as `server_user` returns them.

    Raises:
        OSError: The database cannot be created.
    """
    if (folder / "data").is_dir():
        return
    shutil.rmtree(folder / "data.new", ignore_errors=True)
    (folder / "data.new").mkdir(mode=0o700)
    password = folder / "password"
    with os.fdopen(open_lock(password), "r+") as file:
        file.truncate()
        file.write(secrets.token_urlsafe(24))
    owner = user.get("user")
    for path in (folder / "data.new", password):
        if owner is not None:
            os.chown(path, owner, -1)
    settings = [
        f"--pgdata={folder / 'data.new'}",
        f"--username={ROLE}",
        "--encoding=UTF8",
        "--locale=C",
    ]
    initdb = subprocess.run(
        [programs / "initdb", *settings, "--auth=scram-sha-256", f"--pwfile={password}"],
        **user,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if initdb.returncode:
        raise OSError(initdb.stderr.strip() or "its database could not be created")
    (folder / "data.new").rename(folder / "data")


def start(folder: Path, programs: Path, user: dict[str, Any]) -> "subprocess.Popen[bytes]":
    """Starts a server, on its previous port if that is free.

    Args:
        folder: The folder of the server, with a database in it.
        programs: The folder of the program postgres.
        user: Arguments of subprocess, as `server_user` returns them.

    Returns:
        The process of a server that is ready.

    Raises:
        OSError: The server did not become ready; with the last lines of its log.
    """
    deadline = time.monotonic() + START_TIMEOUT
    clear(folder / "data", deadline)
    become_user = user.get("preexec_fn", lambda: None)

    def before_exec() -> None:
        become_user()
        with suppress(AttributeError):  # only Linux has it
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)  # it ends with its keeper

    settings = SETTINGS | {"port": str(free_port(folder))}
    log = folder / "server.log"
    with log.open("ab") as output:
        log_size = output.tell()
        server = subprocess.Popen(
            [
                *(programs / "postgres", "-D", folder / "data"),
                *(f"--{name}={value}" for name, value in settings.items()),
            ],
            **user | {"preexec_fn": before_exec},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    while server.poll() is None and time.monotonic() < deadline:
        data = folder / "data"
        if status(data) == "ready" and read_lines(data / "postmaster.pid")[:1] == [str(server.pid)]:
            return server
        time.sleep(0.02)
    server.kill()
    logged = log.read_bytes()[log_size:].decode(errors="replace").splitlines()
    raise OSError(" ".join(logged[-3:]) or f"the server was not ready in {START_TIMEOUT:g} s")


def clear(data: Path, deadline: float) -> None:
    """Ends the server of a keeper that was killed, and removes what a killed server has left.

    Such a server ends by itself at once, unless it or a process of it is stopped or it was told
    before to wait for its clients; then it is killed, which loses nothing that was committed. The
    process id in its file may be that of another process by now, and then the next server would not
    start. The file also keeps the next server from starting while a process of the last one lives,
    which could write to the database beside it; so those are ended first.

    Args:
        data: The folder of the database.
        deadline: When to stop waiting, on the monotonic clock.
    """
    patience = time.monotonic() + END_TIMEOUT
    while (lines := read_lines(data / "postmaster.pid")) and is_server(lines[0], data):
        if time.monotonic() > deadline:
            return
        if time.monotonic() > patience:
            with suppress(ProcessLookupError):
                os.kill(int(lines[0]), signal.SIGKILL)
        time.sleep(0.05)
    while left := processes_in(data):
        if time.monotonic() > deadline:
            return
        for pid in left:  # they would end by themselves, unless they are stopped
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    (data / "postmaster.pid").unlink(missing_ok=True)


def is_server(pid: str, data: Path) -> bool:
    """Whether a process is the server of a database."""
    try:
        return os.fsencode(data) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def processes_in(data: Path) -> list[int]:
    """Returns the processes of PostgreSQL that work in the folder of a database.

    None outside Linux, where nobody can tell.
    """
    here, found = os.path.realpath(data), []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            program = os.path.basename(os.readlink(process / "exe"))
            if os.readlink(process / "cwd") == here and program.startswith("postgres"):
                found.append(int(process.name))
    return found


def status(data: Path) -> str | None:
    """Returns what a server has written of itself, such as starting, ready or stopping."""
    lines = read_lines(data / "postmaster.pid")
    return lines[7].strip() if len(lines) > 7 else None


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a text file; none if it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def free_port(folder: Path) -> int:
    """Finds a free port and writes it down: the previous one if it is free, since users know it."""
    previous = read_lines(folder / "port")
    for candidate in (int(previous[0]) if previous else 0, 0):
        with socket.socket() as probe, suppress(OSError):
            # Connections of the previous server may linger there.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", candidate))
            port = int(probe.getsockname()[1])
            temporary = folder / f"port.{os.getpid()}"
            temporary.write_text(str(port))
            temporary.replace(folder / "port")
            return port
    raise OSError("no port is free on 127.0.0.1")


def server_user(folder: Path) -> dict[str, Any]:
    """Finds out as which user to start the server: PostgreSQL refuses to run as root.

    For root it is started in a user namespace, where it is `nobody` by name and has root's files
    and nothing more. If the system forbids those (a container), it really runs as `nobody`, and is
    given the folder of the database.

    Args:
        folder: The folder of the server; `nobody` is allowed to enter it if need be.

    Returns:
        Arguments of subprocess.
    """
    if os.geteuid():
        return {}
    child = os.fork()
    if child == 0:
        try:
            _enter_namespace()
        except OSError:
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        return {"preexec_fn": _enter_namespace}
    folder.chmod(0o711)
    nobody = pwd.getpwuid(NOBODY)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _enter_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "no user namespaces")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{NOBODY} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{NOBODY} {group} 1")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
