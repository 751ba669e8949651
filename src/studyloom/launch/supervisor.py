"""Workers at their places, wherever those are: watched, vouched for, started again when they die, and stopped."""

import contextlib
import logging
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from studyloom.errors import LaunchError, StorageLost
from studyloom.launch.task import HALT, Task, renewing_leases
from studyloom.study.stopping import Stop

RESTARTS = 3  # of a worker that dies before it claims a slot, after which its place stays empty
GRACE = 6.0  # seconds that a worker has to hand its trial back; none lives 10 s after its launcher
POLL = 0.1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerExit:
    """How a worker ended: its exit code, negative for a signal; None with words where nobody has seen it."""

    code: int | None
    words: str = ""

    def __str__(self) -> str:
        if self.code is None:
            return self.words
        return (
            f"signal {signal.Signals(-self.code).name}"
            if self.code < 0
            else f"exit code {self.code}"
        )


class WorkerHandle(Protocol):
    """Where one worker at a time works.

    log: takes what it prints. busy: whether a worker is there, or on its way. owner: its name in the ledger; None as
    long as it is on its way. failures: how often in a row one died here before it came to work.
    """

    log: Path
    failures: int

    @property
    def busy(self) -> bool: ...
    @property
    def owner(self) -> str | None: ...

    def start(self) -> None:
        """Starts a worker where there is none."""

    def look(self) -> WorkerExit | None:
        """How the worker ended, if it has."""

    def stop(self) -> None:
        """Tells the worker to hand its trial back."""

    def clear(self) -> str | None:
        """Ends the worker, and all that it started; whom the ledger may know."""


class Supervisor:
    """The workers of a task; this process watches and vouches for them."""

    def __init__(self, task: Task, places: Sequence[WorkerHandle]) -> None:
        self.task = task
        self.places = list(places)
        self.stopped: float | None = None  # when the workers were told to stop
        self.looked = time.monotonic()  # for what is looked at about every second
        task.logs.mkdir(parents=True, exist_ok=True)

    def attend(self, stop: Stop) -> None:
        """Starts all workers and waits for them; starts those that die again, and tells them to stop when it is to.

        Raises:
            LaunchError: workers die before they come to work.
            StorageLost: the database is away for good; the workers were told to stop.
        """
        try:
            for place in self.places:
                place.start()
            with renewing_leases(self.task, self.owners):
                self.watch(stop)
        except StorageLost:
            self.stop()
            while self.busy() and not self.is_late():
                for place in self.busy():
                    if place.look() is not None:
                        place.clear()
                time.sleep(POLL)
            raise
        if self.stopped is None and self.task.todo():
            raise LaunchError(self.last_words())

    def busy(self) -> list[WorkerHandle]:
        return [place for place in self.places if place.busy]

    def owners(self) -> dict[str, WorkerHandle]:
        """Where there are workers, by their names in the ledger."""
        return {place.owner: place for place in self.places if place.owner is not None}

    def watch(self, stop: Stop) -> None:
        while places := self.busy():
            for place in places:
                if (end := place.look()) is not None:
                    self.end(place, end)
            if time.monotonic() > self.looked + 1.0:
                self.looked = time.monotonic()
                self.end_overdue()
                if (
                    not self.owners() and not self.task.todo()
                ):  # whoever is on its way is not needed any more
                    return
            if stop():
                self.stop()
            if self.is_late():
                return
            time.sleep(POLL)

    def is_late(self) -> bool:
        return self.stopped is not None and time.monotonic() > self.stopped + GRACE

    def end_overdue(self) -> None:
        """Ends the workers whose trial takes too long."""
        limit = self.task.limits.trial_timeout
        if limit is None:
            return
        working = self.owners()
        # A second more than the worker itself allows, which looks after each epoch only.
        for owner in self.task.ledger.overdue([*working], limit + 1.0):
            working[owner].clear()
            death = f"the trial took longer than study.trial_timeout={limit:g} s"
            self.task.ledger.record_death(owner, death, fatal=True)
            working[owner].start()

    def stop(self) -> None:
        """Tells the workers to hand their trials back."""
        if self.stopped is None:
            self.stopped = time.monotonic()
            for place in self.busy():
                place.stop()

    def end(self, place: WorkerHandle, end: WorkerExit) -> None:
        """A worker has ended: what it left behind is cleared away, and its place filled again if it died."""
        owner = place.clear()
        held = (
            0
            if owner is None
            else self.task.ledger.record_death(owner, f"the worker ended with {end}")
        )
        if end.code == HALT:
            self.stop()
        if end.code == 0 or self.stopped is not None:
            return
        log.warning("a worker ended with %s; its log: %s", end, place.log)
        place.failures = 0 if held else place.failures + 1
        if place.failures <= RESTARTS:
            place.start()

    def end_all(self) -> None:
        """Ends every worker that is still there, and hands back what they hold."""
        killed = [owner for place in self.busy() if (owner := place.clear()) is not None]
        with contextlib.suppress(StorageLost):  # then their leases will end
            for owner in killed:
                self.task.ledger.record_death(owner, "it was told to stop and did not")

    def last_words(self) -> str:
        """The end of the log of a worker that died."""
        place = max(self.places, key=lambda place: place.failures)
        lines = place.log.read_text(errors="replace").splitlines()[-12:]
        return "\n".join([f"workers die before they come to work; the end of {place.log}:", *lines])
