"""Workers by name, on any host, and whether those of this one are alive."""

import contextlib
import functools
import hashlib
import os
import socket
from pathlib import Path


def owner_of(pid: int) -> str:
    """The name of a worker of this host in the ledger."""
    return f"{host()}:{pid}"


@functools.cache
def host() -> str:
    """This host's name and four digits: several hosts may be called `localhost`, and the containers on one host may
    have its name, and processes of one number each."""
    with contextlib.suppress(OSError):  # outside Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        mark = hashlib.sha256(f"{boot} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()
        return f"{socket.gethostname()}-{mark[:4]}"
    return socket.gethostname()


def is_alive(pid: int) -> bool:
    """Whether a process of this host is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
