"""What a tracker is told, and what one may be asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable


@dataclass(frozen=True)
class TrackedStudy:
    """A study, for trackers.

    Args:
        name: of the study.
        uuid: 32 hexadecimal digits; another study of the same name has others.
        goals: maximize or minimize, by the name of each value of a trial.
        run_dir: the folder of the run.
    """

    name: str
    uuid: str
    goals: Mapping[str, str]
    run_dir: Path


@dataclass(frozen=True)
class TrackedTrial:
    """A trial, for trackers.

    Args:
        study: of the trial.
        number: in the study, from 0.
        params: the parameters by their path, such as optimizer.lr.
        facts: what else is known of it: worker, baseline, failure and reason.
        started: seconds since the epoch.
        ended: seconds since the epoch; None while it runs.
    """

    study: TrackedStudy
    number: int
    params: Mapping[str, Any]
    facts: Mapping[str, str] = field(default_factory=dict)
    started: float = 0.0
    ended: float | None = None


class Point(NamedTuple):
    """One number of a learning curve.

    Args:
        epoch: of the trial.
        name: of the quantity: the metric, train_loss, …
        value: a number, which may be infinite or NaN.
        time: when it was reported, in seconds since the epoch.
    """

    epoch: int
    name: str
    value: float
    time: float


@dataclass(frozen=True)
class Known:
    """What a tracker has of a trial.

    Args:
        points: the epoch and name of each number of its curves.
        begun: whether all of `begin` was told.
        ended: whether all of `end` was told.
    """

    points: frozenset[tuple[int, str]] = frozenset()
    begun: bool = False
    ended: bool = False


@dataclass(frozen=True)
class Answer:
    """What a study has found.

    Args:
        study: that has ended.
        trial: the number of the winner, or of the best trial without one; None if none is complete.
        params: its parameters.
        values: what is known, by name: `trials.complete`, `search.accuracy`, `fresh.mean`,
            `test.mean`, `test.baseline`.
        files: the answer and the report, by name: winner.yaml, winner.pt, report.html, …
        digest: changes when any of this does.
    """

    study: TrackedStudy
    trial: int | None
    params: Mapping[str, Any]
    values: Mapping[str, float]
    files: Mapping[str, Path]
    digest: str


class Tracker(Protocol):
    """What a section of `track` builds, of ours or of the user's own.

    All is called from one thread of each worker, never from the training. A call that raises is
    repeated, after a pause; one that takes long holds up only what this tracker is told.
    """

    def begin(self, trial: TrackedTrial) -> None:
        """Begins a trial, or goes on with one that another worker began."""
        ...

    def report(self, trial: TrackedTrial, epoch: int, values: Mapping[str, float]) -> None:
        """Adds the numbers of an epoch to a trial."""
        ...

    def end(self, trial: TrackedTrial, state: str, values: Mapping[str, float]) -> None:
        """Ends a trial.

        Args:
            trial: with its facts as they are now.
            state: complete, pruned or failed.
            values: of the trial by name, and what it cost; empty without a result.
        """
        ...

    def study_end(self, answer: Answer) -> None:
        """Tells what a study has found; again if a larger budget has found something else."""
        ...


@runtime_checkable
class Recalling(Tracker, Protocol):
    """A tracker that says what it has, so that it is told nothing twice, whoever died when.

    For others, `Journal` keeps a record of that in the run directory.
    """

    @property
    def place(self) -> str:
        """Where it writes; two trackers of one study must not share a place."""
        ...

    def known(self, trial: TrackedTrial) -> Known:
        """Returns what it has of a trial."""
        ...

    def ended(self, study: TrackedStudy) -> set[int]:
        """Returns the numbers of the trials of a study of which it has all, also their end."""
        ...

    def answered(self, study: TrackedStudy) -> str | None:
        """Returns the digest of the answer that it was told last; None for none."""
        ...

    def report_all(self, trial: TrackedTrial, points: Sequence[Point]) -> None:
        """Adds numbers to the curves of a trial, in as few calls as it can."""
        ...
