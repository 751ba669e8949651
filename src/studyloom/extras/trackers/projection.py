"""Writes the trials and the result in the database to trackers.

A trial that has ended is written to each tracker as a run of a fixed id, from what is stored. The
worker that ran it does this in a thread, so training never waits; the command does it at its end
for every trial that a tracker lacks, since a worker may have been killed or the tracker away. A
trial is written at least once; a second write reaches the same run.
"""

import importlib.util
import logging
import re
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial

from studyloom.config.build import build
from studyloom.config.values import describe_error
from studyloom.errors import ConfigError, StorageError, refuse
from studyloom.installation import pip_install
from studyloom.storage.attributes import COLUMNS, STANDARD_ERROR, UUID
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import error_text, mask_passwords, one_line, shorten
from studyloom.winner.result import Result
from studyloom.worker.callbacks import TrialCallback

# The files of a result that a tracker may want, in the order in which they are shown.
FILES = ("winner.yaml", "winner.json", "winner.pt", "model_card.md", "best.yaml", "report.html")
WORKER_WAITS = 30.0  # seconds that a worker waits for its trackers at its end
PATIENCE = 300.0  # seconds that a command waits at its end for a tracker that sets no `patience`
UNSEEN = 2.0  # seconds of these after which a message says that the command waits
log = logging.getLogger(__name__)


def require(package: str) -> None:
    """Checks that the package of a tracker is installed, without importing it.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"track={package}: needs the package {package}: {pip_install(package)}")


@dataclass(frozen=True)
class TrackedStudy:
    """Describes a study to trackers.

    Attributes:
        uuid: 32 hexadecimal digits; another study of the same name has others.
        objectives: maximize or minimize, by the name of each value of a trial.
    """

    name: str
    uuid: str
    objectives: Mapping[str, str]
    run_dir: Path


class CurvePoint(NamedTuple):
    """A number of a learning curve; its time is in seconds since the epoch."""

    epoch: int
    name: str
    value: float
    time: float


@dataclass(frozen=True)
class TrackedTrial:
    """Describes a trial that has ended to trackers.

    Attributes:
        state: complete, pruned or failed.
        params: by their path, such as optimizer.lr.
        values: by name: the metric, its standard error, and the costs of the network.
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
    points: Sequence[CurvePoint]
    started: float
    ended: float


@dataclass(frozen=True)
class TrackedResult:
    """Describes the result of a study to trackers.

    Attributes:
        trial: the number of the winner, or of the best trial without one; None if none is complete.
        values: by name: `trials.complete`, `search.accuracy`, `reevaluation.mean`, `test.mean`, …
        files: the files of the result and its report, by name: winner.yaml, winner.pt, …
    """

    study: TrackedStudy
    trial: int | None
    params: Mapping[str, Any]
    values: Mapping[str, float]
    files: Mapping[str, Path]


class Tracker(ABC):
    """A tracker, of a section of `track`; a custom one is a subclass.

    Its methods are called from a thread, and may raise.

    Attributes:
        patience: the seconds that a command waits for it at its end.
    """

    patience: float = PATIENCE

    @abstractmethod
    def write_trial(self, trial: TrackedTrial) -> None:
        """Writes the run of a trial; a second write leaves the same content."""

    @abstractmethod
    def write_result(self, result: TrackedResult) -> None:
        """Writes the result of a study, instead of an earlier one."""

    def written(self, study: TrackedStudy) -> Collection[int]:
        """Returns the numbers of the trials of which it has the whole run, as far as it knows.

        A command writes all others at its end.
        """
        return ()


def build_trackers(section: Any) -> dict[str, Tracker]:
    """Builds the trackers of the section `track`, by the user's names for them; connects to none.

    Raises:
        ConfigError: all errors in it.
    """
    if not hasattr(section, "items"):
        raise ConfigError(
            f"track must be a mapping of trackers, not {section!r}; on a command line, or "
            "among the defaults, they are chosen by a list: track=[tensorboard,mlflow]"
        )
    trackers: dict[str, Tracker] = {}
    errors: list[str] = []
    for name, settings in section.items():
        if settings is None or not hasattr(settings, "items"):
            errors.append(f"track.{name} must be a section with a _target_, not {settings!r}")
            continue
        try:
            tracker = build(settings, f"track.{name}")
        except ConfigError as error:
            errors += error.errors
            continue
        except Exception as error:  # whatever a user's class raises, and a missing method
            errors.append(f"track.{name}: {describe_error(error)}")
            continue
        if not isinstance(tracker, Tracker):
            errors.append(
                f"track.{name}: a tracker is a subclass of studyloom.extras.trackers.Tracker; "
                f"{type(tracker).__name__} is not"
            )
            continue
        seconds: object = tracker.patience  # a section may set it to any value
        if not (isinstance(seconds, int | float) and 0 < seconds < threading.TIMEOUT_MAX):
            errors.append(
                f"track.{name}.patience must be a positive number of seconds, not {seconds!r}"
            )
        trackers[str(name)] = tracker
    refuse(errors)
    return trackers


