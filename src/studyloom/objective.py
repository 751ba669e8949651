"""What a trial is worth: the mean validation accuracy of its jobs, reported epoch by epoch."""

from collections.abc import Callable, Sequence
from statistics import fmean

from optuna import Trial, TrialPruned

from studyloom import train
from studyloom.data import Split
from studyloom.train import Epoch, Job


class Stopped(Exception):
    """The worker was asked to stop; the trial is to be handed back as it is."""


def measure(
    trial: Trial,
    jobs: Sequence[Job],
    split: Split,
    *,
    prunable: bool,
    reported: int,
    stopping: Callable[[], bool],
) -> list[Epoch]:
    """Trains the jobs in lockstep and reports their mean accuracy after each epoch, which is the step, from 1.

    Args:
        prunable: whether the study's pruner may end the trial.
        reported: the steps that are stored already, when a trial is gone on with.
        stopping: asked after each epoch.

    Returns:
        The mean epochs; the trial's value is the accuracy of the last, and not the best of all, which would be the
        luckiest of as many draws.

    Raises:
        TrialPruned: with the curve so far as its argument.
        Stopped: as asked.
        train.Diverged: a loss is no longer finite.
    """
    curve: list[Epoch] = []
    for epochs in train.epochs(jobs, split):
        curve.append(mean(epochs))
        step = curve[-1].number
        if step > reported:
            trial.report(curve[-1].accuracy, step)
            if prunable and step < jobs[0].epochs and trial.should_prune():
                raise TrialPruned(curve)
        if stopping() and step < jobs[0].epochs:
            raise Stopped
    return curve


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
