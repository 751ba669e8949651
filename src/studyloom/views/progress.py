"""The progress of a whole job: search, re-evaluation and final training.

`ProgressReader` reads all stages as one `Progress`: what has ended, what was spent, and how long
the rest will take. `Status` adds hyperparameter importances and failures. Both format themselves as
words and as JSON: the document of a status, and an object for each event.
"""

import itertools
import json
import math
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from statistics import fmean
from typing import Any, Literal, NotRequired, TypedDict

from optuna.trial import FrozenTrial

from studyloom.decisions.early_end import Hours, sum_hours
from studyloom.errors import StorageError
from studyloom.storage.command_record import CommandRecord, StoredCommand
from studyloom.storage.failures import FailureCount, count_failures
from studyloom.storage.stored_study import (
    ABLATION,
    FINAL_TRAINING,
    REEVALUATION,
    SEARCH,
    StoredStudy,
    open_in_same_database,
    value_of,
)
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import format_duration, one_line
from studyloom.views.snapshot import (
    Snapshot,
    WorkerStatus,
    importances,
    take_snapshot,
)
from studyloom.views.words import (
    count_uncounted,
    describe_stored_result,
    format_trial_values,
)
from studyloom.winner.result import ShortResult
from studyloom.worker.stopping import Request, read_control

WATCH_INTERVAL = 1.0  # seconds between looks at a job of other processes
MOST_IMPORTANT = 5  # hyperparameters whose importance a status has
FACTOR = 3  # one of so many paused trials is expected to be promoted, as `AshaPruner` does


@dataclass(frozen=True)
class Work:
    """The work of one stage in epochs; a trial that reports none counts as one epoch.

    A call of a loop counts as one epoch if a trial has several, for its folds and seeds.

    Args:
        done: the epochs that its trials have trained.
        rests: how many more each trial that has begun is expected to train.
        new: how many trials have not begun.
        each: how many epochs each of these is expected to train.
        whole: the epochs of a trial that nothing ends early.
        pace: a worker's seconds per epoch; None if unknown.
    """

    done: float = 0.0
    rests: Sequence[float] = ()
    new: int = 0
    each: float = 1.0
    whole: float = 1.0
    pace: float | None = None

    @property
    def left(self) -> float:
        """The epochs that are expected to come."""
        return sum(self.rests) + self.new * self.each

    @property
    def share(self) -> float:
        """The share of its epochs that is done, from 0 to 1."""
        return self.done / (self.done + self.left) if self.left else 1.0


def estimate(works: Iterable[Work], workers: int) -> float | None:
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
        pace = pace if work.pace is None else work.pace
        if not work.left:
            continue
        if pace is None:
            return None
        at_once = max(1, min(workers, work.new + len(work.rests)))
        # The last trial runs on one worker, and ends later than all others on average.
        last = work.each / 2 * (1 - 1 / at_once) if work.new else 0.0
        seconds += pace * max(work.left / at_once + last, *work.rests, 0.0)
    return seconds


def work_of(stage: "StageProgress", trials: Sequence[FrozenTrial], before: Work) -> Work:
    """Returns the work of a stage, as its trials so far show it.

    Args:
        before: the work of the stage before it, whose whole trials are as long.
    """
    records = [TrialRecord(trial) for trial in trials if trial.datetime_start is not None]
    lengths = [max(1, each.steps_done) for each in records if each.trial.state.is_finished()]
    known = [each.steps_planned or each.steps_done for each in records]
    whole = max(known, default=0) or before.whole
    first = min((rung for each in records for rung in each.rungs if rung > 0), default=whole)
    steps = (first * FACTOR**n for n in itertools.count())
    rungs = [*itertools.takewhile(lambda step: step < whole, steps)]

    def rest(trained: float, *, waits: bool = False) -> float:
        """Returns how many more epochs a trial is expected to train; few pass a rung."""
        longer = [length for length in lengths if length > trained]
        until = whole if rungs or not longer else fmean(longer)
        chance, epochs = 1.0, 0.0
        for step in [*(r for r in rungs if r > trained or (waits and r == trained)), until]:
            epochs += chance * max(0.0, step - trained)
            chance, trained = chance / FACTOR, step
        return epochs

    pace, done, rests = pace_of(stage, records), float(sum(lengths)), list[float]()
    ages = {worker.trial: worker.held or 0.0 for worker in stage.workers}
    for each in records:
        if not each.trial.state.is_finished():
            age = ages.get(each.trial.number, 0.0)
            trained = each.steps_done or min(1.0, age / pace if pace else 0.0)
            rests.append(rest(trained, waits=each.paused is not None))
            done += trained
    return Work(done, rests, max(0, stage.left - len(rests)), rest(0), whole, pace)


