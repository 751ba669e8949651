"""A snapshot: a study at one moment, as all views show it.

`take_snapshot` counts the trials and slots of a study, and finds its best trial, its baseline and
its workers. A slot is the place of one trial in the budget.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studyloom.decisions.early_end import Forecast, read_forecast
from studyloom.processes import is_gone
from studyloom.storage.ledger import HeldSlot
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord


@dataclass(frozen=True)
class WorkerStatus:
    """A worker and its trial. Two are equal if they differ only by the time.

    Args:
        trial: the number of the trial; None before it begins.
        epoch: the last epoch that the trial reported, with its value; None before the first.
        epochs: the number of epochs of the trial; None if unknown. If a loop is called several
            times, for folds and seeds, both count its calls.
        held_seconds: the seconds since the worker claimed its slot.
        lease_seconds: the seconds left of its lease; negative after it has expired.
        is_gone: whether its process, on this host, has ended.
    """

    owner: str
    trial: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    value: float | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    held_seconds: float | None = field(default=None, compare=False)
    lease_seconds: float | None = field(default=None, compare=False)
    is_gone: bool = False

    @property
    def is_alive(self) -> bool:
        """Returns whether the worker's lease has not expired, and its process may still run."""
        if self.is_gone:
            return False
        return self.lease_seconds is None or self.lease_seconds > 0


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment.

    Args:
        slots: the number of slots by state: free, held by a live worker, done. A study of Optuna
            has no slots, so its trials are counted.
        outcomes: the number of trials by outcome: complete, pruned, failed, paused,
            running, waiting.
        best: the best complete trial by the rule of the study, if there is one.
        baseline: the complete trial of the default configuration, if there is one.
        workers: the workers that hold a slot.
        metric: the name of the first value of a trial.
        costs: the names of its further values.
        front: the Pareto front; empty without costs.
        rule: how the best trial is chosen; None if only the metric decides.
        external: the number of trials that another program has added to the study.
        replaced: the number of trials that another trial has replaced in their slot.
        forecast: whether the search has ended early, or what further trials would gain.
        trials: the trials that fill slots, from which the counts follow.
        live_trials: the numbers of the trials that living workers hold; None for a study of
            Optuna, which has no leases.
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
    external: int = 0
    replaced: int = 0
    forecast: Forecast = field(default_factory=Forecast)
    trials: Sequence[FrozenTrial] = field(default=(), compare=False, repr=False)
    live_trials: frozenset[int] | None = None

    @property
    def left(self) -> int:
        """The number of trials still to be done; those that run, if the search ends early."""
        if self.forecast.ending is not None:
            return self.forecast.running
        return self.budget - self.done

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

    All counts follow from one list of trials, because a trial may end between two reads, and would
    be counted twice or not at all. The trials are read from the database and not from this
    process's cache, in which a worker lists paused trials as pruned for its sampler.

    Raises:
        StorageError: the database cannot be read.
    """
    # The slots that workers hold: rows of the budget, each of which reserves a trial. They are read
    # twice, since a worker may take or give up a trial while the trials are read. Such a trial must
    # not look as if its worker were dead.
    held_before = stored.ledger.held()
    trials = stored.trials(all_attributes=True)
    held_after = stored.ledger.held()
    ended_ids = {trial._trial_id for trial in trials if trial.state.is_finished()}
    held = [slot for slot in held_after if slot.trial_id not in ended_ids]

    live_trials = None
    if stored.is_studylooms:
        live_slots = [slot for slot in held if slot.is_live]
        slots = _count_slots(stored, len(live_slots), len(ended_ids))
        live_trials = _find_live_trials(trials, [*held_before, *held])
    else:
        slots = _count_trials_as_slots(trials)
    rule = stored.rule()
    costs = tuple(objective.name for objective in stored.objectives[1:])
    front: tuple[FrozenTrial, ...] = ()
    if costs:
        front = tuple(stored.front())
    chooses_by_metric = not rule.conditions and rule.objective.name == stored.metric
    rule_text = None  # the rule is shown if there is more to it than the metric
    if costs or not chooses_by_metric:
        rule_text = str(rule)
    return Snapshot(
        name=stored.name,
        slots=slots,
        outcomes=Counter(TrialRecord(trial).outcome for trial in trials),
        best=next(iter(stored.ranked(rule)), None),
        baseline=_find_baseline(trials),
        workers=_read_workers(held, trials),
        metric=stored.metric,
        costs=costs,
        front=front,
        rule=rule_text,
        external=len(stored.external_trials()),
        replaced=len(stored.set_aside_trials()),
        forecast=read_forecast(stored),
        trials=trials,
        live_trials=live_trials,
    )


def _find_live_trials(trials: Sequence[FrozenTrial], held: Sequence[HeldSlot]) -> frozenset[int]:
    """Returns the numbers of the trials whose worker lives: see `HeldSlot.is_live`.

    Args:
        held: the slots that workers held before the trials were read, or after it. One may be
            claimed or released in between, and its trial must not look interrupted.
    """
    live_ids = {slot.trial_id for slot in held if slot.is_live}
    return frozenset(trial.number for trial in trials if trial._trial_id in live_ids)


def _find_baseline(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Returns the complete trial of the default configuration; None without one."""
    for trial in trials:
        if trial.state == TrialState.COMPLETE and TrialRecord(trial).is_baseline:
            return trial
    return None


def _count_slots(stored: StoredStudy, held: int, done: int) -> dict[str, int]:
    """Counts the slots of a study by state; a slot is the place of one trial in the budget.

    The three numbers are read one after the other, and may not fit together while trials end.

    Args:
        held: the number of slots whose trials run.
        done: the number of trials that have ended.
    """
    budget = max(done, sum(stored.ledger.counts().values()))
    not_done = budget - done
    held_of_budget = min(held, not_done)
    return {"free": not_done - held_of_budget, "held": held_of_budget, "done": done}


def _count_trials_as_slots(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """Counts the trials of a study of Optuna by the states of slots, which it does not have."""
    states = Counter(trial.state for trial in trials)
    free = states[TrialState.WAITING]
    held = states[TrialState.RUNNING]
    return {"free": free, "held": held, "done": len(trials) - free - held}


def _read_workers(
    held: Sequence[HeldSlot], trials: Sequence[FrozenTrial]
) -> tuple[WorkerStatus, ...]:
    """Returns the status of the worker of each held slot."""
    trials_by_id = {trial._trial_id: trial for trial in trials}
    workers = []
    for slot in held:
        worker = WorkerStatus(
            slot.owner,
            held_seconds=slot.age,
            lease_seconds=slot.seconds_left,
            is_gone=is_gone(slot.owner),
        )
        if slot.trial_id in trials_by_id:  # else the worker has claimed the slot a moment ago
            trial = trials_by_id[slot.trial_id]
            step = trial.last_step
            value = None
            if step is not None:
                value = trial.intermediate_values[step]
            worker = replace(
                worker,
                trial=trial.number,
                epoch=step,
                epochs=TrialRecord(trial).steps_planned,
                value=value,
                params=trial.params,
            )
        workers.append(worker)
    return tuple(workers)
