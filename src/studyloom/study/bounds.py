"""The bounds of a stored search: what they are from now on, and whether it has ended by them."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace

from optuna.trial import FrozenTrial

from studyloom.search.ending import Bounds, Ending, Outcome, find_ending, gain_of, settled_values
from studyloom.storage import sql
from studyloom.storage.attributes import BOUNDS, SLOT
from studyloom.storage.database import read
from studyloom.study.stored_study import StoredStudy, is_stage_name
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
        """Formats what further trials are expected to gain; empty if that cannot be told."""
        if self.gain is None or self.ending is not None:
            return ""
        below = "" if self.regret is None else f"; the search ends below {self.regret:g}"
        return f"expected gain of further trials: {format_value(self.gain)} {metric}{below}"


def read_bounds(stored: StoredStudy) -> Bounds:
    """Returns the bounds that the last command stored; none of a study of an earlier version."""
    ledger = stored.ledger
    return Bounds.parse(read(ledger.storage, lambda c: sql.study_attr(c, ledger.study_id, BOUNDS)))


def set_bounds(
    stored: StoredStudy, regret: float | None, epochs: int | None, trials: int
) -> Bounds:
    """Stores what ends the search from now on, if that is something else than before.

    Another regret than before is asked from the trials on that have ended by now: a higher one does
    not undo what was done under a lower one.

    Args:
        stored: the study.
        regret: `study.regret` with `study.stop=regret`, else None.
        epochs: `study.epochs`.
        trials: the budget.

    Returns:
        The bounds.
    """
    before = read_bounds(stored)
    since = before.since
    if regret != before.regret:
        since = 0 if regret is None else len(settled_values(read_outcomes(stored)))
    bounds = Bounds(regret, epochs, since, trials)
    if bounds != before:
        stored.optuna.set_user_attr(BOUNDS, asdict(bounds))
    return bounds


def ending(stored: StoredStudy, trials: int) -> Ending | None:
    """Returns why a search has ended before its budget is spent; None if it has not.

    Args:
        stored: the study.
        trials: the budget.
    """
    bounds = replace(read_bounds(stored), trials=trials)
    if bounds.regret is None and bounds.epochs is None:
        return None  # without a look at the trials
    return find_ending(bounds, read_outcomes(stored))


def look_ahead(stored: StoredStudy) -> Outlook:
    """Returns what is still to come of a search; nothing of the later stages of a study."""
    if is_stage_name(stored.name):
        return Outlook()
    bounds = read_bounds(stored)
    if not bounds.trials:  # an earlier version has made the study
        bounds = replace(bounds, trials=sum(stored.ledger.counts().values()))
    outcomes = read_outcomes(stored)
    gain = gain_of(bounds, outcomes)
    ended = find_ending(bounds, outcomes)
    under_way = 0 if ended is None else stored.ledger.todo(bounds.trials, begun=True)
    return Outlook(ended, under_way, gain, bounds.regret, bounds.trials)


def read_outcomes(stored: StoredStudy, paused: Collection[int] = ()) -> list[Outcome]:
    """Returns what a search knows of its trials.

    A value counts if the trial is complete, breaks no constraint and satisfies the rule by which
    the best is chosen. With several objectives none does.

    Args:
        stored: the study.
        paused: slots whose trial waits to be promoted; it counts as ended without a value.
    """
    counted = {trial.number for trial in stored.ranked()} if len(stored.goals) == 1 else set()

    def outcome(trial: FrozenTrial) -> Outcome:
        slot = int(trial.user_attrs.get(SLOT, trial.number))
        value = stored.sign * trial.values[0] if trial.number in counted else None
        ended = trial.state.is_finished() or slot in paused
        return Outcome(slot, ended, value, len(trial.intermediate_values))

    return [outcome(trial) for trial in stored.trials()]
