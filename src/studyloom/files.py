"""Files: written whole or not at all, locked, and in folders that are trusted or not.

A folder is trusted if a command of this user has marked it with `mark_trusted`. Files of all other
folders may have another author, and are read within limits.
"""

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
GALLERY = PACKAGE.parent.parent / "studies" / "data"  # the folder of a checkout; no wheel has it
MOST_BYTES = 256_000  # the limit for a text file of an untrusted folder
MARK = "made-by"  # the file in a folder that marks it as trusted
NETWORK_FILESYSTEMS = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs"),
    *("glusterfs", "ocfs2", "gfs2", "orangefs", "pvfs2", "davfs", "wekafs", "sshfs", "s3fs"),
    *("gcsfuse", "juicefs", "rclone", "moosefs"),
}


def asset_path(name: str) -> Path:
    """Finds a file that came with the package, or with the studies of its checkout.

    Raises:
        DataError: neither the package nor the checkout has it.
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
    # The errors of numpy, zip and gzip for damaged files among them
    except (OSError, EOFError, ValueError, LookupError, zlib.error, zipfile.BadZipFile) as error:
        reason = str(error)
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise DataError(
            f"{path}: cannot be read: {reason}; it came with studyloom, and is damaged; install "
            "studyloom again"
        ) from error


def open_regular(path: Path) -> IO[bytes]:
    """Opens a regular file for reading.

    A FIFO is refused, since it may never have a writer, and so is a device, which may have no end.

    Raises:
        ValueError: the path is not that of a regular file.
        OSError: the file cannot be opened.
    """
    descriptor = _open_without_waiting(path)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is not a regular file")
    return open(descriptor, "rb")


def _open_without_waiting(path: Path) -> int:
    """Opens a file for reading, without waiting for the writer of a FIFO.

    Returns:
        The file's descriptor.
    """
    return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # Windows lacks the flag


def read_text(path: Path, *, trusted: bool) -> str:
    """Reads a text file.

    Args:
        trusted: whether its folder is trusted. If not, it must be a regular file of at most 256 KB.

    Raises:
        ValueError: the file exceeds these limits, or is not UTF-8 text.
        OSError: the file cannot be opened.
    """
    descriptor = _open_without_waiting(path)
    with open(descriptor, encoding="utf-8") as file:
        if trusted:
            return file.read()
        status = os.fstat(descriptor)
        is_regular = stat.S_ISREG(status.st_mode)
        if not is_regular or status.st_size > MOST_BYTES:
            raise ValueError(
                f"it is not a regular file of at most {MOST_BYTES // 1000} KB, and no command of "
                "yours is known to have written it"
            )
        return file.read(MOST_BYTES)


def check_output(path: Path, option: str, begins: bytes) -> None:
    """Checks that an output replaces only an earlier output of the same kind.

    A mistyped `--page study.db` would replace the database, also under the name of a link to it.

    Args:
        path: the path that the user names; a link stands for the file that it leads to.
        option: the option that names the path, such as --page.
        begins: the first bytes of each file that this option writes. A file at the path must begin
            with them too, or be empty.

    Raises:
        FileError: the file at the path begins with something else.
        OSError: the file at the path cannot be read.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        first_bytes = file.read(len(begins))
    # There may be fewer of them than in `begins`, if a command was killed while it wrote the file.
    if not begins.startswith(first_bytes):
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
    data = content
    if isinstance(data, str):
        data = data.encode()
    write_with(path, lambda file: file.write(data), durable=durable)


