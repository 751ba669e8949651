"""The status of a study, as `studyloom status` shows it to people and, as JSON, to programs."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NotRequired, TypedDict

from optuna.trial import FrozenTrial

from studyloom.decisions.early_end import Hours
from studyloom.json_text import to_json
from studyloom.storage.failures import FailureCount
from studyloom.storage.stored_study import value_of
from studyloom.storage.trial_record import TrialRecord
from studyloom.views.advice import Advice
from studyloom.views.importances import Importances
from studyloom.views.progress import Progress
from studyloom.views.snapshot import Snapshot, WorkerStatus
from studyloom.views.words import map_costs
from studyloom.winner.result import ShortResult
from studyloom.worker.stopping import Request

MOST_IMPORTANT = 5  # hyperparameters whose importance a status has


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
