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
WORKER_WAITS = 30.0  # seconds at the end of a worker for what its trackers still have to write
PATIENCE = 300.0  # the same at the end of a command, for each tracker that gives no `patience`
UNSEEN = 2.0  # seconds of it that need no word
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
    points: Sequence[CurvePoint]
    started: float
    ended: float


@dataclass(frozen=True)
class TrackedResult:
    """Describes the result of a study to trackers.

    Attributes:
        trial: the number of the winner, or of the best trial without one; None if none is complete.
        values: by name: `trials.complete`, `search.accuracy`, `reevaluation.mean`, `test.mean`, …
        files: of the result and its report, by name: winner.yaml, winner.pt, report.html, …
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
        seconds: object = tracker.patience  # which a section may give
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
        name: of the key that configures it, such as track.mlflow.
        then: the end of the line of what is refused.
    """

    def __init__(self, name: str, then: str = "; the study continues") -> None:
        self.name, self.then = name, then
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._refused = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, write: Callable[[], None]) -> None:
        self._queue.put(write)

    def close(self, seconds: float) -> bool:
        """Waits until all was tried, but no longer than `seconds`; returns whether it was."""
        self._queue.put(None)
        self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (write := self._queue.get()) is not None:
            try:
                write()
            except Exception as error:
                if not self._refused:
                    words = one_line(mask_passwords(error_text(error))) or type(error).__name__
                    log.warning("%s: %s%s", self.name, shorten(words, 300), self.then)
                self._refused = True


class Tracking(TrialCallback):
    """Writes the trials of a study to its trackers, and its result at the end of a command.

    Args:
        trackers: by the name of their section.
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
        result = track_result(stored, self.run_dir) if ended else None
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
    trials = [track_trial(t, stored, study) for t in stored.trials() if t.state.is_finished()]
    began, feeds = time.monotonic(), []
    for name, tracker in trackers.items():
        missing: list[TrackedTrial | TrackedResult] = [*trials, *filter(None, [result])]
        feed = Feed(f"track.{name}", "")
        feed.put(partial(_write, tracker, study, missing))
        feeds.append((feed, missing, tracker.patience))
    for feed, missing, patience in feeds:
        if not feed.close(min(UNSEEN, patience)) and missing:
            most = f"waiting {patience:g} s at most ({feed.name}.patience)"
            lacks = _in_words(missing, len(trials))
            log.warning("%s: %s, since it may lack %s", feed.name, most, lacks)
            feed.close(began + patience - time.monotonic())
        if missing:
            lacks = _in_words(missing, len(trials))
            log.warning("%s: may lack %s; the same command writes it", feed.name, lacks)


def _write(
    tracker: Tracker, study: TrackedStudy, missing: list[TrackedTrial | TrackedResult]
) -> None:
    """Writes what is missing, and removes from the list what the tracker has."""
    written = tracker.written(study)
    refused: Exception | None = None
    for each in [*missing]:
        try:
            if isinstance(each, TrackedResult):
                tracker.write_result(each)
            elif each.number not in written:
                tracker.write_trial(each)
            missing.remove(each)
        except Exception as error:
            refused = error
    if refused is not None:
        raise refused


def _in_words(missing: Sequence[TrackedTrial | TrackedResult], of: int) -> str:
    """Names what is missing: `3 of 10 trials and the result`."""
    trials = sum(isinstance(each, TrackedTrial) for each in [*missing])
    return " and ".join(
        [f"{trials} of {of} trials"] * (trials > 0) + ["the result"] * (len(missing) > trials)
    )


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
    values = dict(
        zip([objective.name for objective in stored.objectives], trial.values or (), strict=False)
    )
    for name in (*stored.cost_names, STANDARD_ERROR):
        if isinstance(value := trial.user_attrs.get(name), int | float):
            values[name] = float(value)
    begun, ended = trial.datetime_start, trial.datetime_complete
    baseline = record.is_baseline or None
    facts = {"worker": record.worker, "baseline": baseline, "failure": record.failure}
    facts["reason"] = record.error
    return TrackedTrial(
        study=study,
        number=trial.number,
        state=record.outcome,
        params=dict(trial.params),
        values=values,
        facts={name: mask_passwords(str(fact)) for name, fact in facts.items() if fact is not None},
        points=[*curve(trial, stored.metric)],
        started=0.0 if begun is None else begun.timestamp(),
        ended=0.0 if ended is None else ended.timestamp(),
    )


def curve(trial: FrozenTrial, metric: str) -> Iterator[CurvePoint]:
    """Yields the curves of a trial: of the metric, and of all that its epochs measured.

    Their time is spread over the trial by the seconds of each epoch, since none is stored.
    """
    at = (trial.datetime_start or datetime.now()).timestamp()
    for epoch in TrialRecord(trial).epochs():
        at += epoch.get("seconds", 0.001)
        for column, value in epoch.items():
            name = metric if column == "value" else column
            if (column == "value" or column not in COLUMNS) and isinstance(value, int | float):
                yield CurvePoint(int(epoch["number"]), name, float(value), at)


def track_result(stored: StoredStudy, run_dir: Path) -> TrackedResult:
    """Makes the description of a result: of the winner, or of the best trial without one."""
    study, trials = track_study(stored, run_dir), stored.trials()
    counts = Counter(TrialRecord(trial).outcome for trial in trials)
    values = {f"trials.{state}": float(count) for state, count in sorted(counts.items())}
    names: tuple[str, ...] = FILES
    number: int | None = None
    written = Result.read(run_dir, stored)
    if written is not None:
        number, test = written.winner.trial, written.test
        found = {
            "reevaluation.mean": written.winner.mean,
            "test.mean": test.winner.mean if test else None,
            "test.baseline": test.baseline.mean if test and test.baseline else None,
        }
    else:
        names = ("best.yaml", "report.html")
        best = next(iter(stored.ranked()), None)
        number, found = None if best is None else best.number, {}
    chosen = next((trial for trial in trials if trial.number == number), None)
    for objective, value in zip(stored.objectives, (chosen and chosen.values) or (), strict=False):
        values[f"search.{objective.name}"] = value
    values |= {name: float(value) for name, value in found.items() if value is not None}
    paths = {name: study.run_dir / name for name in names if (study.run_dir / name).is_file()}
    params = dict(written.winner.params if written else chosen.params if chosen else {})
    return TrackedResult(study, number, params, values, paths)
