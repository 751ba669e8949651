"""ASHA with promotion: a trial waits at each rung until it is among the best there.

A *rung* is a step at which trials are compared. A trial that reaches a rung is paused with a
checkpoint, and its worker takes another. Of n trials that have reached a rung, the best
n / reduction_factor are *promoted*: they resume towards the next rung. Of fewer than
reduction_factor trials the best one is promoted once no other can reach the rung, so that some
trials complete. So a trial is compared with later trials too, and no worker waits for another while
there are trials to begin. With several objectives (the metric, and costs that are known before the
first rung) the best are those of the first fronts; see `argsort_by_fronts`.

A *bracket* is a share of the trials that has its own lowest rung, and in which they are compared. A
*slot* is the row of the budget table that a trial belongs to, also before it begins. A *standing*
says how far the trial of a slot has come: its state and what it has reported (`storage.standings`).
A search is *closed* once it makes and promotes no more trials: those that wait at a rung are then
ended. Those that a worker has released are still resumed, and those that are queued, such as warm
starts, still begin.

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
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial

from studyloom.metrics import ObjectiveValue
from studyloom.seeds import derive
from studyloom.storage.standings import DONE, OPEN, OWN, UNCLAIMED, SlotChoice, Standing

if TYPE_CHECKING:  # torch takes two seconds, which a proposer need not wait for
    from studyloom.definition.definition import Definition


Values = tuple[float, ...]  # of a trial, one for each objective; less is better


def compute_dominance(values: Sequence[Sequence[float]]) -> NDArray[np.bool_]:
    """Computes which trials dominate which: no worse in any objective, and better in one.

    Args:
        values: The values of each trial, one for each objective; less is better.

    Returns:
        bool (trials, trials): whether the trial of the row dominates that of the column.
    """
    array = np.asarray(values, float)  # (trials, objectives)
    # Whether the trial of the row is no worse than that of the column in any objective.
    is_no_worse: NDArray[np.bool_] = np.all(array[:, None] <= array[None, :], axis=2)
    have_same_values = is_no_worse & is_no_worse.T
    dominates: NDArray[np.bool_] = is_no_worse & ~have_same_values
    return dominates


@lru_cache(256)  # since the last claim, the values at most rungs are the same
def argsort_by_fronts(values: tuple[Values, ...]) -> tuple[int, ...]:
    """Sorts trials by Pareto fronts, and returns their positions in `values`, the best first.

    The first front has the trials that no other dominates. The second has those that no other
    dominates once the first front is removed, and so on. A front begins with the trial that is best
    by the first objective. Each next one is the farthest from those before it (the paper's
    epsilon-net), so that even the first few lie all along the front. Of equal trials the earlier
    one comes first.

    Args:
        values: The values of each trial, one for each objective; less is better.
    """
    if not values:
        return ()
    array = np.asarray(values, float)  # (trials, objectives)
    coordinates = _scale_ranks(array)
    dominates = compute_dominance(values)
    dominator_counts = dominates.sum(axis=0)  # how many unsorted trials dominate each trial
    sorted_positions: list[int] = []
    while len(sorted_positions) < len(array):
        front = np.flatnonzero(dominator_counts == 0)  # the positions of its trials
        dominator_counts -= dominates[front].sum(axis=0)
        dominator_counts[front] = -1  # they are sorted now, and in no later front
        best = int(np.argmin(array[front, 0]))
        for index in _argsort_spread_out(coordinates[front], first=best):
            sorted_positions.append(int(front[index]))
    return tuple(sorted_positions)


def _scale_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the rank of each trial by each objective, scaled to [0, 1].

    Distances between trials are measured in these ranks, since the values themselves, such as the
    number of a network's parameters, differ by orders of magnitude.

    Args:
        values: (trials, objectives).

    Returns:
        (trials, objectives); 0 for the least value of an objective, and 1 for the greatest.
    """
    ranks_by_objective = []
    for column in values.T:
        _, ranks = np.unique(column, return_inverse=True)  # equal values have equal ranks
        ranks_by_objective.append(ranks)
    all_ranks = np.stack(ranks_by_objective, axis=1)
    highest_ranks = np.maximum(all_ranks.max(axis=0), 1)  # not 0, where all values are equal
    scaled: NDArray[np.float64] = all_ranks / highest_ranks
    return scaled


