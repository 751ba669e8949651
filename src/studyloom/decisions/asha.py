"""ASHA with promotion: a trial waits at each rung until it is among the best there.

A trial that reaches a rung is paused with a checkpoint, and its worker takes another. Of n trials
that have reached a rung, the best n / reduction_factor are promoted: they resume towards the next
rung. Of fewer than reduction_factor trials the best one is promoted once no other can reach the
rung, so that some trials complete. So a trial is compared with later trials too, and no worker
waits for another while there are trials to begin. With several objectives (the metric, and costs
that are known before the first rung) the best are those of the first fronts; see `fronts`.

Sources: Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt, Recht and Talwalkar, "A System for
Massively Parallel Hyperparameter Tuning" (MLSys 2020, arXiv:1810.05934), algorithm 2; Schmucker,
Donini, Zafar, Salinas and Archambeau, "Multi-objective Asynchronous Successive Halving" (2021,
arXiv:2106.12639).
"""

import itertools
import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.study import Study
from optuna.trial import FrozenTrial

from studyloom.metrics import ObjectiveValue
from studyloom.seeds import derive
from studyloom.storage.standings import DONE, OPEN, OWN, UNCLAIMED, Next, Standing

if TYPE_CHECKING:  # torch takes two seconds, which a proposer need not wait for
    from studyloom.definition.definition import Definition


def dominance(points: Sequence[Sequence[float]]) -> NDArray[np.bool_]:
    """Computes which trials dominate which: as good in all objectives, and better in one.

    Of each value less is better.

    Returns:
        bool (trials, trials): whether the trial of the row dominates that of the column.
    """
    at = np.asarray(points, float)
    no_worse: NDArray[np.bool_] = np.all(at[:, None] <= at[None, :], 2)
    dominates: NDArray[np.bool_] = no_worse & ~no_worse.T
    return dominates


@lru_cache(256)  # at most claims nothing has changed at most rungs
def rank_points(points: tuple[tuple[float, ...], ...]) -> tuple[int, ...]:
    """Ranks trials by fronts: first those that no other dominates, then those that only they do, …

    A front begins with the trial that is best by the first objective. Next is always the one that
    is farthest from all before it (the paper's epsilon-net), so that even a few lie all along the
    front. Distances are those of ranks among all trials, since costs of networks differ by orders
    of magnitude. Of equal trials the earlier one comes first.
    """
    if not points:
        return ()
    at, dominates = np.asarray(points, float), dominance(points)
    places = np.stack([np.unique(objective, return_inverse=True)[1] for objective in at.T], 1)
    places = places / np.maximum(places.max(0), 1)
    order: list[int] = []
    above = dominates.sum(0)  # how many that are not yet ranked dominate each
    while len(order) < len(at):
        front = np.flatnonzero(above == 0)
        above = above - dominates[front].sum(0)
        above[front] = -1
        order += [int(front[k]) for k in _spread(places[front], int(np.argmin(at[front, 0])))]
    return tuple(order)


def _spread(places: NDArray[np.float64], first: int) -> list[int]:
    """Returns positions from a first one on, each the farthest from all before it."""
    order, away = [first], np.full(len(places), np.inf)
    while len(order) < len(places):
        steps = places - places[order[-1]]
        away = np.minimum(away, (steps * steps).sum(1))
        away[order] = -1.0
        order.append(int(np.argmax(away)))
    return order


