"""What the trials of a study show: which are stale or repeated, luck, and what ASHA would save."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from statistics import quantiles
from typing import Any, NamedTuple

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
UNKNOWN = 86400.0  # the seconds instead, while no trial has ended
NEAR = 300  # trials, at most, of the best half, that are compared with their nearest neighbors
RIVALS = 200  # of the best, among which luck decides
DRAWS = 2000  # of noise
ENOUGH = 5  # complete trials, before luck is estimated
REPLAYS, REPLAYED = 10, 100  # of ASHA, each in another order, and the trials of one
SECONDS = 86400.0 * 3650  # ten years: a longer duration is an error of a clock


class Luck(NamedTuple):
    """How far luck decides which trial is the best.

    Args:
        noise: the standard deviation of a value.
        source: what shows the noise, in words.
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
        spent: what the trials have spent.
    """

    epochs: int
    low: int
    high: int
    spent: int


def find(study: AdoptedStudy, requested: int | None) -> dict[str, str]:
    """Puts into words what the trials of a study show, by title.

    Args:
        requested: how many trials were requested; None if that is unknown.
    """
    count = len(study.trials)
    states = Counter(trial.state.name.lower() for trial in study.trials)
    shares = (f"{n} {name} ({100 * n / count:.0f}%)" for name, n in states.items())
    found = {"trials": f"{count}: {', '.join(shares)}"}
    infeasible = len(study.complete) - len(study.ranked)
    if infeasible:
        found["trials"] += f"; {infeasible} complete ones break a constraint"
    found["best"] = "no trial is complete, with a finite value and all constraints satisfied"
    for trial in study.ranked[:1]:
        words = f"{study.metric} {format_value(trial.values[0])}, trial {trial.number}"
        found["best"] = f"{words}: {format_parameters(trial.params)}"
    stale = format_ranges([trial.number for trial in stale_trials(study.trials)])
    words = f"{stale}: running for over {LONG:g} times as long as others took"
    found["stale"] = words if stale else "no trial is known to run for unusually long"
    found["surplus"] = f"unknown; --trials N says how many of the {count} were requested"
    if requested is not None:
        found["surplus"] = f"{max(0, count - requested)} trials beyond {requested}"
    groups = repeats(study.trials)
    again = sum(map(len, groups)) - len(groups)
    which = "; ".join(format_ranges([trial.number for trial in group]) for group in groups[:5])
    words = f"{again} trials have the configuration of an earlier one"
    found["repeated"] = f"{words}{which and f': {which}'}"
    failed = [trial.system_attrs for trial in study.trials if trial.state == TrialState.FAIL]
    reasons = Counter(str(each.get("fail_reason", "no reason is stored")) for each in failed)
    words = "; ".join(f"{number} × {reason}" for reason, number in reasons.most_common(5))
    found["failed"] = words or "no trial has failed"
    luck, asha = estimate_luck(study, groups), replay_asha(study)
    found["luck"] = "unknown with so few complete trials"
    if len(study.ranked) >= ENOUGH:
        found["luck"] = "unknown, since the values differ by too much for a float"
    if luck is not None:
        found["luck"] = (
            f"the best is {format_value(luck.lead)} ahead of the next; the noise that "
            f"{luck.source} show is {format_value(luck.noise)}: another trial is truly the best "
            f"with a probability of {100 * luck.other:.0f}%"
        )
    found["pruner=asha"] = "unknown, since no learning curves are stored"
    if asha is not None:
        found["pruner=asha"] = (
            f"it would have spent {asha.epochs:,} epochs in the order of these trials, and "
            f"{asha.low:,} to {asha.high:,} in random orders (95% interval); these trials spent "
            f"{asha.spent:,}"
        )
    return {title: shorten_end(one_line(each), LONGEST) for title, each in found.items()}


def repeats(trials: Sequence[FrozenTrial]) -> list[list[FrozenTrial]]:
    """Groups trials that have the same configuration, where several have it."""
    groups = defaultdict[str, list[FrozenTrial]](list)
    for trial in trials:
        groups[repr(sorted(trial.params.items()))].append(trial)
    return [group for group in groups.values() if len(group) > 1 and group[0].params]


def stale_trials(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Returns running trials that began long ago, compared with how long others took.

    Optuna stores local times or UTC, as its version has it; the shorter age counts.
    """
    known = [_seconds(t.datetime_start, t.datetime_complete) for t in trials]
    took = [each for each in known if each is not None and 0 <= each < SECONDS]
    limit = LONG * quantiles(took, n=20)[-1] if len(took) > 1 else UNKNOWN
    now = min(datetime.now(), datetime.now(UTC).replace(tzinfo=None))
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    return [t for t in running if (_seconds(t.datetime_start, now) or 0.0) > limit]


def _seconds(start: datetime | None, end: datetime | None) -> float | None:
    return None if start is None or end is None else (end - start).total_seconds()


