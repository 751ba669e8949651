"""The progress of a study through its stages: search, re-evaluation and final training.

`ProgressReader` reads all stages as one `Progress`: what has ended, what was spent, and how long
the rest will take. `Status` adds hyperparameter importances and failures, and formats itself as
JSON.
"""

import itertools
import json
import math
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NotRequired, TypedDict

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
from studyloom.views.advice import Advice, list_search_advice
from studyloom.views.estimate import Work, compute_share, estimate_seconds, estimate_work
from studyloom.views.importances import COMPARED_OUTCOMES, Importances, compute_importances
from studyloom.views.searched import describe_searched
from studyloom.views.snapshot import Snapshot, WorkerStatus, take_snapshot
from studyloom.views.words import (
    count_uncounted,
    describe_stored_result,
    format_trial_values,
    map_costs,
)
from studyloom.winner.result import ShortResult
from studyloom.worker.stopping import Request, read_control

WATCH_INTERVAL = 1.0  # seconds between looks at a study of other processes
MOST_IMPORTANT = 5  # hyperparameters whose importance a status has

TEST = "test"
DONE = "done"
# The titles of stages, as people read them.
STAGE_NAMES = {
    SEARCH: "search",
    REEVALUATION: "re-evaluation",
    ABLATION: "ablation",
    FINAL_TRAINING: "final training",
    TEST: "test",
    DONE: "done",
}


