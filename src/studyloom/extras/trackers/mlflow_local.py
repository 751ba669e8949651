"""A database of MLflow's in the run directory, which may be somebody else's.

Such a database says where the artifacts of its runs are to be written, which MLflow's client
believes. Here they go into the run directory or nowhere, and the client is not asked. A database
elsewhere, like a server, was named by the user, and decides itself.
"""

import os
import re
from contextlib import suppress
from pathlib import Path, PurePath
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from studyloom.errors import FileError
from studyloom.extras.trackers.folders import below, refuse_link
from studyloom.files import make_below, open_below, write_below
from studyloom.text import one_line, shorten

FOLDER = "mlflow-artifacts"  # below run_dir
BESIDE = ("", "-journal", "-wal", "-shm")  # what SQLite opens: it writes through links


def check_store(uri: str, run_dir: Path) -> None:
    """Checks what MLflow opens below a run directory, if it opens anything there.

    Raises:
        FileError: the database, or a file of a store of files, is a link.
    """
    place = place_of(uri)
    if place is None or (inner := below(run_dir, place)) is None:
        return
    if not uri.startswith("sqlite"):  # a folder of files, as MLflow had it before
        for parent in (run_dir / inner, *(run_dir / inner).parents):
            if parent == run_dir:
                break
            refuse_link(parent)
        for folder, folders, names in os.walk(run_dir / inner):
            for name in (*folders, *names):
                refuse_link(Path(folder, name))
        return
    for suffix in BESIDE:
        with suppress(FileNotFoundError):
            os.close(open_below(run_dir, inner.with_name(inner.name + suffix)))


def place_of(uri: str) -> Path | None:
    """Returns the file or folder that a tracking URI names; None if it names a server."""
    if found := re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri):
        path = found[1]
        if path.startswith("file:"):
            path = unquote(path.removeprefix("file:"))
        return None if path.startswith(":memory:") else Path(path)
    if uri.startswith("file:"):
        return Path(url2pathname(urlsplit(uri).path))
    return Path(uri) if uri and not re.match(r"[\w+]+:", uri) else None


def find_folder(uri: str, run_dir: Path, location: str) -> PurePath | None:
    """Returns the folder of the artifacts of a run, from the run directory.

    Args:
        uri: of the store.
        run_dir: of the study.
        location: of the artifacts, as the store has it.

    Returns:
        None if the store is not in the run directory, so that MLflow's client writes them.

    Raises:
        FileError: the store is in the run directory, and wants them elsewhere.
    """
    place = place_of(uri)
    if place is None or (store := below(run_dir, place)) is None:
        return None
    root = PurePath(FOLDER) if uri.startswith("sqlite") else store
    parts = urlsplit(location)
    if parts.scheme in ("", "file") and not parts.netloc:
        inner = below(run_dir, Path(url2pathname(parts.path)))
        if inner is not None and inner.is_relative_to(root):
            return inner
    said = shorten(one_line(location), 100)
    raise FileError(
        f"{place}: has artifacts at {said!r}, which is not below {root} of this run directory: it "
        "was made elsewhere, or before the directory was moved. Remove it, or move it away: the "
        "same command makes a new one, with all that the study has"
    )


def keep(run_dir: Path, folder: PurePath, path: Path) -> None:
    """Copies a file to the artifacts of a run, and follows no link there.

    Args:
        run_dir: of the study.
        folder: from there, as `find_folder` returns it, or one below it.
        path: of the file.

    Raises:
        FileError: a folder on the way is a link.
        OSError: the file cannot be read or written.
    """
    make_below(run_dir, folder)
    write_below(run_dir, folder / path.name, path.read_bytes())
