"""TODO views.snapshot."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial, TrialState

from studyloom.storage.attributes import BASELINE, FAILURE
from studyloom.study.stored_study import StoredStudy
from studyloom.text import format_cost, format_value


@dataclass(frozen=True)
class WorkerStatus:
    """A worker and what it is at; number, epoch and value are None before there are any.

    left, age: seconds that its lease has left, and since it took its slot; as time passes, nothing has changed.
    """

    owner: str
    number: int | None = None
    epoch: int | None = None
    value: float | None = None
    left: float | None = field(default=None, compare=False)
    age: float | None = field(default=None, compare=False)

    @property
    def alive(self) -> bool:
        return self.left is None or self.left > 0


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment: slots by state, trials by outcome, the two trials to know, and who works on what.

    costs: what the values of a trial are beside the metric. front: where there are any, the trials that none beats, the
    best by the metric first. rule: how the best is chosen; None where the metric alone says so.
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

    @property
    def budget(self) -> int:
        return sum(self.slots.values())

    @property
    def done(self) -> int:
        return self.slots["done"]


def take_snapshot(stored: StoredStudy) -> Snapshot:
    """Reads a study: unfinished trials, and those that ended since the last time."""
    trials = stored.trials()
    by_id = {trial._trial_id: trial for trial in trials}
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    workers = []
    for held in stored.ledger.held():
        trial = by_id.get(held.trial_id) if held.trial_id is not None else None
        step = None if trial is None else trial.last_step
        value = None if trial is None or step is None else trial.intermediate_values[step]
        workers.append(
            WorkerStatus(
                held.owner,
                None if trial is None else trial.number,
                step,
                value,
                held.left,
                held.age,
            )
        )
    rule, costs = stored.rule(), tuple(goal.name for goal in stored.goals[1:])
    return Snapshot(
        name=stored.name,
        slots=stored.ledger.counts(),
        outcomes=Counter(outcome(trial) for trial in trials),
        best=next(iter(stored.ranked(rule)), None),
        baseline=next((trial for trial in complete if BASELINE in trial.user_attrs), None),
        workers=tuple(workers),
        metric=stored.metric,
        costs=costs,
        front=tuple(stored.front()) if costs else (),
        rule=str(rule) if costs or rule.conditions or rule.goal.name != stored.metric else None,
    )


def outcome(trial: FrozenTrial) -> str:
    """complete, pruned, failed, running; a trial that diverged has failed, whatever the sampler is told of it."""
    if FAILURE in trial.user_attrs or trial.state == TrialState.FAIL:
        return "failed"
    return trial.state.name.lower()


def format_trial_values(trial: FrozenTrial) -> str:
    """Its value, or all of them."""
    return ", ".join(trial_values(trial))


def trial_values(trial: FrozenTrial) -> list[str]:
    """Its value, and what it costs beside it."""
    if not trial.values:
        return ["–"]
    return [format_value(trial.values[0]), *map(format_cost, trial.values[1:])]


def front_rows(snapshot: Snapshot) -> list[list[str]]:
    """The Pareto front under its heads: values, trial, and which is the best; with the baseline, beaten or not."""
    known = {trial.number: trial for trial in snapshot.front}
    marks: dict[int, list[str]] = {}
    for what, trial in (("best", snapshot.best), ("baseline", snapshot.baseline)):
        if trial is not None:
            beaten = "" if trial.number in known else ", beaten"
            marks.setdefault(trial.number, []).append(f"{what}{beaten}")
            known[trial.number] = trial
    order = sorted(known.values(), key=lambda trial: [*trial.values[1:], trial.number])
    rows = [
        [*trial_values(trial), str(trial.number), ", ".join(marks.get(trial.number, []))]
        for trial in order
    ]
    return [[snapshot.metric, *snapshot.costs, "trial", ""], *rows]
