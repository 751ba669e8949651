"""How long the rest of a job takes, with its uncertainty, from the trials and curves so far.

The work that is left is the sum of what the running trials still take and of what those to come
take. Each is expected to take the mean of those that have ended; the interval has the spread of
that sum and the uncertainty of the mean, which is large while few have ended.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, pvariance

NINE_OF_TEN = 1.2816  # standard deviations of a normal distribution below which 90 % lie
UNKNOWN = 0.5  # the spread of durations, as a share of their mean, while fewer than two are known


@dataclass(frozen=True)
class Duration:
    """A duration that is known with some uncertainty.

    Args:
        mean: seconds.
        variance: seconds squared.
    """

    mean: float = 0.0
    variance: float = 0.0

    def __add__(self, other: "Duration") -> "Duration":
        return Duration(self.mean + other.mean, self.variance + other.variance)


@dataclass(frozen=True)
class Estimate:
    """The seconds that something will take.

    Args:
        seconds: in the middle.
        low: it takes less than this with a probability of one in ten.
        high: it takes longer than this with a probability of one in ten.
    """

    seconds: float
    low: float
    high: float


@dataclass(frozen=True)
class Running:
    """A trial that runs.

    Args:
        age: seconds for which its worker has had it.
        epoch: the epochs that it has reported.
        epochs: how many it has; None if that is not known.
        pace: seconds of one of its epochs; None before the first.
    """

    age: float = 0.0
    epoch: int = 0
    epochs: int | None = None
    pace: float | None = None

    @property
    def whole(self) -> float | None:
        """The seconds of all its epochs; None if that is not known."""
        return None if self.pace is None or self.epochs is None else self.pace * self.epochs


@dataclass(frozen=True)
class Work:
    """The work of one stage.

    Args:
        ended: the seconds that each trial took that has ended.
        running: the trials that run.
        left: how many more there will be.
        alike: how many of these are of one candidate, and take equally long.
    """

    ended: Sequence[float] = ()
    running: Sequence[Running] = ()
    left: int = 0
    alike: int = 1


def estimate(works: Iterable[Work], workers: int) -> Estimate | None:
    """Estimates how long stages take that follow one another.

    Args:
        works: of the stages that have not ended, in their order; a stage of which no trial has
            ended takes the durations of the one before.
        workers: how many work.

    Returns:
        None if nobody works, or too little is known.
    """
    if workers < 1:
        return None
    total, known = Duration(), Duration()
    nothing_known = True
    for work in works:
        each = typical(work)
        if each is not None:
            known, nothing_known = each, False
        if not work.running and not work.left:
            continue
        if nothing_known:
            return None
        total += stage_duration(work, known, workers)
    spread = NINE_OF_TEN * math.sqrt(total.variance)
    return Estimate(total.mean, max(0.0, total.mean - spread), total.mean + spread)


def typical(work: Work) -> Duration | None:
    """Returns what a trial of a stage takes; its variance is that of one trial around the mean.

    From the trials that have ended; before, from the curves of those that run, which may end early.
    """
    if len(work.ended) > 1:
        return Duration(fmean(work.ended), pvariance(work.ended))
    whole = [*work.ended, *filter(None, (trial.whole for trial in work.running))]
    if not whole:
        return None
    mean = fmean(whole)
    return Duration(mean, max(pvariance(whole), (UNKNOWN * mean) ** 2))


def stage_duration(work: Work, each: Duration, workers: int) -> Duration:
    """Returns how long a stage takes from now on.

    Args:
        work: of the stage.
        each: what one of its trials takes.
        workers: how many work.
    """
    rests = [rest(trial, work.ended, each) for trial in work.running]
    # Trials of one candidate are of one duration, so their sum spreads more than that of others.
    to_come = Duration(work.left * each.mean, work.left * work.alike * each.variance)
    # All that is expected shares the error of the mean.
    known = max(1.0, len(work.ended) / work.alike)
    of_mean = Duration(0.0, work.left**2 * each.variance / known)
    total = sum((*rests, to_come, of_mean), Duration())
    at_once = max(1, min(workers, work.left + len(rests)))
    # Nobody helps with the last one, which ends later than all others on average.
    longest = max((item.mean for item in rests), default=0.0)
    last = each.mean / 2 * (1 - 1 / at_once) if work.left else 0.0
    mean = max(total.mean / at_once + last, longest)
    return Duration(mean, total.variance / at_once**2)


def rest(trial: Running, ended: Sequence[float], each: Duration) -> Duration:
    """Returns what a trial that runs still takes.

    Its own curve says how long all its epochs take; those of the ended trials that took longer than
    it has run so far say how early one may end.

    Args:
        trial: that runs.
        ended: the seconds that each trial took that has ended.
        each: what a trial takes.
    """
    later = [seconds - trial.age for seconds in ended if seconds > trial.age]
    expected = fmean(later) if later else max(0.0, each.mean - trial.age)
    variance = pvariance(later) if len(later) > 1 else each.variance
    if trial.pace is not None and trial.epochs is not None:
        most = trial.pace * max(0, trial.epochs - trial.epoch)
        if not later or most < expected:
            return Duration(most, min(variance, most**2))
    return Duration(expected, min(variance, expected**2) if expected else 0.0)
