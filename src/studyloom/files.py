"""Files: written whole or not at all, opened without following links, locked, marked as one's own.

A run directory may be somebody else's. What is read from it goes through `open_below`, and what
only its owner may want (a command to run again, a server to start) asks `is_own`.
"""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import IO

from studyloom.errors import DataError, FileError
from studyloom.processes import host_id, is_alive

PACKAGE = Path(__file__).resolve().parent
ASSETS = PACKAGE / "assets"
LARGEST = 256 * 2**20  # bytes of a file in a run directory
POLL = 0.05  # seconds between two tries to hold a lock
MARK = "made-by"  # the file that names what its owner has noted about a folder
NETWORK_FILESYSTEMS = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs"),
    *("glusterfs", "ocfs2", "gfs2", "orangefs", "pvfs2", "davfs", "wekafs", "sshfs", "s3fs"),
    *("gcsfuse", "juicefs", "rclone", "moosefs"),
}


@contextmanager
def asset(name: str) -> Iterator[IO[bytes]]:
    """Opens a file that came with the package; the body reads it.

    Args:
        name: Of the file, such as spoken.npz.

    Raises:
        DataError: The body could not read it.
    """
    path = ASSETS / name
    try:
        with path.open("rb") as file:
            yield file
    except (OSError, EOFError, ValueError, LookupError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}; it came with "
            "studyloom, and is missing or damaged; install studyloom again"
        ) from error


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
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:  # and so through no link that waits there
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def open_below(folder: Path, name: str | PurePath) -> int:
    """Opens a regular file below a folder to read it, and follows no link on the way from there.

    The folder itself may be reached by links: a person has named it.

    Args:
        folder: Whose content may be somebody else's.
        name: The path of the file from there.

    Returns:
        The descriptor. Nothing waits, even if the file is a pipe.

    Raises:
        FileNotFoundError: There is no such file.
        FileError: It is not a regular file, or a link or something else is on the way.
        OSError: It cannot be opened.
    """
    path = folder / name
    with _holder(folder, PurePath(name)) as (holder, last):
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(last, flags, dir_fd=holder)
        except OSError as error:
            raise _explained(error, path) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileError(f"{path}: must be a regular file, and is something else")
    return descriptor


