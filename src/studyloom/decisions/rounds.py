"""Rounds: the same trials, whatever the number of workers, and whenever they die.

The training of a trial has segments: from its start to its first rung, from a rung to the next, and
to its end. A search in rounds is one sequence of such segments, and a round is `study.round` of
them. Which trial a segment trains, and the configuration of a new one, follow from all rounds but
the last two: the one that is being decided, and the one before it, whose segments may still run.
These count as running, whether they run or have ended. So workers decide when a segment is trained,
but not which segments there are.

In the same way the study halts if `study.max_failures` segments in a row have failed for one
reason: before the first decision that knows them, once all segments before it have ended.

No plan is stored. A worker that claims a slot decides the next segment in its claim, as soon as
those that count have ended, and those before it have their configurations. Otherwise it waits. A
segment whose worker has died is claimed before others.
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
        return self.order.costs

    def rungs(self, longest: int) -> list[int]:
        """Returns the steps of all rungs, see `AshaOrder.rungs`."""
        return self.order.rungs(longest)

    def pauses_at(self, slot: int, before: int, step: int) -> bool:
        """Whether a trial has reached a rung with a step, see `AshaOrder.pauses_at`."""
        return self.order.pauses_at(slot, before, step)

    def is_next(self, standings: Sequence[Standing], slot: int, *, closed: bool = False) -> bool:
        """Returns False: a trial is paused at each rung, since its promotion is another segment."""
        return False

    def known(self, number: int) -> int:
        """Returns how many segments, the first ones, count for the decision on one of a number."""
        return (number // self.width - 1) * self.width

    def seen(self, study: Study, segment: Segment) -> Study:
        """Returns a study whose trials a sampler sees as it may for the decision on a segment."""
        return view_in_rounds(study, partial(_unknown_from, known=self.known(segment.number)))

    def choose(self, standings: Sequence[Standing], *, closed: bool = False) -> Next | None:
        """Returns the slot to claim; see `storage.ledger.Order`. No bound ends such a search.

        None if the study halts, see `halting`.
        """
        begun = {s.slot: s.segments for s in standings if s.segments}
        running = [s for s in standings if s.segments and not _rests(s)]
        if idle := [s for s in running if s.state != HELD]:
            first = min(idle, key=lambda s: (s.state == OPEN, s.segments[-1]))  # its own first
            return Next(first.slot, segments=first.segments)
        last = max((segments[-1].number for segments in begun.values()), default=-1)
        # What a decided segment knew: so no later decision depends on when a trial is ended.
        if ended := self._to_end(standings, self.known(last)):
            return ended
        oldest = min((s.segments[-1].number for s in running), default=math.inf)
        drawing = any(s.segments[-1].start is None for s in running)
        number = last + 1
        while not drawing and self.known(number) <= oldest:
            if self._failing(standings, self.known(number)) is not None:
                return None
            if (found := self.order.choose(self.view(standings, self.known(number)))) is not None:
                before = begun.get(found.slot, ())
                start = next(s.last for s in standings if s.slot == found.slot) if before else None
                return Next(found.slot, segments=[*before, Segment(number, start)])
            if self.known(number) > last:
                return self._to_end(standings, self.known(number))
            number += self.width - number % self.width  # nothing else is known in this round
        return None

    def halting(self, standings: Sequence[Standing]) -> str | None:
        """Returns why the study halts now; None if a slot can be claimed, or a segment runs."""
        if any(s.segments and not _rests(s) for s in standings) or self.choose(standings):
            return None
        segments = [segment.number for s in standings for segment in s.segments]
        later = max(segments, default=-1) + 1 + 2 * self.width  # a decision that knows all of them
        return self._failing(standings, self.known(later))

    def _failing(self, standings: Sequence[Standing], known: int) -> str | None:
        """Returns the reason for which `max_failures` of the first segments in a row have failed.

        Args:
            known: how many segments count.
        """
        faults: dict[int, Fault | None] = {}
        for standing in standings:
            for segment in standing.segments:
                faults[segment.number] = None
            if standing.segments and standing.failure is not None:
                faults[standing.segments[-1].number] = standing.failure
        in_a_row = 0
        before: Fault | None = None
        for number in sorted(faults):
            fault = faults[number]
            if number >= known:
                break
            if fault is None or fault.kind not in failures.HALTING:
                in_a_row = 0
            elif before is not None and fault.reason == before.reason:
                in_a_row += 1
            else:
                in_a_row = 1
            before = fault
            if fault is not None and in_a_row >= self.max_failures and number >= self.halted_at:
                return fault.reason
        return None

    def view(self, standings: Sequence[Standing], known: int) -> list[Standing]:
        """Returns how far trials have come if only the first `known` segments have ended.

        Those that can then no longer be promoted are done.
        """
        seen = [_as_known(standing, known) for standing in standings]
        while over := self.order.find_unpromotable(seen):
            seen = [replace(s, state=DONE) if s.slot in over else s for s in seen]
        return seen

    def _to_end(self, standings: Sequence[Standing], known: int) -> Next | None:
        """Returns a paused trial that can no longer be promoted."""
        done = {s.slot for s in self.view(standings, known) if s.state == DONE}
        left = (s.slot for s in standings if s.slot in done and s.state not in (HELD, DONE))
        slot = min(left, default=None)
        return None if slot is None else Next(slot, ends_pruned=True)


def _rests(standing: Standing) -> bool:
    """Whether the last segment of a trial has ended: it is done, or paused at a later step."""
    paused, start = standing.paused, standing.segments[-1].start
    return standing.state == DONE or (paused == standing.last and (paused or 0) > (start or 0))


def _unknown_from(segments: Sequence[tuple[int, int | None]], known: int) -> int | None:
    """Returns the step after which the segments of a trial are unknown; None if none is."""
    return next((start or 0 for number, start in segments if number >= known), None)


def _as_known(standing: Standing, known: int) -> Standing:
    """Returns how far a trial has come if only the first `known` segments have ended."""
    if (cut := _unknown_from(standing.segments, known)) is None:
        rests = standing.segments and standing.state != DONE
        return replace(standing, state=OPEN) if rests else standing
    reports = {rung: each for rung, each in standing.reports.items() if each.step <= cut}
    return replace(standing, state=HELD, last=cut or None, reports=reports)