def _argsort_spread_out(points: NDArray[np.float64], first: int) -> list[int]:
    """Sorts points so that each is the one farthest from all before it.

    Args:
        points: float (points, coordinates).
        first: The index of the point to begin with.

    Returns:
        The indices of all points, in this order.
    """
    order = [first]
    # The squared distance of each point to the nearest point in the order.
    distances = np.full(len(points), np.inf)
    while len(order) < len(points):
        differences = points - points[order[-1]]
        distances_to_last = (differences * differences).sum(axis=1)
        distances = np.minimum(distances, distances_to_last)
        distances[order] = -1.0  # a point in the order is never the farthest
        order.append(int(np.argmax(distances)))
    return order


class AshaPruner(BasePruner):
    """Pauses trials at rungs and promotes the best; see the module.

    The rungs of bracket b are at the steps min_resource × reduction_factor^(b + i), i = 0, 1, ….
    The bracket of a trial follows from its slot. Brackets have the shares of Hyperband, by which
    they cost about as much each (Li, Jamieson, DeSalvo, Rostamizadeh and Talwalkar, JMLR 2018,
    arXiv:1603.06560).

    Attributes:
        demands_checkpoints: Whether a trial fails that cannot resume from a checkpoint.

    Args:
        min_resource: The epoch of the lowest rung. With auto a new study gets `first_rung`, and a
            study that has begun keeps its own.
        reduction_factor: One of this number of trials at a rung is promoted.
        brackets: The number of brackets; a single one is ASHA as published.
        epochs: The number of epochs of a whole training; None if it is not known.
        stored_rung: The epoch of the lowest rung that the study has stored, 0 if it has no rungs;
            None for a new study.
    """

    demands_checkpoints: ClassVar[bool] = True

    def __init__(
        self,
        min_resource: int | Literal["auto"] = "auto",
        reduction_factor: int = 3,
        brackets: int = 1,
        *,
        epochs: int | None = None,
        stored_rung: int | None = None,
    ) -> None:
        if min_resource != "auto":
            lowest_rung = min_resource
        elif stored_rung is not None:
            lowest_rung = max(1, stored_rung)
        else:
            lowest_rung = first_rung(epochs)
        self.min_resource = _check_integer("min_resource", lowest_rung, least=1)
        self.reduction_factor = _check_integer("reduction_factor", reduction_factor, least=2)
        self.brackets = _check_integer("brackets", brackets, least=1)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Returns False: `AshaOrder` ends trials, once they can certainly not be promoted."""
        return False

    def make_order(self, objectives: Sequence[ObjectiveValue]) -> "AshaOrder":
        """Returns the order in which slots are claimed in a study with these objectives."""
        return AshaOrder(self.min_resource, self.reduction_factor, self.brackets, tuple(objectives))

    def check(self, definition: "Definition") -> list[str]:
        """Returns every reason why the trials of a definition cannot be paused at rungs."""
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
        # Rung i, from 0, is at epoch min_resource × reduction_factor^i. The lowest rung of the last
        # bracket is rung brackets - 1. It needs one more, to which it promotes: rung `brackets`.
        needed_epochs = self.min_resource * self.reduction_factor**self.brackets
        # The section `train` is for networks; a custom loop may have another number of epochs.
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
    """Returns the epoch of the lowest rung: a thirteenth of all.

    So three rungs fit: at 1/13, 3/13 and 9/13 of the epochs.

    An earlier rung would compare trials too soon: in trainings of 27 epochs their ranks after the
    first epoch correlate with the final ranks by .28, and after the second by .45 (recorded curves
    of `studies.rows`). `bench.py search --training-epochs` measures others.

    Args:
        epochs: The number of epochs of a whole training; None if it is not known.
    """
    if epochs is None:
        return 1
    return max(1, round(epochs / 13))


@dataclass(frozen=True)
class RungRanking:
    """The trials of a bracket that have reported at one of its rungs.

    Attributes:
        step: The step of the rung.
        bracket: The number of the bracket.
        standings: How far these trials have come, the best first.
    """

    step: int
    bracket: int
    standings: Sequence[Standing]


class _Candidate(NamedTuple):
    """A paused trial that may be promoted; candidates sort in the order of their promotion.

    Attributes:
        negative_step: The step of its rung, negative, so that higher rungs come first.
        rank: Its rank at the rung, from 0 for the best.
        slot: Its slot. Two brackets may have rungs at one step: of equal ranks the earlier slot
            comes first.
    """

    negative_step: int
    rank: int
    slot: int


@dataclass(frozen=True)
class AshaOrder:
    """The order in which slots are claimed, from what the stored trials have reported.

    First comes a trial that can no longer be promoted, to be ended; then the best to promote, the
    highest rung first; then a trial that a worker has released or that is queued, and then a new
    one. Of equal trials that of the earlier slot is better. A trial with a value or cost that is
    NaN or unknown cannot be compared, and is never promoted.
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
        """Returns the bracket of a trial, from 0: the trials with which it is compared.

        Bracket b lacks the b lowest rungs. The bracket is drawn at random, with the shares of the
        brackets as probabilities. The seed is the trial's slot, its row of the budget table, so
        that every worker draws the same.
        """
        if slot not in self._bracket_by_slot:
            total_share = self._cumulative_shares[-1]
            number = derive(slot, self.brackets) % total_share
            self._bracket_by_slot[slot] = bisect_right(self._cumulative_shares, number)
        return self._bracket_by_slot[slot]

    @cached_property
    def _cumulative_shares(self) -> list[int]:
        """The share of each bracket, added to the shares of all brackets before it.

        The share of a bracket with r rungs is the number of trials that Hyperband gives it:
        brackets / r × reduction_factor^(r - 1). The first bracket has as many rungs as there are
        brackets, and each next one has one rung less.
        """
        shares = []
        for bracket in range(self.brackets):
            rung_count = self.brackets - bracket
            share = self.brackets * self.reduction_factor ** (rung_count - 1) / rung_count
            shares.append(math.ceil(share))
        return list(itertools.accumulate(shares))

    def pauses_at(self, slot: int, previous_step: int, step: int) -> bool:
        """Returns whether the trial of a slot has reached a rung with its report at a step.

        It reaches a rung with its first report at the rung's step or, if it does not report at each
        step, after it. A report beyond several rungs reaches all of them: the trial is compared at
        each of them, and waits at the highest.

        Args:
            slot: The slot of the trial, which decides its bracket and so its rungs.
            previous_step: The step of its previous report; 0 or less for its first.
            step: The step of its report.
        """
        bracket = self.find_bracket(slot)
        reached_rungs = self.rungs(step)[bracket:]  # bracket b lacks the b lowest rungs
        return bool(reached_rungs) and reached_rungs[-1] > previous_step

    def choose(self, standings: Sequence[Standing], *, closed: bool = False) -> SlotChoice | None:
        """Returns the slot whose trial a worker takes next; None if it must wait, or is done.

        A trial that this worker holds already comes first: the database may have noted its claim,
        and its reply was lost. Then comes a trial that can no longer be promoted, which the worker
        only ends as pruned; then the best one to promote; then one that another worker has
        released, or one that is queued, such as a warm start; and then a new one.

        Args:
            standings: How far the trial of each slot has come. The state of a trial is OWN if this
                worker holds it, OPEN if it has begun or is queued and no worker holds it, and
                UNCLAIMED if the slot has no trial yet.
            closed: Whether the search has ended, so that no trial is made or promoted.
        """
        unpromotable = self.find_unpromotable(standings, closed=closed)
        for standing in standings:
            if standing.state == OWN:
                ends_pruned = standing.slot in unpromotable
                return SlotChoice(standing.slot, ends_pruned=ends_pruned)
        if unpromotable:
            return SlotChoice(min(unpromotable), ends_pruned=True)
        if not closed:
            promotable = self.find_promotable(standings)
            if promotable:
                return SlotChoice(promotable[0])
        slot = self._find_first_slot(standings, OPEN)
        if slot is None and not closed:
            slot = self._find_first_slot(standings, UNCLAIMED)
        if slot is None:
            return None
        return SlotChoice(slot)

    def _find_first_slot(self, standings: Sequence[Standing], state: str) -> int | None:
        """Returns the first slot in a state (such as OPEN) whose trial does not wait at a rung."""
        for standing in sorted(standings, key=lambda standing: standing.slot):
            waits_at_rung = self._find_waiting_rung(standing) is not None
            if standing.state == state and not waits_at_rung:
                return standing.slot
        return None

    def is_next(self, standings: Sequence[Standing], slot: int, *, closed: bool = False) -> bool:
        """Returns whether a trial that has just reached a rung is the next to promote.

        Its report has stored it as paused. If it is the next, its worker removes that mark and
        continues it, instead of taking another.

        Args:
            standings: How far the trial of each slot has come. The state of this trial is OWN, and
                `Standing.paused` is already the step of its report at the rung.
            slot: The slot of the trial.
            closed: Whether the search has ended, so that no trial is promoted.
        """
        if closed:
            return False
        promotable = self.find_promotable(standings)
        return bool(promotable) and promotable[0] == slot

    def find_promotable(self, standings: Sequence[Standing]) -> list[int]:
        """Returns the slots of the paused trials that may be promoted now, the next one first.

        Of n trials that have reported at a rung, the best n // reduction_factor may be promoted; if
        that is none, the best one may be once no other trial can reach the rung. Trials among these
        best that were promoted before, or have ended, are not replaced by others.

        Returns:
            The slots of trials at higher rungs first, and at each rung the best first.
        """
        candidates: list[_Candidate] = []
        open_counts = self._count_open_by_bracket(standings)
        for ranking in self._rank_rungs(standings):
            promotion_count = len(ranking.standings) // self.reduction_factor
            if promotion_count == 0 and _count_possible_arrivals(ranking, open_counts) == 0:
                promotion_count = 1
            for rank, standing in enumerate(ranking.standings[:promotion_count]):
                waits_here = self._find_waiting_rung(standing) == ranking.step
                if waits_here and self._is_comparable(standing, ranking.step):
                    candidates.append(_Candidate(-ranking.step, rank, standing.slot))
        return [candidate.slot for candidate in sorted(candidates)]

    def find_unpromotable(self, standings: Sequence[Standing], *, closed: bool = False) -> set[int]:
        """Returns the slots of paused trials that can no longer be promoted, whatever others do.

        Let reduction_factor be 3, and let 4 trials have reported at a rung that 5 more may reach.
        At most (4 + 5) // 3 = 3 trials are promoted there, so that a trial with 3 certainly ahead
        of it is not. A trial that is not promoted cannot reach higher rungs, which leaves fewer
        promotions there: so the lowest rung comes first.

        Args:
            standings: How far the trial of each slot has come.
            closed: Whether the search has ended, so that no trial is promoted.
        """
        unpromotable: set[int] = set()
        open_counts = self._count_open_by_bracket(standings, closed=closed)
        for ranking in self._rank_rungs(standings):
            arrival_count = _count_possible_arrivals(ranking, open_counts)
            most_trials = len(ranking.standings) + arrival_count
            most_promotions = max(1, most_trials // self.reduction_factor)
            if closed:
                most_promotions = 0
            counts_ahead = self._count_certainly_ahead(ranking, arrival_count)
            for standing, count_ahead in zip(ranking.standings, counts_ahead, strict=True):
                if self._find_waiting_rung(standing) != ranking.step:
                    continue  # it was promoted or has ended, or a worker trains it
                is_comparable = self._is_comparable(standing, ranking.step)
                if not is_comparable or count_ahead >= most_promotions:
                    unpromotable.add(standing.slot)
                    open_counts[ranking.bracket] -= 1  # it cannot reach the higher rungs
        return unpromotable

    def _count_open_by_bracket(
        self, standings: Sequence[Standing], *, closed: bool = False
    ) -> Counter[int]:
        """Returns how many trials of each bracket run, wait or may yet begin.

        Args:
            standings: How far the trial of each slot has come.
            closed: Whether the search has ended, so that no slot gets a trial any more.
        """
        counts = Counter[int]()
        for standing in standings:
            has_ended = standing.state == DONE
            cannot_begin = closed and standing.state == UNCLAIMED
            if not has_ended and not cannot_begin:
                bracket = self.find_bracket(standing.slot)
                counts[bracket] += 1
        return counts

    def _rank_rungs(self, standings: Sequence[Standing]) -> list[RungRanking]:
        """Ranks the trials at each rung that any trial has reached, the lowest rung first.

        Trials of different brackets are not compared.
        """
        standings_at_rungs = defaultdict[tuple[int, int], list[Standing]](list)
        for standing in standings:
            bracket = self.find_bracket(standing.slot)
            lowest_rung = self._find_lowest_rung(bracket)
            for step in standing.reports:
                if step >= lowest_rung:
                    standings_at_rungs[step, bracket].append(standing)
        rankings = []
        for step, bracket in sorted(standings_at_rungs):
            best_first = self._sort_at_rung(standings_at_rungs[step, bracket], step)
            rankings.append(RungRanking(step, bracket, best_first))
        return rankings

    def _sort_at_rung(self, standings: Sequence[Standing], rung: int) -> list[Standing]:
        """Sorts trials by their values at a rung, the best first; those with NaN come last.

        With several objectives they are sorted by Pareto fronts. Of equal trials the one of the
        earlier slot comes first.
        """
        comparable = []
        incomparable = []
        for standing in sorted(standings, key=lambda standing: standing.slot):
            if self._is_comparable(standing, rung):
                comparable.append(standing)
            else:
                incomparable.append(standing)
        if len(self.objectives) == 1:
            best_first = sorted(comparable, key=lambda standing: self._read_values(standing, rung))
        else:
            values = tuple(self._read_values(standing, rung) for standing in comparable)
            best_first = [comparable[position] for position in argsort_by_fronts(values)]
        return best_first + incomparable

    def _count_certainly_ahead(self, ranking: RungRanking, arrival_count: int) -> list[int]:
        """Returns how many trials stay ahead of each trial at a rung, whatever trials still arrive.

        With one objective these are all that are ahead now. With several, a trial that arrives may
        move others to later fronts, and so behind trials that they were ahead of. Only those that
        dominate a trial certainly stay ahead of it.

        Args:
            ranking: The trials that have reported at the rung.
            arrival_count: How many more trials may reach it.

        Returns:
            A count for each trial of the ranking, in its order.
        """
        standings = ranking.standings
        ahead_now = list(range(len(standings)))
        if arrival_count == 0 or len(self.objectives) == 1:
            return ahead_now
        values = []  # of the comparable trials, which come first in a ranking
        for standing in standings:
            if self._is_comparable(standing, ranking.step):
                values.append(self._read_values(standing, ranking.step))
        if not values:
            return ahead_now
        dominator_counts: list[int] = compute_dominance(values).sum(axis=0).tolist()
        ahead_of_incomparable = ahead_now[len(values) :]  # they are last, and stay there
        return dominator_counts + ahead_of_incomparable

    def _read_values(self, standing: Standing, rung: int) -> Values:
        """Returns a trial's value at a rung and its costs, one for each objective; less is better.

        The values of objectives that are maximized have the opposite sign. A cost that is not known
        is NaN.
        """
        values = [standing.reports[rung].value]
        for name in self.costs:
            values.append(standing.costs.get(name, math.nan))
        signed_values = []
        for objective, value in zip(self.objectives, values, strict=True):
            signed_values.append(-objective.sign * value)
        return tuple(signed_values)

    def _is_comparable(self, standing: Standing, rung: int) -> bool:
        return not any(math.isnan(value) for value in self._read_values(standing, rung))

    def _find_lowest_rung(self, bracket: int) -> int:
        lowest_rung: int = self.min_resource * self.reduction_factor**bracket
        return lowest_rung

    def _find_waiting_rung(self, standing: Standing) -> int | None:
        """Returns the rung at which a trial was paused and waits; None if it does not wait.

        A trial waits once its report at a rung has stored that it is paused: while the worker that
        reads the standing still holds it (OWN), and after it was released (OPEN). It does not wait
        if it has ended, if another worker holds it, or if it is the baseline (which is exempt from
        pauses). A trial that was released after its last epoch does not wait either, though that
        epoch may be at a rung: it was not paused.
        """
        may_wait = standing.state in (OPEN, OWN) and not standing.exempt
        if not may_wait or not standing.reports:
            return None
        rung = max(standing.reports)
        report = standing.reports[rung]
        was_paused_last = standing.last == report.step and standing.paused == report.step
        is_in_bracket = rung >= self._find_lowest_rung(self.find_bracket(standing.slot))
        if was_paused_last and is_in_bracket:
            return rung
        return None


def _count_possible_arrivals(ranking: RungRanking, open_counts: Mapping[int, int]) -> int:
    """Returns how many more trials may reach a rung: the open ones that have not reached it yet.

    Args:
        ranking: The trials that have reached the rung.
        open_counts: How many trials of each bracket are open: they run, wait or may yet begin.
    """
    open_at_rung = 0
    for standing in ranking.standings:
        if standing.state != DONE:
            open_at_rung += 1
    return open_counts[ranking.bracket] - open_at_rung
