"""ASHA with promotion: a trial waits at each rung until it is among the best there.

A *rung* is a step at which trials are compared. A trial that reaches a rung is paused with a
checkpoint, and its worker takes another. Of n trials that have reached a rung, the best
n / reduction_factor are *promoted*: they resume towards the next rung. Of fewer than
reduction_factor trials the best one is promoted once no other can reach the rung, so that some
trials complete. So a trial is compared with later trials too, and no worker waits for another while
there are trials to begin. With several objectives (the metric, and costs that are known before the
first rung) the best are those of the first fronts; see `argsort_by_fronts`.

A *bracket* is a share of the trials that has its own lowest rung, and in which they are compared. A
trial is known by its *slot*, its row of the budget, and by its *standing*: its state and what it
has reported (`storage.standings`). A search is *closed* once it begins and promotes no more trials.

Sources: Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt, Recht and Talwalkar, "A System for
Massively Parallel Hyperparameter Tuning" (MLSys 2020, arXiv:1810.05934), algorithm 2; Schmucker,
Donini, Zafar, Salinas and Archambeau, "Multi-objective Asynchronous Successive Halving" (2021,
arXiv:2106.12639).
"""

import itertools
import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal

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


Values = tuple[float, ...]  # of a trial, one for each objective; less is better


def compute_dominance(values: Sequence[Sequence[float]]) -> NDArray[np.bool_]:
    """Computes which trials dominate which: as good in all objectives, and better in one.

    Args:
        values: The values of each trial, one for each objective; less is better.

    Returns:
        bool (trials, trials): whether the trial of the row dominates that of the column.
    """
    array = np.asarray(values, float)
    is_no_worse: NDArray[np.bool_] = np.all(array[:, None] <= array[None, :], 2)
    is_as_good_in_turn = is_no_worse.T  # then both have the same values
    dominates: NDArray[np.bool_] = is_no_worse & ~is_as_good_in_turn
    return dominates


@lru_cache(256)  # at most claims nothing has changed at most rungs
def argsort_by_fronts(values: tuple[Values, ...]) -> tuple[int, ...]:
    """Sorts trials by fronts, and returns their positions in `values`, the best first.

    The first front has the trials that no other dominates. The second has those that no other
    dominates once the first front is removed, and so on. Within a front the trial that is best by
    the first objective comes first. Next is always the one that is farthest from all before it (the
    paper's epsilon-net), so that even a few lie all along the front. Of equal trials the earlier
    one comes first.
    """
    if not values:
        return ()
    array = np.asarray(values, float)
    coordinates = _scale_ranks(array)
    dominates = compute_dominance(values)
    # How many of the trials that are not sorted yet dominate each; -1 for a trial that is sorted.
    dominator_counts = dominates.sum(0)
    order: list[int] = []
    while len(order) < len(array):
        front = np.flatnonzero(dominator_counts == 0)  # the positions of its trials
        dominator_counts = dominator_counts - dominates[front].sum(0)
        dominator_counts[front] = -1
        best = int(np.argmin(array[front, 0]))
        for index in _argsort_spread_out(coordinates[front], best):
            order.append(int(front[index]))
    return tuple(order)


