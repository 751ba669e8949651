"""The progress of a study through its stages: search, re-evaluation and final training.

A `Progress` is one moment of a study, with what has ended, what was spent, and how long the rest
will take. Its texts are those of a display and of `studyloom status`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.decisions.early_end import Hours
from studyloom.storage.stored_study import ABLATION, FINAL_TRAINING, REEVALUATION, SEARCH
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import format_duration, one_line
from studyloom.views.estimate import Work, compute_share
from studyloom.views.snapshot import Snapshot, WorkerStatus
from studyloom.views.words import count_uncounted, describe_stored_result, format_trial_values
from studyloom.worker.stopping import Request

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
        """The number of workers of the current stage that live: see `WorkerStatus.is_alive`."""
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
        workers = self.live_workers
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
        running = self.live_workers
        if running:
            parts.append(f"{running} running")
        if self.control_text:
            parts.append(self.control_text)
        if search.forecast.ending is not None and self.title in (SEARCH, DONE):
            parts.append(search.forecast.ending.reason)
        return "  ".join(parts)


DAY = timedelta(days=1)


def format_moment(moment: datetime) -> str:
    """Formats a moment in local time: 15:42, or with the day if it is not today."""
    now = datetime.now()
    if moment.date() == now.date():
        return f"{moment:%H:%M}"
    if moment - now < 6 * DAY:
        return f"{moment:%a %H:%M}"
    return f"{moment:%Y-%m-%d %H:%M}"
