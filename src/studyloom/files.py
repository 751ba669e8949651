"""Files: written whole or not at all, locked, and folders known to be the user's own."""

import errno
import hmac
import os
import re
import secrets
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from studyloom.errors import DataError, FileError
from studyloom.processes import host_id, is_alive
from studyloom.text import printable

PACKAGE = Path(__file__).resolve().parent
ASSETS = PACKAGE / "assets"
GALLERY = PACKAGE.parent.parent / "studies" / "data"  # of a checkout; no wheel has it
MOST_BYTES = 256_000  # of a text file of an untrusted folder
MARK = "made-by"  # the file in a folder that says whose it is
NETWORK_FILESYSTEMS = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs"),
    *("glusterfs", "ocfs2", "gfs2", "orangefs", "pvfs2", "davfs", "wekafs", "sshfs", "s3fs"),
    *("gcsfuse", "juicefs", "rclone", "moosefs"),
}


def asset_path(name: str) -> Path:
    """Finds a file that came with the package, or with the studies of its checkout.

    Raises:
        DataError: neither has it.
    """
    for folder in (ASSETS, GALLERY):
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"{name} is neither in {ASSETS} nor in {GALLERY}; the data of the gallery is in a checkout "
        "of studyloom, not in its wheel; install a checkout: in its folder, pip install -e ."
    )


@contextmanager
def asset(name: str) -> Iterator[IO[bytes]]:
    """Opens a data file that comes with studyloom, as a context manager.

    Args:
        name: the name of the file, such as mnist5k.npz.

    Yields:
        The file, open for reading bytes.

    Raises:
        DataError: there is no such file, or the body could not read it.
    """
    path = asset_path(name)
    try:
        with path.open("rb") as file:
            yield file
    except (OSError, EOFError, ValueError, LookupError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}; it came with "
            "studyloom, and is damaged; install studyloom again"
        ) from error


def open_regular(path: Path) -> IO[bytes]:
    """Opens a regular file for reading; a FIFO could be waited for, and a device read, for ever.

    Raises:
        ValueError: it is something else.
        OSError: it cannot be opened.
    """
    descriptor = _open_without_waiting(path)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is not a regular file")
    return open(descriptor, "rb")


def _open_without_waiting(path: Path) -> int:
    """Opens a file for reading, without waiting for the writer of a FIFO."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))


def read_text(path: Path, *, own: bool) -> str:
    """Reads a text file.

    Args:
        own: whether a command of this user is known to have written it; if not, it must be a
            regular file of at most 256 KB.

    Raises:
        ValueError: it exceeds these limits, or is not UTF-8 text.
        OSError: it cannot be opened.
    """
    opened = _open_without_waiting(path)
    with open(opened, encoding="utf-8") as file:
        status = os.fstat(opened)
        if not own and (not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES):
            raise ValueError(
                f"it is not a regular file of at most {MOST_BYTES // 1000} KB, and no command of "
                "yours is known to have written it"
            )
        return file.read(-1 if own else MOST_BYTES)


def check_output(path: Path, option: str, begins: bytes) -> None:
    """Checks that writing to a path of the user's destroys no file of another kind.

    A mistyped `--page study.db` would replace the database, also under the name of a link to it.

    Args:
        option: the option that names the path, such as --page.
        begins: the first bytes of each file that this option writes. A file that is there must be
            empty or begin so.

    Raises:
        FileError: it holds something else.
        OSError: it cannot be read.
    """
    if not path.is_file():  # of a link, the file that it leads to
        return
    with path.open("rb") as file:
        start = file.read(len(begins))
    if not begins.startswith(start):  # a killed command may have written only half of it
        raise FileError(
            f"{option} {printable(str(path))}: another file is there, which {option} has not "
            "written; it stays unchanged; name a new file"
        )


def write_whole(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Writes a file under a temporary name and renames it, so that no reader sees half of it.

    Args:
        content: text is encoded as UTF-8.
        durable: whether the content must survive a power cut once this returns.

    Raises:
        OSError: the file cannot be written; the previous content stays.
    """
    data = content.encode() if isinstance(content, str) else content
    write_with(path, lambda file: file.write(data), durable=durable)


