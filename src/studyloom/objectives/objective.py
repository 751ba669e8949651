"""The interface of every training: an objective runs step by step and returns a value.

A *step* is an epoch of a network's training, or a report of a custom training loop. A *job* is one
training of the trial, with one fold and one seed. The value of a trial is the mean of the values of
its jobs, each on its own validation set.

The pruner compares trials by numbered values. Networks train all jobs side by side, so that each
step has a mean over jobs, which is compared. A loop is called for one job after the other: if it
has several, a step is of one job only, and trials are compared at the end of each job.
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
from studyloom.training.checkpoint import State
from studyloom.training.job import Epoch
from studyloom.training.trainer import Training


class Stopping(Protocol):
    """Says whether the worker is to stop; the methods of this base class never stop it."""

    def __call__(self) -> bool:
        """Returns whether to stop at the next report."""
        return False

    def interruptible(self) -> AbstractContextManager[None]:
        """Surrounds work that may be cut short: a signal raises Stopped in the midst of it."""
        return nullcontext()

    @property
    def lone_signal(self) -> str | None:
        """Name of a signal to this process only, which does not ask the study to stop."""
        return None


@dataclass(frozen=True)
class Report:
    """A report of a loop, or the end of one of its jobs if it has several.

    Args:
        number: grows with each report; the pruner compares trials by it if there is one job.
        value: the metric.
        seconds: the time since the previous report, or since the call.
        step: the number that the loop gave.
        further: other quantities of the step, by name.
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


Curves = dict[str, list[Any]]  # columns of one length by name, of values that JSON can hold
Step = Epoch | Report  # the report of a step that has ended, with a growing number
# Stores a step that has ended; None stores what is new of the trial without a step.
StepReporter = Callable[[Step | None], None]


@dataclass(frozen=True)
class Attempt:
    """The attempt of a worker at a trial, with its number from 1.

    Args:
        stage: search, re-evaluation, ablation or final-training.
        folder: for files of this trial; made when needed, removed when the trial has ended.
        must_resume: whether the trial must be able to resume, since the pruner pauses trials.
    """

    number: int = 1
    stage: str = "search"
    folder: Path | None = None
    must_resume: bool = False


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

    _last_number: int | None = None  # the number of the last step that counts; None if all count

    @property
    def epochs(self) -> int | None:
        """Number of steps there will be, the last of which has the value; None if not known."""
        return None

    @property
    def compared_jobs(self) -> int | None:
        """Number of jobs that the pruner compares, each at its end; None to compare each step."""
        return None

    def compared_number(self, step: Step) -> int | None:
        """Returns the number by which the pruner compares a step; None if it skips the step."""
        return step.number

    def is_new(self, step: Step, reported: int) -> bool:
        """Returns whether a step comes after the one that was reported last.

        Args:
            reported: the compared number of the step that was reported last.
        """
        return step.number > reported

    @property
    def evaluation_seconds(self) -> float:
        """Seconds spent on evaluation by this object so far; a part of the seconds of its steps."""
        return 0.0

    @property
    def resumable_epochs(self) -> int | None:
        """Number of epochs of a training that has shown that it can resume; None if it has not."""
        return None

    @property
    def keeps_files(self) -> bool:
        """True if `state` names files that a library's trainer keeps for a few steps only."""
        return False

    @property
    def finds_files(self) -> bool:
        """True if it starts again in the folder of an earlier attempt, and may resume its files."""
        return False

    def run(self, report: StepReporter, stopping: Stopping) -> float:
        """Runs to the end, from the start or from the restored step, and returns a finite number.

        Args:
            report: called after each new step. An exception that it raises ends the run and must
                reach the caller of `run`.
            stopping: says whether to stop. Work between two reports belongs in
                `stopping.interruptible()`, so that a signal can end it. Calls of `report` do not:
                a signal must not interrupt them.

        Raises:
            Stopped: a signal came in the midst of a step, whose work is lost.
            Diverged: a loss is no longer finite.
            UndefinedMetric: the value, or that of a step, is not a finite number.
        """
        raise NotImplementedError

    def steps(self) -> Sequence[Step]:
        """Returns the steps so far in their order, including those before a restore."""
        return ()

    def forget_steps_after(self, number: int) -> None:
        """Forgets all steps after the one with a number, at which the pruner has ended the trial.

        The pruner decides late if the database was away while training continued.
        """
        self._last_number = number

    def curves(self) -> Curves:
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

    def state(self) -> State | None:
        """Returns all that `restore` needs to resume after the last step; None if it cannot.

        It is a snapshot: later steps do not change it. `torch.load(weights_only=True)` reads it.

        Raises:
            RuntimeError: an exception has left a step unfinished.
        """
        return None

    def restore(self, state: State) -> None:
        """Resumes from a state of an objective of the same config and seed, in any process.

        Raises:
            ValueError: the state is of another objective; nothing has changed.
        """
        raise ValueError("this objective keeps no state")

    def weights(self) -> State | None:
        """Returns the state that the training keeps; None if it keeps nothing.

        A network keeps its weights and buffers by name, a loop the state of each object that
        `run.keep` was given.
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
    def evaluation_seconds(self) -> float:
        return self.training.evaluation_seconds

    @property
    def history(self) -> list[list[Epoch]]:
        """The epochs of each step that counts so far, one for each job."""
        return self.training.history[: self._last_number]  # all if the number is None

    def run(self, report: StepReporter, stopping: Stopping) -> float:
        """Trains to the end, and returns the mean of the jobs' values; see `Objective.run`.

        The value of a job is that of its last epoch, or of its best one if the training selects it.
        """
        with closing(self.training):
            iterations = iter(self.training)
            while True:
                # A signal may interrupt an epoch, but not the report after it.
                with stopping.interruptible():
                    epochs = next(iterations, None)
                if epochs is None:  # the training has ended
                    break
                report(mean_epoch(epochs))
        return mean_epoch(self.training.select_epochs()).value

    def steps(self) -> list[Epoch]:
        return [mean_epoch(epochs) for epochs in self.history]

    def curves(self) -> Curves:
        """Returns a column for each field of an epoch, as means over jobs; see `Objective.curves`.

        Numbers keep all their digits: a replay of the trial compares them one by one. Several jobs
        add the columns of `spread_over_jobs`.
        """
        columns: Curves = {}
        for step in self.steps():
            for name, value in asdict(step).items():
                columns.setdefault(name, []).append(value)
        return columns | spread_over_jobs(self.history)

    def standard_error(self) -> float | None:
        """Returns the standard error of the mean value over jobs.

        A job has the value of its last epoch, or of its best one if the training selects it. If
        the pruner has ended the trial, a job has the value of the last epoch that counts.
        """
        if self.training.has_ended and self._last_number is None:
            return _compute_epoch_error(self.training.select_epochs())
        if not self.history:
            return None
        return _compute_epoch_error(self.history[-1])

    def state(self) -> State:
        return self.training.state()

    def restore(self, state: State) -> None:
        self.training.restore(state)

    def weights(self) -> dict[str, Tensor]:
        """Returns the weights of the first job's network, and no copy."""
        return self.training.weights()[0]


