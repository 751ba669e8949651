"""A record of what a tracker was told, for those that cannot say it themselves."""

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from studyloom.extras.trackers.folders import make_folder
from studyloom.extras.trackers.locks import FOLDER
from studyloom.extras.trackers.tracker import (
    Answer,
    Known,
    Point,
    TrackedStudy,
    TrackedTrial,
    Tracker,
)
from studyloom.files import read_below


class Journal:
    """A tracker with a record of what it was told, a line each, written after it was told.

    If a worker is killed between the two, the tracker is told that one call again.

    Args:
        tracker: with the four methods of `Tracker`.
        name: of its section, which names the file.
    """

    def __init__(self, tracker: Tracker, name: str) -> None:
        self.tracker, self.name = tracker, name

    @property
    def place(self) -> str:
        return f"journal:{self.name}"

    def begin(self, trial: TrackedTrial) -> None:
        self.tracker.begin(trial)
        self._note(trial.study, trial=trial.number, begun=True)

    def report(self, trial: TrackedTrial, epoch: int, values: Mapping[str, float]) -> None:
        self.tracker.report(trial, epoch, values)
        self._note(trial.study, trial=trial.number, epoch=epoch, names=[*values])

    def report_all(self, trial: TrackedTrial, points: Sequence[Point]) -> None:
        by_epoch = defaultdict[int, dict[str, float]](dict)
        for point in points:
            by_epoch[point.epoch][point.name] = point.value
        for epoch in sorted(by_epoch):
            self.report(trial, epoch, by_epoch[epoch])

    def end(self, trial: TrackedTrial, state: str, values: Mapping[str, float]) -> None:
        self.tracker.end(trial, state, values)
        self._note(trial.study, trial=trial.number, ended=True)

    def study_end(self, answer: Answer) -> None:
        self.tracker.study_end(answer)
        self._note(answer.study, answer=answer.digest)

    def known(self, trial: TrackedTrial) -> Known:
        lines = [line for line in self._lines(trial.study) if line.get("trial") == trial.number]
        points = {
            (line["epoch"], name) for line in lines if "epoch" in line for name in line["names"]
        }
        return Known(
            frozenset(points),
            any("begun" in line for line in lines),
            any("ended" in line for line in lines),
        )

    def ended(self, study: TrackedStudy) -> set[int]:
        return {line["trial"] for line in self._lines(study) if "ended" in line}

    def answered(self, study: TrackedStudy) -> str | None:
        answers: list[str] = [line["answer"] for line in self._lines(study) if "answer" in line]
        return answers[-1] if answers else None

    def _path(self, study: TrackedStudy) -> Path:
        return study.run_dir / FOLDER / f"{self.name}.jsonl"

    def _note(self, study: TrackedStudy, **fields: Any) -> None:
        path = self._path(study)
        make_folder(study.run_dir, path.parent)
        # A newline first: the line before may be half of one, of a worker that was killed.
        line = "\n" + json.dumps({"study": study.uuid, **fields})
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        flags |= os.O_NONBLOCK  # a pipe that has the name is an error, and not waited for
        with os.fdopen(os.open(path, flags, 0o644), "ab", buffering=0) as file:
            file.write(line.encode())

    def _lines(self, study: TrackedStudy) -> Iterator[dict[str, Any]]:
        try:
            text = read_below(study.run_dir, f"{FOLDER}/{self.name}.jsonl").decode()
        except FileNotFoundError:
            return
        for line in text.splitlines():
            try:
                fields = json.loads(line) if line else {}
            except ValueError:
                continue
            if isinstance(fields, dict) and fields.get("study") == study.uuid:
                yield fields
