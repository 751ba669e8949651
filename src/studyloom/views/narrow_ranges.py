"""Ranges of hyperparameters that are too narrow: where the best trials lie at an end.

A hyperparameter that matters, most of whose best trials lie in the outer tenth of its range, and
many of all trials too, would probably be better beyond that end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from studyloom.space.tree import End, count_values
from studyloom.storage.trial_record import TrialRecord
from studyloom.views.importances import COMPARED_OUTCOMES, Importances

# The rule: this many of the best trials, and this share of all, lie in this part of the range, from
# one end, and the hyperparameter stands out among the importances. It was chosen on 240 simulated
# studies by TPE of 2 to 8 hyperparameters, some without effect, and measured on 160 others: 1.3% of
# those with 40 trials and 1.9% of those with 60 got a false alarm, a range that is wide enough.
# Where the best value of a hyperparameter with a large effect lay beyond its range, this was found
# in 66% and 76%. Without the importances 12% and 16% of the studies got a false alarm.
BEST = 5
BEST_AT_END = 4
SHARE_AT_END = 0.2
OUTER = 0.1
FEWEST_TRIALS = 20  # that have the hyperparameter
FEWEST_VALUES = (
    10  # of an integer or a number with a step: the outer tenth has at least one of them
)
LOG_FACTOR = 10  # by which a logarithmic range of floats is widened
INT_FACTOR = 4  # by which a logarithmic range of integers is widened
ROUNDING = 1e-9  # of a step: more than a rounding error of the number of steps
NEARLY_ONE = 0.9  # the least high end of a range of shares, which needs no values beyond it

NumberRange = IntDistribution | FloatDistribution


@dataclass(frozen=True)
class NarrowRange:
    """A range that is too narrow at an end.

    Args:
        name: the hyperparameter.
        distribution: its range.
        wider: a wider one.
        end: the end at which the good trials lie.
        trials: how many trials have the hyperparameter; `at_end` of them lie at the end.
        best_at_end: how many of the BEST ones of these lie there.
    """

    name: str
    distribution: NumberRange
    wider: NumberRange
    end: End
    trials: int
    at_end: int
    best_at_end: int


def find_narrow_range(
    trials: Sequence[FrozenTrial], sign: int, importances: Importances
) -> NarrowRange | None:
    """Returns the range that is too narrow, of the most important hyperparameter; None without one.

    Args:
        trials: the trials of a study.
        sign: 1 if more of the metric is better, -1 if less is.
        importances: those of the hyperparameters for the metric.
    """
    ranked = rank_by_progress(trials, sign)
    for name in importances.shares:
        if name in importances.outstanding:
            narrow = _check_range(ranked, name)
            if narrow is not None:
                return narrow
    return None


def rank_by_progress(trials: Sequence[FrozenTrial], sign: int) -> list[FrozenTrial]:
    """Returns the trials that have a value, the best first.

    Complete trials come first. The others come by the epoch that they have reached, and then by
    their value there: a pruner has preferred those that it let train longer. NaN is the worst.
    """

    def sort_key(trial: FrozenTrial) -> tuple[float, float]:
        if trial.state == TrialState.COMPLETE:
            return -math.inf, -sign * trial.values[0]
        step = trial.last_step
        assert step is not None
        value = trial.intermediate_values[step]
        if math.isnan(value):
            return -step, math.inf
        return -step, -sign * value

    members = []
    for trial in trials:
        has_value = trial.state == TrialState.COMPLETE or trial.last_step is not None
        if has_value and TrialRecord(trial).outcome in COMPARED_OUTCOMES:
            members.append(trial)
    return sorted(members, key=sort_key)


def _check_range(ranked: Sequence[FrozenTrial], name: str) -> NarrowRange | None:
    """Returns the narrow range of a hyperparameter; None if it is wide enough, or is no range.

    Args:
        ranked: all trials, the best first.
    """
    members = [trial for trial in ranked if name in trial.params]
    if len(members) < FEWEST_TRIALS:
        return None
    distribution = members[0].distributions[name]
    if not isinstance(distribution, IntDistribution | FloatDistribution):
        return None
    has_one_range = all(trial.distributions[name] == distribution for trial in members)
    if not has_one_range or count_values(distribution) < FEWEST_VALUES:
        return None
    places = [_place(distribution, trial.params[name]) for trial in members]
    ends: tuple[End, End] = ("low", "high")
    for end in ends:
        wider = widen(distribution, end)
        if wider is None:
            continue
        is_at_end = [_is_at_end(place, end) for place in places]
        best_at_end = sum(is_at_end[:BEST])
        share = sum(is_at_end) / len(members)
        if best_at_end >= BEST_AT_END and share >= SHARE_AT_END:
            return NarrowRange(
                name=name,
                distribution=distribution,
                wider=wider,
                end=end,
                trials=len(members),
                at_end=sum(is_at_end),
                best_at_end=best_at_end,
            )
    return None


def _place(distribution: NumberRange, value: float) -> float:
    """Returns where a value is in its range, on the scale on which it is drawn: from 0 to 1."""
    low: float = distribution.low
    high: float = distribution.high
    if distribution.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def _is_at_end(place: float, end: End) -> bool:
    """Returns whether a place from 0 to 1 is in the outer part at an end."""
    if end == "low":
        return place <= OUTER
    return place >= 1 - OUTER


def widen(distribution: NumberRange, end: End) -> NumberRange | None:
    """Returns a range that is wider at an end; None if no value can be beyond it.

    A logarithmic range of floats gets a further power of ten, one of integers two further powers of
    two, and any other range half of its width. A range from 0 on is not widened to numbers below 0,
    and a share from 0 to 1, such as a dropout or a momentum, not beyond 1.
    """
    if isinstance(distribution, IntDistribution):
        return _widen_integers(distribution, end)
    low = distribution.low
    high = distribution.high
    if distribution.log and end == "high":
        return FloatDistribution(low, _round(high * LOG_FACTOR), log=True)
    if distribution.log:
        return FloatDistribution(_round(low / LOG_FACTOR), high, log=True)
    step = distribution.step
    room = _measure_room(distribution, end)
    width = min((high - low) / 2, room)
    if step is not None:  # a whole number of steps, so that all of its values stay
        steps = math.ceil((high - low) / 2 / step)
        if room < math.inf:
            steps = min(steps, math.floor(room / step + ROUNDING))
        width = steps * step
    if width <= 0:
        return None
    if end == "high":
        return FloatDistribution(low, _round(high + width), step=step)
    return FloatDistribution(_round(low - width), high, step=step)


def _measure_room(distribution: FloatDistribution, end: End) -> float:
    """Returns by how much a linear range can be widened at an end; infinity without a limit."""
    low = distribution.low
    high = distribution.high
    if low < 0:
        return math.inf
    if end == "low":
        return low
    if high > 1:
        return math.inf
    if high >= NEARLY_ONE:
        return 0.0
    return NEARLY_ONE - high


def _widen_integers(distribution: IntDistribution, end: End) -> IntDistribution | None:
    """Returns a range of integers that is wider at an end; None if it begins at 0 or 1 there."""
    low = distribution.low
    high = distribution.high
    step = distribution.step
    if distribution.log and end == "high":
        return IntDistribution(low, high * INT_FACTOR, log=True)
    steps = math.ceil((high - low) / 2 / step)
    if end == "high":
        return IntDistribution(low, high + steps * step, step=step)
    if low in (0, 1):
        return None
    if distribution.log:
        return IntDistribution(max(1, low // INT_FACTOR), high, log=True)
    new_low = low - steps * step
    while low > 0 and new_low < 1:
        new_low += step
    if new_low == low:
        return None
    return IntDistribution(new_low, high, step=step)


def _round(value: float) -> float:
    """Rounds the end of a range to twelve digits, so that it reads as one would write it."""
    return float(f"{value:.12g}")
