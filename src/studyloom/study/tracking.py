"""Trackers: projections of the database, which has the truth.

A trial that has ended is written to each tracker as a run of a fixed id, from what is stored. The
worker that ran it does this in a thread, so training never waits; the command does it at its end
for every trial that a tracker lacks, since a worker may have been killed or the tracker away. A
trial is told at least once, and told again it comes to the same run.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

from optuna.trial import FrozenTrial

from studyloom.config.build import build
from studyloom.errors import ConfigError, StorageError
from studyloom.metrics import COSTS
from studyloom.storage.attributes import (
    BASELINE,
    COLUMNS,
    EPOCHS,
    FAILURE,
    REASON,
    STANDARD_ERROR,
    UUID,
    WORKER,
)
from studyloom.study.failures import outcome
from studyloom.study.stored_study import StoredStudy
from studyloom.text import mask_passwords, one_line, shorten

FACTS = (WORKER, BASELINE, FAILURE, REASON)
WORKER_WAITS = 30.0  # seconds at the end of a worker for what its trackers are not told yet
COMMAND_WAITS = 60.0  # the same at the end of a command, for each tracker
METHODS = ("write_trial", "write_answer")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackedStudy:
    """A study, for trackers.

    Attributes:
        uuid: 32 hexadecimal digits; another study of the same name has others.
        goals: maximize or minimize, by the name of each value of a trial.
    """

    name: str
    uuid: str
    goals: Mapping[str, str]
    run_dir: Path


class Point(NamedTuple):
    """A number of a learning curve; its time is in seconds since the epoch."""

    epoch: int
    name: str
    value: float
    time: float


@dataclass(frozen=True)
class TrackedTrial:
    """A trial that has ended, for trackers.

    Attributes:
        state: complete, pruned or failed.
        params: by their path, such as optimizer.lr.
        values: by name: the metric, its standard error, what the network costs.
        facts: worker, baseline, failure and reason, where they are known.
        points: the learning curves.
        started: seconds since the epoch, as is `ended`.
    """

    study: TrackedStudy
    number: int
    state: str
    params: Mapping[str, Any]
    values: Mapping[str, float]
    facts: Mapping[str, str]
    points: Sequence[Point]
    started: float
    ended: float


@dataclass(frozen=True)
class TrackedAnswer:
    """The answer of a study, for trackers.

    Attributes:
        trial: the number of the winner, or of the best trial without one; None if none is complete.
        values: by name: `trials.complete`, `search.accuracy`, `fresh.mean`, `test.mean`, …
        files: of the answer and its report, by name: winner.yaml, winner.pt, report.html, …
    """

    study: TrackedStudy
    trial: int | None
    params: Mapping[str, Any]
    values: Mapping[str, float]
    files: Mapping[str, Path]


class Tracker(Protocol):
    """A tracker, of a section of `track`. Its methods are called from a thread, and may raise."""

    def write_trial(self, trial: TrackedTrial) -> None:
        """Writes the run of a trial; written again it comes to the same content."""
        ...

    def write_answer(self, answer: TrackedAnswer) -> None:
        """Writes the answer of a study, in place of an earlier one."""
        ...


@runtime_checkable
class Listing(Tracker, Protocol):
    """A tracker that says what it has, so that a command writes no more than what is missing."""

    def written(self, study: TrackedStudy) -> Collection[int]:
        """Returns the numbers of the trials of which it has the whole run."""
        ...


def build_trackers(section: Any) -> dict[str, Tracker]:
    """Builds the trackers of the section `track`, by names of the user's own; connects to none.

    Raises:
        ConfigError: every mistake in it.
    """
    if not section:
        return {}
    if not hasattr(section, "items"):
        raise ConfigError(
            [
                f"track must be a mapping of trackers, not {section!r}; on a command line, or "
                "among the defaults, they are chosen by a list: track=[tensorboard,mlflow]"
            ]
        )
    trackers: dict[str, Tracker] = {}
    mistakes: list[str] = []
    for name, settings in section.items():
        if settings is None or not hasattr(settings, "items"):
            mistakes.append(f"track.{name} must be a section with a _target_, not {settings!r}")
            continue
        try:
            tracker = build(settings)
        except ConfigError as error:
            mistakes += error.mistakes
            continue
        if missing := [each for each in METHODS if not callable(getattr(tracker, each, None))]:
            mistakes.append(
                f"track.{name}: {type(tracker).__name__} has no {' and no '.join(missing)}; a "
                "tracker has write_trial(trial) and write_answer(answer)"
            )
        trackers[str(name)] = tracker
    if mistakes:
        raise ConfigError(mistakes)
    return trackers


class Feed:
    """A thread that writes to one tracker what it is given, in order; nobody waits for it.

    What a tracker refuses is tried again after the next trial, and at the end.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._left: list[Callable[[], None]] = []
        self._away_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"track.{name}", daemon=True)
        self._thread.start()

    def put(self, write: Callable[[], None]) -> None:
        self._queue.put(write)

    def close(self, seconds: float) -> None:
        """Waits for what is left, but no longer than `seconds`, and says if something is."""
        self._queue.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive() or self._left:
            log.warning("track.%s: it may lack trials; the same command writes them", self.name)

    def _run(self) -> None:
        while (write := self._queue.get()) is not None:
            if not self._attempt(write):
                self._left.append(write)
                continue
            while self._left and self._attempt(self._left[0]):
                del self._left[0]
            if not self._left and self._away_since is not None:
                away = time.monotonic() - self._away_since
                log.warning("track.%s: is back after %.0f s", self.name, away)
                self._away_since = None

    def _attempt(self, write: Callable[[], None]) -> bool:
        try:
            write()
        except Exception as error:
            if self._away_since is None:
                self._away_since = time.monotonic()
                words = one_line(mask_passwords(str(error))) or type(error).__name__
                log.warning("track.%s: %s; the study goes on", self.name, shorten(words, 300))
            return False
        return True


