"""`studyloom doctor`: checks the database, disks and machine of a study.

Each check prints a line: ok, or what to do.
"""

import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch

from studyloom._version import __version__
from studyloom.errors import StorageError
from studyloom.files import filesystem_of, is_network_filesystem
from studyloom.processes import count_cores
from studyloom.storage.connections import is_sqlite, sqlite_path
from studyloom.storage.ledger import Ledger
from studyloom.storage.opening import open_ledgers
from studyloom.storage.urls import parse_url, without_password
from studyloom.text import indented, one_line
from studyloom.training.device import describe_unused_accelerator, training_device
from studyloom.worker.local import Local, visible_gpus

SMALL = 10**9  # bytes free
OK = "ok"
WARNING = "warning"
TODO = "to do"  # must be fixed before a study can run


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Args:
        state: OK, WARNING or TODO.
        message: the cause and what to do, in one line without passwords.
    """

    state: str
    message: str


@dataclass(frozen=True)
class DifferingStudy:
    """A study whose ledger, the table of its budget, does not agree with its trials.

    Args:
        difference: how the two differ.
    """

    name: str
    ledger: Ledger
    difference: str


def examine(url: str, run_dir: Path | None = None) -> Iterator[tuple[str, Finding]]:
    """Runs all checks one after the other, and yields the name and finding of each.

    Leaves nothing behind in the database or on a disk.

    Args:
        url: the URL of the database.
        run_dir: the run directory of a study; None to check only the database and the machine.

    Raises:
        StorageError: the URL is not that of a database.
    """
    address = parse_url(url)
    path = None  # of an SQLite file
    if is_sqlite(address):
        path = sqlite_path(address)
    if path is not None and not path.exists():
        yield "database", _describe_missing_database(path, run_dir)
        yield "permission", check_writable(find_existing(path.parent))
    else:
        connection, ledgers = check_database(url)
        yield "database", connection
        if connection.state == OK:
            # A ledger is the table of a study's budget; it has to agree with the study's trials.
            yield "ledger", check_agreement(ledgers)
    if path is not None:
        yield "file system", check_disk(path.parent, wal=True)
    if run_dir is not None:
        yield "run_dir", check_writable(run_dir)
        has_database = path is not None and path.is_relative_to(run_dir.absolute())
        if not has_database:  # else its disk was checked above
            yield "disk", check_disk(run_dir, wal=False)
    yield "gpus", list_devices()
    yield "workers", count_workers()
    yield "versions", list_versions()


def _describe_missing_database(path: Path, run_dir: Path | None) -> Finding:
    """Says that there is no database yet; a run directory that exists may have lost its own."""
    cause = f"there is no database {path}; the first run of a study makes it"
    if run_dir is None:
        return Finding(WARNING, cause)
    return Finding(TODO, f"{cause}; put it back if there was one")


def check_database(url: str) -> tuple[Finding, Mapping[str, Ledger]]:
    """Checks that the database can be reached, and has Optuna's tables in the installed version.

    Returns:
        The finding, and the ledgers of the database's studies.
    """
    try:
        ledgers = open_ledgers(url, deadline=0.0)  # without waiting for a database that is away
    except StorageError as error:
        return Finding(TODO, str(error)), {}
    return Finding(OK, without_password(parse_url(url))), ledgers


def find_differing_studies(
    ledgers: Mapping[str, Ledger], name: str | None = None
) -> list[DifferingStudy]:
    """Returns the studies whose ledgers do not agree with their trials, and changes nothing.

    Args:
        name: the study that is compared, with its later stages; None for all studies.

    Raises:
        StorageError: the database cannot be used, or no rule says how to fix a difference.
    """
    differing_studies = []
    for stage_name, ledger in ledgers.items():
        search_name, _, _ = stage_name.partition("/")  # a later stage is called SEARCH/STAGE
        if name is None or name in (stage_name, search_name):
            difference = ledger.compare()
            if difference is not None:
                differing_studies.append(DifferingStudy(stage_name, ledger, difference))
    return differing_studies


def check_agreement(ledgers: Mapping[str, Ledger]) -> Finding:
    """Checks that ledger and trials agree in all studies."""
    try:
        differing_studies = find_differing_studies(ledgers)
    except StorageError as error:
        return Finding(TODO, str(error))
    if not differing_studies:
        return Finding(OK, "agrees with the trials")
    differences = "; ".join(f"{study.name}: {study.difference}" for study in differing_studies)
    return Finding(WARNING, f"{differences}; the next run of the study fixes this, or --repair")


@dataclass(frozen=True)
class Repair:
    """The differences between ledgers and trials, and whether they were fixed."""

    differences: Sequence[str]
    is_done: bool = False


def repair(url: str, name: str | None, confirm: Callable[[], bool]) -> Repair:
    """Prints how the ledgers of studies and their trials differ, and fixes it if confirmed.

    Args:
        name: the study that is compared; None for all studies.
        confirm: returns True if the differences that were printed shall be fixed.

    Raises:
        StorageError: the database cannot be used, or no rule says how to fix a difference.
    """
    ledgers = open_ledgers(url, deadline=0.0)  # without waiting for a database that is away
    differing_studies = find_differing_studies(ledgers, name)
    if not differing_studies:
        print("the budget agrees with the trials")
        return Repair([])
    differences = [f"{one_line(study.name)}: {study.difference}" for study in differing_studies]
    for difference in differences:
        print(indented(difference), flush=True)
    if not confirm():
        print("nothing was changed; --yes fixes this")
        return Repair(differences)
    for study in differing_studies:
        study.ledger.compare(repair=True)
    print("fixed")
    return Repair(differences, is_done=True)


def check_disk(folder: Path, *, wal: bool) -> Finding:
    """Checks the kind of a file system, and the space on it.

    Args:
        wal: whether SQLite writes there. Its log of changes (WAL) needs memory that all processes
            share, which a network file system does not offer.
    """
    folder = find_existing(folder)
    kind = filesystem_of(folder)
    free = shutil.disk_usage(folder).free
    facts = f"{kind}, {free / 1e9:.1f} GB free"
    if wal and is_network_filesystem(kind):
        fix = "name a run_dir on a local disk, or use PostgreSQL"
        return Finding(TODO, f"{facts}; SQLite is not safe there: {fix}")
    if free < SMALL:
        fix = "free some space, or name another run_dir"
        return Finding(WARNING, f"{facts}; checkpoints may not fit: {fix}")
    return Finding(OK, facts)


def find_existing(folder: Path) -> Path:
    """Returns a folder, or the nearest one above that exists."""
    candidate = folder
    while not candidate.is_dir():
        candidate = candidate.absolute().parent
    return candidate


def check_writable(folder: Path) -> Finding:
    """Checks whether files can be written to a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        return Finding(TODO, f"{folder} cannot be written: {error.strerror}")
    return Finding(OK, f"{folder} can be written")