@dataclass(frozen=True)
class StageProgress:
    """How far a stage of a study has come.

    Args:
        title: the title of the stage, such as SEARCH.
        done: how many of its trials have ended.
        left: how many of its trials have not ended; before it begins, the most that it may have.
        snapshot: the study of the stage; None before it begins.
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
        if self.snapshot is None:
            return ()
        return self.snapshot.workers


@dataclass(frozen=True)
class Progress:
    """A study at one moment, with all of its stages. Two are equal if nothing but the time differs.

    Args:
        search: the snapshot of the search.
        stages: the search, and the stages after it that are still expected or have run.
        title: the title of the stage that is running, TEST or DONE.
        halted: why the study was aborted, if it was.
        control: stop or pause, if another terminal has requested it.
        result: a summary of the winner and its test; None before there is one.
        exit_code: the exit code of the command that ended the study; None while work is left.
        elapsed: seconds from the start of the command until now, or until its end.
        eta: seconds until the end of the study; None if no worker runs or too little is known.
        hours: the hours that all stages have spent.
        cost: the cost of these hours; None if no price is known.
        trials: the trials of each stage that has begun, by its title.
        works: the work of each of `stages`.
        importances: the importances of the hyperparameters, to order them. They may be based on
            fewer trials than are complete.
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
        for stage in self.stages:
            if stage.title == self.title:
                return stage
        return self.stages[-1]

    @property
    def done(self) -> int:
        """The number of ended trials of all stages."""
        return sum(stage.done for stage in self.stages)

    @property
    def budget(self) -> int:
        """The largest number of trials of all stages; of an ended search, those that it ran."""
        return sum(stage.budget for stage in self.stages)

    @property
    def has_ended(self) -> bool:
        """Returns whether nothing is left to do."""
        return self.exit_code is not None or self.title == DONE

    @property
    def is_at_work(self) -> bool:
        """Returns whether a worker runs, or a pause is requested, before the study has ended."""
        if self.has_ended:
            return False
        return self.live_workers > 0 or bool(self.control_text)

    @property
    def live_workers(self) -> int:
        """The number of workers of the current stage whose lease has not expired."""
        return sum(worker.is_alive for worker in self.current.workers)

    @property
    def share(self) -> float:
        """The share of the epochs of all stages that has been trained, from 0 to 1."""
        if self.has_ended:
            return 1.0
        return compute_share(self.works)

    @property
    def stage_text(self) -> str:
        """The progress of the current stage, and how many of its trials were pruned."""
        stage = self.stage
        if stage.title != self.title:  # the test and the end have no trials
            return STAGE_NAMES[self.title]
        noun = "trainings"
        if self.title == SEARCH:
            noun = "trials"
        counts = [f"{stage.done:,} of {stage.budget:,} {noun}"]
        if stage.snapshot is not None:
            pruned = stage.snapshot.outcomes.get("pruned", 0)
            if pruned:
                counts.append(f"{pruned:,} pruned")
            counts += count_uncounted(stage.snapshot)
        return f"{STAGE_NAMES[self.title]}: {', '.join(counts)}"

    @property
    def later_stages(self) -> Sequence[StageProgress]:
        """The stages after the current one; none after the test and the end."""
        titles = [stage.title for stage in self.stages]
        if self.title not in titles:
            return ()
        next_position = titles.index(self.title) + 1
        return self.stages[next_position:]

    @property
    def later_text(self) -> str:
        """The stages after the current one, with the numbers of their trainings; else ""."""
        texts = [f"{STAGE_NAMES[stage.title]} {stage.budget}" for stage in self.later_stages]
        if not texts:
            return ""
        return f"then {', '.join(texts)}"

    @property
    def stage_names_text(self) -> str:
        """The current stage and those after it, such as "search, then re-evaluation"."""
        names = [STAGE_NAMES[self.title]]
        names += [STAGE_NAMES[stage.title] for stage in self.later_stages]
        return ", then ".join(names)

    @property
    def best_text(self) -> str:
        """The result, or else the best trial so far."""
        if self.result is not None:
            return describe_stored_result(self.result)
        best = self.search.best
        if best is None:
            return "no result yet"
        name = f"trial {best.number}"
        if TrialRecord(best).is_baseline:
            name += ", the baseline"
        return f"best {format_trial_values(best)} ({name})"

    @property
    def eta_text(self) -> str:
        """The time left of the whole study, and when it ends."""
        if self.eta is None:
            return "ETA –"
        text = f"ETA {format_duration(self.eta)}"
        if self.eta < 1:
            return text
        end = datetime.now() + timedelta(seconds=self.eta)
        return f"{text}, at {format_moment(end)}"

    @property
    def control_text(self) -> str:
        """The request of another terminal to stop or pause; empty if there is none."""
        workers = len(self.current.workers)
        if self.control == "pause":
            if not workers:
                return "paused"
            if workers == 1:
                return "pausing: 1 trial is released at its last epoch"
            return f"pausing: {workers} trials are released at their last epoch"
        if self.control == "stop" and not self.has_ended:
            if workers:
                return "stopping"
            return "stopped"
        return ""

    def list_times(self) -> Iterator[str]:
        """Yields how long a running study has taken and will take, and what it has spent."""
        if not self.has_ended:
            if self.elapsed is not None:
                yield f"elapsed {format_duration(self.elapsed)}"
            yield self.eta_text
        if self.hours.cores >= 0.01:
            yield f"{self.hours.cores:.2f} core-hours"
        if self.hours.gpus >= 0.01:
            yield f"{self.hours.gpus:.2f} GPU-hours"
        if self.cost is not None:
            yield f"cost {self.cost:.2f}"

    def describe_now(self) -> list[str]:
        """Returns the stage, those to come, a request to stop or pause, and the times."""
        texts = (self.stage_text, self.later_text, self.control_text, *self.list_times())
        return [text for text in texts if text]

    @property
    def line(self) -> str:
        """The study as one line, without the values that change every second."""
        search = self.search
        parts = [one_line(search.name), self.stage_text, self.best_text]
        running = len(self.current.workers)
        if running:
            parts.append(f"{running} running")
        if self.control_text:
            parts.append(self.control_text)
        if search.forecast.ending is not None and self.title in (SEARCH, DONE):
            parts.append(search.forecast.ending.reason)
        return "  ".join(parts)


