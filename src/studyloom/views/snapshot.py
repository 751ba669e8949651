"""A snapshot: a study at one moment, as all views show it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studyloom.storage.attributes import BASELINE, PLANNED_EPOCHS
from studyloom.study.early_end import Outlook, look_ahead
from studyloom.study.failures import outcome
from studyloom.study.stored_study import StoredStudy
from studyloom.text import format_cost, format_value, one_line


@dataclass(frozen=True)
class WorkerStatus:
    """A worker and its trial. Two are equal if nothing but the time differs.

    Args:
        owner: the id of the worker.
        number: the number of its trial; None before the trial begins.
        epoch: the last epoch that it reported; None before the first.
        value: the value of that epoch.
        left: the seconds that its lease has left; negative after the lease is over.
        age: the seconds since it claimed its slot.
        epochs: how many epochs its trial has; None if that is not known.
        params: the parameters of its trial by their path.
    """

    owner: str
    number: int | None = None
    epoch: int | None = None
    value: float | None = None
    left: float | None = field(default=None, compare=False)
    age: float | None = field(default=None, compare=False)
    epochs: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """Whether its lease still runs."""
        return self.left is None or self.left > 0


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment.

    Args:
        slots: the number of slots by state: free, held, done.
        outcomes: the number of trials by outcome: complete, pruned, failed, paused,
            running, waiting.
        baseline: the complete trial of the configuration as composed, if there is one.
        workers: the workers that hold a slot.
        metric: the name of the first value of a trial.
        costs: the names of its further values.
        rule: how the best is chosen; None if the metric alone decides.
        foreign: the number of trials that another program has added.
        aside: the number of trials that were set aside for another one in their slot.
    """

    name: str
    slots: Mapping[str, int]
    outcomes: Mapping[str, int]
    best: FrozenTrial | None
    baseline: FrozenTrial | None
    workers: tuple[WorkerStatus, ...]
    metric: str = "value"
    costs: tuple[str, ...] = ()
    front: tuple[FrozenTrial, ...] = ()
    rule: str | None = None
    foreign: int = 0
    aside: int = 0
    outlook: Outlook = field(default_factory=Outlook)

    @property
    def left(self) -> int:
        """The number of trials that will still be worked on."""
        return self.budget - self.done if self.outlook.ending is None else self.outlook.under_way

    @property
    def budget(self) -> int:
        """The number of slots."""
        return sum(self.slots.values())

    @property
    def done(self) -> int:
        """The number of slots whose trial has ended."""
        return self.slots["done"]


def take_snapshot(stored: StoredStudy) -> Snapshot:
    """Reads a study; of its trials only the unfinished, and those that ended since the last time.

    Raises:
        StorageError: the database cannot be read.
    """
    trials = stored.trials()
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    foreign, aside = stored.uncounted()
    rule, costs = stored.rule(), tuple(goal.name for goal in stored.goals[1:])
    return Snapshot(
        name=stored.name,
        slots=stored.ledger.counts(),
        outcomes=Counter(outcome(trial) for trial in trials),
        best=next(iter(stored.ranked(rule)), None),
        baseline=next((trial for trial in complete if BASELINE in trial.user_attrs), None),
        workers=_read_workers(stored, trials),
        metric=stored.metric,
        costs=costs,
        front=tuple(stored.front()) if costs else (),
        rule=str(rule) if costs or rule.conditions or rule.goal.name != stored.metric else None,
        foreign=len(foreign),
        aside=len(aside),
        outlook=look_ahead(stored),
    )


def why_no_best(snapshot: Snapshot) -> str:
    """Says why a study has no best trial, without the full stop."""
    if snapshot.rule is not None and snapshot.outcomes.get("complete"):
        return f"No complete trial keeps to {one_line(snapshot.rule)}"
    return "No trial is complete yet"


def uncounted(snapshot: Snapshot) -> list[str]:
    """Words how many trials are kept but not counted, by kind; nothing for none."""
    kinds = {"foreign": snapshot.foreign, "set aside": snapshot.aside}
    return [f"{count} {kind}" for kind, count in kinds.items() if count]


def trial_counts(snapshot: Snapshot) -> list[str]:
    """Words how many trials have ended in which way, run, and are not counted."""
    counts = [
        f"{snapshot.outcomes.get(kind, 0)} {kind}" for kind in ("complete", "pruned", "failed")
    ]
    if snapshot.workers:
        counts.append(f"{len(snapshot.workers)} running")
    return [*counts, *paused(snapshot), *uncounted(snapshot)]


def paused(snapshot: Snapshot) -> list[str]:
    """Words how many trials wait at a rung for their promotion; nothing for none."""
    return [f"{count} paused"] if (count := snapshot.outcomes.get("paused")) else []


def _read_workers(stored: StoredStudy, trials: list[FrozenTrial]) -> tuple[WorkerStatus, ...]:
    by_id = {trial._trial_id: trial for trial in trials}
    workers = []
    for held in stored.ledger.held():
        trial = by_id.get(held.trial_id) if held.trial_id is not None else None
        number = step = value = epochs = None
        params: Mapping[str, Any] = {}
        if trial is not None:
            epochs, params = trial.user_attrs.get(PLANNED_EPOCHS), trial.params
            number, step = trial.number, trial.last_step
            value = None if step is None else trial.intermediate_values[step]
        workers.append(
            WorkerStatus(held.owner, number, step, value, held.left, held.age, epochs, params)
        )
    return tuple(workers)


def format_trial_values(trial: FrozenTrial) -> str:
    """Formats the value of a trial, or all of its values, in one line."""
    return ", ".join(trial_values(trial))


def trial_values(trial: FrozenTrial) -> list[str]:
    """Formats each value of a trial: the metric, and then the costs; a dash if it has none."""
    if not trial.values:
        return ["–"]
    return [format_value(trial.values[0]), *map(format_cost, trial.values[1:])]


def front_rows(snapshot: Snapshot) -> list[list[str]]:
    """Formats the Pareto front as rows, with the best and the baseline even if they are beaten.

    Returns:
        The headings, and a row for each trial, the cheapest first: its values, its number, and a
        mark if it is the best or the baseline.
    """
    known = {trial.number: trial for trial in snapshot.front}
    marks: dict[int, list[str]] = {}
    for name, trial in (("best", snapshot.best), ("baseline", snapshot.baseline)):
        if trial is not None:
            beaten = "" if trial.number in known else ", beaten"
            marks.setdefault(trial.number, []).append(f"{name}{beaten}")
            known[trial.number] = trial
    order = sorted(known.values(), key=lambda trial: [*trial.values[1:], trial.number])
    rows = [
        [*trial_values(trial), str(trial.number), ", ".join(marks.get(trial.number, []))]
        for trial in order
    ]
    return [[snapshot.metric, *snapshot.costs, "trial", ""], *rows]
