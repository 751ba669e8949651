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
MAX_MIRRORED_FILES = 1000
MAX_COPIED_BYTES = 100 * 2**10  # of a file that is copied, so that a trial may write to it
# Suffixes of files with the saved state of a training. A command would resume from an old one.
STATE_SUFFIXES = {".pt", ".pth", ".ckpt", ".safetensors"}


@dataclass(frozen=True)
class WorkingFolder:
    """Makes the working folders of trials from the folder of a project.

    Args:
        project: the folder in which the command would run without studyloom.
        hidden_folders: folders that do not appear, such as the run directory.
        inputs: saved states below the project that the command reads, as files or folders.
    """

    project: Path
    hidden_folders: Collection[Path] = ()
    inputs: Collection[str] = ()

    def prepare(self, trial_folder: Path, storage: Path | None = None) -> Path:
        """Returns the folder in which a trial's command runs; makes it at the first attempt.

        It is `.work/PROJECT` in the folder of the trial. Next to it are links to the files and
        folders next to the project, so that the command finds paths such as ../data.

        Args:
            trial_folder: the folder of the trial, which is removed when the trial ends.
            storage: where `.work` is kept after that, under this name or the first free one; None
                if it is removed with the trial's folder.
        """
        work = trial_folder / FOLDER
        if not work.exists():
            if storage is None:
                self._make(work)
            else:
                kept_folder = _find_unused_path(storage)
                self._make(kept_folder)
                work.symlink_to(kept_folder)
        return work / self.project.name

    def hidden_states(self) -> list[str]:
        """Returns the saved states that do not appear in a trial's folder, relative to the project.

        States in folders that become links are not among them: they do appear.
        """
        states = self._find_hidden_states(self.project)
        return [str(path.relative_to(self.project)) for path in states]

    def _find_hidden_states(self, folder: Path) -> Iterator[Path]:
        """Yields the hidden states in a folder and in the mirrored folders below it."""
        for entry in _list_entries(folder):
            path = Path(entry.path)
            if self._is_mirrored(entry):
                yield from self._find_hidden_states(path)
            elif self._is_hidden_state(entry):
                yield path

    def _make(self, folder: Path) -> None:
        """Makes a working folder, which gets its name once it is complete."""
        unfinished = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        project = unfinished / self.project.name
        project.mkdir(parents=True)
        self._link_neighbors(unfinished)  # of the project, so that ../data is found
        self._mirror(self.project, project)
        unfinished.rename(folder)

    def _link_neighbors(self, target: Path) -> None:
        """Links the files and folders next to the project, for paths such as ../data.

        A folder that holds a hidden one, such as the run directory, is not linked. If there are
        very many, such as in a temporary folder, none is linked.
        """
        parent = self.project.parent
        if parent == self.project:  # it is the root of the file system
            return
        neighbors = _list_entries(parent)
        if len(neighbors) > MAX_MIRRORED_FILES:
            return
        for entry in neighbors:
            path = Path(entry.path)
            if path != self.project and not self._holds_hidden_folder(path):
                (target / entry.name).symlink_to(path)

    def _mirror(self, source: Path, target: Path) -> None:
        """Lets the entries of a folder appear in another one: as copies, links or new folders."""
        for entry in _list_entries(source):
            path = Path(entry.path)
            target_path = target / entry.name
            if path in self.hidden_folders or self._is_hidden_state(entry):
                continue
            with suppress(FileNotFoundError, PermissionError):  # removed meanwhile, or private
                if self._is_mirrored(entry):
                    target_path.mkdir()
                    self._mirror(path, target_path)
                elif _is_small_file(entry):
                    shutil.copy2(path, target_path)
                else:
                    target_path.symlink_to(path)

    def _is_mirrored(self, entry: os.DirEntry[str]) -> bool:
        """Returns True if an entry is a folder for which a new folder is made, instead of a link.

        A folder of data, with many files, becomes a link; so does a folder such as .git.
        """
        path = Path(entry.path)
        if not entry.is_dir(follow_symlinks=False) or path in self.hidden_folders:
            return False
        # The working folder lies in a hidden one: a link to a folder around it would lead in
        # circles.
        if self._holds_hidden_folder(path):
            return True
        starts_with_dot = entry.name.startswith(".")
        return not starts_with_dot and not _has_many_files(path)

    def _is_hidden_state(self, entry: os.DirEntry[str]) -> bool:
        """Returns True if an entry is a saved state that does not appear.

        A state that `inputs` names does appear, and so does a link to a state.
        """
        path = Path(entry.path)
        is_state = not STATE_SUFFIXES.isdisjoint(path.suffixes)
        if not is_state or not entry.is_file(follow_symlinks=False):
            return False
        inputs = {self.project / name for name in self.inputs}
        is_input = not inputs.isdisjoint([path, *path.parents])
        return not is_input

    def _holds_hidden_folder(self, path: Path) -> bool:
        """Returns True if a path is or contains a folder that does not appear."""
        return any(path == folder or path in folder.parents for folder in self.hidden_folders)


def _find_unused_path(path: Path) -> Path:
    """Returns a path, with a number if another study of the run directory uses it already."""
    candidate = path
    number = 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}.{number}")
    return candidate


def _is_small_file(entry: os.DirEntry[str]) -> bool:
    """Returns True if an entry is a file, and no link, that is copied for each trial."""
    return entry.is_file(follow_symlinks=False) and entry.stat().st_size <= MAX_COPIED_BYTES


def _list_entries(folder: Path) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder, sorted by name; none if it may not be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _has_many_files(folder: Path) -> bool:
    """Returns True if a folder and the folders below it have so many files that they are data."""
    count = 0
    for _, _, names in os.walk(folder):
        count += len(names)
        if count > MAX_MIRRORED_FILES:
            return True
    return False
