"""Rounds: the same trials, whatever the number of workers, and whenever they die.

The training of a trial has segments: from its start to its first rung, from a rung to the next, and
to its end. A search in rounds is one sequence of such segments, and a round is `study.round` of
them. Which trial a segment trains, and the configuration of a new one, follow from all rounds but
the last two: the one that is being decided, and the one before it, whose segments may still run.
These count as running, whether they run or have ended. So workers decide when a segment is trained,
but not which segments there are.

No plan is stored. A worker that claims a slot decides the next segment in its claim, as soon as
those that count have ended, and those before it have their configurations. Otherwise it waits. A
segment whose worker has died is claimed before others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from optuna import Study

from studyloom.storage.ledger import DONE, HELD, OPEN, Next, Segment, Standing
from studyloom.study.asha import AshaOrder
from studyloom.study.extrapolation import seen_in_rounds


@dataclass(frozen=True)
class RoundOrder:
    """Decides in rounds which slot is claimed next.

    The baseline is paused at rungs too, or all would wait for it; it is always promoted.

    Args:
        order: decides from what is known; without rungs if no trial pauses.
        width: how many segments a round has.
    """

    order: AshaOrder
    width: int

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
        return seen_in_rounds(study, partial(_unknown_from, known=self.known(segment.number)))

    def choose(self, standings: Sequence[Standing], *, closed: bool = False) -> Next | None:
        """Returns the slot to claim; see `storage.ledger.Order`. No bound ends such a search."""
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
            if (found := self.order.choose(self.view(standings, self.known(number)))) is not None:
                before = begun.get(found.slot, ())
                start = next(s.last for s in standings if s.slot == found.slot) if before else None
                return Next(found.slot, segments=[*before, Segment(number, start)])
            if self.known(number) > last:
                return self._to_end(standings, self.known(number))
            number += self.width - number % self.width  # nothing else is known in this round
        return None

    def view(self, standings: Sequence[Standing], known: int) -> list[Standing]:
        """Returns how far trials have come if only the first `known` segments have ended.

        Those that can then no longer be promoted are done.
        """
        seen = [_as_known(standing, known) for standing in standings]
        while over := self.order.unpromotable(seen):
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
