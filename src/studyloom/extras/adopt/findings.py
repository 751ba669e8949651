"""Findings about the trials of a study: stale and repeated trials, luck, and savings by ASHA.

A finding is a title with a line of text.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from studyloom.text import format_ranges, format_value, one_line, plural, shorten_end
from studyloom.views.words import format_parameters

STATES = {"FAIL": "failed"}  # states of Optuna that are no adjective
MAX_LENGTH = 300  # characters of a finding
STALE_FACTOR = 3.0  # times the 95th percentile of durations, after which a running trial is stale
STALE_SECONDS = 86400.0  # after which a running trial is stale while no trial has ended
MAX_NEIGHBORS = 300  # trials of the best half that are compared with their nearest neighbors
MAX_RIVALS = 200  # of the best trials, among which luck decides
DRAWS = 2000  # of noise, from which the probability is counted
MIN_TRIALS = 5  # complete trials, or repeats, before luck is estimated from them
MAX_GROUPS = 5  # of repeated trials that are listed
MAX_REASONS = 5  # of failures that are listed
REPLAYS = 10  # of ASHA in a random order
MAX_REPLAYED = 100  # trials in a replay of ASHA
MIN_EPOCHS = 3  # of the longest learning curve: with fewer there is no rung to stop at
MAX_DURATION = 86400.0 * 3650  # ten years in seconds: a longer one is an error of a clock
# The median distance of normally distributed values from their mean × 1.4826 is their standard
# deviation.
MEDIAN_TO_DEVIATION = 1.4826


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


@dataclass(frozen=True)
class Evidence:
    """Holds what is computed from the trials of a study.

    Args:
        groups: the trials that repeat a configuration, as `group_repeats` returns them.
        luck: how far luck decides; None with too few trials, or if no float can hold it.
        asha: the epochs of ASHA; None without learning curves.
    """

    groups: Sequence[Sequence[FrozenTrial]]
    luck: Luck | None
    asha: Promotion | None


def examine(study: AdoptedStudy) -> Evidence:
    """Computes what the trials of a study show, in seconds for thousands of trials."""
    groups = group_repeats(study.trials)
    return Evidence(groups, estimate_luck(study, groups), replay_asha(study))


def make_headline(study: AdoptedStudy, evidence: Evidence) -> str:
    """Returns the sentence that says the most important findings: trials, luck, savings."""
    verb = "are"
    if len(study.trials) == 1:
        verb = "is"
    sentences = [
        f"{len(study.complete):,} of {plural(len(study.trials), 'trial')} {verb} complete."
    ]
    luck = evidence.luck
    if luck is not None:
        best = study.ranked[0].number
        probability = f"{100 * luck.other:.0f}%"
        sentences.append(
            f"The best is trial {best}; with a probability of {probability} another one is truly "
            "the best."
        )
    asha = evidence.asha
    if asha is not None and asha.epochs < asha.spent:
        saved = asha.spent - asha.epochs
        sentences.append(f"ASHA would have saved {saved:,} of {asha.spent:,} epochs.")
    return " ".join(sentences)


def describe_findings(
    study: AdoptedStudy, evidence: Evidence, requested: int | None
) -> dict[str, str]:
    """Puts into words what the trials of a study show, by title.

    Args:
        requested: how many trials were requested; None if that is unknown.
    """
    findings = {
        "trials": _describe_trials(study),
        "best": _describe_best(study),
        "stale": _describe_stale(study),
        "surplus": _describe_surplus(len(study.trials), requested),
        "repeated": _describe_repeated(evidence.groups),
        "failed": _describe_failed(study),
        "luck": _describe_luck(study, evidence.luck),
        "pruner=asha": _describe_asha(evidence.asha),
    }
    return {title: shorten_end(one_line(line), MAX_LENGTH) for title, line in findings.items()}


def _describe_trials(study: AdoptedStudy) -> str:
    """Counts the trials by state."""
    count = len(study.trials)
    states = Counter(
        STATES.get(trial.state.name, trial.state.name.lower()) for trial in study.trials
    )
    shares = []
    for state, count_of_state in states.items():
        shares.append(f"{count_of_state} {state} ({100 * count_of_state / count:.0f}%)")
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
    trial = f"trial {best.number}"
    if study.run_names:
        trial += f" (run {study.run_names[best.number]})"
    return f"{value}, {trial}: {format_parameters(best.params)}"


def _describe_stale(study: AdoptedStudy) -> str:
    """Lists the stale trials."""
    numbers = format_ranges([trial.number for trial in find_stale_trials(study.trials)])
    if not numbers:
        return "no trial is known to run for unusually long"
    return f"{numbers}: running for over {STALE_FACTOR:g} times as long as others took"


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
        for group in groups[:MAX_GROUPS]:
            numbers.append(format_ranges([trial.number for trial in group]))
        line += f": {'; '.join(numbers)}"
    return line


def _describe_failed(study: AdoptedStudy) -> str:
    """Counts the failed trials by reason."""
    reasons = Counter[str]()
    for trial in study.trials:
        if trial.state == TrialState.FAIL:
            reason = str(trial.system_attrs.get("fail_reason", "no reason is stored"))
            reasons[reason] += 1
    if not reasons:
        return "no trial has failed"
    return "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(MAX_REASONS))


def _describe_luck(study: AdoptedStudy, luck: Luck | None) -> str:
    """Formats the probability that another trial is truly the best."""
    if len(study.ranked) < MIN_TRIALS:
        return "unknown with so few complete trials"
    if luck is None:
        return "unknown, since the values differ by too much for a float"
    return (
        f"the best is {format_value(luck.lead)} ahead of the next; the noise that "
        f"{luck.source} show is {format_value(luck.noise)}: another trial is truly the best "
        f"with a probability of {100 * luck.other:.0f}%"
    )


def _describe_asha(asha: Promotion | None) -> str:
    """Formats the epochs that ASHA would have spent."""
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
    limit = _find_longest_usual_duration(trials)
    now = min(datetime.now(), datetime.now(UTC).replace(tzinfo=None))
    stale = []
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            age = _seconds_between(trial.datetime_start, now)
            if age is not None and age > limit:
                stale.append(trial)
    return stale


def _find_longest_usual_duration(trials: Sequence[FrozenTrial]) -> float:
    """Returns the seconds after which a running trial is stale: a multiple of what others took.

    Of the durations of ended trials, the longest 5% are not taken as usual.
    """
    durations = []
    for trial in trials:
        duration = _seconds_between(trial.datetime_start, trial.datetime_complete)
        if duration is not None and 0 <= duration < MAX_DURATION:
            durations.append(duration)
    if len(durations) < 2:
        return STALE_SECONDS
    twentieths = quantiles(durations, n=20)  # the percentiles 5, 10, …, 95
    percentile_95 = twentieths[-1]
    return STALE_FACTOR * percentile_95


def _seconds_between(start: datetime | None, end: datetime | None) -> float | None:
    if start is None or end is None:
        return None
    return (end - start).total_seconds()


def estimate_luck(study: AdoptedStudy, groups: Sequence[Sequence[FrozenTrial]]) -> Luck | None:
    """Estimates how likely the best trial is the best by luck; None with too few trials.

    The noise of a value is estimated from trials that repeat a configuration, or else from trials
    with similar ones. Then possible true values are drawn around the stored ones with this noise,
    many times, and the draws are counted in which another trial is the best.

    Args:
        groups: the trials that repeat a configuration, as `group_repeats` returns them.
    """
    ranked = study.ranked
    if len(ranked) < MIN_TRIALS:
        return None
    values = study.sign * np.array([trial.values[0] for trial in ranked[:MAX_RIVALS]])
    with np.errstate(all="ignore"):  # values such as 1e308 overflow
        noise = _estimate_noise_of_repeats(ranked, groups)
        source = "repeated configurations"
        if noise is None:  # too few trials repeat a configuration
            best_half = ranked[: math.ceil(len(ranked) / 2)]
            noise = _estimate_noise_of_neighbors(best_half[:MAX_NEIGHBORS])
            source = "neighboring configurations"
        errors = np.random.default_rng(0).normal(0.0, noise, (DRAWS, len(values)))
        true_values = values + errors  # (DRAWS, trials)
        other_is_best = true_values.argmax(1) > 0  # at 0 is the trial with the best stored value
        lead = float(values[0] - values[1])
    if not math.isfinite(noise + lead):
        return None
    return Luck(noise, source, lead, other=float(np.mean(other_is_best)))


def _estimate_noise_of_repeats(
    ranked: Sequence[FrozenTrial], groups: Sequence[Sequence[FrozenTrial]]
) -> float | None:
    """Returns the pooled standard deviation of repeated trials; None if they are too few.

    Args:
        ranked: the trials whose values count.
        groups: the trials that repeat a configuration.
    """
    ranked_numbers = {trial.number for trial in ranked}
    sum_of_squares = 0.0  # of the distances to the mean of each group
    degrees_of_freedom = 0  # the repeats beyond the first of each group
    for group in groups:
        values = [trial.values[0] for trial in group if trial.number in ranked_numbers]
        if values:
            sum_of_squares += float(np.var(values)) * len(values)  # the variance is their mean
            degrees_of_freedom += len(values) - 1
    if degrees_of_freedom < MIN_TRIALS:
        return None
    return math.sqrt(sum_of_squares / degrees_of_freedom)


def _estimate_noise_of_neighbors(trials: Sequence[FrozenTrial]) -> float:
    """Estimates noise from the differences between trials and their nearest neighbors.

    Neighbors have similar hyperparameters, so that their values differ mostly by noise; the
    estimate may be too large. A difference of two values has √2 times the noise of one.
    """
    names: dict[str, None] = {}  # in the order in which they first occur
    for trial in trials:
        names.update(dict.fromkeys(trial.params))
    columns = []  # the ranks of the values of each hyperparameter, (trials,)
    for name in names:
        columns.append(_rank_values([trial.params.get(name) for trial in trials]))
    if not columns:  # without hyperparameters, all trials are equally near
        columns = [np.zeros(len(trials))]
    ranks = np.stack(columns, 1)  # (trials, hyperparameters)
    # The distance of two trials is the mean difference of their ranks, over all hyperparameters.
    differences_of_ranks = np.abs(ranks[:, None] - ranks[None])  # (trials, trials, hyperparameters)
    distances = differences_of_ranks.mean(2)  # (trials, trials)
    np.fill_diagonal(distances, np.inf)  # no trial is its own neighbor
    nearest = distances.argmin(1)  # (trials,)
    values = np.array([trial.values[0] for trial in trials])
    differences = np.abs(values - values[nearest])
    deviation_of_differences = MEDIAN_TO_DEVIATION * np.median(differences)
    return float(deviation_of_differences / math.sqrt(2))


def _rank_values(values: Sequence[object]) -> NDArray[np.float64]:
    """Ranks the values of a hyperparameter from 0 to 1: numbers, then other choices by name.

    Args:
        values: the value of each trial; None, which is a choice too, if a trial has none.
    """
    by_name = {repr(value): value for value in values}  # a choice may be a list, which has no hash
    sorted_names = sorted(by_name, key=lambda name: _sort_key(by_name[name]))
    last = max(len(sorted_names) - 1, 1)
    ranks = {}
    for position, name in enumerate(sorted_names):
        ranks[name] = position / last
    return np.array([ranks[repr(value)] for value in values])


def _sort_key(value: object) -> tuple[bool, float, str]:
    """Returns a key that sorts numbers by size, and other values after them by name."""
    name = repr(value)
    if isinstance(value, int | float) and not math.isnan(value):
        return False, float(value), name
    return True, 0.0, name


# The epochs that ASHA would have spent


def replay_asha(study: AdoptedStudy) -> Promotion | None:
    """Counts the epochs that `pruner=asha` would have spent; None if learning curves are too short.

    ASHA pauses trials at rungs (certain epochs), and continues the best of them. A single worker
    trains the trials in their order, and for the interval in random orders. Of more than 100 trials
    100 are replayed, and the others are assumed to cost as much.
    """
    spent = sum(len(_learning_curve(trial)) for trial in study.trials)
    curves = _extend_curves(study.trials)
    longest = max((len(curve) for curve in curves), default=0)
    if longest < MIN_EPOCHS:
        return None
    objective = ObjectiveValue(study.metric, study.direction)
    # Chooses which trial a worker trains next.
    asha_order = AshaPruner(epochs=longest).make_order([objective])

    generator = np.random.default_rng(0)
    orders = [np.arange(len(curves))]
    for _ in range(REPLAYS):
        orders.append(generator.permutation(len(curves)))
    replayed_count = min(MAX_REPLAYED, len(curves))
    totals = []
    for order in orders:
        replayed_curves = [curves[position] for position in order[:replayed_count]]
        totals.append(count_epochs(asha_order, replayed_curves))

    epochs_of_all = np.array(totals) * len(curves) / replayed_count  # (orders,)
    low, high = np.percentile(epochs_of_all, (2.5, 97.5)).round().astype(int).tolist()
    return Promotion(epochs=round(epochs_of_all[0]), low=low, high=high, spent=spent)


def _learning_curve(trial: FrozenTrial) -> list[float]:
    """Returns the values that a trial reported; none if it runs or has failed."""
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return []
    return [value for _, value in sorted(trial.intermediate_values.items())]


def _extend_curves(trials: Sequence[FrozenTrial]) -> list[list[float]]:
    """Returns the learning curves; a pruned trial is assumed to stay at its last value."""
    curves = []
    pruned_curves = []  # those lists of `curves` that are extended below
    for trial in trials:
        curve = _learning_curve(trial)
        if curve:
            curves.append(curve)
            if trial.state == TrialState.PRUNED:
                pruned_curves.append(curve)
    longest = max((len(curve) for curve in curves), default=0)
    for curve in pruned_curves:
        missing_epochs = longest - len(curve)
        last_value = curve[-1]
        curve.extend([last_value] * missing_epochs)
    return curves


def count_epochs(order: AshaOrder, curves: Sequence[Sequence[float]]) -> int:
    """Counts the epochs that a worker spends on trials with these learning curves.

    The worker takes the trial that ASHA's order chooses, and trains it from rung to rung (an epoch
    at which trials are compared) as long as the order would choose it next, or to its end.

    A standing is what the order knows of a trial: its state, last epoch and values at rungs. The
    slot of a trial is its position in `curves`.
    """
    standings = [Standing(slot, UNCLAIMED) for slot in range(len(curves))]
    spent_epochs = 0
    while True:
        choice = order.choose(standings)
        if choice is None:  # all trials are done
            return spent_epochs
        slot = choice.slot
        curve = curves[slot]

        # Train the trial from rung to rung, unless the order has pruned it.
        trains_on = not choice.ends_pruned
        while trains_on:
            last_epoch = standings[slot].last or 0
            next_epoch = _next_stop(order, last_epoch, len(curve))
            spent_epochs += next_epoch - last_epoch
            report = RungReport(next_epoch, curve[next_epoch - 1])
            reports = {**standings[slot].reports, next_epoch: report}
            # The order takes the trial for paused, until it says that the worker trains it on.
            standings[slot] = Standing(
                slot, state=OWN, last=next_epoch, reports=reports, paused=next_epoch
            )
            trains_on = next_epoch < len(curve) and order.is_next(standings, slot)

        # Release the trial: it has ended, or waits at a rung to be chosen again.
        is_done = choice.ends_pruned or standings[slot].last == len(curve)
        state = OPEN
        if is_done:
            state = DONE
        standings[slot] = replace(standings[slot], state=state)


def _next_stop(order: AshaOrder, epoch: int, end: int) -> int:
    """Returns the next rung after an epoch; the end of the trial if there is none."""
    for rung in order.rungs(end):
        if rung > epoch:
            return rung
    return end
