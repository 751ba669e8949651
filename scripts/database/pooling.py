"""A pgbouncer in transaction mode in front of a server, for more workers than it takes."""

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import make_url

SETTINGS = """
[databases]
{database} = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 20000
# Of the settings that studyloom requests when it connects, a pool cannot keep one for each client.
ignore_startup_parameters = options
max_prepared_statements = 200
"""


@contextmanager
def pooled(url: str, folder: str, size: int = 32, entry: str | None = None) -> Iterator[str]:
    """Runs pgbouncer in front of a server.

    Args:
        url: The server, with host and port.
        folder: For its configuration.
        size: Its connections to the server.
        entry: What was given for a pool in this folder that has ended, which then comes back.

    Yields:
        The URL that workers connect to.
    """
    program = shutil.which("pgbouncer", path=os.defpath + ":/usr/sbin:" + os.environ["PATH"])
    if program is None:
        raise SystemExit("more workers than connections: install pgbouncer")
    address = make_url(url)
    own = free_port() if entry is None else make_url(entry).port
    place = Path(folder, "pool")
    place.mkdir(exist_ok=True)
    place.parent.chmod(0o755)
    users, settings = place / "users", place / "pgbouncer.ini"
    users.write_text(f'"{address.username}" ""\n')
    settings.write_text(
        SETTINGS.format(
            database=address.database,
            host=address.host,
            port=address.port,
            user=address.username,
            password=address.password,
            own=own,
            users=users,
            size=size,
        )
    )
    # It refuses to run as root.
    user = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid} if not os.geteuid() else {}
    process = subprocess.Popen([program, "-q", str(settings)], **user)  # type: ignore[call-overload]
    try:
        ours = address.set(host="127.0.0.1", port=own)
        for _ in range(500):
            with suppress(OSError), socket.create_connection(("127.0.0.1", own), 1):
                break
            time.sleep(0.02)
        yield ours.render_as_string(hide_password=False)
    finally:
        process.kill()  # after SIGTERM it would wait for its clients
        process.wait()


def free_port() -> int:
    """Returns a port of 127.0.0.1 on which no process listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
