"""Stops, pauses and resumes a study from another terminal.

What was asked is an attribute of the stored study, so that the workers of all hosts see it. They
release their trials at the last epoch. A command that starts a stopped study again takes the wish
back; a paused one stays paused until somebody resumes it.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Literal, Protocol

from studyloom.errors import StudyloomError
from studyloom.processes import running_beside
from studyloom.storage import sql
from studyloom.storage.attributes import CONTROL
from studyloom.storage.database import read
from studyloom.study.stored_study import StoredStudy

Wish = Literal["stop", "pause"]
POLL = 1.0  # seconds between looks, one short read each


class Controlled(Protocol):
    """What follows the wishes: `Stop` of a process that runs trials."""

    paused: bool

    def request(self, words: str) -> None: ...


def read_control(stored: StoredStudy) -> Wish | None:
    """Returns what another terminal has asked for; None for nothing.

    Raises:
        StorageLost: the database stays away.
    """
    wish = read(stored.ledger.storage, lambda c: sql.study_attr(c, stored.ledger.study_id, CONTROL))
    return wish if wish in ("stop", "pause") else None


def set_control(stored: StoredStudy, wish: Wish | None) -> None:
    """Asks all workers of a study to stop or to pause; None takes that back."""
    if read_control(stored) != wish:
        stored.optuna.set_user_attr(CONTROL, wish)


def begin_again(stored: StoredStudy) -> None:
    """Takes a wish to stop back, as a command does that starts the study again."""
    if read_control(stored) == "stop":
        set_control(stored, None)


@contextlib.contextmanager
def following(stored: StoredStudy, stop: Controlled, *, stops: bool = True) -> Iterator[None]:
    """Follows what other terminals ask while the body runs.

    A thread looks, so that an epoch that takes long does not hold it up. While the database is away
    it sees nothing, and looks again later.

    Args:
        stored: the study of the search.
        stop: told to stop and to pause.
        stops: whether to stop by a wish; a worker that a launcher has started waits for its word.
    """

    def follow(end: threading.Event) -> None:
        while True:
            with contextlib.suppress(StudyloomError):
                wish = read_control(stored)
                stop.paused = wish == "pause"
                if wish == "stop" and stops:
                    stop.request("studyloom stop")
                    return
            if end.wait(POLL):
                return

    with running_beside(follow):
        yield
