"""The progress of a whole job: the search, the judging of its best trials, the final trainings.

`JobReader` reads all stages as one `Progress`: what has ended, what was spent, and how long the
rest takes, with its uncertainty. The functions at the end put that into words.
"""

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from statistics import fmean, pvariance
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studyloom.storage.attributes import BASELINE, EPOCHS, MADE, REUSED, TIMES
from studyloom.study.rows import seconds_spent
from studyloom.study.stopping import Wish, read_control
from studyloom.study.stored_study import (
    REEVALUATION,
    RETRAINING,
    SEARCH,
    Job,
    StoredStudy,
    open_beside,
    read_job,
)
from studyloom.text import format_duration, format_value, one_line
from studyloom.views.snapshot import (
    Snapshot,
    format_trial_values,
    paused,
    take_snapshot,
    uncounted,
)

NINE_OF_TEN = 1.2816  # standard deviations of a normal distribution below which 90 % lie
UNKNOWN = 0.5  # the spread of durations, as a share of their mean, while fewer than two are known


@dataclass(frozen=True)
class Duration:
    """Seconds that are known with some uncertainty; the variance is in seconds squared."""

    mean: float = 0.0
    variance: float = 0.0

    def __add__(self, other: "Duration") -> "Duration":
        return Duration(self.mean + other.mean, self.variance + other.variance)


@dataclass(frozen=True)
class Estimate:
    """The seconds that something will take, and between which eight of ten times it does."""

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


@dataclass(frozen=True)
class Work:
    """The work of one stage.

    Args:
        ended: the seconds that each trial took that has ended.
        left: how many more there will be.
        alike: how many of these are of one candidate, and take equally long.
    """

    ended: Sequence[float] = ()
    running: Sequence[Running] = ()
    left: int = 0
    alike: int = 1


def estimate(works: Iterable[Work], workers: int) -> Estimate | None:
    """Estimates how long stages take that follow one another and have not ended.

    A stage of which no trial has ended takes the durations of the one before.

    Returns:
        None if nobody works, or too little is known.
    """
    if workers < 1:
        return None
    total, known = Duration(), None
    for work in works:
        known = typical(work) or known
        if work.running or work.left:
            if known is None:
                return None
            total += stage_duration(work, known, workers)
    spread = NINE_OF_TEN * math.sqrt(total.variance)
    return Estimate(total.mean, max(0.0, total.mean - spread), total.mean + spread)


def typical(work: Work) -> Duration | None:
    """Returns the duration of a trial of a stage; its variance is of one trial around the mean.

    From the trials that have ended; before, from the curves of those that run, which may end early.
    """
    whole = [trial.pace * trial.epochs for trial in work.running if trial.pace and trial.epochs]
    known = [*work.ended] if len(work.ended) > 1 else [*work.ended, *whole]
    if not known:
        return None
    mean = fmean(known)
    least = 0.0 if len(work.ended) > 1 else (UNKNOWN * mean) ** 2
    return Duration(mean, max(pvariance(known), least))


def stage_duration(work: Work, each: Duration, workers: int) -> Duration:
    """Returns how long a stage takes from now on, each of whose trials takes `each`."""
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
    """Returns the rest of the duration of a trial that runs.

    Its own curve says how long all its epochs take; those of the ended trials that took longer than
    it has run so far say how early one may end.
    """
    later = [seconds - trial.age for seconds in ended if seconds > trial.age]
    expected = fmean(later) if later else max(0.0, each.mean - trial.age)
    variance = pvariance(later) if len(later) > 1 else each.variance
    if trial.pace is not None and trial.epochs is not None:
        most = trial.pace * max(0, trial.epochs - trial.epoch)
        if not later or most < expected:
            return Duration(most, min(variance, most**2))
    return Duration(expected, min(variance, expected**2) if expected else 0.0)


@dataclass(frozen=True)
class Hours:
    """Hours of processor cores, by the threads of the workers, and of GPUs."""

    cores: float = 0.0
    gpus: float = 0.0

    def cost(self, per_hour: float | None) -> float | None:
        """Returns their cost at a price of an hour of a GPU, or of a core without a GPU."""
        return None if per_hour is None else per_hour * (self.gpus or self.cores)