def write_with(path: Path, write: Callable[[IO[bytes]], object], *, durable: bool = False) -> None:
    """Writes a file as `write_whole` does, with what a function writes to the open file."""
    temporary = temporary_name(path)
    try:
        with naming(path), temporary.open("wb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):  # on a read-only disk, which has no such file
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names the file in an error of the body, which writes it, and says how to fix it."""
    try:
        yield
    except OSError as error:
        words = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            words += "; free some space on its disk, or choose another with run_dir or TMPDIR"
        if error.errno == errno.EROFS:
            words += "; copy its folder to a disk that you can write to"
        raise OSError(error.errno, words, str(path)) from error


def mark_own(folder: Path) -> None:
    """Notes in a folder that a command of this user runs in it, or that they trust it.

    The note is the path of the folder, signed with a key in the user's state folder: an untrusted
    folder cannot bring one along. Where no key can be kept, no folder is known as the user's.
    """
    with suppress(OSError, RuntimeError):  # a disk that is read only; no home
        write_whole(folder / MARK, _signature(folder))


def is_own(folder: Path) -> bool:
    """Whether `mark_own` has marked a folder for this user, at its present path."""
    try:
        noted = (folder / MARK).read_bytes()
        return hmac.compare_digest(noted, _signature(folder).encode())
    except (OSError, RuntimeError):
        return False


def _signature(folder: Path) -> str:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    key = state / "studyloom" / "key"
    if not key.exists():
        key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(key.with_name("key.lock")):
            if not key.exists():
                new = key.with_name("key.new")
                with open(os.open(new, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
                    file.write(secrets.token_bytes(32))
                new.replace(key)
    return hmac.new(key.read_bytes(), os.fsencode(folder.resolve()), "sha256").hexdigest()


def temporary_name(path: Path, kind: str = "new") -> Path:
    """Returns a name in the folder of `path` that no other process uses, here or on another host.

    Args:
        kind: a word that distinguishes the temporary files which one process has for one path.
    """
    # Processes of two hosts, or of two containers, may have the same number.
    return path.with_name(f"{path.name}.{host_id()}.{os.getpid()}.{kind}.tmp")


def is_abandoned(temporary: Path) -> bool:
    """Whether the process that made a temporary file, see `temporary_name`, has ended.

    False for a file of another host, whose processes cannot be seen from here.
    """
    pattern = rf"\.{re.escape(host_id())}\.(\d{{1,9}})\.\w+\.tmp$"
    if (writer := re.search(pattern, temporary.name)) is None:
        return False
    # An earlier process may have had the number of this one.
    return int(writer[1]) == os.getpid() or not is_alive(int(writer[1]))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file in the body, where the disk has locks; it goes with the process."""
    from filelock import FileLock  # here: looking at a study takes no lock

    lock = FileLock(path)
    with suppress(OSError, NotImplementedError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sync_folder(folder: Path) -> None:
    """Makes the renames in a folder durable, where the file system can; some network ones cannot.

    Raises:
        OSError: the folder cannot be opened, or its disk fails.
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
    """Returns the kind of file system that a path is on, or would be: ext4, nfs4, or unknown."""
    import psutil

    path, kind, longest = path.resolve(), "unknown", -1
    for mount in psutil.disk_partitions(all=True):
        point = Path(mount.mountpoint)
        # Of two at one mount point, the one mounted last lies on top.
        if len(point.parts) >= longest and path.is_relative_to(point):
            kind, longest = mount.fstype, len(point.parts)
    return kind


def is_network_filesystem(kind: str) -> bool:
    """Whether several hosts may share a file system of this kind, as `filesystem_of` names it.

    SQLite is not safe on one: its WAL mode keeps the index in the memory of a single host.
    """
    return kind.removeprefix("fuse.") in NETWORK_FILESYSTEMS


def is_newer(path: Path, other: Path) -> bool:
    """Whether a file was written after another one; False if one is missing."""
    try:
        return path.stat().st_mtime_ns >= other.stat().st_mtime_ns
    except FileNotFoundError:
        return False
