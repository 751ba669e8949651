"""The early end of a search: before each claim, decides whether further trials are worth it.

The decision is a pure function of the stored trials and of the bounds stored with the study, so no
worker is the master. It is stored: trials that still run, and run to their end, may change the
estimate of what further trials gain, but not the decision.

The values so far predict the rest. The best of n exponential values grows by σ·(1/(n+1) + … + 1/N)
on the way to N, and σ is the mean distance of the best j values from the next one (A. Rényi, "On
the theory of order statistics", Acta Mathematica Hungarica 4, 1953). The largest of other values
behave alike if their tail is that of an exponential or normal distribution; shorter tails gain less
(I. Weissman, JASA 73, 1978). j is a fifth of the complete trials: with a pruner few are complete,
now and later. A pruned trial counts with its last value, since it would hardly have become worse. A
sampler that learns moves its values up, and closer together, so the estimate falls as it converges.
It needs no model of the space, unlike the regret bound of A. Makarova and others (2022, arXiv
2104.08166). `python scripts/bench.py search --only ends` measures what an early end saves and
costs.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial, TrialState

from studyloom.metrics import ideal_of
from studyloom.storage.attributes import BOUNDS, EARLY_END, parse
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import format_value

SHARE = 0.2  # of the complete trials: the largest that saves 30% on HPOLib with 40 trials
FEWEST = 3  # of the best, since two may be alike by chance
FIRST = 10  # trials before any estimate; Optuna's TPE has drawn these at random


@dataclass(frozen=True)
class Hours:
    """Hours of processor cores, by the threads of the workers, and of GPUs."""

    cores: float = 0.0
    gpus: float = 0.0

    def cost(self, per_hour: float | None) -> float | None:
        """Returns their cost at a price of an hour of a GPU, or of a core without a GPU."""
        return None if per_hour is None else per_hour * (self.gpus or self.cores)


def hours_of(trials: Iterable[FrozenTrial]) -> Hours:
    """Adds up what workers spent on trials that have ended or were paused, also before they died.

    A trial that ran on the CPU counts for each thread of its worker.
    Without a stored environment it counts as one core.
    """
    cores = gpus = 0.0
    for trial in trials:
        hours, provenance = _worked(trial), TrialRecord(trial).provenance
        environment = provenance.get("environment") or {}
        cores += hours * (environment.get("threads") or 1)
        if provenance.get("device") in ("cuda", "mps"):
            gpus += hours
    return Hours(cores, gpus)


def _worked(trial: FrozenTrial) -> float:
    """Returns the hours that workers spent on a trial."""
    return float(sum(TrialRecord(trial).times.values())) / 3600


@dataclass(frozen=True)
class Bounds:
    """The bounds that end a search before its budget is spent.

    Args:
        min_improvement: the smallest gain expected of further trials, in units of the metric.
        epochs: the most epochs that all trials together may report.
        cost: the most that the hours of all trials may cost, at a price of `per_hour`.
        ideal: the best value that the metric can have, times its sign; not stored, see `ideal_of`.
    """

    min_improvement: float | None = None
    epochs: int | None = None
    trials: int = 0
    cost: float | None = None
    per_hour: float | None = None
    ideal: float | None = None


class Outcome(NamedTuple):
    """The outcome of a trial, as a search sees it."""

    slot: int
    ended: bool  # or it waits to be promoted
    value: float | None  # finite, the more the better; None if it does not count
    epochs: int
    hours: Hours = Hours()
    complete: bool = True  # else its value is that of its last epoch


@dataclass(frozen=True)
class Ending:
    """Why a search has ended.

    Args:
        gain: what the further trials were expected to gain; None if epochs or money are spent.
        spent: what the trials have cost; None if that does not decide.
    """

    begun: int
    bounds: Bounds
    epochs: int
    gain: float | None = None
    spent: float | None = None

    @property
    def words(self) -> str:
        """The reason, in one line."""
        trials = self.bounds.trials
        after = f"ended after {self.begun} of {trials} trials"
        if self.spent is not None:
            return f"{after}: {self.spent:.2f} of cost.limit={self.bounds.cost:g} are spent"
        if self.gain is None:
            return f"{after}: {self.epochs} epochs of study.epochs={self.bounds.epochs} are spent"
        left = trials - self.begun
        further = "a further trial is" if left == 1 else f"the {left} further trials are"
        least = f"study.min_improvement={self.bounds.min_improvement:g}"
        return f"{after}: {further} expected to gain less than {least}"

    def decision(self) -> dict[str, Any]:
        """Returns the stored decision, for `find_ending`."""
        least = self.bounds.min_improvement
        return {"min_improvement": least, "trials": self.bounds.trials, "gain": self.gain}


def find_ending(
    bounds: Bounds, outcomes: Iterable[Outcome], decided: Any = None, *, decide: bool = True
) -> Ending | None:
    """Returns why a search has ended; None if it continues.

    Args:
        decide: whether to estimate from the trials if further ones gain too little; otherwise only
            a stored decision counts.
    """
    first = [outcome for outcome in outcomes if outcome.slot < bounds.trials]
    begun, epochs = len(first), sum(outcome.epochs for outcome in first)
    if begun >= bounds.trials:
        return None  # its budget is what ends it
    if bounds.epochs is not None and epochs >= bounds.epochs:
        return Ending(begun, bounds, epochs)
    hours = Hours(sum(one.hours.cores for one in first), sum(one.hours.gpus for one in first))
    spent = hours.cost(bounds.per_hour)
    if bounds.cost is not None and spent is not None and spent >= bounds.cost:
        return Ending(begun, bounds, epochs, spent=spent)
    if bounds.min_improvement is None:
        return None
    if _holds(decided, bounds):
        return Ending(begun, bounds, epochs, float(decided["gain"]))
    gain = gain_of(bounds, first) if decide else None
    if gain is None or gain >= bounds.min_improvement:
        return None
    return Ending(begun, bounds, epochs, gain)


def _holds(decided: Any, bounds: Bounds) -> bool:
    """Whether a stored decision is about this improvement, and this budget or a larger one."""
    if not isinstance(decided, Mapping) or not isinstance(decided.get("gain"), int | float):
        return False
    trials = decided.get("trials")
    return decided.get("min_improvement") == bounds.min_improvement and (
        isinstance(trials, int) and trials >= bounds.trials
    )


def gain_of(bounds: Bounds, outcomes: Iterable[Outcome]) -> float | None:
    """Returns what the rest of a budget is expected to gain, in units of the values.

    Args:
        outcomes: those of the trials so far; one that has ended without a value counts as one that
            is not among the best.

    Returns:
        The expected gain of the best value; None if too few trials have a value.
    """
    ended = [outcome for outcome in outcomes if outcome.ended and outcome.slot < bounds.trials]
    known = sorted((o.value, o.complete) for o in ended if o.value is not None)
    values = [value for value, _ in known]
    complete = [value for value, is_complete in known if is_complete]
    count, best = len(ended), max(FEWEST, math.ceil(SHARE * len(complete)))
    if count < FIRST or not complete or len(values) <= best:
        return None
    scale = sum(values[-best:]) / best - values[-best - 1]
    # Not below 0 by rounding; and with equal values nothing is gained.
    gain = max(0.0, scale) * math.log(max(bounds.trials, count) / count)
    if bounds.ideal is None or complete[-1] > bounds.ideal:  # another metric has that name
        return gain
    return min(gain, bounds.ideal - complete[-1])


@dataclass(frozen=True)
class Outlook:
    """The rest of a search.

    Args:
        under_way: once it has ended, how many of its trials have not.
        gain: what its further trials are expected to gain together, in units of the metric.
    """

    ending: Ending | None = None
    under_way: int = 0
    gain: float | None = None
    bounds: Bounds = field(default_factory=Bounds)

    def words(self, metric: str) -> str:
        """Formats what further trials are expected to gain; empty without any, or after too few."""
        if not self.gain or self.ending is not None:
            return ""
        least = self.bounds.min_improvement
        below = "" if least is None else f"; the search ends below {least:g}"
        return f"expected gain of further trials: {format_value(self.gain)} {metric}{below}"


def read_bounds(stored: StoredStudy) -> Bounds:
    """Returns the bounds that the last command stored; none if no command did."""
    bounds = parse(stored.attributes(BOUNDS)[0], Bounds)
    return replace(bounds or Bounds(), ideal=ideal_of(stored.objectives[0]))


def set_bounds(stored: StoredStudy, bounds: Bounds) -> None:
    """Stores the bounds that end the search from now on; new ones discard a decision."""
    if bounds != replace(read_bounds(stored), ideal=None):
        stored.optuna.set_user_attr(EARLY_END, None)
        stored.optuna.set_user_attr(BOUNDS, asdict(bounds))


def ending(stored: StoredStudy, trials: int) -> Ending | None:
    """Returns why a search has ended before its budget is spent; None if it continues.

    The first worker that expects too little of further trials stores this decision. If it is killed
    before, the next one decides the same.
    """
    bounds = replace(read_bounds(stored), trials=trials)
    if bounds.min_improvement is None and bounds.epochs is None and bounds.cost is None:
        return None  # without a look at the trials
    (decided,) = stored.attributes(EARLY_END)
    found = find_ending(bounds, read_outcomes(stored), decided)
    if found is not None and found.gain is not None and found.decision() != decided:
        stored.optuna.set_user_attr(EARLY_END, found.decision())
    return found


def look_ahead(stored: StoredStudy) -> Outlook:
    """Returns the outlook of a search; nothing of the later stages of a study.

    It stores no decision: viewing a study does not change it.
    """
    if stored.is_stage:
        return Outlook()
    bounds = read_bounds(stored)
    if not bounds.trials:  # another program has made the study
        bounds = replace(bounds, trials=sum(stored.ledger.counts().values()))
    outcomes = read_outcomes(stored)
    ended = find_ending(bounds, outcomes, *stored.attributes(EARLY_END), decide=False)
    under_way = 0 if ended is None else stored.ledger.todo(bounds.trials, begun=True)
    return Outlook(ended, under_way, gain_of(bounds, outcomes), bounds)


def read_outcomes(stored: StoredStudy) -> list[Outcome]:
    """Returns the outcomes of the trials of a search, in the order in which they ended.

    The value of a complete trial counts if the trial breaks no constraint and satisfies the rule by
    which the best is chosen. The last value of a pruned or paused trial counts if that rule has no
    conditions. With several objectives no value counts. A paused trial counts as ended.
    """
    single, unconditional = len(stored.objectives) == 1, not stored.rule().conditions
    counted = {trial.number for trial in stored.ranked()} if single else set()

    def outcome(trial: FrozenTrial) -> Outcome:
        record = TrialRecord(trial)
        slot, kind = trial.number if record.slot is None else record.slot, record.outcome
        value, reports = None, trial.intermediate_values
        if trial.number in counted:
            value = trial.values[0]
        elif single and unconditional and reports and kind in ("pruned", "paused"):
            value = reports[max(reports)]
        value = stored.sign * value if value is not None and math.isfinite(value) else None
        ended = trial.state.is_finished() or kind == "paused"
        return Outcome(slot, ended, value, len(reports), hours_of([trial]), kind == "complete")

    return [outcome(trial) for trial in sorted(stored.trials(whole=True), key=ended_at)]


def ended_at(trial: FrozenTrial) -> datetime:
    """Returns when a trial ended; of one that is not complete, without the time that it waited."""
    start, end = trial.datetime_start, trial.datetime_complete or datetime.max
    if start is None or trial.state == TrialState.COMPLETE:
        return end
    return min(end, start + timedelta(hours=_worked(trial)))