def hours_of(trials: Iterable[FrozenTrial]) -> Hours:
    """Adds up what workers spent on trials that have ended or were paused, also before they died.

    A trial that ran on the CPU counts for each thread of its worker; each of several ranks counts.
    Without a stored environment it counts as one core.
    """
    cores = gpus = 0.0
    for trial in trials:
        hours = sum((trial.user_attrs.get(TIMES) or {}).values()) / 3600
        made: Mapping[str, Any] = trial.user_attrs.get(MADE) or {}
        environment = made.get("environment") or {}
        ranks = environment.get("ranks") or 1
        cores += hours * ranks * (environment.get("threads") or 1)
        if made.get("device") == "cuda":
            gpus += hours * ranks
    return Hours(cores, gpus)


TEST, COMPRESS, DONE = "test", "compress", "done"
# What people read for the title of a stage.
WORDS = {
    SEARCH: "search",
    REEVALUATION: "judging",
    RETRAINING: "final training",
    TEST: "test",
    COMPRESS: "making it small",
    DONE: "done",
}


@dataclass(frozen=True)
class StageProgress:
    """How far a stage of a job has come.

    Args:
        left: how many of its trials have not ended; before it begins, how many it has at most.
        seeds: with how many seeds each candidate is trained.
    """

    title: str
    done: int
    left: int
    snapshot: Snapshot | None = None
    seeds: int = 1

    @property
    def budget(self) -> int:
        """How many trials it has; of a search that has ended early, those that it had."""
        return self.done + self.left


