"""Writes the trials and the result in the database to trackers.

A trial that has ended is written to each tracker as a run of a fixed id, from what is stored. The
worker that ran it does this in a thread, so training never waits; the command does it at its end
for every trial that a tracker lacks, since a worker may have been killed or the tracker away. A
trial is written at least once; a second write reaches the same run.

While a trial runs, the thread also writes the reports that the worker has committed, so that the
tracker shows its curve.
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
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial, TrialState

from studyloom.config.build import build
from studyloom.config.values import describe_error
from studyloom.errors import ConfigError, StorageError, raise_if_any
from studyloom.installation import pip_install
from studyloom.storage.attributes import COLUMNS, STANDARD_ERROR, UUID
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import error_text, mask_passwords, one_line, shorten
from studyloom.winner.result import Result
from studyloom.worker.callbacks import TrialCallback

# The files of a result that a tracker may want, in the order in which they are shown.
RESULT_FILES = (
    "winner.yaml",
    "winner.json",
    "winner.pt",
    "model_card.md",
    "best.yaml",
    "report.html",
)
FILES_WITHOUT_WINNER = ("best.yaml", "report.html")
WORKER_PATIENCE = 30.0  # seconds that a worker waits for each of its trackers at its end
PATIENCE = 300.0  # seconds that a command waits at its end for a tracker that sets no `patience`
LIVE_INTERVAL = 5.0  # seconds between two writes of a trial that runs, and before the first one
SILENT_WAIT = 2.0  # seconds that a command waits before a message says so
EPOCH = "epoch"  # the name under which trackers get the epoch of numbers
UNKNOWN_EPOCH_SECONDS = 0.001  # a short time, so that the points of a curve stay in order
MAX_REASON_LENGTH = 300  # characters of an error in the log
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


def group_by_epoch(points: Sequence[CurvePoint]) -> Iterator[tuple[int, dict[str, object]]]:
    """Yields each epoch of learning curves with its numbers by name, the epoch itself among them.

    Args:
        points: the points in the order of their epochs.
    """
    for epoch, points_of_epoch in groupby(points, attrgetter("epoch")):
        numbers: dict[str, object] = {EPOCH: epoch}
        for point in points_of_epoch:
            numbers[one_line(point.name)] = point.value
        yield epoch, numbers


def plain_value(value: object) -> int | float | bool | str | None:
    """Returns a value of a hyperparameter as JSON can hold it."""
    if isinstance(value, int | float | bool | None):
        return value
    return one_line(str(value))


@dataclass(frozen=True)
class TrackedTrial:
    """Describes a trial to trackers, which has ended or runs.

    Attributes:
        state: complete, pruned, failed or running.
        params: by their path, such as optimizer.lr.
        values: by name: the metric, its standard error, and the costs of the network.
        facts: worker, baseline, failure and reason, where they are known.
        points: the learning curves; while the trial runs, only that of the metric.
        started: seconds since the epoch, as is `ended`.
        ended: 0 while it runs.
    """

    study: TrackedStudy
    number: int
    state: str
    params: Mapping[str, object]
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
    params: Mapping[str, object]
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

    def write_running(self, trial: TrackedTrial) -> None:  # noqa: B027 - not every tracker has it
        """Writes the curve of a trial that runs, with the points of earlier calls and new ones.

        The same process or, after a kill, another one calls it again for the trial: each point must
        then be there once. `write_trial` follows when the trial has ended. A tracker that does not
        override it shows only trials that have ended.
        """

    def written(self, study: TrackedStudy) -> Collection[int]:
        """Returns the numbers of the trials of which it has the whole run, as far as it knows.

        A command writes all others at its end.
        """
        return ()


def build_trackers(section: Any) -> dict[str, Tracker]:
    """Builds the trackers of the section `track`, by the user's names for them.

    They connect to their servers only when something is written.

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
        try:
            trackers[str(name)] = _build_tracker(f"track.{name}", settings)
        except ConfigError as error:
            errors += error.errors
    raise_if_any(errors)
    return trackers


