"""Where trackers write: in the run directory through no link, elsewhere as a person has said.

A run directory may be somebody else's, and a link in it would lead what is written out of it. A
folder of any other place was typed by the user, and may be a link.
"""

import os
from pathlib import Path, PurePath

from studyloom.errors import FileError
from studyloom.files import make_below


def below(run_dir: Path, path: Path) -> PurePath | None:
    """Returns the path from a run directory; None if it does not lead there.

    Args:
        run_dir: of the study.
        path: may reach the run directory by another way than `run_dir`, but no further.
    """
    real = os.path.realpath(run_dir)
    for parent in path.absolute().parents:
        if os.path.realpath(parent) == real:
            inner = path.absolute().relative_to(parent)
            return None if ".." in inner.parts else inner
    return None


def make_folder(run_dir: Path, path: Path) -> Path:
    """Makes a folder of a tracker, with those above it.

    Returns:
        `path`.

    Raises:
        FileError: it is in the run directory, and it or a folder on the way is a link.
        OSError: it cannot be made.
    """
    inner = below(run_dir, path)
    if inner is None:
        path.mkdir(parents=True, exist_ok=True)
    else:
        run_dir.mkdir(parents=True, exist_ok=True)
        make_below(run_dir, inner)
    return path


def refuse_link(path: Path) -> None:
    """Raises FileError if a folder or file that a tracker has made itself is a link now."""
    if path.is_symlink():
        raise FileError(
            f"{path}: must be a file or folder of its own, and is a symbolic link; remove it, and "
            "the same command tells again what was there"
        )
