"""The interface of every training: an objective runs step by step and returns a value.

The value of networks is the mean of their jobs' metric, each on its validation set. It is reported
after each epoch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from torch import Tensor

from studyloom.averages import mean, standard_deviation
from studyloom.space.rule import Cost
from studyloom.storage.attributes import JOBS, STANDARD_ERROR
from studyloom.training.job import Epoch
from studyloom.training.trainer import Training


class Stopping(Protocol):
    """Whether the worker is to stop; a subclass that says nothing never is."""

    def __call__(self) -> bool:
        """Whether to stop at the next report."""
        return False

    def interruptible(self) -> AbstractContextManager[None]:
        """Surrounds work that may be cut short: a signal raises Stopped in the midst of it."""
        return nullcontext()

    @property
    def lone_signal(self) -> str | None:
        """The name of a signal to this process only, which is no request to stop the study."""
        return None


@dataclass(frozen=True)
class Report:
    """A report of a loop, or the end of one of its jobs if it has several.

    Args:
        number: grows with each report; the pruner compares trials by it if there is one job.
        seconds: since the previous report, or since the call.
        step: the number that the loop gave.
        job: the position of the job, from 0.
        ends_job: whether it is the end of one of several jobs, with the value of that job.
    """

    number: int
    value: float
    seconds: float
    step: int
    further: Mapping[str, float] = field(default_factory=dict)
    job: int = 0
    ends_job: bool = False


Step = Epoch | Report  # what an objective reports after a step, with a growing number
# Called with a step that has ended; with None to store what is new of the trial.
Tell = Callable[[Step | None], None]


@dataclass(frozen=True)
class Attempt:
    """The attempt of a worker at a trial, with its number from 1.

    Args:
        stage: search, re-evaluation, ablation or final-training.
        folder: for files of this trial; made when needed, removed when the trial has ended.
        pauses: whether the pruner pauses trials, so that each must be able to resume.
    """

    number: int = 1
    stage: str = "search"
    folder: Path | None = None
    pauses: bool = False


class Objective:
    """The evaluation of one trial: runs step by step, and returns a value.

    This is all that a worker knows of a training. Checkpoints, pruning, time limits, resuming and
    learning curves work for every objective: networks that studyloom trains (`NetworkObjective`)
    and custom training loops (`LoopObjective`).

    An objective is used once. A worker restores it from the last checkpoint, if there is one, and
    calls `run`. That calls back after each step, where the worker saves `state` and may end the
    trial with an exception. Then the worker stores `curves` and `standard_error`, and `weights` if
    they are wanted. The methods of this base class are those of an evaluation without steps.
    """

    _cut: int | None = None  # the last step that `cut` has left; None for all

    @property
    def epochs(self) -> int | None:
        """How many steps there will be, the last of which has the value; None if not known."""
        return None

    @property
    def compared_jobs(self) -> int | None:
        """How many jobs the pruner compares, each at its end; None if it compares each step."""
        return None

    def compared_number(self, step: Step) -> int | None:
        """Returns the number by which the pruner compares a step; None if it does not."""
        return step.number

    def is_new(self, step: Step, reported: int) -> bool:
        """Whether a step comes after the one whose compared number was reported last."""
        return step.number > reported

    @property
    def evaluating(self) -> float:
        """Seconds spent on evaluation by this object so far; a part of the seconds of its steps."""
        return 0.0

    @property
    def keeps_files(self) -> bool:
        """Whether `state` names files that a library's trainer keeps for a few steps only."""
        return False

    @property
    def finds_files(self) -> bool:
        """Whether it starts again next to the files of the attempt before, and may resume them."""
        return False

    def run(self, report: Tell, stopping: Stopping) -> float:
        """Runs to the end, from the start or from the restored step, and returns a finite number.

        Args:
            report: called after each new step. An exception that it raises ends the run and must
                reach the caller of `run`.
            stopping: says whether to stop. Work between two reports belongs in
                `stopping.interruptible()`, so that a signal can end it, and calls of `report` do
                not.

        Raises:
            Stopped: a signal came in the midst of a step, whose work is lost.
            Diverged: a loss is no longer finite.
            UndefinedMetric: the value, or that of a step, is not a finite number.
        """
        raise NotImplementedError

    def steps(self) -> Sequence[Step]:
        """Returns the steps so far in their order, including those before a restore."""
        return ()

    def cut(self, number: int) -> None:
        """Forgets all steps after a given one, where the trial should have ended.

        The pruner decides late if the database was away while training continued.
        """
        self._cut = number

    def curves(self) -> dict[str, list[Any]]:
        """Returns the learning curves that are stored with the trial; none before the first step.

        They are columns by name, of the same length, and of values that JSON can hold.
        """
        return {}

    def standard_error(self) -> float | None:
        """Returns the standard error of the value if it is a mean of several, else None."""
        return None

    def costs(self) -> list[Cost]:
        """Returns the costs that the training has reported, for limits and further objectives."""
        return []

    def not_kept(self) -> list[str]:
        """Returns the names of objects whose state `state` lacks, so that a resumed run differs."""
        return []

    def streams(self) -> list[str]:
        """Returns the names of streams of examples whose position `state` lacks."""
        return []

    def warnings(self) -> list[str]:
        """Returns warnings about this trial, which the command prints at its end."""
        return []

    def state(self) -> dict[str, Any] | None:
        """Returns all that `restore` needs to resume after the last step; None if it cannot.

        It is a snapshot: later steps do not change it. `torch.load(weights_only=True)` reads it.

        Raises:
            RuntimeError: an exception has left a step unfinished.
        """
        return None

    def restore(self, state: dict[str, Any]) -> None:
        """Resumes from a state of an objective of the same config and seed, in any process.

        Raises:
            ValueError: the state is of another objective; nothing has changed.
        """
        raise ValueError("this objective keeps no state")

    def weights(self) -> dict[str, Any] | None:
        """Returns the state that the training keeps; None if it keeps nothing.

        Of a network it is the weights and buffers by name, of a loop the state of each kept part.
        """
        return None