def pace_of(stage: "StageProgress", records: Sequence[TrialRecord]) -> float | None:
    """Returns a worker's seconds per epoch; before a trial has paused or ended, of those running.

    Reused trainings took no time.
    """
    known = [each for each in records if each.outcome != "running" and each.reused is None]
    epochs = sum(max(1, each.steps_done) for each in known)
    seconds = sum(each.seconds or each.times.get("training", 0.0) for each in known)
    if not epochs:
        epochs = sum(worker.epoch or 0 for worker in stage.workers)
        seconds = sum(worker.held or 0.0 for worker in stage.workers if worker.epoch)
    return seconds / epochs if epochs else None


TEST, DONE = "test", "done"
# The titles of stages for people.
WORDS = {
    SEARCH: "search",
    REEVALUATION: "re-evaluation",
    ABLATION: "ablation",
    FINAL_TRAINING: "final training",
    TEST: "test",
    DONE: "done",
}


@dataclass(frozen=True)
class StageProgress:
    """How far a stage of a job has come.

    Args:
        left: how many of its trials have not ended; before it begins, at most.
    """

    title: str
    done: int
    left: int
    snapshot: Snapshot | None = None

    @property
    def budget(self) -> int:
        """The number of its trials; for a search that ended early, of those that it ran."""
        return self.done + self.left

    @property
    def workers(self) -> Sequence[WorkerStatus]:
        """The workers that hold its trials."""
        return () if self.snapshot is None else self.snapshot.workers


