"""Rounds: the same trials, whatever the number of workers, and whenever they die.

The training of a trial has *segments*: from its start to its first rung, from a rung to the next,
and to its end. A search in rounds is one sequence of such segments, numbered from 0, and a *round*
is `study.round_size` of them. Which trial a segment trains, and the configuration of a new one, are
decided from the segments that are *known* then: all rounds but the last two, which are the one that
is being decided, and the one before it. The segments of these may still run, and so they count as
running, whether they run or have ended. So workers decide when a segment is trained, but not which
segments there are. A *standing* says how far the trial of a slot has come.

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
from studyloom.storage.standings import DONE, HELD, OPEN, Fault, Segment, SlotChoice, Standing


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
        """Returns the steps of all rungs up to the longest step so far, see `AshaOrder.rungs`."""
        return self.order.rungs(longest)

    def pauses_at(self, slot: int, previous_step: int, step: int) -> bool:
        """Returns whether a trial has reached a rung with a step, see `AshaOrder.pauses_at`."""
        return self.order.pauses_at(slot, previous_step, step)

    def is_next(self, standings: Sequence[Standing], slot: int, *, closed: bool = False) -> bool:
        """Returns False: a trial is paused at each rung, since its promotion is another segment."""
        return False

    def count_known(self, number: int) -> int:
        """Returns how many segments are known when a segment is decided.

        The segments of a study are numbered in the order in which they are decided. Known are those
        of all rounds before the last two, which may still run. In rounds of 4 segments, 4 segments
        are known when one of the segments 8 to 11 is decided.

        Args:
            number: The number of the segment that is decided.

        Returns:
            The count n, which stands for the segments 0 to n - 1; 0 or less if none is known.
        """
        round_number = number // self.width
        return (round_number - 1) * self.width

    def view_study(self, study: Study, segment: Segment) -> Study:
        """Returns a view of a study with what a sampler may know for the decision on a segment."""
        known_count = self.count_known(segment.number)
        return view_in_rounds(study, partial(_find_last_known_step, known_count=known_count))

    def choose(self, standings: Sequence[Standing], *, closed: bool = False) -> SlotChoice | None:
        """Returns the slot whose trial a worker takes next.

        The worker trains a segment of the trial: from its start or a rung to the next rung, or to
        its end. A segment whose worker has died comes first; then a paused trial that can no longer
        be promoted, to be ended; and then a new segment.

        Args:
            standings: How far the trial of each slot has come.
            closed: Always False: no bound ends a search in rounds early.

        Returns:
            None if the worker must wait for others, if all trials are done, or if the study halts;
            see `find_halt_reason`.
        """
        begun = [standing for standing in standings if standing.segments]
        unended = [standing for standing in begun if not _has_ended(standing)]
        # A segment whose worker has died
        abandoned = [standing for standing in unended if standing.state != HELD]
        if abandoned:
            return _choose_abandoned(abandoned)

        # A paused trial that can no longer be promoted, by what was known when the last segment was
        # decided: so no later decision depends on when the trial is ended.
        numbers = [standing.segments[-1].number for standing in begun]  # of the last segments
        last_number = max(numbers, default=-1)
        unpromotable = self._choose_unpromotable(standings, self.count_known(last_number))
        if unpromotable is not None:
            return unpromotable

        # A new segment
        last_segments = [standing.segments[-1] for standing in unended]
        if any(segment.start is None for segment in last_segments):
            return None  # another worker draws the configuration of a new trial
        first_running = min((segment.number for segment in last_segments), default=None)
        return self._choose_new_segment(standings, last_number + 1, first_running)

    def _choose_new_segment(
        self, standings: Sequence[Standing], next_number: int, first_running: int | None
    ) -> SlotChoice | None:
        """Returns the slot whose trial gets another segment; None while none can be decided.

        A segment is the training of a trial from its start or a rung to the next rung. Segments are
        numbered in the order in which they are decided, and a round has `width` of them. A segment
        is decided from the segments of all rounds before the last two, once these have ended: in
        rounds of 4, the segments 8 to 11 are decided from the segments 0 to 3.

        Args:
            standings: How far the trial of each slot has come.
            next_number: The number after that of the last segment so far.
            first_running: The number of the first segment that has not ended; None if all have.
        """
        for number in self._list_possible_numbers(next_number):
            known_count = self.count_known(number)
            if first_running is not None and first_running < known_count:
                return None  # it must end first
            if self._find_repeated_failure(standings, known_count) is not None:
                return None  # the study halts
            choice = self.order.choose(self.limit_standings(standings, known_count))
            if choice is not None:
                return self._add_segment(standings, choice.slot, number)
        # Not even all segments together allow another one.
        return self._choose_unpromotable(standings, known_count=next_number)

    def _list_possible_numbers(self, next_number: int) -> list[int]:
        """Returns the numbers that the next segment may get, in the order in which they are tried.

        First comes the next number. If the segments that are known then allow no decision, the
        current round stays incomplete, and the segment is the first of a later round, for which
        more are known. For the last of the numbers all segments are known. In rounds of 4 after the
        segments 0 to 9, the numbers are 10 (the segments 0 to 3 are known), 12 (0 to 7) and 16 (all
        are known).

        Args:
            next_number: The number after that of the last segment so far.
        """
        numbers = [next_number]
        round_number = next_number // self.width
        while self.count_known(numbers[-1]) < next_number:
            round_number += 1
            numbers.append(round_number * self.width)
        return numbers

    def _add_segment(self, standings: Sequence[Standing], slot: int, number: int) -> SlotChoice:
        """Returns a slot to claim for another segment of its trial, which gets a number."""
        standing = next(standing for standing in standings if standing.slot == slot)
        start = None  # a new trial has no configuration yet
        if standing.segments:
            start = standing.last
        return SlotChoice(slot, segments=[*standing.segments, Segment(number, start)])

    def find_halt_reason(self, standings: Sequence[Standing]) -> str | None:
        """Returns why the study halts now; None if a slot can be claimed, or a segment runs.

        Args:
            standings: How far the trial of each slot has come.
        """
        for standing in standings:
            if standing.segments and not _has_ended(standing):
                return None
        if self.choose(standings) is not None:
            return None
        last_number = -1
        for standing in standings:
            for segment in standing.segments:
                last_number = max(last_number, segment.number)
        # A segment two rounds later would be decided from all segments that there are now.
        number_of_later = last_number + 1 + 2 * self.width
        return self._find_repeated_failure(standings, self.count_known(number_of_later))

    def _find_repeated_failure(self, standings: Sequence[Standing], known_count: int) -> str | None:
        """Returns the reason for which `max_failures` segments in a row have failed; else None.

        A segment is the training of a trial from its start or a rung to the next rung. Segments
        are numbered over the whole study, in the order in which they were decided.

        If such a row has halted the study before (at `halted_at` segments), it counts again only
        with a later segment: so a study that is resumed gets another try.

        Args:
            standings: How far the trial of each slot has come.
            known_count: Only the first segments of the study are looked at, this many of them.
        """
        faults = _find_faults(standings)
        failures_in_a_row = 0
        last_reason = None
        for number in sorted(faults):
            if number >= known_count:
                break
            fault = faults[number]
            if fault is None or fault.kind not in failures.HALTING_KINDS:
                failures_in_a_row = 0
                last_reason = None
                continue
            if fault.reason != last_reason:
                failures_in_a_row = 0
            failures_in_a_row += 1
            last_reason = fault.reason
            has_halted_before = number < self.halted_at
            if failures_in_a_row >= self.max_failures and not has_halted_before:
                return fault.reason
        return None

    def limit_standings(self, standings: Sequence[Standing], known_count: int) -> list[Standing]:
        """Returns how far trials would have come if only the first segments had ended.

        A segment is the training of a trial from its start or a rung to the next rung.
        Trials that could no longer be promoted then are shown as DONE. With each of these fewer
        trials can reach the higher rungs, so that others there may no longer be promoted either.

        Args:
            standings: How far the trial of each slot has come.
            known_count: How many segments of the study count as ended, from the first on.
        """
        limited = [_limit_standing(standing, known_count) for standing in standings]
        unpromotable = self.order.find_unpromotable(limited)
        while unpromotable:  # each pass marks further trials as DONE, so this ends
            for position, standing in enumerate(limited):
                if standing.slot in unpromotable:
                    limited[position] = replace(standing, state=DONE)
            unpromotable = self.order.find_unpromotable(limited)
        return limited

    def _choose_unpromotable(
        self, standings: Sequence[Standing], known_count: int
    ) -> SlotChoice | None:
        """Returns the first paused trial that can no longer be promoted, for a worker to end it.

        None if there is no such trial by what the first segments have shown.

        Args:
            standings: How far the trial of each slot has come.
            known_count: How many segments of the study are known, from the first on.
        """
        done_slots = set()
        for standing in self.limit_standings(standings, known_count):
            if standing.state == DONE:
                done_slots.add(standing.slot)
        slots_to_end = []
        for standing in standings:
            if standing.slot in done_slots and standing.state not in (HELD, DONE):
                slots_to_end.append(standing.slot)
        if not slots_to_end:
            return None
        return SlotChoice(min(slots_to_end), ends_pruned=True)


def _choose_abandoned(abandoned: Sequence[Standing]) -> SlotChoice:
    """Returns the oldest segment that no other worker trains, to be trained again.

    One that this worker holds comes first: it holds one already if the database's reply to its
    claim was lost.

    Args:
        abandoned: The standings of the trials whose last segment has not ended, and which no other
            worker holds.
    """

    def sort_key(standing: Standing) -> tuple[bool, int]:
        has_no_worker = standing.state == OPEN  # False, of this worker's own, comes before True
        return has_no_worker, standing.segments[-1].number

    first = min(abandoned, key=sort_key)
    return SlotChoice(first.slot, segments=first.segments)


def _find_faults(standings: Sequence[Standing]) -> dict[int, Fault | None]:
    """Returns how each segment failed, by its number; None if it did not fail.

    A trial ends when it fails, so that only its last segment can have failed.
    """
    faults: dict[int, Fault | None] = {}
    for standing in standings:
        for segment in standing.segments:
            faults[segment.number] = None
        if standing.segments:
            faults[standing.segments[-1].number] = standing.failure
    return faults


def _has_ended(standing: Standing) -> bool:
    """Returns whether a trial's last segment has ended: the trial is done, or was paused after it.

    A segment is the training of a trial from its start or a rung to the next rung. A trial whose
    last pause was at the rung where the segment starts has not ended the segment.
    """
    if standing.state == DONE:
        return True
    if standing.paused is None or standing.paused != standing.last:
        return False
    start = standing.segments[-1].start or 0
    return standing.paused > start


def _find_last_known_step(
    segments: Sequence[tuple[int, int | None]], known_count: int
) -> int | None:
    """Returns the last step of a trial that is known; None if all its steps are.

    It is the step after which its first unknown segment begins; 0 if it has no known segment.

    Args:
        segments: The number and start of each segment of the trial, see `Segment`.
        known_count: How many segments of the study are known, from the first on.
    """
    for number, start in segments:
        if number >= known_count:
            return start or 0
    return None


def _limit_standing(standing: Standing, known_count: int) -> Standing:
    """Returns how far a trial would have come if only the first segments of the study had ended.

    A segment is the training of a trial from its start or a rung to the next rung. If the trial has
    a later segment, that counts as running: the trial is HELD by another worker, and has not made
    the later reports. Otherwise it is OPEN, since it waits at a rung, unless it is DONE.

    Args:
        standing: How far the trial has come.
        known_count: How many segments of the study count as ended, from the first on.
    """
    last_known_step = _find_last_known_step(standing.segments, known_count)
    if last_known_step is not None:
        known_reports = {}
        for rung, report in standing.reports.items():
            if report.step <= last_known_step:
                known_reports[rung] = report
        last_step = None  # before the first report
        if last_known_step > 0:
            last_step = last_known_step
        return replace(standing, state=HELD, last=last_step, reports=known_reports)
    if standing.segments and standing.state != DONE:
        return replace(standing, state=OPEN)
    return standing