def _build_tracker(key: str, settings: Any) -> Tracker:
    """Builds the tracker of one section.

    Args:
        key: the key of the section, such as track.mlflow.
        settings: the section, with `_target_` and the arguments of the tracker's class.

    Raises:
        ConfigError: an error in the section.
    """
    if not hasattr(settings, "items"):
        raise ConfigError(f"{key} must be a section with a _target_, not {settings!r}")
    try:
        tracker = build(settings, key)
    except ConfigError:
        raise
    except Exception as error:  # whatever a user's class raises, and a missing method
        raise ConfigError(f"{key}: {describe_error(error)}") from None
    if not isinstance(tracker, Tracker):
        raise ConfigError(
            f"{key}: a tracker is a subclass of studyloom.extras.trackers.Tracker; "
            f"{type(tracker).__name__} is not"
        )
    patience: object = tracker.patience  # a section may set it to any value
    is_valid = isinstance(patience, int | float) and 0 < patience < threading.TIMEOUT_MAX
    if not is_valid:
        raise ConfigError(f"{key}.patience must be a positive number of seconds, not {patience!r}")
    return tracker


class Feed:
    """Makes the calls that write to one slow target, such as a tracker, in a thread and in order.

    The first call that fails is logged; later ones are made nevertheless. If a tracker fails in a
    worker, the command writes what it lacks at its end.

    Args:
        name: the key that configures it, such as track.mlflow.
        ending_of_warning: the end of the message about the first error.
    """

    def __init__(self, name: str, ending_of_warning: str = "; the study continues") -> None:
        self.name = name
        self.ending_of_warning = ending_of_warning
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
            True if all calls were made.
        """
        self._queue.put(None)  # ends the thread
        self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    def _run(self) -> None:
        """Makes the calls, in the thread, until the queue holds None."""
        while True:
            write = self._queue.get()
            if write is None:
                return
            try:
                write()
            except Exception as error:
                if not self._has_failed:
                    self._log_failure(error)
                self._has_failed = True

    def _log_failure(self, error: Exception) -> None:
        """Logs a warning in one line, without passwords."""
        reason = one_line(mask_passwords(error_text(error))) or type(error).__name__
        short_reason = shorten(reason, MAX_REASON_LENGTH)
        log.warning("%s: %s%s", self.name, short_reason, self.ending_of_warning)


class Tracking(TrialCallback):
    """Writes the trials of a study to its trackers, and its result at the end of a command.

    Args:
        trackers: the trackers by the name of their section.
    """

    def __init__(self, trackers: Mapping[str, Tracker], run_dir: Path) -> None:
        self.trackers = trackers
        self.run_dir = run_dir
        self._feeds: dict[str, Feed] = {}  # of this process, from its first trial on
        self._running: _RunningTrial | None = None  # the trial of this process

    def __call__(self, stored: StoredStudy, trial: FrozenTrial) -> None:
        """Has a thread for each tracker write a trial that has ended."""
        self._leave_running_trial()
        tracked_study = describe_study(stored, self.run_dir)
        tracked_trial = describe_trial(trial, stored, tracked_study)
        for name, tracker in self.trackers.items():
            self._feed(name).put(partial(tracker.write_trial, tracked_trial))

    def report(self, stored: StoredStudy, trial_id: int) -> None:
        """Has a thread for each tracker write the committed reports of a trial that runs.

        The thread first waits until the last write is LIVE_INTERVAL old. A tracker for which a
        write of the trial already waits gets no second one: that write has this report too.
        """
        running = self._running
        if running is None or running.trial_id != trial_id:
            self._leave_running_trial()
            study = describe_study(stored, self.run_dir)
            running = _RunningTrial(stored, study, trial_id)
            self._running = running
        for name, tracker in self.trackers.items():
            if name not in running.waiting:
                running.waiting.add(name)
                self._feed(name).put(partial(running.write, name, tracker))

    def _leave_running_trial(self) -> None:
        """Ends the writes of the trial that this process has run: it has ended, or was left."""
        if self._running is not None:
            self._running.is_left.set()
        self._running = None

    def _feed(self, name: str) -> Feed:
        """Returns the thread of a tracker, which is started if this process has none yet."""
        if name not in self._feeds:
            self._feeds[name] = Feed(f"track.{name}")
        return self._feeds[name]

    def close(self) -> None:
        self._leave_running_trial()
        for feed in self._feeds.values():
            feed.close(WORKER_PATIENCE)
        self._feeds.clear()

    def finish(self, stored: StoredStudy, *, ended: bool) -> None:
        """Writes to the trackers what they lack, with the result if the study has ended."""
        result = None
        if ended:
            result = describe_result(stored, self.run_dir)
        write_missing(stored, self.trackers, self.run_dir, result)


class _RunningTrial:
    """The trial that this process runs, of which the threads of trackers write the reports.

    Attributes:
        trial_id: the id of the trial in Optuna's tables.
        waiting: the names of the trackers for which a write waits in their thread.
        is_left: set once the process has ended or left the trial. Nothing more is written then.
    """

    def __init__(self, stored: StoredStudy, study: TrackedStudy, trial_id: int) -> None:
        self.trial_id = trial_id
        self.waiting: set[str] = set()
        self.is_left = threading.Event()
        self._stored = stored
        self._study = study
        # When each tracker was written last; before its first write, when the trial reported first.
        self._last_writes: dict[str, float] = {}
        self._first_report = time.monotonic()

    def write(self, name: str, tracker: Tracker) -> None:
        """Writes the trial to a tracker, from the database, once LIVE_INTERVAL has passed."""
        due = self._last_writes.get(name, self._first_report) + LIVE_INTERVAL
        was_left = self.is_left.wait(max(0.0, due - time.monotonic()))
        self.waiting.discard(name)  # before the read: a later report needs another write
        if was_left:
            return
        try:
            trial = self._stored.storage.read_committed(self.trial_id)
            has_several_jobs = TrialRecord(trial).planned_jobs is not None
            # Reports of several jobs, such as folds, are no points of the curve of epochs.
            if trial.state == TrialState.RUNNING and not has_several_jobs:
                tracker.write_running(describe_trial(trial, self._stored, self._study))
        finally:
            self._last_writes[name] = time.monotonic()


def make_tracking(section: Any, run_dir: Path) -> Tracking:
    """Makes the callback of the section `track`; see `build_trackers`."""
    return Tracking(build_trackers(section), run_dir)


def write_missing(
    stored: StoredStudy,
    trackers: Mapping[str, Tracker],
    run_dir: Path,
    result: TrackedResult | None = None,
) -> None:
    """Writes to each tracker every ended trial that it lacks, and the result.

    A thread for each tracker first asks which trials the tracker has, and leaves these out. The
    result is written at every call. Waits for each tracker up to its patience, and logs what a
    tracker may lack at the end.
    """
    study = describe_study(stored, run_dir)
    trials = []
    for trial in stored.trials():
        if trial.state.is_finished():
            trials.append(describe_trial(trial, stored, study))

    # All trackers are written at the same time, each by a thread, and then awaited one by one.
    began = time.monotonic()
    writings = []
    for name, tracker in trackers.items():
        items: list[TrackedTrial | TrackedResult] = [*trials]
        if result is not None:
            items.append(result)
        feed = Feed(f"track.{name}", ending_of_warning="")  # here no study continues
        feed.put(partial(_write_items, tracker, study, items))
        writings.append(_Writing(feed, unwritten=items, patience=tracker.patience))
    for writing in writings:
        _await_writing(writing, began, total=len(trials))


@dataclass(frozen=True)
class _Writing:
    """The writing to one tracker at the end of a command.

    Args:
        feed: the thread that writes.
        unwritten: the items that the tracker may lack; the thread removes each one that the
            tracker has.
        patience: the seconds that the command waits for it.
    """

    feed: Feed
    unwritten: list[TrackedTrial | TrackedResult]
    patience: float


def _await_writing(writing: _Writing, began: float, total: int) -> None:
    """Waits for the writing to a tracker, and logs what the tracker may lack at the end.

    It waits silently for a short time, and then says how long it waits at most.

    Args:
        began: when the writing began, as `time.monotonic` says.
        total: the number of trials of the study.
    """
    feed = writing.feed
    patience = writing.patience
    # `close` waits until all is written, or this time has passed; it may be called again.
    is_complete = feed.close(min(SILENT_WAIT, patience))
    if not is_complete and writing.unwritten:
        limit = f"waiting {patience:g} s at most ({feed.name}.patience)"
        items = _count_items(writing.unwritten, total)
        log.warning("%s: %s, since it may lack %s", feed.name, limit, items)
        end = began + patience
        feed.close(end - time.monotonic())
    if writing.unwritten:
        items = _count_items(writing.unwritten, total)
        log.warning("%s: may lack %s; the same command writes it", feed.name, items)


def _write_items(
    tracker: Tracker, study: TrackedStudy, items: list[TrackedTrial | TrackedResult]
) -> None:
    """Writes the items that a tracker lacks, and removes each one from the list once it has it.

    An item that cannot be written does not keep the others from being written: the last error is
    raised at the end.
    """
    written_trials = tracker.written(study)
    last_error: Exception | None = None
    for item in [*items]:  # a copy, since the loop removes items
        try:
            if isinstance(item, TrackedResult):
                tracker.write_result(item)
            elif item.number not in written_trials:
                tracker.write_trial(item)
            items.remove(item)
        except Exception as error:
            last_error = error
    if last_error is not None:
        raise last_error


def _count_items(items: Sequence[TrackedTrial | TrackedResult], total: int) -> str:
    """Counts the items that a tracker may lack, in words: `3 of 10 trials and the result`.

    Args:
        total: the number of trials of the study.
    """
    items = [*items]  # a copy, since a thread may remove items meanwhile
    trial_count = sum(isinstance(item, TrackedTrial) for item in items)
    parts = []
    if trial_count > 0:
        parts.append(f"{trial_count} of {total} trials")
    if len(items) > trial_count:
        parts.append("the result")
    return " and ".join(parts)


def describe_study(stored: StoredStudy, run_dir: Path) -> TrackedStudy:
    """Makes the description of a study for trackers.

    Raises:
        StorageError: the uuid in the database is no hexadecimal number. Somebody else may have
            written it there, and trackers name files by it and put it into queries.
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


