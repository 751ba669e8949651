"""Whether a search has ended before its budget is spent, and why: asked before each claim.

The answer is a pure function of the stored trials and of the bounds that are stored with the study,
so that every worker, every view and the next command come to the same one, and a crash changes
nothing. Once a search has ended, trials under way run to their end, and no further one begins.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from studyloom.search.regret import gains


@dataclass(frozen=True)
class Bounds:
    """What ends a search before its budget is spent.

    Args:
        regret: in units of the metric: it ends once its further trials are expected to gain less.
            None for no such end.
        epochs: it ends once all trials together have reported so many. None for no such end.
        since: the first count of trials at which `regret` is asked. It is above 0 if the search
            went on under another one before.
        trials: the budget.
    """

    regret: float | None = None
    epochs: int | None = None
    since: int = 0
    trials: int = 0

    @classmethod
    def parse(cls, stored: Any) -> "Bounds":
        """Returns the bounds of a stored attribute, and none of one that no command stored."""
        known = stored if isinstance(stored, dict) else {}
        kinds: dict[str, Any] = {"regret": (int, float), "epochs": int, "since": int, "trials": int}
        fields = {
            name: known[name]
            for name, kind in kinds.items()
            if isinstance(known.get(name), kind) and not isinstance(known[name], bool)
        }
        return cls(**fields)


class Outcome(NamedTuple):
    """What a search knows of a trial.

    Attributes:
        slot: that it fills.
        ended: whether it has ended, or waits to be promoted.
        value: the more the better; None if it has none that counts.
        epochs: how many it has reported, one for all folds and seeds together.
    """

    slot: int
    ended: bool
    value: float | None
    epochs: int


def by_slot(outcome: Outcome) -> int:
    return outcome.slot


@dataclass(frozen=True)
class Ending:
    """Why a search has ended.

    Args:
        begun: how many trials there are, those under way included.
        bounds: of the search.
        gain: what the further trials were expected to gain; None if the epochs are spent.
        epochs: how many there are.
    """

    begun: int
    bounds: Bounds
    gain: float | None
    epochs: int

    @property
    def words(self) -> str:
        """Why, in one line."""
        trials = self.bounds.trials
        after = f"ended after {self.begun} of {trials} trials"
        if self.gain is None:
            return f"{after}: {self.epochs} epochs of study.epochs={self.bounds.epochs} are spent"
        left = trials - self.begun
        further = "a further trial is" if left == 1 else f"the {left} further trials are"
        return f"{after}: {further} expected to gain less than study.regret={self.bounds.regret:g}"


def find_ending(bounds: Bounds, outcomes: Iterable[Outcome]) -> Ending | None:
    """Returns why a search has ended; None if it goes on.

    What further trials would gain is asked after each trial in the order of slots, of those of the
    first slots that have all ended. So the answer does not depend on which trial ends first, nor on
    when somebody asks, and it stays the same when more trials end.

    Args:
        bounds: of the search.
        outcomes: its trials.
    """
    first = sorted((outcome for outcome in outcomes if outcome.slot < bounds.trials), key=by_slot)
    begun, epochs = len(first), sum(outcome.epochs for outcome in first)
    if begun >= bounds.trials:
        return None  # its budget is what ends it
    if bounds.epochs is not None and epochs >= bounds.epochs:
        return Ending(begun, bounds, None, epochs)
    if bounds.regret is None:
        return None
    values = settled_values(first)
    asked = gains(values, bounds.trials)[max(0, bounds.since - 1) :]
    low = next((gain for gain in asked if gain is not None and gain < bounds.regret), None)
    return None if low is None else Ending(begun, bounds, low, epochs)


def settled_values(outcomes: Iterable[Outcome]) -> list[float | None]:
    """Returns the values of the first slots that have all ended, by slot."""
    values: list[float | None] = []
    for outcome in sorted(outcomes, key=by_slot):
        if outcome.slot != len(values) or not outcome.ended:
            break
        values.append(outcome.value)
    return values


def gain_of(bounds: Bounds, outcomes: Iterable[Outcome]) -> float | None:
    """Returns what the rest of the budget is expected to gain; None if that cannot be told."""
    values = settled_values(outcome for outcome in outcomes if outcome.slot < bounds.trials)
    return next(reversed(gains(values, bounds.trials)), None)
