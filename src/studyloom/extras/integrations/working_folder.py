"""The working folder of a trial of a command, in which the files of the project appear.

What the command writes by a relative path stays in that folder, so that no trial sees the files of
another. A trial that is resumed finds its folder again.
"""

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

FOLDER = ".work"  # in the folder of a trial
# A folder of the project with more files is data, and becomes a link.
MANY = 1000
SMALL = 100 * 2**10  # bytes of a file that is copied, so that a trial may write to it
# Files with the state of a training. One that an earlier run left would be resumed from.
STATES = {".pt", ".pth", ".ckpt", ".safetensors"}


@dataclass(frozen=True)
class WorkingFolder:
    """Makes the working folders of trials from the folder of a project.

    Args:
        project: the folder in which the command would run without studyloom.
        left_out: folders that do not appear, such as the run directory.
        inputs: saved states below the project that the command reads, as files or folders.
    """

    project: Path
    left_out: Collection[Path] = ()
    inputs: Collection[str] = ()

    def of_trial(self, folder: Path, kept: Path | None = None) -> Path:
        """Returns the working folder of a trial; makes it unless an earlier attempt has.

        Args:
            folder: the folder of the trial, which is removed when the trial ends.
            kept: where the working folder is kept, under the first free name; None if it is
                removed with the trial's folder.
        """
        work = folder / FOLDER
        if work.exists():
            return work / self.project.name
        if kept is None:
            self._make(work)
        else:
            free = _free(kept)
            self._make(free)
            work.symlink_to(free)
        return work / self.project.name

    def states(self) -> list[str]:
        """Returns the saved states that do not appear in a trial's folder, relative to the project.

        States in folders that become links are not among them: they do appear.
        """
        return [str(path.relative_to(self.project)) for path in self._states(self.project)]

    def _states(self, folder: Path) -> Iterator[Path]:
        for entry in _entries(folder):
            path = Path(entry.path)
            if self._is_mirrored(entry):
                yield from self._states(path)
            elif self._is_state(entry):
                yield path

    def _make(self, folder: Path) -> None:
        """Makes a working folder: whole, or not at all if this process is killed."""
        new = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        here = new / self.project.name
        here.mkdir(parents=True)
        self._link_neighbors(new)
        self._mirror(self.project, here)
        new.rename(folder)

    def _link_neighbors(self, target: Path) -> None:
        """Links what lies next to the project, so that a path such as ../data is found."""
        if self.project.parent == self.project:
            return
        neighbors = _entries(self.project.parent)
        if len(neighbors) > MANY:
            return
        for entry in neighbors:
            path = Path(entry.path)
            if path != self.project and not self._leads_to_left_out(path):
                (target / entry.name).symlink_to(path)

    def _mirror(self, source: Path, target: Path) -> None:
        for entry in _entries(source):
            path, new = Path(entry.path), target / entry.name
            if path in self.left_out or self._is_state(entry):
                continue
            with suppress(FileNotFoundError, PermissionError):  # removed meanwhile, or private
                if self._is_mirrored(entry):
                    new.mkdir()
                    self._mirror(path, new)
                elif entry.is_file(follow_symlinks=False) and entry.stat().st_size <= SMALL:
                    shutil.copy2(path, new)
                else:
                    new.symlink_to(path)

    def _is_mirrored(self, entry: os.DirEntry[str]) -> bool:
        """Whether an entry is a folder whose entries appear in a new folder, and not a link."""
        path = Path(entry.path)
        if not entry.is_dir(follow_symlinks=False) or path in self.left_out:
            return False
        if self._leads_to_left_out(path):  # a link would lead in circles
            return True
        return not entry.name.startswith(".") and not _has_many(path)

    def _is_state(self, entry: os.DirEntry[str]) -> bool:
        """Whether an entry is a saved state that is no input. A symbolic link is an input."""
        path = Path(entry.path)
        if not STATES.intersection(path.suffixes) or not entry.is_file(follow_symlinks=False):
            return False
        inputs = {self.project / name for name in self.inputs}
        return inputs.isdisjoint([path, *path.parents])

    def _leads_to_left_out(self, path: Path) -> bool:
        return any(path == folder or path in folder.parents for folder in self.left_out)


def _free(path: Path) -> Path:
    """Returns the path, or with a number if another study of the run directory has taken it."""
    if not path.exists():
        return path
    numbered = (path.with_name(f"{path.name}.{number}") for number in count(2))
    return next(other for other in numbered if not other.exists())


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder by name; none of one that may not be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _has_many(folder: Path) -> bool:
    """Whether a folder has more than `MANY` files, in its own folders too."""
    files = (name for _, _, names in os.walk(folder) for name in names)
    return next(islice(files, MANY, None), None) is not None
