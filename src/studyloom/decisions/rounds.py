"""Rounds: the same trials, whatever the number of workers, and whenever they die.

The training of a trial has *segments*: from its start to its first rung, from a rung to the next,
and to its end. A search in rounds is one sequence of such segments, numbered from 0, and a *round*
is `study.round` of them. Which trial a segment trains, and the configuration of a new one, are
decided from the segments that are *known* then: all rounds but the last two, which are the one that
is being decided, and the one before it. The segments of these may still run, and so they count as
running, whether they run or have ended. So workers decide when a segment is trained, but not which
segments there are.

In the same way the study halts if `study.max_failures` segments in a row have failed for one
reason: before the first decision that knows them, once all segments before it have ended.

No plan is stored. A worker that claims a slot decides the next segment in its claim, as soon as
those that are known have ended, and those before it have their configurations. Otherwise it waits.
A segment whose worker has died is claimed before others.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from optuna import Study

from studyloom.decisions.asha import AshaOrder
from studyloom.decisions.extrapolation import view_in_rounds
from studyloom.storage import failures
from studyloom.storage.standings import DONE, HELD, OPEN, Fault, Next, Segment, Standing


@dataclass(frozen=True)
class RoundOrder:
    """Decides in rounds which slot is claimed next.

    The baseline is paused at rungs too, or all would wait for it; it is always promoted.

    Args:
        order: decides from what is known; without rungs if no trial pauses.
        width: how many segments a round has.
        max_failures: how many segments in a row may fail for one reason before the study halts.
        halted_at: the number of segments when the study halted last: since it was started again,
            failures count only together with a later one.
    """

    order: AshaOrder
    width: int
    max_failures: int = sys.maxsize
    halted_at: int = 0

    @property
    def costs(self) -> list[str]:
        """The names of the costs that decide."""
        return self.order.costs

    def rungs(self, longest: int) -> list[int]:
        """Returns the steps of all rungs, see `AshaOrder.rungs`."""
        return self.order.rungs(longest)

    def pauses_at(self, slot: int, previous_step: int, step: int) -> bool:
        """Returns whether a trial has reached a rung with a step, see `AshaOrder.pauses_at`."""
        return self.order.pauses_at(slot, previous_step, step)

    def is_next(self, standings: Sequence[Standing], slot: int, *, closed: bool = False) -> bool:
        """Returns False: a trial is paused at each rung, since its promotion is another segment."""
        return False

    def count_known(self, number: int) -> int:
        """Returns how many segments, the first ones, are known to the decision on another one.

        Args:
            number: of the segment that is decided.
        """
        earlier_rounds = number // self.width
        return (earlier_rounds - 1) * self.width

    def view_study(self, study: Study, segment: Segment) -> Study:
        """Returns a view of a study with what a sampler may know for the decision on a segment."""
        find_cut = partial(_find_cut, known_count=self.count_known(segment.number))
        return view_in_rounds(study, find_cut)

    def choose(self, standings: Sequence[Standing], *, closed: bool = False) -> Next | None:
        """Returns the slot to claim; see `storage.standings.Order`. No bound ends such a search.

        None if the study halts, see `find_halt_reason`.
        """
        begun = [standing for standing in standings if standing.segments]
        running = [standing for standing in begun if not _has_ended(standing)]
        abandoned = [standing for standing in running if standing.state != HELD]
        if abandoned:
            return _claim_again(abandoned)
        last_number = max((standing.segments[-1].number for standing in begun), default=-1)
        # Decided from what the last segment knew: no later decision depends on when a trial ends.
        ended = self._choose_unpromotable(standings, self.count_known(last_number))
        if ended is not None:
            return ended
        if any(standing.segments[-1].start is None for standing in running):
            return None  # a configuration is being drawn
        oldest = min((standing.segments[-1].number for standing in running), default=math.inf)
        number = last_number + 1
        while self.count_known(number) <= oldest:
            known_count = self.count_known(number)
            if self._find_repeated_failure(standings, known_count) is not None:
                return None
            choice = self.order.choose(self.limit_standings(standings, known_count))
            if choice is not None:
                standing = next(s for s in standings if s.slot == choice.slot)
                start = None
                if standing.segments:
                    start = standing.last
                return Next(choice.slot, segments=[*standing.segments, Segment(number, start)])
            if known_count > last_number:  # no later round knows more
                return self._choose_unpromotable(standings, known_count)
            # Nothing else is known in this round: it stays incomplete, and the next one begins.
            number += self.width - number % self.width
        return None

    def find_halt_reason(self, standings: Sequence[Standing]) -> str | None:
        """Returns why the study halts now; None if a slot can be claimed, or a segment runs."""
        for standing in standings:
            if standing.segments and not _has_ended(standing):
                return None
        if self.choose(standings):
            return None
        last_number = -1
        for standing in standings:
            for segment in standing.segments:
                last_number = max(last_number, segment.number)
        next_that_knows_all = last_number + 1 + 2 * self.width
        return self._find_repeated_failure(standings, self.count_known(next_that_knows_all))

    def _find_repeated_failure(self, standings: Sequence[Standing], known_count: int) -> str | None:
        """Returns the reason for which `max_failures` segments in a row have failed; else None.

        Args:
            known_count: how many segments, the first ones, count.
        """
        in_a_row = 0
        previous: Fault | None = None
        for number, fault in _list_faults(standings):
            if number >= known_count:
                break
            if fault is None or fault.kind not in failures.HALTING:
                in_a_row = 0
            elif previous is not None and fault.reason == previous.reason:
                in_a_row += 1
            else:
                in_a_row = 1
            previous = fault
            if fault is not None and in_a_row >= self.max_failures and number >= self.halted_at:
                return fault.reason
        return None

    def limit_standings(self, standings: Sequence[Standing], known_count: int) -> list[Standing]:
        """Returns how far trials have come if only the first `known_count` segments have ended.

        Those that can then no longer be promoted are done. That leaves fewer trials that may still
        reach a rung, so that others there can perhaps no longer be promoted either.
        """
        limited = [_limit_standing(standing, known_count) for standing in standings]
        unpromotable = self.order.find_unpromotable(limited)
        while unpromotable:
            for position, standing in enumerate(limited):
                if standing.slot in unpromotable:
                    limited[position] = replace(standing, state=DONE)
            unpromotable = self.order.find_unpromotable(limited)
        return limited

    def _choose_unpromotable(self, standings: Sequence[Standing], known_count: int) -> Next | None:
        """Returns the first paused trial that can no longer be promoted, to be ended."""
        done_slots = set()
        for standing in self.limit_standings(standings, known_count):
            if standing.state == DONE:
                done_slots.add(standing.slot)
        paused_slots = [
            standing.slot
            for standing in standings
            if standing.slot in done_slots and standing.state not in (HELD, DONE)
        ]
        if not paused_slots:
            return None
        return Next(min(paused_slots), ends_pruned=True)


def _claim_again(abandoned: Sequence[Standing]) -> Next:
    """Returns a segment that no other worker trains: this worker's own first, then the oldest."""

    def priority(standing: Standing) -> tuple[bool, int]:
        return standing.state == OPEN, standing.segments[-1].number

    first = min(abandoned, key=priority)
    return Next(first.slot, segments=first.segments)