@dataclass(frozen=True)
class Progress:
    """A job at one moment. Two are equal if nothing but the time differs.

    Args:
        stages: the search, and the stages after it that are still expected or have run.
        halted: why the study was aborted, if it was.
        control: stop or pause, if another terminal has requested it.
        result: a summary of the winner and its test; None before there is one.
        exit_code: the exit code of the command that ended the job; None while work is left.
        elapsed: seconds from the start of the command until now, or until its end.
        eta: seconds until the end of the whole job; None if no worker runs or too little is known.
        hours: the hours that all stages have spent.
        cost: the cost of these hours; None if no price is known.
        trials: the trials of each stage that has begun, by its title.
        works: the work of each of `stages`.
        importances: those of the hyperparameters, to order them; may lag behind.
    """

    search: Snapshot
    stages: tuple[StageProgress, ...]
    title: str
    halted: str | None = None
    control: Request | None = None
    result: Mapping[str, Any] | None = None
    exit_code: int | None = None
    elapsed: float | None = field(default=None, compare=False)
    eta: float | None = field(default=None, compare=False)
    hours: Hours = field(default_factory=Hours, compare=False)
    cost: float | None = field(default=None, compare=False)
    trials: Mapping[str, Sequence[FrozenTrial]] = field(
        default_factory=dict, compare=False, repr=False
    )
    works: Sequence[Work] = field(default=(), compare=False, repr=False)
    importances: Mapping[str, float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def current(self) -> Snapshot:
        """The snapshot of `stage`, or of the search if the stage has not begun."""
        return self.stage.snapshot or self.search

    @property
    def stage(self) -> StageProgress:
        """The stage that is running; the last one when all have ended."""
        return next((s for s in self.stages if s.title == self.title), self.stages[-1])

    @property
    def done(self) -> int:
        """The number of ended trials of all stages."""
        return sum(stage.done for stage in self.stages)

    @property
    def budget(self) -> int:
        """The largest number of trials of all stages; of an ended search, those that it ran."""
        return sum(stage.budget for stage in self.stages)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.exit_code is not None or self.title == DONE

    @property
    def share(self) -> float:
        """The share of the epochs of the current stage that is done, from 0 to 1."""
        shares = {s.title: w.share for s, w in zip(self.stages, self.works, strict=False)}
        return shares.get(self.title, 1.0)

    @property
    def stage_words(self) -> str:
        """The progress of the current stage, and how many of its trials were pruned."""
        if self.title == DONE or self.stage.title != self.title:
            return WORDS[self.title]
        stage, noun = self.stage, "trials" if self.title == SEARCH else "trainings"
        counts = [f"{stage.done:,} of {stage.budget:,} {noun}"]
        if (own := stage.snapshot) is not None:
            pruned = own.outcomes.get("pruned", 0)
            counts += [*[f"{pruned:,} pruned"] * bool(pruned), *count_uncounted(own)]
        return f"{WORDS[self.title]}: {', '.join(counts)}"

    @property
    def later_words(self) -> str:
        """The stages to come, with the number of their trainings; empty without one."""
        titles = [stage.title for stage in self.stages]
        present = titles.index(self.title) if self.title in titles else len(titles)
        later = [f"{WORDS[s.title]} {s.budget}" for s in self.stages[present + 1 :]]
        return f"then {', '.join(later)}" if later else ""

    @property
    def best_words(self) -> str:
        """The result, or else the best trial so far."""
        if self.result is not None:
            return describe_stored_result(self.result)
        best = self.search.best
        if best is None:
            return "no result yet"
        mark = ", the baseline" if TrialRecord(best).is_baseline else ""
        return f"best {format_trial_values(best)} (trial {best.number}{mark})"

    def time_words(self) -> Iterator[str]:
        """Yields how long a running job has taken and will take, and what it has spent."""
        if not self.ended:
            if self.elapsed is not None:
                yield f"elapsed {format_duration(self.elapsed)}"
            yield self.eta_words
        hours = self.hours
        if hours.cores >= 0.01:
            yield f"{hours.cores:.2f} core-hours"
        if hours.gpus >= 0.01:
            yield f"{hours.gpus:.2f} GPU-hours"
        if self.cost is not None:
            yield f"cost {self.cost:.2f}"

    def now_words(self) -> list[str]:
        """The stage, those to come, a request to stop or pause, and the times, for a report."""
        words = (self.stage_words, self.later_words, self.control_words, *self.time_words())
        return [*filter(None, words)]

    @property
    def at_work(self) -> bool:
        """Whether a worker runs, or a pause is requested, before the job has ended."""
        held = any(worker.alive for worker in self.current.workers)
        return not self.ended and (held or bool(self.control_words))

    @property
    def eta_words(self) -> str:
        """The time left of the whole job, and when it ends."""
        if (eta := self.eta) is None:
            return "ETA –"
        words = f"ETA {format_duration(eta)}"
        at = clock_words(datetime.now() + timedelta(seconds=eta))
        return words if eta < 1 else f"{words}, at {at}"

    @property
    def control_words(self) -> str:
        """The request of another terminal to stop or pause; empty if there is none."""
        held = len(self.current.workers)
        if self.control == "pause":
            if not held:
                return "paused"
            if held == 1:
                return "pausing: 1 trial is released at its last epoch"
            return f"pausing: {held} trials are released at their last epoch"
        if self.control == "stop" and not self.ended:
            return "stopped" if not held else "stopping"
        return ""

    @property
    def line(self) -> str:
        """The job as one line, without the values that change every second."""
        search = self.search
        parts = [one_line(search.name), self.stage_words, self.best_words]
        if running := len(self.current.workers):
            parts.append(f"{running} running")
        parts.append(self.control_words)
        if search.forecast.ending is not None and self.title in (SEARCH, DONE):
            parts.append(search.forecast.ending.reason)
        return "  ".join(filter(None, parts))


class ProgressReader:
    """Reads a job repeatedly.

    Opens the studies of later stages once, and recomputes the importances of hyperparameters only
    after a further trial is complete.
    """

    def __init__(self, stored: StoredStudy) -> None:
        self.stored = stored
        self._beside: dict[str, StoredStudy] = {}
        self._complete: int | None = None  # how many trials the importances are based on
        self._importances: Mapping[str, float] = {}

    def status(self) -> "Status":
        """Reads the status of the study.

        Raises:
            StorageError: the database cannot be read.
        """
        progress = self.read()
        shares = self._weigh(progress.search)
        few = dict([*shares.items()][:MOST_IMPORTANT])
        return Status(progress, few, count_failures(progress.search.trials))

    def _weigh(self, search: Snapshot, growth: float = 1.0) -> Mapping[str, float]:
        """Returns the importances, from at least `1 / growth` of the complete trials."""
        complete = search.outcomes.get("complete", 0)
        if self._complete is None or not self._complete <= complete <= growth * self._complete:
            self._importances = importances(self.stored).shares
            self._complete = complete
        return self._importances

    def statuses(self) -> Iterator["Status | StorageError"]:
        """Reads the job every second until it has ended.

        Yields:
            The status, or the error if the database cannot be read; the next read may succeed.
        """
        ended = False
        while not ended:
            try:
                status = self.status()
                ended = status.progress.ended
                yield status
            except StorageError as error:
                yield error
            if not ended:
                time.sleep(WATCH_INTERVAL)

    def read(self) -> Progress:
        """Reads the current progress of the job.

        Raises:
            StorageError: the database cannot be read.
        """
        command = StoredCommand.read(self.stored)
        record, names, result = command.record, command.stages, command.result
        studies = {SEARCH: self.stored, **dict(self._begun(record, names))}
        snapshots = {title: take_snapshot(stored) for title, stored in studies.items()}
        trials = {title: snapshot.trials for title, snapshot in snapshots.items()}
        search, left = snapshots[SEARCH], snapshots[SEARCH].left
        if record is not None and record.trials < search.budget:  # another command raised it
            left = min(left, record.trials - _count_ended(search.trials, record.trials))
        feasible = bool(self.stored.feasible())
        stages = tuple(expected_stages(record, left, snapshots, feasible))
        last = stages[-1].snapshot
        if result is not None and (last is None or result.get("stage") != last.name):
            result = None  # it belongs to another budget or rule
        hours = sum_hours(
            trial for stored in studies.values() for trial in stored.trials_of_workers()
        )
        works = [Work()]
        for stage in stages:
            works.append(work_of(stage, trials.get(stage.title, ()), works[-1]))
        # Workers may run although a command has ended the job.
        goes_on = any(w.alive for snapshot in snapshots.values() for w in snapshot.workers)
        progress = Progress(
            search=search,
            stages=stages,
            title=present_title(stages, result is not None),
            halted=self.stored.halted(),
            control=read_control(self.stored),
            result=result,
            exit_code=None if record is None or goes_on else record.ended,
            elapsed=elapsed_of(record),
            hours=hours,
            cost=hours.cost(None if record is None else record.per_hour),
            trials=trials,
            works=works[1:],
            importances=self._weigh(search, growth=1.5),
        )
        return replace(progress, eta=time_left(progress))

    def _begun(
        self, record: CommandRecord | None, names: Mapping[str, str]
    ) -> Iterator[tuple[str, StoredStudy]]:
        """Yields the studies of the later stages that have begun, by title."""
        for title in (REEVALUATION, ABLATION, FINAL_TRAINING):
            name = names.get(title, "")
            own = record and record.stage_of(self.stored.name, title)
            if own is None or not f"{name} ".startswith(f"{own} "):
                continue  # it belongs to another budget
            if name not in self._beside and (stored := open_in_same_database(self.stored, name)):
                self._beside[name] = stored
            if name in self._beside:
                yield title, self._beside[name]


def _count_ended(trials: Iterable[FrozenTrial], slots: int) -> int:
    """Counts the ended trials of the first `slots` slots."""
    ended = [TrialRecord(trial).slot for trial in trials if trial.state.is_finished()]
    return sum(slot is not None and slot < slots for slot in ended)


def expected_stages(
    record: CommandRecord | None, left: int, begun: Mapping[str, Snapshot], feasible: bool
) -> Iterator[StageProgress]:
    """Yields the search, and the stages that are expected after it.

    Args:
        left: how many trials of the search are still to be done.
        begun: the snapshots of the stages that have begun, by title.
        feasible: whether the search has a trial that can be re-evaluated.
    """
    search = begun[SEARCH]
    yield StageProgress(SEARCH, search.done, left, search)
    if record is None or not record.reevaluated or (not left and not feasible):
        return  # nothing can be re-evaluated
    alone = not left and search.outcomes.get("complete", 0) == 1
    needed = not record.tested or not alone
    expected = {
        REEVALUATION: (record.top + 1) * record.seeds
        if needed and FINAL_TRAINING not in begun
        else 0,
        ABLATION: 0,  # unknown until the winner is
        FINAL_TRAINING: 2 * record.seeds if record.tested else 0,
    }
    for title, trials in expected.items():
        if (own := begun.get(title)) is not None:
            yield StageProgress(title, own.done, own.left, own)
        elif trials:
            yield StageProgress(title, 0, trials)


def present_title(stages: Sequence[StageProgress], has_result: bool) -> str:
    """Returns the title of the running stage."""
    for stage in stages:
        if stage.left:
            return stage.title
    if not has_result:
        return DONE if len(stages) == 1 else TEST
    return DONE


def elapsed_of(record: CommandRecord | None) -> float | None:
    """Returns the seconds since a command began, or until it ended; None if unknown.

    Uses the clock of this host, which may differ from that of the command's host.
    """
    if record is None or record.began is None:
        return None
    try:
        began = datetime.fromisoformat(record.began)
        end = datetime.now(UTC) if record.at is None else datetime.fromisoformat(record.at)
        return max(0.0, (end - began).total_seconds())
    except (ValueError, TypeError):  # another program may have written it
        return None


def time_left(progress: Progress) -> float | None:
    """Estimates the seconds until the whole job has ended."""
    if progress.ended:
        return 0.0
    if progress.title == TEST:
        return None
    return estimate(progress.works, sum(worker.alive for worker in progress.current.workers))


DAY = timedelta(days=1)


def clock_words(moment: datetime) -> str:
    """Formats a moment in local time: 15:42, or with the day if it is not today."""
    now = datetime.now()
    if moment.date() == now.date():
        return f"{moment:%H:%M}"
    return f"{moment:%a %H:%M}" if moment - now < 6 * DAY else f"{moment:%Y-%m-%d %H:%M}"


def wrap(
    parts: Iterable[str], width: int, by: str = ", ", *, indent: int = 0, fold: bool = True
) -> list[str]:
    """Joins parts to lines of at most `width` columns; breaks a part only if it is longer.

    Args:
        by: what stands between two parts.
        indent: how many spaces each line but the first begins with.
        fold: whether a word that is longer than a line is broken.
    """
    held = (part.replace(" ", "\xa0") if len(part) < width - indent else part for part in parts)
    ways: Any = {"break_long_words": fold, "break_on_hyphens": False}
    lines = textwrap.wrap(by.join(held), width, subsequent_indent=" " * indent, **ways)
    return [line.replace("\xa0", " ") for line in lines]


# The events of a job, found by comparing the stored trials with the events so far. So they do not
# depend on the process and host that trained a trial, and even if the command is killed in between,
# each is reported exactly once.


class Event(TypedDict):
    """The fields of each line of --events FILE; `id` differs between studies of one name.

    A trial has begun, has reported an epoch, is resumed after its worker died, has ended, or is
    the new best; another terminal has requested to stop, pause or resume; the study was aborted;
    the winner is known; the command ends. `files` is true if a resumed trial has no checkpoint, and
    finds the files that its command has left.
    """

    event: Literal[
        "began", "reported", "resumed", "ended", "best", "control", "halted", "result", "exit"
    ]
    at: str
    study: str
    id: str | None
    stage: NotRequired[Literal["search", "re-evaluation", "ablation", "final-training"]]
    trial: NotRequired[int]
    params: NotRequired[dict[str, Any]]
    worker: NotRequired[str | None]
    epoch: NotRequired[int | None]
    deaths: NotRequired[int]
    files: NotRequired[bool]
    epochs: NotRequired[int | None]
    state: NotRequired[Literal["complete", "pruned", "failed"]]
    value: NotRequired[float | None]
    values: NotRequired[list[float | None] | None]
    seconds: NotRequired[float | None]
    request: NotRequired[Request | None]
    reason: NotRequired[str | None]
    result: NotRequired[ShortResult]
    code: NotRequired[int]


# The fields of each event of the job; when they change, the event is reported again.
OF_STUDY = {"best": "trial", "control": "request", "halted": "reason", "result": "result"}


@dataclass
class History:
    """The events so far: for each trial the last epoch, and how often its worker died.

    The epoch is -1 before the first, and infinity after the end. Also holds the last event of each
    kind that is in OF_STUDY.
    """

    epochs: dict[tuple[str, int], float] = field(default_factory=dict)
    deaths: dict[tuple[str, int], int] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> None:
        """Records an event."""
        if (kind := event["event"]) in OF_STUDY:
            self.last[kind] = event[OF_STUDY[kind]]
        elif kind != "exit":
            key = str(event["stage"]), int(event["trial"])
            if kind == "resumed":
                self.deaths[key] = int(event["deaths"])
                return
            epoch = {"began": -1.0, "ended": math.inf}.get(kind) or float(event["epoch"])
            self.epochs[key] = max(epoch, self.epochs.get(key, -1.0))

    @classmethod
    def read(cls, lines: Iterable[str], study_id: str | None) -> "History":
        """Reads the events of an earlier command, from its lines.

        Args:
            lines: lines of JSON; others, such as the half line of a killed command, are skipped.
        """
        history = cls()
        for line in lines:
            try:
                event = json.loads(line)
                if isinstance(event, dict) and event.get("id") == study_id:
                    history.take(event)
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
        return history

    def new(self, progress: Progress) -> Iterator[dict[str, Any]]:
        """Yields the new events since the last call, and records them."""
        for event in [*_of_trials(self, progress), *_of_study(self, progress)]:
            self.take(event)
            yield event


def _of_trials(history: History, progress: Progress) -> Iterator[dict[str, Any]]:
    for title, trial in ((title, t) for title, own in progress.trials.items() for t in own):
        known_epoch = history.epochs.get((title, trial.number))
        ended, record = trial.state.is_finished(), TrialRecord(trial)
        # Between its claim and its first commit a trial has no parameters yet.
        known = trial.params or trial.intermediate_values or ended
        if known_epoch == math.inf or trial.datetime_start is None or not known:
            continue
        same = {"stage": title, "trial": trial.number}
        if known_epoch is None:
            yield {"event": "began", **same, "params": trial.params, "worker": record.worker}
        resumed = record.resumed
        if resumed and resumed["deaths"] > history.deaths.get((title, trial.number), 0):
            resumption = {"epoch": resumed["epoch"], "deaths": resumed["deaths"]}
            if resumed.get("files"):
                resumption["files"] = True
            yield {"event": "resumed", **same, **resumption, "reason": resumed["death"]}
        for epoch, value in sorted(trial.intermediate_values.items()):
            if known_epoch is None or epoch > known_epoch:
                said = {"epoch": epoch, "value": value, "epochs": record.steps_planned}
                yield {"event": "reported", **same, **said}
        if ended:
            yield {"event": "ended", **same, **_ended(trial)}


def _of_study(history: History, progress: Progress) -> Iterator[dict[str, Any]]:
    """Yields the changes of the job; of values that vanish, only a request to stop or pause."""
    last, best = history.last, progress.search.best
    if best is not None and best.number != last.get("best"):
        yield {"event": "best", "stage": "search", **_ended(best)}
    if progress.control != last.get("control"):
        yield {"event": "control", "request": progress.control}
    if progress.halted is not None and progress.halted != last.get("halted"):
        yield {"event": "halted", "reason": progress.halted}
    if progress.result is not None and progress.result != last.get("result"):
        yield {"event": "result", "result": dict(progress.result)}


def _ended(trial: FrozenTrial) -> dict[str, Any]:
    record = TrialRecord(trial)
    return {
        "trial": trial.number,
        "state": record.outcome,
        "value": value_of(trial),
        "values": trial.values,
        "params": trial.params,
        "seconds": record.seconds,
        "reason": record.reason,
    }


def write_event(event: Mapping[str, Any], study: str, study_id: str | None) -> str:
    """Formats an event as one line of JSON, with its line break."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    document = {"event": event["event"], "at": at, "study": study, "id": study_id, **event}
    return f"{to_json(document)}\n"


def to_json(document: Any) -> str:
    """Formats a document as one line of JSON, with null for numbers that are not finite."""
    return json.dumps(finite(document), allow_nan=False, default=str)


def finite(value: Any) -> Any:
    """Replaces numbers that are not finite by None in nested mappings and lists."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# The status of a job, for people and for programs.


class BestTrial(TypedDict):
    """The best trial of a search."""

    trial: int
    value: float | None
    params: dict[str, Any]
    proposed_by: NotRequired[str | None]


@dataclass(frozen=True)
class SlotCounts:
    """The slots of the ledger by state."""

    free: int
    held: int
    done: int


@dataclass(frozen=True)
class OutcomeCounts:
    """The trials of the search by state."""

    complete: int
    pruned: int
    failed: int
    paused: int
    running: int
    waiting: int


@dataclass(frozen=True)
class FailuresOfKind:
    """How many trials have failed for one kind of reason, and the first such reason."""

    count: int
    reason: str


@dataclass(frozen=True)
class StageCounts:
    """How many trials of a stage have ended, and how many are left (at most, before it begins)."""

    stage: str
    done: int
    left: int


@dataclass(frozen=True)
class StatusDocument:
    """The status of a study, by `studyloom status --json`; with --watch one a line.

    `best` is chosen by the rule of the study; `front` is the Pareto front, `ended` why the search
    ended before its budget was spent, `gain` the expected improvement of the trials left, `eta` the
    seconds left of the whole job, and `foreign` the number of trials of other programs.
    """

    study: str
    metric: str
    budget: int
    done: int
    slots: SlotCounts
    trials: OutcomeCounts
    best: BestTrial | None
    baseline: BestTrial | None
    front: list[BestTrial]
    rule: str | None
    importances: dict[str, float | None]
    workers: Sequence[WorkerStatus]
    failures: dict[str, FailuresOfKind]
    halted: str | None
    eta: float | None
    foreign: int
    ended: str | None
    gain: float | None
    stage: str
    stages: list[StageCounts]
    elapsed: float | None
    hours: Hours
    cost: float | None
    control: Request | None
    result: ShortResult | None
    exit_code: int | None


def _best_trial(snapshot: Snapshot, trial: FrozenTrial | None) -> Any:
    if trial is None:
        return None
    costs = dict(zip(snapshot.costs, (trial.values or ())[1:], strict=False))
    known = {"trial": trial.number, "value": value_of(trial), "params": trial.params}
    return known | {"proposed_by": TrialRecord(trial).proposer()} | costs


@dataclass(frozen=True)
class Status:
    """A study and its job at one moment. Two are equal if nothing but the time differs.

    Args:
        importances: those of the most important hyperparameters, with a sum of at most 1; empty
            before they can be computed.
    """

    progress: Progress
    importances: Mapping[str, float]
    failures: Sequence[FailureCount]

    def as_json(self) -> str:
        """Formats it as one line of JSON, with null for values that are missing or not finite."""
        return to_json(asdict(self.document()))

    def document(self) -> StatusDocument:
        """Makes the document of the status."""
        progress, snapshot = self.progress, self.progress.search
        result: Any = progress.result
        ended, outcomes = snapshot.forecast.ending, snapshot.outcomes
        return StatusDocument(
            study=snapshot.name,
            metric=snapshot.metric,
            budget=snapshot.budget,
            done=snapshot.done,
            slots=SlotCounts(**snapshot.slots),
            trials=OutcomeCounts(*(outcomes.get(state.name, 0) for state in fields(OutcomeCounts))),
            best=_best_trial(snapshot, snapshot.best),
            baseline=_best_trial(snapshot, snapshot.baseline),
            front=[_best_trial(snapshot, trial) for trial in snapshot.front],
            rule=snapshot.rule,
            importances={**self.importances},
            workers=progress.current.workers,
            failures={e.kind: FailuresOfKind(e.count, e.first_reason) for e in self.failures},
            halted=progress.halted,
            eta=progress.eta,
            foreign=snapshot.foreign,
            ended=None if ended is None else ended.reason,
            gain=snapshot.forecast.gain,
            stage=progress.title,
            stages=[StageCounts(stage.title, stage.done, stage.left) for stage in progress.stages],
            elapsed=progress.elapsed,
            hours=progress.hours,
            cost=progress.cost,
            control=progress.control,
            result=result,
            exit_code=progress.exit_code,
        )
