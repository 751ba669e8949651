"""Locks between the processes of a run that tell a tracker something."""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from studyloom import files
from studyloom.extras.trackers.folders import make_folder

FOLDER = "track"  # below run_dir


def locked(
    run_dir: Path, name: str, *, shared: bool = False, stopping: Callable[[], bool] = lambda: False
) -> AbstractContextManager[bool]:
    """Holds a lock of a run in the body, as `files.locked` does.

    Where it is not held, two processes may begin the same run.

    Args:
        run_dir: the folder of the run, which all workers of a launcher share.
        name: of the lock.
        shared: whether others may hold it so too.
        stopping: returns whether to wait no longer.

    Raises:
        FileError: the folder of the locks is a link.
    """
    with suppress(OSError):  # such as of a disk without room, where it is not held
        make_folder(run_dir, run_dir / FOLDER)
    return files.locked(run_dir / FOLDER / name, shared=shared, stopping=stopping)