def _list_faults(standings: Sequence[Standing]) -> list[tuple[int, Fault | None]]:
    """Returns the number of each segment, and how it failed; None if it did not."""
    faults: dict[int, Fault | None] = {}
    for standing in standings:
        for segment in standing.segments:
            faults[segment.number] = None
        if standing.segments:
            faults[standing.segments[-1].number] = standing.failure
    return sorted(faults.items(), key=lambda item: item[0])


def _has_ended(standing: Standing) -> bool:
    """Returns whether a trial's last segment has ended: it is done, or was paused after it."""
    if standing.state == DONE:
        return True
    if standing.paused is None or standing.paused != standing.last:
        return False
    start = standing.segments[-1].start or 0
    return standing.paused > start


def _find_cut(segments: Sequence[tuple[int, int | None]], known_count: int) -> int | None:
    """Returns the step after which the segments of a trial are unknown; None if none is.

    Args:
        segments: the number and start of each, see `Segment`.
        known_count: how many segments of the study are known.
    """
    for number, start in segments:
        if number >= known_count:
            return start or 0
    return None


def _limit_standing(standing: Standing, known_count: int) -> Standing:
    """Returns how far a trial has come if only the first `known_count` segments have ended."""
    cut = _find_cut(standing.segments, known_count)
    if cut is not None:  # it runs
        reports = {rung: report for rung, report in standing.reports.items() if report.step <= cut}
        return replace(standing, state=HELD, last=cut or None, reports=reports)
    if standing.segments and standing.state != DONE:  # it waits at a rung
        return replace(standing, state=OPEN)
    return standing