def read_below(folder: Path, name: str | PurePath, largest: int = LARGEST) -> bytes:
    """Reads a file as `open_below` opens it.

    Raises:
        FileError: It has more than `largest` bytes; and what else `open_below` raises.
    """
    with os.fdopen(open_below(folder, name), "rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise FileError(f"{folder / name}: must have at most {largest} bytes, and has more")
    return content


def size_below(folder: Path, name: str | PurePath) -> int:
    """Returns the bytes of a file of any size, which is opened as `open_below` does."""
    descriptor = open_below(folder, name)
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def digest_below(folder: Path, name: str | PurePath) -> str:
    """Returns the SHA-256 of a file of any size, which is opened as `open_below` does."""
    with os.fdopen(open_below(folder, name), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_below(folder: Path, name: str | PurePath, content: bytes) -> None:
    """Writes a file below a folder as `write_whole` does, and follows no link on the way.

    Whatever has the name, such as a link, is replaced and not written to.

    Raises:
        FileError: A link or something else is on the way.
        OSError: The file cannot be written.
    """
    with _holder(folder, PurePath(name)) as (holder, last):
        temporary = temporary_name(Path(last)).name
        try:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=holder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with os.fdopen(os.open(temporary, flags, 0o666, dir_fd=holder), "wb") as file:
                file.write(content)
            os.replace(temporary, last, src_dir_fd=holder, dst_dir_fd=holder)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=holder)


def make_below(folder: Path, name: str | PurePath) -> Path:
    """Makes a folder below another one, with those on the way, and follows no link there.

    Args:
        folder: Whose content may be somebody else's.
        name: The path of the new one from there; it may be there already.

    Returns:
        Its path.

    Raises:
        FileError: A link or something else is on the way, or has the name.
        OSError: It cannot be made.
    """
    with _holder(folder, PurePath(name) / "-", make=True):
        return folder / name


def remove_below(folder: Path, name: str | PurePath) -> None:
    """Removes a file below a folder; follows no link on the way, and removes one at its end.

    Raises:
        FileNotFoundError: There is no such file.
        FileError: A link or something else is on the way.
    """
    with _holder(folder, PurePath(name)) as (holder, last):
        os.unlink(last, dir_fd=holder)


@contextmanager
def _holder(folder: Path, name: PurePath, make: bool = False) -> Iterator[tuple[int, str]]:
    """Opens the folder that holds a file, one name after the other; yields it and the last name."""
    if name.is_absolute() or not name.parts or ".." in name.parts:
        raise FileError(f"{name}: must be a path below {folder}")
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    path = folder
    try:
        for part in name.parts[:-1]:
            path /= part
            try:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(part, dir_fd=descriptor)
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                inner = os.open(part, flags, dir_fd=descriptor)
            except OSError as error:
                raise _explained(error, path) from None
            os.close(descriptor)
            descriptor = inner
        yield descriptor, name.parts[-1]
    finally:
        os.close(descriptor)


def _explained(error: OSError, path: Path) -> Exception:
    """Names a link as one: the system speaks of too many, or of something that is no folder."""
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
        kind = "a symbolic link" if path.is_symlink() else "something else"
        return FileError(
            f"{path}: must be a file or folder of its own, and is {kind}; what lies in a run "
            "directory is read without following links"
        )
    return OSError(error.errno, error.strerror, str(path))


def mark_own(folder: Path, digest: str) -> None:
    """Notes that a folder is this user's own, so that `is_own` says so from now on.

    The note lies in the user's state folder, and the folder holds only its number. So it is found
    again after the folder was moved or copied, and a folder from elsewhere cannot bring it along.
    Where no note can be written, none is.

    Args:
        folder: The folder.
        digest: Of what in it only its owner may change.
    """
    with suppress(OSError, FileError):
        if (number := _number_of(folder)) is None:
            number = secrets.token_hex(16)
            write_below(folder, MARK, number.encode())
        for notes in _notes():
            with suppress(OSError):
                notes.mkdir(mode=0o700, parents=True, exist_ok=True)
                if _is_private(notes):
                    known = _read_notes(notes, number)
                    if digest not in known:
                        write_whole(notes / number, "\n".join([*known, digest]))
                    return


def is_own(folder: Path, digest: str) -> bool:
    """Whether this user's own command has made a folder, or the user has said that it is theirs.

    Args:
        folder: The folder.
        digest: Of what in it only its owner may change, as it is now.
    """
    number = _number_of(folder)
    return number is not None and any(digest in _read_notes(notes, number) for notes in _notes())


def _number_of(folder: Path) -> str | None:
    try:
        number = read_below(folder, MARK, 100).decode("ascii", "replace")
    except (OSError, FileError):
        return None
    return number if re.fullmatch("[0-9a-f]{32}", number) else None


def _notes() -> Iterator[Path]:
    """Yields the folders of this user's notes: where they go, and where they go without a home."""
    with suppress(RuntimeError):  # no home
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        yield Path(state) / "studyloom" / "made"
    yield Path(tempfile.gettempdir()) / f"studyloom-{os.geteuid()}"


def _read_notes(notes: Path, number: str) -> list[str]:
    try:
        if _is_private(notes):
            return read_below(notes, number).decode("ascii", "replace").split()
    except (OSError, FileError):
        pass
    return []


def _is_private(folder: Path) -> bool:
    """Whether only this user writes to a folder: in /tmp somebody else may have been first."""
    found = folder.lstat()
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return own and not found.st_mode & 0o022


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


@contextmanager
def locked(
    path: Path, *, shared: bool = False, stopping: Callable[[], bool] = lambda: False
) -> Iterator[bool]:
    """Holds a lock in the body; it goes with the process.

    Args:
        path: The file of the lock, which is made if it is missing, and stays.
        shared: Whether others may hold it so too.
        stopping: Called while another process holds it; returns whether to wait no longer.

    Yields:
        Whether it is held. It is not if the waiting has stopped, and on a disk without locks or
        room.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o644)
    except OSError:
        yield False
        return
    try:
        yield _wait(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, stopping)
    finally:
        os.close(descriptor)


def _wait(descriptor: int, kind: int, stopping: Callable[[], bool]) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if stopping():
                return False
            time.sleep(POLL)
        except OSError:
            return False
        else:
            return True


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


def is_newer(path: Path, other: Path) -> bool:
    """Whether a file was written after another one; False if one is missing."""
    try:
        return path.stat().st_mtime_ns >= other.stat().st_mtime_ns
    except FileNotFoundError:
        return False