class ProgressReader:
    """Reads a study repeatedly.

    Opens the studies of later stages once, and recomputes the importances of hyperparameters only
    after a further trial is complete.
    """

    def __init__(self, stored: StoredStudy) -> None:
        self.stored = stored
        self._stage_studies: dict[str, StoredStudy] = {}  # those of later stages, by name
        self._weighed_trials: int | None = None  # how many trials the importances are based on
        self._importances = Importances()

    def status(self) -> "Status":
        """Reads the status of the study.

        Raises:
            StorageError: the database cannot be read.
        """
        progress = self.read()
        importances = self._weigh_parameters(progress.search)
        search = progress.search
        return Status(
            progress=progress,
            importances=importances,
            failures=count_failures(search.trials),
            searched=describe_searched(self.stored),
            advice=list_search_advice(self.stored, search, importances),
        )

    def _weigh_parameters(self, search: Snapshot, max_growth: float = 1.0) -> Importances:
        """Returns the importances of the hyperparameters, computed again if they are outdated.

        Importances of thousands of trials take long, and a display is drawn each second.

        Args:
            max_growth: how many times as many trials may have a value as at the last computation,
                before they are computed again.
        """
        count = sum(search.outcomes.get(outcome, 0) for outcome in COMPARED_OUTCOMES)
        weighed = self._weighed_trials  # how many had a value at the last computation
        is_current = weighed is not None and weighed <= count <= max_growth * weighed
        if not is_current:
            self._importances = compute_importances(self.stored)
            self._weighed_trials = count
        return self._importances

    def statuses(self) -> Iterator["Status | StorageError"]:
        """Reads the study every second until it has ended.

        Yields:
            The status, or the error if the database cannot be read; the next read may succeed.
        """
        has_ended = False
        while not has_ended:
            try:
                status = self.status()
                has_ended = status.progress.has_ended
                yield status
            except StorageError as error:
                yield error
            if not has_ended:
                time.sleep(WATCH_INTERVAL)

    def read(self) -> Progress:
        """Reads the current progress of the study.

        Raises:
            StorageError: the database cannot be read.
        """
        command = StoredCommand.read(self.stored)
        record = command.record
        studies = {SEARCH: self.stored}
        if record is not None:
            studies |= self._open_begun_stages(record, command.stages)
        snapshots = {title: take_snapshot(stored) for title, stored in studies.items()}
        search = snapshots[SEARCH]
        left = _count_left(record, search)
        has_candidates = bool(self.stored.feasible())
        stages = tuple(expect_stages(record, left, snapshots, has_candidates=has_candidates))
        result = _select_result(command.result, stages[-1])
        spent = _sum_spent(studies.values(), record)
        progress = Progress(
            search=search,
            stages=stages,
            title=find_running_stage(stages, has_result=result is not None),
            halted=self.stored.halted(),
            control=read_control(self.stored),
            result=result,
            exit_code=_find_exit_code(record, snapshots.values()),
            elapsed=measure_elapsed(record),
            hours=spent.hours,
            cost=spent.cost,
            trials={title: snapshot.trials for title, snapshot in snapshots.items()},
            works=_estimate_works(stages),
            # They only order the columns of a table, and may be of two thirds of the trials.
            importances=self._weigh_parameters(search, max_growth=1.5).shares,
        )
        return replace(progress, eta=estimate_time_left(progress))

    def _open_begun_stages(
        self, record: CommandRecord, names: Mapping[str, str]
    ) -> Mapping[str, StoredStudy]:
        """Returns the studies of the later stages that the last command has begun, by title.

        Args:
            names: the name of the study that last ran each stage, by title.
        """
        begun_studies = {}
        for title in (REEVALUATION, ABLATION, FINAL_TRAINING):
            name = names.get(title, "")
            start = record.stage_of(self.stored.name, title)
            is_of_command = _begins_with_words(name, start)
            if is_of_command and name not in self._stage_studies:
                stored = open_in_same_database(self.stored, name)
                if stored is not None:
                    self._stage_studies[name] = stored
            if is_of_command and name in self._stage_studies:
                begun_studies[title] = self._stage_studies[name]
        return begun_studies


