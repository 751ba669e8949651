"""Tells one tracker how trials go, from a thread, so that nobody waits for it."""

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from studyloom.errors import FileError
from studyloom.extras.trackers.locks import locked
from studyloom.extras.trackers.tracker import Answer, Point, Recalling, TrackedStudy, TrackedTrial
from studyloom.text import format_duration, mask_passwords, one_line, shorten

MOST_POINTS = 100_000  # numbers that wait for a tracker that is away: some 20 MB
MOST_TRIALS = 1_000  # trials that wait for it
LINGER = 0.5  # seconds between two looks at what has come, so that numbers go together
PAUSES = (1.0, 2.0, 5.0, 10.0)  # seconds between tries while calls fail; the last again and again
REFUSALS = 3  # after so many of one trial, while other calls succeed, it is left out
PATIENCE = 30.0  # seconds that the end of a worker waits for a call; MLflow is imported in 4
LAST_TRIES = 3  # that fail in a row, after which the end waits no longer
LONGEST = 60.0  # seconds that it waits in all while calls succeed
POLL = 0.05  # seconds

log = logging.getLogger(__name__)


class Ending(NamedTuple):
    """A trial that has ended, with all that is told of it.

    Args:
        trial: the trial.
        points: its curves.
        state: complete, pruned or failed.
        values: by name; empty without a result.
    """

    trial: TrackedTrial
    points: Sequence[Point]
    state: str
    values: Mapping[str, float]


@dataclass
class Waiting:
    """What a tracker was not told yet of a trial.

    Attributes:
        trial: as it is now.
        points: of its curves, by epoch and name.
        ending: its state and values; None until it has ended.
        fresh: until when, by time.monotonic, nobody else can have the trial.
        refusals: how often telling it has failed.
        before: how many calls had succeeded when it failed first.
    """

    trial: TrackedTrial
    points: dict[tuple[int, str], Point] = field(default_factory=dict)
    ending: tuple[str, Mapping[str, float]] | None = None
    fresh: float = float("inf")
    refusals: int = 0
    before: int = 0


@dataclass
class Told:
    """What a tracker has of a trial under way."""

    points: set[tuple[int, str]] = field(default_factory=set)
    begun: bool = False
    ended: bool = False


