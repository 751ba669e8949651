"""Findings about the trials of a study: stale and repeated trials, luck, and savings by ASHA.

A finding is a title with a line of text.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from statistics import quantiles
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from studyloom.decisions.asha import AshaOrder, AshaPruner
from studyloom.extras.adopt.reading import AdoptedStudy
from studyloom.metrics import ObjectiveValue
from studyloom.storage.standings import DONE, OPEN, OWN, UNCLAIMED, RungReport, Standing
from studyloom.text import format_ranges, format_value, one_line, shorten_end
from studyloom.views.words import format_parameters

LONGEST = 300  # characters of a finding
LONG = 3.0  # times the 95th percentile of durations, after which a running trial is stale
STALE_SECONDS = 86400.0  # after which a running trial is stale while no trial has ended
MOST_NEIGHBORS = 300  # trials of the best half that are compared with their nearest neighbors
MOST_RIVALS = 200  # of the best trials, among which luck decides
DRAWS = 2000  # of noise, from which the probability is counted
ENOUGH = 5  # complete trials, or repeats, before luck is estimated from them
MOST_GROUPS = 5  # of repeated trials that are listed
MOST_REASONS = 5  # of failures that are listed
REPLAYS = 10  # of ASHA in a random order
MOST_REPLAYED = 100  # trials in a replay of ASHA
MOST_SECONDS = 86400.0 * 3650  # ten years: a longer duration is an error of a clock


class Luck(NamedTuple):
    """How far luck decides which trial is the best.

    Args:
        noise: the standard deviation of a value.
        source: the trials that show the noise, in words.
        lead: how far the best value is ahead of the next one.
        other: the probability that another trial is truly the best.
    """

    noise: float
    source: str
    lead: float
    other: float


class Promotion(NamedTuple):
    """The epochs that ASHA with promotion would have spent.

    Args:
        epochs: in the order of the trials.
        low: the lower end of a 95% interval over random orders, which may not hold `epochs`.
        high: its upper end.
        spent: the epochs that the trials have spent.
    """

    epochs: int
    low: int
    high: int
    spent: int


def describe_findings(study: AdoptedStudy, requested: int | None) -> dict[str, str]:
    """Puts into words what the trials of a study show, by title.

    Args:
        requested: how many trials were requested; None if that is unknown.
    """
    groups = group_repeats(study.trials)
    findings = {
        "trials": _describe_trials(study),
        "best": _describe_best(study),
        "stale": _describe_stale(study),
        "surplus": _describe_surplus(len(study.trials), requested),
        "repeated": _describe_repeated(groups),
        "failed": _describe_failed(study),
        "luck": _describe_luck(study, groups),
        "pruner=asha": _describe_asha(study),
    }
    return {title: shorten_end(one_line(line), LONGEST) for title, line in findings.items()}


def _describe_trials(study: AdoptedStudy) -> str:
    """Counts the trials by state."""
    count = len(study.trials)
    states = Counter(trial.state.name.lower() for trial in study.trials)
    shares = []
    for state, trials in states.items():
        shares.append(f"{trials} {state} ({100 * trials / count:.0f}%)")
    line = f"{count}: {', '.join(shares)}"
    infeasible = len(study.complete) - len(study.ranked)
    if infeasible:
        line += f"; {infeasible} complete ones break a constraint"
    return line


def _describe_best(study: AdoptedStudy) -> str:
    """Names the best trial with its value and its configuration."""
    if not study.ranked:
        return "no trial is complete, with a finite value and all constraints satisfied"
    best = study.ranked[0]
    value = f"{study.metric} {format_value(best.values[0])}"
    return f"{value}, trial {best.number}: {format_parameters(best.params)}"


def _describe_stale(study: AdoptedStudy) -> str:
    """Lists the stale trials."""
    numbers = format_ranges([trial.number for trial in find_stale_trials(study.trials)])
    if not numbers:
        return "no trial is known to run for unusually long"
    return f"{numbers}: running for over {LONG:g} times as long as others took"


def _describe_surplus(count: int, requested: int | None) -> str:
    """Counts the trials beyond the requested ones."""
    if requested is None:
        return f"unknown; --trials N says how many of the {count} were requested"
    return f"{max(0, count - requested)} trials beyond {requested}"


def _describe_repeated(groups: Sequence[Sequence[FrozenTrial]]) -> str:
    """Counts the trials that repeat a configuration, and lists the first groups."""
    repeated = sum(len(group) - 1 for group in groups)
    line = f"{repeated} trials have the configuration of an earlier one"
    if groups:
        numbers = []
        for group in groups[:MOST_GROUPS]:
            numbers.append(format_ranges([trial.number for trial in group]))
        line += f": {'; '.join(numbers)}"
    return line


def _describe_failed(study: AdoptedStudy) -> str:
    """Counts the failed trials by reason."""
    reasons = Counter[str]()
    for trial in study.trials:
        if trial.state == TrialState.FAIL:
            reasons[str(trial.system_attrs.get("fail_reason", "no reason is stored"))] += 1
    if not reasons:
        return "no trial has failed"
    return "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(MOST_REASONS))


def _describe_luck(study: AdoptedStudy, groups: Sequence[Sequence[FrozenTrial]]) -> str:
    """Formats the probability that another trial is truly the best."""
    if len(study.ranked) < ENOUGH:
        return "unknown with so few complete trials"
    luck = estimate_luck(study, groups)
    if luck is None:
        return "unknown, since the values differ by too much for a float"
    return (
        f"the best is {format_value(luck.lead)} ahead of the next; the noise that "
        f"{luck.source} show is {format_value(luck.noise)}: another trial is truly the best "
        f"with a probability of {100 * luck.other:.0f}%"
    )


def _describe_asha(study: AdoptedStudy) -> str:
    """Formats the epochs that ASHA would have spent."""
    asha = replay_asha(study)
    if asha is None:
        return "unknown, since no learning curves are stored"
    return (
        f"it would have spent {asha.epochs:,} epochs in the order of these trials, and "
        f"{asha.low:,} to {asha.high:,} in random orders (95% interval); these trials spent "
        f"{asha.spent:,}"
    )


def group_repeats(trials: Sequence[FrozenTrial]) -> list[list[FrozenTrial]]:
    """Groups trials that have the same configuration, where several have it."""
    groups = defaultdict[str, list[FrozenTrial]](list)
    for trial in trials:
        configuration = repr(sorted(trial.params.items()))
        groups[configuration].append(trial)
    return [group for group in groups.values() if len(group) > 1 and group[0].params]


def find_stale_trials(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Returns running trials that began long ago, compared with how long others took.

    Some versions of Optuna store local times and some store UTC; the shorter age counts.
    """
    limit = _longest_usual_duration(trials)
    now = min(datetime.now(), datetime.now(UTC).replace(tzinfo=None))
    stale = []
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            age = _seconds_between(trial.datetime_start, now)
            if age is not None and age > limit:
                stale.append(trial)
    return stale


