"""Rounds: the same trials, whatever the number of workers, and whenever they die.

The training of a trial has *segments*: from its start to its first rung, from a rung to the next,
and to its end. A search in rounds is one sequence of such segments, numbered from 0, and a *round*
is `study.round_size` of them. Which trial a segment trains, and the configuration of a new one, are
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
        order: Decides from what is known; without rungs if no trial pauses.
        width: How many segments a round has.
        max_failures: How many segments in a row may fail for one reason before the study halts.
        halted_at: The number of segments when the study halted last. The failures up to there do
            not halt it again by themselves, but only together with a later one.
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

        These are all of the rounds but the last two; 0 or less if there are no others.

        Args:
            number: The number of the segment that is decided.
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
        unended = [standing for standing in begun if not _has_ended(standing)]
        abandoned = [standing for standing in unended if standing.state != HELD]
        if abandoned:
            return _claim_again(abandoned)
        last_number = max((standing.segments[-1].number for standing in begun), default=-1)
        # Decided from what the last segment knew: no later decision depends on when a trial ends.
        unpromotable = self._choose_unpromotable(standings, self.count_known(last_number))
        if unpromotable is not None:
            return unpromotable
        if any(standing.segments[-1].start is None for standing in unended):
            return None  # a configuration is being drawn
        first_running = min((standing.segments[-1].number for standing in unended), default=None)
        return self._choose_new_segment(standings, last_number + 1, first_running)

    def _choose_new_segment(
        self, standings: Sequence[Standing], segment_count: int, first_running: int | None
    ) -> Next | None:
        """Returns the slot whose trial gets another segment; None while none can be decided.

        Args:
            segment_count: How many segments there are.
            first_running: The number of the first segment that runs; None if none does.
        """
        number = segment_count
        known_count = self.count_known(number)
        while first_running is None or known_count <= first_running:  # all that are known ended
            if self._find_repeated_failure(standings, known_count) is not None:
                return None
            choice = self.order.choose(self.limit_standings(standings, known_count))
            if choice is not None:
                return self._add_segment(standings, choice.slot, number)
            if known_count >= segment_count:  # all are known: a later round would know no more
                return self._choose_unpromotable(standings, known_count)
            # Nothing can be decided from what this round knows, so it stays incomplete: the number
            # is that of the first segment of the next round.
            number += self.width - number % self.width
            known_count = self.count_known(number)
        return None

    def _add_segment(self, standings: Sequence[Standing], slot: int, number: int) -> Next:
        """Returns a slot to claim, for another segment of its trial."""
        standing = next(standing for standing in standings if standing.slot == slot)
        start = None  # a new trial has no configuration yet
        if standing.segments:
            start = standing.last
        return Next(slot, segments=[*standing.segments, Segment(number, start)])

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
        # A segment two rounds later would be decided from all that there are now.
        number_of_later = last_number + 1 + 2 * self.width
        return self._find_repeated_failure(standings, self.count_known(number_of_later))

    def _find_repeated_failure(self, standings: Sequence[Standing], known_count: int) -> str | None:
        """Returns the reason for which `max_failures` segments in a row have failed; else None.

        Args:
            known_count: How many segments, the first ones, count.
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

        A trial that can then no longer be promoted is DONE. Each such trial leaves fewer that may
        still reach a rung, so that another one there can perhaps no longer be promoted either.
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
        """Returns the first paused trial that can no longer be promoted, to be ended.

        None if the first `known_count` segments show no such trial.
        """
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
    """Returns the slot of a segment that no other worker trains: the oldest one.

    This worker's own comes before others: it holds one already if the reply to its claim was lost.
    """

    def sort_key(standing: Standing) -> tuple[bool, int]:
        was_others = standing.state == OPEN  # False comes before True
        return was_others, standing.segments[-1].number

    first = min(abandoned, key=sort_key)
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
        segments: The number and start of each segment of the trial, see `Segment`.
        known_count: How many segments of the study are known.
    """
    for number, start in segments:
        if number >= known_count:
            return start or 0
    return None


def _limit_standing(standing: Standing, known_count: int) -> Standing:
    """Returns how far a trial has come if only the first `known_count` segments have ended."""
    cut = _find_cut(standing.segments, known_count)
    if cut is not None:  # its next segment counts as running
        reports = {rung: report for rung, report in standing.reports.items() if report.step <= cut}
        last_step = None
        if cut > 0:
            last_step = cut
        return replace(standing, state=HELD, last=last_step, reports=reports)
    if standing.segments and standing.state != DONE:  # it waits at a rung
        return replace(standing, state=OPEN)
    return standing