def _begins_with_words(stage_name: str, start: str) -> bool:
    """Returns whether the name of a stage's study begins with some whole words.

    The settings of a stage's command are in this name. So `mnist/re-evaluation 40-5-1 details`
    begins with `mnist/re-evaluation 40-5-1`, and `mnist/re-evaluation 40-5-10` does not.
    """
    return f"{stage_name} ".startswith(f"{start} ")


@dataclass(frozen=True)
class _Spent:
    """The hours that workers have spent on all stages, and their cost if a price is known."""

    hours: Hours
    cost: float | None


def _sum_spent(studies: Iterable[StoredStudy], record: CommandRecord | None) -> _Spent:
    """Sums what the workers of all stages have spent.

    Args:
        record: the settings of the last command, with the price of an hour; None if none is stored.
    """
    worked_trials: list[FrozenTrial] = []
    for stored in studies:
        worked_trials += stored.trials_of_workers()
    hours = sum_hours(worked_trials)
    price_per_hour = None
    if record is not None:
        price_per_hour = record.per_hour
    return _Spent(hours, hours.cost(price_per_hour))


def _find_exit_code(record: CommandRecord | None, snapshots: Iterable[Snapshot]) -> int | None:
    """Returns the exit code of the command that ended the study; None while work is left.

    A worker may still run after the command has ended.
    """
    if record is None or _has_live_worker(snapshots):
        return None
    return record.ended


def _select_result(
    result: Mapping[str, Any] | None, last_stage: StageProgress
) -> Mapping[str, Any] | None:
    """Returns a stored result if it follows from the last stage; else None.

    Otherwise it belongs to a command with another budget or rule.
    """
    if result is None or last_stage.snapshot is None:
        return None
    if result.get("stage") != last_stage.snapshot.name:
        return None
    return result


def _has_live_worker(snapshots: Iterable[Snapshot]) -> bool:
    """Returns whether any worker of some studies holds a lease that has not expired."""
    return any(worker.is_alive for snapshot in snapshots for worker in snapshot.workers)


def _count_left(record: CommandRecord | None, search: Snapshot) -> int:
    """Counts the trials that the last command has still to do.

    The budget of a study consists of slots, numbered from 0, each of which holds one trial. If
    another command has raised the budget, the last command fills only the first slots. For example,
    if one command has run 60 of 100 trials, then a command for 40 trials fills the slots 0 to 39,
    and has only those left whose trials have not ended.

    Args:
        record: the settings of the last command; None if none is stored.
        search: the trials and the budget of the study.
    """
    if record is None:
        return search.left
    command_budget = record.trials
    if command_budget >= search.budget:
        return search.left
    ended_count = 0
    for trial in search.trials:
        slot = TrialRecord(trial).slot
        is_of_command = slot is not None and slot < command_budget
        if is_of_command and trial.state.is_finished():
            ended_count += 1
    return min(search.left, command_budget - ended_count)


def _estimate_works(stages: Sequence[StageProgress]) -> Sequence[Work]:
    """Estimates the work of each stage.

    Before a stage has trials, the trials of the stage before it show how long a trial is.
    """
    works = []
    previous = Work()
    for stage in stages:
        trials: Sequence[FrozenTrial] = ()
        if stage.snapshot is not None:
            trials = stage.snapshot.trials
        work = estimate_work(trials, stage.left, stage.workers, previous)
        works.append(work)
        previous = work
    return works