def write_with(path: Path, write: Callable[[IO[bytes]], object], *, durable: bool = False) -> None:
    """Calls a function that writes a file, so that no reader sees half of the file.

    It writes to a temporary file in the same folder, which is then renamed.

    Args:
        path: the path of the file.
        write: writes the content to its argument, a file that is open for writing bytes.
        durable: whether the content must survive a power cut once this returns.

    Raises:
        OSError: the file cannot be written; the previous content stays.
    """
    temporary = temporary_name(path)
    try:
        with naming_file(path), temporary.open("wb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):  # a read-only disk refuses this too, and would hide the first error
            temporary.unlink(missing_ok=True)


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Adds a file's name to an OSError of the body, and how to fix a full or read-only disk."""
    try:
        yield
    except OSError as error:
        message = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message += "; free some space on its disk, or choose another with run_dir or TMPDIR"
        if error.errno == errno.EROFS:
            message += "; copy its folder to a disk that you can write to"
        raise OSError(error.errno, message, str(path)) from error


def mark_trusted(folder: Path) -> None:
    """Marks a folder as trusted: a command of this user writes it, or the user says so.

    The mark is the path of the folder, signed with a key in the user's state folder, so that a
    folder of another author cannot bring a valid mark. Without a place for the key no folder
    is trusted.
    """
    with suppress(OSError, RuntimeError):  # a read-only disk, or a user without a home
        write_whole(folder / MARK, _signature(folder))


def is_trusted(folder: Path) -> bool:
    """Returns whether `mark_trusted` has marked a folder for this user, at its present path."""
    try:
        mark = (folder / MARK).read_bytes()
        return hmac.compare_digest(mark, _signature(folder).encode())
    except (OSError, RuntimeError):
        return False


def _signature(folder: Path) -> str:
    """Signs the path of a folder with the user's key, which is made if there is none."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    key = state / "studyloom" / "key"
    if not key.exists():
        _make_key(key)
    return hmac.new(key.read_bytes(), os.fsencode(folder.resolve()), "sha256").hexdigest()


def _make_key(key: Path) -> None:
    """Makes a file with a random key that only this user can read."""
    key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(key.with_name("key.lock")):
        if key.exists():  # another process has made it while this one waited for the lock
            return
        new_key = key.with_name("key.new")
        descriptor = os.open(new_key, os.O_WRONLY | os.O_CREAT, 0o600)
        with open(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
        new_key.replace(key)


def temporary_name(path: Path, kind: str = "new") -> Path:
    """Returns a name in the folder of `path` that no other process uses, here or on another host.

    The name has the host's id as well as the process's, since processes of two hosts, or of two
    containers, may have the same number.

    Args:
        kind: a word that distinguishes the temporary files which one process has for one path.
    """
    return path.with_name(f"{path.name}.{host_id()}.{os.getpid()}.{kind}.tmp")


def is_abandoned(temporary: Path) -> bool:
    """Returns whether the process that made a temporary file (see `temporary_name`) has ended.

    It is False for a file of another host, whose processes cannot be seen from here.
    """
    # The end of a name such as epoch.pt.host-1a2b.4711.new.tmp; 4711 is the process id.
    pattern = rf"\.{re.escape(host_id())}\.(?P<pid>\d{{1,9}})\.\w+\.tmp$"
    match = re.search(pattern, temporary.name)
    if match is None:
        return False
    pid = int(match["pid"])
    if pid == os.getpid():
        # A process asks this before it makes a file of its own. So an earlier process had its id.
        return True
    return not is_alive(pid)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file in the body; on a disk without locks the body runs without one.

    The system releases the lock of a process that is killed.
    """
    from filelock import FileLock  # here: looking at a study takes no lock

    lock = FileLock(path)
    with suppress(OSError, NotImplementedError):  # the disk has no locks
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sync_folder(folder: Path) -> None:
    """Makes the renames in a folder durable: they survive a power cut.

    Some network file systems cannot sync a folder: there nothing is done.

    Raises:
        OSError: the folder cannot be opened, or its disk fails.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        cannot_sync_folders = error.errno in (errno.EBADF, errno.EINVAL)
        if not cannot_sync_folders:
            raise
    finally:
        os.close(descriptor)


def filesystem_of(path: Path) -> str:
    """Returns the kind of file system that a path is on, or would be: ext4, nfs4, or unknown.

    The path is on the file system that is mounted at the deepest folder above it. If two are
    mounted at that folder, the later one hides the earlier one.
    """
    import psutil

    path = path.resolve()
    kind = "unknown"
    deepest = 0
    for mount in psutil.disk_partitions(all=True):  # the earlier ones first
        folder = Path(mount.mountpoint)
        depth = len(folder.parts)
        if depth >= deepest and path.is_relative_to(folder):
            kind = mount.fstype
            deepest = depth
    return kind


def is_network_filesystem(kind: str) -> bool:
    """Returns whether several hosts may share a file system of a kind.

    SQLite is not safe on such a file system: its WAL mode keeps the index in the memory of a single
    host.

    Args:
        kind: the name that `filesystem_of` returns.
    """
    return kind.removeprefix("fuse.") in NETWORK_FILESYSTEMS


def is_newer(path: Path, other: Path) -> bool:
    """Returns whether a file was written at the time of another one or later.

    It is False if one of the files is missing.
    """
    try:
        return path.stat().st_mtime_ns >= other.stat().st_mtime_ns
    except FileNotFoundError:
        return False