class NetworkObjective(Objective):
    """Trains networks: a step is an epoch of all jobs."""

    def __init__(self, training: Training) -> None:
        self.training = training

    @property
    def epochs(self) -> int:
        """The number of the last step; patience may make it smaller."""
        return self.training.epochs

    @property
    def evaluating(self) -> float:
        return self.training.evaluation_seconds

    @property
    def history(self) -> list[list[Epoch]]:
        """The epochs of each step so far, one for each job."""
        return self.training.history[: self._cut]

    def run(self, report: Tell, stopping: Stopping) -> float:
        """Trains to the end; the value is the mean of that of each job: of its last epoch, or best.

        See `Objective.run`.
        """
        with closing(self.training):
            iterations = iter(self.training)
            while True:
                with stopping.interruptible():
                    epochs = next(iterations, None)
                if epochs is None:
                    break
                report(mean_epoch(epochs))
        return mean_epoch(self.training.select_epochs()).value

    def steps(self) -> list[Epoch]:
        return [mean_epoch(epochs) for epochs in self.history]

    def curves(self) -> dict[str, list[Any]]:
        """Returns a column for each field of an epoch, as means over jobs; see `Objective.curves`.

        Numbers keep all their digits: a replay of the trial compares them one by one. Several jobs
        add the standard error, and how many jobs it is of.
        """
        rows = [asdict(step) for step in self.steps()]
        columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
        return columns | spread_over_jobs(self.history)

    def standard_error(self) -> float | None:
        if self.training.has_ended and self._cut is None:
            return _error_of(self.training.select_epochs())
        return _error_of(self.history[-1]) if self.history else None

    def state(self) -> dict[str, Any]:
        return self.training.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.training.restore(state)

    def weights(self) -> dict[str, Tensor]:
        """Returns the weights of the first job's network, and no copy."""
        return self.training.weights()[0]


@dataclass
class StoredObjective(Objective):
    """The result of a trial in another study, reused without an evaluation.

    Its source is that study and the number of the trial.
    """

    value: float
    columns: dict[str, list[Any]]
    error: float | None
    kept: dict[str, Any] | None
    source: str

    def run(self, report: Tell, stopping: Stopping) -> float:
        return self.value

    def curves(self) -> dict[str, list[Any]]:
        return self.columns

    def standard_error(self) -> float | None:
        return self.error

    def weights(self) -> dict[str, Any] | None:
        return self.kept


def mean_epoch(epochs: Sequence[Epoch]) -> Epoch:
    """Averages one epoch over jobs; the seconds are the sum, the time of all of them together."""
    return Epoch(
        number=epochs[0].number,
        train_loss=fmean(epoch.train_loss for epoch in epochs),
        valid_loss=fmean(epoch.valid_loss for epoch in epochs),
        value=mean([epoch.value for epoch in epochs]),
        seconds=sum(epoch.seconds for epoch in epochs),
        samples_per_second=fmean(epoch.samples_per_second for epoch in epochs),
    )


def spread_over_jobs(curve: Sequence[Sequence[Step]]) -> dict[str, list[Any]]:
    """Returns further columns of a curve: the standard error, and how many jobs it is of.

    None if each step is of one job.
    """
    if all(len(jobs) == 1 for jobs in curve):
        return {}
    errors = [standard_error_of([step.value for step in jobs]) for jobs in curve]
    return {STANDARD_ERROR: errors, JOBS: [len(jobs) for jobs in curve]}


def standard_error_of(values: Sequence[float]) -> float | None:
    """Returns the standard error of the mean of values, or None for fewer than two.

    It is the sample standard deviation over √n. The folds of one data set share most of their
    training images, so that it is too small (Bengio and Grandvalet, 2004).
    """
    return None if len(values) < 2 else standard_deviation(values) / math.sqrt(len(values))


def _error_of(epochs: Sequence[Epoch]) -> float | None:
    """Returns the standard error of the mean value of one epoch over jobs."""
    return standard_error_of([epoch.value for epoch in epochs])
