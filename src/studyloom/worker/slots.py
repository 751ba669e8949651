"""The slots of a stage: which one a worker claims next, and the configuration of its trial.

A *slot* is a row of the budget, one for each trial. A sampler or pruner that *keeps state*
remembers trials in its process, and not only in the database; a study with one is worked on by one
process. A search *in rounds* gives the same trials for any number of workers: its trials are cut
into *segments*, and what a segment may use is decided when it begins.
"""

import copy
import logging
import sys

import optuna
from optuna.trial import FrozenTrial, TrialState

from studyloom.decisions.asha import AshaOrder, AshaPruner
from studyloom.decisions.auto_pruner import UndecidedPruner, choose_lowest_rung
from studyloom.decisions.given_samplers import KEEPS_STATE
from studyloom.decisions.rounds import RoundOrder
from studyloom.errors import ClaimLost, LaunchError
from studyloom.objectives.objective import Objective
from studyloom.seeds import derive
from studyloom.space.drawing_configurations import (
    ConfigurationKey,
    draw_configuration,
    identify,
)
from studyloom.space.tree import Configuration
from studyloom.storage.attributes import (
    BASELINE,
    HALTED,
    HALTED_AT,
    PAUSED,
    RUNG,
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
RANDOM_CONFIGURATION = 1  # distinguishes the seeds of random configurations from other seeds
log = logging.getLogger(__name__)


class SlotQueue:
    """Claims the slots of a stage in the order of its pruner, and chooses what their trials try.

    Once the search has ended by its bounds, only the trials that have begun or are queued
    are left to do.

    Attributes:
        stage: The stage.
        stored: Its study.
        owner: The id of the worker.
        baseline: The configuration of trial 0; None if the stage has no baseline.
        must_resume: Whether a trial fails that cannot resume, since its pruner pauses trials.
        order: Decides which slot is claimed next; None for the first that is free, where those with
            a trial come before those without.
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
        self._max_failures = max_failures
        self._follow_pruner()

    def _follow_pruner(self) -> None:
        """Prepares the order of the slots, and what trials must be able to do, for the pruner."""
        pruner = self.stored.optuna.pruner
        self.must_resume = isinstance(pruner, AshaPruner) and pruner.demands_checkpoints
        self.order = self._make_order(self._max_failures)
        # In rounds no trial may be missing that ends while the others are read.
        self.stored.storage.reads_snapshots = self.in_rounds

    def _make_order(self, max_failures: int) -> AshaOrder | RoundOrder | None:
        """Makes the order in which slots are claimed, from the pruner and `study.round_size`."""
        pruner = self.stored.optuna.pruner
        objectives = self.stored.objectives
        asha_order = None
        if isinstance(pruner, AshaPruner):
            asha_order = pruner.make_order(objectives)
        definition = self.stored.definition() or {}
        round_size = definition.get("study.round_size")  # None or 0 for a search without rounds
        if not round_size:
            return asha_order
        if asha_order is None:
            # The first rung, at which trials are compared, is at an epoch that no trial reaches.
            pruner_without_rungs = AshaPruner(min_resource=sys.maxsize)
            asha_order = pruner_without_rungs.make_order(objectives)
        # How many segments the search had when it halted last, since its trials all failed.
        (halted_at,) = self.stored.attributes(HALTED_AT)
        return RoundOrder(
            order=asha_order,
            width=round_size,
            max_failures=max_failures,
            halted_at=halted_at or 0,
        )

    @property
    def in_rounds(self) -> bool:
        """Returns whether the search is in rounds: any number of workers gives the same trials."""
        return isinstance(self.order, RoundOrder)

    # Claim

    def claim(self, lease: float, *, search_ended: bool) -> Claim | None:
        """Claims a slot, a row of the budget, and creates a trial in it if it has none.

        Args:
            lease: Seconds until the claim ends unless it is renewed.
            search_ended: Whether only slots that have a trial, begun or queued, may be claimed.

        Returns:
            None if no slot is free.
        """
        return self.stored.ledger.claim(
            self.owner,
            self.stage.trials,
            lease,
            self._create_trial,
            search_ended=search_ended,
            order=self.order,
        )

    def _create_trial(self, connection: Connection, slot: int) -> int:
        """Creates the trial of a slot in the transaction of its claim, and returns its id."""
        attributes = {SLOT: slot, WORKER: self.owner}
        if slot == 0 and self.baseline is not None:
            attributes[BASELINE] = True
        return self.stored.storage.create(connection, self.stored.ledger.study_id, attributes)

    def halt_failed_rounds(self) -> None:
        """Halts a search in rounds if its trials fail, once no segment can begin or end any more.

        A segment is a part of the training of a trial, up to its next rung. A search without rounds
        is halted by the worker whose trial has failed, in `HeldTrial.fail`.
        """
        if not isinstance(self.order, RoundOrder):
            return
        # A standing says how far the trial of a slot has come.
        standings = self.stored.ledger.standings(self.owner, self.stage.trials, self.order)
        reason = self.order.find_halt_reason(standings)
        if reason is None:
            return
        segment_numbers = []
        for standing in standings:
            for segment in standing.segments:
                segment_numbers.append(segment.number)
        # If the user repairs the code and resumes, only failures of later segments count.
        self.stored.optuna.set_user_attr(HALTED_AT, max(segment_numbers) + 1)
        self.stored.optuna.set_user_attr(HALTED, reason)

    # Pauses

    def follow_decided_pruner(self) -> None:
        """Takes the pruner that the study has decided on, if it was undecided until now.

        `pruner=auto` of a custom training loop is undecided until a first trial has ended well.
        """
        pruner = self.stored.optuna.pruner
        if not isinstance(pruner, UndecidedPruner):
            return
        (lowest_rung,) = self.stored.attributes(RUNG)
        if lowest_rung is None:
            return
        decided_pruner = pruner.decide(lowest_rung)
        self.stored.optuna.pruner = decided_pruner
        self._follow_pruner()
        log.info(decided_pruner.note)

    def decide_pruner(self, objective: Objective | None) -> None:
        """Stores whether trials are paused at rungs, if that is undecided.

        The first trial that ends well decides. It need not be trial 0, which may fail.

        Args:
            objective: The objective of a trial that ends well; None if it was not made.
        """
        is_undecided = isinstance(self.stored.optuna.pruner, UndecidedPruner)
        if not is_undecided or objective is None:
            return
        lowest_rung = choose_lowest_rung(objective.resumable_epochs)
        self.stored.set_once(RUNG, lowest_rung)  # another worker may have decided

    def may_stop(self, trial: FrozenTrial) -> bool:
        """Returns whether a trial may be pruned or paused, as all but the baseline may be.

        In a search in rounds, whose trials wait for each other, the baseline is paused too.
        """
        if self.in_rounds or self.baseline is None:
            return True
        return not TrialRecord(trial).is_baseline

    def pauses_at(self, slot: int, previous_step: int, step: int) -> bool:
        """Returns whether the trial of a slot has reached a rung, an epoch that compares trials.

        Args:
            slot: The number of the slot.
            previous_step: The last step of the trial before.
            step: Its step now.
        """
        return self.order is not None and self.order.pauses_at(slot, previous_step, step)

    def is_next_to_promote(self, slot: int) -> bool:
        """Returns whether the trial of a slot, which is at a rung, may continue at once."""
        assert self.order is not None
        standings = self.stored.ledger.standings(self.owner, self.stage.trials, self.order)
        return self.order.is_next(standings, slot, closed=self.stage.has_ended())

    def ends_pruned(self, trial: FrozenTrial, claim: Claim) -> bool:
        """Returns whether a claimed trial only ends, as pruned at its last report.

        It was paused and can no longer be promoted, or its end was requested while its last worker
        had died or released it.
        """
        return claim.ends_pruned or TrialRecord(trial).is_stop_requested

    # Samplers and pruners that keep state

    def begin_alone(self, claim: Claim, lease: float) -> None:
        """Begins the work on a study whose sampler or pruner keeps state in its process.

        Checks that no other process works on the study. A process claims a slot, which reserves a
        trial for it, before it looks for others: so of two that begin together at most one
        continues. Then makes the sampler, once for all trials of this process.

        Args:
            claim: The first claim of this process.
            lease: Seconds after which the claim of a process that died has ended.

        Raises:
            LaunchError: Another process works on the study; the claim was released.
        """
        stored = self.stored
        ledger = stored.ledger
        strategy = self.stage.strategy
        stateful_parts = " and ".join(strategy.keeps_state)  # such as "sampler and pruner"
        ledger.record_gone()  # ends the claims of processes on this host that have died
        other_owners = [slot.owner for slot in ledger.held() if slot.owner != self.owner]
        if other_owners:
            ledger.release(claim)
            raise LaunchError(
                f"{stateful_parts}: keeps its state in one process ({KEEPS_STATE}), and "
                f"{other_owners[0]} works on the study already; end that one; if it died, "
                f"wait {lease:.0f} s"
            )
        assert claim.trial_id is not None
        number = stored.storage.get_trial(claim.trial_id).number
        self._warn_of_lost_state(stateful_parts, number)
        if "sampler" in strategy.keeps_state:
            stored.optuna.sampler = strategy.sampler(number)

    def _warn_of_lost_state(self, stateful_parts: str, number: int) -> None:
        """Warns that state is lost if earlier processes have begun trials.

        Args:
            stateful_parts: The parts of the search that keep state, such as "sampler and pruner".
            number: The number of the first trial of this process.
        """
        for trial in self.stored.trials():
            has_begun = trial.datetime_start is not None
            if has_begun and trial.number != number:
                log.warning(
                    "%s: keeps its state in one process, and what it kept in an earlier one is "
                    "gone; it starts again with trial %d, and knows only the stored trials",
                    stateful_parts,
                    number,
                )
                return

    # Draw

    def begin_trial(self, frozen: FrozenTrial, claim: Claim, *, draws: bool) -> optuna.Trial:
        """Makes the `optuna.Trial` of a stored trial that was claimed, with a sampler for it.

        A waiting trial starts, and a paused one no longer counts as paused. The baseline, which is
        the default configuration, gets its hyperparameters here, so that the sampler draws none.

        Args:
            frozen: The stored trial, which the trial buffer has loaded.
            draws: Whether the trial is trained; if not, the study's sampler is not asked.
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
        if not draws:
            study = copy.copy(self.stored.optuna)
            study.sampler = optuna.samplers.RandomSampler()  # Optuna needs some sampler
            return optuna.Trial(study, trial_id)
        return self._make_trial(claim, trial_id, seed=frozen.number)

    def draw(self, held: HeldTrial) -> Configuration | None:
        """Draws a trial's configuration and stores it, unless the trial has one already.

        A configuration is not accepted if it breaks a relation of the space, or repeats another
        although `limits.allow_repeats` is false. Then the sampler draws again, at most REDRAWS
        times, and after that random configurations are tried.

        Returns:
            The configuration; None if none is accepted.
        """
        space = self.stage.source.space
        if held.trial.params:
            # They were set in the config or by a user, or stored by an earlier worker.
            with held.stopwatch("sampling"):
                configuration = space.suggest(held.trial)
            self._store_configuration(held)
            return configuration
        # The configurations that the trial must not repeat; empty if it may repeat any.
        used_keys: set[ConfigurationKey] = set()
        if not held.limits.allow_repeats and self.baseline is not None:
            # The worker of trial 0 may not have stored its configuration yet.
            used_keys.add(identify(self.baseline))
        redraws = 0
        while True:
            with held.stopwatch("sampling"):
                configuration = space.suggest(held.trial)
            satisfies_relations = space.find_breach(configuration.params) is None
            if satisfies_relations:
                if held.limits.allow_repeats:
                    self._store_configuration(held)
                    return configuration
                was_stored = self._store_unless_used(held, configuration, used_keys)
                if was_stored:
                    return configuration
            redraws += 1
            can_redraw = self._prepare_redraw(held, redraws, used_keys)
            if not can_redraw:
                return None

    def _prepare_redraw(
        self, held: HeldTrial, redraws: int, used_keys: set[ConfigurationKey]
    ) -> bool:
        """Prepares another draw of a trial's configuration, since the last one was not accepted.

        It drops that configuration, which was not stored, and makes a new `optuna.Trial` of the
        same stored trial. After REDRAWS redraws it also sets a random configuration, so that the
        sampler draws none.

        Args:
            redraws: How often a configuration of the trial was not accepted.
            used_keys: The configurations that the trial must not repeat.

        Returns:
            False if a random configuration is needed, and none is found.
        """
        trial_id = held.trial._trial_id
        # The buffer holds the trial's changes until they are committed. It drops them here.
        self.stored.storage.load(self.stored.ledger.study_id, trial_id)
        with held.stopwatch("sampling"):
            if redraws > REDRAWS and not self._set_random_configuration(held, redraws, used_keys):
                return False
            seed = derive(held.trial.number, redraws)
            held.trial = self._make_trial(held.claim, trial_id, seed, redraws=True)
        return True

    def _store_configuration(self, held: HeldTrial) -> None:
        """Commits a trial's configuration, which is pending in the buffer, and renews its lease."""
        buffer = self.stored.storage
        self._add_segments(held)
        with held.stopwatch("storage"):
            still_holds = self.stored.ledger.renew(held.claim, held.limits.lease, buffer.write)
            if not still_holds:
                raise ClaimLost
        buffer.mark_written()

    def _store_unless_used(
        self, held: HeldTrial, configuration: Configuration, used_keys: set[ConfigurationKey]
    ) -> bool:
        """Commits a trial's configuration, which is pending in the buffer, unless it was used.

        The other trials are read, and the configuration is stored, in one transaction that has
        locked the study, so that two workers cannot store the same configuration.

        Args:
            used_keys: Configurations that the trial must not repeat; the configurations of other
                trials are added.

        Returns:
            Whether it was stored.
        """
        stored = self.stored
        key = identify(configuration)  # equal for two configurations that are the same
        keys_of_others: set[ConfigurationKey] = set()

        def write(connection: Connection) -> None:
            """Reads the configurations of the other trials, and writes this one if it is new."""
            keys_of_others.clear()  # if the transaction is tried a second time
            for trial in stored.lock_trials(connection):
                if trial.number != held.trial.number:
                    keys_of_others.add(identify(trial))
            if key not in used_keys | keys_of_others:
                stored.storage.write(connection)

        self._add_segments(held)
        with held.stopwatch("storage"):
            still_holds = stored.ledger.renew(held.claim, held.limits.lease, write)
            if not still_holds:
                raise ClaimLost
        used_keys |= keys_of_others
        was_stored = key not in used_keys
        if was_stored:  # by `write`, whose transaction is committed now
            stored.storage.mark_written()  # the buffer drops the pending configuration
        return was_stored

    def _add_segments(self, held: HeldTrial) -> None:
        """Adds to the next commit that the trial's segment begins, in a search in rounds.

        A segment is a part of a training, up to the next rung; rounds of segments are decided one
        after the other. Other workers wait for this one: what their segments may use depends on
        which have begun.
        """
        if not held.claim.segments:  # the search is not in rounds
            return
        begun_segments = []
        for segment in held.claim.segments:
            first_step = segment.start or 0  # None if the trial had no configuration yet
            begun_segments.append((segment.number, first_step))
        self.stored.storage.set_trial_user_attr(held.trial._trial_id, SEGMENTS, begun_segments)

    def _set_random_configuration(
        self, held: HeldTrial, redraws: int, used_keys: set[ConfigurationKey]
    ) -> bool:
        """Sets a random configuration that is allowed and not used; False if there is none."""
        source = self.stage.source
        seed = derive(source.seed, held.trial.number, RANDOM_CONFIGURATION, redraws)
        configuration = draw_configuration(source.space, seed, used_keys)
        if configuration is None:
            return False
        self._set_params(held.trial._trial_id, configuration)
        return True

    def _make_trial(
        self, claim: Claim, trial_id: int, seed: int, *, redraws: bool = False
    ) -> optuna.Trial:
        """Makes the `optuna.Trial` of the trial in the buffer, with a sampler that draws for it.

        Args:
            seed: The number from which, with the seed of the study, the sampler is seeded.
            redraws: Whether an earlier configuration of the trial was not accepted.
        """
        strategy = self.stage.strategy
        # A sampler that keeps state was made before the first trial, and serves all trials.
        if "sampler" not in strategy.keeps_state:
            self.stored.optuna.sampler = strategy.sampler(seed, redraws=redraws)
        # A copy of the study reads the trials again. Optuna caches them for the sampler until
        # `tell` ends a trial, which does not happen if the last trial was paused.
        study = copy.copy(self.stored.optuna)
        if isinstance(self.order, RoundOrder) and claim.segments:
            study = self.order.view_study(study, claim.segments[-1])
        return optuna.Trial(study, trial_id)

    def _set_params(self, trial_id: int, configuration: Configuration) -> None:
        """Sets the hyperparameters of the trial in the buffer.

        Those of an Optuna objective have no distributions until it suggests them. It takes the
        values then that its trial was queued with.
        """
        for name, distribution in configuration.distributions.items():
            internal = distribution.to_internal_repr(configuration.params[name])
            self.stored.storage.set_trial_param(trial_id, name, internal, distribution)