def _longest_usual_duration(trials: Sequence[FrozenTrial]) -> float:
    """Returns the seconds after which a running trial is stale."""
    durations = []
    for trial in trials:
        duration = _seconds_between(trial.datetime_start, trial.datetime_complete)
        if duration is not None and 0 <= duration < MOST_SECONDS:
            durations.append(duration)
    if len(durations) < 2:
        return STALE_SECONDS
    percentile_95 = quantiles(durations, n=20)[-1]
    return LONG * percentile_95


def _seconds_between(start: datetime | None, end: datetime | None) -> float | None:
    if start is None or end is None:
        return None
    return (end - start).total_seconds()


def estimate_luck(study: AdoptedStudy, groups: Sequence[Sequence[FrozenTrial]]) -> Luck | None:
    """Estimates how likely the best trial is the best by luck; None with too few trials.

    The noise of a value is the pooled standard deviation of trials that repeat a configuration, if
    there are five beyond the first of each. Otherwise it is 1.48× the median difference between a
    trial of the best half and its nearest neighbor there by hyperparameters, / √2, which may be too
    large. True values are drawn around the stored ones with this noise.

    Args:
        groups: the trials that repeat a configuration, as `group_repeats` returns them.
    """
    ranked = study.ranked
    if len(ranked) < ENOUGH:
        return None
    values = study.sign * np.array([trial.values[0] for trial in ranked[:MOST_RIVALS]])
    with np.errstate(all="ignore"):  # of values such as 1e308
        noise = _noise_of_repeats(ranked, groups)
        source = "repeated configurations"
        if noise is None:
            best_half = ranked[: math.ceil(len(ranked) / 2)]
            noise = _noise_of_neighbors(best_half[:MOST_NEIGHBORS])
            source = "neighboring configurations"
        true_values = values + np.random.default_rng(0).normal(0.0, noise, (DRAWS, len(values)))
        other_is_best = true_values.argmax(1) > 0  # at 0 is the trial with the best stored value
        lead = float(values[0] - values[1])
    if not math.isfinite(noise + lead):
        return None
    return Luck(noise, source, lead, float(np.mean(other_is_best)))


def _noise_of_repeats(
    ranked: Sequence[FrozenTrial], groups: Sequence[Sequence[FrozenTrial]]
) -> float | None:
    """Returns the pooled standard deviation of repeated trials; None if they are too few.

    Args:
        ranked: the trials that count.
    """
    value_of = {trial.number: trial.values[0] for trial in ranked}
    squares = 0.0  # the sum of squared distances to the mean of each group
    degrees_of_freedom = 0  # the repeats beyond the first of each group
    for group in groups:
        values = [value_of[trial.number] for trial in group if trial.number in value_of]
        if values:
            squares += float(np.var(values)) * len(values)
            degrees_of_freedom += len(values) - 1
    if degrees_of_freedom < ENOUGH:
        return None
    return math.sqrt(squares / degrees_of_freedom)