class Feed:
    """Writes to one tracker, or another slow target, in order, in a thread, without blocking.

    If a tracker fails in a worker, the command writes the rest at its end.

    Args:
        name: the key that configures it, such as track.mlflow.
        ending: the end of the message about the first error.
    """

    def __init__(self, name: str, ending: str = "; the study continues") -> None:
        self.name = name
        self.ending = ending
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, write: Callable[[], None]) -> None:
        """Adds a call that writes something; it is made after the earlier ones."""
        self._queue.put(write)

    def close(self, seconds: float) -> bool:
        """Waits until all calls were made, but no longer than `seconds`.

        Returns:
            Whether all calls were made.
        """
        self._queue.put(None)
        self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (write := self._queue.get()) is not None:
            try:
                write()
            except Exception as error:
                if not self._has_failed:
                    reason = one_line(mask_passwords(error_text(error))) or type(error).__name__
                    log.warning("%s: %s%s", self.name, shorten(reason, 300), self.ending)
                self._has_failed = True


class Tracking(TrialCallback):
    """Writes the trials of a study to its trackers, and its result at the end of a command.

    Args:
        trackers: the trackers by the name of their section.
    """

    def __init__(self, trackers: Mapping[str, Tracker], run_dir: Path) -> None:
        self.trackers = trackers
        self.run_dir = run_dir
        self._feeds: dict[str, Feed] = {}  # of this process, from its first trial on

    def __call__(self, stored: StoredStudy, trial: FrozenTrial) -> None:
        tracked = track_trial(trial, stored, track_study(stored, self.run_dir))
        for name, tracker in self.trackers.items():
            if name not in self._feeds:
                self._feeds[name] = Feed(f"track.{name}")
            self._feeds[name].put(partial(tracker.write_trial, tracked))

    def close(self) -> None:
        for feed in self._feeds.values():
            feed.close(WORKER_WAITS)
        self._feeds.clear()

    def finish(self, stored: StoredStudy, *, ended: bool) -> None:
        """Writes to the trackers what they lack, with the result if the study has ended."""
        result = None
        if ended:
            result = track_result(stored, self.run_dir)
        project(stored, self.trackers, self.run_dir, result)


def make_tracking(section: Any, run_dir: Path) -> Tracking:
    """Makes the callback of the section `track`; see `build_trackers`."""
    return Tracking(build_trackers(section), run_dir)


def project(
    stored: StoredStudy,
    trackers: Mapping[str, Tracker],
    run_dir: Path,
    result: TrackedResult | None = None,
) -> None:
    """Writes to each tracker every ended trial that it lacks, and the result.

    Waits for each tracker up to its patience, and logs what a tracker may lack at the end.
    """
    study = track_study(stored, run_dir)
    trials = []
    for trial in stored.trials():
        if trial.state.is_finished():
            trials.append(track_trial(trial, stored, study))
    began = time.monotonic()
    writings = []
    for name, tracker in trackers.items():
        missing: list[TrackedTrial | TrackedResult] = [*trials]
        if result is not None:
            missing.append(result)
        feed = Feed(f"track.{name}", ending="")
        feed.put(partial(_write, tracker, study, missing))
        writings.append(_Writing(feed, missing, tracker.patience))
    for writing in writings:
        feed = writing.feed
        patience = writing.patience
        if not feed.close(min(UNSEEN, patience)) and writing.missing:
            most = f"waiting {patience:g} s at most ({feed.name}.patience)"
            missing_words = _describe_missing(writing.missing, len(trials))
            log.warning("%s: %s, since it may lack %s", feed.name, most, missing_words)
            feed.close(began + patience - time.monotonic())
        if writing.missing:
            missing_words = _describe_missing(writing.missing, len(trials))
            log.warning("%s: may lack %s; the same command writes it", feed.name, missing_words)


@dataclass(frozen=True)
class _Writing:
    """The writing to one tracker at the end of a command.

    Args:
        missing: the items that the tracker may lack; the thread of the feed removes each one that
            it has written.
    """

    feed: Feed
    missing: list[TrackedTrial | TrackedResult]
    patience: float


def _write(
    tracker: Tracker, study: TrackedStudy, missing: list[TrackedTrial | TrackedResult]
) -> None:
    """Writes the missing items, and removes from the list each one that the tracker has.

    An item that cannot be written does not keep the others from being written.
    """
    written = tracker.written(study)
    last_error: Exception | None = None
    for item in [*missing]:
        try:
            if isinstance(item, TrackedResult):
                tracker.write_result(item)
            elif item.number not in written:
                tracker.write_trial(item)
            missing.remove(item)
        except Exception as error:
            last_error = error
    if last_error is not None:
        raise last_error


