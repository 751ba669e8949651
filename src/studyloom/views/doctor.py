"""Looks at what a study needs from its database, disks and machine: a line for each, ok or what to do."""

import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import optuna
import torch

from studyloom import __version__
from studyloom.files import filesystem_of, is_network_filesystem
from studyloom.launch.local import Local, cores, gpus
from studyloom.storage.checks import Finding, State, check_database, ok, run_check, todo, warning
from studyloom.storage.urls import parse_url

SMALL = 10**9  # bytes free


def examine(url: str, run_dir: Path | None = None) -> Iterator[tuple[str, Finding]]:
    """Names and findings, one after the other as they are found. Nothing stays behind, in the database or on a disk.

    Raises:
        StorageError: this is no URL of a database.
    """
    address = parse_url(url)
    sqlite = address.get_backend_name() == "sqlite"
    path = Path(str(address.database)).absolute() if sqlite else None
    if path is not None and not path.exists():
        words = f"there is no database {path}; the first run of a study makes it"
        yield (
            "database",
            todo(f"{words}; put it back if there was one") if run_dir else warning(words),
        )
        yield "permission", run_check(lambda: writable(existing(path.parent)), address)
    else:
        yield from check_database(address)
    if path is not None:
        yield "file system", run_check(lambda: disk(path.parent, wal=True), address)
    if run_dir is not None:
        yield "run_dir", run_check(lambda: writable(run_dir), address)
        if path is None or not path.is_relative_to(run_dir.absolute()):
            yield "disk", run_check(lambda: disk(run_dir, wal=False), address)
    yield "gpus", run_check(devices, address)
    yield "workers", run_check(workers, address)
    yield "versions", run_check(versions, address)


def disk(folder: Path, *, wal: bool) -> Finding:
    """Space and kind of the file system that a folder is on."""
    folder = existing(folder)
    kind, free = filesystem_of(folder), shutil.disk_usage(folder).free
    words = f"{kind}, {free / 1e9:.1f} GB free"
    if wal and is_network_filesystem(kind):
        return todo(
            f"{words}; SQLite is not safe there: name a run_dir on a local disk, or use PostgreSQL"
        )
    return (
        ok(words)
        if free >= SMALL
        else warning(f"{words}; checkpoints may not fit: free some, or name another run_dir")
    )


def existing(folder: Path) -> Path:
    """A folder, or the one in which it would be made."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())


def writable(folder: Path) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        return todo(f"{folder} cannot be written: {error.strerror}")
    return ok(f"{folder} can be written")


def devices() -> Finding:
    if not gpus():
        return ok("none: workers train on the CPU")
    names = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        names.append(
            f"{torch.cuda.get_device_name(index)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        )
    return ok("; ".join(names))


def workers() -> Finding:
    count = Local().count(sys.maxsize)
    return ok(
        f"launcher.workers=auto starts {count}, for {len(gpus()) or 'no'} GPUs and {cores()} cores"
    )


def versions() -> Finding:
    found = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "Optuna": optuna.__version__,
    }
    return ok(
        ", ".join(
            f"{name} {version}" for name, version in (found | {"studyloom": __version__}).items()
        )
    )


def show(url: str, run_dir: Path | None = None) -> int:
    """Prints what is found; 0, or 2 if something is to be done before a study can run."""
    states = set()
    for name, finding in examine(url, run_dir):
        print(f"{finding.state:<8} {name:<11} {finding.words}", flush=True)
        states.add(finding.state)
    return 2 if State.TODO in states else 0