def expect_stages(
    record: CommandRecord | None,
    left: int,
    snapshots: Mapping[str, Snapshot],
    *,
    has_candidates: bool,
) -> Iterator[StageProgress]:
    """Yields the search, and the stages that have begun or are expected after it.

    Args:
        record: the settings of the last command; None if no command has begun.
        left: how many trials of the search are still to be done.
        snapshots: a snapshot of each stage that has begun, by title.
        has_candidates: whether the search has a trial that can be re-evaluated.
    """
    search = snapshots[SEARCH]
    yield StageProgress(SEARCH, search.done, left, search)
    if record is None or not record.reevaluated:
        return
    if not left and not has_candidates:
        return
    # How many trainings each stage will have. Those of the ablation are unknown before there is a
    # winner.
    expected_counts = {REEVALUATION: 0, ABLATION: 0, FINAL_TRAINING: 0}
    # The re-evaluation chooses between candidates. A single one that will be tested needs none.
    has_ended = left == 0
    is_chosen_already = record.tested and has_ended and search.outcomes.get("complete", 0) == 1
    if FINAL_TRAINING not in snapshots and not is_chosen_already:
        candidate_count = record.top + 1  # the best trials and the baseline
        expected_counts[REEVALUATION] = candidate_count * record.seeds
    if record.tested:
        expected_counts[FINAL_TRAINING] = 2 * record.seeds  # of the winner and the baseline
    for title, expected_count in expected_counts.items():
        if title in snapshots:
            snapshot = snapshots[title]
            yield StageProgress(title, snapshot.done, snapshot.left, snapshot)
        elif expected_count > 0:
            yield StageProgress(title, done=0, left=expected_count)


def find_running_stage(stages: Sequence[StageProgress], *, has_result: bool) -> str:
    """Returns the title of the first stage with trainings left.

    If no stage has any left, returns TEST while the winner's test is still to come, else DONE.

    Args:
        stages: the search, and the stages that follow it, if any.
    """
    for stage in stages:
        if stage.left > 0:
            return stage.title
    is_search_only = len(stages) == 1
    if has_result or is_search_only:
        return DONE
    return TEST


def measure_elapsed(record: CommandRecord | None) -> float | None:
    """Returns the seconds since a command began, or until it ended; None if unknown.

    Uses the clock of this host, which may differ from that of the command's host.
    """
    if record is None or record.began is None:
        return None
    try:
        began = datetime.fromisoformat(record.began)
        end = datetime.now(UTC)
        if record.at is not None:
            end = datetime.fromisoformat(record.at)
        return max(0.0, (end - began).total_seconds())
    except (ValueError, TypeError):  # another program may have written it
        return None


def estimate_time_left(progress: Progress) -> float | None:
    """Estimates the seconds until the whole study has ended."""
    if progress.has_ended:
        return 0.0
    if progress.title == TEST:
        return None
    return estimate_seconds(progress.works, progress.live_workers)


DAY = timedelta(days=1)
NO_BREAK_SPACE = "\xa0"


def format_moment(moment: datetime) -> str:
    """Formats a moment in local time: 15:42, or with the day if it is not today."""
    now = datetime.now()
    if moment.date() == now.date():
        return f"{moment:%H:%M}"
    if moment - now < 6 * DAY:
        return f"{moment:%a %H:%M}"
    return f"{moment:%Y-%m-%d %H:%M}"


def wrap_parts(
    parts: Iterable[str],
    width: int,
    separator: str = ", ",
    *,
    indent: int = 0,
    breaks_words: bool = True,
) -> list[str]:
    """Joins parts to lines of at most `width` columns; breaks a part only if it is longer.

    Args:
        separator: what stands between two parts.
        indent: how many spaces each line but the first begins with.
        breaks_words: whether a word that is longer than a line is broken.
    """
    unbroken = []
    for part in parts:
        if len(part) < width - indent:  # less, since a comma may follow the part
            part = part.replace(" ", NO_BREAK_SPACE)  # at which `textwrap` breaks no line
        unbroken.append(part)
    lines = textwrap.wrap(
        separator.join(unbroken),
        width,
        subsequent_indent=" " * indent,
        break_long_words=breaks_words,
        break_on_hyphens=False,
    )
    return [line.replace(NO_BREAK_SPACE, " ") for line in lines]


# The status of a study, for people and for programs.


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
    trials_left: int


