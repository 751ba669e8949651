"""The progress of a whole job: search, re-evaluation and final training.

`ProgressReader` reads all stages as one `Progress`: what has ended, what was spent, and how long
the rest will take. `Status` adds hyperparameter importances and failures. Both format themselves as
words and as JSON: the document of a status, and an object for each event.
"""

import json
import math
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from statistics import fmean
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta
from optuna.trial import FrozenTrial, TrialState

from studyloom.errors import StorageError
from studyloom.study.command_record import CommandRecord, StoredCommand
from studyloom.study.early_end import Hours, hours_of
from studyloom.study.failures import FailureCount, count_failures
from studyloom.study.stopping import Request, read_control
from studyloom.study.stored_study import (
    FINAL_TRAINING,
    REEVALUATION,
    SEARCH,
    StoredStudy,
    open_beside,
    value_of,
)
from studyloom.study.trial_record import TrialRecord
from studyloom.text import format_duration, one_line
from studyloom.views.snapshot import (
    Snapshot,
    WorkerStatus,
    format_trial_values,
    importances,
    take_snapshot,
)
from studyloom.winner.result import ShortResult, short_words

WATCH_INTERVAL = 1.0  # seconds between looks at a job of other processes
MOST_IMPORTANT = 5  # hyperparameters whose importance a status has


@dataclass(frozen=True)
class Running:
    """A running trial: for how many seconds, and how many of its epochs have ended.

    Args:
        pace: seconds per epoch; None before the first.
    """

    age: float = 0.0
    epoch: int = 0
    epochs: int | None = None
    pace: float | None = None


@dataclass(frozen=True)
class Work:
    """The work of one stage: the seconds of each ended trial, and the trials to come.

    Args:
        left: how many more trials will begin.
    """

    ended: Sequence[float] = ()
    running: Sequence[Running] = ()
    left: int = 0


def estimate(works: Iterable[Work], workers: int) -> float | None:
    """Estimates the seconds that successive unfinished stages will take.

    A stage without an ended trial is estimated from the durations of the one before.

    Returns:
        The seconds; None if no worker runs, or too little is known.
    """
    if workers < 1:
        return None
    seconds = 0.0
    each: float | None = None
    for work in works:
        own = typical(work)
        each = each if own is None else own
        if not work.running and not work.left:
            continue
        if each is None:
            return None
        rests = [rest(trial, work.ended, each) for trial in work.running]
        at_once = max(1, min(workers, work.left + len(rests)))
        # The last trial runs on one worker, and ends later than all others on average.
        last = each / 2 * (1 - 1 / at_once) if work.left else 0.0
        total = sum(rests) + work.left * each
        seconds += max(total / at_once + last, *rests, 0.0)
    return seconds


def typical(work: Work) -> float | None:
    """Returns the mean seconds of a trial of a stage; None if unknown.

    Uses the ended trials; before one has ended, the epochs of running ones, which may end early.
    """
    whole = [trial.pace * trial.epochs for trial in work.running if trial.pace and trial.epochs]
    known = [*work.ended] if len(work.ended) > 1 else [*work.ended, *whole]
    return fmean(known) if known else None


def rest(trial: Running, ended: Sequence[float], each: float) -> float:
    """Returns the expected remaining seconds of a running trial.

    Its own pace gives the time of all its epochs; ended trials that took longer than it has run so
    far show how early it may end.
    """
    later = [seconds - trial.age for seconds in ended if seconds > trial.age]
    expected = fmean(later) if later else max(0.0, each - trial.age)
    if trial.pace is not None and trial.epochs is not None:
        most = trial.pace * max(0, trial.epochs - trial.epoch)
        if not later or most < expected:
            expected = most
    return expected


