"""What a trial is worth: the mean of its jobs' metric on what they are validated on, reported by epoch or by job."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from statistics import fmean, stdev
from typing import Any, Protocol

from optuna import Trial, TrialPruned
from torch import Tensor

from studyloom.storage.attributes import JOBS, STANDARD_ERROR
from studyloom.training.job import Epoch
from studyloom.training.trainer import Training


class Stopping(Protocol):
    """Whether to stop; `interruptible()` surrounds work in the midst of which Stopped may be raised."""

    def __call__(self) -> bool: ...
    def interruptible(self) -> AbstractContextManager[None]: ...


class Step(Protocol):
    """What was said at one step. number: of the step; seconds: that it took."""

    @property
    def number(self) -> int: ...
    @property
    def value(self) -> float: ...
    @property
    def seconds(self) -> float: ...


class Objective(Protocol):
    """What a trial does: it goes on step by step, and comes to a value.

    epochs: how many steps there will be, the last of which is the value; None where nobody knows. stride: the steps
    between two that can be compared with those of other trials.
    """

    @property
    def epochs(self) -> int | None: ...
    @property
    def stride(self) -> int: ...
    @property
    def evaluating(self) -> float:
        """Seconds that were spent on evaluating so far, here."""
        ...

    def run(self, say: Callable[[Step], None], stopping: Stopping) -> float:
        """Goes on to the end, calls `say` after each step, and gives the value. Raises what ends the trial."""
        ...

    def steps(self) -> Sequence[Step]:
        """What was said so far, before a restore too."""
        ...

    def cut(self, number: int) -> None:
        """Forgets the steps after this one: the trial was to end there, and its end was heard of later."""
        ...

    def curves(self) -> dict[str, list[Any]]:
        """What is stored of its steps, in columns, the same for each of them."""
        ...

    def standard_error(self) -> float | None:
        """Of the value, where it is the mean of several."""
        ...

    def state(self) -> dict[str, Any] | None:
        """All that is needed to go on later; None where that cannot be."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a state. Raises ValueError if it is another's."""
        ...

    def weights(self) -> dict[str, Tensor] | None:
        """Of its network, if it has one."""
        ...


class NetworkObjective:
    """The effort of training networks: a step is an epoch of all jobs, or of one where they take turns."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.epochs = training.epochs
        self.stride = training.stride
        self._kept: int | None = None

    @property
    def evaluating(self) -> float:
        return self.training.evaluating

    @property
    def said(self) -> list[list[Epoch]]:
        return self.training.said[: self._kept]

    def run(self, say: Callable[[Step], None], stopping: Stopping) -> float:
        for epoch in run_epochs(self.training, stopping):
            say(epoch)
        return mean_epoch(group_by_epoch(self.said)[-1]).value

    def steps(self) -> list[Epoch]:
        return mean_epochs(self.said)

    def cut(self, number: int) -> None:
        self._kept = number

    def curves(self) -> dict[str, list[Any]]:
        """A list for each of an epoch's fields, means over jobs, to the last digit: whoever trains the trial again can
        say whether it comes out the same. Of several jobs the standard error too."""
        curve = group_by_epoch(self.said)
        rows = [asdict(mean_epoch(epochs)) for epochs in curve]
        columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
        errors = [standard_error(epochs) for epochs in curve]
        if errors and errors[0] is not None:  # the first epoch is that of most jobs
            columns[STANDARD_ERROR] = errors
            columns[JOBS] = [len(epochs) for epochs in curve]
        return columns

    def standard_error(self) -> float | None:
        curve = group_by_epoch(self.said)
        return standard_error(curve[-1]) if curve else None

    def state(self) -> dict[str, Any]:
        return self.training.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.training.restore(state)

    def weights(self) -> dict[str, Tensor]:
        return self.training.weights()[0]


def run_epochs(training: Training, stopping: Stopping) -> Iterator[Epoch]:
    """Trains, and yields after each epoch the mean of the jobs that went through it; see `means` for its number.

    Raises:
        Stopped: asked for in the midst of an epoch.
        train.Diverged: a loss is no longer finite.
    """
    epochs = iter(training)
    while True:
        with stopping.interruptible():
            said = next(epochs, None)
        if said is None:
            return
        yield replace(mean_epoch(said), number=len(training.said))


def mean_epochs(said: Iterable[Sequence[Epoch]]) -> list[Epoch]:
    """What `measure` has yielded so far. Numbered from 1 through the training: those of jobs in turn run on."""
    return [replace(mean_epoch(epochs), number=number) for number, epochs in enumerate(said, 1)]


def report_step(
    trial: Trial,
    epoch: Step,
    *,
    stride: int = 1,
    prunable: bool,
    reported: int,
    write: Callable[[], None] = lambda: None,
) -> None:
    """Reports the value at the end of a step, from 1, and asks whether to go on.

    A trial's value is that of its last epoch, and not the best of all, which would be the luckiest of as many.

    Args:
        stride: the epochs of a step: one in lockstep, where the step is the mean over all jobs at that epoch; those of
            a whole job in turn, where it is the job's last.
        prunable: whether the study's pruner may end the trial here.
        reported: the last step that is stored already, when a trial is gone on with. Whether to prune there is asked
            again, since its worker may have died before it had asked.
        write: called when the report is made, and before it is asked whether to prune.

    Raises:
        TrialPruned: the pruner says so; its argument is the epoch.
    """
    step, rest = divmod(epoch.number, stride)
    if not rest and step > reported:
        if len(trial.study.directions) > 1:
            # Optuna's own report refuses, for its pruners cannot compare two values; the curve is kept all the same.
            trial.storage.set_trial_intermediate_value(trial._trial_id, step, epoch.value)
        else:
            trial.report(epoch.value, step)
    write()
    if not rest and prunable and step >= reported and trial.should_prune():
        raise TrialPruned(epoch)


def group_by_epoch(said: Iterable[Sequence[Epoch]]) -> list[list[Epoch]]:
    """What the jobs said of each epoch, in lockstep or in turn: of all jobs that have got there, in their order."""
    found = defaultdict[int, list[Epoch]](list)
    for epochs in said:
        for epoch in epochs:
            found[epoch.number].append(epoch)
    return [found[number] for number in sorted(found)]


def mean_epoch(epochs: Sequence[Epoch]) -> Epoch:
    """One epoch of all jobs: means of what they said, and the time of all of them together."""
    return Epoch(
        number=epochs[0].number,
        train_loss=fmean(epoch.train_loss for epoch in epochs),
        valid_loss=fmean(epoch.valid_loss for epoch in epochs),
        value=fmean(epoch.value for epoch in epochs),
        seconds=sum(epoch.seconds for epoch in epochs),
        samples_per_second=fmean(epoch.samples_per_second for epoch in epochs),
    )


def standard_error(epochs: Sequence[Epoch]) -> float | None:
    """How far the mean value of jobs may be off, as one standard deviation of it; None for one job.

    The sample standard deviation over √n. The folds of one data set share most of their training images, so that it is
    on the low side (Bengio and Grandvalet, 2004).
    """
    if len(epochs) < 2:
        return None
    return stdev(epoch.value for epoch in epochs) / math.sqrt(len(epochs))
