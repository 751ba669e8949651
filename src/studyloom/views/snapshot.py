"""A snapshot: a study at one moment, as all views show it."""

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studyloom.decisions.early_end import Forecast, read_forecast
from studyloom.storage.ledger import HeldSlot
from studyloom.storage.optuna_internals import ped_anova
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord

ENOUGH = 10  # complete trials, of which the best tenth is one


@dataclass(frozen=True)
class Importances:
    """The importances of hyperparameters for an objective.

    Args:
        shares: the share of each hyperparameter, the largest first, with a sum of 1. Even one that
            never varied may have a share if it is conditional, since it may matter whether a trial
            has it. Empty if no hyperparameter sets the best trials apart.
        has_enough_trials: whether the best tenth of the complete trials is at least one.
    """

    shares: Mapping[str, float] = field(default_factory=dict)
    has_enough_trials: bool = True


@dataclass(frozen=True)
class WorkerStatus:
    """A worker and its trial. Two are equal if they differ only by the time.

    Args:
        trial: the number of the trial; None before it begins.
        epoch: the last epoch that the trial reported, with its value; None before the first.
        epochs: the number of epochs of the trial; None if unknown. If a loop is called several
            times, for folds and seeds, both count its calls.
        held: the seconds since the worker claimed its slot.
        lease: the seconds left of its lease; negative after it has expired.
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
        """Whether its lease has not expired."""
        return self.lease is None or self.lease > 0


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment.

    Args:
        slots: the number of slots by state: free, held, done; of an Optuna study, of trials.
        outcomes: the number of trials by outcome: complete, pruned, failed, paused,
            running, waiting.
        baseline: the complete trial of the default configuration, if there is one.
        metric: the name of the first value of a trial; `costs` are those of the others.
        rule: how the best is chosen; None if only the metric decides.
        foreign: the number of trials that another program has added.
        aside: the number of trials that another trial has replaced in their slot.
        trials: all that fill slots, from which the counts follow.
        alive: the numbers of the trials that living workers hold; None for an Optuna study.
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
    forecast: Forecast = field(default_factory=Forecast)
    trials: Sequence[FrozenTrial] = field(default=(), compare=False, repr=False)
    alive: frozenset[int] | None = None

    @property
    def left(self) -> int:
        """The number of trials still to be done."""
        return self.budget - self.done if self.forecast.ending is None else self.forecast.running

    @property
    def budget(self) -> int:
        """The number of slots."""
        return sum(self.slots.values())

    @property
    def done(self) -> int:
        """The number of slots whose trial has ended."""
        return self.slots["done"]


def take_snapshot(stored: StoredStudy) -> Snapshot:
    """Reads a study; fetches only trials that are unfinished or ended since the last call.

    All counts follow from one list of trials: trials end between two reads. They are read from the
    database, since a worker of this process lists paused trials as pruned, for its sampler.

    Raises:
        StorageError: the database cannot be read.
    """
    held_before = stored.ledger.held()
    trials = stored.trials(all_attributes=True)
    ended = {trial._trial_id for trial in trials if trial.state.is_finished()}
    held = [slot for slot in stored.ledger.held() if slot.trial_id not in ended]
    # The trial of a slot that is claimed or released between the reads is not interrupted.
    living = {slot.trial_id for slot in [*held_before, *held] if slot.left > 0}
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    rule, costs = stored.rule(), tuple(objective.name for objective in stored.objectives[1:])
    slots = _as_slots(trials)
    alive = None
    if stored.is_studylooms:
        alive = frozenset(trial.number for trial in trials if trial._trial_id in living)
        slots = _count_slots(stored, len(held), len(ended))
    return Snapshot(
        name=stored.name,
        slots=slots,
        outcomes=Counter(TrialRecord(trial).outcome for trial in trials),
        best=next(iter(stored.ranked(rule)), None),
        baseline=next((trial for trial in complete if TrialRecord(trial).is_baseline), None),
        workers=_workers(held, trials),
        metric=stored.metric,
        costs=costs,
        front=tuple(stored.front()) if costs else (),
        rule=str(rule)
        if costs or rule.conditions or rule.objective.name != stored.metric
        else None,
        foreign=len(stored.external_trials()),
        aside=len(stored.set_aside_trials()),
        forecast=read_forecast(stored),
        trials=trials,
        alive=alive,
    )


def _count_slots(stored: StoredStudy, held: int, done: int) -> dict[str, int]:
    """Counts the slots of a study by state.

    Args:
        held: the number of slots whose trials run; read later than those that are done.
        done: the number of trials that have ended.
    """
    budget = max(done, sum(stored.ledger.counts().values()))
    held = min(held, budget - done)
    return {"free": budget - done - held, "held": held, "done": done}


def _as_slots(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """Counts the trials of an Optuna study as slots, of which it has none."""
    states = Counter(trial.state for trial in trials)
    free, held = states[TrialState.WAITING], states[TrialState.RUNNING]
    return {"free": free, "held": held, "done": len(trials) - free - held}


def _workers(held: Sequence[HeldSlot], trials: Sequence[FrozenTrial]) -> tuple[WorkerStatus, ...]:
    by_id = {trial._trial_id: trial for trial in trials}
    workers = []
    for slot in held:
        worker = WorkerStatus(slot.owner, held=slot.age, lease=slot.left)
        if slot.trial_id in by_id:
            trial = by_id[slot.trial_id]
            step = trial.last_step
            worker = replace(
                worker,
                trial=trial.number,
                epoch=step,
                epochs=TrialRecord(trial).steps_planned,
                value=None if step is None else trial.intermediate_values[step],
                params=trial.params,
            )
        workers.append(worker)
    return tuple(workers)


def varied_parameters(trials: Sequence[FrozenTrial], least: int = 2) -> list[str]:
    """Returns the hyperparameters that had different values in at least `least` of the trials."""
    values: dict[str, list[Any]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values.setdefault(name, []).append(value)
    return sorted(name for name, seen in values.items() if len(seen) >= least and len({*seen}) > 1)


def importances(stored: StoredStudy, position: int = 0) -> Importances:
    """Returns the importances of hyperparameters, as optuna-dashboard shows them.

    PED-ANOVA (Watanabe et al., IJCAI 2023) compares the distribution of each hyperparameter in the
    best tenth of the complete trials with that in all of them.

    Args:
        position: the position of the objective.
    """
    trials = [
        trial
        for trial in stored.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if math.isfinite(trial.values[position])
    ]
    if len(trials) < ENOUGH:
        return Importances(has_enough_trials=False)
    sign = stored.objectives[position].sign
    with warnings.catch_warnings():  # that it minimizes, and that few trials have a hyperparameter
        warnings.simplefilter("ignore")
        evaluated = ped_anova().evaluate(
            stored.optuna, target=lambda trial: -sign * trial.values[position]
        )
    varied = varied_parameters(trials)
    total = sum(evaluated.values())
    if not varied or not total:
        return Importances()
    shares = {}
    # Optuna's order of equal importances is random.
    for name in sorted(evaluated, key=lambda name: (-evaluated[name], name)):
        if evaluated[name] or name in varied:
            shares[name] = evaluated[name] / total
    return Importances(shares)
