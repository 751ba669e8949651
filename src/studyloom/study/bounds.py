"""The bounds of a stored search: what they are from now on, and whether it has ended by them."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.storage import sql
from studyloom.storage.attributes import BOUNDS, ENDED, SLOT
from studyloom.storage.database import read
from studyloom.study import failures
from studyloom.study.ending import Bounds, Ending, Outcome, find_ending, gain_of
from studyloom.study.opening import is_stage_name
from studyloom.study.stored_study import StoredStudy
from studyloom.text import format_value


@dataclass(frozen=True)
class Outlook:
    """What is still to come of a search.

    Args:
        ending: why it has ended before its budget is spent; None if it has not.
        under_way: once it has ended, how many of its trials have not.
        gain: what its further trials are expected to gain together, in units of the metric; None
            if that cannot be told.
        regret: the gain below which it ends; None if it does not.
        trials: the budget.
    """

    ending: Ending | None = None
    under_way: int = 0
    gain: float | None = None
    regret: float | None = None
    trials: int = 0

    def words(self, metric: str) -> str:
        """Formats what further trials are expected to gain; empty if there are none, or too few."""
        if not self.gain or self.ending is not None:
            return ""
        below = "" if self.regret is None else f"; the search ends below {self.regret:g}"
        return f"expected gain of further trials: {format_value(self.gain)} {metric}{below}"


def read_bounds(stored: StoredStudy) -> Bounds:
    """Returns the bounds that the last command stored; none of a study of an earlier version."""
    return Bounds.parse(_read(stored, BOUNDS))


def _read(stored: StoredStudy, key: str) -> Any:
    ledger = stored.ledger
    return read(ledger.storage, lambda c: sql.study_attr(c, ledger.study_id, key))


def set_bounds(stored: StoredStudy, regret: float | None, epochs: int | None, trials: int) -> None:
    """Stores what ends the search from now on; with other bounds than before it is asked anew.

    Args:
        stored: the study.
        regret: `study.regret` with `study.stop=regret`, else None.
        epochs: `study.epochs`.
        trials: the budget.
    """
    bounds = Bounds(regret, epochs, trials)
    if bounds != read_bounds(stored):
        stored.optuna.set_user_attr(ENDED, None)
        stored.optuna.set_user_attr(BOUNDS, asdict(bounds))


def ending(stored: StoredStudy, trials: int) -> Ending | None:
    """Returns why a search has ended before its budget is spent; None if it goes on.

    Whoever finds first that further trials are expected to gain too little stores it. If it is
    killed before, the next one that asks finds the same.

    Args:
        stored: the study.
        trials: the budget.
    """
    bounds = replace(read_bounds(stored), trials=trials)
    if bounds.regret is None and bounds.epochs is None:
        return None  # without a look at the trials
    decided = _read(stored, ENDED)
    found = find_ending(bounds, read_outcomes(stored), decided)
    if found is not None and found.gain is not None and found.decision() != decided:
        stored.optuna.set_user_attr(ENDED, found.decision())
    return found


def look_ahead(stored: StoredStudy) -> Outlook:
    """Returns what is still to come of a search; nothing of the later stages of a study.

    It decides nothing: who only looks at a study changes nothing.
    """
    if is_stage_name(stored.name):
        return Outlook()
    bounds = read_bounds(stored)
    if not bounds.trials:  # an earlier version has made the study
        bounds = replace(bounds, trials=sum(stored.ledger.counts().values()))
    outcomes = read_outcomes(stored)
    ended = find_ending(bounds, outcomes, _read(stored, ENDED), decide=False)
    under_way = 0 if ended is None else stored.ledger.todo(bounds.trials, begun=True)
    return Outlook(ended, under_way, gain_of(bounds, outcomes), bounds.regret, bounds.trials)


def read_outcomes(stored: StoredStudy) -> list[Outcome]:
    """Returns what a search knows of its trials.

    A value counts if the trial is complete, breaks no constraint and satisfies the rule by which
    the best is chosen. With several objectives none does. A trial that waits to be promoted counts
    as ended without a value.
    """
    counted = {trial.number for trial in stored.ranked()} if len(stored.goals) == 1 else set()

    def outcome(trial: FrozenTrial) -> Outcome:
        slot = int(trial.user_attrs.get(SLOT, trial.number))
        value = stored.sign * trial.values[0] if trial.number in counted else None
        ended = trial.state.is_finished() or failures.outcome(trial) == "paused"
        return Outcome(slot, ended, value, len(trial.intermediate_values))

    return [outcome(trial) for trial in stored.trials()]
