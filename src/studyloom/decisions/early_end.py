"""The early end of a search: before each claim, decides whether further trials are worth it.

The decision is a pure function of the stored trials and of the bounds stored with the study, so no
worker is the master. It is stored: trials that still run, and run to their end, may change the
estimate of what further trials gain, but not the decision.

The values so far predict the gain of further trials. Let a search have drawn n trials, and let
their values have an exponential distribution. The best value grows by σ·(1/(n+1) + … + 1/N) on the
way to N trials, and σ is the mean distance of the best j values from the next one (A. Rényi, "On
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

ON_GPU = ("cuda", "mps")  # the devices of a worker that are GPUs, as torch names them
BEST_SHARE = 0.2  # of the complete trials: the largest that saves 30% on HPOLib with 40 trials
FEWEST_BEST = 3  # trials, since two may be alike by chance
FEWEST_TRIALS = 10  # before any estimate; Optuna's TPE has drawn these at random


@dataclass(frozen=True)
class Hours:
    """Hours of processor cores and of GPUs that trials took.

    Attributes:
        cores: An hour of a worker counts once for each of its threads.
        gpus: The hours of workers that trained on a GPU.
    """

    cores: float = 0.0
    gpus: float = 0.0

    def cost(self, per_hour: float | None) -> float | None:
        """Returns the cost of the GPUs, or that of the cores if no GPU was used.

        Args:
            per_hour: The price of an hour of a GPU or core; None if it is not known, and then no
                cost is.
        """
        if per_hour is None:
            return None
        if self.gpus > 0:
            return per_hour * self.gpus
        return per_hour * self.cores


def sum_hours(trials: Iterable[FrozenTrial]) -> Hours:
    """Adds up the hours that workers spent on trials, those of workers that died included.

    An hour of a worker counts as one core-hour for each thread that it computes with; as a single
    one if the number of threads was not stored. It counts as a GPU-hour too if the worker trained
    on a GPU. The hours since a trial was last started count only once it is paused or ends.
    """
    cores = 0.0
    gpus = 0.0
    for trial in trials:
        hours = _worked_hours(trial)
        provenance = TrialRecord(trial).provenance
        environment = provenance.get("environment") or {}
        threads = environment.get("threads") or 1
        cores += hours * threads
        if provenance.get("device") in ON_GPU:
            gpus += hours
    return Hours(cores, gpus)


def _worked_hours(trial: FrozenTrial) -> float:
    """Returns the hours that workers spent on a trial."""
    seconds = sum(TrialRecord(trial).times.values())
    return float(seconds) / 3600


@dataclass(frozen=True)
class Bounds:
    """The bounds that end a search before its budget is spent.

    Args:
        min_improvement: The search ends when further trials are expected to gain less, in units of
            the metric; None for no such bound.
        epochs: The most epochs that all trials together may report; None for no such bound.
        trials: The budget.
        cost: The most that the hours of all trials may cost; None for no such bound.
        per_hour: The price of an hour, see `Hours.cost`; None if it is not known.
        target: The search ends when a complete trial has this value, or a better one; None for no
            such bound.
        ideal: The best value that the metric can have, times its sign; not stored, see `ideal_of`.
        sign: 1 if the metric is maximized, −1 if it is minimized; not stored.
    """

    min_improvement: float | None = None
    epochs: int | None = None
    trials: int = 0
    cost: float | None = None
    per_hour: float | None = None
    target: float | None = None
    ideal: float | None = None
    sign: int = 1


class Outcome(NamedTuple):
    """The outcome of a trial so far, as the decision sees it.

    Attributes:
        slot: The slot of the trial.
        has_ended: Whether it has ended, or waits to be promoted.
        value: A finite number, the more the better; None if it does not count.
        epochs: How many epochs it has reported.
        hours: What its workers spent on it.
        is_complete: Whether its value is that of a complete trial, and not of its last epoch.
        number: The number of the trial, which a message names.
    """

    slot: int
    has_ended: bool
    value: float | None
    epochs: int
    hours: Hours = Hours()
    is_complete: bool = True
    number: int = 0


@dataclass(frozen=True)
class Ending:
    """Why a search has ended.

    Args:
        begun: The number of trials that had begun.
        bounds: The bounds, one of which has ended the search.
        epochs: How many epochs these trials had reported.
        gain: What the further trials were expected to gain, if that was too little; else None.
        spent: What the trials had cost, if that was too much; else None.
        reached: The first trial that had reached the target, if that has ended it; else None.
    """

    begun: int
    bounds: Bounds
    epochs: int
    gain: float | None = None
    spent: float | None = None
    reached: Outcome | None = None

    @property
    def reason(self) -> str:
        """The reason, in one line."""
        trials = self.bounds.trials
        after = f"ended after {self.begun} of {trials} trials"
        if self.reached is not None:
            assert self.reached.value is not None
            value = format_value(self.bounds.sign * self.reached.value)
            target = f"study.target={self.bounds.target:g}"
            return f"{after}: trial {self.reached.number} has reached {target} with {value}"
        if self.spent is not None:
            return f"{after}: {self.spent:.2f} of cost.limit={self.bounds.cost:g} are spent"
        if self.gain is None:
            return f"{after}: {self.epochs} epochs of study.epochs={self.bounds.epochs} are spent"
        remaining = trials - self.begun
        further = f"the {remaining} further trials are"
        if remaining == 1:
            further = "a further trial is"
        least = f"study.min_improvement={self.bounds.min_improvement:g}"
        return f"{after}: {further} expected to gain less than {least}"

    def decision(self) -> dict[str, Any]:
        """Returns the plain values of the decision, which are stored for `find_ending`."""
        return {
            "min_improvement": self.bounds.min_improvement,
            "trials": self.bounds.trials,
            "gain": self.gain,
        }


def find_ending(
    bounds: Bounds, outcomes: Iterable[Outcome], decision: Any = None, *, estimates: bool = True
) -> Ending | None:
    """Returns why a search has ended before its budget is spent; None if it has not.

    The bounds are tried in this order: target, epochs, cost, gain of further trials.

    Args:
        bounds: The bounds of the search.
        outcomes: The outcomes of the trials so far, in the order in which they ended.
        decision: The decision that a worker has stored, see `Ending.decision`; None without one.
        estimates: Whether to estimate what further trials gain, if no decision is stored. Only
            workers do so, which then store their decision.
    """
    begun = [outcome for outcome in outcomes if outcome.slot < bounds.trials]
    if len(begun) >= bounds.trials:  # nothing of the budget is left to end
        return None

    epochs = sum(outcome.epochs for outcome in begun)
    ending = Ending(len(begun), bounds, epochs)
    reached = _find_trial_at_target(bounds, begun)
    if reached is not None:
        return replace(ending, reached=reached)
    if bounds.epochs is not None and epochs >= bounds.epochs:
        return ending

    cores = sum(outcome.hours.cores for outcome in begun)
    gpus = sum(outcome.hours.gpus for outcome in begun)
    spent = Hours(cores, gpus).cost(bounds.per_hour)
    if bounds.cost is not None and spent is not None and spent >= bounds.cost:
        return replace(ending, spent=spent)

    if bounds.min_improvement is None:
        return None
    decided_gain = _read_decided_gain(decision, bounds)
    if decided_gain is not None:
        return replace(ending, gain=decided_gain)
    if not estimates:
        return None
    expected_gain = estimate_gain(bounds, begun)
    if expected_gain is None or expected_gain >= bounds.min_improvement:
        return None
    return replace(ending, gain=expected_gain)


def _find_trial_at_target(bounds: Bounds, outcomes: Iterable[Outcome]) -> Outcome | None:
    """Returns the first complete trial that has reached the target; None if none has."""
    if bounds.target is None:
        return None
    least_value = bounds.sign * bounds.target
    for outcome in outcomes:
        if outcome.is_complete and outcome.value is not None and outcome.value >= least_value:
            return outcome
    return None


def _read_decided_gain(decision: object, bounds: Bounds) -> float | None:
    """Returns the expected gain for which a stored decision ended the search.

    None if there is no decision, or if it is not valid for these bounds: it was made for another
    `min_improvement`, or for a smaller budget, in which fewer further trials could gain something.

    Args:
        decision: The stored value; another program may have stored anything.
        bounds: The bounds of the search now.
    """
    if not isinstance(decision, Mapping):
        return None
    gain = decision.get("gain")
    decided_budget = decision.get("trials")
    if not isinstance(gain, int | float) or not isinstance(decided_budget, int):
        return None
    has_same_threshold = decision.get("min_improvement") == bounds.min_improvement
    if not has_same_threshold or decided_budget < bounds.trials:
        return None
    return float(gain)


def estimate_gain(bounds: Bounds, outcomes: Iterable[Outcome]) -> float | None:
    """Returns by how much the best value is expected to grow in the rest of a budget.

    After n of N trials it is σ·(1/(n+1) + … + 1/N), and so nearly σ·log(N/n). σ is the mean of the
    best j values, less the next best one. The module names the sources.

    Args:
        bounds: The bounds of the search: its budget, and the best value that its metric can have.
        outcomes: The outcomes of the trials so far. A trial that has ended without a value counts
            as one that is not among the best.

    Returns:
        The expected gain, in units of the values; None if too few trials have a value.
    """
    ended = []
    for outcome in outcomes:
        if outcome.has_ended and outcome.slot < bounds.trials:
            ended.append(outcome)
    values = []
    complete_values = []
    for outcome in ended:
        if outcome.value is not None:
            values.append(outcome.value)
            if outcome.is_complete:
                complete_values.append(outcome.value)
    best_count = max(FEWEST_BEST, math.ceil(BEST_SHARE * len(complete_values)))  # j
    if len(ended) < FEWEST_TRIALS or not complete_values or len(values) <= best_count:
        return None

    values.sort()  # the best values are the last
    mean_of_best = sum(values[-best_count:]) / best_count
    next_value = values[-best_count - 1]
    scale = max(0.0, mean_of_best - next_value)  # σ; rounding may bring it below 0
    final_count = max(bounds.trials, len(ended))  # N
    gain = scale * math.log(final_count / len(ended))

    if bounds.ideal is None:
        return gain
    best_value = max(complete_values)
    if best_value > bounds.ideal:  # it is another metric with the name of one that has an ideal
        return gain
    return min(gain, bounds.ideal - best_value)


@dataclass(frozen=True)
class Forecast:
    """The rest of a search: whether it continues, and what that is expected to gain.

    Args:
        ending: Why it has ended; None if it continues.
        running: How many trials have not ended though the search has; 0 if it continues.
        gain: What its further trials are expected to gain together, in units of the metric; None
            after too few trials.
        bounds: The bounds that end it.
    """

    ending: Ending | None = None
    running: int = 0
    gain: float | None = None
    bounds: Bounds = field(default_factory=Bounds)

    def describe_gain(self, metric: str) -> str:
        """Says what further trials are expected to gain; "" if nothing, or if it is not known.

        For example "expected gain of further trials: 0.0021 accuracy; the search ends below 0.001".

        Args:
            metric: The name of the metric.
        """
        if not self.gain or self.ending is not None:
            return ""
        threshold = ""
        if self.bounds.min_improvement is not None:
            threshold = f"; the search ends below {self.bounds.min_improvement:g}"
        return f"expected gain of further trials: {format_value(self.gain)} {metric}{threshold}"


def read_bounds(stored: StoredStudy) -> Bounds:
    """Returns the bounds that the last command stored; none if no command did."""
    bounds = _read_stored_bounds(stored)
    return replace(bounds, ideal=ideal_of(stored.objectives[0]), sign=stored.sign)


def _read_stored_bounds(stored: StoredStudy) -> Bounds:
    """Returns the bounds as they are stored: without what follows from the metric."""
    (stored_bounds,) = stored.attributes(BOUNDS)
    return parse(stored_bounds, Bounds) or Bounds()


def set_bounds(stored: StoredStudy, bounds: Bounds) -> None:
    """Stores the bounds that end the search from now on.

    If they differ from the bounds so far, a decision to end the search is taken back.
    """
    if bounds != _read_stored_bounds(stored):
        stored.optuna.set_user_attr(EARLY_END, None)
        stored.optuna.set_user_attr(BOUNDS, asdict(bounds))


def decide_early_end(stored: StoredStudy, trials: int) -> Ending | None:
    """Returns why a search has ended before its budget is spent; None if it continues.

    The first worker that expects too little of further trials stores this decision. If that worker
    is killed before, the next one decides the same.

    Args:
        stored: The study in its database.
        trials: The budget.
    """
    bounds = replace(read_bounds(stored), trials=trials)
    possible_ends = (bounds.target, bounds.epochs, bounds.cost, bounds.min_improvement)
    if all(bound is None for bound in possible_ends):
        return None  # before the trials are read, which takes longer
    (decision,) = stored.attributes(EARLY_END)
    ending = find_ending(bounds, read_outcomes(stored), decision)
    # Epochs and costs only grow, and a target stays reached: such an end needs no stored decision.
    if ending is None or ending.gain is None:
        return ending
    if ending.decision() != decision:
        stored.optuna.set_user_attr(EARLY_END, ending.decision())
    return ending


def read_forecast(stored: StoredStudy) -> Forecast:
    """Returns the rest of a search, for a view of the study.

    No decision is made or stored, since a view does not change the study.
    """
    if stored.is_stage:  # a later stage, such as the re-evaluation, runs all its trials
        return Forecast()
    bounds = read_bounds(stored)
    if not bounds.trials:  # another program has made the study
        bounds = replace(bounds, trials=sum(stored.ledger.counts().values()))
    outcomes = read_outcomes(stored)
    (decision,) = stored.attributes(EARLY_END)
    ending = find_ending(bounds, outcomes, decision, estimates=False)
    running = 0
    if ending is not None:
        running = stored.ledger.count_open(bounds.trials, only_with_trial=True)
    return Forecast(ending, running, estimate_gain(bounds, outcomes), bounds)


def read_outcomes(stored: StoredStudy) -> list[Outcome]:
    """Returns the outcomes of the trials of a search, in the order in which they ended.

    A complete trial has a value if it breaks no constraint and satisfies the rule by which the best
    trial is chosen. A pruned or paused trial has the last value that it reported, if that rule has
    no conditions, which only complete trials can satisfy. A paused trial counts as ended. With
    several objectives no trial has a value.
    """
    eligible_numbers: set[int] = set()  # of complete trials that may be the best
    uses_last_values = False
    if len(stored.objectives) == 1:
        eligible_numbers = {trial.number for trial in stored.ranked()}
        uses_last_values = not stored.rule().conditions
    outcomes = []
    for trial in sorted(stored.trials(all_attributes=True), key=find_end_time):
        record = TrialRecord(trial)
        value = None
        if trial.number in eligible_numbers:
            value = trial.values[0]
        elif uses_last_values and record.outcome in ("pruned", "paused"):
            value = _last_value(trial)
        if value is not None and math.isfinite(value):
            value *= stored.sign  # the more the better
        else:
            value = None
        slot = record.slot
        if slot is None:  # another program has made the trial
            slot = trial.number
        outcome = Outcome(
            slot=slot,
            has_ended=trial.state.is_finished() or record.outcome == "paused",
            value=value,
            epochs=len(trial.intermediate_values),
            hours=sum_hours([trial]),
            is_complete=record.outcome == "complete",
            number=trial.number,
        )
        outcomes.append(outcome)
    return outcomes


def _last_value(trial: FrozenTrial) -> float | None:
    """Returns the value that a trial has reported last; None if it has reported none."""
    reports = trial.intermediate_values
    if not reports:
        return None
    return reports[max(reports)]


def find_end_time(trial: FrozenTrial) -> datetime:
    """Returns the end time of a trial; the latest possible time if it has not ended.

    A pruned trial may have waited at a rung for long before it was ended. That time is not counted:
    its end is its start plus the time that workers spent on it.
    """
    start = trial.datetime_start
    end = trial.datetime_complete or datetime.max
    if start is None or trial.state == TrialState.COMPLETE:
        return end
    end_of_work = start + timedelta(hours=_worked_hours(trial))
    return min(end, end_of_work)
