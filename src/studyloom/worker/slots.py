"""The slots of a stage: which one a worker claims next, and the configuration of its trial."""

import copy
import logging
import sys

import optuna
from optuna.trial import FrozenTrial, TrialState

from studyloom.decisions.asha import AshaOrder, AshaPruner
from studyloom.decisions.rounds import RoundOrder
from studyloom.decisions.strategy import KEEPS_STATE
from studyloom.errors import ClaimLost, LaunchError
from studyloom.seeds import derive
from studyloom.space.drawing_points import draw_point, identify
from studyloom.space.tree import Point
from studyloom.storage.attributes import (
    BASELINE,
    HALTED,
    HALTED_AT,
    PAUSED,
    SEGMENTS,
    SLOT,
    WORKER,
)
from studyloom.storage.database import Connection
from studyloom.storage.ledger import Claim
from studyloom.storage.trial_record import TrialRecord
from studyloom.worker.held_trial import HeldTrial
from studyloom.worker.stage import Stage

REDRAWS = 10  # by the sampler, if a configuration is not accepted, before chance decides
log = logging.getLogger(__name__)


class SlotQueue:
    """Claims the slots of a stage in the order of its pruner, and chooses what their trials try.

    Once the search has ended by its bounds, only the trials that have begun are left to do.

    Args:
        owner: the id of the worker.
        max_failures: of `failures.Limits`, which a search in rounds counts by segment.
    """

    def __init__(self, stage: Stage, owner: str, max_failures: int) -> None:
        self.stage, self.stored, self.owner = stage, stage.stored, owner
        self.baseline = stage.source.baseline
        pruner = self.stored.optuna.pruner
        self.pauses = isinstance(pruner, AshaPruner)
        width = (self.stored.definition() or {}).get("study.round")
        if not isinstance(pruner, AshaPruner):
            pruner = AshaPruner(sys.maxsize)  # without rungs
        order = pruner.make_order(self.stored.objectives) if self.pauses or width else None
        self.order: AshaOrder | RoundOrder | None = order
        if order is not None and width:
            (halted_at,) = self.stored.attributes(HALTED_AT)
            self.order = RoundOrder(order, width, max_failures, halted_at or 0)
        self.stored.storage.reads_snapshots = self.in_rounds

    @property
    def in_rounds(self) -> bool:
        """Whether the trials do not depend on the number of workers."""
        return isinstance(self.order, RoundOrder)

    def claim(self, lease: float, *, ended: bool) -> Claim | None:
        """Claims a slot, and makes a running trial for a new one; None if no slot is free."""
        return self.stored.ledger.claim(
            self.owner, self.stage.trials, lease, self._make, begun=ended, order=self.order
        )

    def halt(self) -> None:
        """Halts a search in rounds whose segments fail, once it can neither begin nor end one.

        In other searches the worker whose trial has failed does so, see `HeldTrial.fail`.
        """
        if not isinstance(self.order, RoundOrder):
            return
        standings = self.stored.ledger.standings(self.owner, self.stage.trials, self.order)
        reason = self.order.halting(standings)
        if reason is not None:
            segments = [segment.number for s in standings for segment in s.segments]
            self.stored.optuna.set_user_attr(HALTED_AT, max(segments) + 1)
            self.stored.optuna.set_user_attr(HALTED, reason)

    def _make(self, connection: Connection, slot: int) -> int:
        first = {BASELINE: True} if slot == 0 and self.baseline is not None else {}
        attributes = {SLOT: slot, WORKER: self.owner, **first}
        return self.stored.storage.create(connection, self.stored.ledger.study_id, attributes)

    def may_stop(self, trial: FrozenTrial) -> bool:
        """Whether a trial may be pruned or paused; not the baseline, with which all compare.

        In rounds, which wait for each other, it is paused too.
        """
        return self.in_rounds or self.baseline is None or not TrialRecord(trial).is_baseline

    def pauses_at(self, slot: int, before: int, step: int) -> bool:
        """Whether a trial has reached a rung with a step; see `AshaOrder.pauses_at`."""
        return self.order is not None and self.order.pauses_at(slot, before, step)

    def promotes(self, slot: int) -> bool:
        """Whether the trial at a rung is the next to promote, so that it continues at once."""
        assert self.order is not None
        standings = self.stored.ledger.standings(self.owner, self.stage.trials, self.order)
        return self.order.is_next(standings, slot, closed=self.stage.has_ended())

    def begin_state(self, claim: Claim, lease: float) -> None:
        """Checks that no other process works on a study whose sampler or pruner keeps state.

        Each process claims a slot before it looks for others, so that of two that begin together
        not both continue. The sampler is made here, once for all trials of this process.

        Raises:
            LaunchError: another process works on the study; the claim was released.
        """
        stored, ledger, strategy = self.stored, self.stored.ledger, self.stage.strategy
        parts = " and ".join(strategy.keeps_state)
        ledger.record_gone()
        others = [held.owner for held in ledger.held() if held.owner != self.owner]
        if others:
            ledger.release(claim)
            raise LaunchError(
                f"{parts}: keeps its state in one process ({KEEPS_STATE}), and {others[0]} works "
                f"on the study already; end that one; if it died, wait {lease:.0f} s"
            )
        number = stored.storage.get_trial(claim.trial_id or 0).number
        begun = [trial for trial in stored.trials() if trial.datetime_start is not None]
        if any(trial.number != number for trial in begun):
            log.warning(
                "%s: keeps its state in one process, and what it kept in an earlier one is gone; "
                "it starts again with trial %d, and knows only the stored trials",
                parts,
                number,
            )
        if "sampler" in strategy.keeps_state:
            stored.optuna.sampler = strategy.sampler(number)

    def begin_trial(self, frozen: FrozenTrial, claim: Claim) -> optuna.Trial:
        """Turns the trial in the buffer into an Optuna trial, and sets the sampler for it."""
        record, buffer, trial_id = TrialRecord(frozen), self.stored.storage, frozen._trial_id
        if frozen.state == TrialState.WAITING:
            buffer.set_trial_user_attr(trial_id, WORKER, self.owner)
            buffer.set_trial_state_values(trial_id, TrialState.RUNNING)
        if record.paused is not None:
            buffer.set_trial_user_attr(trial_id, PAUSED, None)
        if record.is_baseline and self.baseline is not None and not frozen.params:
            self._give(trial_id, self.baseline)
        return self._ask(claim, trial_id, frozen.number)

    def draw(self, held: HeldTrial) -> Point | None:
        """Draws a trial's configuration and stores it, unless it is given or stored already.

        The sampler draws again, with other seeds, if the configuration breaks a relation, or
        repeats another although `limits.repeats` is false; then chance decides. Returns None if
        that finds nothing.
        """
        stored, source = self.stored, self.stage.source
        number, trial_id = held.trial.number, held.trial._trial_id
        given, again = bool(held.trial.params), 0
        new = not given and not held.limits.repeats
        # The worker of trial 0 may not have stored its configuration yet.
        taken = {identify(each) for each in (self.baseline,) if new and each is not None}

        def write(connection: Connection) -> None:
            others = stored.lock_trials(connection) if new else []
            taken.update(identify(each) for each in others if each.number != number)
            if identify(point) not in taken:
                stored.storage.write(connection)

        while True:
            with held.watch("sampling"):
                point = source.space.suggest(held.trial)
            if given or source.space.find_breach(point.params) is None:
                if segments := held.claim.segments:  # now others may decide the next one
                    begun = [(number, start or 0) for number, start in segments]
                    stored.storage.set_trial_user_attr(trial_id, SEGMENTS, begun)
                with held.watch("storage"):
                    if not stored.ledger.renew(held.claim, held.limits.lease, write):
                        raise ClaimLost
                if identify(point) not in taken:
                    stored.storage.mark_written()
                    return point
            stored.storage.load(stored.ledger.study_id, trial_id)  # without the configuration
            again += 1
            with held.watch("sampling"):
                if again > REDRAWS:
                    seed = derive(source.seed, number, 1, again)
                    if (found := draw_point(source.space, seed, taken)) is None:
                        return None
                    self._give(trial_id, found)
                held.trial = self._ask(held.claim, trial_id, derive(number, again), again=True)

    def _ask(
        self, claim: Claim, trial_id: int, number: int, *, again: bool = False
    ) -> optuna.Trial:
        """Returns the Optuna trial of the trial in the buffer, with a sampler that is seeded so."""
        if "sampler" not in self.stage.strategy.keeps_state:
            self.stored.optuna.sampler = self.stage.strategy.sampler(number, again=again)
        # A copy of the study reads the trials again: Optuna's keeps what the last sampler saw of
        # them until `tell` ends a trial, and a paused one is not ended.
        study = copy.copy(self.stored.optuna)
        if isinstance(self.order, RoundOrder) and claim.segments:
            study = self.order.seen(study, claim.segments[-1])
        return optuna.Trial(study, trial_id)

    def _give(self, trial_id: int, point: Point) -> None:
        """Gives the trial in the buffer the hyperparameters of a configuration."""
        for name, value in point.params.items():
            distribution = point.distributions[name]
            internal = distribution.to_internal_repr(value)
            self.stored.storage.set_trial_param(trial_id, name, internal, distribution)