def list_devices() -> Finding:
    """Lists the GPUs and their free memory."""
    if not visible_gpus():
        unused_accelerator = describe_unused_accelerator()
        if unused_accelerator is not None:
            return Finding(OK, unused_accelerator)
        if training_device().type == "mps":
            return Finding(OK, "a Mac's, on which workers train")
        return Finding(OK, "none: workers train on the CPU")
    names = []
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        free, total = torch.cuda.mem_get_info(index)  # bytes
        names.append(f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    return Finding(OK, "; ".join(names))


def count_workers() -> Finding:
    """Counts the workers that `launcher.workers=auto` starts on this machine."""
    count = Local().count_workers(sys.maxsize)
    gpus = len(visible_gpus()) or "no"
    machine = f"for {gpus} GPUs and {count_cores()} cores"
    return Finding(OK, f"launcher.workers=auto starts {count}, {machine}")


def list_versions() -> Finding:
    """Lists the versions of what a training depends on."""
    versions = (
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
        f"Optuna {optuna.__version__}",
        f"studyloom {__version__}",
    )
    return Finding(OK, ", ".join(versions))


def show(url: str, run_dir: Path | None = None, *, quiet: bool = False) -> list[dict[str, str]]:
    """Runs all checks, prints a line for each, and returns them.

    Raises:
        StorageError: the URL is not that of a database.
    """
    checks = []
    for name, finding in examine(url, run_dir):
        checks.append({"name": name, "state": finding.state, "message": finding.message})
        if not quiet:
            print(f"{finding.state:<8} {name:<11} {indented(finding.message)}", flush=True)
    return checks