def _scale_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the rank of each trial by each objective, scaled to [0, 1], (trials, objectives).

    They are the coordinates between which distances are measured: costs of networks themselves
    differ by orders of magnitude.
    """
    columns = []
    for column in values.T:
        _, ranks_in_column = np.unique(column, return_inverse=True)
        columns.append(ranks_in_column)
    ranks = np.stack(columns, 1)
    scaled: NDArray[np.float64] = ranks / np.maximum(ranks.max(0), 1)
    return scaled


def _argsort_spread_out(points: NDArray[np.float64], first: int) -> list[int]:
    """Sorts points from a first one on, each the farthest from all before it.

    Args:
        points: float (points, coordinates).
        first: The index of the first one.

    Returns:
        The indices of all points, in this order.
    """
    order = [first]
    # The squared distance of each point to the nearest one that is in the order.
    distances = np.full(len(points), np.inf)
    while len(order) < len(points):
        differences = points - points[order[-1]]
        distances = np.minimum(distances, (differences * differences).sum(1))
        distances[order] = -1.0  # so that none of these is the farthest
        order.append(int(np.argmax(distances)))
    return order


class AshaPruner(BasePruner):
    """Pauses trials at rungs and promotes the best; see the module.

    The rungs of bracket b are at the steps min_resource × reduction_factor^(b + i), i = 0, 1, ….
    The bracket of a trial follows from its slot. Brackets have the shares of Hyperband, by which
    they cost about as much each (Li, Jamieson, DeSalvo, Rostamizadeh and Talwalkar, JMLR 2018,
    arXiv:1603.06560).

    Args:
        min_resource: The epoch of the lowest rung. With auto a new study gets `first_rung`, and a
            study that has begun keeps its own.
        reduction_factor: One of this number of trials at a rung is promoted.
        brackets: The number of brackets; a single one is ASHA as published.
        epochs: The number of epochs of a whole training; None if it is not known.
        began: The epoch of the lowest rung as the study began, 0 without rungs; None for a new
            study.
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
        if min_resource != "auto":
            lowest_rung = min_resource
        elif began is not None:
            lowest_rung = max(1, began)
        else:
            lowest_rung = first_rung(epochs)
        self.min_resource = _check_integer("min_resource", lowest_rung, least=1)
        self.reduction_factor = _check_integer("reduction_factor", reduction_factor, least=2)
        self.brackets = _check_integer("brackets", brackets, least=1)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Returns False: the order ends a trial once it can certainly not be promoted."""
        return False

    def make_order(self, objectives: Sequence[ObjectiveValue]) -> "AshaOrder":
        """Returns the order in which slots are claimed in a study with these objectives."""
        return AshaOrder(self.min_resource, self.reduction_factor, self.brackets, tuple(objectives))

    def check(self, definition: "Definition") -> list[str]:
        """Returns every reason why the trials of a definition cannot be paused."""
        config = definition.config
        errors = []
        fix = "or choose another pruner, such as pruner=successive_halving"
        if config.checkpoints.dir is None:
            errors.append(
                "checkpoints.dir=null: pruner=asha pauses trials, which resume from their "
                f"checkpoints; name a folder, {fix}"
            )
        has_several_trainings = config.objective.folds > 1 or config.objective.seeds > 1
        if has_several_trainings and not definition.trains_networks:
            errors.append(
                "objective.folds or objective.seeds: pruner=asha compares trials epoch by epoch, "
                "and a loop trains its folds and seeds one after the other; take one of each, "
                f"{fix}"
            )
        if not definition.resumes:
            errors.append(
                f"objective._target_={config.objective._target_}: pruner=asha resumes "
                "trials from checkpoints, which this objective lacks; call run.keep(net=…) and "
                f"loop over run.epochs(…), {fix}"
            )
        # The lowest rung of the last bracket, and one rung more, to which it promotes.
        needed_epochs = self.min_resource * self.reduction_factor**self.brackets
        if definition.trains_networks and config.train.epochs < needed_epochs:
            errors.append(
                f"train.epochs must be at least {needed_epochs} with pruner=asha, which is "
                f"pruner.min_resource={self.min_resource} × pruner.reduction_factor="
                f"{self.reduction_factor}, once for each of pruner.brackets={self.brackets}; got "
                f"{config.train.epochs}; lower these, {fix}"
            )
        return errors


def _check_integer(name: str, value: object, *, least: int) -> int:
    """Returns a setting of the pruner; ValueError unless it is an integer from `least` on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"pruner.{name} must be an integer of at least {least}; got {value!r}")
    return value


def first_rung(epochs: int | None) -> int:
    """Returns the epoch of the lowest rung: a thirteenth of all, so that three rungs fit.

    In trainings of 27 epochs the ranks of trials after the first epoch correlate with the last
    ones by .28, and after the second epoch by .45 (recorded curves of `studies.rows`).
    `bench.py search --training-epochs` measures others.

    Args:
        epochs: The number of epochs of a whole training; None if it is not known.
    """
    if epochs is None:
        return 1
    return max(1, round(epochs / 13))


