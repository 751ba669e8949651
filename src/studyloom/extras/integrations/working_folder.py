"""The working folder of a trial of a command, in which the files of the project appear.

Files that the command writes by a relative path stay in that folder, so that no trial sees the
files of another. A trial that is resumed finds its folder again.

Small files are copied, since a trial may write to them. Larger files and folders of data are links.
Other folders are *mirrored*: a new folder is made, in which their entries appear likewise.
"""

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

FOLDER = ".work"  # in the folder of a trial
# A folder of the project with more files is data, and becomes a link.
MANY = 1000
SMALL = 100 * 2**10  # bytes of a file that is copied, so that a trial may write to it
# Files with the state of a training. A command would resume from the one of an earlier run.
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

    def of_trial(self, folder: Path, storage: Path | None = None) -> Path:
        """Returns the working folder of a trial; makes it unless an earlier attempt has.

        The project appears in it as a folder, so that it has neighbors too, such as ../data.

        Args:
            folder: the folder of the trial, which is removed when the trial ends.
            storage: where the working folder is kept after that, under this name or the first free
                one; None if it is removed with the trial's folder.
        """
        work = folder / FOLDER
        if not work.exists():
            if storage is None:
                self._make(work)
            else:
                unused = _find_unused(storage)
                self._make(unused)
                work.symlink_to(unused)
        return work / self.project.name

    def states(self) -> list[str]:
        """Returns the saved states that do not appear in a trial's folder, relative to the project.

        States in folders that become links are not among them: they do appear.
        """
        return [str(path.relative_to(self.project)) for path in self._states(self.project)]

    def _states(self, folder: Path) -> Iterator[Path]:
        """Yields the saved states in a folder that is mirrored."""
        for entry in _entries(folder):
            path = Path(entry.path)
            if self._is_mirrored(entry):
                yield from self._states(path)
            elif self._is_state(entry):
                yield path

    def _make(self, folder: Path) -> None:
        """Makes a working folder, which gets its name once it is complete."""
        unfinished = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        project = unfinished / self.project.name
        project.mkdir(parents=True)
        self._link_neighbors(unfinished)
        self._mirror(self.project, project)
        unfinished.rename(folder)

    def _link_neighbors(self, target: Path) -> None:
        """Links the files and folders next to the project, for paths such as ../data."""
        if self.project.parent == self.project:
            return
        neighbors = _entries(self.project.parent)
        if len(neighbors) > MANY:
            return
        for entry in neighbors:
            path = Path(entry.path)
            if path != self.project and not self._holds_left_out(path):
                (target / entry.name).symlink_to(path)

    def _mirror(self, source: Path, target: Path) -> None:
        """Lets the entries of a folder appear in another one: as copies, links or new folders."""
        for entry in _entries(source):
            path = Path(entry.path)
            appearance = target / entry.name
            if path in self.left_out or self._is_state(entry):
                continue
            with suppress(FileNotFoundError, PermissionError):  # removed meanwhile, or private
                if self._is_mirrored(entry):
                    appearance.mkdir()
                    self._mirror(path, appearance)
                elif entry.is_file(follow_symlinks=False) and entry.stat().st_size <= SMALL:
                    shutil.copy2(path, appearance)
                else:
                    appearance.symlink_to(path)

    def _is_mirrored(self, entry: os.DirEntry[str]) -> bool:
        """Returns True if an entry is a folder for which a new folder is made, and no link."""
        path = Path(entry.path)
        if not entry.is_dir(follow_symlinks=False) or path in self.left_out:
            return False
        if self._holds_left_out(path):  # a link would lead in circles
            return True
        is_hidden = entry.name.startswith(".")
        return not is_hidden and not _has_many_files(path)

    def _is_state(self, entry: os.DirEntry[str]) -> bool:
        """Returns True if an entry is a saved state that does not appear.

        A state that `inputs` names does appear, and so does a link to a state.
        """
        path = Path(entry.path)
        if not STATES.intersection(path.suffixes) or not entry.is_file(follow_symlinks=False):
            return False
        inputs = {self.project / name for name in self.inputs}
        is_input = not inputs.isdisjoint([path, *path.parents])
        return not is_input

    def _holds_left_out(self, path: Path) -> bool:
        """Returns True if a path is or contains a folder that does not appear."""
        return any(path == folder or path in folder.parents for folder in self.left_out)


def _find_unused(path: Path) -> Path:
    """Returns a path, with a number if another study of the run directory uses it already."""
    candidate = path
    number = 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}.{number}")
    return candidate


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder by name; none if it may not be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _has_many_files(folder: Path) -> bool:
    """Returns True for more than `MANY` files in a folder and the folders below it."""
    files = 0
    for _, _, names in os.walk(folder):
        files += len(names)
        if files > MANY:
            return True
    return False