def _noise_of_neighbors(trials: Sequence[FrozenTrial]) -> float:
    """Estimates noise from the differences between trials and their nearest neighbors.

    The median difference × 1.4826 is the standard deviation of a normal distribution; a difference
    of two values has √2 times the noise of one.
    """
    names: dict[str, None] = {}  # in the order in which they first occur
    for trial in trials:
        names.update(dict.fromkeys(trial.params))
    columns = [np.zeros(len(trials))]  # without hyperparameters, all trials are equally near
    if names:
        columns = [_rank_settings([trial.params.get(name) for trial in trials]) for name in names]
    ranks = np.stack(columns, 1)
    distances = np.abs(ranks[:, None] - ranks[None]).mean(2)  # (trials, trials)
    np.fill_diagonal(distances, np.inf)  # no trial is its own neighbor
    nearest = distances.argmin(1)
    values = np.array([trial.values[0] for trial in trials])
    differences = np.abs(values - values[nearest])
    return float(1.4826 * np.median(differences) / math.sqrt(2))


def _rank_settings(settings: Sequence[object]) -> NDArray[np.float64]:
    """Ranks the settings of a hyperparameter from 0 to 1: numbers, then other choices by name."""
    by_name = {repr(setting): setting for setting in settings}  # a choice may be a list
    names = sorted(by_name, key=lambda name: _sort_key(by_name[name]))
    last = max(len(names) - 1, 1)
    ranks = {}
    for position, name in enumerate(names):
        ranks[name] = position / last
    return np.array([ranks[repr(setting)] for setting in settings])


def _sort_key(setting: object) -> tuple[bool, float, str]:
    """Returns a key that sorts numbers by size, and other settings after them by name."""
    name = repr(setting)
    if isinstance(setting, int | float) and not math.isnan(setting):
        return False, float(setting), name
    return True, 0.0, name


# The epochs that ASHA would have spent


def replay_asha(study: AdoptedStudy) -> Promotion | None:
    """Replays the learning curves in the order of `pruner=asha`; None if they are too short.

    One worker begins the trials in their order, and for the interval in random orders. Of more than
    100 trials 100 are replayed, and the others are assumed to cost as much.
    """
    spent = 0
    for trial in study.trials:
        spent += len(_learning_curve(trial))
    curves = _extended_curves(study.trials)
    longest = max(map(len, curves), default=0)
    if longest < 3:  # epochs, without which there is no rung to stop at
        return None
    objective = ObjectiveValue(study.metric, "maximize" if study.sign > 0 else "minimize")
    asha = AshaPruner(epochs=longest).make_order([objective])
    generator = np.random.default_rng(0)
    orders = [np.arange(len(curves))]
    for _ in range(REPLAYS):
        orders.append(generator.permutation(len(curves)))
    replayed = min(MOST_REPLAYED, len(curves))
    totals = []
    for order in orders:
        totals.append(count_epochs(asha, [curves[position] for position in order[:replayed]]))
    epochs_of_all = np.array(totals) * len(curves) / replayed
    low, high = np.percentile(epochs_of_all, (2.5, 97.5)).round().astype(int).tolist()
    return Promotion(epochs=round(epochs_of_all[0]), low=low, high=high, spent=spent)


def _learning_curve(trial: FrozenTrial) -> list[float]:
    """Returns the values that a trial reported; none if it runs or has failed."""
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return []
    return [value for _, value in sorted(trial.intermediate_values.items())]


def _extended_curves(trials: Sequence[FrozenTrial]) -> list[list[float]]:
    """Returns the learning curves; a pruned trial is assumed to stay at its last value."""
    curves = []
    pruned_curves = []
    for trial in trials:
        curve = _learning_curve(trial)
        if curve:
            curves.append(curve)
            if trial.state == TrialState.PRUNED:
                pruned_curves.append(curve)
    longest = max(map(len, curves), default=0)
    for curve in pruned_curves:
        missing = longest - len(curve)
        curve.extend([curve[-1]] * missing)
    return curves


def count_epochs(order: AshaOrder, curves: Sequence[Sequence[float]]) -> int:
    """Counts the epochs that a worker spends on trials with these learning curves.

    The worker takes the trial that the order chooses, and trains it from rung to rung as long as
    the order would choose it next, or to its end. As in a search, each trial has a slot.
    """
    standings = [Standing(slot, UNCLAIMED) for slot in range(len(curves))]
    spent = 0
    while (choice := order.choose(standings)) is not None:
        slot = choice.slot
        curve = curves[slot]
        is_trained_on = not choice.ends_pruned
        while is_trained_on:
            last = standings[slot].last or 0
            stop = _next_stop(order, last, len(curve))
            spent += stop - last
            reports = {**standings[slot].reports, stop: RungReport(stop, curve[stop - 1])}
            standings[slot] = Standing(slot, OWN, stop, reports, paused=stop)
            is_trained_on = stop < len(curve) and order.is_next(standings, slot)
        state = OPEN
        if choice.ends_pruned or standings[slot].last == len(curve):
            state = DONE
        standings[slot] = replace(standings[slot], state=state)
    return spent


def _next_stop(order: AshaOrder, epoch: int, end: int) -> int:
    """Returns the next rung after an epoch; the end of the trial if there is none."""
    for rung in order.rungs(end):
        if rung > epoch:
            return rung
    return end