def describe_trial(trial: FrozenTrial, stored: StoredStudy, study: TrackedStudy) -> TrackedTrial:
    """Makes the description of a trial for trackers."""
    record = TrialRecord(trial)
    if trial.state.is_finished():
        state = record.outcome
        points = [*curve_points(trial, stored.metric)]
    else:
        state = "running"
        points = [*_report_points(trial, stored.metric)]
    values = {}
    # A trial that has failed has no values.
    for objective, value in zip(stored.objectives, trial.values or (), strict=False):
        values[objective.name] = value
    for name in (*stored.cost_names, STANDARD_ERROR):
        number = trial.user_attrs.get(name)
        if isinstance(number, int | float):
            values[name] = float(number)
    possible_facts = {
        "worker": record.worker,
        "baseline": record.is_baseline or None,
        "failure": record.failure,
        "reason": record.error,
    }
    facts = {}
    for name, fact in possible_facts.items():
        if fact is not None:
            facts[name] = mask_passwords(str(fact))
    return TrackedTrial(
        study=study,
        number=trial.number,
        state=state,
        params=dict(trial.params),
        values=values,
        facts=facts,
        points=points,
        started=_to_seconds(trial.datetime_start),
        ended=_to_seconds(trial.datetime_complete),
    )


def _to_seconds(moment: datetime | None) -> float:
    """Returns the seconds since the epoch; 0 for a time that is not stored."""
    if moment is None:
        return 0.0
    return moment.timestamp()


