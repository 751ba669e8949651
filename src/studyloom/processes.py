"""Processes and hosts: the worker ids in the ledger, and whether a process of this host lives."""

import contextlib
import functools
import hashlib
import os
import socket
from pathlib import Path


def worker_id(pid: int) -> str:
    """The id of a worker of this host, such as host-1a2b:4711."""
    return f"{host_id()}:{pid}"


@functools.cache
def host_id() -> str:
    """This host's name with four hexadecimal digits.

    Several hosts may be called `localhost`; containers on one host may share its name, and their
    processes have the same numbers.
    """
    with contextlib.suppress(OSError):  # outside Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        mark = hashlib.sha256(f"{boot} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()
        return f"{socket.gethostname()}-{mark[:4]}"
    return socket.gethostname()


def is_alive(pid: int) -> bool:
    """Whether a process of this host lives."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and belongs to another user
        return True
    return True
