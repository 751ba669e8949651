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
from studyloom.storage.standings import (
    DONE,
    HELD,
    OPEN,
    OWN,
    Fault,
    Segment,
    SlotChoice,
    Standing,
)


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
        """Returns False: the worker of a trial at a rung never continues it at once.

        The trial is paused there, and its training up to the next rung is another segment, which is
        decided like all others.
        """
        return False

    def count_known(self, number: int) -> int:
        """Returns how many segments are known when a segment is decided.

        The segments of a study are numbered in the order in which they are decided. Known are those
        of all rounds but the segment's own and the one before it, which may still run. In rounds of
        4 segments, 4 segments (0 to 3) are known when one of the segments 8 to 11 is decided.

        Args:
            number: The number of the segment that is decided.

        Returns:
            The count n, which stands for the segments 0 to n - 1; 0 or less if none is known.
        """
        round_number = number // self.width
        return (round_number - 1) * self.width

    def view_study(self, study: Study, segment: Segment) -> Study:
        """Returns a view of a study that shows the sampler only what is known for a segment.

        Later reports are hidden: which of them there are depends on how fast the workers are.

        Args:
            study: The study.
            segment: The segment that a worker begins: the first one of a new trial, if the sampler
                is to draw the trial's configuration.
        """
        known_count = self.count_known(segment.number)
        return view_in_rounds(study, partial(_find_last_known_step, known_count=known_count))

    def choose(self, standings: Sequence[Standing], *, closed: bool = False) -> SlotChoice | None:
        """Returns the slot whose trial a worker takes next.

        A slot is the row of the budget table that a trial belongs to. The worker trains one segment
        of the trial: from its start or a rung to the next rung, or to its end.

        First comes a segment whose worker has died, to be trained again. Then comes a paused trial
        that can no longer be promoted, to be ended. Then comes a new segment.

        Args:
            standings: How far the trial of each slot has come.
            closed: Always False, and not used: no bound ends a search in rounds early. All orders
                have this argument.

        Returns:
            None if the worker must wait for others, if all trials are done, or if the study halts;
            see `find_halt_reason`.
        """
        unended = []  # trials whose last segment has not ended
        for standing in standings:
            if standing.segments and not _has_ended_last_segment(standing):
                unended.append(standing)
        abandoned = [standing for standing in unended if standing.state != HELD]
        if abandoned:  # no other worker trains them
            return _choose_abandoned(abandoned)

        # A paused trial is ended if the segments that were known at the last decision show that it
        # can no longer be promoted. Later decisions know these segments too, and count the trial as
        # ended anyway (see `limit_standings`): so it does not matter when a worker ends it.
        last_number = _find_last_number(standings)
        unpromotable = self._choose_unpromotable(standings, self.count_known(last_number))
        if unpromotable is not None:
            return unpromotable

        running_segments = [standing.segments[-1] for standing in unended]  # of other workers
        if any(segment.start is None for segment in running_segments):
            return None  # another worker draws the configuration of a new trial
        running_numbers = [segment.number for segment in running_segments]
        first_running_number = min(running_numbers, default=None)
        return self._choose_new_segment(standings, last_number + 1, first_running_number)

    def _choose_new_segment(
        self, standings: Sequence[Standing], next_number: int, first_running_number: int | None
    ) -> SlotChoice | None:
        """Returns the slot whose trial gets another segment; None while none can be decided.

        A segment is the training of a trial from its start or a rung to the next rung. Segments are
        numbered in the order in which they are decided, and a round has `width` of them. A segment
        is decided from those of all rounds but its own and the one before it, once they have ended.
        In rounds of 4, the segments 8 to 11 are decided from the segments 0 to 3, once these four
        have ended; it does not matter whether the segments 4 to 7 have.

        Args:
            standings: How far the trial of each slot has come.
            next_number: The number after that of the last segment so far.
            first_running_number: The number of the first segment that has not ended; None if all
                have.
        """
        for number in self._list_possible_numbers(next_number):
            known_count = self.count_known(number)
            if first_running_number is not None and first_running_number < known_count:
                return None  # this segment must end first
            if self._find_repeated_failure(standings, known_count) is not None:
                return None  # the study halts
            choice = self.order.choose(self.limit_standings(standings, known_count))
            if choice is not None:
                return self._add_segment(standings, choice.slot, number)
        # For the last of these numbers all segments are known, and they allow no new one. So they
        # all say which paused trials can no longer be promoted.
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
        """Returns the choice of a slot whose trial gets another segment.

        Args:
            standings: How far the trial of each slot has come.
            slot: The slot.
            number: The number of the new segment.
        """
        standing = next(standing for standing in standings if standing.slot == slot)
        start = None  # a new trial, which has no configuration yet
        if standing.segments:
            start = standing.last  # the last step that the trial has reported
        return SlotChoice(slot, segments=[*standing.segments, Segment(number, start)])

    def find_halt_reason(self, standings: Sequence[Standing]) -> str | None:
        """Returns why the study halts now; None if a slot can be claimed, or a segment runs.

        A segment is the training of a trial from its start or a rung to the next rung. The study
        halts once none runs, none can be claimed, and too many have failed in a row for one reason.

        Args:
            standings: How far the trial of each slot has come.
        """
        for standing in standings:
            if standing.segments and not _has_ended_last_segment(standing):
                return None
        if self.choose(standings) is not None:
            return None
        segment_count = _find_last_number(standings) + 1
        return self._find_repeated_failure(standings, known_count=segment_count)

    def _find_repeated_failure(self, standings: Sequence[Standing], known_count: int) -> str | None:
        """Returns the reason for which `max_failures` segments in a row have failed; else None.

        A segment is the training of a trial from its start or a rung to the next rung. Segments
        are numbered over the whole study from 0, in the order in which they were decided.

        A study that has halted and is resumed gets another try: a row of failures counts only if it
        ends with a later segment. `halted_at` is the number of segments that there were at the last
        halt, so that later ones have this number or a higher one.

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
            is_later_than_halt = number >= self.halted_at
            if failures_in_a_row >= self.max_failures and is_later_than_halt:
                return fault.reason
        return None

    def limit_standings(self, standings: Sequence[Standing], known_count: int) -> list[Standing]:
        """Returns how far trials would have come if only the first segments had ended.

        A decision in rounds uses only these segments, so that it does not depend on which of the
        later ones have ended by chance. A segment is the training of a trial from its start or a
        rung to the next rung. With `known_count=4`, a trial that had the segments 1 and 6 is shown
        as running since the rung where segment 6 begins, even if it has ended since.

        A paused trial that can no longer be promoted then is shown as DONE, though a worker may
        still have to end it.

        Args:
            standings: How far the trial of each slot has come.
            known_count: How many segments of the study count as ended, from the first on.
        """
        limited = [_limit_standing(standing, known_count) for standing in standings]
        unpromotable_slots = self.order.find_unpromotable(limited)
        for position, standing in enumerate(limited):
            if standing.slot in unpromotable_slots:
                limited[position] = replace(standing, state=DONE)
        return limited

    def _choose_unpromotable(
        self, standings: Sequence[Standing], known_count: int
    ) -> SlotChoice | None:
        """Returns the first paused trial that can no longer be promoted, for a worker to end it.

        None if there is no such trial by what the first segments have shown. A segment is the
        training of a trial from its start or a rung to the next rung.

        Args:
            standings: How far the trial of each slot has come.
            known_count: How many segments of the study are known, from the first on.
        """
        # Both those that have ended and those that can no longer be promoted
        slots_shown_as_done = set()
        for limited_standing in self.limit_standings(standings, known_count):
            if limited_standing.state == DONE:
                slots_shown_as_done.add(limited_standing.slot)
        slots_to_end = []
        for standing in standings:
            has_ended = standing.state == DONE
            is_held = standing.state == HELD  # another worker is ending or releasing it
            if standing.slot in slots_shown_as_done and not has_ended and not is_held:
                slots_to_end.append(standing.slot)
        if not slots_to_end:
            return None
        return SlotChoice(min(slots_to_end), ends_pruned=True)


def _find_last_number(standings: Sequence[Standing]) -> int:
    """Returns the highest number of a segment of any trial; -1 if there is no segment yet."""
    last_numbers = [standing.segments[-1].number for standing in standings if standing.segments]
    return max(last_numbers, default=-1)


def _choose_abandoned(abandoned: Sequence[Standing]) -> SlotChoice:
    """Returns the trial whose last segment is the oldest that must be trained again.

    A segment is the training of a trial from its start or a rung to the next rung. A trial that
    this worker holds itself comes before all others. There is one if the worker's claim was stored,
    but the database's reply was lost on the way.

    Args:
        abandoned: How far the trials have come whose last segment has not ended, and which no other
            worker holds.
    """
    own = [standing for standing in abandoned if standing.state == OWN]
    first = min(own or abandoned, key=_last_segment_number)
    return SlotChoice(first.slot, segments=first.segments)


def _last_segment_number(standing: Standing) -> int:
    """Returns the number of a trial's last segment; segments are numbered as they were decided."""
    return standing.segments[-1].number


