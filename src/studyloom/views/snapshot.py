"""A snapshot: a study at one moment, as all views show it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studyloom.study.early_end import Outlook, look_ahead
from studyloom.study.stored_study import StoredStudy, value_of
from studyloom.study.trial_record import TrialRecord
from studyloom.text import format_cost, format_duration, format_parameter, format_value, one_line
from studyloom.views.sentence import describe, format_metric, result_sentence
from studyloom.winner.result import Result


@dataclass(frozen=True)
class WorkerStatus:
    """A worker and its trial. Two are equal if nothing but the time differs.

    Args:
        trial: its number; None before it begins.
        epoch: the last one that the trial reported, with its value; None before the first.
        epochs: how many the trial has; None if that is not known.
        held: the seconds since the worker claimed its slot.
        lease: the seconds that its lease has left; negative after the lease is over.
    """

    owner: str
    trial: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    value: float | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    held: float | None = field(default=None, compare=False)
    lease: float | None = field(default=None, compare=False)

    @property
    def alive(self) -> bool:
        """Whether its lease still runs."""
        return self.lease is None or self.lease > 0

    @property
    def cells(self) -> list[str]:
        """Trial, epoch and value, the time since the claim, and until silence ends it."""
        value = None if self.value is None else format_value(self.value)
        held = None if self.held is None else format_duration(self.held)
        left = None if self.lease is None else f"expires in {format_duration(self.lease)}"
        epoch = self.epoch
        of = "" if self.epochs is None else f"/{self.epochs}"
        shown = None if epoch is None else f"{epoch}{of}"
        cells = (self.trial, shown, value, held, left if self.alive else "expired")
        return ["–" if cell is None else str(cell) for cell in cells]


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment.

    Args:
        slots: the number of slots by state: free, held, done.
        outcomes: the number of trials by outcome: complete, pruned, failed, paused,
            running, waiting.
        baseline: the complete trial of the configuration as composed, if there is one.
        metric: the name of the first value of a trial; `costs` are those of the others.
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

    @property
    def why_no_best(self) -> str:
        """Why the study has no best trial, without the full stop."""
        if self.rule is not None and self.outcomes.get("complete"):
            return f"No complete trial keeps to {one_line(self.rule)}"
        return "No trial is complete yet"

    @property
    def uncounted_words(self) -> list[str]:
        """How many trials are paused at a rung, or kept but not counted; nothing for none."""
        counts = {
            "paused": self.outcomes.get("paused"),
            "foreign": self.foreign,
            "set aside": self.aside,
        }
        return [f"{count} {kind}" for kind, count in counts.items() if count]

    @property
    def counts_words(self) -> list[str]:
        """How many trials have ended in which way, run, and are not counted."""
        outcomes = self.outcomes
        counts = [f"{outcomes.get(kind, 0)} {kind}" for kind in ("complete", "pruned", "failed")]
        running = [f"{len(self.workers)} running"] if self.workers else []
        return [*counts, *running, *self.uncounted_words]

    @property
    def headline(self) -> str:
        """The name of the study, its slots and its trials in one line."""
        counts = ", ".join(self.counts_words)
        done = f"{self.done} of {self.budget} trials"
        return f"{one_line(self.name)}: {done} – {counts}"

    @property
    def sentence(self) -> str:
        """Where the search stands in one sentence: its best trial so far."""
        trials = f"{self.done} of {self.budget} trials"
        if (best := self.best) is None or (value := value_of(best)) is None:
            return f"{self.why_no_best}, after {trials}"
        who = describe(best, best.params)
        shown = format_metric(value, self.metric)
        words = f"{who}: {shown} in the search, the best after {trials}"
        start = value_of(self.baseline)
        if start is None or self.baseline is None or self.baseline.number == best.number:
            return words
        return f"{words}; the baseline has {format_metric(start, self.metric)}"

    def quotable(self, stored: StoredStudy, result: Result | None) -> str:
        """Words where a study stands in one sentence: its tested winner, or its best trial."""
        tested = None if result is None else result_sentence(result, stored)
        return tested or self.sentence

    def front_rows(self) -> list[list[str]]:
        """Formats the Pareto front as rows, with the best and the baseline even if they are beaten.

        Returns:
            The headings, and a row for each trial, the cheapest first: its values, its number,
            and a mark if it is the best or the baseline.
        """
        known = {trial.number: trial for trial in self.front}
        marks: dict[int, list[str]] = {}
        for name, trial in (("best", self.best), ("baseline", self.baseline)):
            if trial is not None:
                beaten = "" if trial.number in known else ", beaten"
                marks.setdefault(trial.number, []).append(f"{name}{beaten}")
                known[trial.number] = trial
        order = sorted(known.values(), key=lambda trial: [*trial.values[1:], trial.number])
        rows = [
            [*trial_values(trial), str(trial.number), ", ".join(marks.get(trial.number, []))]
            for trial in order
        ]
        return [[self.metric, *self.costs, "trial", ""], *rows]


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
        outcomes=Counter(TrialRecord(trial).outcome for trial in trials),
        best=next(iter(stored.ranked(rule)), None),
        baseline=next((trial for trial in complete if TrialRecord(trial).is_baseline), None),
        workers=_read_workers(stored, trials),
        metric=stored.metric,
        costs=costs,
        front=tuple(stored.front()) if costs else (),
        rule=str(rule) if costs or rule.conditions or rule.goal.name != stored.metric else None,
        foreign=len(foreign),
        aside=len(aside),
        outlook=look_ahead(stored),
    )


def _read_workers(stored: StoredStudy, trials: list[FrozenTrial]) -> tuple[WorkerStatus, ...]:
    by_id = {trial._trial_id: trial for trial in trials}
    workers = []
    for held in stored.ledger.held():
        worker = WorkerStatus(held.owner, held=held.age, lease=held.left)
        if held.trial_id in by_id:
            trial = by_id[held.trial_id]
            step = trial.last_step
            worker = replace(
                worker,
                trial=trial.number,
                epoch=step,
                epochs=TrialRecord(trial).planned_epochs,
                value=None if step is None else trial.intermediate_values[step],
                params=trial.params,
            )
        workers.append(worker)
    return tuple(workers)


def format_trial_values(trial: FrozenTrial) -> str:
    """Formats the value of a trial, or all of its values, in one line."""
    return ", ".join(trial_values(trial))


def trial_values(trial: FrozenTrial) -> list[str]:
    """Formats each value of a trial: the metric, and then the costs; a dash if it has none."""
    values = trial.values or ()
    return [*map(format_value, values[:1]), *map(format_cost, values[1:])] or ["–"]


def format_parameters(params: Mapping[str, Any]) -> str:
    """Formats the parameters of a trial in one line; `as composed` if it has none."""
    pairs = (f"{one_line(name)}={format_parameter(value)}" for name, value in params.items())
    return "  ".join(pairs) or "as composed"
