"""`studyloom doctor`: checks the database, disks and machine of a study.

Each check prints a line: ok, or what to do.
"""

import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch

from studyloom._version import __version__
from studyloom.environment import DEVICE
from studyloom.errors import StorageError
from studyloom.files import filesystem_of, is_network_filesystem
from studyloom.processes import count_cores
from studyloom.storage.connections import is_sqlite, sqlite_path
from studyloom.storage.ledger import Ledger
from studyloom.storage.opening import open_ledgers
from studyloom.storage.urls import parse_url, without_password
from studyloom.text import indented, one_line
from studyloom.worker.local import Local, visible_gpus

SMALL = 10**9  # bytes free
OK, WARNING, TODO = "ok", "warning", "to do"  # "to do" must be fixed before a study can run


@dataclass(frozen=True)
class Finding:
    """The result of a check: what was found and what to do, in one line without passwords."""

    state: str
    words: str


def examine(url: str, run_dir: Path | None = None) -> Iterator[tuple[str, Finding]]:
    """Runs all checks one after the other; leaves nothing behind in the database or on a disk.

    Raises:
        StorageError: the URL is not that of a database.
    """
    address = parse_url(url)
    path = sqlite_path(address) if is_sqlite(address) else None
    if path is not None and not path.exists():
        words = f"there is no database {path}; the first run of a study makes it"
        lost = Finding(TODO, f"{words}; put it back if there was one")
        yield "database", lost if run_dir else Finding(WARNING, words)
        yield "permission", writable(existing(path.parent))
    else:
        reached, ledgers = database(url)
        yield "database", reached
        if reached.state == OK:
            yield "ledger", agreement(ledgers)
    if path is not None:
        yield "file system", disk(path.parent, wal=True)
    if run_dir is not None:
        yield "run_dir", writable(run_dir)
        if path is None or not path.is_relative_to(run_dir.absolute()):
            yield "disk", disk(run_dir, wal=False)
    yield "gpus", devices()
    yield "workers", workers()
    yield "versions", versions()


def database(url: str) -> tuple[Finding, Mapping[str, Ledger]]:
    """Checks that the database can be reached, and has Optuna's tables in the installed version.

    Returns:
        The finding, and the ledgers of the database's studies.
    """
    try:
        ledgers = open_ledgers(url, 0.0)
    except StorageError as error:
        return Finding(TODO, str(error)), {}
    return Finding(OK, without_password(parse_url(url))), ledgers


def disagreements(
    ledgers: Mapping[str, Ledger], name: str | None = None
) -> list[tuple[str, Ledger, str]]:
    """Compares the ledgers of studies with their trials, and changes nothing.

    Returns:
        The name and the ledger of each study that differs, and how.

    Raises:
        StorageError: the database cannot be used, or no rule says how to fix a difference.
    """
    return [
        (study, ledger, words)
        for study, ledger in ledgers.items()
        if name in (None, study, study.partition("/")[0])
        if (words := ledger.compare()) is not None
    ]


def agreement(ledgers: Mapping[str, Ledger]) -> Finding:
    """Checks that ledger and trials agree in all studies."""
    try:
        found = disagreements(ledgers)
    except StorageError as error:
        return Finding(TODO, str(error))
    if not found:
        return Finding(OK, "agrees with the trials")
    words = "; ".join(f"{study}: {words}" for study, _, words in found)
    return Finding(WARNING, f"{words}; the next run of the study fixes this, or --repair")


def repair(url: str, name: str | None, confirm: Callable[[], bool]) -> tuple[list[str], bool]:
    """Prints how ledger and trials differ, and fixes it if confirmed.

    Returns:
        The differences, and whether they were fixed.

    Raises:
        StorageError: the database cannot be used, or no rule says how to fix a difference.
    """
    found = disagreements(open_ledgers(url, 0.0), name)
    differences = [f"{one_line(study)}: {words}" for study, _, words in found]
    for difference in differences:
        print(indented(difference), flush=True)
    mended = bool(found) and confirm()
    for _, ledger, _ in found if mended else ():
        ledger.compare(repair=True)
    left = "nothing was changed; --yes fixes this"
    print("fixed" if mended else left if found else "the budget agrees with the trials")
    return differences, mended


def disk(folder: Path, *, wal: bool) -> Finding:
    """Checks the kind of a file system, and the space on it."""
    folder = existing(folder)
    kind, free = filesystem_of(folder), shutil.disk_usage(folder).free
    words = f"{kind}, {free / 1e9:.1f} GB free"
    if wal and is_network_filesystem(kind):
        way_out = "name a run_dir on a local disk, or use PostgreSQL"
        return Finding(TODO, f"{words}; SQLite is not safe there: {way_out}")
    if free < SMALL:
        return Finding(
            WARNING,
            f"{words}; checkpoints may not fit: free some space, or name another run_dir",
        )
    return Finding(OK, words)


def existing(folder: Path) -> Path:
    """Returns a folder, or the nearest one above that exists."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())


def writable(folder: Path) -> Finding:
    """Checks whether files can be written to a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        return Finding(TODO, f"{folder} cannot be written: {error.strerror}")
    return Finding(OK, f"{folder} can be written")


def devices() -> Finding:
    """Lists the GPUs and their free memory."""
    if not visible_gpus():
        if torch.backends.mps.is_available():
            return Finding(OK, f"a Mac's: workers train on it with {DEVICE.name}=mps")
        return Finding(OK, "none: workers train on the CPU")
    names = []
    for index in range(torch.cuda.device_count()):
        free, total = (amount / 2**30 for amount in torch.cuda.mem_get_info(index))
        names.append(f"{torch.cuda.get_device_name(index)}, {free:.1f} of {total:.1f} GiB free")
    return Finding(OK, "; ".join(names))


def workers() -> Finding:
    """Counts the workers that `launcher.workers=auto` starts on this machine."""
    count, found = (
        Local().count(sys.maxsize),
        f"for {len(visible_gpus()) or 'no'} GPUs and {count_cores()} cores",
    )
    return Finding(OK, f"launcher.workers=auto starts {count}, {found}")


def versions() -> Finding:
    """Lists the versions of what a training depends on."""
    trained = f"Python {platform.python_version()}, torch {torch.__version__}"
    return Finding(OK, f"{trained}, Optuna {optuna.__version__}, studyloom {__version__}")


def show(url: str, run_dir: Path | None = None, *, quiet: bool = False) -> list[dict[str, str]]:
    """Runs all checks, prints a line for each, and returns them.

    Raises:
        StorageError: the URL is not that of a database.
    """
    checks = []
    for name, finding in examine(url, run_dir):
        checks.append({"name": name, "state": finding.state, "words": finding.words})
        if not quiet:
            print(f"{finding.state:<8} {name:<11} {indented(finding.words)}", flush=True)
    return checks
