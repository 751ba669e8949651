"""Hosts and processes: the worker ids in the ledger, and whether a process still runs."""

import contextlib
import functools
import hashlib
import os
import socket
from pathlib import Path


def worker_id(pid: int) -> str:
    """Returns the id of a worker on this host, such as host-1a2b:4711."""
    return f"{host_id()}:{pid}"


@functools.cache
def host_id() -> str:
    """Returns this host's name and four hexadecimal digits, such as host-1a2b.

    The digits come from the boot and the process namespace: several hosts may be called
    `localhost`, and containers on one host may share its name while using the same process ids.
    Outside Linux it is the host's name alone.
    """
    with contextlib.suppress(OSError):  # outside Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = os.readlink("/proc/self/ns/pid")
        digest = hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()
        return f"{socket.gethostname()}-{digest[:4]}"
    return socket.gethostname()


def is_alive(pid: int) -> bool:
    """Reports whether a process of this host exists; an ended one does until it is waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists, and belongs to another user
        return True
    return True
