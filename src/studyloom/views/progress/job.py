"""The progress of a whole job at one moment, as all views show it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studyloom.storage.attributes import EPOCHS, REUSED
from studyloom.study.control import Wish, read_control
from studyloom.study.job import REEVALUATION, RETRAINING, SEARCH, Job, open_beside, read_job
from studyloom.study.rows import seconds_spent
from studyloom.study.stored_study import StoredStudy
from studyloom.text import format_value, one_line
from studyloom.views.progress.costs import Hours, hours_of
from studyloom.views.progress.estimate import Estimate, Running, Work, estimate
from studyloom.views.snapshot import Snapshot, take_snapshot

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
        title: search, re-evaluation or retraining.
        done: how many of its trials have ended.
        left: how many of its trials have not ended; before it begins, how many it has at most.
        snapshot: of its study; None before it begins.
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
        search: the search.
        stages: the search, and the stages after it that are still expected or have run.
        title: of the stage that is worked on; test while the answer is made, compress while the
            winner is made small, then done.
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
    """Reads a job again and again; the studies of later stages are opened once.

    Args:
        stored: the study of the search.
    """

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
        job: of the last command; None for a study of an earlier version or another program.
        search: the search.
        left: how many of its trials the job still has to do.
        begun: the later stages that have begun, by title.
        feasible: whether the search has a complete trial that breaks no constraint.
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
    """Returns the title of the stage that is worked on.

    Args:
        stages: of the job.
        answered: whether the answer of these stages is there.
        compresses: whether its winner is still to be made small.
    """
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
    """Yields what is known of the trials that run.

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