def _describe_missing(missing: Sequence[TrackedTrial | TrackedResult], total: int) -> str:
    """Counts the missing items: `3 of 10 trials and the result`.

    Args:
        total: the number of trials of the study.
    """
    items = [*missing]  # a copy, since a thread may remove items meanwhile
    trials = sum(isinstance(item, TrackedTrial) for item in items)
    parts = []
    if trials > 0:
        parts.append(f"{trials} of {total} trials")
    if len(items) > trials:
        parts.append("the result")
    return " and ".join(parts)


def track_study(stored: StoredStudy, run_dir: Path) -> TrackedStudy:
    """Makes the description of a study for trackers.

    Raises:
        StorageError: its uuid is invalid; it would name files and be put into queries.
    """
    objectives = {objective.name: objective.direction for objective in stored.objectives}
    uuid = str(stored.ledger.uuid)
    if not re.fullmatch("[0-9a-f]{32}", uuid):
        raise StorageError(
            f"the study {stored.name!r}: its attribute {UUID!r} in the database must be 32 "
            f"hexadecimal digits, not {shorten(uuid, 80)!r}; studyloom did not write that; run it "
            "without trackers (track=[]), or start it again in another run_dir"
        )
    return TrackedStudy(stored.name, uuid, objectives, run_dir.absolute())


def track_trial(trial: FrozenTrial, stored: StoredStudy, study: TrackedStudy) -> TrackedTrial:
    """Makes the description of an ended trial for trackers."""
    record = TrialRecord(trial)
    values = {}
    for objective, value in zip(stored.objectives, trial.values or (), strict=False):
        values[objective.name] = value
    for name in (*stored.cost_names, STANDARD_ERROR):
        number = trial.user_attrs.get(name)
        if isinstance(number, int | float):
            values[name] = float(number)
    facts = {
        "worker": record.worker,
        "baseline": record.is_baseline or None,
        "failure": record.failure,
        "reason": record.error,
    }
    return TrackedTrial(
        study=study,
        number=trial.number,
        state=record.outcome,
        params=dict(trial.params),
        values=values,
        facts={name: mask_passwords(str(fact)) for name, fact in facts.items() if fact is not None},
        points=[*curve(trial, stored.metric)],
        started=_to_seconds(trial.datetime_start),
        ended=_to_seconds(trial.datetime_complete),
    )


def _to_seconds(moment: datetime | None) -> float:
    """Returns the seconds since the epoch; 0 for a time that is not stored."""
    if moment is None:
        return 0.0
    return moment.timestamp()


def curve(trial: FrozenTrial, metric: str) -> Iterator[CurvePoint]:
    """Yields the points of the curves of a trial: the metric, and other quantities of its epochs.

    The time of an epoch is not stored. It is the start of the trial and the seconds of all epochs
    until then.
    """
    time_of_epoch = (trial.datetime_start or datetime.now()).timestamp()
    for epoch in TrialRecord(trial).epochs():
        time_of_epoch += epoch.get("seconds", 0.001)
        for column, value in epoch.items():
            name = column
            if column == "value":
                name = metric
            elif column in COLUMNS:
                continue
            if isinstance(value, int | float):
                yield CurvePoint(int(epoch["number"]), name, float(value), time_of_epoch)


def track_result(stored: StoredStudy, run_dir: Path) -> TrackedResult:
    """Makes the description of a result: of the winner, or of the best trial without one."""
    study = track_study(stored, run_dir)
    trials = stored.trials()
    values: dict[str, float] = {}
    counts = Counter(TrialRecord(trial).outcome for trial in trials)
    for state, count in sorted(counts.items()):
        values[f"trials.{state}"] = float(count)
    result = Result.read(run_dir, stored)
    number: int | None = None
    if result is not None:
        number = result.winner.trial
    else:
        for best in stored.ranked()[:1]:
            number = best.number
    params: Mapping[str, Any] = {}
    for trial in trials:
        if trial.number == number:
            params = trial.params
            for objective, value in zip(stored.objectives, trial.values or (), strict=False):
                values[f"search.{objective.name}"] = value
    names: Sequence[str] = ("best.yaml", "report.html")
    if result is not None:
        names = FILES
        params = result.winner.params
        values |= _values_of_result(result)
    paths = {name: study.run_dir / name for name in names if (study.run_dir / name).is_file()}
    return TrackedResult(study, number, dict(params), values, paths)


def _values_of_result(result: Result) -> dict[str, float]:
    """Returns the means of the re-evaluation and of the test, as far as there are any."""
    means = {"reevaluation.mean": result.winner.mean}
    if result.test is not None:
        means["test.mean"] = result.test.winner.mean
        if result.test.baseline is not None:
            means["test.baseline"] = result.test.baseline.mean
    return {name: float(mean) for name, mean in means.items() if mean is not None}
