"""TODO storage.server_keeper."""

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

SCHEME = "embedded_postgres"  # of URLs: embedded_postgres:///folder, or with four slashes for an absolute one
ROLE = "studyloom"
START_TIMEOUT = 60.0  # seconds in which a server is ready or has failed; on an idle disk it takes 0.2, after a crash longer
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # a socket's path has room for 107 bytes, a run directory's may be longer
    "max_connections": "500",  # two for each worker; a server starts as fast as with the 100 that are its default
    "timezone": "UTC",
    "log_timezone": "UTC",
}
NOBODY = 65534
CLONE_NEWUSER, PR_SET_PDEATHSIG = 0x10000000, 1


def open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main(folder: Path, programs: Path) -> None:
    """Starts a keeper in the background; ends when its server is ready, or with why it is not."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        sys.exit(0 if said == "ready" else said or 1)
    os.setsid()
    with open(folder / "server.log", "ab", buffering=0) as log:
        for number in (1, 2):  # 0 is the null device
            os.dup2(log.fileno(), number)
    with os.fdopen(writing, "w") as pipe:
        try:
            lock = open_lock(folder / "keeper.lock")
            fcntl.flock(lock, fcntl.LOCK_EX)
            become = server_user(folder)
            prepare(folder, programs, become)
            server = start(folder, programs, become)
        except (OSError, subprocess.SubprocessError) as error:
            pipe.write(" ".join(str(error).split()))
            sys.exit(1)
        pipe.write("ready")
    keep(folder, lambda: start(folder, programs, become), server)


def keep(
    folder: Path, start: Callable[[], "subprocess.Popen[bytes]"], server: "subprocess.Popen[bytes]"
) -> None:
    """Waits until nobody uses the server, starting it again when it dies, and then stops it."""
    users = open_lock(folder / "users.lock")
    while not try_lock(users):
        if server.poll() is not None:
            with suppress(OSError):
                server = start()
        time.sleep(0.1)
    for number in (signal.SIGINT, signal.SIGQUIT):  # in order; at once
        server.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(5.0)
            return


def prepare(folder: Path, programs: Path, become: dict[str, Any]) -> None:
    """Makes password and database where they are missing: beside, and renamed when they are whole."""
    if (folder / "data").is_dir():
        return
    shutil.rmtree(folder / "data.new", ignore_errors=True)
    (folder / "data.new").mkdir(mode=0o700)
    password = folder / "password"
    with os.fdopen(open_lock(password), "r+") as file:
        file.truncate()
        file.write(secrets.token_urlsafe(24))
    owner = become.get("user")
    for path in (folder / "data.new", password):
        if owner is not None:
            os.chown(path, owner, -1)
    settings = [
        f"--pgdata={folder / 'data.new'}",
        f"--username={ROLE}",
        "--encoding=UTF8",
        "--locale=C",
    ]
    made = subprocess.run(
        [programs / "initdb", *settings, "--auth=scram-sha-256", f"--pwfile={password}"],
        **become,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        raise OSError(made.stderr.strip() or "its database could not be made")
    (folder / "data.new").rename(folder / "data")


def start(folder: Path, programs: Path, become: dict[str, Any]) -> "subprocess.Popen[bytes]":
    """A server that is ready, on the port that it had before if that is free. Raises OSError with its last words."""
    ended = time.monotonic() + START_TIMEOUT
    clear(folder / "data", ended)
    enter = become.get("preexec_fn", lambda: None)

    def follow() -> None:
        enter()
        with suppress(AttributeError):  # only Linux has it
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)  # it goes with its keeper

    settings = [
        f"--{name}={value}" for name, value in (SETTINGS | {"port": str(free_port(folder))}).items()
    ]
    log = folder / "server.log"
    with log.open("ab") as output:
        before = output.tell()
        server = subprocess.Popen(
            [programs / "postgres", "-D", folder / "data", *settings],
            **become | {"preexec_fn": follow},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    while server.poll() is None and time.monotonic() < ended:
        lines = read_lines(folder / "data" / "postmaster.pid")
        if len(lines) > 7 and lines[7].strip() == "ready" and lines[0] == str(server.pid):
            return server
        time.sleep(0.02)
    server.kill()
    said = log.read_bytes()[before:].decode(errors="replace").splitlines()
    raise OSError(" ".join(said[-3:]) or f"the server was not ready in {START_TIMEOUT:g} s")


def clear(data: Path, ended: float) -> None:
    """Waits for the server of a keeper that was killed, and removes what a killed server has left: its number may be
    that of another process by now, and then the next one would not start."""
    while (lines := read_lines(data / "postmaster.pid")) and time.monotonic() < ended:
        arguments = f"/proc/{lines[0]}/cmdline"
        try:
            ours = os.fsencode(data) in Path(arguments).read_bytes().split(b"\0")
        except OSError:
            ours = False
        if not ours:
            (data / "postmaster.pid").unlink(missing_ok=True)
            return
        time.sleep(0.05)


def read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def free_port(folder: Path) -> int:
    """A free port, written down: the last one if it is free, for whoever still knows the server by it."""
    last = read_lines(folder / "port")
    for port in (int(last[0]) if last else 0, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # connections of its own may linger there
            probe.bind(("127.0.0.1", port))
            found = int(probe.getsockname()[1])
            beside = folder / f"port.{os.getpid()}"
            beside.write_text(str(found))
            beside.replace(folder / "port")
            return found
    raise OSError("no port is free on 127.0.0.1")


def server_user(folder: Path) -> dict[str, Any]:
    """How a process is started that root starts for PostgreSQL, which refuses to run as root.

    In a user namespace it is `nobody` by name, and has root's files and nothing more. Where the system forbids those
    (a container), it is `nobody` in truth and is given the folder of the database.
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
