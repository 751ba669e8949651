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

MOST = 10_000  # files that are looked at
SLACK = 0.1  # seconds by which the time of a file may lie before the clock's


@dataclass
class TrialWrites:
    """The time of a trial, from its first attempt to its last, and the files written meanwhile.

    Attributes:
        began: a time in seconds, as all times here.
        ended: infinity while it runs, and after a kill until it is resumed.
        files: the times at which each file was written, by its name.
    """

    began: float
    ended: float = math.inf
    files: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class SharedFiles:
    """Finds the files below a folder that more than one trial has written.

    Each trial records when it began and ended, and the times of the files that were written
    meanwhile. Trials run side by side, so that a file is shared only if no single trial can have
    written it each time.

    Args:
        project: the folder in which the trials run.
        record: the file in which trials record this, in lines of JSON.
        left_out: a folder that is not looked at: the run directory.
    """

    project: Path
    record: Path
    left_out: Path

    def begin(self, trial: str) -> float:
        """Records that an attempt at a trial begins, and returns the time."""
        began = time.time()
        self._write({"trial": trial, "began": began})
        return began

    def end(self, trial: str, began: float) -> dict[str, list[str]]:
        """Records that an attempt has ended, and which files were written since it began.

        Returns:
            The trials that wrote a file, by its name, for each file that was not known to be
            shared before.
        """
        shared_before = self._shared()
        files = dict(self._written_since(began))
        self._write({"trial": trial, "ended": time.time(), "files": files})
        newly_shared = {}
        for name, trials in self._shared().items():
            if name not in shared_before:
                newly_shared[name] = trials
        return newly_shared

    def _write(self, line: Mapping[str, Any]) -> None:
        """Adds a line to the record."""
        self.record.parent.mkdir(parents=True, exist_ok=True)
        with self.record.open("a") as file:
            file.write(f"{json.dumps(line)}\n")

    def _written_since(self, began: float) -> Iterator[tuple[str, float]]:
        """Yields the files below the project that were written since a time, and when."""
        looked_at = 0
        for folder, folders, names in os.walk(self.project):
            # os.walk enters only the folders that are left in this list, in its order.
            folders[:] = sorted(name for name in folders if self._is_entered(Path(folder, name)))
            for name in sorted(names):
                looked_at += 1
                if looked_at > MOST:
                    return
                path = Path(folder, name)
                with suppress(OSError):  # removed meanwhile
                    written = path.stat().st_mtime
                    if written >= began - SLACK:
                        yield str(path.relative_to(self.project)), written

    def _is_entered(self, folder: Path) -> bool:
        """Returns True if the files in a folder are looked at."""
        is_hidden = folder.name.startswith(".") or folder.name == "__pycache__"
        return not is_hidden and folder != self.left_out

    def _shared(self) -> dict[str, list[str]]:
        """Returns the trials that wrote a file, by its name, for each file that is shared."""
        trials = self._read()
        names = set[str]()
        for writes in trials.values():
            names.update(writes.files)
        shared = {}
        for name in sorted(names):
            writers = []
            times = []
            for trial, writes in trials.items():
                if name in writes.files:
                    writers.append(trial)
                    times += writes.files[name]
            if len(writers) > 1 and not _one_ran_throughout(trials, min(times), max(times)):
                shared[name] = writers
        return shared

    def _read(self) -> dict[str, TrialWrites]:
        """Reads the record; a trial of several attempts began with the first of them."""
        trials: dict[str, TrialWrites] = {}
        for line in self.record.read_text().splitlines():
            with suppress(ValueError):  # a line that a kill has cut
                entry = json.loads(line)
                writes = trials.setdefault(entry["trial"], TrialWrites(entry.get("began", 0.0)))
                writes.ended = entry.get("ended", math.inf)
                for name, written in entry.get("files", {}).items():
                    writes.files.setdefault(name, []).append(written)
        return trials


def _one_ran_throughout(trials: Mapping[str, TrialWrites], first: float, last: float) -> bool:
    """Returns True if a trial ran all the time between the first and the last write of a file.

    That trial may be the only one that wrote the file.
    """
    for writes in trials.values():
        if writes.began <= first + SLACK and last - SLACK <= writes.ended:
            return True
    return False