def _find_faults(standings: Sequence[Standing]) -> dict[int, Fault | None]:
    """Returns how each segment of a study failed, by its number; None if it did not fail.

    A segment is the training of a trial from its start or a rung to the next rung. A trial ends
    when it fails, so that only its last segment can have failed.
    """
    faults: dict[int, Fault | None] = {}
    for standing in standings:
        for segment in standing.segments:
            faults[segment.number] = None
        if standing.segments:
            faults[standing.segments[-1].number] = standing.failure
    return faults


def _has_ended_last_segment(standing: Standing) -> bool:
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
    """Returns the last step that is known of a trial with later segments; None if it has none.

    A segment is the training of a trial from its start or a rung to the next rung. Only the first
    segments of the study are known. If 4 are known, of a trial with the segments 1 (from the start)
    and 6 (from step 3) the steps up to 3 are known. Of a trial that begins with segment 6 none is:
    its last known step is 0.

    Args:
        segments: The number and start of each segment of the trial, see `Segment`.
        known_count: How many segments of the study are known, from the first on.
    """
    for number, start in segments:
        if number >= known_count:
            return start or 0  # the start is None until the trial has its configuration
    return None


def _limit_standing(standing: Standing, known_count: int) -> Standing:
    """Returns how far a trial would have come if only the first segments of the study had ended.

    A segment is the training of a trial from its start or a rung to the next rung. A trial that has
    a later segment is shown as HELD by another worker, which trains this segment, and without the
    reports from it. If the first 4 segments have ended, a trial with the segments 1 (from the
    start) and 6 (from step 3) has only its reports up to step 3.

    A trial all of whose segments are known is OPEN, since it waits at a rung, unless it is DONE.

    Args:
        standing: How far the trial has come.
        known_count: How many segments of the study count as ended, from the first on.
    """
    last_known_step = _find_last_known_step(standing.segments, known_count)
    if last_known_step is not None:  # the trial has a later segment
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