@dataclass
class StoredObjective(Objective):
    """The result of a trial in another study, reused without an evaluation.

    Args:
        value: the value of the trial.
        columns: its learning curves; see `Objective.curves`.
        error: the standard error of the value; None if the value is no mean.
        stored_weights: the state that the training kept; see `Objective.weights`.
        source: the name of the other study, and the number of the trial in it.
    """

    value: float
    columns: Curves
    error: float | None
    stored_weights: State | None
    source: str

    def run(self, report: StepReporter, stopping: Stopping) -> float:
        return self.value

    def curves(self) -> Curves:
        return self.columns

    def standard_error(self) -> float | None:
        return self.error

    def weights(self) -> State | None:
        return self.stored_weights


def mean_epoch(epochs: Sequence[Epoch]) -> Epoch:
    """Averages one epoch over jobs; the seconds are their sum, the time that all jobs took."""
    return Epoch(
        number=epochs[0].number,
        train_loss=fmean(epoch.train_loss for epoch in epochs),
        valid_loss=fmean(epoch.valid_loss for epoch in epochs),
        value=mean([epoch.value for epoch in epochs]),
        seconds=sum(epoch.seconds for epoch in epochs),
        samples_per_second=fmean(epoch.samples_per_second for epoch in epochs),
    )


def spread_over_jobs(rows: Sequence[Sequence[Step]]) -> Curves:
    """Returns two columns of a learning curve: the standard error over jobs, and their number.

    Args:
        rows: for each row of the curve, the steps that it is the mean of, one for each job.

    Returns:
        The columns by name; none if each row is of one job.
    """
    if all(len(steps) == 1 for steps in rows):
        return {}
    errors = []
    job_counts = []
    for steps in rows:
        errors.append(compute_standard_error([step.value for step in steps]))
        job_counts.append(len(steps))
    return {STANDARD_ERROR: errors, JOBS: job_counts}


def compute_standard_error(values: Sequence[float]) -> float | None:
    """Computes the standard error of the mean of values; None for fewer than two.

    It is the sample standard deviation over √n. For the values of folds, which share most of their
    training examples, it is too small (Bengio and Grandvalet, 2004).
    """
    if len(values) < 2:
        return None
    return standard_deviation(values) / math.sqrt(len(values))


def _compute_epoch_error(epochs: Sequence[Epoch]) -> float | None:
    """Computes the standard error of the mean value of one epoch over jobs."""
    return compute_standard_error([epoch.value for epoch in epochs])