@dataclass(frozen=True)
class Progress:
    """A job at one moment. Two are equal if nothing but the time differs.

    Args:
        stages: the search, and the stages after it that are still expected or have run.
        halted: why the study has stopped itself, if it has.
        control: stop or pause, if another terminal has asked for it.
        answer: the winner and its test in short; None until it is there.
        exit_code: with which the command has ended the job; None while there is something to do.
        elapsed: seconds since the command began; until its end, if it has ended.
        eta: seconds until the end of the whole job; None if nobody works, or too little is known.
        hours: what all stages have spent.
        cost: of these hours; None if no price is known.
        trials: of each stage that has begun, by its title.
    """

    search: Snapshot
    stages: tuple[StageProgress, ...]
    title: str
    halted: str | None = None
    control: Wish | None = None
    answer: Mapping[str, Any] | None = None
    exit_code: int | None = None
    elapsed: float | None = field(default=None, compare=False)
    eta: Estimate | None = field(default=None, compare=False)
    hours: Hours = field(default_factory=Hours, compare=False)
    cost: float | None = field(default=None, compare=False)
    trials: Mapping[str, Sequence[FrozenTrial]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def current(self) -> Snapshot:
        """The study of the stage that is worked on; of the last one when all have ended."""
        known = {stage.title: stage.snapshot for stage in self.stages if stage.snapshot}
        return known.get(self.title) or [*known.values(), self.search][-1]

    @property
    def stage(self) -> StageProgress:
        """The stage that is worked on; the last one when all have ended."""
        return next((s for s in self.stages if s.title == self.title), self.stages[-1])

    @property
    def done(self) -> int:
        """How many trials of all stages have ended."""
        return sum(stage.done for stage in self.stages)

    @property
    def budget(self) -> int:
        """How many trials all stages have, at most; of a search that has ended, those it had."""
        return sum(stage.budget for stage in self.stages)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.exit_code is not None or self.title == DONE

    @property
    def pruned(self) -> int:
        """How many trials of the present stage were pruned."""
        return self.current.outcomes.get("pruned", 0)


class JobReader:
    """Reads a job again and again; the studies of later stages are opened once."""

    def __init__(self, stored: StoredStudy) -> None:
        self.stored = stored
        self._beside: dict[str, StoredStudy] = {}

    def read(self) -> Progress:
        """Reads the job as it is now.

        Raises:
            StorageError: the database cannot be read.
        """
        job, names, answered = read_job(self.stored)
        search = take_snapshot(self.stored)
        begun = dict(self._begun(job, names))
        snapshots = {title: take_snapshot(stored) for title, stored in begun.items()}
        left = search.left
        if job is not None and job.trials < search.budget:  # others have given it more trials
            left = min(left, self.stored.ledger.todo(job.trials))
        feasible = bool(self.stored.feasible())
        stages = tuple(expected_stages(job, search, left, snapshots, feasible))
        if answered is not None and answered.get("stage") != names.get(stages[-1].title):
            answered = None  # of another budget or rule
        trials = {
            SEARCH: self.stored.trials(),
            **{title: stored.trials() for title, stored in begun.items()},
        }
        compresses = job is not None and job.compresses and job.ended is None
        title = present_title(stages, answered is not None, compresses=compresses)
        hours = hours_of(trial for own in trials.values() for trial in own)
        code = None if job is None or self._goes_on(stages) else job.ended
        progress = Progress(
            search=search,
            stages=stages,
            title=title,
            halted=self.stored.halted(),
            control=read_control(self.stored),
            answer=answered,
            exit_code=code,
            elapsed=elapsed_of(job),
            hours=hours,
            cost=hours.cost(None if job is None else job.per_hour),
            trials=trials,
        )
        return replace(progress, eta=time_left(progress))

    def _begun(
        self, job: Job | None, names: Mapping[str, str]
    ) -> Iterator[tuple[str, StoredStudy]]:
        """Yields the studies of the later stages that have begun, by title."""
        for title in (REEVALUATION, RETRAINING):
            name = names.get(title, "")
            if job is None or not name.startswith(job.stage_of(self.stored.name, title)):
                continue  # of another budget
            if name not in self._beside:
                stored = open_beside(self.stored, name)
                if stored is None:
                    continue
                self._beside[name] = stored
            yield title, self._beside[name]

    @staticmethod
    def _goes_on(stages: Sequence[StageProgress]) -> bool:
        """Whether somebody works, though a command has ended the job."""
        snapshots = [stage.snapshot for stage in stages if stage.snapshot is not None]
        return any(worker.alive for snapshot in snapshots for worker in snapshot.workers)


def expected_stages(
    job: Job | None, search: Snapshot, left: int, begun: Mapping[str, Snapshot], feasible: bool
) -> Iterator[StageProgress]:
    """Yields the search, and the stages that are expected after it.

    Args:
        left: how many of its trials the job still has to do.
    """
    yield StageProgress(SEARCH, search.done, left, search)
    if job is None or not job.judged or (not left and not feasible):
        return  # nothing can be judged
    alone = not left and search.outcomes.get("complete", 0) == 1
    needed = job.chosen_anew or not job.tested or not alone
    if REEVALUATION in begun:
        snapshot = begun[REEVALUATION]
        yield StageProgress(REEVALUATION, snapshot.done, snapshot.left, snapshot, job.seeds)
    elif needed and RETRAINING not in begun:
        yield StageProgress(REEVALUATION, 0, (job.top + 1) * job.seeds, None, job.seeds)
    if RETRAINING in begun:
        snapshot = begun[RETRAINING]
        yield StageProgress(RETRAINING, snapshot.done, snapshot.left, snapshot, job.seeds)
    elif job.tested:
        yield StageProgress(RETRAINING, 0, 2 * job.seeds, None, job.seeds)


def present_title(
    stages: Sequence[StageProgress], answered: bool, *, compresses: bool = False
) -> str:
    """Returns the title of the stage that is worked on."""
    for stage in stages:
        if stage.left:
            return stage.title
    if not answered:
        return DONE if len(stages) == 1 else TEST
    return COMPRESS if compresses else DONE


def elapsed_of(job: Job | None) -> float | None:
    """Returns the seconds since a command began, or until it ended; None if that is not known.

    By the clock of this host, which may differ from that of the command.
    """
    if job is None or job.began is None:
        return None
    try:
        began = datetime.fromisoformat(job.began)
        end = datetime.now(UTC) if job.at is None else datetime.fromisoformat(job.at)
        return max(0.0, (end - began).total_seconds())
    except (ValueError, TypeError):  # anybody may have written it
        return None


def time_left(progress: Progress) -> Estimate | None:
    """Estimates the seconds until the whole job has ended."""
    trials = progress.trials
    if progress.ended:
        return Estimate(0.0, 0.0, 0.0)
    workers = sum(worker.alive for worker in progress.current.workers)
    if progress.title in (TEST, COMPRESS):
        return None
    works = []
    for stage in progress.stages:
        if not stage.left and stage.title != SEARCH:
            continue
        own = trials.get(stage.title, ())
        running = list(running_trials(stage.snapshot, own)) if stage.title == progress.title else []
        to_come = max(0, stage.left - len(running))
        works.append(Work([*durations(own)], running, to_come, stage.seeds))
    if works and progress.title == SEARCH:
        # The best trials have all epochs: those that were pruned are not judged.
        whole = [*durations(t for t in trials[SEARCH] if t.state == TrialState.COMPLETE)]
        works[1:] = [replace(work, ended=whole) if not work.ended else work for work in works[1:]]
    return estimate(works, workers)


def durations(trials: Sequence[FrozenTrial] | Iterator[FrozenTrial]) -> Iterator[float]:
    """Yields the seconds that each trial took that has ended and was not reused."""
    for trial in trials:
        if REUSED not in trial.user_attrs and (spent := seconds_spent(trial)) is not None:
            yield spent


def running_trials(snapshot: Snapshot | None, trials: Sequence[FrozenTrial]) -> Iterator[Running]:
    """Yields the running trials, with their epochs and values.

    An epoch takes what those of ended trials did on average, or, before one has ended, what the
    trial itself has taken since its worker has had it.
    """
    paces = [
        fmean(seconds)
        for trial in trials
        if (seconds := (trial.user_attrs.get(EPOCHS) or {}).get("seconds"))
    ]
    for worker in snapshot.workers if snapshot is not None else ():
        if not worker.alive:
            continue
        epoch, age = worker.epoch or 0, worker.age or 0.0
        own = age / epoch if epoch else None
        pace = own if not paces or (own is not None and own > fmean(paces)) else fmean(paces)
        yield Running(age, epoch, worker.epochs, pace)


def describe_answer(answer: Mapping[str, Any]) -> str:
    """Says in one line what a job has found, the test first."""
    metric = one_line(str(answer.get("metric", "value")))
    test, fresh = answer.get("test"), answer.get("fresh")
    trial = one_line(f"trial {answer.get('trial')}")
    if not isinstance(test, Mapping) or not _is_number(test.get("mean")):
        if isinstance(fresh, Mapping) and _is_number(fresh.get("mean")):
            return f"winner {metric} {_mean(fresh)} on fresh seeds, {trial}"
        return f"winner {trial}"
    baseline = answer.get("baseline_test")
    beside = ""
    if isinstance(baseline, int | float) and math.isfinite(baseline):
        beside = f", baseline {format_value(baseline)}"
    return f"test {metric} {_mean(test)}{beside}, {trial}"


def _mean(values: Mapping[str, Any]) -> str:
    spread = f" ± {format_value(values['std'])}" if _is_number(values.get("std")) else ""
    return f"{format_value(values['mean'])}{spread}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


DAY = timedelta(days=1)


def stage_words(progress: Progress) -> str:
    """Words how far the present stage has come, and how many of its trials were pruned."""
    if progress.title == DONE or progress.stage.title != progress.title:
        return WORDS[progress.title]
    stage, snapshot = progress.stage, progress.current
    pruned = [f"{progress.pruned} pruned"] if progress.pruned else []
    counts = [f"{stage.done}/{stage.budget}", *pruned, *paused(snapshot), *uncounted(snapshot)]
    return f"{WORDS[progress.title]} {', '.join(counts)}"


def all_stages(progress: Progress) -> str:
    """Words how far each stage has come, in their order; empty if there is but one."""
    if len(progress.stages) == 1:
        return ""
    return ", ".join(f"{WORDS[s.title]} {s.done}/{s.budget}" for s in progress.stages)


def best_words(progress: Progress) -> str:
    """Words the answer, or else the best trial so far."""
    if progress.answer is not None:
        return describe_answer(progress.answer)
    best = progress.search.best
    if best is None:
        return "no result yet"
    mark = ", the baseline" if BASELINE in best.user_attrs else ""
    return f"best {format_trial_values(best)} (trial {best.number}{mark})"


def time_words(progress: Progress) -> Iterator[str]:
    """Yields how long the job has run, how long it will, and what it has spent."""
    if progress.elapsed is not None:
        yield f"elapsed {format_duration(progress.elapsed)}"
    if not progress.ended:
        yield eta_words(progress)
    hours = progress.hours
    if hours.cores >= 0.01:
        yield f"{hours.cores:.2f} core-hours"
    if hours.gpus >= 0.01:
        yield f"{hours.gpus:.2f} GPU-hours"
    if progress.cost is not None:
        yield f"cost {progress.cost:.2f}"


def working_words(progress: Progress) -> str:
    """Words the stage, the time left and what was asked for; empty while nobody works on a job."""
    asked = control_words(progress)
    if progress.ended or not (asked or any(worker.alive for worker in progress.current.workers)):
        return ""
    stages = all_stages(progress) or stage_words(progress)
    parts = (f"At work: {stage_words(progress)}", f"in all {stages}", eta_words(progress), asked)
    return "; ".join(filter(None, parts if len(progress.stages) > 1 else (*parts[:1], *parts[2:])))


def eta_words(progress: Progress) -> str:
    """Words the time left of the whole job with its uncertainty, and when it ends."""
    eta = progress.eta
    if eta is None:
        return "ETA –"
    words = f"ETA {format_duration(eta.seconds)}"
    if eta.seconds < 1:
        return words
    low, high = format_duration(eta.low), format_duration(eta.high)
    between = "" if low == high else f" ({low} to {high})"
    return f"{words}{between}, at {clock_words(datetime.now() + timedelta(seconds=eta.seconds))}"


def clock_words(moment: datetime, now: datetime | None = None) -> str:
    """Formats a moment in local time: 15:42, or with the day if that is another one."""
    now = datetime.now() if now is None else now
    if moment.date() == now.date():
        return f"{moment:%H:%M}"
    return f"{moment:%a %H:%M}" if moment - now < 6 * DAY else f"{moment:%Y-%m-%d %H:%M}"


def control_words(progress: Progress) -> str:
    """Words what another terminal has asked for; empty for nothing."""
    held = len(progress.current.workers)
    if progress.control == "pause":
        return "paused" if not held else f"pausing: {held} trials are released at their last epoch"
    if progress.control == "stop" and not progress.ended:
        return "stopped" if not held else "stopping"
    return ""


def progress_line(progress: Progress) -> str:
    """Formats a job as one line, without what changes every second."""
    search = progress.search
    parts = [one_line(search.name), stage_words(progress), best_words(progress)]
    if running := len(progress.current.workers):
        parts.append(f"{running} running")
    if words := control_words(progress):
        parts.append(words)
    if search.outlook.ending is not None and progress.title == progress.stages[0].title:
        parts.append(search.outlook.ending.words)
    return "  ".join(parts)


def wrap(parts: Iterable[str], width: int, separator: str = ", ") -> list[str]:
    """Joins parts to lines that are no longer than `width`; a part is broken only if it must be."""
    lines: list[str] = []
    for part in parts:
        end = separator.rstrip()
        if lines and len(lines[-1]) + len(separator) + len(part) + len(end) <= width:
            lines[-1] += separator + part
            continue
        if lines:
            lines[-1] += end
        lines += textwrap.wrap(part, width) or [""]
    return lines