def curve_points(trial: FrozenTrial, metric: str) -> Iterator[CurvePoint]:
    """Yields the points of the curves of a trial: the metric, and other quantities of its epochs.

    The time of an epoch is not stored. It is computed: the start of the trial, and the seconds of
    all epochs until then.
    """
    start = trial.datetime_start or datetime.now()
    time_of_epoch = start.timestamp()
    for epoch in TrialRecord(trial).epochs():
        time_of_epoch += epoch.get("seconds", UNKNOWN_EPOCH_SECONDS)
        number = int(epoch["number"])
        for column, value in epoch.items():
            if column == "value":
                name = metric
            elif column not in COLUMNS:
                name = column  # a quantity that the user reports
            else:
                continue
            if isinstance(value, int | float):
                yield CurvePoint(number, name, float(value), time_of_epoch)


def _report_points(trial: FrozenTrial, metric: str) -> Iterator[CurvePoint]:
    """Yields the reports of the metric of a trial that runs, which are stored at once.

    Its other quantities are stored at the end. The time of a report is not stored; it is now.
    """
    now = time.time()
    for step, value in sorted(trial.intermediate_values.items()):
        yield CurvePoint(step, metric, value, now)


def describe_result(stored: StoredStudy, run_dir: Path) -> TrackedResult:
    """Makes the description of a result: of the winner, or of the best trial without one."""
    study = describe_study(stored, run_dir)
    trials = stored.trials()
    result = Result.read(run_dir, stored)
    shown_number = _find_shown_number(stored, result)
    shown_trial = None
    for trial in trials:
        if trial.number == shown_number:
            shown_trial = trial

    params: Mapping[str, object] = {}
    if result is not None:
        params = result.winner.params
    elif shown_trial is not None:
        params = shown_trial.params

    # The values are the counts of trials by outcome, those of the search, and those of the result.
    values = _count_outcomes(trials)
    if shown_trial is not None:
        for objective, value in zip(stored.objectives, shown_trial.values or (), strict=False):
            values[f"search.{objective.name}"] = value
    if result is not None:
        values |= _collect_result_values(result)

    file_names: Sequence[str] = RESULT_FILES
    if result is None:
        file_names = FILES_WITHOUT_WINNER
    files = {}
    for name in file_names:
        path = study.run_dir / name
        if path.is_file():
            files[name] = path
    return TrackedResult(study, shown_number, dict(params), values, files)


def _count_outcomes(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Counts the trials by outcome, for a tracker: {"trials.complete": 20.0, …}."""
    counts = Counter(TrialRecord(trial).outcome for trial in trials)
    values = {}
    for outcome, count in sorted(counts.items()):
        values[f"trials.{outcome}"] = float(count)
    return values


def _find_shown_number(stored: StoredStudy, result: Result | None) -> int | None:
    """Returns the number of the winner, or of the best trial without one; None without either."""
    if result is not None:
        return result.winner.trial
    ranked = stored.ranked()
    if not ranked:
        return None
    return ranked[0].number


def _collect_result_values(result: Result) -> dict[str, float]:
    """Returns the means of the re-evaluation and of the test, as far as there are any."""
    means = {"reevaluation.mean": result.winner.mean}
    if result.test is not None:
        means["test.mean"] = result.test.winner.mean
        if result.test.baseline is not None:
            means["test.baseline"] = result.test.baseline.mean
    return {name: float(mean) for name, mean in means.items() if mean is not None}
