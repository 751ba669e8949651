"""What a trial is worth: the mean validation accuracy of its jobs, reported epoch by epoch."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from statistics import fmean
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
    """Trains in lockstep, and yields the mean of all jobs after each epoch.

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
        yield mean(said)


def report(trial: Trial, epoch: Epoch, *, prunable: bool, reported: int) -> None:
    """Reports the mean accuracy at the epoch, which is the step, from 1, and asks whether to go on.

    A trial's value is the accuracy of its last epoch, and not the best of all, which would be the luckiest of as many.

    Args:
        prunable: whether the study's pruner may end the trial here.
        reported: the last step that is stored already, when a trial is gone on with. Whether to prune there is asked
            again, since its worker may have died before it had asked.

    Raises:
        TrialPruned: the pruner says so; its argument is the epoch.
    """
    if epoch.number > reported:
        trial.report(epoch.accuracy, epoch.number)
    if prunable and epoch.number >= reported and trial.should_prune():
        raise TrialPruned(epoch)


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
