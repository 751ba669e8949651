"""What trackers are told of a stored study: its trials, as they are in the database."""

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.errors import StorageError
from studyloom.extras.trackers import Ending, Feed, Point, Recalling, TrackedStudy, TrackedTrial
from studyloom.metrics import COSTS
from studyloom.question.objective import Step
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
from studyloom.text import mask_passwords, shorten

FLUSH = 2.0  # seconds that a worker which is asked to stop waits for its trackers
FACTS = (WORKER, BASELINE, FAILURE, REASON)
log = logging.getLogger(__name__)


class Tracking:
    """Tells trackers how the trials of a worker go, one after the other. A context.

    Nothing here waits, except for `flush`, and the end of the body for what is not told yet.

    Args:
        trackers: by name; none for none.
        stored: the study.
        run_dir: of the study.
    """

    def __init__(
        self,
        trackers: Mapping[str, Recalling] = MappingProxyType({}),
        stored: StoredStudy | None = None,
        run_dir: Path = Path(),
    ) -> None:
        self._trackers, self._run_dir = trackers, run_dir
        self._stored = stored if trackers else None
        self._feeds: list[Feed] = []
        self._study: TrackedStudy  # set with the feeds
        self._trial: TrackedTrial | None = None  # that is under way
        self._told = True  # whether its epochs are told as they come

    def __enter__(self) -> "Tracking":
        if self._stored is not None:
            self._study = tracked_study(self._stored, self._run_dir)
            self._feeds = [
                Feed(name, tracker, self._run_dir) for name, tracker in self._trackers.items()
            ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, __: TracebackType | None
    ) -> None:
        close(self._feeds)
        self._feeds = []

    def begin(self, trial: FrozenTrial, stride: int, lease: float, *, new: bool) -> None:
        """Begins a trial, or goes on with one.

        Args:
            trial: as it is in the database.
            stride: of its objective. With another than 1 the numbers of an epoch are a mean over
                jobs that have not all been trained, so that they are told at the end.
            lease: seconds for which nobody else can have the trial.
            new: whether nobody had it before.
        """
        if self._stored is None:
            return
        self._trial, self._told = tracked_trial(trial, self._study), stride == 1
        points = curve(trial, self._stored.metric) if self._told else []
        for feed in self._feeds:
            feed.begin(self._trial, points, lease, new=new)

    def report(self, step: Step, lease: float) -> None:
        """Tells a report that is in the database; `lease` is as for `begin`."""
        if self._stored is None or self._trial is None or not self._told:
            return
        number, now = int(getattr(step, "step", step.number)), time.time()
        values = {self._stored.metric: step.value, **measured(step)}
        points = [Point(number, name, float(value), now) for name, value in values.items()]
        for feed in self._feeds:
            feed.report(self._trial, points, lease)

    def end(self, trial: FrozenTrial) -> None:
        """Ends a trial that has ended in the database."""
        if self._stored is None:
            return
        self._trial = None
        for feed in self._feeds:
            feed.end(ending(trial, self._stored, self._study))

    def leave(self) -> None:
        """Forgets the trial under way, which somebody else may go on with, and tell the rest."""
        if self._trial is not None:
            for feed in self._feeds:
                feed.leave(self._trial.number)
        self._trial = None

    def flush(self) -> None:
        """Waits a little for what is not told yet, as before a trial is released."""
        end = time.monotonic() + FLUSH
        for feed in self._feeds:
            feed.flush(max(0.0, end - time.monotonic()))


def close(feeds: Sequence[Feed]) -> None:
    """Ends feeds, and says what is missing in a tracker."""
    for feed in feeds:
        if left := feed.close():
            words = f"of {left} trial{'s' if left > 1 else ''} it may not have all yet"
            log.warning("track.%s: %s; the same command tells the rest", feed.name, words)


def tracked_study(stored: StoredStudy, run_dir: Path) -> TrackedStudy:
    """Returns what trackers are told of a study.

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


def tracked_trial(trial: FrozenTrial, study: TrackedStudy) -> TrackedTrial:
    """Returns what trackers are told of a trial."""
    attributes = trial.user_attrs
    facts = {name: mask_passwords(str(attributes[name])) for name in FACTS if name in attributes}
    begun, ended = trial.datetime_start, trial.datetime_complete
    started = 0.0 if begun is None else begun.timestamp()
    over = None if ended is None else ended.timestamp()
    return TrackedTrial(study, trial.number, dict(trial.params), facts, started, over)


def endings(stored: StoredStudy, study: TrackedStudy) -> list[Ending]:
    """Returns what trackers are told of the trials of a study that have ended."""
    return [ending(t, stored, study) for t in stored.trials() if t.state.is_finished()]


def ending(trial: FrozenTrial, stored: StoredStudy, study: TrackedStudy) -> Ending:
    """Returns what trackers are told of a trial that has ended."""
    names = [goal.name for goal in stored.goals]
    values = dict(zip(names, trial.values or (), strict=False))
    attributes = {name: trial.user_attrs.get(name) for name in (*COSTS, STANDARD_ERROR)}
    values |= {
        name: float(value) for name, value in attributes.items() if isinstance(value, int | float)
    }
    points = curve(trial, stored.metric)
    return Ending(tracked_trial(trial, study), points, outcome(trial), values)


def curve(trial: FrozenTrial, metric: str) -> list[Point]:
    """Returns the curves of a trial as points: of the metric, and of all that it measured.

    Their time is spread over the trial by the seconds of each epoch, since none is stored.

    Args:
        trial: as it is in the database; of one that runs there are the reports alone.
        metric: the name of its value.
    """
    return [*_points(trial, metric)]


def _points(trial: FrozenTrial, metric: str) -> Iterator[Point]:
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


def measured(step: Step) -> Mapping[str, float]:
    """Returns what was measured in a step beside its value: of networks losses, of a loop its own.

    These are the columns of its learning curve, so that a tracker gets them once.
    """
    further: Mapping[str, float] | None = getattr(step, "further", None)
    if further is not None:
        return further
    losses = {name: getattr(step, name, None) for name in ("train_loss", "valid_loss")}
    return {name: value for name, value in losses.items() if value is not None}
