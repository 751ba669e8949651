"""Files: written whole or not at all, and the kind of file system that they are on."""

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
    """Writes a file under another name and renames it, so that no reader sees half of it.

    Args:
        durable: whether the content shall survive a power cut once this returns.

    Raises:
        OSError: the file cannot be written; what was there before stays.
    """
    data = content.encode() if isinstance(content, str) else content
    write_with(path, lambda file: file.write(data), durable=durable)


def write_with(path: Path, write: Callable[[IO[bytes]], object], *, durable: bool = False) -> None:
    """As `write_whole`, with what `write` writes to the open file."""
    beside = temporary_name(path)
    try:
        with beside.open("wb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def temporary_name(path: Path, kind: str = "new") -> Path:
    """A name beside a path that no other process uses, on this host or on another."""
    # Processes of two hosts, or of two containers, may have the same number.
    return path.with_name(f"{path.name}.{host_id()}.{os.getpid()}.{kind}.tmp")


def is_abandoned(temporary: Path) -> bool:
    """Whether the process that made a temporary file has ended; unknown for one of another host."""
    pattern = rf"\.{re.escape(host_id())}\.(\d{{1,9}})\.\w+\.tmp$"
    if (writer := re.search(pattern, temporary.name)) is None:
        return False
    # An earlier process may have had the number of this one.
    return int(writer[1]) == os.getpid() or not is_alive(int(writer[1]))


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable; some network file systems refuse to sync a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EINVAL):
            raise
    finally:
        os.close(descriptor)


def filesystem_of(path: Path) -> str:
    """The kind of file system that a path is on or would be made on.

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
        # Of two at one point the last mounted lies on top.
        if len(point.parts) >= longest and path.is_relative_to(point):
            kind, longest = after.split()[0], len(point.parts)
    return kind


def is_network_filesystem(kind: str) -> bool:
    """Whether hosts share such a file system. SQLite's WAL keeps its index in one host's memory."""
    return kind.removeprefix("fuse.") in NETWORK_FILESYSTEMS
