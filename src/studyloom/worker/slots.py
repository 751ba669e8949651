"""The slots of a stage: which one a worker claims next, and the configuration of its trial.

A sampler or pruner that *keeps state* remembers trials in its process, and not only in the
database; a study with one is worked on by one process.
"""

import copy
import logging
import sys
from collections.abc import Set
from typing import Any

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
PointKey = frozenset[tuple[str, Any]]  # from `identify`: equal for equal configurations
log = logging.getLogger(__name__)


class SlotQueue:
    """Claims the slots of a stage in the order of its pruner, and chooses what their trials try.

    Once the search has ended by its bounds, only the trials that have begun are left to do.

    Attributes:
        stage: The stage.
        stored: Its study.
        owner: The id of the worker.
        baseline: The configuration of trial 0; None if the stage has no baseline.
        pauses: Whether the pruner pauses trials at rungs.
        order: Decides which slot is claimed next; None for the first, one with a trial before
            others.
    """

    def __init__(self, stage: Stage, owner: str, max_failures: int) -> None:
        """Prepares the order of the slots.

        Args:
            max_failures: The limit of `failures.Limits`, which a search in rounds counts by
                segment.
        """
        self.stage = stage
        self.stored = stage.stored
        self.owner = owner
        self.baseline = stage.source.baseline
        self.pauses = isinstance(self.stored.optuna.pruner, AshaPruner)
        self.order = self._make_order(max_failures)
        self.stored.storage.reads_snapshots = self.in_rounds

    def _make_order(self, max_failures: int) -> AshaOrder | RoundOrder | None:
        """Makes the order of the slots, see `order`, from the pruner and `study.round_size`."""
        pruner = self.stored.optuna.pruner
        objectives = self.stored.objectives
        definition = self.stored.definition() or {}
        round_width = definition.get("study.round_size")  # None or 0 for a search without rounds
        if not round_width:
            if isinstance(pruner, AshaPruner):
                return pruner.make_order(objectives)
            return None
        if isinstance(pruner, AshaPruner):
            order_in_rounds = pruner.make_order(objectives)
        else:
            without_rungs = AshaPruner(min_resource=sys.maxsize)
            order_in_rounds = without_rungs.make_order(objectives)
        (halted_at,) = self.stored.attributes(HALTED_AT)
        return RoundOrder(order_in_rounds, round_width, max_failures, halted_at or 0)

    @property
    def in_rounds(self) -> bool:
        """Returns whether the trials do not depend on the number of workers."""
        return isinstance(self.order, RoundOrder)

    # Claim

    def claim(self, lease: float, *, ended: bool) -> Claim | None:
        """Claims a slot, and makes a running trial for a new one; None if no slot is free.

        Args:
            lease: Seconds until the claim ends unless it is renewed.
            ended: Whether the search has ended, so that only trials that have begun are left.
        """
        return self.stored.ledger.claim(
            self.owner,
            self.stage.trials,
            lease,
            self._create_trial,
            only_with_trial=ended,
            order=self.order,
        )

    def _create_trial(self, connection: Connection, slot: int) -> int:
        """Creates the trial of a slot in the transaction of its claim, and returns its id."""
        attributes = {SLOT: slot, WORKER: self.owner}
        if slot == 0 and self.baseline is not None:
            attributes[BASELINE] = True
        return self.stored.storage.create(connection, self.stored.ledger.study_id, attributes)

    def halt(self) -> None:
        """Halts a search in rounds whose segments fail, once it can neither begin nor end one.

        In other searches the worker whose trial has failed does so, see `HeldTrial.fail`.
        """
        if not isinstance(self.order, RoundOrder):
            return
        standings = self.stored.ledger.standings(self.owner, self.stage.trials, self.order)
        reason = self.order.find_halt_reason(standings)
        if reason is None:
            return
        numbers = []
        for standing in standings:
            numbers += [segment.number for segment in standing.segments]
        self.stored.optuna.set_user_attr(HALTED_AT, max(numbers) + 1)
        self.stored.optuna.set_user_attr(HALTED, reason)

    # Pauses

    def may_stop(self, trial: FrozenTrial) -> bool:
        """Returns whether a trial may be pruned or paused; the baseline runs to its end.

        In rounds, which wait for each other, it is paused too.
        """
        if self.in_rounds or self.baseline is None:
            return True
        return not TrialRecord(trial).is_baseline

    def pauses_at(self, slot: int, previous_step: int, step: int) -> bool:
        """Returns whether a trial has reached a rung with a step; see `AshaOrder.pauses_at`."""
        return self.order is not None and self.order.pauses_at(slot, previous_step, step)

    def promotes(self, slot: int) -> bool:
        """Returns whether the trial at a rung is the next to promote, so that it continues."""
        assert self.order is not None
        standings = self.stored.ledger.standings(self.owner, self.stage.trials, self.order)
        return self.order.is_next(standings, slot, closed=self.stage.has_ended())

    # Samplers and pruners that keep state

    def begin_state(self, claim: Claim, lease: float) -> None:
        """Checks that no other process works on a study whose sampler or pruner keeps state.

        Each process claims a slot before it looks for others, so that of two that begin together
        not both continue. The sampler is made here, once for all trials of this process.

        Raises:
            LaunchError: Another process works on the study; the claim was released.
        """
        stored = self.stored
        ledger = stored.ledger
        strategy = self.stage.strategy
        parts = " and ".join(strategy.keeps_state)
        ledger.record_gone()
        other_workers = [held.owner for held in ledger.held() if held.owner != self.owner]
        if other_workers:
            ledger.release(claim)
            raise LaunchError(
                f"{parts}: keeps its state in one process ({KEEPS_STATE}), and {other_workers[0]} "
                f"works on the study already; end that one; if it died, wait {lease:.0f} s"
            )
        assert claim.trial_id is not None
        number = stored.storage.get_trial(claim.trial_id).number
        begun = [trial for trial in stored.trials() if trial.datetime_start is not None]
        had_earlier_process = any(trial.number != number for trial in begun)
        if had_earlier_process:
            log.warning(
                "%s: keeps its state in one process, and what it kept in an earlier one is gone; "
                "it starts again with trial %d, and knows only the stored trials",
                parts,
                number,
            )
        if "sampler" in strategy.keeps_state:
            stored.optuna.sampler = strategy.sampler(number)

    # Draw

    def begin_trial(self, frozen: FrozenTrial, claim: Claim) -> optuna.Trial:
        """Turns the trial in the buffer into an Optuna trial, and sets the sampler for it.

        A waiting trial starts, and a paused one no longer counts as paused. The baseline gets its
        hyperparameters, so that the sampler draws none.
        """
        record = TrialRecord(frozen)
        buffer = self.stored.storage
        trial_id = frozen._trial_id
        if frozen.state == TrialState.WAITING:
            buffer.set_trial_user_attr(trial_id, WORKER, self.owner)
            buffer.set_trial_state_values(trial_id, TrialState.RUNNING)
        if record.paused is not None:
            buffer.set_trial_user_attr(trial_id, PAUSED, None)
        if record.is_baseline and self.baseline is not None and not frozen.params:
            self._set_params(trial_id, self.baseline)
        return self._make_trial(claim, trial_id, seed=frozen.number)

    def draw(self, held: HeldTrial) -> Point | None:
        """Draws a trial's configuration and stores it, unless the trial has one already.

        The sampler draws again, with other seeds, if the configuration breaks a relation, or
        repeats another although `limits.allow_repeats` is false; then chance decides. Returns None
        if that finds nothing.
        """
        space = self.stage.source.space
        if held.trial.params:
            # They were set in the config or by a user, or stored by an earlier worker.
            with held.watch("sampling"):
                point = space.suggest(held.trial)
            self._store_point(held)
            return point
        # The configurations that the trial must not repeat; empty if it may repeat any.
        used: set[PointKey] = set()
        if not held.limits.allow_repeats and self.baseline is not None:
            # The worker of trial 0 may not have stored its configuration yet.
            used.add(identify(self.baseline))
        redraws = 0
        while True:
            with held.watch("sampling"):
                point = space.suggest(held.trial)
            breaks_relation = space.find_breach(point.params) is not None
            if not breaks_relation:
                if held.limits.allow_repeats:
                    self._store_point(held)
                    return point
                used |= self._store_unless_used(held, point, used)
                was_stored = identify(point) not in used
                if was_stored:
                    return point
            redraws += 1
            if not self._draw_again(held, redraws, used):
                return None

    def _draw_again(self, held: HeldTrial, redraws: int, used: set[PointKey]) -> bool:
        """Drops a trial's configuration, which is not stored, and makes its Optuna trial again.

        Args:
            redraws: How often its configuration was not accepted.
            used: The configurations that it must not repeat.

        Returns:
            False if even chance finds no configuration.
        """
        trial_id = held.trial._trial_id
        self.stored.storage.load(self.stored.ledger.study_id, trial_id)
        with held.watch("sampling"):
            if redraws > REDRAWS and not self._draw_by_chance(held, redraws, used):
                return False
            seed = derive(held.trial.number, redraws)
            held.trial = self._make_trial(held.claim, trial_id, seed, redraws=True)
        return True

    def _store_point(self, held: HeldTrial) -> None:
        """Stores a trial's configuration, which is pending in the buffer."""
        buffer = self.stored.storage
        self._store_segments(held)
        with held.watch("storage"):
            if not self.stored.ledger.renew(held.claim, held.limits.lease, buffer.write):
                raise ClaimLost
        buffer.mark_written()

    def _store_unless_used(
        self, held: HeldTrial, point: Point, used: Set[PointKey]
    ) -> set[PointKey]:
        """Stores a trial's configuration, unless it is used or another trial has it.

        Looking at the other trials and storing are one transaction that has locked the study, so
        that two workers cannot store the same configuration.

        Args:
            used: Configurations that the trial must not repeat.

        Returns:
            The configurations of the other trials.
        """
        stored = self.stored
        key = identify(point)
        of_others: set[PointKey] = set()

        def write(connection: Connection) -> None:
            of_others.clear()  # a second try looks again
            for trial in stored.lock_trials(connection):
                if trial.number != held.trial.number:
                    of_others.add(identify(trial))
            if key not in used and key not in of_others:
                stored.storage.write(connection)

        self._store_segments(held)
        with held.watch("storage"):
            if not stored.ledger.renew(held.claim, held.limits.lease, write):
                raise ClaimLost
        if key not in used and key not in of_others:
            stored.storage.mark_written()
        return of_others

    def _store_segments(self, held: HeldTrial) -> None:
        """Adds to the next commit that the segment begins, after which others may decide theirs."""
        if not held.claim.segments:
            return
        begun = [(segment.number, segment.start or 0) for segment in held.claim.segments]
        self.stored.storage.set_trial_user_attr(held.trial._trial_id, SEGMENTS, begun)

    def _draw_by_chance(self, held: HeldTrial, redraws: int, used: set[PointKey]) -> bool:
        """Sets a random configuration that is allowed and not used; False if there is none."""
        source = self.stage.source
        seed = derive(source.seed, held.trial.number, 1, redraws)
        point = draw_point(source.space, seed, used)
        if point is None:
            return False
        self._set_params(held.trial._trial_id, point)
        return True

    def _make_trial(
        self, claim: Claim, trial_id: int, seed: int, *, redraws: bool = False
    ) -> optuna.Trial:
        """Makes the Optuna trial of the trial in the buffer.

        Args:
            seed: The seed of its sampler, with the seed of the study.
            redraws: Whether an earlier configuration was not accepted.
        """
        strategy = self.stage.strategy
        if "sampler" not in strategy.keeps_state:
            self.stored.optuna.sampler = strategy.sampler(seed, redraws=redraws)
        # A copy of the study reads the trials again: Optuna's keeps what the last sampler saw of
        # them until `tell` ends a trial, and a paused one is not ended.
        study = copy.copy(self.stored.optuna)
        if isinstance(self.order, RoundOrder) and claim.segments:
            study = self.order.view_study(study, claim.segments[-1])
        return optuna.Trial(study, trial_id)

    def _set_params(self, trial_id: int, point: Point) -> None:
        """Sets the hyperparameters of the trial in the buffer."""
        for name, value in point.params.items():
            distribution = point.distributions[name]
            internal = distribution.to_internal_repr(value)
            self.stored.storage.set_trial_param(trial_id, name, internal, distribution)
