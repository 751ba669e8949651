"""Which file system a path is on: SQLite and a server of one's own want a disk of this host."""

import re
from pathlib import Path

NETWORK = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "ocfs2"),
    *("gfs2", "orangefs", "pvfs2", "davfs", "wekafs", "sshfs", "s3fs", "gcsfuse", "juicefs", "rclone", "moosefs"),
}


def filesystem(path: Path) -> str:
    """The kind of file system that a path is on or would be made on, such as ext4 or nfs4; "unknown" outside Linux."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return "unknown"
    found, longest, path = "unknown", -1, path.resolve()
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split()[4]))
        if len(point.parts) >= longest and path.is_relative_to(point):  # the last mounted lies on top
            found, longest = after.split()[0], len(point.parts)
    return found


def is_network(kind: str) -> bool:
    """Whether a kind of file system is shared between hosts: no place for SQLite's WAL, which lives in their memory."""
    return kind.removeprefix("fuse.") in NETWORK
