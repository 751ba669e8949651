"""The estimate of how much work a study has still to do, and how long it takes.

Work is counted in epochs: those that trials have trained, those that are expected of trials that
have begun, and those of trials that have not. The pace of a worker turns epochs into seconds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from optuna.trial import FrozenTrial

from studyloom.storage.trial_record import TrialRecord
from studyloom.views.snapshot import WorkerStatus

FACTOR = 3  # one of so many paused trials is expected to be promoted, as `AshaPruner` does


@dataclass(frozen=True)
class Work:
    """The work of one stage in epochs; a trial that reports none counts as one epoch.

    A call of a loop counts as one epoch if a trial has several, for its folds and seeds.

    Args:
        done: the epochs that its trials have trained.
        remaining: how many more epochs each trial that has begun is expected to train.
        new_trials: how many trials have not begun.
        new_length: how many epochs each of the new trials is expected to train.
        full_length: the epochs of a trial that nothing ends early.
        pace: a worker's seconds per epoch; None if unknown.
    """

    done: float = 0.0
    remaining: Sequence[float] = ()
    new_trials: int = 0
    new_length: float = 1.0
    full_length: float = 1.0
    pace: float | None = None

    @property
    def epochs_left(self) -> float:
        """The epochs that are expected to come."""
        return sum(self.remaining) + self.new_trials * self.new_length

    @property
    def share(self) -> float:
        """The share of its epochs that is done, from 0 to 1."""
        if not self.epochs_left:
            return 1.0
        return self.done / (self.done + self.epochs_left)


def compute_share(works: Sequence[Work]) -> float:
    """Returns the share of the epochs of all stages that is done, from 0 to 1; 1 without any."""
    done = sum(work.done for work in works)
    left = sum(work.epochs_left for work in works)
    if not left:
        return 1.0
    return done / (done + left)


def estimate_seconds(works: Iterable[Work], workers: int) -> float | None:
    """Estimates the seconds that successive stages will take.

    A stage that has not begun is estimated by the pace of the one before.

    Returns:
        The seconds; None if no worker runs, or too little is known.
    """
    if workers < 1:
        return None
    seconds = 0.0
    pace: float | None = None
    for work in works:
        if work.pace is not None:
            pace = work.pace
        if not work.epochs_left:
            continue
        if pace is None:
            return None
        trials_left = work.new_trials + len(work.remaining)  # with those that have begun
        busy_workers = max(1, min(workers, trials_left))
        epochs_of_worker = work.epochs_left / busy_workers
        if work.new_trials:
            # At the end of a stage, each worker but the last to end waits, for half a trial on
            # average.
            waiting_share = 1 - 1 / busy_workers
            epochs_of_worker += work.new_length / 2 * waiting_share
        # A trial runs on one worker, so that a stage takes at least as long as its longest trial.
        longest_trial = max(work.remaining, default=0.0)
        seconds += pace * max(epochs_of_worker, longest_trial)
    return seconds


def estimate_work(
    trials: Sequence[FrozenTrial], left: int, workers: Sequence[WorkerStatus], previous: Work
) -> Work:
    """Estimates the work of a stage from its trials so far.

    Work and the lengths of trials are counted in epochs, the pace in seconds per epoch.

    Args:
        left: how many of the trials of the stage have not ended, with those that have not begun.
        workers: the workers that hold its trials.
        previous: the work of the stage before it. Before the stage has a trial of known length, a
            trial that nothing ends early is taken to be as long as there.
    """
    records = [TrialRecord(trial) for trial in trials if trial.datetime_start is not None]
    ended_records = []
    unfinished_records = []
    for record in records:
        if record.trial.state.is_finished():
            ended_records.append(record)
        else:
            unfinished_records.append(record)
    lengths = _observe_lengths(records, ended_records, previous.full_length)
    pace = measure_pace(records, workers)

    seconds_held = {worker.trial: worker.held_seconds or 0.0 for worker in workers}
    done = float(sum(lengths.ended_lengths))
    remaining = []
    for record in unfinished_records:
        epochs_trained: float = record.steps_done
        if not epochs_trained and pace:  # the time so far says how much of the first is trained
            seconds = seconds_held.get(record.trial.number, 0.0)
            epochs_trained = min(1.0, seconds / pace)
        is_paused = record.paused is not None
        remaining.append(lengths.expect_further_epochs(epochs_trained, waits_at_rung=is_paused))
        done += epochs_trained
    return Work(
        done=done,
        remaining=remaining,
        new_trials=max(0, left - len(remaining)),
        new_length=lengths.expect_further_epochs(0),
        full_length=lengths.full_length,
        pace=pace,
    )


def _observe_lengths(
    records: Sequence[TrialRecord], ended_records: Sequence[TrialRecord], default_length: float
) -> "_ExpectedLengths":
    """Returns the lengths of trials, in epochs, as the trials of a stage so far show them.

    A rung is an epoch at which the pruner compares trials. Each is FACTOR times the one before.

    Args:
        records: the trials that have begun, including those that have ended.
        ended_records: the trials that have ended.
        default_length: the epochs of a full trial before the stage has one.
    """
    lengths = []
    positive_rungs: list[float] = []
    for record in records:
        lengths.append(record.steps_planned or record.steps_done)
        positive_rungs += [rung for rung in record.rungs if rung > 0]
    full_length = max(lengths, default=0) or default_length
    rungs = []
    rung = min(positive_rungs, default=full_length)
    while rung < full_length:
        rungs.append(rung)
        rung *= FACTOR
    ended_lengths = [max(1, record.steps_done) for record in ended_records]
    return _ExpectedLengths(full_length, rungs, ended_lengths)


@dataclass(frozen=True)
class _ExpectedLengths:
    """The epochs that trials are expected to train, by the trials of a stage so far.

    A rung is an epoch at which the pruner pauses trials and promotes the best. One of FACTOR trials
    is expected to pass each rung. Without rungs, a trial is expected to end where those ended on
    average that have trained longer than it has so far.

    Args:
        full_length: the epochs of a trial that nothing ends early.
        rungs: the epochs at which trials are compared, before `full_length`; empty without rungs.
        ended_lengths: the epochs of each trial that has ended.
    """

    full_length: float
    rungs: Sequence[float]
    ended_lengths: Sequence[int]

    def expect_further_epochs(self, trained_epochs: float, *, waits_at_rung: bool = False) -> float:
        """Returns how many epochs a trial is expected to train in addition to those so far.

        A rung is an epoch at which the pruner compares trials, and lets one of FACTOR continue. So
        a trial trains surely up to its next rung, with the probability 1 / FACTOR from there to the
        one after it, and so on. Take rungs at 3 and 9 of 27 epochs, and FACTOR = 3: a trial that
        has trained 1 epoch is expected to train 2 + 6 / 3 + 18 / 9 = 6 further ones.

        Args:
            trained_epochs: the epochs that the trial has trained.
            waits_at_rung: whether it is paused at the rung of this epoch, and may end there.
        """
        if not self.rungs:
            return self._expect_without_rungs(trained_epochs)
        ends = [rung for rung in self.rungs if rung > trained_epochs]
        ends.append(self.full_length)
        probability = 1.0  # that the trial trains from `start` to `end`
        if waits_at_rung and trained_epochs in self.rungs:
            probability /= FACTOR
        further_epochs = 0.0
        start = trained_epochs
        for end in ends:
            further_epochs += probability * max(0.0, end - start)
            probability /= FACTOR
            start = end
        return further_epochs

    def _expect_without_rungs(self, trained_epochs: float) -> float:
        """Returns how many epochs a trial is expected to train in addition to those so far.

        It is expected to end where those ended on average that have trained longer than it has;
        if there are none, after all epochs.
        """
        longer_lengths = [length for length in self.ended_lengths if length > trained_epochs]
        expected_length = self.full_length
        if longer_lengths:
            expected_length = fmean(longer_lengths)
        return max(0.0, expected_length - trained_epochs)


def measure_pace(records: Sequence[TrialRecord], workers: Sequence[WorkerStatus]) -> float | None:
    """Returns a worker's seconds per epoch; None before a trial has ended an epoch.

    Trials that have paused or ended are measured; before there are any, the running trials.
    """
    epochs = 0
    seconds = 0.0
    for record in records:
        if record.outcome != "running" and record.reused is None:  # a reused training took no time
            epochs += max(1, record.steps_done)  # a trial that reports none counts as one epoch
            # A paused trial has no total yet, only the seconds of its training.
            seconds += record.seconds or record.times.get("training", 0.0)
    if not epochs:
        seconds = 0.0
        for worker in workers:
            if worker.epoch:
                epochs += worker.epoch
                seconds += worker.held_seconds or 0.0
    if not epochs:
        return None
    return seconds / epochs
