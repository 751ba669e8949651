"""Whether a search has ended before its budget is spent, and why: asked before each claim.

The answer is a pure function of the stored trials and of the bounds that are stored with the study,
so that no worker is the master. Once further trials are expected to gain too little, that is stored
too: trials under way, which run to their end, may change the estimate, but not what was decided.
Then no further trial begins.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from studyloom.study.regret import last_gain
from studyloom.text import format_ranges


@dataclass(frozen=True)
class Bounds:
    """What ends a search before its budget is spent.

    Args:
        regret: in units of the metric: it ends once its further trials are expected to gain less.
            None for no such end.
        epochs: it ends once all trials together have reported so many. None for no such end.
        trials: the budget.
    """

    regret: float | None = None
    epochs: int | None = None
    trials: int = 0

    @classmethod
    def parse(cls, stored: Any) -> "Bounds":
        """Returns the bounds of a stored attribute, and none of one that no command stored."""
        known = stored if isinstance(stored, dict) else {}
        kinds: dict[str, Any] = {"regret": (int, float), "epochs": int, "trials": int}
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


@dataclass(frozen=True)
class Ending:
    """Why a search has ended.

    Args:
        begun: how many trials there are, those under way included.
        bounds: of the search.
        epochs: how many its trials have reported.
        gain: what the further trials were expected to gain; None if the epochs are spent.
        slots: those whose trials had ended when that was decided, as ranges; "" if epochs decide.
    """

    begun: int
    bounds: Bounds
    epochs: int
    gain: float | None = None
    slots: str = ""

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

    def decision(self) -> dict[str, Any]:
        """Returns what is stored of it, for `find_ending`."""
        decided = {"regret": self.bounds.regret, "trials": self.bounds.trials}
        return decided | {"gain": self.gain, "slots": self.slots}


def find_ending(
    bounds: Bounds, outcomes: Iterable[Outcome], decided: Any = None, *, decide: bool = True
) -> Ending | None:
    """Returns why a search has ended; None if it goes on.

    Args:
        bounds: of the search.
        outcomes: its trials.
        decided: what was stored of an end, by whomever.
        decide: whether to tell from the trials that their further ones gain too little; otherwise
            only what was decided counts.
    """
    first = [outcome for outcome in outcomes if outcome.slot < bounds.trials]
    begun, epochs = len(first), sum(outcome.epochs for outcome in first)
    if begun >= bounds.trials:
        return None  # its budget is what ends it
    if bounds.epochs is not None and epochs >= bounds.epochs:
        return Ending(begun, bounds, epochs)
    if bounds.regret is None:
        return None
    if _holds(decided, bounds):
        return Ending(begun, bounds, epochs, float(decided["gain"]), str(decided.get("slots")))
    gain = gain_of(bounds, first) if decide else None
    if gain is None or gain >= bounds.regret:
        return None
    slots = format_ranges(sorted(outcome.slot for outcome in first if outcome.ended))
    return Ending(begun, bounds, epochs, gain, slots)


def _holds(decided: Any, bounds: Bounds) -> bool:
    """Whether a stored decision is about this regret, and about this budget or a larger one."""
    if not isinstance(decided, Mapping) or not isinstance(decided.get("gain"), int | float):
        return False
    trials = decided.get("trials")
    return decided.get("regret") == bounds.regret and (
        isinstance(trials, int) and trials >= bounds.trials
    )


def ended_values(outcomes: Iterable[Outcome]) -> list[float | None]:
    """Returns the values of the trials that have ended, by slot."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.slot)
    return [outcome.value for outcome in ordered if outcome.ended]


def gain_of(bounds: Bounds, outcomes: Sequence[Outcome]) -> float | None:
    """Returns what the rest of the budget is expected to gain; None if that cannot be told."""
    values = ended_values(outcome for outcome in outcomes if outcome.slot < bounds.trials)
    return last_gain(values, bounds.trials)