class Feed:
    """What one tracker is to be told, and the thread that tells it.

    `begin`, `report`, `end`, `complete` and `answer` return at once. The database has all that they
    say, so that what does not fit into the queue, or is left when the process ends, is told by
    whoever goes on with the trial, or by the command at its end.

    Before the thread tells anything of a trial that another worker may have had, it asks the
    tracker what it has; and so it does after a call that failed, which may have arrived.

    Args:
        name: of the tracker's section.
        tracker: is called by the thread alone.
        run_dir: of the study.
        alone: waits until no worker of this run tells anything, as the command does at its end.
    """

    def __init__(
        self, name: str, tracker: Recalling, run_dir: Path, *, alone: bool = False
    ) -> None:
        self.name, self._tracker, self._run_dir, self._alone = name, tracker, run_dir, alone
        self._waiting: dict[int, Waiting] = {}
        self._told: dict[int, Told] = {}
        self._endings: tuple[TrackedStudy, Sequence[Ending]] | None = None
        self._answer: Answer | None = None
        self._points = 0  # that wait
        self._changed = threading.Condition()
        self._closing = self._ended = self._full = False
        self._tries = self._successes = 0  # calls that failed in a row; that succeeded
        self._away, self._failures = 0.0, 0  # since when calls fail, by time.monotonic; how many
        self._said: set[str] = set()
        self._pid = os.getpid()
        # A daemon: a call that hangs does not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=f"track.{name}", daemon=True)
        self._thread.start()

    # What a worker calls.

    def begin(
        self, trial: TrackedTrial, points: Iterable[Point], lease: float, *, new: bool
    ) -> None:
        """Begins a trial, or goes on with one.

        Args:
            trial: the trial.
            points: what is stored of its curves.
            lease: seconds for which nobody else can have the trial.
            new: whether no worker had it before, so that the tracker cannot know it.
        """
        with self._changed:
            if new:
                self._told[trial.number] = Told()
            self._add(trial, points).fresh = time.monotonic() + lease

    def report(self, trial: TrackedTrial, points: Iterable[Point], lease: float) -> None:
        """Adds numbers that are stored; `lease` is as for `begin`."""
        with self._changed:
            self._add(trial, points).fresh = time.monotonic() + lease

    def end(self, ending: Ending) -> None:
        """Ends a trial that has ended in the database."""
        with self._changed:
            self._add_ending(ending)

    def leave(self, number: int) -> None:
        """Forgets a trial that somebody else may go on with, who tells the rest."""
        with self._changed:
            self._forget(number)

    def complete(self, study: TrackedStudy, endings: Sequence[Ending]) -> None:
        """Tells of trials that have ended whatever the tracker does not have of them."""
        with self._changed:
            self._endings = study, endings
            self._changed.notify_all()

    def answer(self, answer: Answer) -> None:
        """Tells what the study has found, once all trials are told."""
        with self._changed:
            self._answer = answer
            self._changed.notify_all()

    def flush(self, patience: float) -> None:
        """Waits until all is told, or for `patience` seconds, or until a call fails."""
        end = time.monotonic() + patience
        with self._changed:
            while self._is_open() and not self._tries and time.monotonic() < end:
                self._changed.wait(POLL)

    def close(self) -> int:
        """Ends the thread, once all is told, calls fail, or it takes too long.

        Returns:
            Of how many trials the tracker was not told all.
        """
        if os.getpid() != self._pid:  # a fork has no thread
            return 0
        began = since = time.monotonic()
        with self._changed:
            self._closing, self._tries = True, 0
            self._changed.notify_all()
            successes = self._successes
            while self._is_open() and not self._ended:
                now = time.monotonic()
                if self._successes > successes:
                    successes, since = self._successes, now
                if now - since > PATIENCE or now - began > LONGEST:
                    break
                self._changed.wait(POLL)
            hangs, self._ended = self._is_open() and not self._ended, True
            left = len(self._waiting) + len(self._endings[1] if self._endings else ())
            left = left or int(self._answer is not None)
            self._changed.notify_all()
        if not hangs:
            self._thread.join()
        return left

    def _is_open(self) -> bool:
        return bool(self._waiting or self._endings or self._answer)

    def _add(self, trial: TrackedTrial, points: Iterable[Point]) -> Waiting:
        waiting = self._waiting.get(trial.number)
        if waiting is None:
            if len(self._waiting) >= MOST_TRIALS:
                self._overflow()
                self._forget(next(iter(self._waiting)))
            waiting = self._waiting[trial.number] = Waiting(trial)
        waiting.trial = trial
        for point in points:
            if self._points >= MOST_POINTS:
                self._overflow()
                break
            key = point.epoch, point.name
            self._points += key not in waiting.points
            waiting.points.setdefault(key, point)
        self._changed.notify_all()
        return waiting

    def _add_ending(self, ending: Ending) -> None:
        waiting = self._add(ending.trial, ending.points)
        waiting.ending, waiting.fresh = (ending.state, ending.values), float("inf")

    def _overflow(self) -> None:
        if not self._full:
            self._full = True
            words = "its queue is full; what is left out is told from the database at the end"
            log.warning("track.%s: %s", self.name, words)

    def _forget(self, number: int) -> None:
        waiting = self._waiting.pop(number, None)
        self._points -= 0 if waiting is None else len(waiting.points)
        self._told.pop(number, None)

    # The thread.

    def _work(self) -> None:
        end = None if not self._alone else time.monotonic() + PATIENCE

        def late() -> bool:
            return self._ended or (end is not None and time.monotonic() > end)

        lock, shared = f"{self.name}.lock", not self._alone
        try:
            with locked(self._run_dir, lock, shared=shared, stopping=late) as held:
                if held or not self._alone:
                    self._tell_all()
        except FileError as error:  # the folder of the locks is a link
            self._failed(error, None)
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _tell_all(self) -> None:
        while self._next() and not self._ended:
            self._tell_next()
            if self._closing and self._tries >= LAST_TRIES:
                break

    def _next(self) -> bool:
        """Waits until there is something to tell, and a little longer; False if there is not."""
        with self._changed:
            pause = PAUSES[min(self._tries, len(PAUSES)) - 1] if self._tries else LINGER
            end = time.monotonic() + pause
            if self._closing and self._tries:
                self._changed.wait(min(PAUSES))
            while not self._closing and time.monotonic() < end:
                self._changed.wait(max(POLL, end - time.monotonic()))
            while not self._is_open() and not self._closing:
                self._changed.wait()
            return self._is_open()

    def _tell_next(self) -> None:
        waiting = None
        try:
            if (endings := self._endings) is not None:
                self._tell_missing(*endings)
            elif (taken := self._take()) is not None:
                waiting = taken[0]
                self._tell(*taken)
            elif not self._waiting and (answer := self._answer) is not None:
                if self._tracker.answered(answer.study) != answer.digest:
                    self._tracker.study_end(answer)
                self._answer = None
            else:
                return
        except Exception as error:  # of the tracker, its library or the user's own
            self._failed(error, waiting)
        else:
            self._succeeded()

    def _tell_missing(self, study: TrackedStudy, endings: Sequence[Ending]) -> None:
        ended = self._tracker.ended(study)
        with self._changed:
            self._endings = None
            for ending in endings:
                if ending.trial.number not in ended:
                    self._add_ending(ending)

    def _take(self) -> tuple[Waiting, dict[tuple[int, str], Point]] | None:
        """Takes the next trial; one whose lease has run out waits until its worker says more."""
        with self._changed:
            for number, waiting in [*self._waiting.items()]:
                if waiting.fresh > time.monotonic():
                    self._waiting[number] = self._waiting.pop(number)  # the others come first then
                    return waiting, dict(waiting.points)
                if self._closing:  # nobody here will say more
                    self._forget(number)
            return None

    def _tell(self, waiting: Waiting, points: dict[tuple[int, str], Point]) -> None:
        trial, ending = waiting.trial, waiting.ending
        told = self._told.get(trial.number)
        if told is None:
            known = self._tracker.known(trial)
            told = Told(set(known.points), known.begun, known.ended)
        if not told.begun:
            self._tracker.begin(trial)
        if new := [point for key, point in sorted(points.items()) if key not in told.points]:
            self._tracker.report_all(trial, new)
        if ending is not None and not told.ended:
            self._tracker.end(trial, *ending)
        with self._changed:
            if self._waiting.get(trial.number) is not waiting:  # it was left meanwhile
                return
            for key in points:
                del waiting.points[key]
            self._points -= len(points)
            told.points |= points.keys()
            told.begun, waiting.refusals = True, 0
            self._told[trial.number] = told
            if waiting.ending is not None and ending is not None:
                self._forget(trial.number)
            elif waiting.ending is None and not waiting.points:
                del self._waiting[trial.number]

    def _failed(self, error: Exception, waiting: Waiting | None) -> None:
        words = shorten(mask_passwords(one_line(f"{type(error).__name__}: {error}")), 400)
        leave = False
        with self._changed:
            self._away = self._away or time.monotonic()
            self._tries, self._failures = self._tries + 1, self._failures + 1
            if waiting is not None:
                self._told.pop(waiting.trial.number, None)
                if not waiting.refusals:
                    waiting.before = self._successes
                waiting.refusals += 1
                leave = waiting.refusals >= REFUSALS and self._successes > waiting.before
                if leave:
                    self._forget(waiting.trial.number)
            self._changed.notify_all()
        if leave and waiting is not None:
            log.warning(
                "track.%s: trial %d is left out: %s", self.name, waiting.trial.number, words
            )
        elif words not in self._said and len(self._said) < 20:
            self._said.add(words)
            rest = "the study goes on; what is missing there is told once it can be"
            log.warning("track.%s: %s; %s", self.name, words, rest)

    def _succeeded(self) -> None:
        with self._changed:
            failures, away = self._failures, time.monotonic() - self._away
            self._tries, self._failures, self._away = 0, 0, 0.0
            self._successes += 1
            self._changed.notify_all()
        if failures > 1:
            self._said.clear()
            log.warning("track.%s is back after %s", self.name, format_duration(away))