def default_pruner(definition: "Definition", epochs: int | None, began: int | None) -> BasePruner:
    """Returns what `pruner=auto` stands for; see `AshaPruner` for the arguments.

    It is `AshaPruner` for networks whose trials can pause. Otherwise, for loops (which show only
    when they run whether they can), and in a study that began without rungs, it is Optuna's median
    pruner, which compares one value; with several objectives no trial is pruned.
    """
    asha = AshaPruner(epochs=epochs, began=began)
    began_without_rungs = began == 0
    trials_can_pause = definition.trains_networks and not asha.check(definition)
    if trials_can_pause and not began_without_rungs:
        return asha
    if len(definition.objectives) > 1:
        return Unpruned()
    return MedianPruner(n_startup_trials=5, n_warmup_steps=1)


class Unpruned(NopPruner):
    """Prunes no trial, and says why."""

    note = (
        "no trial is pruned: pruner=auto is the median here, which compares by one value, and "
        "objective.metric names several"
    )


@dataclass(frozen=True)
class RungRanking:
    """The trials of a bracket that have reported at one of its rungs.

    Attributes:
        step: The step of the rung.
        bracket: The number of the bracket.
        members: The standings of these trials, the best first.
    """

    step: int
    bracket: int
    members: Sequence[Standing]