@dataclass(frozen=True)
class StatusDocument:
    """The status of a study, by `studyloom status --json`; with --watch one a line.

    `best` is chosen by the rule of the study; `front` is the Pareto front, `end_reason` why the
    search ended before its budget was spent, `halt_reason` why the study has stopped itself,
    `expected_improvement` what the trials left would gain, and `eta` the seconds left of the whole
    study.
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
    halt_reason: str | None
    eta: float | None
    trials_of_other_programs: int
    end_reason: str | None
    expected_improvement: float | None
    stage: str
    stages: list[StageCounts]
    elapsed: float | None
    hours: Hours
    cost: float | None
    control: Request | None
    result: ShortResult | None
    exit_code: int | None


def _make_best_trial(snapshot: Snapshot, trial: FrozenTrial) -> Any:
    """Returns a BestTrial, with each cost as a further field, which a TypedDict cannot declare."""
    return {
        "trial": trial.number,
        "value": value_of(trial),
        "params": trial.params,
        "proposed_by": TrialRecord(trial).proposer,
        **map_costs(snapshot, trial),
    }


def _count_outcomes(outcomes: Mapping[str, int]) -> OutcomeCounts:
    """Returns the number of trials of each outcome, which is 0 for those without a trial."""
    counts = {}
    for outcome in fields(OutcomeCounts):
        counts[outcome.name] = outcomes.get(outcome.name, 0)
    return OutcomeCounts(**counts)


@dataclass(frozen=True)
class Status:
    """A study at one moment, in detail. Two are equal if nothing but the time differs.

    Args:
        importances: the importances of the hyperparameters.
        searched: the hyperparameters with their options and ranges, in short.
        advice: what an expert would say of the search.
    """

    progress: Progress
    importances: Importances
    failures: Sequence[FailureCount]
    searched: str = ""
    advice: Sequence[Advice] = ()

    def as_json(self) -> str:
        """Formats it as one line of JSON, with null for values that are missing or not finite."""
        return to_json(asdict(self.document()))

    def list_largest_shares(self) -> dict[str, float | None]:
        """Returns the importances of the most important hyperparameters, by name."""
        return dict(itertools.islice(self.importances.shares.items(), MOST_IMPORTANT))

    def document(self) -> StatusDocument:
        """Makes the document of the status."""
        progress = self.progress
        snapshot = progress.search
        result: Any = progress.result  # a ShortResult, as the database stores it
        best = None
        if snapshot.best is not None:
            best = _make_best_trial(snapshot, snapshot.best)
        baseline = None
        if snapshot.baseline is not None:
            baseline = _make_best_trial(snapshot, snapshot.baseline)
        end_reason = None
        if snapshot.forecast.ending is not None:
            end_reason = snapshot.forecast.ending.reason
        failures = {}
        for failure in self.failures:
            failures[failure.kind] = FailuresOfKind(failure.count, failure.first_reason)
        return StatusDocument(
            study=snapshot.name,
            metric=snapshot.metric,
            budget=snapshot.budget,
            done=snapshot.done,
            slots=SlotCounts(**snapshot.slots),
            trials=_count_outcomes(snapshot.outcomes),
            best=best,
            baseline=baseline,
            front=[_make_best_trial(snapshot, trial) for trial in snapshot.front],
            rule=snapshot.rule,
            importances=self.list_largest_shares(),
            workers=progress.current.workers,
            failures=failures,
            halt_reason=progress.halted,
            eta=progress.eta,
            trials_of_other_programs=snapshot.external,
            end_reason=end_reason,
            expected_improvement=snapshot.forecast.gain,
            stage=progress.title,
            stages=[StageCounts(stage.title, stage.done, stage.left) for stage in progress.stages],
            elapsed=progress.elapsed,
            hours=progress.hours,
            cost=progress.cost,
            control=progress.control,
            result=result,
            exit_code=progress.exit_code,
        )


def to_json(document: object) -> str:
    """Formats a document as one line of JSON, with null for numbers that are not finite."""
    return json.dumps(_replace_nonfinite(document), allow_nan=False, default=str)


def _replace_nonfinite(value: object) -> object:
    """Replaces numbers that are not finite by None in nested mappings and lists."""
    if isinstance(value, Mapping):
        return {str(key): _replace_nonfinite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nonfinite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
