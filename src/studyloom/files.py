"""Files that are written whole or not at all, and the kind of file system that a path is on."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO

from studyloom.processes import host_id, is_alive

PACKAGE = Path(__file__).resolve().parent
ASSETS = PACKAGE / "assets"
NETWORK_FILESYSTEMS = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs"),
    *("glusterfs", "ocfs2", "gfs2", "orangefs", "pvfs2", "davfs", "wekafs", "sshfs", "s3fs"),
    *("gcsfuse", "juicefs", "rclone", "moosefs"),
}


def write_whole(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Writes a file under a temporary name and renames it, so that no reader sees half of it.

    Args:
        path: The file to create or replace.
        content: All that the file will hold; text is encoded as UTF-8.
        durable: Whether the content must survive a power cut once this returns.

    Raises:
        OSError: The file cannot be written; the previous content stays.
    """
    data = content.encode() if isinstance(content, str) else content
    write_with(path, lambda file: file.write(data), durable=durable)


def write_with(path: Path, write: Callable[[IO[bytes]], object], *, durable: bool = False) -> None:
    """Writes a file as `write_whole` does, with whatever a function writes to it.

    Args:
        path: The file to create or replace.
        write: Called once with the open temporary file. If it raises, the previous content stays.
        durable: Whether the content must survive a power cut once this returns.

    Raises:
        OSError: The file cannot be written; the previous content stays.
    """
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path, kind: str = "new") -> Path:
    """Returns a name in the folder of `path` that no other process uses, here or on another host.

    Args:
        path: The file that the temporary one will replace.
        kind: A word (letters, digits, underscores) that tells apart the temporary files which one
            process has for one path.
    """
    # Processes of two hosts, or of two containers, may have the same number.
    return path.with_name(f"{path.name}.{host_id()}.{os.getpid()}.{kind}.tmp")


def is_abandoned(temporary: Path) -> bool:
    """Reports whether the process that made a temporary file has ended.

    Args:
        temporary: A path that `temporary_name` returned in this or in another process.

    Returns:
        False also for a file of another host, whose processes cannot be seen from here.
    """
    pattern = rf"\.{re.escape(host_id())}\.(\d{{1,9}})\.\w+\.tmp$"
    if (writer := re.search(pattern, temporary.name)) is None:
        return False
    # An earlier process may have had the number of this one.
    return int(writer[1]) == os.getpid() or not is_alive(int(writer[1]))


def sync_folder(folder: Path) -> None:
    """Makes the renames in a folder durable, where the file system can; some network ones cannot.

    Raises:
        OSError: The folder cannot be opened, or its disk fails.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EINVAL):
            raise
    finally:
        os.close(descriptor)


def filesystem_of(path: Path) -> str:
    """Finds the kind of file system that a path is on, or would be on once created.

    Returns:
        A name such as ext4 or nfs4; "unknown" outside Linux.
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return "unknown"
    kind, longest, path = "unknown", -1, path.resolve()
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split()[4]))
        # Of two at one mount point, the one mounted last lies on top.
        if len(point.parts) >= longest and path.is_relative_to(point):
            kind, longest = after.split()[0], len(point.parts)
    return kind


def is_network_filesystem(kind: str) -> bool:
    """Reports whether several hosts may share a file system of this kind.

    SQLite is not safe on one: its WAL mode keeps the index in the memory of a single host.

    Args:
        kind: A name as `filesystem_of` returns it.
    """
    return kind.removeprefix("fuse.") in NETWORK_FILESYSTEMS