TEST, COMPRESS, DONE = "test", "compress", "done"
# The titles of stages for people.
WORDS = {
    SEARCH: "search",
    REEVALUATION: "re-evaluation",
    FINAL_TRAINING: "final training",
    TEST: "test",
    COMPRESS: "compression",
    DONE: "done",
}
StageTitle = Annotated[str, Meta(extra_json_schema={"enum": [*WORDS]})]


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
    def stage_words(self) -> str:
        """The progress of the current stage, and how many of its trials were pruned."""
        if self.title == DONE or self.stage.title != self.title:
            return WORDS[self.title]
        stage, counts = self.stage, [f"{self.stage.done}/{self.stage.budget}"]
        if (own := stage.snapshot) is not None:
            pruned = own.outcomes.get("pruned")
            counts += [*[f"{pruned} pruned"] * bool(pruned), *own.uncounted_words]
        return f"{WORDS[self.title]} {', '.join(counts)}"

    @property
    def all_stages(self) -> str:
        """The progress of each stage, in order; empty if there is only one."""
        if len(self.stages) == 1:
            return ""
        return ", ".join(f"{WORDS[s.title]} {s.done}/{s.budget}" for s in self.stages)

    @property
    def best_words(self) -> str:
        """The result, or else the best trial so far."""
        if self.result is not None:
            return short_words(self.result)
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
        titles = [stage.title for stage in self.stages]
        present = titles.index(self.title) if self.title in titles else len(titles)
        later = [f"{WORDS[s.title]} {s.budget}" for s in self.stages[present + 1 :]]
        then = f"then {', '.join(later)}" if later else ""
        words = (self.stage_words, then, self.control_words, *self.time_words())
        return [*filter(None, words)]

    @property
    def working_words(self) -> str:
        """The stage, the time left and a request to stop or pause; empty if no worker runs."""
        asked = self.control_words
        if self.ended or not (asked or any(worker.alive for worker in self.current.workers)):
            return ""
        stages = self.all_stages or self.stage_words
        parts = (f"At work: {self.stage_words}", f"in all {stages}", self.eta_words, asked)
        return "; ".join(filter(None, parts if len(self.stages) > 1 else (*parts[:1], *parts[2:])))

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
            released = f"{held} trials are released at their last epoch"
            return f"pausing: {released}" if held else "paused"
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
        if search.outlook.ending is not None and self.title in (SEARCH, DONE):
            parts.append(search.outlook.ending.words)
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
        complete = progress.search.outcomes.get("complete", 0)
        if complete != self._complete:
            found = importances(self.stored)
            shares = {} if isinstance(found, str) else found
            self._importances = dict([*shares.items()][:MOST_IMPORTANT])
            self._complete = complete
        return Status(progress, self._importances, count_failures(self.stored.trials()))

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
        search = take_snapshot(self.stored)
        begun = dict(self._begun(record, names))
        snapshots = {title: take_snapshot(stored) for title, stored in begun.items()}
        left = search.left
        if record is not None and record.trials < search.budget:  # another command raised it
            left = min(left, self.stored.ledger.todo(record.trials))
        feasible = bool(self.stored.feasible())
        stages = tuple(expected_stages(record, search, left, snapshots, feasible))
        if result is not None and result.get("stage") != names.get(stages[-1].title):
            result = None  # it belongs to another budget or rule
        studies = {SEARCH: self.stored, **begun}
        trials = {title: stored.trials() for title, stored in studies.items()}
        compresses = record is not None and record.compresses and record.ended is None
        hours = hours_of(trial for own in trials.values() for trial in own)
        # Workers may run although a command has ended the job.
        workers = (w for snapshot in (search, *snapshots.values()) for w in snapshot.workers)
        goes_on = any(worker.alive for worker in workers)
        progress = Progress(
            search=search,
            stages=stages,
            title=present_title(stages, result is not None, compresses=compresses),
            halted=self.stored.halted(),
            control=read_control(self.stored),
            result=result,
            exit_code=None if record is None or goes_on else record.ended,
            elapsed=elapsed_of(record),
            hours=hours,
            cost=hours.cost(None if record is None else record.per_hour),
            trials=trials,
        )
        return replace(progress, eta=time_left(progress))

    def _begun(
        self, record: CommandRecord | None, names: Mapping[str, str]
    ) -> Iterator[tuple[str, StoredStudy]]:
        """Yields the studies of the later stages that have begun, by title."""
        for title in (REEVALUATION, FINAL_TRAINING):
            name = names.get(title, "")
            if record is None or not name.startswith(record.stage_of(self.stored.name, title)):
                continue  # it belongs to another budget
            if name not in self._beside and (stored := open_beside(self.stored, name)):
                self._beside[name] = stored
            if name in self._beside:
                yield title, self._beside[name]


def expected_stages(
    record: CommandRecord | None,
    search: Snapshot,
    left: int,
    begun: Mapping[str, Snapshot],
    feasible: bool,
) -> Iterator[StageProgress]:
    """Yields the search, and the stages that are expected after it.

    Args:
        left: how many trials of the search are still to be done.
    """
    yield StageProgress(SEARCH, search.done, left, search)
    if record is None or not record.reevaluated or (not left and not feasible):
        return  # nothing can be re-evaluated
    alone = not left and search.outcomes.get("complete", 0) == 1
    needed = not record.tested or not alone
    expected = {
        REEVALUATION: (record.top + 1) * record.seeds
        if needed and FINAL_TRAINING not in begun
        else 0,
        FINAL_TRAINING: 2 * record.seeds if record.tested else 0,
    }
    for title, trials in expected.items():
        if (own := begun.get(title)) is not None:
            yield StageProgress(title, own.done, own.left, own)
        elif trials:
            yield StageProgress(title, 0, trials)


