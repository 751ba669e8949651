"""The importances of hyperparameters: which of them set the best trials of a study apart.

PED-ANOVA (Watanabe et al., IJCAI 2023) compares the distribution of each hyperparameter in the best
quarter of the trials with that in all of them. Trials are *compared* by their values at one epoch,
which nearly all of them have reached: with a pruner that is its first rung. Final values alone
would leave out the trials that were pruned, and last values favor those that trained longer.

All views show the importances that `compute_importances` returns.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial, TrialState

from studyloom.storage.optuna_internals import rate_by_ped_anova
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord

# The fewest trials that are compared. In simulated random searches over six hyperparameters the one
# that mattered most came first in 63% of those with 20 trials, and in 33% of those with 10.
ENOUGH = 20
# The share of the trials that are the best ones. With the best tenth, which Optuna takes, the one
# that mattered most came first in 33% of these searches with 20 trials, and in 55% instead of 77%
# of those with 40 (best fifth; the best 30% are a little better still).
BEST_SHARE = 0.25
# A hyperparameter stands out if its divergence (the part of PED-ANOVA's score that does not depend
# on the share of the best trials) times the number of trials is above this. In 160 simulated
# studies of 40 and 60 trials by TPE, 6% had a hyperparameter that stood out and had no effect; half
# of this number would give 32%. A sampler that prefers good regions makes chance look large.
LEAST_DIVERGENCE = 30
REACHED = 0.9  # the share of the trials that must have reached the epoch at which they are compared
MOST_COMPARED = 2000  # trials; of more, evenly spaced ones are compared
COMPARED_OUTCOMES = ("complete", "pruned", "paused")
FINAL = math.inf  # the epoch that a complete trial has reached


@dataclass(frozen=True)
class ComparedValues:
    """The values by which the trials of a study are compared.

    Args:
        values: the value of each trial that is compared, by its number.
        epoch: the epoch after which the trials had these values; None for the final values.
    """

    values: Mapping[int, float]
    epoch: int | None = None


@dataclass(frozen=True)
class Importances:
    """The importances of hyperparameters for an objective.

    Args:
        shares: the share of each hyperparameter, the largest first, with a sum of 1. Even one that
            never varied may have a share if it is conditional, since it may matter whether a trial
            has it. Empty if no hyperparameter sets the best trials apart.
        compared: the number of trials that were compared.
        epoch: the epoch after which they were compared; None for their final values.
        outstanding: the hyperparameters that matter by more than chance usually explains.
    """

    shares: Mapping[str, float] = field(default_factory=dict)
    compared: int = 0
    epoch: int | None = None
    outstanding: frozenset[str] = frozenset()

    @property
    def has_enough_trials(self) -> bool:
        """Returns whether enough trials could be compared."""
        return self.compared >= ENOUGH


def compare_values(trials: Iterable[FrozenTrial]) -> ComparedValues:
    """Returns the values of trials after the last epoch that nearly all of them have reached.

    Trials that failed or run are left out, and so are values that are not finite. A complete trial
    has reached every epoch.
    """
    compared_trials = []
    last_epochs = []
    for trial in trials:
        if TrialRecord(trial).outcome in COMPARED_OUTCOMES:
            last_epoch = _find_last_epoch(trial)
            if last_epoch is not None:
                compared_trials.append(trial)
                last_epochs.append(last_epoch)
    if not compared_trials:
        return ComparedValues({})
    last_epochs.sort()
    left_out = math.floor((1 - REACHED) * len(last_epochs))  # those that ended even earlier
    epoch = last_epochs[left_out]
    values = {}
    for trial in compared_trials:
        value = _find_value(trial, epoch)
        if value is not None and math.isfinite(value):
            values[trial.number] = value
    if epoch == FINAL:
        return ComparedValues(values)
    return ComparedValues(values, int(epoch))


def _find_last_epoch(trial: FrozenTrial) -> float | None:
    """Returns the last epoch that a trial has reached; None if it has no value at all."""
    if trial.state == TrialState.COMPLETE:
        return FINAL
    return trial.last_step


def _find_value(trial: FrozenTrial, epoch: float) -> float | None:
    """Returns the value of a trial after an epoch, or None if it has not reached it.

    If it was not evaluated after that epoch, this is its last value before. A complete trial that
    has reported none has its final value.
    """
    last_epoch = _find_last_epoch(trial)
    if last_epoch is None or last_epoch < epoch:
        return None
    reported_epochs = [step for step in trial.intermediate_values if step <= epoch]
    if epoch < FINAL and reported_epochs:
        return trial.intermediate_values[max(reported_epochs)]
    if trial.state == TrialState.COMPLETE:
        return float(trial.values[0])
    return None


def read_costs(trials: Iterable[FrozenTrial], name: str, position: int) -> ComparedValues:
    """Returns the cost of each trial that has one; some costs are known before the training.

    Args:
        name: the name of the cost.
        position: the position of the cost among the values of a complete trial.
    """
    values = {}
    for trial in trials:
        cost = trial.user_attrs.get(name)
        if trial.state == TrialState.COMPLETE:
            cost = trial.values[position]
        if isinstance(cost, int | float) and math.isfinite(cost):
            values[trial.number] = float(cost)
    return ComparedValues(values)


def compute_importances(stored: StoredStudy, position: int = 0) -> Importances:
    """Returns the importances of a study's hyperparameters.

    Args:
        position: the position of the objective: 0 for the metric, 1 for the first cost.
    """
    trials = stored.trials()
    objective = stored.objectives[position]
    if position == 0:
        values = compare_values(trials)
    else:
        values = read_costs(trials, objective.name, position)
    return rate_hyperparameters(trials, values, objective.sign)


def rate_hyperparameters(
    trials: Sequence[FrozenTrial], compared: ComparedValues, sign: int
) -> Importances:
    """Returns the importances of the hyperparameters of trials.

    Args:
        trials: the trials, of which those with a compared value count.
        sign: 1 if more is better, -1 if less is.
    """
    members = [trial for trial in trials if trial.number in compared.values]
    count = len(members)
    if count < ENOUGH:
        return Importances(compared=count, epoch=compared.epoch)
    stride = 1 + (count - 1) // MOST_COMPARED
    losses = {number: -sign * value for number, value in compared.values.items()}
    rated = members[::stride]
    scores = rate_by_ped_anova(rated, losses, BEST_SHARE)
    shares = _normalize(scores, find_varied_parameters(members))
    outstanding = set()
    for name in shares:
        divergence = scores[name] / BEST_SHARE**2
        if divergence * len(rated) > LEAST_DIVERGENCE:
            outstanding.add(name)
    return Importances(shares, count, compared.epoch, frozenset(outstanding))


def _normalize(scores: Mapping[str, float], varied: Sequence[str]) -> dict[str, float]:
    """Returns scores as shares of their sum, the largest first; empty if nothing can matter.

    Args:
        varied: the hyperparameters that had different values. Another one may have a score if it is
            conditional, and is left out without one.
    """
    total = sum(scores.values())
    if not varied or not total:
        return {}
    shares = {}
    # Equal scores are sorted by name, since their order in Optuna's result is random.
    for name in sorted(scores, key=lambda name: (-scores[name], name)):
        if scores[name] or name in varied:
            shares[name] = scores[name] / total
    return shares


def find_varied_parameters(trials: Iterable[FrozenTrial], min_trials: int = 2) -> list[str]:
    """Returns the hyperparameters that at least so many trials have, with different values."""
    values_by_name: dict[str, list[object]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values_by_name.setdefault(name, []).append(value)
    varied = []
    for name, values in values_by_name.items():
        if len(values) >= min_trials and len({*values}) > 1:
            varied.append(name)
    return sorted(varied)


def rank_by_importance(names: Iterable[str], shares: Mapping[str, float]) -> list[str]:
    """Sorts the names of hyperparameters: the most important first, then by name."""
    return sorted(names, key=lambda name: (-shares.get(name, 0.0), name))


def collect_names(trials: Iterable[FrozenTrial], further: Iterable[str] = ()) -> list[str]:
    """Returns the names of all hyperparameters of trials once, and further ones, in this order."""
    names: dict[str, None] = {}
    for trial in trials:
        names |= dict.fromkeys(trial.params)
    names |= dict.fromkeys(further)
    return list(names)