@dataclass(frozen=True)
class AshaOrder:
    """The order in which slots are claimed, from what the stored trials have reported.

    First comes a trial that can no longer be promoted, to be ended; then the best to promote, the
    highest rung first; then a trial that a worker has released, and then a new one. Of equal trials
    that of the earlier slot is better. A trial with a value or cost that is NaN or unknown cannot
    be compared, and is never promoted.
    """

    min_resource: int
    reduction_factor: int
    brackets: int
    objectives: tuple[ObjectiveValue, ...]
    _bracket_by_slot: dict[int, int] = field(default_factory=dict, init=False, compare=False)

    @property
    def costs(self) -> list[str]:
        """The names of the objectives after the first, which are costs."""
        return [objective.name for objective in self.objectives[1:]]

    def rungs(self, longest: int) -> list[int]:
        """Returns the steps of all rungs of all brackets, up to the longest step so far."""
        rungs = []
        step = self.min_resource
        while step <= longest:
            rungs.append(step)
            step *= self.reduction_factor
        return rungs

    def find_bracket(self, slot: int) -> int:
        """Returns the bracket of a slot, from 0; bracket b has no rungs below its own lowest.

        A number that follows from the slot, but looks random, is drawn for it. Each bracket has as
        many of these numbers as its share.
        """
        if slot not in self._bracket_by_slot:
            number = derive(slot, self.brackets) % self._cumulative_shares[-1]
            self._bracket_by_slot[slot] = bisect_right(self._cumulative_shares, number)
        return self._bracket_by_slot[slot]

    @cached_property
    def _cumulative_shares(self) -> list[int]:
        """The share of each bracket and all before it.

        A share is Hyperband's number of trials in a bracket with r rungs, of `brackets` at most:
        brackets / r × reduction_factor^(r - 1).
        """
        shares = []
        for bracket in range(self.brackets):
            rungs = self.brackets - bracket
            trials = self.brackets * self.reduction_factor ** (rungs - 1) / rungs
            shares.append(math.ceil(trials))
        return list(itertools.accumulate(shares))

    def pauses_at(self, slot: int, previous_step: int, step: int) -> bool:
        """Returns whether the trial of a slot has reached a rung with a report.

        Args:
            previous_step: The step of its previous report; 0 or less for its first.
            step: The step of its report.
        """
        bracket = self.find_bracket(slot)
        reached_rungs = self.rungs(step)[bracket:]
        return bool(reached_rungs) and reached_rungs[-1] > previous_step

    def choose(self, standings: Sequence[Standing], *, closed: bool = False) -> Next | None:
        """Returns the slot to claim; see `storage.standings.Order`."""
        unpromotable = self.find_unpromotable(standings, closed=closed)
        for standing in standings:
            # A worker holds a trial already if the reply to its claim was lost.
            if standing.state == OWN:
                return Next(standing.slot, ends_pruned=standing.slot in unpromotable)
        if unpromotable:
            return Next(min(unpromotable), ends_pruned=True)
        if not closed:
            promotable = self.find_promotable(standings)
            if promotable:
                return Next(promotable[0])
        slot = self._find_first(standings, OPEN)
        if slot is None and not closed:
            slot = self._find_first(standings, UNCLAIMED)
        if slot is None:
            return None
        return Next(slot)

    def _find_first(self, standings: Sequence[Standing], state: str) -> int | None:
        """Returns the first slot in a state whose trial does not wait at a rung."""
        for standing in sorted(standings, key=lambda standing: standing.slot):
            if standing.state == state and self._waits_at(standing) is None:
                return standing.slot
        return None

    def is_next(self, standings: Sequence[Standing], slot: int, *, closed: bool = False) -> bool:
        """Returns whether a worker's trial, which has just reached a rung, is the next to promote.

        Then the worker continues it at once, instead of pausing it and taking another. Among the
        standings that of the slot has the state OWN.
        """
        if closed:
            return False
        return self.find_promotable(standings)[:1] == [slot]

    def find_promotable(self, standings: Sequence[Standing]) -> list[int]:
        """Returns the slots of the trials that may be promoted now.

        The best n / reduction_factor of the n trials that have reported at a rung may be; if that
        is none, the best one may be once no other can reach the rung. A trial among them that was
        promoted already, or has ended, is left out: its place at the rung is taken.

        Returns:
            The slots of trials at higher rungs first, and at each rung the best first.
        """
        candidates = []
        open_counts = self._count_open(standings)
        for ranking in self._rank_rungs(standings):
            step = ranking.step
            places = len(ranking.members) // self.reduction_factor
            if places == 0 and _count_coming(open_counts, ranking) == 0:
                places = 1
            for rank, standing in enumerate(ranking.members[:places]):
                waits_here = self._waits_at(standing) == step
                if waits_here and self._is_comparable(standing, step):
                    # Two brackets may have rungs at one step: of equal ranks the earlier slot wins.
                    sort_key = (-step, rank, standing.slot)
                    candidates.append(sort_key)
        candidates.sort()
        return [slot for _, _, slot in candidates]

    def find_unpromotable(self, standings: Sequence[Standing], *, closed: bool = False) -> set[int]:
        """Returns the slots of paused trials that can no longer be promoted.

        A rung will have at most the trials that have reported there and those that may still reach
        it; a trial behind the best 1 / reduction_factor of all these stays behind. The rungs are
        visited from the lowest: a trial that can no longer be promoted at one cannot reach the
        next.

        Once the search is closed, no trial is promoted.
        """
        unpromotable: set[int] = set()
        open_counts = self._count_open(standings, closed=closed)
        for ranking in self._rank_rungs(standings):
            coming = _count_coming(open_counts, ranking)
            if closed:
                places = 0
            else:
                places = max(1, (len(ranking.members) + coming) // self.reduction_factor)
            counts_ahead = self._count_certainly_ahead(ranking, coming)
            for count_ahead, standing in zip(counts_ahead, ranking.members, strict=True):
                waits_here = self._waits_at(standing) == ranking.step
                stays_behind = count_ahead >= places
                if not waits_here:
                    continue
                if stays_behind or not self._is_comparable(standing, ranking.step):
                    unpromotable.add(standing.slot)
                    open_counts[ranking.bracket] -= 1  # it does not come to the next rung
        return unpromotable

    def _count_open(self, standings: Sequence[Standing], *, closed: bool = False) -> Counter[int]:
        """Returns how many trials of each bracket still run or wait, or may yet begin."""
        counts = Counter[int]()
        for standing in standings:
            has_ended = standing.state == DONE
            cannot_begin = closed and standing.state == UNCLAIMED
            if not has_ended and not cannot_begin:
                counts[self.find_bracket(standing.slot)] += 1
        return counts

    def _rank_rungs(self, standings: Sequence[Standing]) -> list[RungRanking]:
        """Returns the ranking of each rung that trials have reached, the lowest first."""
        members = defaultdict[tuple[int, int], list[Standing]](list)
        for standing in standings:
            bracket = self.find_bracket(standing.slot)
            lowest = self._lowest_rung(bracket)
            for step in standing.reports:
                if step >= lowest:
                    members[step, bracket].append(standing)
        rankings = []
        for step, bracket in sorted(members):
            best_first = self._sort_members(members[step, bracket], step)
            rankings.append(RungRanking(step, bracket, best_first))
        return rankings

    def _sort_members(self, members: Sequence[Standing], rung: int) -> list[Standing]:
        """Sorts the trials at a rung, the best first; those that cannot be compared are last."""
        comparable = []
        incomparable = []
        for standing in sorted(members, key=lambda standing: standing.slot):
            if self._is_comparable(standing, rung):
                comparable.append(standing)
            else:
                incomparable.append(standing)
        return [*self._sort_comparable(comparable, rung), *incomparable]

    def _sort_comparable(self, standings: Sequence[Standing], rung: int) -> list[Standing]:
        """Sorts trials by their values at a rung, the best first; equal ones stay in order."""
        if len(self.objectives) == 1:
            return sorted(standings, key=lambda standing: self._values(standing, rung))
        values = tuple(self._values(standing, rung) for standing in standings)
        return [standings[position] for position in argsort_by_fronts(values)]

    def _count_certainly_ahead(self, ranking: RungRanking, coming: int) -> list[int]:
        """Returns how many trials stay ahead of each at a rung, whatever trials still come.

        With one objective, or if none still comes, these are all that are ahead now. With several,
        a later trial may push others into later fronts, behind a third one, which so moves forward.
        Only the trials that dominate a trial certainly stay ahead of it.

        Args:
            coming: The number of trials that may still reach the rung.

        Returns:
            A number for each member of the ranking.
        """
        members = ranking.members
        ahead_now = list(range(len(members)))
        if coming == 0 or len(self.objectives) == 1:
            return ahead_now
        values = []
        for standing in members:
            if self._is_comparable(standing, ranking.step):
                values.append(self._values(standing, ranking.step))
        if not values:
            return ahead_now
        dominators: list[int] = compute_dominance(values).sum(0).tolist()
        # The members that cannot be compared are the last ones, and stay there.
        return [*dominators, *ahead_now[len(dominators) :]]

    def _values(self, standing: Standing, rung: int) -> Values:
        """Returns the value of a trial at a rung and its costs, with signs by which less is better.

        A cost that is not known is NaN.
        """
        values = [standing.reports[rung].value]
        for name in self.costs:
            values.append(standing.costs.get(name, math.nan))
        signed_values = []
        for objective, value in zip(self.objectives, values, strict=True):
            signed_values.append(-objective.sign * value)
        return tuple(signed_values)

    def _is_comparable(self, standing: Standing, rung: int) -> bool:
        return not any(math.isnan(value) for value in self._values(standing, rung))

    def _lowest_rung(self, bracket: int) -> int:
        lowest: int = self.min_resource * self.reduction_factor**bracket
        return lowest

    def _waits_at(self, standing: Standing) -> int | None:
        """Returns the rung at which a trial waits: it was paused there, and no other worker has it.

        It is None for a trial that does not wait. One that has reported its last epoch was not
        paused, although that epoch may be a rung too.
        """
        if standing.exempt or standing.state not in (OPEN, OWN) or not standing.reports:
            return None
        rung = max(standing.reports)
        report = standing.reports[rung]
        was_paused_last = standing.last == report.step and standing.paused == report.step
        is_in_bracket = rung >= self._lowest_rung(self.find_bracket(standing.slot))
        if was_paused_last and is_in_bracket:
            return rung
        return None


def _count_coming(open_counts: Mapping[int, int], ranking: RungRanking) -> int:
    """Returns how many open trials of a bracket may yet reach a rung.

    These are all but the members of the rung, which have reached it.

    Args:
        open_counts: The number of open trials by bracket, see `AshaOrder._count_open`.
    """
    open_members = sum(standing.state != DONE for standing in ranking.members)
    return open_counts[ranking.bracket] - open_members