def estimate_luck(study: AdoptedStudy, groups: Sequence[Sequence[FrozenTrial]]) -> Luck | None:
    """Estimates how likely the best trial is the best by luck; None with too few trials.

    The noise of a value is the pooled standard deviation of trials that repeat a configuration, if
    there are five beyond the first of each. Otherwise it is 1.48× the median difference between a
    trial of the best half and its nearest neighbor there by hyperparameters, / √2, which may be too
    large. True values are drawn around the stored ones with this noise.
    """
    best = study.ranked
    if len(best) < ENOUGH:
        return None
    known = {trial.number: trial.values[0] for trial in best}
    same = [[known[t.number] for t in group if t.number in known] for group in groups]
    freedom = sum(len(group) - 1 for group in same if group)
    values = study.sign * np.array([trial.values[0] for trial in best[:RIVALS]])
    with np.errstate(all="ignore"):  # of values such as 1e308
        source = "neighboring configurations"
        if freedom >= ENOUGH:
            source = "repeated configurations"
            squares = sum(float(np.var(group)) * len(group) for group in same if group)
            noise = math.sqrt(squares / freedom)
        else:
            noise = _noise_of_neighbors(best[: min(NEAR, -(-len(best) // 2))])
        drawn = values + np.random.default_rng(0).normal(0.0, noise, (DRAWS, len(values)))
        lead, other = float(values[0] - values[1]), float(np.mean(drawn.argmax(1) > 0))
    return Luck(noise, source, lead, other) if math.isfinite(noise + lead) else None


def _noise_of_neighbors(trials: Sequence[FrozenTrial]) -> float:
    names = dict.fromkeys(name for trial in trials for name in trial.params)
    columns = [_places([trial.params.get(name) for trial in trials]) for name in names]
    at = np.stack(columns, 1) if columns else np.zeros((len(trials), 1))
    away = np.abs(at[:, None] - at[None]).mean(2)
    np.fill_diagonal(away, np.inf)
    values = np.array([trial.values[0] for trial in trials])
    differences = np.abs(values - values[away.argmin(1)])
    return float(1.4826 * np.median(differences) / math.sqrt(2))


def _places(settings: Sequence[Any]) -> NDArray[np.float64]:
    """Ranks the settings of a hyperparameter from 0 to 1: numbers, then other choices by name."""
    by_name = {repr(setting): setting for setting in settings}  # a choice may be a list
    order = sorted(by_name, key=lambda name: _order(by_name[name]))
    place = {name: at / max(len(order) - 1, 1) for at, name in enumerate(order)}
    return np.array([place[repr(setting)] for setting in settings])


def _order(setting: Any) -> tuple[bool, float, str]:
    is_number = isinstance(setting, int | float) and not math.isnan(setting)
    return not is_number, float(setting) if is_number else 0.0, repr(setting)


# What ASHA would have spent


def replay_asha(study: AdoptedStudy) -> Promotion | None:
    """Replays the learning curves in the order of `pruner=asha`; None if there are none.

    One worker begins the trials in their order, and for the interval in random ones. A trial that
    was pruned is thought to stay at its last value. Of more than 100 trials 100 are replayed, and
    the rest is thought to cost as much.
    """
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    reported = [t for t in study.trials if t.state in ended and t.intermediate_values]
    curves = [[value for _, value in sorted(t.intermediate_values.items())] for t in reported]
    longest = max(map(len, curves), default=0)
    if longest < 3:
        return None
    for trial, curve in zip(reported, curves, strict=True):
        if trial.state == TrialState.PRUNED:
            curve += curve[-1:] * (longest - len(curve))
    objective = ObjectiveValue(study.metric, "maximize" if study.sign > 0 else "minimize")
    order = AshaPruner(epochs=longest).make_order([objective])
    draw, many = np.random.default_rng(0), min(REPLAYED, len(curves))
    orders = [np.arange(len(curves)), *(draw.permutation(len(curves)) for _ in range(REPLAYS))]
    totals = [spend(order, [curves[at] for at in places[:many]]) for places in orders]
    scaled = np.array(totals) * len(curves) / many
    low, high = np.percentile(scaled, (2.5, 97.5)).round().astype(int).tolist()
    return Promotion(round(scaled[0]), low, high, sum(len(t.intermediate_values) for t in reported))


def spend(order: AshaOrder, curves: Sequence[Sequence[float]]) -> int:
    """Returns the epochs that a worker spends on trials with these learning curves.

    It takes what the order chooses, and trains it to its next rung, or to its end.
    """
    standings = [Standing(slot, UNCLAIMED) for slot in range(len(curves))]
    spent = 0
    while (chosen := order.choose(standings)) is not None:
        slot, goes_on = chosen.slot, not chosen.ends_pruned
        while goes_on:
            last, curve, reports = standings[slot].last or 0, curves[slot], standings[slot].reports
            stop = next((rung for rung in order.rungs(len(curve)) if rung > last), len(curve))
            spent += stop - last
            reports = {**reports, stop: RungReport(stop, curve[stop - 1])}
            standings[slot] = Standing(slot, OWN, stop, reports, paused=stop)
            goes_on = stop < len(curve) and order.is_next(standings, slot)
        ended = chosen.ends_pruned or standings[slot].last == len(curves[slot])
        standings[slot] = replace(standings[slot], state=DONE if ended else OPEN)
    return spent