class AshaPruner(BasePruner):
    """Pauses trials at rungs and promotes the best; see the module.

    The rungs of bracket b are at the steps min_resource × reduction_factor^(b + i), i = 0, 1, ….
    Trials are compared within their bracket. Which one a trial belongs to follows from its slot, in
    the shares of Hyperband, whose brackets cost about as much each (Li, Jamieson, DeSalvo,
    Rostamizadeh and Talwalkar, JMLR 2018, arXiv:1603.06560).

    Args:
        min_resource: the epoch of the lowest rung; auto: that of the study as it began, or else
            `first_rung`.
        reduction_factor: one of so many trials at a rung is promoted.
        brackets: a single one is ASHA as published.
        epochs: of a whole training, if they are known.
        began: the epoch of the lowest rung as the study began, 0 without rungs; None of a new one.
    """

    def __init__(
        self,
        min_resource: int | Literal["auto"] = "auto",
        reduction_factor: int = 3,
        brackets: int = 1,
        *,
        epochs: int | None = None,
        began: int | None = None,
    ) -> None:
        at_least = {"min_resource": 1, "reduction_factor": 2, "brackets": 1}
        lowest: Any = min_resource
        if lowest == "auto":
            lowest = first_rung(epochs) if began is None else max(1, began)
        given = (lowest, reduction_factor, brackets)
        for (name, low), value in zip(at_least.items(), given, strict=True):
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(
                    f"pruner.{name} must be an integer of at least {low}; got {value!r}"
                )
        self.min_resource: int = lowest
        self.reduction_factor, self.brackets = reduction_factor, brackets

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Returns False: the order ends a trial once it can certainly not be promoted."""
        return False

    def order(self, objectives: Sequence[ObjectiveValue]) -> "AshaOrder":
        """Returns the order in which slots are claimed in a study with these objectives."""
        return AshaOrder(self.min_resource, self.reduction_factor, self.brackets, tuple(objectives))

    def check(self, definition: "Definition") -> list[str]:
        """Returns every reason why the trials of a definition cannot be paused."""
        config, errors = definition.config, []
        ways = "or choose another pruner, such as pruner=successive_halving"
        if config.checkpoints.dir is None:
            errors.append(
                "checkpoints.dir=null: pruner=asha pauses trials, which resume from their "
                f"checkpoints; name a folder, {ways}"
            )
        several = config.objective.folds > 1 or config.objective.seeds > 1
        if several and not definition.trains_networks:
            errors.append(
                "objective.folds or objective.seeds: pruner=asha compares trials epoch by epoch, "
                "and a loop trains its folds and seeds one after the other; take one of each, "
                f"{ways}"
            )
        if not definition.resumes:
            errors.append(
                f"objective._target_={config.objective['_target_']}: pruner=asha resumes "
                "trials from checkpoints, which this objective lacks; call run.keep(net=…) and "
                f"loop over run.epochs(…), {ways}"
            )
        needed = self.min_resource * self.reduction_factor**self.brackets
        if definition.trains_networks and (epochs := config.train.epochs) < needed:
            errors.append(
                f"train.epochs must be at least {needed} with pruner=asha, which is "
                f"pruner.min_resource={self.min_resource} × pruner.reduction_factor="
                f"{self.reduction_factor}, once for each of pruner.brackets={self.brackets}; got "
                f"{epochs}; lower these, {ways}"
            )
        return errors


def first_rung(epochs: int | None) -> int:
    """Returns the epoch of the lowest rung: a thirteenth of all, so that three rungs fit.

    Of 27 epochs the first ranks trials as the last does with a correlation of .28, the second with
    .45 (recorded curves of `studies.rows`). `bench.py search --training-epochs` measures others.

    Args:
        epochs: of a whole training; None if that is not known.
    """
    return max(1, round((epochs or 1) / 13))


def default_pruner(definition: "Definition", epochs: int | None, began: int | None) -> BasePruner:
    """Returns what `pruner=auto` stands for; see `AshaPruner` for the arguments.

    It is `AshaPruner` for networks whose trials can pause. Otherwise, for loops (which show only
    when they run whether they can), and in a study that began without rungs, it is Optuna's median
    pruner, which compares one value; with several objectives no trial is pruned.
    """
    asha = AshaPruner(epochs=epochs, began=began)
    if began != 0 and definition.trains_networks and not asha.check(definition):
        return asha
    median = MedianPruner(n_startup_trials=5, n_warmup_steps=1)
    return median if len(definition.objectives) == 1 else Unpruned()


class Unpruned(NopPruner):
    """Prunes no trial, and says why."""

    note = (
        "no trial is pruned: pruner=auto is the median here, which compares by one value, and "
        "objective.metric names several"
    )


@dataclass(frozen=True)
class AshaOrder:
    """The order in which slots are claimed, from what the stored trials have reported.

    First comes a trial that can no longer be promoted, to be ended; then the best to promote, the
    highest rung first; then a trial that a worker has released, and then a new one. Trials are
    identified by slot: of equal values that of the earlier slot is better. A trial with a value or
    cost that is NaN or unknown is never promoted.
    """

    min_resource: int
    reduction_factor: int
    brackets: int
    objectives: tuple[ObjectiveValue, ...]
    _brackets: dict[int, int] = field(default_factory=dict, init=False, compare=False)

    @property
    def costs(self) -> list[str]:
        return [objective.name for objective in self.objectives[1:]]

    def rungs(self, longest: int) -> list[int]:
        """Returns the steps of all rungs of all brackets, up to the longest step so far."""
        steps = (self.min_resource * self.reduction_factor**n for n in itertools.count())
        return list(itertools.takewhile(lambda step: step <= longest, steps))

    def bracket(self, slot: int) -> int:
        """Returns the bracket of a slot, from 0; bracket b has no rungs below its own lowest."""
        if slot not in self._brackets:
            place = derive(slot, self.brackets) % self._shares[-1]
            self._brackets[slot] = bisect_right(self._shares, place)
        return self._brackets[slot]

    @cached_property
    def _shares(self) -> list[int]:
        """The shares of the brackets, added up: Hyperband's number of trials in each."""
        most = self.brackets - 1
        trials = (
            math.ceil(self.brackets * self.reduction_factor ** (most - b) / (most - b + 1))
            for b in range(self.brackets)
        )
        return list(itertools.accumulate(trials))

    def pauses_at(self, slot: int, before: int, step: int) -> bool:
        """Whether the trial of a slot has reached a rung with a report.

        Args:
            before: the step of its previous report; 0 or less for its first.
        """
        rungs = self.rungs(step)[self.bracket(slot) :]
        return bool(rungs) and rungs[-1] > before

    def choose(self, standings: Sequence[Standing], *, closed: bool = False) -> Next | None:
        """Returns the slot to claim; see `storage.ledger.Order`."""
        over = self.unpromotable(standings, closed=closed)
        if (own := next((s.slot for s in standings if s.state == OWN), None)) is not None:
            return Next(own, own in over)
        if over:
            return Next(min(over), ends_pruned=True)
        if promotable := [] if closed else self.promotable(standings):
            return Next(promotable[0])
        for state in (OPEN,) if closed else (OPEN, UNCLAIMED):
            ready = (s.slot for s in standings if s.state == state and self._waits_at(s) is None)
            if (slot := min(ready, default=None)) is not None:
                return Next(slot)
        return None

    def is_next(self, standings: Sequence[Standing], slot: int, *, closed: bool = False) -> bool:
        """Whether a trial that has reached a rung is the next to promote, and so is not paused.

        Its standing is OWN.
        """
        return not closed and self.promotable(standings)[:1] == [slot]

    def promotable(self, standings: Sequence[Standing]) -> list[int]:
        """Returns the slots of the trials that may be promoted now.

        Of the n trials that have reported at a rung these are the best n / reduction_factor, and at
        least one once no other can reach it, except those that were promoted already or have ended.

        Returns:
            Those at higher rungs first, and at each the best first.
        """
        found, going = [], self._going(standings)
        for (rung, bracket), members in self._rankings(standings).items():
            places = len(members) // self.reduction_factor
            if not places and not self._to_come(going[bracket], members):
                places = 1
            found += [
                (-rung, rank, s.slot)
                for rank, s in enumerate(members[:places])
                if self._waits_at(s) == rung and self._comparable(s, rung)
            ]
        return [slot for *_, slot in sorted(found)]

    def unpromotable(self, standings: Sequence[Standing], *, closed: bool = False) -> set[int]:
        """Returns the slots of paused trials that can no longer be promoted.

        A rung will have at most the trials that have reported there and those that may still reach
        it; a trial behind the best 1 / reduction_factor of all these stays behind. With several
        objectives a later trial may move others behind a third one, and so bring that one forward:
        as long as any may come, only trials that dominate it certainly stay ahead.

        Once the search is closed, no trial is promoted.
        """
        over: set[int] = set()
        going = self._going(standings, closed=closed)
        for (rung, bracket), members in self._rankings(standings).items():
            to_come = self._to_come(going[bracket], members)
            places = max(1, (len(members) + to_come) // self.reduction_factor)
            places = 0 if closed else places
            before = self._before_for_good(members, rung) if to_come else range(len(members))
            late = {
                s.slot
                for count, s in zip(before, members, strict=True)
                if (count >= places or not self._comparable(s, rung)) and self._waits_at(s) == rung
            }
            over |= late
            going[bracket] -= len(late)
        return over

    def _going(self, standings: Sequence[Standing], *, closed: bool = False) -> Counter[int]:
        """Returns how many trials of each bracket still run or wait, or may yet begin."""
        ended = (DONE, UNCLAIMED) if closed else (DONE,)
        return Counter(self.bracket(s.slot) for s in standings if s.state not in ended)

    @staticmethod
    def _to_come(going: int, members: Sequence[Standing]) -> int:
        """Returns how many of a bracket's open trials may yet reach a rung.

        Members of a rung have reached it, and so all rungs below it.
        """
        return going - sum(s.state != DONE for s in members)

    def _rankings(self, standings: Sequence[Standing]) -> dict[tuple[int, int], list[Standing]]:
        """Returns who has reported, by step and bracket, the lowest rungs and the best first."""
        members = defaultdict[tuple[int, int], list[Standing]](list)
        for standing in standings:
            bracket = self.bracket(standing.slot)
            for rung in standing.reports:
                if rung >= self._lowest(bracket):
                    members[rung, bracket].append(standing)
        return {(rung, b): self._ranked(members[rung, b], rung) for rung, b in sorted(members)}

    def _ranked(self, members: Sequence[Standing], rung: int) -> list[Standing]:
        members = sorted(members, key=lambda s: s.slot)
        able = [s for s in members if self._comparable(s, rung)]
        unable = [s for s in members if not self._comparable(s, rung)]
        if len(self.objectives) == 1:
            return [*sorted(able, key=lambda s: self._point(s, rung)), *unable]
        order = rank_points(tuple(self._point(s, rung) for s in able))
        return [*(able[position] for position in order), *unable]

    def _before_for_good(self, members: Sequence[Standing], rung: int) -> list[int]:
        """Returns how many ranked members stay ahead of each, whatever trials still come."""
        if len(self.objectives) == 1:
            return [*range(len(members))]
        able = [self._point(s, rung) for s in members if self._comparable(s, rung)]
        counts = dominance(able).sum(0).tolist() if able else []
        return [*counts, *range(len(able), len(members))]

    def _point(self, standing: Standing, rung: int) -> tuple[float, ...]:
        """Returns the value of a trial at a rung and its costs, of each of which less is better."""
        costs = (standing.costs.get(name, math.nan) for name in self.costs)
        values = (standing.reports[rung].value, *costs)
        return tuple(
            -objective.sign * value
            for objective, value in zip(self.objectives, values, strict=True)
        )

    def _comparable(self, standing: Standing, rung: int) -> bool:
        return not any(map(math.isnan, self._point(standing, rung)))

    def _lowest(self, bracket: int) -> int:
        lowest: int = self.min_resource * self.reduction_factor**bracket
        return lowest

    def _waits_at(self, standing: Standing) -> int | None:
        """Returns the rung at which a trial waits: it was paused at its last report, and no worker
        has it. None if it does not wait, as after its last epoch, which may be at a rung too."""
        if standing.exempt or standing.state not in (OPEN, OWN) or not standing.reports:
            return None
        rung = max(standing.reports)
        at_rung = standing.reports[rung].step == standing.last == standing.paused
        return rung if at_rung and rung >= self._lowest(self.bracket(standing.slot)) else None
