"""What a trial is worth: the mean validation accuracy of its jobs, reported epoch by epoch or job by job."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from statistics import fmean, stdev
from typing import Protocol

from optuna import Trial, TrialPruned

from studyloom.train import Epoch, Training


class Stopped(BaseException):
    """The worker was asked to stop; the trial is to be handed back as it is. No code of a user's swallows it."""


class Stopping(Protocol):
    """Whether to stop; `interruptible()` surrounds work in the midst of which Stopped may be raised."""

    def __call__(self) -> bool: ...
    def interruptible(self) -> AbstractContextManager[None]: ...


def measure(training: Training, stopping: Stopping) -> Iterator[Epoch]:
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
        yield replace(mean(said), number=len(training.said))


def means(said: Iterable[Sequence[Epoch]]) -> list[Epoch]:
    """What `measure` has yielded so far. Numbered from 1 through the training: those of jobs in turn run on."""
    return [replace(mean(epochs), number=number) for number, epochs in enumerate(said, 1)]


def report(trial: Trial, epoch: Epoch, *, stride: int = 1, prunable: bool, reported: int) -> None:
    """Reports the accuracy at the end of a step, from 1, and asks whether to go on.

    A trial's value is the accuracy of its last epoch, and not the best of all, which would be the luckiest of as many.

    Args:
        stride: the epochs of a step: one in lockstep, where the step is the mean over all jobs at that epoch; those of
            a whole job in turn, where it is the job's last.
        prunable: whether the study's pruner may end the trial here.
        reported: the last step that is stored already, when a trial is gone on with. Whether to prune there is asked
            again, since its worker may have died before it had asked.

    Raises:
        TrialPruned: the pruner says so; its argument is the epoch.
    """
    step, rest = divmod(epoch.number, stride)
    if rest:
        return
    if step > reported:
        trial.report(epoch.accuracy, step)
    if prunable and step >= reported and trial.should_prune():
        raise TrialPruned(epoch)


def by_epoch(said: Iterable[Sequence[Epoch]]) -> list[list[Epoch]]:
    """What the jobs said of each epoch, in lockstep or in turn: of all jobs that have got there, in their order."""
    found = defaultdict[int, list[Epoch]](list)
    for epochs in said:
        for epoch in epochs:
            found[epoch.number].append(epoch)
    return [found[number] for number in sorted(found)]


def mean(epochs: Sequence[Epoch]) -> Epoch:
    """One epoch of all jobs: means of what they said, and the time of all of them together."""
    return Epoch(
        number=epochs[0].number,
        train_loss=fmean(epoch.train_loss for epoch in epochs),
        valid_loss=fmean(epoch.valid_loss for epoch in epochs),
        accuracy=fmean(epoch.accuracy for epoch in epochs),
        seconds=sum(epoch.seconds for epoch in epochs),
        samples_per_second=fmean(epoch.samples_per_second for epoch in epochs),
    )


def standard_error(epochs: Sequence[Epoch]) -> float | None:
    """How far the mean accuracy of jobs may be off, as one standard deviation of it; None for one job.

    The sample standard deviation over √n. The folds of one data set share most of their training images, so that it is
    on the low side (Bengio and Grandvalet, 2004).
    """
    if len(epochs) < 2:
        return None
    return stdev(epoch.accuracy for epoch in epochs) / math.sqrt(len(epochs))
