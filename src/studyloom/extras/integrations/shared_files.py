"""Files of a project that several trials of a command write, since they share its folder."""

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
    """A trial, from its first attempt to its last, and when files were written meanwhile.

    Attributes:
        ended: infinity while it runs, and after a kill until it is resumed.
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
        record: the file for what they record, a line of JSON each.
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
        before = self._shared()
        files = dict(self._written_since(began))
        self._write({"trial": trial, "ended": time.time(), "files": files})
        return {name: trials for name, trials in self._shared().items() if name not in before}

    def _write(self, line: Mapping[str, Any]) -> None:
        self.record.parent.mkdir(parents=True, exist_ok=True)
        with self.record.open("a") as file:
            file.write(f"{json.dumps(line)}\n")

    def _written_since(self, began: float) -> Iterator[tuple[str, float]]:
        """Yields the names and times of the files below the project that were written since."""
        looked_at = 0
        for folder, folders, names in os.walk(self.project):
            here = Path(folder)
            folders[:] = sorted(name for name in folders if self._is_looked_at(here / name))
            for name in sorted(names):
                looked_at += 1
                if looked_at > MOST:
                    return
                with suppress(OSError):  # removed meanwhile
                    changed = (here / name).stat().st_mtime
                    if changed >= began - SLACK:
                        yield str((here / name).relative_to(self.project)), changed

    def _is_looked_at(self, folder: Path) -> bool:
        hidden = folder.name.startswith(".") or folder.name == "__pycache__"
        return not hidden and folder != self.left_out

    def _shared(self) -> dict[str, list[str]]:
        """Returns the trials that wrote a file, by its name, for each file that is shared."""
        records = self._read()
        shared = {}
        for name in sorted({name for record in records.values() for name in record.files}):
            writers = {trial: r.files[name] for trial, r in records.items() if name in r.files}
            times = [time for written in writers.values() for time in written]
            first, last = min(times) + SLACK, max(times) - SLACK
            single = any(r.began <= first and last <= r.ended for r in records.values())
            if len(writers) > 1 and not single:
                shared[name] = [*writers]
        return shared

    def _read(self) -> dict[str, TrialWrites]:
        records = dict[str, TrialWrites]()
        for line in self.record.read_text().splitlines():
            with suppress(ValueError):  # a line that was cut short
                entry = json.loads(line)
                record = records.setdefault(entry["trial"], TrialWrites(entry.get("began", 0.0)))
                record.ended = entry.get("ended", math.inf)
                for name, changed in entry.get("files", {}).items():
                    record.files.setdefault(name, []).append(changed)
        return records