class Tracking:
    """Writes the trials of a worker to its trackers, each once it has ended. A context."""

    def __init__(
        self,
        trackers: Mapping[str, Tracker] = MappingProxyType({}),
        stored: StoredStudy | None = None,
        run_dir: Path = Path(),
    ) -> None:
        self._trackers, self._stored, self._run_dir = trackers, stored, run_dir
        self._feeds: list[tuple[Tracker, Feed]] = []

    def __enter__(self) -> "Tracking":
        self._feeds = [(tracker, Feed(name)) for name, tracker in self._trackers.items()]
        return self

    def __exit__(self, *_: object) -> None:
        for _tracker, feed in self._feeds:
            feed.close(WORKER_WAITS)
        self._feeds = []

    def end(self, trial: FrozenTrial) -> None:
        """Writes a trial that has ended in the database."""
        if not self._feeds:
            return
        assert self._stored is not None
        told = track_trial(trial, self._stored, track_study(self._stored, self._run_dir))
        for tracker, feed in self._feeds:
            feed.put(partial(tracker.write_trial, told))


def project(
    stored: StoredStudy,
    trackers: Mapping[str, Tracker],
    run_dir: Path,
    answer: TrackedAnswer | None = None,
) -> None:
    """Brings trackers up to the database: every ended trial that one lacks, and the answer.

    Takes a minute at most for each tracker, and says which may lack something.
    """
    if not trackers:
        return
    study = track_study(stored, run_dir)
    trials = [track_trial(t, stored, study) for t in stored.trials() if t.state.is_finished()]
    feeds = []
    for name, tracker in trackers.items():
        feed = Feed(name)
        feed.put(partial(_write_missing, tracker, study, trials))
        if answer is not None:
            feed.put(partial(tracker.write_answer, answer))
        feeds.append(feed)
    for feed in feeds:
        feed.close(COMMAND_WAITS)


def _write_missing(tracker: Tracker, study: TrackedStudy, trials: Sequence[TrackedTrial]) -> None:
    written = tracker.written(study) if isinstance(tracker, Listing) else ()
    refused: Exception | None = None
    for trial in trials:
        if trial.number not in written:
            try:
                tracker.write_trial(trial)
            except Exception as error:
                refused = error
    if refused is not None:
        raise refused


def track_study(stored: StoredStudy, run_dir: Path) -> TrackedStudy:
    """Returns a study as trackers are given it.

    Raises:
        StorageError: its uuid is none, which would name files and be put into queries.
    """
    goals = {goal.name: goal.direction for goal in stored.goals}
    uuid = str(stored.optuna.user_attrs.get(UUID, ""))
    if not re.fullmatch("[0-9a-f]{32}", uuid):
        raise StorageError(
            f"the study {stored.name!r}: its attribute {UUID!r} in the database must be 32 "
            f"hexadecimal digits, not {shorten(uuid, 80)!r}; studyloom did not write that; run it "
            "without trackers (track=[]), or ask its question anew in another run_dir"
        )
    return TrackedStudy(stored.name, uuid, goals, run_dir.absolute())


def track_trial(trial: FrozenTrial, stored: StoredStudy, study: TrackedStudy) -> TrackedTrial:
    """Returns a trial that has ended as trackers are given it."""
    attributes = trial.user_attrs
    values = dict(zip([goal.name for goal in stored.goals], trial.values or (), strict=False))
    for name in (*COSTS, STANDARD_ERROR):
        if isinstance(value := attributes.get(name), int | float):
            values[name] = float(value)
    begun, ended = trial.datetime_start, trial.datetime_complete
    return TrackedTrial(
        study,
        trial.number,
        outcome(trial),
        dict(trial.params),
        values,
        {name: mask_passwords(str(attributes[name])) for name in FACTS if name in attributes},
        [*curve(trial, stored.metric)],
        0.0 if begun is None else begun.timestamp(),
        0.0 if ended is None else ended.timestamp(),
    )


def curve(trial: FrozenTrial, metric: str) -> Iterator[Point]:
    """Yields the curves of a trial: of the metric, and of all that its epochs measured.

    Their time is spread over the trial by the seconds of each epoch, since none is stored.
    """
    at = (trial.datetime_start or datetime.now()).timestamp()
    columns: Mapping[str, Sequence[Any]] = trial.user_attrs.get(EPOCHS) or {}
    if not columns:
        for step, value in sorted(trial.intermediate_values.items()):
            yield Point(step, metric, value, at + step / 1000)
        return
    names = {"value": metric} | {name: name for name in columns if name not in COLUMNS}
    seconds = columns.get("seconds") or ()
    for position, number in enumerate(columns.get("number", ())):
        at += seconds[position] if position < len(seconds) else 0.0
        for column, name in names.items():
            values = columns.get(column, ())
            if position < len(values) and isinstance(value := values[position], int | float):
                yield Point(int(number), name, float(value), at)
