"""Finds the files that several trials of a command have written in a folder that they share."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_FILES = 10_000  # that are looked at
CLOCK_TOLERANCE = 0.1  # seconds by which the time of a file may lie before the clock's


@dataclass
class TrialWrites:
    """The time of a trial, and the files that were written meanwhile, by it or by another trial.

    Attributes:
        began: when the first attempt began, in seconds since the epoch, as all times here.
        ended: when the last attempt ended; infinity while it runs, and after a kill.
        files: the times at which each file was written, by its name.
    """

    began: float
    ended: float = math.inf
    files: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class SharedFiles:
    """Finds the files below a folder that more than one trial has written.

    Each trial records when it began and ended, and the times of the files that were written
    meanwhile. Trials run side by side, so that a file counts as shared only if no single trial
    can have written it each time.

    Args:
        project: the folder in which the trials run.
        record: the file in which trials record this, in lines of JSON.
        run_dir: the run directory, whose files do not count.
    """

    project: Path
    record: Path
    run_dir: Path

    def begin(self, trial: str) -> float:
        """Records that an attempt at a trial begins, and returns the time."""
        began = time.time()
        self._append_to_record({"trial": trial, "began": began})
        return began

    def end(self, trial: str, began: float) -> dict[str, list[str]]:
        """Records that an attempt has ended, and which files were written since it began.

        Args:
            began: the time that `begin` returned.

        Returns:
            For each file that several trials wrote, and no earlier call returned: the names of
            those trials, by the name of the file.
        """
        shared_before = self._find_shared_files()
        files = dict(self._find_files_written_since(began))
        self._append_to_record({"trial": trial, "ended": time.time(), "files": files})
        newly_shared = {}
        for name, trials in self._find_shared_files().items():
            if name not in shared_before:
                newly_shared[name] = trials
        return newly_shared

    def _append_to_record(self, entry: Mapping[str, Any]) -> None:
        """Adds a line of JSON to the record."""
        self.record.parent.mkdir(parents=True, exist_ok=True)
        with self.record.open("a") as file:
            file.write(f"{json.dumps(entry)}\n")

    def _find_files_written_since(self, began: float) -> Iterator[tuple[str, float]]:
        """Yields the names of the project's files that were written since a time, and when."""
        count = 0
        for folder, subfolders, names in os.walk(self.project):
            # os.walk enters only the folders that remain in this list, in its order.
            entered = [name for name in subfolders if self._is_entered(Path(folder, name))]
            subfolders[:] = sorted(entered)
            for name in sorted(names):
                count += 1
                if count > MAX_FILES:
                    return
                path = Path(folder, name)
                with suppress(OSError):  # removed meanwhile
                    write_time = path.stat().st_mtime
                    if write_time >= began - CLOCK_TOLERANCE:
                        yield str(path.relative_to(self.project)), write_time

    def _is_entered(self, folder: Path) -> bool:
        """Returns True if the files in a folder count: not in the run directory, .git and such."""
        is_hidden = folder.name.startswith(".") or folder.name == "__pycache__"
        return not is_hidden and folder != self.run_dir

    def _find_shared_files(self) -> dict[str, list[str]]:
        """Returns the trials that may have written a file, by its name, for each shared file.

        A file is shared if it was written while several trials ran, and no single trial ran from
        its first write to its last.
        """
        trials = self._read_record()
        file_names = set[str]()
        for writes in trials.values():
            file_names.update(writes.files)
        shared = {}
        for file_name in sorted(file_names):
            writers = []
            times = []
            for trial, writes in trials.items():
                if file_name in writes.files:
                    writers.append(trial)
                    times += writes.files[file_name]
            if len(writers) > 1 and not _any_ran_throughout(trials, min(times), max(times)):
                shared[file_name] = writers
        return shared

    def _read_record(self) -> dict[str, TrialWrites]:
        """Returns the time and the writes of each trial, by its name, from all its attempts.

        The record has a line for the beginning of each attempt, and one for its end, with the files
        that were written meanwhile.
        """
        trials: dict[str, TrialWrites] = {}
        for line in self.record.read_text().splitlines():
            with suppress(ValueError):  # a line that a kill has cut
                entry = json.loads(line)
                trial = entry["trial"]
                if trial not in trials:  # the first attempt begins
                    trials[trial] = TrialWrites(began=entry.get("began", 0.0))
                writes = trials[trial]
                writes.ended = entry.get("ended", math.inf)  # only the line for an end has it
                for file_name, write_time in entry.get("files", {}).items():
                    writes.files.setdefault(file_name, []).append(write_time)
        return trials


def _any_ran_throughout(trials: Mapping[str, TrialWrites], first: float, last: float) -> bool:
    """Returns True if a trial ran all the time between the first and the last write of a file.

    If so, that trial may be the only one that wrote the file.
    """
    for writes in trials.values():
        began_before = writes.began <= first + CLOCK_TOLERANCE
        ended_after = writes.ended >= last - CLOCK_TOLERANCE
        if began_before and ended_after:
            return True
    return False