def present_title(
    stages: Sequence[StageProgress], has_result: bool, *, compresses: bool = False
) -> str:
    """Returns the title of the running stage."""
    for stage in stages:
        if stage.left:
            return stage.title
    if not has_result:
        return DONE if len(stages) == 1 else TEST
    return COMPRESS if compresses else DONE


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
    trials = progress.trials
    if progress.ended:
        return 0.0
    if progress.title in (TEST, COMPRESS):
        return None
    workers = sum(worker.alive for worker in progress.current.workers)
    works = []
    # The best trials have all epochs: pruned ones are not re-evaluated.
    like = [trial for trial in trials.get(SEARCH, ()) if trial.state == TrialState.COMPLETE]
    for stage in progress.stages:
        if not stage.left and stage.title != SEARCH:
            continue
        own = trials.get(stage.title, like)
        running = list(running_trials(stage.snapshot, own)) if stage.title == progress.title else []
        to_come = max(0, stage.left - len(running))
        # Reused trainings took no time.
        took = [each.seconds for each in map(TrialRecord, own) if each.reused is None]
        works.append(Work([spent for spent in took if spent is not None], running, to_come))
    return estimate(works, workers)


def running_trials(snapshot: Snapshot | None, trials: Sequence[FrozenTrial]) -> Iterator[Running]:
    """Yields the running trials, with their epochs and values.

    The time of an epoch is the mean over ended trials, or, before one has ended, what the trial
    itself has taken since its worker claimed it.
    """
    seconds_of = [TrialRecord(trial).curve.get("seconds") for trial in trials]
    paces = [fmean(seconds) for seconds in seconds_of if seconds]
    for worker in snapshot.workers if snapshot is not None else ():
        if not worker.alive:
            continue
        epoch, age = worker.epoch or 0, worker.held or 0.0
        known = [age / epoch] if epoch else []
        pace = max([*known, *([fmean(paces)] if paces else [])], default=None)
        yield Running(age, epoch, worker.epochs, pace)


DAY = timedelta(days=1)


def clock_words(moment: datetime) -> str:
    """Formats a moment in local time: 15:42, or with the day if it is not today."""
    now = datetime.now()
    if moment.date() == now.date():
        return f"{moment:%H:%M}"
    return f"{moment:%a %H:%M}" if moment - now < 6 * DAY else f"{moment:%Y-%m-%d %H:%M}"


def wrap(parts: Iterable[str], width: int) -> list[str]:
    """Joins parts to lines of at most `width`; breaks a part only if it is longer."""
    held = (part.replace(" ", "\xa0") if len(part) < width else part for part in parts)
    lines = textwrap.wrap(", ".join(held), width, break_on_hyphens=False)
    return [line.replace("\xa0", " ") for line in lines]


# The events of a job, found by comparing the stored trials with the events so far. So they do not
# depend on the process and host that trained a trial, and even if the command is killed in between,
# each is reported exactly once.


class Event(TypedDict):
    """The fields of each line of --events FILE; `id` differs between studies of one name.

    A trial has begun, has reported an epoch, is resumed after its worker died, has ended, or is
    the new best; another terminal has requested to stop, pause or resume; the study was aborted;
    the winner is known; the command ends.
    """

    event: Literal[
        "began", "reported", "resumed", "ended", "best", "control", "halted", "result", "exit"
    ]
    at: str
    study: str
    id: str | None
    stage: NotRequired[Literal["search", "re-evaluation", "final-training"]]
    trial: NotRequired[int]
    params: NotRequired[dict[str, Any]]
    worker: NotRequired[str | None]
    epoch: NotRequired[int | None]
    deaths: NotRequired[int]
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
            yield {"event": "resumed", **same, **resumption, "reason": resumed["death"]}
        for epoch, value in sorted(trial.intermediate_values.items()):
            if known_epoch is None or epoch > known_epoch:
                said = {"epoch": epoch, "value": value, "epochs": record.planned_epochs}
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

    stage: StageTitle
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
    stage: StageTitle
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
        ended, outcomes = snapshot.outlook.ending, snapshot.outcomes
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
            ended=None if ended is None else ended.words,
            gain=snapshot.outlook.gain,
            stage=progress.title,
            stages=[StageCounts(stage.title, stage.done, stage.left) for stage in progress.stages],
            elapsed=progress.elapsed,
            hours=progress.hours,
            cost=progress.cost,
            control=progress.control,
            result=result,
            exit_code=progress.exit_code,
        )
