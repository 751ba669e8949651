"""Reads all stages of a study as one `Progress`, once or again and again."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.decisions.early_end import Hours, sum_hours
from studyloom.errors import StorageError
from studyloom.storage.command_record import CommandRecord, StoredCommand
from studyloom.storage.failures import count_failures
from studyloom.storage.stored_study import (
    ABLATION,
    FINAL_TRAINING,
    REEVALUATION,
    SEARCH,
    StoredStudy,
    open_in_same_database,
)
from studyloom.storage.trial_record import TrialRecord
from studyloom.views.advice import list_search_advice
from studyloom.views.estimate import Work, estimate_seconds, estimate_work
from studyloom.views.importances import COMPARED_OUTCOMES, Importances, compute_importances
from studyloom.views.progress import DONE, TEST, Progress, StageProgress
from studyloom.views.searched import describe_searched
from studyloom.views.snapshot import Snapshot, take_snapshot
from studyloom.views.status import Status
from studyloom.worker.stopping import read_control

WATCH_INTERVAL = 1.0  # seconds between looks at a study of other processes


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
    """Returns whether any worker of some studies lives: see `WorkerStatus.is_alive`."""
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
